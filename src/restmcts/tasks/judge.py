"""A model as judge of solutions: points that add up to five (Self-Rewarding Language Models, arXiv 2401.10020).

A verdict is asked for like any other question: it is a problem of the task `judge`, its votes are the samples of one
search, and a vote is a finished step "Score: 4". So every engine can judge, within budgets, and what was said is kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from restmcts.types import Problem, Tree

MOST = 5
"""points of a perfect solution"""

RUBRIC = """\
You are a strict grader of solutions to problems. Points add up; start from 0 and give
1 point if the solution is about this problem and begins to work on it,
1 more if a substantial part of the work is right, though it may be incomplete,
1 more if it takes up every part of the problem and reaches a final answer,
1 more if every step is right and follows from those before it,
1 more if the final answer is right beyond doubt and nothing is superfluous.
Check the steps one by one. Write your reasons in one or two short lines, then end with a line "Score: N", where N is \
the sum of the points, a whole number from 0 to 5."""

_SCORE = re.compile(
    r"[\s*_#>]{0,20}score[*_]{0,2}\s{0,3}[:=]\s{0,3}[*_]{0,2}\s{0,3}([0-5])(?:\s{0,3}/\s{0,3}5)?[*_]{0,2}\.?\s{0,20}",
    re.IGNORECASE,
)


def find_score(text: str) -> str | None:
    """The score that a line states, as a digit; None for any line that is not "Score: N" with N from 0 to 5."""
    found = _SCORE.fullmatch(text)
    return None if found is None else found[1]


def judge_problem(problem: Problem, steps: Sequence[str], name: str) -> Problem:
    """Ask for a verdict on a solution of `problem`; `name` tells it from the others of the same question."""
    solution = "\n".join(steps)
    question = f"Problem:\n{problem.question}\n\nSolution:\n{solution}\n\nHow many points does this solution get?"
    return Problem(f"{problem.id}#{name}", question, task="judge", instruction=RUBRIC)


def mean_score(tree: Tree) -> float | None:
    """The mean of the votes in a judge's tree, as a share of all points, in [0, 1]; None where none could be read."""
    votes = [(int(score), tree.copies[n]) for n in tree.finished() if (score := tree.answer[n]) is not None]
    total = sum(copies for _, copies in votes)
    return sum(score * copies for score, copies in votes) / (MOST * total) if total else None
