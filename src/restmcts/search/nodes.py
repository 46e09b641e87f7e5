"""What all methods share: turning samples into nodes, asking for values, choosing the answer."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from restmcts.search.settings import SearchSettings
from restmcts.tasks import Task
from restmcts.types import BudgetExhausted, Failed, Problem, Proposals, Reply, Request, Score, Scores, Tree

Search = Generator[Request, Reply, Tree]
Phase = Generator[Request, Reply, None]


def new_tree(problem: Problem, settings: SearchSettings, seed: int, method: str) -> Tree:
    tree = Tree(problem, method, seed, settings=settings.model_dump(mode="json"))
    tree.value[0] = 0.0  # v_0 = 0
    return tree


def add_samples(
    tree: Tree, parent: int, reply: Proposals, settings: SearchSettings, task: Task, *, origin: str, iteration: int = 0
) -> list[int]:
    """Make a node of every sample; equal siblings are one node with more `copies`. Returns the nodes, each once.

    A node is finished if and only if its text holds an answer. Without one it is dead when it is empty, was cut off,
    ended the model's turn, or reached the depth limit.
    """
    depth = len(tree.nodes_to(parent)) + 1
    siblings = {tree.text[n]: n for n in range(parent + 1, len(tree)) if tree.parent[n] == parent}
    nodes: dict[int, None] = {}
    for sample in reply.samples:
        node = siblings.get(sample.step.text)
        if node is not None:
            tree.copies[node] += 1
        else:
            answer = task.find_answer(sample.step.text)
            reason = None if answer is not None else _why_dead(sample.step.text, sample.finish, depth, settings)
            node = tree.add(
                parent,
                sample.step,
                status="finished" if answer is not None else "dead" if reason else "open",
                answer=answer,
                reason=reason,
                origin=origin,
                iteration=iteration,
            )
            siblings[sample.step.text] = node
        nodes[node] = None
    return list(nodes)


def _why_dead(text: str, finish: str, depth: int, settings: SearchSettings) -> str | None:
    if not text.strip():
        return "empty"
    if finish != "step":
        return {"end": "ended", "length": "length"}[finish]
    return "depth" if depth >= settings.max_depth else None


def score_nodes(tree: Tree, nodes: Sequence[int]) -> Phase:
    """Ask V for the nodes that have no value yet and are not dead; a failure leaves them without one."""
    wanted = [n for n in nodes if tree.raw_value[n] is None and tree.status[n] != "dead"]
    if not wanted:
        return
    reply = yield Score(tree.problem, tuple(tree.path(n) for n in wanted))
    if isinstance(reply, Failed):
        tree.failures.append(f"score: {reply.reason}")
        return
    assert isinstance(reply, Scores)
    for node, value in zip(wanted, reply.values, strict=True):
        tree.raw_value[node] = tree.value[node] = value


def conclude(tree: Tree, rule: str, task: Task) -> Tree:
    """Choose the answer among the finished leaves.

    `vote`: answers that are equal under `task.key` add up their leaves' raw values, times the copies of each leaf, and
    the best leaf of the winner is the result; `best`: the leaf with the highest raw value. Where V never scored a leaf
    (a method without V, or a failure), each leaf counts 1, so the vote is self-consistency's majority.
    """
    finished = tree.finished()
    if not finished:
        return tree
    scored = all(tree.raw_value[n] is not None for n in finished)
    weight = {n: _raw(tree, n) if scored else 1.0 for n in finished}
    if rule == "vote":
        votes: dict[str, float] = {}
        for n in finished:
            key = task.key(tree.answer[n] or "")
            votes[key] = votes.get(key, 0.0) + weight[n] * tree.copies[n]
        winner = max(votes, key=votes.__getitem__)
        finished = [n for n in finished if task.key(tree.answer[n] or "") == winner]
    tree.result = max(finished, key=lambda n: weight[n])
    tree.final_answer = tree.answer[tree.result]
    return tree


def _raw(tree: Tree, node: int) -> float:
    value = tree.raw_value[node]
    return 0.0 if value is None else value


__all__ = ["BudgetExhausted", "Phase", "Search", "add_samples", "conclude", "new_tree", "score_nodes"]
