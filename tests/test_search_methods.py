"""Every method but MCTS* against trees worked out by hand, and what they share."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restmcts.search import SEARCHES, VARIANTS, SearchSettings
from restmcts.search.nodes import best_of, conclude, new_tree, path_value
from restmcts.seeds import derive_seed
from restmcts.types import Failed, Proposals, Propose, Reply, Request, Sample, Score, Scores, Step, Tree
from tests.playing import MANY, PLAIN, PROBLEM, TASK, Book, path_text, play
from tests.test_search import Noise, Telling, settings_strategy

TEXTS = ["a", "b", "Answer: 7", "Answer: 8"]
CHAINS = ["sample", "best_of_n", "weighted_vote"]


def search(method: str, book: Any, **settings: Any) -> Tree:
    defaults: dict[str, Any] = {"branch": 2, "threshold": 2.0, "exploration": 1.0}
    return play(SEARCHES[method](PROBLEM, SearchSettings(**(defaults | settings)), 5, TASK), book)


def proposed(book: Book) -> list[tuple[str, int]]:
    return [(path_text(request.path), request.n) for request in book.asked(Propose)]


def scored(book: Book) -> list[list[str]]:
    return [[path_text(path) for path in request.paths] for request in book.asked(Score)]


class Dice:
    """Sample i of a request depends on its seed and i, a value on its path."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Reply:
        self.requests.append(request)
        if isinstance(request, Propose):
            numbers = range(request.first, request.first + request.n)
            chances = [random.Random(derive_seed(request.seed, i)) for i in numbers]
            return Proposals(
                tuple(Sample(Step(c.choice(["a", "b", "Answer: 7", "Answer: 8"])), "step") for c in chances)
            )
        assert isinstance(request, Score)
        return Scores(tuple(random.Random(path_text(path)).random() for path in request.paths))


# ---------------------------------------------------------------- chains, and what is made of them


def chains() -> Book:
    return Book(
        {"": [["a", "b", "a"]], "a": [["Answer: 7", "Answer: 8"]], "b": [["Answer: 8"]]},
        {"a": 0.9, "b": 0.2, "Answer: 7": 0.9, "Answer: 8": 0.6},
    )


@pytest.mark.parametrize(
    ("method", "settings", "answer"),
    [
        ("sample", {}, "8"),
        ("best_of_n", {}, "7"),
        ("weighted_vote", {}, "8"),  # 0.6 + 0.6 against 0.9
        ("weighted_vote", {"step_aggregation": "product"}, "7"),  # 0.6·0.9 + 0.6·0.2 against 0.9·0.9
        ("weighted_vote", {"answer_rule": "best"}, "7"),
        ("best_of_n", {"answer_rule": "weighted"}, "8"),
    ],
)
def test_chains_are_scored_as_they_end(method, settings, answer):
    book = chains()
    tree = search(method, book, samples=3, **settings)
    assert (tree.final_answer, tree.stop) == (answer, "done")
    assert proposed(book) == [("", 3), ("a", 2), ("b", 1)]
    steps = settings.get("step_aggregation", "last") != "last"
    a, b = ["a"] if steps else [], ["b"] if steps else []
    ends = [[*a, "a / Answer: 7", "a / Answer: 8"], [*b, "b / Answer: 8"]]
    assert scored(book) == ([] if method == "sample" else ends)


def test_a_spent_budget_leaves_no_ending_without_a_value():
    book = chains()
    tree = play(SEARCHES["best_of_n"](PROBLEM, SearchSettings(samples=3), 5, TASK), book, requests=3)
    assert (tree.final_answer, tree.stop) == ("7", "budget")
    assert tree.raw_value == [None, None, None, 0.9, 0.6]


@pytest.mark.parametrize("seed", range(20))
def test_all_ask_for_the_same_chains_and_few_are_the_first_of_many(seed):
    def chains_of(method: str, count: int) -> tuple[Tree, list[Request]]:
        dice = Dice()
        settings = SearchSettings(samples=count, max_depth=4)
        return play(SEARCHES[method](PROBLEM, settings, seed, TASK), dice), dice.requests

    many, asked = chains_of("sample", 12)
    for method in CHAINS:
        tree, requests = chains_of(method, 12)
        assert [r for r in requests if isinstance(r, Propose)] == asked
        assert (tree.text, tree.copies) == (many.text, many.copies)
    few, _ = chains_of("sample", 5)
    copies = {path_text(many.path(n)): many.copies[n] for n in range(len(many))}
    assert all(few.copies[n] <= copies[path_text(few.path(n))] for n in range(len(few)))
    assert sum(few.copies[n] for n in range(1, len(few)) if few.parent[n] == 0) == 5


@pytest.mark.parametrize("seed", range(10))
def test_chains_that_a_budget_cut_off_go_on_where_they_were(seed):
    class Sparing(Dice):
        def __call__(self, request: Request) -> Reply:
            reply = super().__call__(request)
            return Proposals(reply.samples[:2]) if isinstance(reply, Proposals) else reply

    def drawn(dice: Dice) -> dict[str, int]:
        tree = play(SEARCHES["sample"](PROBLEM, SearchSettings(samples=9, max_depth=4), seed, TASK), dice)
        return {path_text(tree.path(n)): tree.copies[n] for n in range(len(tree))}

    assert drawn(Sparing()) == drawn(Dice())


# ---------------------------------------------------------------- values of paths


@pytest.mark.parametrize(
    ("how", "values", "expected"),
    [
        ("last", (0.5, 0.8, 0.6), 0.6),
        ("min", (0.5, 0.8, 0.6), 0.5),
        ("mean", (0.5, 0.8, 0.6), 1.9 / 3),
        ("product", (0.5, 0.8, 0.6), 0.24),
        ("last", (0.5, 0.8, None), None),
        ("min", (0.5, None, 0.6), 0.5),  # what V could not score is left out
        ("mean", (0.5, None, 0.7), 0.6),
        ("product", (None, 0.5, None), 0.5),
        ("product", (None, None, None), None),
    ],
)
def test_the_value_of_a_path(how, values, expected):
    tree, node = new_tree(PROBLEM, SearchSettings(), 0, "test"), 0
    for value in values:
        node = tree.add(node, Step("a"))
        tree.raw_value[node] = value
    assert path_value(tree, node, how) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(("how", "answer"), [("last", "7"), ("min", "8"), ("mean", "9"), ("product", "6")])
@pytest.mark.parametrize("rule", ["best", "weighted", "posterior"])
def test_any_rule_goes_by_the_value_of_the_path(how, answer, rule):
    settings = SearchSettings(answer_rule=rule, step_aggregation=how)
    tree = new_tree(PROBLEM, settings, 0, "test")
    for key, values in {"7": (0.5, 0.5, 0.9), "8": (0.6, 0.6, 0.6), "9": (0.8, 0.8, 0.5), "6": (0.55, 0.79)}.items():
        node = 0
        for value in values[:-1]:
            node = tree.add(node, Step(f"{key}: {value}"))
            tree.raw_value[node] = value
        node = tree.add(node, Step(f"Answer: {key}"), status="finished", answer=key)
        tree.raw_value[node] = values[-1]
    assert conclude(tree, settings, TASK, usual_rule="majority").final_answer == answer


def test_the_best_of_some_nodes():
    tree = new_tree(PROBLEM, SearchSettings(), 0, "test")
    values = [0.4, None, 0.9, 0.4, 0.1, 0.95]
    nodes = [tree.add(0, Step(str(v)), status="dead" if v == 0.95 else "open") for v in values]
    for node, value in zip(nodes, values, strict=True):
        tree.raw_value[node] = value
    assert best_of(tree, nodes, None, SearchSettings()) == [3, 2, 1, 4, 5]  # unknown: 0.45, the average
    assert best_of(tree, nodes, 2, SearchSettings()) == [3, 2]
    assert best_of(tree, nodes[1:2], 1, SearchSettings()) == [2]


# ---------------------------------------------------------------- beams


def test_beam_search_by_hand():
    book = Book(
        {
            "": [["a", "b", "c", "a"]],
            "b": [["b1", "Answer: 7"]],
            "a": [["a1", "a2"]],
            "a / a1": [["Answer: 8", "Answer: 8"]],
            "b / b1": [[""]],
        },
        {"a": 0.6, "b": 0.9, "c": 0.3, "b1": 0.5, "Answer: 7": 0.8, "a1": 0.7, "a2": 0.2, "Answer: 8": 0.45},
    )
    tree = search("beam", book, samples=4)
    # Of 4, two are kept, b before a. One of their 4 ends; of the 3 left two are kept, and the better one gets 2 of 3.
    assert proposed(book) == [("", 4), ("b", 2), ("a", 2), ("a / a1", 2), ("b / b1", 1)]
    assert (tree.final_answer, tree.stop) == ("8", "done")  # 2 · 0.45 against 0.8
    assert search("beam", replay(book), samples=4, answer_rule="best").final_answer == "7"


def replay(book: Book) -> Book:
    """The same book, unread: a hand-made tree for another reading."""
    return Book(book.read, book.values)


def test_beams_that_fail_are_gone_and_the_others_go_on():
    book = Book({"": [["a", "b"]], "a": [Failed("down")], "b": [["Answer: 7"]]}, {"a": 0.9, "b": 0.5, "Answer: 7": 0.5})
    tree = search("beam", book, samples=2, branch=1)
    assert (tree.final_answer, tree.stop, tree.failures) == ("7", "failed", ["propose: down"])


def test_diverse_verifier_tree_search_by_hand():
    book = Book(
        {
            "": [["a", "b"], ["b", "c"], ["a"]],
            "b": [["Answer: 7", "b2"]],
            "b / b2": [["Answer: 8", "Answer: 9"]],
            "c": [["", ""]],
            "a": [["Answer: 7"]],
        },
        {"a": 0.3, "b": 0.6, "c": 0.9, "b2": 0.9, "Answer: 7": 0.5, "Answer: 8": 0.4, "Answer: 9": 0.7},
    )
    tree = search("dvts", book, samples=5)
    # Three subtrees, of 2, 2 and 1: the first goes by b and b2, the second by c into a dead end, the third by a.
    assert proposed(book) == [("", 2), ("b", 2), ("b / b2", 2), ("", 2), ("c", 2), ("", 1), ("a", 1)]
    assert len({request.seed for request in book.asked(Propose)}) == 7
    assert (tree.final_answer, tree.stop) == ("7", "done")  # 0.5 + 0.5 against 0.7
    assert tree.copies[1:4] == [2, 2, 1]
    side_by_side = replay(book)
    again = search("dvts", side_by_side, samples=5, parallel=2)
    assert proposed(side_by_side) == [("", 2), ("", 2), ("b", 2), ("c", 2), ("b / b2", 2), ("", 1), ("a", 1)]
    assert again.final_answer == "7"


# ---------------------------------------------------------------- Tree of Thoughts


def test_breadth_first_by_hand():
    book = Book(
        {
            "": [["a", "b"]],
            "b": [["Answer: 7", "b2"]],
            "a": [["a1", "a2"]],
            "a / a1": [["Answer: 8", "Answer: 9"]],
        },
        {"a": 0.4, "b": 0.6, "b2": 0.2, "a1": 0.5, "a2": 0.3, "Answer: 7": 0.7, "Answer: 8": 0.65, "Answer: 9": 0.8},
    )
    tree = search("tot_bfs", book, samples=4)
    # Two states are kept: b and a; then 7, which stays, and a1; then 9 and 7.
    assert proposed(book) == [("", 2), ("b", 2), ("a", 2), ("a / a1", 2)]
    assert (tree.final_answer, tree.stop) == ("9", "done")


DEPTH_FIRST = Book(
    {
        "": [["a", "b"]],
        "a": [["a1", "a2"]],
        "a / a1": [["Answer: 6", ""]],
        "a / a2": [["", ""]],
        "b": [["Answer: 7", "b2"]],
        "b / b2": [["Answer: 8", "Answer: 9"]],
    },
    {"a": 0.6, "b": 0.4, "a1": 0.25, "a2": 0.3, "b2": 0.3}
    | {"Answer: 6": 0.1, "Answer: 7": 0.5, "Answer: 8": 0.95, "Answer: 9": 0.2},
)


@pytest.mark.parametrize(
    ("settings", "asked", "stop", "answer"),
    [
        ({"prune": 0.25}, ["", "a", "a / a2", "b", "b / b2"], "exhausted", "8"),  # a1 is worth no more than that
        ({}, ["", "a", "a / a2", "a / a1", "b", "b / b2"], "exhausted", "8"),
        ({"threshold": 0.5}, ["", "a", "a / a2", "a / a1", "b"], "threshold", "7"),
        ({"iterations": 4}, ["", "a", "a / a2", "a / a1"], "iterations", "6"),
        ({"prune": 0.5}, ["", "a"], "exhausted", None),
        ({"parallel": 2}, ["", "a", "b", "a / a2", "a / a1", "b / b2"], "exhausted", "8"),
    ],
)
def test_depth_first_by_hand(settings, asked, stop, answer):
    book = replay(DEPTH_FIRST)
    tree = search("tot_dfs", book, **settings)
    assert [path for path, _ in proposed(book)] == asked
    assert (tree.stop, tree.final_answer) == (stop, answer)


def test_depth_first_follows_what_could_not_be_scored():
    book = Book({"": [["a"]], "a": [["Answer: 7"]]}, {"a": None, "Answer: 7": 0.5})
    assert search("tot_dfs", book, branch=1, prune=0.9).final_answer == "7"


# ---------------------------------------------------------------- plain MCTS


def test_plain_mcts_by_hand():
    book = Book(
        {
            "": [["a", "b"]],
            "a": [["a1"], ["a2", "a3"]],  # a rollout, then the expansion
            "a / a1": [["Answer: 7"]],
            "b": [["Answer: 8", "b1"]],
            "b / b1": [[""]],
            "a / a2": [["Answer: 9"]],
        },
        {"Answer: 7": 0.8, "Answer: 8": 0.4, "Answer: 9": 0.9},
    )
    tree = search("mcts", book, iterations=3)
    # 1: a, the first of equals, ends at 0.8.
    # 2: b by 0.8 + ½ against 0.8 + ½/2; its 8 is an ending, its rollout is dead.
    # 3: a by 0.8 + ½·√3/2 against 0.2 + ½·√3/3; of its three steps a2 is the first not visited; it ends at 0.9.
    assert tree.text == ["", "a", "b", "a1", "Answer: 7", "Answer: 8", "b1", "", "a2", "a3", "Answer: 9"]
    assert tree.visits == [4, 2, 2, 1, 1, 1, 1, 1, 1, 0, 1]
    assert tree.value.pop(9) is None
    assert tree.value == pytest.approx([2.1 / 4, 0.85, 0.2, 0.8, 0.8, 0.4, 0.0, 0.0, 0.9, 0.9])
    assert [n for n in range(len(tree)) if tree.raw_value[n] is not None] == tree.finished()  # endings only are scored
    assert (tree.final_answer, tree.stop) == ("9", "iterations")


def test_the_prior_is_the_policys():
    """Both are visited first by prior: a word of a has 0.2, a word of b has 0.4, though b as a whole is less likely."""
    steps = [Sample(Step("a"), "step", math.log(0.2)), Sample(Step("b b"), "step", math.log(0.16))]
    book = Book({"": [steps], "b b": [["Answer: 7"]]}, {"Answer: 7": 0.5})
    assert search("mcts", book, iterations=1).final_answer == "7"
    told = Book({"": [[*steps[:1], "b", "b"]], "b": [["Answer: 8"]]}, {"Answer: 8": 0.5})
    assert search("mcts", told, iterations=1, branch=3).final_answer == "8"  # not all tell: by how often


def test_a_sure_policy_explores_less():
    def visited(chance: float) -> list[int]:
        steps = [Sample(Step("a"), "step", math.log(chance)), Sample(Step("b"), "step", math.log(1 - chance))]
        book = Book(
            {"": [steps], "a": [["Answer: 7"], ["Answer: 7", "c"]], "a / c": [["Answer: 7"]], "b": [["Answer: 8"]] * 2},
            {"Answer: 7": 0.8, "Answer: 8": 0.1},
        )
        return search("mcts", book, iterations=2).visits[1:3]

    assert visited(0.6) == [1, 1]  # then b, by 0.8 + 0.4 against 0.8 + 0.6/2
    assert visited(0.9) == [3, 0]  # then a, by 0.8 + 0.9/2 against 0.8 + 0.1: an answer at once, and one by a rollout


@MANY
@given(
    settings=settings_strategy,
    seed=st.integers(0, 2**32),
    failures=st.sampled_from([0.0, 0.1]),
    engine=st.sampled_from([Noise, Telling]),
)
def test_what_plain_mcts_backs_up_is_the_mean_of_the_endings(settings, seed, failures, engine):
    tree = play(SEARCHES["mcts"](PROBLEM, settings, seed, TASK), engine(seed, failures))
    for node in range(len(tree)):
        below = [c for c in tree.children(node) if tree.visits[c]]
        if below:
            assert tree.visits[node] == sum(tree.visits[c] for c in below)
            total = math.fsum(tree.visits[c] * (tree.value[c] or 0.0) for c in below)
            assert tree.value[node] == pytest.approx(total / tree.visits[node])
        elif tree.visits[node] and not failures:  # else a step may get its value later
            dead, how = tree.status[node] == "dead", settings.step_aggregation
            assert tree.value[node] == pytest.approx(0.0 if dead else path_value(tree, node, how))


# ---------------------------------------------------------------- MCTS* without its parts


def test_a_random_rollout_takes_one_step_each_and_its_end_for_its_value():
    def value(**settings: Any) -> tuple[float | None, list[int]]:
        book = Book({"": [["a"]], "a": [["b"]], "a / b": [["Answer: 7"]]}, {"a": 0.4, "b": 0.9, "Answer: 7": 0.5})
        tree = search("mcts_star", book, **PLAIN, iterations=1, branch=1, rollout_branch=3, **settings)
        return tree.value[1], [n for _, n in proposed(book)]

    assert value() == (pytest.approx(0.5 * 0.4 + 0.5 * 0.9), [1, 3, 3])
    assert value(rollout="random") == (pytest.approx(0.5 * 0.4 + 0.5 * 0.5), [1, 1, 1])


def test_vanilla_back_up_by_hand():
    """The three iterations of `test_search_mcts_star`, each of which finds the value of its leaf's best child."""
    book = Book(
        {
            "": [["a", "b"]],
            "a": [["a1"], ["a1", "a2"]],
            "b": [["b1", "b2"]],
            "b / b2": [["Answer: 7"]],
            "a / a2": [["Answer: 8"]],
        },
        {"a": 0.6, "b": 0.5, "a1": 0.8, "b1": 0.4, "b2": 0.55, "Answer: 7": 0.3, "a2": 0.9, "Answer: 8": 0.95},
    )
    tree = search("mcts_star", book, **PLAIN, iterations=3, rollout_steps=1, backup="vanilla")
    # 0.7, then 0.55, then 0.925; a had 0.7 from its own rollout before that.
    assert tree.value[:3] == pytest.approx([(0.7 + 0.55 + 0.925) / 3, (0.7 + 0.925) / 2, 0.55])
    assert tree.visits[:3] == [3, 2, 1]


# ---------------------------------------------------------------- variants


def test_variants_are_settings_of_methods():
    base = {"samples": 5, "self_critic": True}
    for name, changes in VARIANTS.items():
        settings = SearchSettings(**(base | changes))
        assert settings.method in SEARCHES
        assert settings != SearchSettings(**base, method=settings.method)
        assert name not in SEARCHES
