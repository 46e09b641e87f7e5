"""Problems × method × engines → scored rows, with their cost and intervals.

The answers of held-out questions are used here to measure, never to train. Trees are kept as they are found, so an
evaluation that was interrupted goes on where it was, and the value model can be judged on what it scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from restmcts import drive
from restmcts.account import Account
from restmcts.datasets import verify
from restmcts.engines import Engines
from restmcts.errors import StoreError
from restmcts.files import numbered_jsonl, set_aside_lines
from restmcts.livegrader import LiveGrader, OnTree
from restmcts.metrics import Interval, ValuePoints, value_quality, wilson
from restmcts.records import typed
from restmcts.rewards import process_rewards
from restmcts.search import SEARCHES, Method, SearchSettings
from restmcts.store import JsonlWriter, read_jsonl, write_jsonl
from restmcts.tasks import get_task
from restmcts.tasks.grade import Grader
from restmcts.types import SCHEMA_VERSION, STAGE_BUDGET, Problem, Tree, Usage

TREES, ROWS = "trees.jsonl", "rows.jsonl"


@dataclass(frozen=True, slots=True)
class Row:
    """One question, answered."""

    id: str
    method: str
    answer: str | None
    gold: str | None
    correct: bool
    policy_tokens: int
    prompt_tokens: int
    cached_tokens: int
    value_tokens: int
    seconds: float
    nodes: int
    finished: int
    """finished leaves of its tree"""
    stop: str
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of one method on one set of questions."""

    method: str
    rows: list[Row]
    usage: Usage
    quality: dict[str, Any] | None
    """`metrics.value_quality` on the trees; None where no value model was asked"""
    owed: int = 0
    """questions that the stage's budget left unasked, or cut off"""

    @property
    def n(self) -> int:
        return len(self.rows)

    @property
    def correct(self) -> int:
        return sum(row.correct for row in self.rows)

    @property
    def accuracy(self) -> float | None:
        """Share of right answers; a question without an answer counts as wrong. None without questions."""
        return self.correct / self.n if self.rows else None

    @property
    def interval(self) -> Interval | None:
        """Wilson's 95 % interval of `accuracy`."""
        return wilson(self.correct, self.n)

    def summary(self) -> dict[str, Any]:
        """The numbers of the result, JSON-ready."""
        return {
            "method": self.method,
            "n": self.n,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "interval": None if self.interval is None else list(self.interval),
            "unanswered": sum(row.answer is None for row in self.rows),
            "failed": sum(row.stop == "failed" for row in self.rows),
            **({"owed": self.owed} if self.owed else {}),
            "usage": asdict(self.usage),
            "quality": self.quality,
        }


def greedy(settings: SearchSettings) -> SearchSettings:
    """One greedy chain under the limits of `settings`.

    What a chain does not read is at its default, so that changing it does not seem to change the greedy answers.
    """
    limits = ("max_depth", "step_tokens", "budget_tokens", "budget_seconds")
    return SearchSettings(method="cot", temperature=0.0, **{name: getattr(settings, name) for name in limits})


def evaluate(
    problems: Sequence[Problem],
    method: str,
    settings: SearchSettings,
    engines: Engines,
    *,
    grader: Grader,
    seed: int = 0,
    concurrency: int = 48,
    folder: Path | None = None,
    on_tree: OnTree | None = None,
    account: Account | None = None,
) -> Evaluation:
    """Answer every problem and score the answers; those that the budget of `account` left unasked have no row.

    With a `folder`, trees are appended to its trees.jsonl as they finish (those found there are not searched again)
    and the rows are written to its rows.jsonl. A problem's tree depends on `seed` and its id alone.
    """
    path = None if folder is None else folder / TREES
    trees: dict[str, Tree] = {}
    searched = search_all(
        problems,
        method,
        settings,
        engines,
        grader=grader,
        seed=seed,
        concurrency=concurrency,
        path=path,
        each=lambda tree: trees.update({tree.problem.id: tree}),
        on_tree=on_tree,
        account=account,
    )
    result = score_trees([trees[problem.id] for problem in problems if problem.id in trees], grader)
    result = replace(result, owed=searched.owed)
    if folder is not None:
        write_rows(folder / ROWS, result.rows)
    return result


def score_trees(trees: Sequence[Tree], grader: Grader) -> Evaluation:
    """The evaluation of trees that were searched already."""
    correct = verify(trees, grader)
    rows = [_row(tree, flags) for tree, flags in zip(trees, correct, strict=True)]
    points = value_points(trees, correct)
    usage = sum((tree.usage for tree in trees), Usage())
    return Evaluation(trees[0].method if trees else "", rows, usage, value_quality(points) if len(points) else None)


@dataclass(slots=True)
class Searched:
    """What came of a search in all; the trees themselves are on the disk."""

    asked: int
    """questions, searched or not"""
    trees: int = 0
    answered: int = 0
    nodes: int = 0
    stops: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)

    def add(self, tree: Tree) -> None:
        self.trees += 1
        self.answered += tree.final_answer is not None
        self.nodes += len(tree)
        self.stops[tree.stop] += 1
        self.usage += tree.usage

    def __add__(self, other: Searched) -> Searched:
        return Searched(
            self.asked + other.asked,
            self.trees + other.trees,
            self.answered + other.answered,
            self.nodes + other.nodes,
            self.stops + other.stops,
            self.usage + other.usage,
        )

    @property
    def owed(self) -> int:
        """Questions that the stage's budget left unasked, or cut off."""
        return self.asked - self.trees + self.stops[STAGE_BUDGET]

    def summary(self) -> dict[str, Any]:
        """The numbers, JSON-ready."""
        owed = {"owed": self.owed} if self.owed else {}
        return {"nodes": self.nodes, "stops": dict(self.stops), **owed, "usage": asdict(self.usage)}


def search_all(
    problems: Sequence[Problem],
    method: str | Method,
    settings: SearchSettings,
    engines: Engines,
    *,
    grader: Grader,
    seed: int,
    concurrency: int,
    path: Path | None = None,
    each: Callable[[Tree], None] | None = None,
    on_tree: OnTree | None = None,
    account: Account | None = None,
) -> Searched:
    """Search every problem, as far as the budget of `account` goes.

    Trees stored at `path` are kept; new ones are appended there the moment they finish, in whatever order that is.
    `each` is given every tree, the stored ones first; nothing else holds on to them. What the stage's budget had cut
    off is searched again if there is room now, so that it becomes what it would have been with more from the start.
    """
    searched = Searched(len(problems))
    again = account is None or not account.spent()
    done: set[str] = set()
    with LiveGrader(grader, on_tree) as live:

        def take(tree: Tree) -> None:
            searched.add(tree)
            if each is not None:
                each(tree)
            live.add(tree)

        for tree in () if path is None else read_stored(path, problems, mend=True):
            if tree.stop != STAGE_BUDGET or not again:
                done.add(tree.problem.id)
                take(tree)
        owed = [problem for problem in problems if problem.id not in done]
        if not owed or not again:
            return searched
        with nullcontext() if path is None else closing(JsonlWriter(path)) as writer:

            def keep(tree: Tree) -> None:
                if writer is not None:
                    writer.write(tree.to_record())
                take(tree)

            drive.run(
                owed,
                SEARCHES[method] if isinstance(method, str) else method,
                settings,
                engines,
                task_of=lambda problem: get_task(problem.task),
                seed=seed,
                concurrency=concurrency,
                on_tree=keep,
                account=account,
                questions=len(problems),
            )
    return searched


def stored_trees(path: Path, problems: Iterable[Problem]) -> dict[str, Tree]:
    """`read_stored`, by problem id."""
    return {tree.problem.id: tree for tree in read_stored(path, problems)}


def read_stored(path: Path, problems: Iterable[Problem], *, mend: bool = False) -> Iterator[Tree]:
    """The trees at `path` that belong to `problems`, one for each; none where there is no file.

    Of a question that the stage's budget cut off there may be several: the last one counts. With `mend`, lines that
    hold no tree are set aside in the end, and their questions are owed again.
    Raises StoreError for a tree that cannot be read or whose question is another one than the problem's.
    """
    questions = {problem.id: problem.question for problem in problems}
    cut_off: dict[str, Tree] = {}
    damaged: dict[int, str] = {}
    records = numbered_jsonl(path, skip_torn=not mend, damaged=damaged if mend else None) if path.exists() else ()
    for number, record in records:
        try:
            tree = Tree.from_record(record)
        except ValueError as error:
            if mend and record.get("schema", SCHEMA_VERSION) == SCHEMA_VERSION:
                damaged[number] = str(error)
                continue
            raise StoreError(f"{path}, line {number}: {error}; move the file away to search again") from None
        name = tree.problem.id
        if name not in questions:
            continue
        if tree.problem.question != questions[name]:
            raise StoreError(
                f"{path}: the tree of {name!r} was searched for another question; use another output folder"
            )
        cut_off.pop(name, None)
        if tree.stop == STAGE_BUDGET:
            cut_off[name] = tree
        else:
            yield tree
    set_aside_lines(path, damaged)
    yield from cut_off.values()


def spent_on(path: Path) -> Usage:
    """What the trees at `path` cost, those included that took the place of others."""
    records = numbered_jsonl(path, damaged={}) if path.exists() else ()
    return sum((Usage.from_record(record["usage"]) for _, record in records if "usage" in record), Usage())


# ---------------------------------------------------------------- rows


def _row(tree: Tree, correct: Sequence[bool | None]) -> Row:
    usage = tree.usage
    return Row(
        id=tree.problem.id,
        method=tree.method,
        answer=tree.final_answer,
        gold=tree.problem.answer,
        correct=tree.result is not None and bool(correct[tree.result]),
        policy_tokens=usage.policy_tokens,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        value_tokens=usage.value_tokens,
        seconds=round(usage.seconds, 3),
        nodes=len(tree),
        finished=len(tree.finished()),
        stop=tree.stop,
        requests=usage.requests,
    )


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    write_jsonl(path, (asdict(row) for row in rows))


def read_rows(path: Path) -> list[Row]:
    """Raises StoreError when the file holds something else."""
    try:
        return [Row(**typed(Row, record)) for record in read_jsonl(path)]
    except ValueError as error:
        raise StoreError(f"{path} holds no evaluation rows ({error})") from None


# ---------------------------------------------------------------- the value model on these trees


def value_points(trees: Sequence[Tree], correct: Sequence[Sequence[bool | None]]) -> ValuePoints:
    """Every node that the value model scored and the finished leaves label, side by side.

    `correct` holds one flag per node of each tree, as `datasets.verify` gives it. Labels are the hard estimate;
    in a tree without a right leaf everything that finished is wrong and worth 0.
    """
    points = ValuePoints.empty()
    for number, (tree, flags) in enumerate(zip(trees, correct, strict=True)):
        labels = process_rewards(tree.parent, flags, unsolved="zero", estimate="hard")
        depth = [0] * len(tree)
        for node in range(1, len(tree)):
            depth[node] = depth[tree.parent[node]] + 1
            said, true = tree.raw_value[node], float(labels.v[node])
            if said is None or true != true:  # not scored, or no label (NaN)
                continue
            points.predicted.append(said)
            points.value.append(true)
            points.right.append(bool(labels.r[node] == 0))
            points.correct.append(flags[node])
            points.depth.append(depth[node])
            points.tree.append(number)
            points.parent.append(tree.parent[node])
    return points
