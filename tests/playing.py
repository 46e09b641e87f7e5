"""Drive a search by hand: a tiny task, and replies made by plain functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis

from restmcts.search.nodes import Search
from restmcts.types import (
    BudgetExhausted,
    Critique,
    Failed,
    Problem,
    Proposals,
    Propose,
    Reply,
    Request,
    Sample,
    Score,
    Scores,
    Step,
    Tree,
    Verdict,
)

ANY = hypothesis.settings(deadline=None)
"""for properties; no deadline, for the machine may be busy"""
MANY = hypothesis.settings(max_examples=400, deadline=None)
"""for properties of what takes a millisecond"""
EACH = hypothesis.settings(max_examples=150, deadline=None)
"""for properties that all methods share"""

PLAIN: dict[str, Any] = {"widening": 0.0, "greedy_first": False}
"""MCTS* as published, where a tree is worked out by hand"""
PROBLEM = Problem("p", "What is 3 + 4?", "7")


class TinyTask:
    """A step that starts with "Answer: " holds an answer; answers are equal when they are, case aside."""

    name = "tiny"

    def find_answer(self, text: str) -> str | None:
        return text.removeprefix("Answer: ") if text.startswith("Answer: ") else None

    def key(self, answer: str) -> str:
        return answer.lower()

    def compare(self, gold: str, answer: str) -> bool | None:
        return self.grade(gold, answer)

    def grade(self, gold: str, answer: str) -> bool:
        return self.key(gold) == self.key(answer)


TASK = TinyTask()


def samples(*texts: str | Sample) -> Proposals:
    return Proposals(tuple(Sample(Step(t), "step") if isinstance(t, str) else t for t in texts))


UNDECIDED = Verdict(solved=False)


class Book:
    """Replies looked up: for each path what is proposed at the first, second, … request there, and each step's value.

    `requests` is what was asked.
    """

    def __init__(
        self,
        steps: dict[str, list[list[str | Sample] | Failed]],
        values: dict[str, float | None],
        verdict: Verdict | Failed = UNDECIDED,
    ) -> None:
        self.read = steps
        self.steps = {path: list(replies) for path, replies in steps.items()}
        self.values = values
        self.verdict = verdict
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Reply:
        self.requests.append(request)
        if isinstance(request, Propose):
            reply = self.steps[path_text(request.path)].pop(0)
            if isinstance(reply, Failed):
                return reply
            assert len(reply) <= request.n
            return samples(*reply)
        if isinstance(request, Critique):
            return self.verdict
        values = [self.values[path[-1].text] for path in request.paths]
        known = [v for v in values if v is not None]
        return Scores(tuple(known)) if len(known) == len(values) else Failed("no value")

    def asked(self, kind: type[Request]) -> list[Request]:
        return [request for request in self.requests if isinstance(request, kind)]


def path_text(path: tuple[Step, ...]) -> str:
    return " / ".join(step.text for step in path)


def play(search: Search, reply: Callable[[Request], Reply], *, requests: int | None = None) -> Tree:
    """Answer every request with `reply` until the tree is there; after `requests` of them the budget is spent."""
    answered = 0

    def answer(request: Request) -> Reply | None:
        nonlocal answered
        if answered == requests:
            return None
        answered += 1
        return reply(request)

    try:
        asked = next(search)
        while answered != requests:
            asked = search.send(tuple(map(answer, asked)) if isinstance(asked, tuple) else answer(asked))
        search.throw(BudgetExhausted())
    except StopIteration as done:
        tree: Tree = done.value
        tree.check()
        return tree
    raise AssertionError("the search went on after its budget was spent")


__all__ = [
    "ANY",
    "EACH",
    "MANY",
    "PLAIN",
    "PROBLEM",
    "TASK",
    "Book",
    "Failed",
    "Score",
    "TinyTask",
    "path_text",
    "play",
    "samples",
]
