"""Completions: how the policy goes on from the steps of a tree that is there already.

Verifiers are taught by them: Math-Shepherd (Wang et al. 2023) asks for some from every step, OmegaPRM (Luo et al. 2024)
where its binary search for the first wrong step looks. Both return the tree with the completions in it, as nodes with
the origin `completion`, so that they are budgeted, stored, resumed and labelled again like any tree.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from restmcts.errors import ConfigError
from restmcts.search.nodes import COMPLETION, Search, Wanted, grow
from restmcts.search.settings import SearchSettings
from restmcts.seeds import derive_seed
from restmcts.tasks import Task
from restmcts.types import Answer, Ask, BudgetExhausted, Tree

COMPLETED = "completed"
"""the section of `Tree.settings` that says what was completed, and how"""
_DRAWN_WITH = ("temperature", "step_tokens", "max_depth")


@dataclass(frozen=True, slots=True)
class Traces:
    """The traces of a verified tree whose steps are to be completed.

    `right` says whether an answer is the right one; `policy` and `tokenizer` are the identities of who completes.
    """

    tree: Tree
    leaves: Sequence[int]
    """finished leaves: where the traces end"""
    correct: Sequence[bool | None]
    """per node, see `datasets.verify`"""
    right: Callable[[str], bool]
    policy: str
    tokenizer: str | None


def math_shepherd(traces: Traces, settings: SearchSettings, seed: int, task: Task) -> Search:
    """`settings.samples` completions from every step before the last of each trace, trace by trace.

    `tree.stop` is `done`, `budget`, or `failed` when a failure cut a completion short.
    """
    work = _Completing(traces, settings, seed, task)
    return (yield from work.to_the_end(work.every_step()))


def omega_prm(traces: Traces, settings: SearchSettings, seed: int, task: Task) -> Search:
    """A binary search for the first wrong step of every wrong trace, `settings.samples` completions at each look.

    A step is right when a right answer is found below it, whoever found it; there nothing is asked. Where all
    completions are wrong, so is the step, and all that follow it. Of OmegaPRM this is the search alone, without the
    choice of further wrong completions to look into. `tree.stop` is as with `math_shepherd`.
    """
    work = _Completing(traces, settings, seed, task)
    return (yield from work.to_the_end(work.first_wrong_steps()))


COMPLETING = {"math-shepherd": math_shepherd, "omega-prm": omega_prm}
"""who asks for the completions that a labelling rule needs, by the rule's name (`labels.RULES`)"""


# ---------------------------------------------------------------- what a tree holds of completions


def completions_of(tree: Tree, node: int) -> list[int]:
    """Where the completions of `node` have ended, finished or dead; each such leaf is as many as its `copies`.

    Completions of a step are independent samples of how the policy goes on from there: those that were asked for, and
    the tree's own chains through the step where they are such samples too, see `own_chains`.
    """
    own = own_chains(tree)
    ends: list[int] = []
    waiting = [child for child in tree.children(node) if own or tree.origin[child] == COMPLETION]
    while waiting:
        at = waiting.pop()
        if tree.status[at] != "open":
            ends.append(at)
        asked = tree.origin[at] == COMPLETION
        waiting += [child for child in tree.children(at) if asked or tree.origin[child] != COMPLETION]
    return ends


def drawn(tree: Tree, node: int) -> int:
    """How many completions of `node` have ended."""
    return sum(tree.copies[end] for end in completions_of(tree, node))


def own_chains(tree: Tree) -> bool:
    """Whether the tree's own chains are independent samples of the policy, hence completions of each of their steps.

    So they are when the method `sample` drew them all: what it draws next depends on nothing that it has found. Not so
    when it stopped early because the answer was decided, nor in a tree that a search has steered (by values, or by
    keeping the best of several steps): there a step's leaves are better than what the policy says by itself. Of a
    completed tree, they count if the same policy drew them at the same temperature and limits as the completions.
    """
    if (made := tree.settings.get(COMPLETED)) is not None:
        return bool(made["own"])
    return tree.method == "sample" and tree.stop != "decided"


def wanted(tree: Tree) -> int | None:
    """How many completions each step was to get; None in a tree that was never completed."""
    made = tree.settings.get(COMPLETED)
    return None if made is None else int(made["samples"])


# ---------------------------------------------------------------- parts


class _Chains(NamedTuple):
    """Which of the completions that lie on a node go on from there: the first one's number, and how many."""

    node: int
    first: int
    many: int


class _Completing:
    """A copy of a tree while it takes up completions."""

    def __init__(self, traces: Traces, settings: SearchSettings, seed: int, task: Task) -> None:
        self.traces, self.settings, self.seed, self.task = traces, settings, seed, task
        self.tree = _opened(traces, settings)

    def to_the_end(self, asking: Generator[Ask, Answer, None]) -> Search:
        """The tree when all is asked, or the budget is spent."""
        tree, failures = self.tree, len(self.tree.failures)
        try:
            yield from asking
            tree.stop = "failed" if len(tree.failures) > failures else "done"
        except BudgetExhausted:
            tree.stop = "budget"
        return tree

    def every_step(self) -> Generator[Ask, Answer, None]:
        steps = dict.fromkeys(node for leaf in self.traces.leaves for node in self.tree.nodes_to(leaf)[:-1])
        yield from self.complete(list(steps))

    def first_wrong_steps(self) -> Generator[Ask, Answer, None]:
        for leaf in self.traces.leaves:
            if not self.traces.correct[leaf]:
                yield from self.first_wrong(self.tree.nodes_to(leaf))

    def first_wrong(self, steps: Sequence[int]) -> Generator[Ask, Answer, None]:
        """Look for the first wrong one of `steps`, the last of which is a wrong leaf."""
        low, high = 0, len(steps) - 1  # it is one of steps[low] … steps[high]
        while low < high:
            middle = (low + high) // 2
            if not self.reached(steps[middle]):
                yield from self.complete([steps[middle]])
            if self.reached(steps[middle]):
                low = middle + 1
            elif drawn(self.tree, steps[middle]) >= self.settings.samples:
                high = middle
            else:
                return  # a failure: nothing is known of this step

    def complete(self, nodes: Sequence[int]) -> Generator[Ask, Answer, None]:
        """Draw what `nodes` lack of their completions, a few nodes at a time, so that a budget leaves few half done.

        What a failure cut short is drawn again, as long as that gains anything.
        """
        for start in range(0, len(nodes), self.settings.parallel):
            some, before = nodes[start : start + self.settings.parallel], None
            while (lacking := self.lacking(some)) and lacking != before:
                before = lacking
                yield from self.draw([_Chains(node, self.begun(node), count) for node, count in reversed(lacking)])

    def draw(self, waiting: list[_Chains]) -> Generator[Ask, Answer, None]:
        """Take completions to their ends, the last of `waiting` first; depth first, as the chains of `sample`."""
        tree = self.tree
        while waiting:
            going = [waiting.pop() for _ in range(min(self.settings.parallel, len(waiting)))]
            wanted = [Wanted(node, count, self.seed_of(node), first) for node, first, count in going]
            before = {child: tree.copies[child] for node, _, _ in going for child in tree.children(node)}
            grown = yield from grow(tree, wanted, self.settings, self.task, origin=COMPLETION, score="nothing")
            further: list[_Chains] = []
            for (node, first, count), (made, samples, _) in zip(going, grown, strict=True):
                if 0 < samples < count:  # a budget cut the request
                    waiting.append(_Chains(node, first + samples, count - samples))
                for n in made:
                    if tree.status[n] == "open":
                        earlier = before.get(n, 0)
                        further.append(_Chains(n, earlier, tree.copies[n] - earlier))
            waiting += reversed(further)

    def lacking(self, nodes: Sequence[int]) -> list[tuple[int, int]]:
        """Those of `nodes` that lack completions, and how many."""
        counts = [(node, self.settings.samples - drawn(self.tree, node)) for node in nodes]
        return [(node, count) for node, count in counts if count > 0]

    def begun(self, node: int) -> int:
        """How many completions of `node` have been asked for."""
        tree = self.tree
        return sum(tree.copies[c] for c in tree.children(node) if tree.origin[c] == COMPLETION)

    def seed_of(self, node: int) -> int:
        """A hash of the step that is completed and of where the completion has got to.

        So what is drawn does not depend on what else is completed, nor in which order: 4 completions are the first 4
        of 8.
        """
        tree, nodes = self.tree, self.tree.nodes_to(node)
        start = sum(tree.origin[n] != COMPLETION for n in nodes)
        return derive_seed(self.seed, COMPLETION, start, *(tree.text[n] for n in nodes))

    def reached(self, node: int) -> bool:
        """Whether a right answer lies below `node`."""
        tree, correct = self.tree, self.traces.correct
        waiting = list(tree.children(node))
        while waiting:
            at = waiting.pop()
            answer = tree.answer[at]
            if answer is not None and (correct[at] if at < len(correct) else self.traces.right(answer)):
                return True
            waiting += tree.children(at)
        return False


def _opened(traces: Traces, settings: SearchSettings) -> Tree:
    """A copy of the tree, ready to take up completions."""
    tree = copy.deepcopy(traces.tree)
    limits: dict[str, Any] = {name: getattr(settings, name) for name in _DRAWN_WITH}
    made, drew = tree.settings.get(COMPLETED), tree.models.get("policy")
    same = drew == traces.policy and all((made or tree.settings).get(name) == limits[name] for name in _DRAWN_WITH)
    if made is not None and not same:
        raise ConfigError(
            f"the tree of {tree.problem.id!r} has completions by {drew} with "
            f"{', '.join(f'{name} = {made.get(name)}' for name in _DRAWN_WITH)}, and others cannot be mixed in; "
            "label the trees that it was made from"
        )
    own = own_chains(tree) and same
    completed = {"samples": settings.samples, "leaves": list(traces.leaves), "own": own, **limits}
    tree.settings = {**tree.settings, COMPLETED: completed}
    if tree.models.get("tokenizer") != traces.tokenizer:  # one vocabulary's ids are another text in the other
        tree.ids = [None] * len(tree)
    return tree
