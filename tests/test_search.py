"""What holds for every search method, whatever the engines reply; and what methods share."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restmcts.errors import ConfigError
from restmcts.search import SEARCHES, SearchSettings, get_search
from restmcts.search.nodes import add_samples, conclude, new_tree, path_probabilities
from restmcts.types import Critique, Failed, Proposals, Propose, Reply, Request, Sample, Scores, Step, Tree, Verdict
from tests.playing import EACH, PLAIN, PROBLEM, TASK, Book, path_text, play, samples

TEXTS = ["a", "b", "c", "d", "", " ", "Answer: 7", "Answer: 8"]


class Noise:
    """Replies at random, also empty steps, cut ones and failures; remembers what it said."""

    def __init__(self, seed: int, failures: float) -> None:
        self.random = random.Random(seed)
        self.failures = failures
        self.made: list[str] = []
        self.said: dict[str, float] = {}
        self.failed = 0
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Reply:
        self.requests.append(request)
        if self.random.random() < self.failures:
            self.failed += 1
            return Failed("no luck")
        if isinstance(request, Propose):
            made = [
                Sample(Step(self.random.choice(TEXTS)), self.random.choices(["step", "end", "length"], [8, 1, 1])[0])
                for _ in range(request.n)
            ]
            self.made += [path_text((*request.path, sample.step)) for sample in made]
            return Proposals(tuple(made))
        if isinstance(request, Critique):
            return Verdict(self.random.random() < 0.3, self.random.choice([None, "Add."]))
        for path in request.paths:
            self.said.setdefault(path_text(path), self.random.random())
        return Scores(tuple(self.said[path_text(path)] for path in request.paths))


class Telling(Noise):
    """Noise that tells how probable each of its samples was."""

    def __call__(self, request: Request) -> Reply:
        reply = super().__call__(request)
        if not isinstance(reply, Proposals):
            return reply
        share = {"step": 0.8, "end": 0.1, "length": 0.1}
        return Proposals(tuple(Sample(s.step, s.finish, math.log(share[s.finish] / len(TEXTS))) for s in reply.samples))


settings_strategy = st.builds(
    SearchSettings,
    greedy_first=st.sampled_from([None, True, False]),
    iterations=st.integers(1, 12),
    branch=st.integers(1, 4),
    rollout_steps=st.integers(0, 6),
    rollout_branch=st.integers(1, 3),
    alpha=st.floats(0, 1),
    exploration=st.floats(0, 2),
    threshold=st.floats(0.5, 1.5),
    max_depth=st.integers(1, 6),
    temperature=st.floats(0, 1),
    self_critic=st.booleans(),
    answer_rule=st.sampled_from([None, "majority", "weighted", "posterior", "best"]),
    step_aggregation=st.sampled_from(["last", "last", "min", "mean", "product"]),
    rollout=st.sampled_from(["greedy", "random"]),
    backup=st.sampled_from(["weighted", "vanilla"]),
    widening=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
    prune=st.floats(0, 1),
    samples=st.integers(1, 6),
    parallel=st.sampled_from([1, 1, 2, 5]),
    stop_decided=st.booleans(),
    stop_lead=st.none() | st.floats(0.5, 3),
)
noise = {
    "settings": settings_strategy,
    "seed": st.integers(0, 2**32),
    "failures": st.sampled_from([0.0, 0.0, 0.2, 0.9]),
    "requests": st.none() | st.integers(0, 20),
}


@pytest.mark.parametrize("name", SEARCHES)
@EACH
@given(**noise)
def test_every_tree_of_every_method(name, settings, seed, failures, requests):
    engine = Noise(seed, failures)
    tree = play(SEARCHES[name](PROBLEM, settings, seed, TASK), engine, requests=requests)
    check_record(tree, name, settings, seed)
    check_nodes(tree, settings.max_depth)
    if settings.parallel == 1:
        assert tree.iteration == sorted(tree.iteration)
    check_answer(tree)
    assert tree.stop in {"threshold", "exhausted", "iterations", "decided", "budget", "failed", "done"}
    assert (tree.stop == "budget") <= (len(engine.requests) == requests)
    assert len(tree.failures) == engine.failed
    assert sum(tree.copies[1:]) == len(engine.made)  # nothing that was generated is lost
    assert {path_text(tree.path(n)) for n in range(1, len(tree))} == set(engine.made)
    for node in range(1, len(tree)):  # what the value model said is never written over
        assert tree.raw_value[node] in (None, engine.said.get(path_text(tree.path(node))))
    check_requests(tree, engine.requests, settings)


def check_record(tree: Tree, name: str, settings: SearchSettings, seed: int) -> None:
    assert (tree.problem, tree.method, tree.seed) == (PROBLEM, name, seed)
    assert tree.settings == settings.model_dump(mode="json")
    assert Tree.from_record(tree.to_record()) == tree


def check_nodes(tree: Tree, max_depth: int) -> None:
    for node in range(1, len(tree)):
        answer, text = TASK.find_answer(tree.text[node]), tree.text[node]
        depth = len(tree.nodes_to(node))
        assert depth <= max_depth
        assert tree.answer[node] == answer
        assert (tree.status[node] == "finished") == (answer is not None)
        assert (tree.status[node] == "dead") == (tree.reason[node] is not None)
        assert tree.status[tree.parent[node]] == "open"  # nothing follows an end
        if tree.status[node] == "open":
            assert text.strip()
            assert depth < max_depth
        assert tree.raw_value[node] is None or tree.status[node] != "dead"
        assert tree.value[node] is None or 0 <= tree.value[node] <= 1
    siblings = Counter((tree.parent[n], tree.text[n], tree.reason[n]) for n in range(1, len(tree)))
    assert set(siblings.values()) <= {1}


def check_answer(tree: Tree) -> None:
    assert (tree.result is None) == (not tree.finished())
    if tree.result is not None:
        assert tree.status[tree.result] == "finished"
        assert tree.final_answer == tree.answer[tree.result]
    else:
        assert tree.final_answer is None


def check_requests(tree: Tree, requests: list[Request], settings: SearchSettings) -> None:
    at = {path_text(tree.path(n)) for n in range(len(tree)) if tree.status[n] == "open"}
    seeds = [request.seed for request in requests if not hasattr(request, "paths")]
    assert len(set(seeds)) == len(seeds)
    for request in requests:
        if isinstance(request, Propose):
            assert path_text(request.path) in at
            assert 1 <= request.n <= max(settings.branch, settings.rollout_branch, settings.samples)
            greedy = tree.method == "mcts_star" and request.n == 1  # a step of a rollout
            assert request.temperature == settings.temperature or (greedy and request.temperature == 0)
            assert request.max_tokens == settings.step_tokens
        elif isinstance(request, Critique):
            assert request.path
            assert settings.self_critic
        else:
            assert request.paths
            assert all(request.paths)


@pytest.mark.parametrize("name", SEARCHES)
@EACH
@given(**noise)
def test_the_same_replies_make_the_same_tree(name, settings, seed, failures, requests):
    one, two = (
        play(SEARCHES[name](PROBLEM, settings, seed, TASK), Noise(seed, failures), requests=requests) for _ in range(2)
    )
    assert one == two


@pytest.mark.parametrize("name", SEARCHES)
def test_a_seed_decides_what_is_sampled(name):
    first = [next(SEARCHES[name](PROBLEM, SearchSettings(), seed, TASK)) for seed in (1, 1, 2)]
    assert first[0] == first[1]
    assert first[0].seed != first[2].seed


@pytest.mark.parametrize("name", SEARCHES)
def test_an_engine_that_never_answers_ends_the_search(name):
    book = Book({"": [Failed("down")] * 3}, {})
    tree = play(SEARCHES[name](PROBLEM, SearchSettings(), 0, TASK), book)
    assert tree.stop == "failed"
    assert tree.failures == ["propose: down"] * len(book.requests)
    assert (len(tree), tree.result, tree.final_answer) == (1, None, None)


def test_method_names():
    assert get_search("cot") is SEARCHES["cot"]
    with pytest.raises(ConfigError, match="did you mean 'mcts_star'"):
        get_search("mtcs_star")
    with pytest.raises(ConfigError, match="there are: mcts_star, cot, sample"):
        get_search("?")


def test_settings_are_documented_and_bounded():
    for name, field in SearchSettings.model_fields.items():
        assert field.description, name
    for bad in ({"alpha": 1.1}, {"iterations": 0}, {"branch": 0}, {"temperature": -1}, {"budget_tokens": 0}, {"b": 3}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            SearchSettings(**bad)
    budget = SearchSettings(budget_tokens=5, budget_value_tokens=6, budget_seconds=7).budget()
    assert (budget.policy_tokens, budget.value_tokens, budget.seconds) == (5, 6, 7)


# ---------------------------------------------------------------- samples become nodes


def grown(*made: str | Sample, max_depth: int = 9) -> tuple[Tree, list[int]]:
    settings = SearchSettings(max_depth=max_depth)
    tree = new_tree(PROBLEM, settings, 0, "test")
    return tree, add_samples(tree, 0, samples(*made), settings, TASK, origin="expand", iteration=4)


@pytest.mark.parametrize(
    ("sample", "max_depth", "status", "reason"),
    [
        (Sample(Step("a"), "step"), 9, "open", None),
        (Sample(Step("a"), "step"), 1, "dead", "depth"),
        (Sample(Step(""), "step"), 1, "dead", "empty"),
        (Sample(Step(" \t"), "end"), 9, "dead", "empty"),
        (Sample(Step("a"), "end"), 9, "dead", "ended"),
        (Sample(Step("a"), "length"), 9, "dead", "length"),
        *[(Sample(Step("Answer: 7"), finish), 1, "finished", None) for finish in ("step", "end", "length")],
    ],
)
def test_what_becomes_of_a_sample(sample, max_depth, status, reason):
    tree, nodes = grown(sample, max_depth=max_depth)
    assert nodes == [1]
    assert (tree.status[1], tree.reason[1]) == (status, reason)
    assert (tree.origin[1], tree.iteration[1]) == ("expand", 4)


def test_equal_samples_are_one_node_counted_as_often():
    tree, nodes = grown("a", "b", "a", Sample(Step("a"), "end"), "a ", Sample(Step("a", (1,)), "step"))
    assert nodes == [1, 2, 3, 4]
    assert tree.text[1:] == ["a", "b", "a", "a "]  # one that ended is another than one that goes on
    assert tree.copies == [1, 3, 1, 1, 1]
    settings = SearchSettings()
    assert add_samples(tree, 0, samples("b", "c"), settings, TASK, origin="rollout") == [2, 5]
    assert add_samples(tree, 1, samples("b"), settings, TASK, origin="rollout") == [6]  # another parent's child
    assert tree.copies == [1, 3, 2, 1, 1, 1, 1]


# ---------------------------------------------------------------- the answer


def answered(*leaves: tuple[str, float | None, int], rule: Any) -> tuple[int | None, str | None]:
    """Result and answer of a tree with these leaves: answer, raw value, copies."""
    tree = new_tree(PROBLEM, SearchSettings(), 0, "test")
    for answer, value, copies in leaves:
        node = tree.add(0, Step(f"Answer: {answer}"), status="finished", answer=answer)
        tree.raw_value[node], tree.copies[node] = value, copies
    tree.add(0, Step("open, and well thought of"))
    tree.raw_value[-1] = 1.0
    conclude(tree, SearchSettings(answer_rule=rule), TASK, usual_rule="majority")
    return tree.result, tree.final_answer


CASES: list[Any] = [
    ("best", [("7", 0.2, 5), ("8", 0.9, 1)], (2, "8")),
    ("best", [("7", 0.9, 1), ("8", 0.9, 5)], (1, "7")),  # earlier wins a tie
    ("best", [("7", None, 9), ("8", 0.0, 1)], (2, "8")),  # unknown is not worth more than known, however low
    ("best", [("7", None, 1), ("8", None, 1)], (1, "7")),
    ("weighted", [("7", 0.4, 1), ("8", 0.7, 1), ("7", 0.5, 1)], (3, "7")),  # the best leaf of the winner
    ("weighted", [("7", 0.4, 2), ("8", 0.7, 1)], (1, "7")),  # copies vote
    ("weighted", [("x", 0.4, 1), ("8", 0.7, 1), ("X", 0.5, 1)], (3, "X")),  # equal under task.key
    ("weighted", [("7", None, 2), ("8", None, 3), ("7", None, 2)], (1, "7")),  # nothing scored: majority
    ("weighted", [("7", None, 1), ("8", 0.9, 1), ("7", 0.5, 1)], (3, "7")),  # unscored: an average vote (0.7)
    ("weighted", [("7", 0.0, 1), ("8", 0.0, 1)], (1, "7")),
    ("majority", [("7", 0.1, 2), ("8", 0.9, 1)], (1, "7")),
    (None, [("7", 0.1, 2), ("8", 0.9, 1)], (1, "7")),  # the method's own
    ("posterior", [("7", 0.1, 2), ("8", 0.9, 1)], (2, "8")),  # no probabilities: weighted
]


@pytest.mark.parametrize(("rule", "leaves", "expected"), CASES)
def test_the_answer(rule, leaves, expected):
    assert answered(*leaves, rule=rule) == expected


@pytest.mark.parametrize(
    ("chances", "expected"),
    [
        ((0.5, 0.3, 0.1), "8"),  # 0.5 · 0.4 < 0.3 · 0.7 + 0.1 · 0.5, though 7 is the likelier path
        ((0.8, 0.1, 0.0), "7"),
        ((0.008, 0.001, 0.0), "8"),  # too little is covered: weighted by value alone
        ((0.8, 0.1, None), "8"),  # not all tell
    ],
)
def test_the_posterior_is_probability_times_value(chances, expected):
    tree = new_tree(PROBLEM, SearchSettings(), 0, "test")
    first = tree.add(0, Step("a"), logprob=math.log(0.9))
    for answer, value, chance in zip(("7", "8", "8"), (0.4, 0.7, 0.5), chances, strict=True):
        logprob = None if chance is None else math.log(max(chance, 1e-9) / 0.9)
        node = tree.add(first, Step(f"Answer: {answer}"), status="finished", answer=answer, logprob=logprob)
        tree.raw_value[node] = value
    conclude(tree, SearchSettings(answer_rule="posterior"), TASK, usual_rule="majority")
    assert tree.final_answer == expected
    assert math.isclose(path_probabilities(tree)[1] or 0, 0.9)


def test_what_is_not_finished_is_never_the_answer():
    assert answered(rule="weighted") == (None, None)
    assert answered(rule="best") == (None, None)


# ---------------------------------------------------------------- chains


def test_one_chain_of_thought():
    book = Book({"": [["a"]], "a": [["b"]], "a / b": [["Answer: 7"]]}, {})
    tree = play(SEARCHES["cot"](PROBLEM, SearchSettings(temperature=0, branch=5, samples=9), 3, TASK), book)
    assert tree.text == ["", "a", "b", "Answer: 7"]
    assert (tree.result, tree.final_answer, tree.stop) == (3, "7", "done")
    assert all(isinstance(request, Propose) and request.n == 1 for request in book.requests)
    assert tree.raw_value == [None] * 4


def test_chains_that_agree_go_together_and_each_has_a_vote():
    book = Book(
        {
            "": [["a", "b", "a", "a", "Answer: 9"]],
            "a": [["c", "c", "Answer: 8"]],
            "a / c": [["Answer: 7", "Answer: 7"]],
            "b": [[Sample(Step("I give up."), "end")]],
        },
        {},
    )
    tree = play(SEARCHES["sample"](PROBLEM, SearchSettings(samples=5), 3, TASK), book)
    assert [(path_text(r.path), r.n) for r in book.asked(Propose)] == [("", 5), ("a", 3), ("a / c", 2), ("b", 1)]
    assert (tree.final_answer, tree.stop) == ("7", "done")
    leaves = [n for n in range(1, len(tree)) if n not in tree.parent]
    assert sum(tree.copies[n] for n in leaves) == 5  # one leaf per chain
    assert tree.reason[-1] == "ended"


def test_chains_whose_budget_is_spent_answer_with_what_is_finished():
    steps = {"": [["a", "b"]], "a": [["Answer: 7"]]}
    tree = play(SEARCHES["sample"](PROBLEM, SearchSettings(samples=2), 3, TASK), Book(steps, {}), requests=2)
    assert (tree.final_answer, tree.stop) == ("7", "budget")


def test_a_failure_ends_one_chain_only():
    book = Book({"": [["a", "b"]], "a": [Failed("down")], "b": [["Answer: 7"]]}, {})
    tree = play(SEARCHES["sample"](PROBLEM, SearchSettings(samples=2), 3, TASK), book)
    assert (tree.final_answer, tree.stop, tree.failures) == ("7", "failed", ["propose: down"])
    assert tree.status == ["open", "open", "open", "finished"]


# ---------------------------------------------------------------- early stop


def test_chains_stop_when_those_left_cannot_change_the_majority():
    def asked(**settings: object) -> tuple[Tree, int]:
        steps = {"": [["a", "a", "a", "b", "c"]], "a": [["Answer: 7"] * 3], "b": [["Answer: 8"]], "c": [["Answer: 8"]]}
        book = Book(steps, {})
        tree = play(SEARCHES["sample"](PROBLEM, SearchSettings(samples=5, **settings), 3, TASK), book)
        return tree, len(book.requests)

    whole, all_requests = asked()
    early, fewer = asked(stop_decided=True)
    assert (whole.stop, all_requests) == ("done", 4)
    assert (early.stop, fewer) == ("decided", 2)  # 3 votes against 0, and 2 chains left
    assert whole.final_answer == early.final_answer == "7"
    assert asked(stop_decided=True, answer_rule="best")[0].stop == "done"
    assert asked(stop_lead=3.0)[0].stop == "decided"
    assert asked(stop_lead=3.5)[0].stop == "done"


def test_a_lead_as_large_as_what_is_left_decides_nothing():
    steps = {"": [["a", "b"]], "a": [["Answer: 7"]], "b": [["Answer: 8"]]}
    tree = play(SEARCHES["sample"](PROBLEM, SearchSettings(samples=2, stop_decided=True), 3, TASK), Book(steps, {}))
    assert tree.stop == "done"


@pytest.mark.parametrize(
    ("second", "stop"),
    [
        (0.2, "decided"),  # 0.5 · 0.9 − 0.2 · 0.4 = 0.37 against the 0.3 that was not found
        (0.05, "exhausted"),  # 0.43 against 0.45
    ],
)
def test_the_posterior_is_decided_when_too_little_was_not_found(second, stop):
    def answer(value, chance):
        return Sample(Step(f"Answer: {value}"), "end", math.log(chance))

    rest = Sample(Step("c"), "step", math.log(0.05))
    book = Book(
        {"": [[answer(7, 0.5), answer(8, second), rest]], "c": [[""]]}, {"Answer: 7": 0.9, "Answer: 8": 0.4, "c": 0.5}
    )
    settings = SearchSettings(**PLAIN, iterations=9, rollout_steps=0, stop_decided=True, threshold=2)
    tree = play(SEARCHES["mcts_star"](PROBLEM, settings, 1, TASK), book)
    assert (tree.final_answer, tree.stop) == ("7", stop)


@pytest.mark.parametrize("engine", [Noise, Telling])
@pytest.mark.parametrize("name", SEARCHES)
@EACH
@given(settings=settings_strategy, seed=st.integers(0, 2**32), failures=st.sampled_from([0.0, 0.2]))
def test_what_is_decided_is_not_changed_by_more_search(name, engine, settings, seed, failures):
    def answer(**changes: object) -> Tree:
        changed = settings.model_copy(update={"stop_lead": None, **changes})
        return play(SEARCHES[name](PROBLEM, changed, seed, TASK), engine(seed, failures))

    early, whole = answer(stop_decided=True), answer(stop_decided=False)
    assert len(early) <= len(whole)
    assert early.final_answer == whole.final_answer


def test_with_advice_nothing_is_known_of_what_was_not_found():
    said = Sample(Step("Answer: 7"), "end", math.log(0.9))
    for critic, stop in ((False, "decided"), (True, "iterations")):
        book = Book(
            {"": [[said, "c"]], "c": [["d", "d"]], "c / d": [["e", "e"]]},
            {"Answer: 7": 0.9, **dict.fromkeys("cde", 0.5)},
        )
        settings = SearchSettings(
            **PLAIN, iterations=3, branch=2, rollout_steps=0, stop_decided=True, threshold=2, self_critic=critic
        )
        assert play(SEARCHES["mcts_star"](PROBLEM, settings, 1, TASK), book).stop == stop


# ---------------------------------------------------------------- several requests at once


@pytest.mark.parametrize(("parallel", "last"), [(1, "a / a1"), (2, "b / b2")])
def test_iterations_in_flight_go_apart(parallel, last):
    """Without exploration a, worth 0.59, is next again; with one of its two visits in flight it counts 3/4 of that."""
    ends = [["", ""]]
    book = Book(
        {"": [["a", "b"]], "a": [["a1", "a2"]], "b": [["b1", "b2"]]}
        | {f"{x} / {x}{k}": ends for x in "ab" for k in (1, 2)},
        {"a": 0.6, "b": 0.5, "a1": 0.6, "a2": 0.58, "b1": 0.5, "b2": 0.4},
    )
    settings = SearchSettings(
        **PLAIN,
        branch=2,
        rollout_steps=0,
        exploration=0,
        iterations=5,
        parallel=parallel,
        threshold=2,
        answer_rule="best",
    )
    tree = play(SEARCHES["mcts_star"](PROBLEM, settings, 5, TASK), book)
    assert [path_text(request.path) for request in book.asked(Propose)] == ["", "b", "a", "a / a2", last]
    assert tree.stop == "iterations"
    assert tree.visits[0] == 5


def test_what_is_in_flight_is_shared_out_among_the_trees():
    settings = SearchSettings(parallel=16)
    assert [settings.shared_by(n).parallel for n in (0, 1, 2, 3, 16, 17, 10**6)] == [16, 16, 8, 5, 1, 1, 1]


def test_children_are_found_however_late_they_are_asked_for():
    tree = Tree(PROBLEM, "test", 0)
    assert list(tree.children(0)) == []
    a, b = tree.add(0, Step("a")), tree.add(0, Step("b"))
    c = tree.add(a, Step("c"))
    assert [list(tree.children(n)) for n in range(4)] == [[a, b], [c], [], []]
    assert "_children" not in tree.to_record()
    assert Tree.from_record(tree.to_record()) == tree
