"""Completions of stored trees: what is asked, what is kept apart, budgets, resuming, and that only the seed matters."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import restmcts
from restmcts import drive
from restmcts.account import Account
from restmcts.completing import complete_trees, completion_settings, needs_completions
from restmcts.datasets import chosen_traces, label_trees, value_rows, verify
from restmcts.engines import Engines, TransientError
from restmcts.engines.scripted import ScriptedPolicy, scripted_engines
from restmcts.errors import ConfigError, TaskError
from restmcts.evaluate import stored_trees
from restmcts.labels import math_shepherd as shepherd_labels
from restmcts.search import SEARCHES, SearchSettings
from restmcts.search.completions import COMPLETED, Traces, drawn, math_shepherd, omega_prm, wanted
from restmcts.search.nodes import COMPLETION
from restmcts.sections import LabelSettings
from restmcts.seeds import derive_seed
from restmcts.tasks import get_task
from restmcts.tasks.grade import Grader
from restmcts.types import STAGE_BUDGET, Budget, Problem, Propose, Sample, Step, Tree
from tests.playing import ANY, PROBLEM, TASK, Book, path_text, play

SETTINGS = SearchSettings(samples=2, temperature=1.0)


def trace(*texts: str, method: str = "mcts_star") -> Tree:
    """A tree with one trace; the last text is its answer."""
    tree, node = Tree(PROBLEM, method, 0, settings=SearchSettings(temperature=1.0).model_dump()), 0
    for text in texts:
        answer = TASK.find_answer(text)
        node = tree.add(node, Step(text), status="finished" if answer else "open", answer=answer)
    tree.models = {"policy": "me", "value": None, "tokenizer": None}
    return tree


def traces(tree: Tree) -> Traces:
    correct = [None if a is None else a == "7" for a in tree.answer]
    leaves = [n for n, c in enumerate(correct) if c is not None]
    return Traces(tree, leaves, correct, lambda answer: answer == "7", "me", None)


def below(tree: Tree, node: int) -> list[tuple[str, int]]:
    """Texts and copies of the completions of a step."""
    return [(tree.text[c], tree.copies[c]) for c in tree.children(node) if tree.origin[c] == COMPLETION]


# ---------------------------------------------------------------- what is asked


def test_math_shepherd_asks_for_completions_of_every_step_but_the_last():
    given_tree = trace("a", "b", "Answer: 8")
    before = copy.deepcopy(given_tree)
    book = Book(
        {
            "a": [["b", "Answer: 7"]],
            "a / b": [["Answer: 7"], ["Answer: 8", "Answer: 8"]],  # of the first step's, then of the second step
        },
        {},
    )
    tree = play(math_shepherd(traces(given_tree), SETTINGS, 5, TASK), book)
    assert [(path_text(r.path), r.n) for r in book.asked(Propose)] == [("a", 2), ("a / b", 1), ("a / b", 2)]
    assert {r.temperature for r in book.asked(Propose)} == {1.0}
    assert given_tree == before
    assert tree.text[:4] == given_tree.text
    assert tree.stop == "done"
    # The completion "b" is not the trace's own "b", whose completions are counted by themselves.
    assert below(tree, 1) == [("b", 1), ("Answer: 7", 1)]
    assert below(tree, 2) == [("Answer: 8", 2)]
    labels = shepherd_labels(tree, [None if a is None else a == "7" for a in tree.answer], "soft")
    assert labels.v[1:4].tolist() == [1, 0, 0]
    assert (tree.settings[COMPLETED]["samples"], tree.settings[COMPLETED]["leaves"]) == (2, [3])


def test_a_step_that_several_traces_share_is_completed_once():
    tree = trace("a", "Answer: 8")
    tree.add(1, Step("Answer: 7"), status="finished", answer="7")
    book = Book({"a": [["Answer: 1", "Answer: 1"]]}, {})
    play(math_shepherd(traces(tree), SETTINGS, 5, TASK), book)
    assert len(book.requests) == 1


def test_own_chains_of_a_sampled_tree_are_completions_already():
    tree = trace("a", "b", "Answer: 8", method="sample")
    book = Book({"a": [["Answer: 7"]], "a / b": [["Answer: 7"]]}, {})
    done = play(math_shepherd(traces(tree), SETTINGS, 5, TASK), book)
    assert [r.n for r in book.asked(Propose)] == [1, 1]
    assert [drawn(done, n) for n in (1, 2)] == [2, 2]
    for change in ({"policy": "other"}, {}):  # another policy's, or drawn at another temperature
        other = trace("a", "b", "Answer: 8", method="sample")
        other.models |= change
        settings = SETTINGS if change else SETTINGS.model_copy(update={"temperature": 0.5})
        book = Book({"a": [["Answer: 7", "Answer: 7"]], "a / b": [["Answer: 7", "Answer: 7"]]}, {})
        done = play(math_shepherd(traces(other), settings, 5, TASK), book)
        assert [r.n for r in book.asked(Propose)] == [2, 2]
        assert done.settings[COMPLETED]["own"] is False


def asked_of(tree: Tree, good: int, count: int = 2) -> list[str]:
    """Where OmegaPRM's search looks, when completions of the first `good` steps are right."""
    asked: list[str] = []

    def reply(request: Any) -> Any:
        asked.append(path_text(request.path))
        answer = "7" if len(request.path) <= good else "8"
        return restmcts_proposals([f"Answer: {answer}"] * request.n)

    done = play(omega_prm(traces(tree), SETTINGS.model_copy(update={"samples": count}), 5, TASK), reply)
    correct = [None if a is None else a == "7" for a in done.answer]
    (labels,) = label_trees([done], [correct], rule="omega-prm")
    steps = len(done.nodes_to(max(done.settings[COMPLETED]["leaves"])))
    assert labels.v[1 : steps + 1] == [1.0] * good + [0.0] * (steps - good)
    return asked


def restmcts_proposals(texts: list[str]) -> Any:
    from tests.playing import samples

    return samples(*texts)


@pytest.mark.parametrize("good", range(8))
def test_omega_prm_finds_the_first_wrong_step_by_halving(good):
    tree = trace(*(f"s{i}" for i in range(1, 8)), "Answer: 8")
    asked = asked_of(tree, good)
    assert len(asked) == 3  # of seven steps that may be the first wrong one
    assert asked[0] == "s1 / s2 / s3 / s4"


def test_omega_prm_asks_nothing_where_a_right_answer_is_known():
    tree = trace("a", "b", "c", "Answer: 8")
    tree.add(2, Step("Answer: 7"), status="finished", answer="7")  # below b
    assert asked_of(tree, 2) == ["a / b / c"]
    assert asked_of(trace("a", "Answer: 7"), 2) == []


# ---------------------------------------------------------------- with an engine


def problems(count: int, terms: int = 4) -> list[Problem]:
    numbers = [[derive_seed(i, k) % 20 for k in range(terms)] for i in range(count)]
    return [Problem(f"q{i}", f"What is {' + '.join(map(str, n))}?", str(sum(n))) for i, n in enumerate(numbers)]


def searched(count: int, method: str = "mcts_star", **settings: Any) -> list[Tree]:
    trees: list[Tree] = []
    drive.run(
        problems(count),
        SEARCHES[method],
        SearchSettings(**({"iterations": 3, "samples": 4} | settings)),
        scripted_engines(),
        task_of=lambda _: get_task("math"),
        seed=1,
        concurrency=4,
        on_tree=trees.append,
    )
    return sorted(trees, key=lambda tree: tree.problem.id)


STORED = searched(6)


def complete(
    trees: list[Tree], rule: str = "math-shepherd", engines: Engines | None = None, **options: Any
) -> list[Tree]:
    found: dict[str, Tree] = {}
    labels = LabelSettings(rule=rule, completions=options.pop("completions", 3))
    search = options.pop("search", SearchSettings())
    with Grader() as grader:
        complete_trees(
            trees,
            labels,
            search,
            engines or scripted_engines(),
            grader=grader,
            each=lambda tree: found.update({tree.problem.id: tree}),
            **{"seed": 3, "concurrency": 4, **options},
        )
    return [found[tree.problem.id] for tree in trees if tree.problem.id in found]


def plain(trees: list[Tree]) -> list[dict[str, Any]]:
    """Trees as records, without times."""
    records = [tree.to_record() for tree in trees]
    for record in records:
        record["usage"]["seconds"] = 0.0
    return records


def content(tree: Tree) -> set[tuple[tuple[str, ...], bool, int]]:
    """What a tree holds, whatever the order of its nodes."""
    return {(tuple(tree.text[n] for n in tree.nodes_to(node)), *_kind(tree, node)) for node in range(1, len(tree))}


def _kind(tree: Tree, node: int) -> tuple[int, int]:
    return sum(tree.origin[n] == COMPLETION for n in tree.nodes_to(node)), tree.copies[node]


@pytest.mark.parametrize("rule", ["math-shepherd", "omega-prm"])
def test_completions_depend_on_their_seed_alone(rule):
    once = complete(STORED, rule)
    for options in ({"concurrency": 1}, {"engines": scripted_engines(latency=0.002, order=3)}):
        assert plain(complete(STORED, rule, **options)) == plain(once)
    assert plain(complete(STORED[2:3], rule)) == plain(once[2:3])
    assert plain(complete(STORED, rule, seed=4)) != plain(once)


def test_completions_do_not_depend_on_what_else_is_completed():
    every = complete(STORED)
    few = complete(STORED, traces_per_question=1)
    for one, all_ in zip(few, every, strict=True):
        assert content(one) <= content(all_)
    side_by_side = complete(STORED[:1], search=SearchSettings(parallel=5))
    assert content(side_by_side[0]) == content(every[0])


def test_what_completions_cost_is_counted_and_what_was_there_is_kept():
    for tree, done in zip(STORED, complete(STORED), strict=True):
        size = len(tree)
        for column in ("parent", "text", "status", "answer", "raw_value", "value", "visits", "copies", "origin"):
            assert getattr(done, column)[:size] == getattr(tree, column)
        assert set(done.origin[size:]) <= {COMPLETION}
        assert (done.result, done.final_answer, done.method, done.seed) == (
            tree.result, tree.final_answer, tree.method, tree.seed
        )  # fmt: skip
        new = range(size, len(done))
        words = sum(done.copies[n] * (len(done.text[n].split()) + 1) for n in new)
        assert done.usage.policy_tokens == words
        assert done.usage.value_tokens == 0
        again = Tree.from_record(done.to_record())
        assert again.to_record() == done.to_record()


def test_every_step_of_the_chosen_traces_gets_its_completions_and_its_label():
    done = complete(STORED, traces_per_question=2, choice_seed=9)
    with Grader() as grader:
        before, correct = verify(STORED, grader), verify(done, grader)
    labels = label_trees(done, correct, rule="math-shepherd", estimate="soft")
    for tree, old, flags, tree_labels in zip(STORED, before, correct, labels, strict=True):
        chosen = chosen_traces(tree, old, count=2, seed=9)
        assert len(chosen) <= 2
        steps = {n for leaf in chosen for n in tree.nodes_to(leaf)}
        assert {n for n, v in enumerate(tree_labels.v) if v is not None} == steps
        assert flags[: len(tree)] == old
    # Rows of these labels are rows of the chosen traces, all of them: no completion was in vain.
    assert len(value_rows(done, labels, traces_per_question=2, seed=9)) == sum(
        len(chosen_traces(tree, old, count=2, seed=9)) for tree, old in zip(STORED, before, strict=True)
    )


def test_more_completions_later_are_the_first_ones_and_further_ones():
    first = complete(STORED, completions=2)
    more = complete(first, completions=5)
    for tree, done in zip(first, more, strict=True):
        assert wanted(done) == 5
        steps = {n for leaf in done.settings[COMPLETED]["leaves"] for n in done.nodes_to(leaf)[:-1]}
        assert all(drawn(tree, n) == 2 and drawn(done, n) == 5 for n in steps)
    for at_once, in_two in zip(complete(STORED, completions=5), more, strict=True):
        assert content(at_once) == content(in_two)
    assert complete(first, completions=2)[0].usage.policy_tokens == 0


def test_completions_of_two_policies_are_not_mixed():
    first = complete(STORED[:1])
    engines = scripted_engines()
    engines.policy.identity = "another"
    with pytest.raises(ConfigError, match=r"'q0' has completions by scripted-solver with temperature = 0.7.*cannot be"):
        complete(first, engines=engines, completions=5)
    with pytest.raises(ConfigError, match="cannot be mixed in"):
        complete(first, search=SearchSettings(temperature=0.1), completions=5)


def test_ids_of_another_vocabulary_are_left_out():
    tree = copy.deepcopy(STORED[0])
    tree.ids = [None, *([1, 2] for _ in range(len(tree) - 1))]
    tree.models = {**tree.models, "tokenizer": "theirs"}
    seen: list[Any] = []
    policy = ScriptedPolicy(lambda request, _: seen.extend(s.ids for s in request.path) or "Answer: 1")
    (done,) = complete([tree], engines=Engines(policy))
    assert seen
    assert set(seen) == {None}
    assert set(map(str, done.ids)) == {"None"}
    assert done.models["tokenizer"] is None


def test_a_failure_costs_a_step_its_label_and_nothing_else():
    class Faulty(ScriptedPolicy):
        async def propose(self, request: Propose) -> Any:
            if len(request.path) == 1:
                raise TransientError("no", again=False)
            return await super().propose(request)

    from restmcts.engines.scripted import solve_step

    done = complete(STORED, engines=Engines(Faulty(solve_step, identity="faulty")))
    assert {tree.stop for tree in done} == {"failed"}
    with Grader() as grader:
        labels = label_trees(done, verify(done, grader), rule="math-shepherd")
    depths = {
        len(t.nodes_to(n))
        for t, label in zip(done, labels, strict=True)
        for n, v in enumerate(label.v)
        if v is not None
    }
    assert 1 not in depths
    assert 2 in depths


def test_a_tree_without_a_known_answer_is_refused():
    tree = dataclasses.replace(STORED[0], problem=dataclasses.replace(STORED[0].problem, answer=None))
    with pytest.raises(TaskError, match="'q0' has no answer"):
        complete([tree])


# ---------------------------------------------------------------- budgets


@ANY
@given(st.integers(1, 1500), st.sampled_from(["math-shepherd", "omega-prm"]))
def test_a_budget_for_each_question_holds_and_leaves_one_step_half_done_at_most(budget, rule):
    search = SearchSettings(budget_tokens=budget, step_tokens=64)
    whole = complete(STORED[:1], rule, search=search.model_copy(update={"budget_tokens": None}))[0]
    cut = complete(STORED[:1], rule, search=search)[0]
    assert cut.usage.policy_tokens <= budget
    counts = [drawn(cut, node) for node in range(1, len(STORED[0]))]
    assert sum(0 < count < 3 for count in counts) <= 1
    assert cut.stop == ("budget" if content(cut) != content(whole) else "done")
    if budget >= whole.usage.policy_tokens:
        assert content(cut) == content(whole)


def test_a_stage_budget_ends_completions_and_more_of_it_takes_them_up_again(tmp_path: Path):
    whole = complete(STORED)
    cost = sum(tree.usage.policy_tokens for tree in whole)
    path = tmp_path / "trees.jsonl"
    account = Account(Budget(policy_tokens=cost // 2))
    some = complete(STORED, path=path, account=account, concurrency=1)
    assert 0 < len(some) < len(STORED)
    assert [tree.stop for tree in some].count(STAGE_BUDGET) == 1
    assert account.count.policy_tokens >= cost // 2
    spent = Account(Budget(policy_tokens=1), earlier=some[0].usage)
    assert plain(complete(STORED, path=path, account=spent)) == plain(some)
    again = complete(STORED, path=path, account=Account(Budget(policy_tokens=10 * cost)))
    assert plain(again) == plain(whole)
    questions = [tree.problem for tree in STORED]
    assert plain(list(map(stored_trees(path, questions).get, [p.id for p in questions]))) == plain(whole)  # type: ignore[arg-type]


def test_trees_that_are_completed_are_not_completed_again(tmp_path: Path):
    path = tmp_path / "trees.jsonl"
    complete(STORED[:3], path=path)
    asked: list[str] = []

    def script(request: Propose, seed: int) -> Sample | str:
        asked.append(request.problem.id)
        return "Answer: 1"

    complete(STORED, path=path, engines=Engines(ScriptedPolicy(script)))
    assert set(asked) == {"q3", "q4", "q5"}


# ---------------------------------------------------------------- settings, Python


def test_settings_of_completions_are_those_that_they_read():
    search = SearchSettings(temperature=0.3, iterations=99, branch=7, budget_tokens=50, step_tokens=9, max_depth=4)
    chosen = completion_settings(LabelSettings(rule="omega-prm", completions=5), search)
    assert chosen == SearchSettings(
        method="sample", samples=5, temperature=0.3, budget_tokens=50, step_tokens=9, max_depth=4
    )
    assert [needs_completions(LabelSettings(rule=rule)) for rule in ("rest-mcts", "orm", "omega-prm")] == [
        False, False, True
    ]  # fmt: skip


def test_from_python():
    engines = scripted_engines()
    done = restmcts.complete(STORED, engines, rule="math-shepherd", completions=2)
    assert [tree.problem.id for tree in done] == [tree.problem.id for tree in STORED]
    for labels in (restmcts.label(done, rule="math-shepherd"), restmcts.label(STORED, rule="orm")):
        assert any(v is not None for record in labels for v in record.v)
    with pytest.raises(ConfigError, match="'orm' asks for no completions; those that do are: math-shepherd, omega-prm"):
        restmcts.complete(STORED, engines, rule="orm")


def test_estimates_tend_to_the_share_that_the_policy_gets_right():
    """A policy that is right with probability 0.3 whatever the step: so is the average of many soft labels."""

    def script(request: Propose, seed: int) -> str:
        if len(request.path) < 2:
            return f"step {seed % 3}"
        return f"Answer: {request.problem.answer if seed % 10 < 3 else 'none of it'}"

    engines = Engines(ScriptedPolicy(script))
    trees: list[Tree] = []
    drive.run(
        problems(20), SEARCHES["sample"], SearchSettings(samples=3), engines,
        task_of=lambda _: get_task("math"), seed=1, concurrency=4, on_tree=trees.append,
    )  # fmt: skip
    done = complete(trees, engines=engines, completions=40)
    with Grader() as grader:
        labels = label_trees(done, verify(done, grader), rule="math-shepherd", estimate="soft")
    inner = [
        v
        for tree, record in zip(done, labels, strict=True)
        for n, v in enumerate(record.v)
        if v is not None and tree.status[n] == "open"
    ]
    assert len(inner) > 60
    assert sum(inner) / len(inner) == pytest.approx(0.3, abs=3 * math.sqrt(0.21 / 40 / len(inner)) + 0.02)
