"""What all methods share: asking for steps and values, turning samples into nodes, choosing the answer."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Literal, NamedTuple, TypeVar

from restmcts.search.settings import AnswerRule, SearchSettings, StepAggregation
from restmcts.seeds import derive_seed
from restmcts.tasks import Task
from restmcts.types import (
    Answer,
    Ask,
    BudgetExhausted,
    Failed,
    Finish,
    Problem,
    Proposals,
    Propose,
    Reply,
    Request,
    Score,
    Scores,
    Tree,
)

LEAST_COVERED = 0.01
"""The share of the policy's probability that the finished leaves must cover for their own to count as votes."""

COMPLETION = "completion"
"""the origin of nodes that say how the policy goes on from a step of a tree that was there before (`completions`)"""

T = TypeVar("T")
Search = Generator[Ask, Answer, Tree]
"""A running search: yields requests, is sent replies, returns its tree."""
Phase = Generator[Request, Reply, T]
"""A part of a search that asks one thing at a time."""


class Wanted(NamedTuple):
    """Next steps to ask for: after `node`, so many samples, drawn with `seed`; `first` is the number of the first."""

    node: int
    samples: int
    seed: int
    first: int = 0


class Grown(NamedTuple):
    """What came of it: the nodes the samples are, each once; how many samples; how many tokens. Nothing if it failed.

    There are fewer samples than were wanted where a budget cut the request.
    """

    nodes: list[int]
    samples: int = 0
    tokens: int = 0


def new_tree(problem: Problem, settings: SearchSettings, seed: int, method: str) -> Tree:
    """A tree that holds the question only."""
    tree = Tree(problem, method, seed, settings=settings.model_dump(mode="json"))
    tree.value[0] = 0.0  # v_0 = 0
    return tree


def add_samples(
    tree: Tree, parent: int, reply: Proposals, settings: SearchSettings, task: Task, *, origin: str, iteration: int = 0
) -> list[int]:
    """Make a node of every sample; returns the nodes in order, each once.

    A sample that an earlier child of `parent` already has, in the same words and with the same fate, is counted there
    (`copies`); completions are kept apart from all other nodes, so that it stays known whose they are. A node is
    finished if and only if its text holds an answer; without one it is dead when the text is empty, ended the model's
    turn, was cut off at the token limit, or lies at the depth limit.
    """
    depth = len(tree.nodes_to(parent)) + 1
    apart = origin == COMPLETION
    siblings = {
        (tree.text[n], tree.reason[n]): n for n in tree.children(parent) if (tree.origin[n] == COMPLETION) == apart
    }
    nodes: dict[int, None] = {}
    for sample in reply.samples:
        text = sample.step.text
        answer = task.find_answer(text)
        reason = None if answer is not None else _why_dead(text, sample.finish, depth, settings.max_depth)
        node = siblings.get((text, reason))
        if node is not None:
            tree.copies[node] += 1
        else:
            status: Literal["open", "finished", "dead"]
            status = "finished" if answer is not None else "open" if reason is None else "dead"
            node = tree.add(
                parent,
                sample.step,
                status=status,
                answer=answer,
                reason=reason,
                origin=origin,
                iteration=iteration,
                logprob=sample.logprob,
            )
            siblings[text, reason] = node
        nodes[node] = None
    return list(nodes)


def _why_dead(text: str, finish: Finish, depth: int, max_depth: int) -> str | None:
    if not text.strip():
        return "empty"
    if finish != "step":
        return "ended" if finish == "end" else "length"
    return "depth" if depth >= max_depth else None


def ask_all(requests: Sequence[Request]) -> Generator[Ask, Answer, Sequence[Reply | None]]:
    """Ask several things at once; one alone is asked as it is. None stands for what the budget did not suffice for."""
    if len(requests) == 1:
        reply = yield requests[0]
        assert not isinstance(reply, tuple)
        return (reply,)
    replies = yield tuple(requests)
    assert isinstance(replies, tuple)
    return replies


def score_nodes(tree: Tree, nodes: Sequence[int]) -> Phase[bool]:
    """Ask V for those `nodes`, siblings, that have no value yet and are not dead; returns whether V could be asked.

    A failure is recorded and leaves them without a value: None, which is not 0.
    """
    wanted = [n for n in nodes if tree.raw_value[n] is None and tree.status[n] != "dead"]
    if not wanted:
        return True
    above = {parent: tree.path(parent) for parent in {tree.parent[n] for n in wanted}}
    reply = yield Score(tree.problem, tuple((*above[tree.parent[n]], tree.step(n)) for n in wanted))
    if not isinstance(reply, Scores):
        note_failure(tree, "score", reply)
        return False
    for node, value in zip(wanted, reply.values, strict=True):
        if tree.raw_value[node] is None:  # else another iteration in flight has asked too
            tree.raw_value[node] = value
            if tree.value[node] is None:  # else something was backed up already
                tree.value[node] = value
    return True


def score_endings(tree: Tree, nodes: Iterable[int], settings: SearchSettings) -> Phase[bool]:
    """Ask V what the finished ones of `nodes` are worth: for the ending, or for every step where all of them count."""
    ends = [n for n in nodes if tree.status[n] == "finished"]
    if settings.step_aggregation != "last":
        ends = list(dict.fromkeys(step for end in ends for step in tree.nodes_to(end)))
    return (yield from score_nodes(tree, ends))


def grow(
    tree: Tree,
    wanted: Sequence[Wanted],
    settings: SearchSettings,
    task: Task,
    *,
    origin: str,
    score: Literal["nothing", "endings", "steps"],
) -> Generator[Ask, Answer, list[Grown]]:
    """Ask for next steps in several places, `settings.parallel` at once; what came of each, in order.

    What was asked for is scored before more is asked, so that a budget that runs out leaves nothing without its value.
    Each request counts as an iteration. Raises BudgetExhausted once that is thrown in, or part of a request was left
    unanswered.
    """
    grown: list[Grown] = []
    for start in range(0, len(wanted), settings.parallel):
        group = wanted[start : start + settings.parallel]
        replies = yield from ask_all([_propose(tree, want, settings) for want in group])
        for want, reply in zip(group, replies, strict=True):
            grown.append(Grown([]))
            if isinstance(reply, Proposals):
                number = tree.iteration[-1] + 1
                made = add_samples(tree, want.node, reply, settings, task, origin=origin, iteration=number)
                grown[-1] = Grown(made, len(reply.samples), reply.usage.policy_tokens)
            elif reply is not None:
                note_failure(tree, "propose", reply)
        new = nodes_of(grown[start:])
        if score == "steps":
            yield from score_nodes(tree, new)
        elif score == "endings":
            yield from score_endings(tree, new, settings)
        if None in replies:
            raise BudgetExhausted
    return grown


def nodes_of(grown: Iterable[Grown]) -> list[int]:
    """All nodes that were made, in order, each once."""
    return list(dict.fromkeys(node for came in grown for node in came.nodes))


def _propose(tree: Tree, want: Wanted, settings: SearchSettings) -> Propose:
    node, samples, seed, first = want
    path = tree.path(node)
    return Propose(tree.problem, path, samples, seed, settings.temperature, settings.step_tokens, first=first)


def path_seed(tree: Tree, node: int, *line: object) -> int:
    """The seed of the steps after `node`, where a method asks there once, or once in each `line` of search.

    It depends on the path alone, not on what else was asked: sample i there is the same for all methods and however
    many samples are wanted, so that 8 chains are the first 8 of 64 (see `chains`), and replies can be shared.
    """
    return derive_seed(tree.seed, *line, *(tree.text[n] for n in tree.nodes_to(node)))


def note_failure(tree: Tree, what: str, reply: Reply) -> None:
    """Record that a request was not answered."""
    tree.failures.append(f"{what}: {reply.reason if isinstance(reply, Failed) else f'got {type(reply).__name__}'}")


def finish(
    tree: Tree,
    running: Generator[Ask, Answer, str],
    settings: SearchSettings,
    task: Task,
    *,
    usual_rule: AnswerRule,
) -> Search:
    """Let a search run to its end, note why it ended, and choose the answer."""
    try:
        tree.stop = yield from running
    except BudgetExhausted:
        tree.stop = "budget"
    return conclude(tree, settings, task, usual_rule=usual_rule)


def conclude(tree: Tree, settings: SearchSettings, task: Task, *, usual_rule: AnswerRule) -> Tree:
    """Choose the answer among the finished leaves; returns the tree. Where nothing finished there is no answer.

    With the rule `best` the answer is that of the highest-valued leaf. With the others, leaves whose answers are equal
    under `task.key` add up their weights (see `leaf_weights`), and the result is the highest-valued leaf of the winner.
    Earlier leaves win ties. `usual_rule` is the method's own, for settings that name none. The value of a leaf is that
    of its path (see `path_value`). A leaf that V could not score is the result only where no scored leaf can be.
    """
    finished = tree.finished()
    if not finished:
        return tree
    rule = settings.answer_rule or usual_rule
    said = {n: path_value(tree, n, settings.step_aggregation) for n in finished}
    if rule != "best":
        weights = leaf_weights(tree, said, rule)
        votes: dict[str, float] = {}
        keys = {n: task.key(tree.answer[n] or "") for n in finished}
        for n in finished:
            votes[keys[n]] = votes.get(keys[n], 0.0) + weights[n]
        winner = max(votes, key=votes.__getitem__)
        finished = [n for n in finished if keys[n] == winner]
    tree.result = max(finished, key=lambda n: -1.0 if (v := said[n]) is None else v)
    tree.final_answer = tree.answer[tree.result]
    return tree


def path_value(tree: Tree, node: int, how: StepAggregation) -> float | None:
    """What V says of the path to `node`, in [0, 1]: of its last step, or the min, mean or product over its steps.

    The last is what an outcome reward model says of a solution, and what quality values mean, for they look back on
    the whole path. The others are for process reward models that judge each step by itself (Lightman et al. 2023). A
    step that V could not score is left out; None where none is scored.
    """
    if how == "last":
        return tree.raw_value[node]
    known = [v for n in tree.nodes_to(node) if (v := tree.raw_value[n]) is not None]
    if not known:
        return None
    return min(known) if how == "min" else fmean(known) if how == "mean" else math.prod(known)


def known_values(said: Mapping[int, float | None]) -> dict[int, float]:
    """Values to compare by: what V could not score is worth as much as the average of the rest; 1 if nothing is."""
    known = [v for v in said.values() if v is not None]
    usual = fmean(known) if known else 1.0
    return {n: usual if v is None else v for n, v in said.items()}


def best_of(tree: Tree, nodes: Iterable[int], most: int | None, settings: SearchSettings) -> list[int]:
    """The `most` highest-valued of `nodes` (None: all), the best first, dead ones left out. Earlier ones win ties."""
    alive = [n for n in nodes if tree.status[n] != "dead"]
    values = known_values({n: path_value(tree, n, settings.step_aggregation) for n in alive})
    return sorted(values, key=values.__getitem__, reverse=True)[:most]


def leaf_weights(tree: Tree, said: Mapping[int, float | None], rule: AnswerRule) -> dict[int, float]:
    """What each finished leaf counts for its answer, `said` being what V says of it.

    - `majority`: how often it was sampled (self-consistency).
    - `weighted`: that, times its value (SC + PRM).
    - `posterior`: π(path) · V(path), the probability that the policy takes this very path, times its value. What is
      counted with `weighted` is known exactly here, so it is not blurred by chance, nor by how the search divided its
      samples. Of long solutions the few that are found are a vanishing part of what the policy might say, and their
      probabilities differ by orders of magnitude for no reason that matters: where all leaves together have less than
      `LEAST_COVERED`, and where the engine tells no probabilities, this is `weighted`.

    A leaf that V could not score is worth as much as the average scored one; where V was never asked, every value is 1.
    """
    if rule == "majority":
        return {n: float(tree.copies[n]) for n in said}
    values = known_values(said)
    if rule == "posterior":
        chances = path_probabilities(tree)
        found = [chance for n in said if (chance := chances[n]) is not None]
        if len(found) == len(said) and sum(found) >= LEAST_COVERED:
            return {n: values[n] * chance for n, chance in zip(said, found, strict=True)}
    return {n: values[n] * tree.copies[n] for n in said}


def path_probabilities(tree: Tree) -> list[float | None]:
    """π(path) of every node: how probable its steps are under the policy, at temperature 1. None where not all tell."""
    logs: list[float | None] = [0.0]
    for node in range(1, len(tree)):
        above, own = logs[tree.parent[node]], tree.logprob[node]
        logs.append(None if above is None or own is None else above + own)
    return [None if log is None else math.exp(log) for log in logs]
