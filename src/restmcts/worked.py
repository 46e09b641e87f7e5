"""Rows from worked solutions, for the warm start: D_S0 for the policy, D_V0 for the value model (Algorithm 1)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from restmcts.errors import TaskError
from restmcts.rows import PolicyRow, ValueRow
from restmcts.seeds import derive_seed
from restmcts.types import Problem


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
