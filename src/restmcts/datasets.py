"""Trees and their labels become rows to train on.

    trees ── verify ──► correct ── label ──► labels ──┬─ policy_rows ──► what π imitates: correct traces
                                                      └─ value_rows ───► what V regresses on: every labelled node, once

`worked_policy_rows` and `worked_value_rows` make the same rows from worked solutions, for the warm start (D_S0, D_V0).
Everything here is plain Python over plain data: no tokenizer, no tensor.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path as FilePath
from typing import Any, Literal, Protocol, Self, TypeVar

from restmcts.errors import StoreError, TaskError
from restmcts.seeds import derive_seed
from restmcts.types import Problem, Step, Tree

Pick = Literal["value", "random"]


class _Record:
    """A dataclass whose fields are JSON, with `to_record` and `from_record` as inverses."""

    def to_record(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Rebuild a row; unknown keys are ignored. Raises ValueError naming the missing ones."""
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        missing = [name for name in names if name not in record]
        if missing:
            raise ValueError(f"{cls.__name__} record lacks {', '.join(missing)}")
        return cls(**{name: record[name] for name in names})


@dataclass(frozen=True, slots=True)
class TreeLabels(_Record):
    """What a verified tree says about its nodes: one entry per node, None where there is nothing to say.

    `correct` is known for finished leaves; `m`, `r`, `w`, `v` are those of `rewards.Labels` (paper: Eqs. 1 and 2).
    """

    id: str
    """of the problem; the n-th record belongs to the n-th tree"""
    correct: list[bool | None]
    m: list[float | None]
    r: list[float | None]
    w: list[float | None]
    v: list[float | None]


@dataclass(frozen=True, slots=True)
class _TraceRow(_Record):
    problem_id: str
    question: str
    steps: list[str]
    step_ids: list[list[int] | None]
    """the policy's own tokens of each step; None where the step was not made by a tokenizing engine"""
    tokenizer: str | None
    """fingerprint of the vocabulary that `step_ids` belong to"""

    def problem(self) -> Problem:
        return Problem(self.problem_id, self.question)

    def path(self, tokenizer_id: str | None) -> tuple[Step, ...]:
        """The trace as steps. Token ids of another vocabulary than `tokenizer_id` are left out."""
        same = self.tokenizer is not None and self.tokenizer == tokenizer_id
        return tuple(
            Step(text, tuple(ids) if same and ids is not None else None)
            for text, ids in zip(self.steps, self.step_ids, strict=True)
        )


@dataclass(frozen=True, slots=True)
class PolicyRow(_TraceRow):
    """A correct trace for the policy to imitate."""

    value: float | None = None
    """what the value model said of the whole trace, in [0, 1]; None if it was not asked"""
    round: int = 0
    """the round whose search found it; 0 is the warm start"""


@dataclass(frozen=True, slots=True)
class ValueRow(_TraceRow):
    """A trace for the value model, with a label per step.

    `labels[k]` is v of the partial solution that ends with step k, in [0, 1], or None where another row trains it.
    `r[k]` says how wrong step k is (0 right, 1 wrong), None wherever `labels[k]` is.
    """

    labels: list[float | None]
    r: list[float | None]


Row = TypeVar("Row", bound=_Record)


def write_rows(path: FilePath, rows: Iterable[_Record]) -> None:
    """Write rows as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row.to_record(), ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: FilePath, kind: type[Row]) -> list[Row]:
    """Read rows of one kind. Raises StoreError naming the file and the line that is not such a row."""
    rows: list[Row] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        rows.append(kind.from_record(json.loads(line)))
                    except (ValueError, TypeError) as error:
                        raise StoreError(f"{path}:{number}: not a {kind.__name__}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read rows from {path}: {error}") from error
    return rows


# ---------------------------------------------------------------- trees to labels


class Grader(Protocol):
    """The part of `tasks.grade.Grader` that verifying needs."""

    def grade_many(self, pairs: list[tuple[Problem, str]]) -> list[bool]: ...


def verify(trees: Sequence[Tree], grader: Grader) -> list[list[bool | None]]:
    """Compare every finished leaf with the oracle: per tree and node True or False, None for all other nodes.

    Equal answers to the same problem are graded once. Raises TaskError for a tree whose problem has no answer.
    """
    wanted: dict[tuple[str, str, str], tuple[Problem, str]] = {}
    for tree in trees:
        for node in tree.finished():
            answer = tree.answer[node]
            if answer is not None:
                wanted.setdefault(_answer_key(tree.problem, answer), (tree.problem, answer))
    grades = dict(zip(wanted, grader.grade_many(list(wanted.values())), strict=True))
    verified: list[list[bool | None]] = []
    for tree in trees:
        correct: list[bool | None] = [None] * len(tree)
        for node in tree.finished():
            answer = tree.answer[node]
            if answer is not None:
                correct[node] = grades[_answer_key(tree.problem, answer)]
        verified.append(correct)
    return verified


def _answer_key(problem: Problem, answer: str) -> tuple[str, str, str]:
    if problem.answer is None:
        raise TaskError(f"problem {problem.id!r} has no answer, so its traces cannot be verified: give it one")
    return problem.id, problem.answer, answer


def label_trees(
    trees: Sequence[Tree],
    correct: Sequence[Sequence[bool | None]],
    *,
    unsolved: Literal["zero", "drop"] = "zero",
    estimate: Literal["hard", "soft"] = "hard",
) -> list[TreeLabels]:
    """Process rewards of verified trees, one record per tree (see `rewards.process_rewards`)."""
    from restmcts.rewards import process_rewards

    records = []
    for tree, verdicts in zip(trees, correct, strict=True):
        labels = process_rewards(tree.parent, verdicts, unsolved=unsolved, estimate=estimate)
        columns = ([_absent_if_nan(x) for x in array] for array in (labels.m, labels.r, labels.w, labels.v))
        records.append(TreeLabels(tree.problem.id, list(verdicts), *columns))
    return records


def _absent_if_nan(x: Any) -> float | None:
    return None if math.isnan(x) else float(x)


# ---------------------------------------------------------------- labels to rows


def policy_rows(
    trees: Sequence[Tree],
    labels: Sequence[TreeLabels],
    *,
    traces_per_question: int | None = None,
    pick: Pick = "value",
    seed: int = 0,
    round: int = 0,
) -> list[PolicyRow]:
    """The correct traces of each question, without duplicates, at most `traces_per_question` of them.

    Which ones: `pick="value"` the highest by the value model (shorter first among equals, unscored last), `"random"` a
    seeded draw that depends on the question alone. Rows come question by question, in order of first appearance.
    """
    found: dict[str, dict[tuple[str, ...], PolicyRow]] = {}
    for tree, record in _paired(trees, labels):
        rows = found.setdefault(tree.problem.id, {})
        for leaf, correct in enumerate(record.correct):
            if correct:
                nodes = tree.nodes_to(leaf)
                row = PolicyRow(**_trace(tree, nodes), value=tree.raw_value[leaf], round=round)
                rows.setdefault(tuple(text.strip() for text in row.steps), row)
    kept: list[PolicyRow] = []
    for problem_id, traces in found.items():
        candidates = list(traces.values())
        if pick == "value":
            candidates.sort(key=lambda row: (math.inf if row.value is None else -row.value, len(row.steps)))
        else:
            random.Random(derive_seed(seed, "policy_rows", problem_id)).shuffle(candidates)
        kept += candidates[:traces_per_question]
    return kept


def value_rows(
    trees: Sequence[Tree],
    labels: Sequence[TreeLabels],
    *,
    traces_per_question: int | None = None,
    seed: int = 0,
) -> list[ValueRow]:
    """One row per leaf of the labelled part of each tree; every labelled node is trained in exactly one of them.

    A prefix shared by several leaves carries its labels in the first row and None in the later ones. With
    `traces_per_question`, a seeded choice among a question's leaves, half right and half wrong where there are enough
    of both, so that a large tree does not outweigh the others; nodes only below leaves not chosen are then left out.
    """
    leaves: dict[str, list[tuple[int, int]]] = {}
    for index, (tree, record) in enumerate(_paired(trees, labels)):
        inner = {tree.parent[node] for node, v in enumerate(record.v) if v is not None}
        ends = [(index, node) for node, v in enumerate(record.v) if v is not None and node and node not in inner]
        leaves.setdefault(tree.problem.id, []).extend(ends)
    rows: list[ValueRow] = []
    for problem_id, candidates in leaves.items():
        if traces_per_question is not None and len(candidates) > traces_per_question:
            rng = random.Random(derive_seed(seed, "value_rows", problem_id))
            candidates = _half_and_half(candidates, lambda at: labels[at[0]].correct[at[1]], traces_per_question, rng)
        trained: set[tuple[int, int]] = set()
        for index, leaf in candidates:
            rows.append(_value_row(trees[index], labels[index], leaf, index, trained))
    return rows


def _value_row(tree: Tree, record: TreeLabels, leaf: int, index: int, trained: set[tuple[int, int]]) -> ValueRow:
    """The row of one leaf; marks its nodes in `trained`, whose members get no label."""
    nodes = tree.nodes_to(leaf)
    fresh = [(index, node) not in trained for node in nodes]
    trained.update((index, node) for node in nodes)
    return ValueRow(
        **_trace(tree, nodes),
        labels=[record.v[node] if new else None for node, new in zip(nodes, fresh, strict=True)],
        r=[record.r[node] if new else None for node, new in zip(nodes, fresh, strict=True)],
    )


At = tuple[int, int]


def _half_and_half(items: list[At], right: Callable[[At], bool | None], count: int, rng: random.Random) -> list[At]:
    """`count` of `items` drawn at random, as evenly as possible from right and wrong ones, in their given order."""
    drawn = rng.sample(items, len(items))
    good = [item for item in drawn if right(item)]
    bad = [item for item in drawn if not right(item)]
    n_good = min(len(good), max(count - count // 2, count - len(bad)))
    return sorted(good[:n_good] + bad[: count - n_good])


def _paired(trees: Sequence[Tree], labels: Sequence[TreeLabels]) -> Iterable[tuple[Tree, TreeLabels]]:
    if len(trees) != len(labels):
        raise StoreError(f"{len(labels)} label records for {len(trees)} trees: label the trees again")
    for tree, record in zip(trees, labels, strict=True):
        if record.id != tree.problem.id or len(record.v) != len(tree):
            raise StoreError(f"labels of {record.id!r} do not fit the tree of {tree.problem.id!r}: label the trees again")
        yield tree, record


def _trace(tree: Tree, nodes: Sequence[int]) -> dict[str, Any]:
    return {
        "problem_id": tree.problem.id,
        "question": tree.problem.question,
        "steps": [tree.text[node] for node in nodes],
        "step_ids": [tree.ids[node] for node in nodes],
        "tokenizer": tree.models.get("tokenizer"),
    }


# ---------------------------------------------------------------- worked examples to rows


def worked_steps(problem: Problem, find_answer: Callable[[str], str | None] | None = None) -> list[str]:
    """The steps of a worked solution: its lines, blank ones left out.

    With `find_answer` (a task's), a solution whose last line holds no answer gets one more step that states it.
    Raises TaskError when the problem has no solution, or no answer to close it with.
    """
    steps = [line.strip() for line in (problem.solution or "").splitlines() if line.strip()]
    if not steps:
        raise TaskError(f"problem {problem.id!r} has no worked solution: give `solution` with one step per line")
    if find_answer is not None and find_answer(steps[-1]) is None:
        if problem.answer is None:
            raise TaskError(f"the solution of problem {problem.id!r} states no answer: end it with 'Answer: …'")
        steps.append(f"Answer: {problem.answer}")
    return steps


def worked_policy_rows(
    problems: Sequence[Problem], find_answer: Callable[[str], str | None] | None = None
) -> list[PolicyRow]:
    """D_S0: each worked solution as a trace to imitate."""
    return [PolicyRow(**_worked(problem, worked_steps(problem, find_answer))) for problem in problems]


def worked_value_rows(
    problems: Sequence[Problem],
    *,
    corruptions: int = 3,
    seed: int = 0,
    find_answer: Callable[[str], str | None] | None = None,
) -> list[ValueRow]:
    """D_V0: each worked solution with v_k = k/K (Eq. 20), and `corruptions` wrong turns taken from it.

    A wrong turn follows the solution for k steps and then takes a wrong one: the true next step with a number changed,
    or, where it has none, a step from another problem. Its value is `wrong_step_value` (Eqs. 21 and 22). If the
    changed number reaches the answer, the rest of the solution follows with the number carried on, and every further
    step lowers the value by Eq. 2 with r = 1 and m kept (paper, rule 5 of the process rewards).
    """
    solutions = [worked_steps(problem, find_answer) for problem in problems]
    rows: list[ValueRow] = []
    for index, (problem, steps) in enumerate(zip(problems, solutions, strict=True)):
        rng = random.Random(derive_seed(seed, "worked_value_rows", problem.id))
        total = len(steps)
        true_values: list[float | None] = [k / total for k in range(1, total + 1)]
        rows.append(ValueRow(**_worked(problem, steps), labels=true_values, r=[0.0] * total))
        turns: set[tuple[str, ...]] = {tuple(steps)}
        for k in _spread(total, corruptions, rng):
            wrong = _wrong_turn(steps, k, rng) or _stray_step(solutions, index, k, rng)
            if wrong is None or tuple(wrong) in turns:
                continue
            turns.add(tuple(wrong))
            values = wrong_values(k, total, len(wrong) - k)
            blank: list[float | None] = [None] * k
            rows.append(ValueRow(**_worked(problem, wrong), labels=blank + values, r=blank + [1.0] * len(values)))
    return rows


def wrong_step_value(k: int, total: int) -> float:
    """v of a wrong step after `k` right ones in a solution of `total` steps (Eq. 22)."""
    return max(0.0, (k - 1) / total + 1 / (total * (total - k + 1)))


def wrong_values(k: int, total: int, count: int) -> list[float | None]:
    """v of `count` wrong steps in a row after `k` right ones: Eq. 22, then Eqs. 1 and 2 with r = 1, m = total − k."""
    v = wrong_step_value(k, total)
    values: list[float | None] = [v]
    for _ in range(count - 1):
        v = max(0.0, v - (1 - v) / (total - k + 1))
        values.append(v)
    return values


def _worked(problem: Problem, steps: list[str]) -> dict[str, Any]:
    return {
        "problem_id": problem.id,
        "question": problem.question,
        "steps": steps,
        "step_ids": [None] * len(steps),
        "tokenizer": None,
    }


def _spread(total: int, count: int, rng: random.Random) -> list[int]:
    """`count` places 0 … total − 1 to go wrong at, each used once before any is used again."""
    places: list[int] = []
    while len(places) < count:
        places += rng.sample(range(total), total)
    return places[:count]


_NUMBER = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?![\w]|[.,]\d)")
_STEP_NAME = re.compile(r"\s*(?:(?:step|line)\s*\d+|\(?\d+[.)](?!\d))\s*[:.)]?\s*", re.IGNORECASE)


def _numbers(text: str) -> list[re.Match[str]]:
    """The numbers a step talks about; the one in a leading "Step 3:" is not one of them."""
    name = _STEP_NAME.match(text)
    return list(_NUMBER.finditer(text, name.end() if name else 0))


def _wrong_turn(steps: Sequence[str], k: int, rng: random.Random) -> list[str] | None:
    """The first `k` steps, then step k + 1 with a number changed; None if it has no number. See `worked_value_rows`."""
    numbers = _numbers(steps[k])
    if not numbers:
        return None
    # Slips are mostly in the result, which steps state last; the rest are wrongly copied numbers.
    number = numbers[-1] if rng.random() < 0.7 else rng.choice(numbers)
    changed = perturb(number.group(), rng)
    wrong = steps[k][: number.start()] + changed + steps[k][number.end() :]
    carried = [_replace(step, number.group(), changed) for step in steps[k + 1 :]]
    if carried and carried[-1] == steps[-1]:  # the slip does not reach the answer: what follows would be right
        carried = []
    return [*steps[:k], wrong, *carried]


def _replace(text: str, old: str, new: str) -> str:
    """`text` with the number `old` replaced by `new` wherever it stands alone."""
    for number in reversed(_numbers(text)):
        if number.group() == old:
            text = text[: number.start()] + new + text[number.end() :]
    return text


def perturb(number: str, rng: random.Random) -> str:
    """A different number of the same form: off by a little, by ten, a digit changed, or two digits swapped."""
    while True:
        digits = [i for i, c in enumerate(number) if c.isdigit()]
        match rng.randrange(3):
            case 0:
                changed = _shift(number, rng.choice((-2, -1, 1, 2, -10, 10)))
            case 1:
                i = rng.choice(digits)
                changed = number[:i] + rng.choice("0123456789") + number[i + 1 :]
            case _:
                i, j = sorted(rng.choices(digits, k=2))
                changed = number if i == j else number[:i] + number[j] + number[i + 1 : j] + number[i] + number[j + 1 :]
        leading_zero = len(changed) > 1 and changed[0] == "0" and changed[1].isdigit()
        if changed != number and not leading_zero and float(changed.replace(",", "")) != float(number.replace(",", "")):
            return changed


def _shift(number: str, by: int) -> str:
    """`number` plus `by` units of its last digit, written like it; its absolute value if that is negative."""
    plain = number.replace(",", "")
    decimals = len(plain.partition(".")[2])
    units = abs(int(plain.replace(".", "")) + by)
    whole, rest = divmod(units, 10**decimals)
    return (f"{whole:,}" if "," in number else str(whole)) + (f".{rest:0{decimals}d}" if decimals else "")


def _stray_step(solutions: Sequence[list[str]], index: int, k: int, rng: random.Random) -> list[str] | None:
    """The first `k` steps of a solution, then a step from another one; None if there is no other."""
    others = [i for i in range(len(solutions)) if i != index]
    if not others:
        return None
    step = rng.choice(solutions[rng.choice(others)])
    return None if step == solutions[index][k] else [*solutions[index][:k], step]
