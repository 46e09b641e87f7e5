"""PRM800K (Lightman et al., arXiv 2305.20050): steps of solutions rated −1, 0 or +1, with alternatives to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from restmcts.errors import TaskError
from restmcts.formats.common import (
    ExportOptions,
    ImportOptions,
    Marked,
    each,
    shown,
    text_of,
    value_row,
)
from restmcts.rows import ValueRow

_NOT_OURS: dict[str, Any] = {
    "labeler": None,
    "timestamp": None,
    "generation": None,
    "is_quality_control_question": False,
    "is_initial_screening_question": False,
}


def write(solution: Marked, options: ExportOptions) -> Iterator[dict[str, Any]]:
    """Right steps are rated +1 and wrong ones −1, never 0; each is its step's only completion."""
    signs = solution.signs(options.threshold)
    steps = [
        {
            "completions": [{"text": text, "rating": 1 if right else -1, "flagged": None}],
            "human_completion": None,
            "chosen_completion": 0,
        }
        for text, right in zip(solution.steps, signs, strict=True)
    ]
    question = {
        "problem": solution.question,
        "ground_truth_solution": None,
        "ground_truth_answer": None,
        "pre_generated_steps": solution.steps,
        "pre_generated_answer": None,
        "pre_generated_verifier_score": None,
    }
    reason = "solution" if all(signs) else "found_error"
    yield {**_NOT_OURS, "question": question, "label": {"steps": steps, "total_time": 0, "finish_reason": reason}}


Rated = tuple[str, float | None]
"""a step's text, and how right it is"""


def read(source: str, options: ImportOptions) -> Iterator[ValueRow | TaskError | None]:
    """The chosen way through a solution is one row; every alternative to one of its steps is another.

    A step that a labeller wrote counts as right. What was reported as a broken problem says nothing.
    """

    def convert(where: str, row: Mapping[str, Any]) -> Iterator[ValueRow | None]:
        about, label = row.get("question"), row.get("label")
        if not isinstance(about, Mapping) or not isinstance(label, Mapping):
            raise TaskError(f"{where}: no question and label; a row of PRM800K has both, as objects")
        question = text_of(about, ["problem"], where).strip()
        ways = [] if label.get("finish_reason") == "bad_problem" else _ways(label.get("steps"), options.neutral, where)
        total = _total(about, label, ways)
        said = False
        for way, trained in ways:
            right = [x for _, x in way]
            if any(x is not None for x in right[trained:]):
                said = True
                yield value_row(question, [s for s, _ in way], right, options.scale, total=total, trained=trained)
        if not said:
            yield None

    return each(source, convert)


def _ways(steps: Any, neutral: float, where: str) -> list[tuple[list[Rated], int]]:
    """The chosen way, and those that leave it at some step, with how many of their steps are the chosen way's."""
    if not isinstance(steps, list):
        raise TaskError(f"{where}: label.steps = {shown(steps)}: it must be a list; mend or remove the row")
    way: list[Rated] = []
    ways: list[tuple[list[Rated], int]] = []
    for number, step in enumerate(steps, start=1):
        place = f"{where}, step {number}"
        if not isinstance(step, Mapping):
            raise TaskError(f"{place}: {shown(step)} is no object; mend or remove the row")
        completions = step.get("completions") or []
        if not isinstance(completions, list):
            raise TaskError(f"{place}: completions = {shown(completions)}: it must be a list; mend or remove the row")
        rated = [_rated(completion, neutral, place) for completion in completions]
        chosen = step.get("chosen_completion")
        if chosen is not None and (type(chosen) is not int or not 0 <= chosen < len(rated)):
            raise TaskError(f"{place}: chosen_completion = {shown(chosen)}: there are {len(rated)} completions")
        ways += [([*way, other], len(way)) for i, other in enumerate(rated) if i != chosen]
        following = rated[chosen] if chosen is not None else _human(step.get("human_completion"), place)
        if following is None:
            break
        way.append(following)
    return [(way, 0), *ways] if way else ways


def _rated(completion: Any, neutral: float, place: str) -> Rated:
    if not isinstance(completion, Mapping):
        raise TaskError(f"{place}: completion {shown(completion)} is no object; mend or remove the row")
    rating = completion.get("rating")
    if rating not in (-1, 0, 1, None) or isinstance(rating, bool):
        raise TaskError(f"{place}: rating = {shown(rating)}: it must be -1, 0, 1 or null")
    right = None if rating is None else {-1: 0.0, 0: neutral, 1: 1.0}[int(rating)]
    return text_of(completion, ["text"], place).strip(), right


def _human(completion: Any, place: str) -> Rated | None:
    """What a labeller wrote: a text, or an object with one."""
    if completion is None:
        return None
    if isinstance(completion, str):
        completion = {"text": completion}
    if not isinstance(completion, Mapping):
        raise TaskError(f"{place}: human_completion = {shown(completion)}: it must be text or an object")
    return text_of(completion, ["text"], place).strip(), 1.0


def _total(about: Mapping[str, Any], label: Mapping[str, Any], ways: list[tuple[list[Rated], int]]) -> int:
    """How many steps a whole solution has: the labelled one where it was carried to its end, else the generated one."""
    longest = max((len(way) for way, _ in ways), default=0)
    generated = about.get("pre_generated_steps")
    if label.get("finish_reason") != "solution" and isinstance(generated, list):
        return max(longest, len(generated))
    return longest
