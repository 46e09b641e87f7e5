"""What a question is: load it or make it, find the answer in a text, grade the answer.

    load.py       rows -> problems (sources.py: rows of files and hub data sets; questions.py: which are the same)
    sets.py       public question sets by name
    generate.py   the built-in sets (words.py: templates of word problems)
    answers.py    find, canonicalise and compare answers (numbers.py: numbers; structure.py: sets, tuples, matrices)
    judge.py      a model's verdict on a solution: five points, one after the other
    rules.py      multiple choice, SciBench, TheoremQA (expressions.py: Countdown and the Game of 24)
    grade.py      the grader (symbolic.py: math-verify, in a process of its own)

A task says how answers are found and compared. To add one, put an object with the members of `Task` into `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, Protocol

from restmcts.errors import TaskError
from restmcts.tasks import answers, expressions, judge, rules
from restmcts.tasks.numbers import TOLERANCE
from restmcts.tasks.sets import SETS, set_name

__all__ = ["TASKS", "AnswerTask", "Task", "get_task"]


class Task(Protocol):
    """How answers are found in texts and compared with the known one."""

    @property
    def name(self) -> str: ...

    def read_row(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row of a question set with all that grading needs in its `answer`, and what solving needs in `question`.

        Raises TaskError for a row of which that cannot be made.
        """
        ...

    def find_answer(self, text: str) -> str | None:
        """The final answer that `text` marks as such, None if it marks none."""
        ...

    def key(self, answer: str) -> str:
        """A canonical form for votes and merging; cheap, no symbolic engine."""
        ...

    def compare(self, gold: str, answer: str) -> bool | None:
        """Whether `answer` is right, as far as can be told at once; None where the symbolic engine has to look."""
        ...

    def tolerance(self, gold: str) -> Fraction:
        """By how much of the larger one decimals may differ, for the symbolic engine."""
        ...

    def grade(self, gold: str, answer: str) -> bool:
        """Whether `answer` is right."""
        ...


def _usual(gold: str) -> Fraction:
    return TOLERANCE


def _as_it_is(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row


@dataclass(frozen=True, slots=True)
class AnswerTask:
    """A task whose answers are short texts with a known right one. See `Task`."""

    name: str
    compare: Callable[[str, str], bool | None]
    key: Callable[[str], str] = answers.key
    find_answer: Callable[[str], str | None] = answers.find_answer
    read_row: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _as_it_is
    tolerance: Callable[[str], Fraction] = _usual

    def grade(self, gold: str, answer: str) -> bool:
        """Whether `answer` is right, by a process-wide `grade.Grader`."""
        verdict = self.compare(gold, answer)
        if verdict is not None:
            return verdict
        from restmcts.tasks.grade import default_grader

        return default_grader().symbolic(gold, answer, self.tolerance(gold))


def _game(name: str, read_row: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> AnswerTask:
    """A task whose answers are expressions of given numbers. See `expressions`."""
    compare, key, find = expressions.compare_expression, expressions.key, expressions.find_expression
    return AnswerTask(name, compare, key, find, read_row)


TASKS: dict[str, Task] = {
    "math": AnswerTask("math", answers.compare_math),
    "numeric": AnswerTask("numeric", answers.compare_numeric),
    "exact": AnswerTask("exact", answers.compare_exact, key=answers.text_key),
    "choice": AnswerTask("choice", rules.compare_choice, rules.choice_key, rules.find_choice, rules.choice_row),
    "scibench": AnswerTask("scibench", rules.compare_scibench, read_row=rules.scibench_row),
    "theoremqa": AnswerTask("theoremqa", rules.compare_theoremqa, tolerance=rules.theoremqa_tolerance),
    "countdown": _game("countdown", expressions.countdown_row),
    "game24": _game("game24", expressions.game24_row),
    "judge": AnswerTask("judge", answers.compare_exact, key=answers.text_key, find_answer=judge.find_score),
}
"""math: equal as mathematics (numbers, LaTeX, sets, …) · numeric: a number, not a computation · exact: equal text ·
choice: the letter of an option · scibench: a number within 5 %, with units · theoremqa: as rounded, lists, yes and no ·
countdown, game24: an expression of given numbers that reaches a target (known answer: "27 from 30 79 60 76") ·
judge: a score from 0 to 5."""


def get_task(name: str) -> Task:
    """The task called `name`, or that of the question set called so. Raises TaskError with the nearest name."""
    known = set_name(name) if name not in TASKS else None
    if known is not None:
        name = SETS[known].task
    if name not in TASKS:
        near = get_close_matches(name, TASKS, n=1, cutoff=0.0)
        raise TaskError(f"no task is called {name!r}; nearest is {near[0]!r} (known: {', '.join(TASKS)})")
    return TASKS[name]
