"""Having it all answered: many arms on one question at a time, with a memory, a row for each answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path

from restmcts import drive
from restmcts.account import Account
from restmcts.compare.plan import Key, Plan, Trial
from restmcts.engines import Engines
from restmcts.engines.memory import Memory
from restmcts.errors import StoreError
from restmcts.livegrader import LiveGrader
from restmcts.store import JsonlWriter, read_jsonl
from restmcts.tasks.grade import Grader
from restmcts.types import Tree

ROWS = "rows.jsonl"
_NOTE_EVERY = 2.0
"""seconds between two notes of the cost; what is spent after the last one is not known when the process is killed"""


@dataclass(frozen=True, slots=True)
class Row:
    """One question, answered by one arm at one budget under one seed.

    Tokens and requests are those of this search alone, also where its replies were shared with others.
    """

    id: str
    method: str
    """the arm's name"""
    budget: int | None
    """most policy tokens; None for the greedy answer"""
    seed: int
    answer: str | None
    gold: str | None
    correct: bool
    policy_tokens: int
    value_tokens: int
    requests: int
    stop: str

    @property
    def key(self) -> Key:
        return self.id, self.method, self.budget or 0, self.seed


OnRow = Callable[[Row], None]
"""called with every new row; from one thread, which is not the caller's"""


def answer_all(
    plan: Plan,
    folders: Mapping[str, Path],
    engines: Engines,
    *,
    known: set[Key],
    grader: Grader,
    concurrency: int,
    account: Account,
    cost: CostLog,
    on_row: OnRow,
    trees: bool = False,
) -> None:
    """Run all of `plan` that has no row yet (is not `known`), and append the rows to rows.jsonl of each arm's folder.

    Arms ask the engines through one memory, which is told to forget a question when its last run is done. `account`
    counts what is really asked for; when its budget is spent, no further run is begun. With `trees`, those go to
    trees-BUDGET-SEED.jsonl beside the rows.
    """
    left = Counter(trial.problem.id for trial in plan.trials() if trial.key not in known)
    memory = Memory(engines, account.count.add)

    def owed() -> Iterator[Trial]:
        for trial in plan.trials():
            if trial.key not in known:
                if account.spent():
                    return
                yield trial

    with ExitStack() as opened, cost, account.watching(engines), LiveGrader(grader, None) as live:
        writers: dict[Path, JsonlWriter] = {}

        def writer(path: Path) -> JsonlWriter:
            if path not in writers:
                writers[path] = opened.enter_context(JsonlWriter(path))
            return writers[path]

        def keep(trial: Trial, tree: Tree, right: bool) -> None:
            if trees:
                writer(folders[trial.arm] / f"trees-{trial.budget}-{trial.seed}.jsonl").write(tree.to_record())
            row = row_of(trial, tree, right)
            writer(folders[trial.arm] / ROWS).write(asdict(row))
            cost.note()
            on_row(row)

        def done(trial: Trial, tree: Tree) -> None:
            left[trial.problem.id] -= 1
            if not left[trial.problem.id]:
                memory.forget(trial.problem.id)
            live.add(tree, partial(keep, trial))

        # Runs that differ in their budget alone ask the same for long: together they keep an engine as busy as one.
        drive.run_errands(owed(), memory.engines, concurrency=concurrency * len(plan.budgets), on_tree=done)


def row_of(trial: Trial, tree: Tree, right: bool) -> Row:
    usage = tree.usage
    return Row(
        id=trial.problem.id,
        method=trial.arm,
        budget=trial.budget,
        seed=trial.seed,
        answer=tree.final_answer,
        gold=trial.problem.answer,
        correct=right,
        policy_tokens=usage.policy_tokens,
        value_tokens=usage.value_tokens,
        requests=usage.requests,
        stop=tree.stop,
    )


def read_rows(path: Path) -> dict[Key, Row]:
    """The rows of a file; none where there is no file. Raises StoreError when it holds something else."""
    try:
        rows = [Row(**record) for record in read_jsonl(path, skip_torn=True)] if path.exists() else []
    except TypeError as error:
        raise StoreError(f"{path} holds no rows of a comparison ({error})") from None
    return {row.key: row for row in rows}


# ---------------------------------------------------------------- what it really costs


@dataclass(frozen=True, slots=True)
class Cost:
    """What the engines really generated and scored, and how long at least one request kept each of them busy."""

    policy_tokens: int = 0
    value_tokens: int = 0
    policy_busy: float = 0.0
    value_busy: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def policy_rate(self) -> float | None:
        """Seconds of the policy's work for a token generated; None where nothing was."""
        return self.policy_busy / self.policy_tokens if self.policy_tokens else None

    @property
    def value_rate(self) -> float | None:
        """Seconds of the value model's work for a token scored; None where nothing was."""
        return self.value_busy / self.value_tokens if self.value_tokens else None

    def seconds_for(self, policy_tokens: float, value_tokens: float) -> float | None:
        """How long the engines work on so many tokens, at these rates; None where one of them is not known."""
        parts = [(policy_tokens, self.policy_rate), (value_tokens, self.value_rate)]
        asked = [(tokens, rate) for tokens, rate in parts if tokens]
        if any(rate is None for _, rate in asked):
            return None
        return sum(tokens * rate for tokens, rate in asked if rate is not None)


class CostLog:
    """Appends to a file what was spent since the last note, so that all attempts together are known in the end.

    As a context manager it opens the file, and makes a last note on leaving.
    """

    def __init__(self, path: Path, engines: Engines, account: Account) -> None:
        self._path, self._engines, self._account = path, engines, account
        self._noted = self._now()
        self._since = time.monotonic()

    def __enter__(self) -> CostLog:
        self._file = JsonlWriter(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self._file.close()

    def note(self) -> None:
        """Write down what was spent, if the last note is some seconds old."""
        if time.monotonic() - self._since >= _NOTE_EVERY:
            self._write()

    def _write(self) -> None:
        now = self._now()
        self._file.write(asdict(now - self._noted))
        self._noted, self._since = now, time.monotonic()

    def _now(self) -> Cost:
        count, policy, value = self._account.count, self._engines.policy, self._engines.value
        value_busy = 0.0 if value is None else value.busy_seconds
        seconds = self._account.seconds
        return Cost(count.policy_tokens, count.value_tokens, policy.busy_seconds, value_busy, seconds)


def read_cost(path: Path) -> Cost:
    """The sum of all notes; nothing where there is no file."""
    return sum((Cost(**record) for record in read_jsonl(path, skip_torn=True)), Cost()) if path.exists() else Cost()
