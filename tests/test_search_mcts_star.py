"""MCTS*, phase by phase, against trees worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restmcts.search import SearchSettings, mcts_star
from restmcts.search.mcts_star import STATE_THE_ANSWER
from restmcts.types import Critique, Failed, Propose, Sample, Score, Step, Tree, Verdict
from tests.playing import MANY, PLAIN, PROBLEM, TASK, Book, path_text, play
from tests.test_search import Noise, settings_strategy


def search(book: Book, **settings: object) -> Tree:
    defaults: dict[str, object] = {
        "branch": 2,
        **PLAIN,
        "rollout_steps": 1,
        "exploration": 1.0,
        "threshold": 2.0,
    }
    return play(mcts_star(PROBLEM, SearchSettings(**(defaults | settings)), 5, TASK), book)


def expanded_at(book: Book, branch: int = 2) -> list[str]:
    """The nodes that were expanded, in order: the selected leaves."""
    return [path_text(request.path) for request in book.asked(Propose) if request.n == branch]


def test_three_iterations_by_hand():
    book = Book(
        {
            "": [["a", "b"]],
            "a": [["a1"], ["a1", "a2"]],  # a rollout step, then the expansion
            "b": [["b1", "b2"]],
            "b / b2": [["Answer: 7"]],
            "a / a2": [["Answer: 8"]],
        },
        {"a": 0.6, "b": 0.5, "a1": 0.8, "b1": 0.4, "b2": 0.55, "Answer: 7": 0.3, "a2": 0.9, "Answer: 8": 0.95},
    )
    tree = search(book, iterations=3)
    assert tree.text == ["", "a", "b", "a1", "b1", "b2", "Answer: 7", "a2", "Answer: 8"]
    assert tree.parent == [-1, 0, 0, 1, 2, 2, 5, 1, 7]
    assert tree.iteration == [0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert tree.origin == ["root", *"expand expand rollout expand expand rollout expand rollout".split()]
    # 1: a = ½·0.6 + ½·0.8 = 0.7.  2: b was not visited; b2 keeps 0.55, the answer after it being worse.
    # 3: a by 0.7 + √ln 2 against 0.55 + √ln 2; a1 comes up again; a2 = ½·0.9 + ½·0.95 = a; root = (2·a + b) / 3.
    assert tree.raw_value == [None, 0.6, 0.5, 0.8, 0.4, 0.55, 0.3, 0.9, 0.95]
    assert tree.value == pytest.approx([0.8, 0.925, 0.55, 0.8, 0.4, 0.55, 0.3, 0.925, 0.95])
    assert tree.visits == [3, 2, 1, 0, 0, 1, 1, 1, 1]
    assert tree.copies == [1, 1, 1, 2, 1, 1, 1, 1, 1]
    assert (tree.result, tree.final_answer, tree.stop) == (8, "8", "iterations")
    assert expanded_at(book) == ["", "b", "a"]
    assert [[path_text(path) for path in request.paths] for request in book.asked(Score)] == [
        ["a", "b"],
        ["a / a1"],
        ["b / b1", "b / b2"],
        ["b / b2 / Answer: 7"],
        ["a / a2"],  # a1 has its value already
        ["a / a2 / Answer: 8"],
    ]


@pytest.mark.parametrize(("exploration", "fourth"), [(0.0, "a / a2"), (2.0, "a / a2"), (3.0, "b / b2")])
def test_exploration_weighs_value_against_visits(exploration, fourth):
    """After three iterations a has 0.9 and two visits, b 0.2 and one: b is next once ε·(√ln 3 − √(ln 3 / 2)) > 0.7."""
    assert (exploration * (math.sqrt(math.log(3)) - math.sqrt(math.log(3) / 2)) > 0.7) == fourth.startswith("b")
    end = [["", ""]]
    book = Book(
        {"": [["a", "b"]], "a": [["a1", "a2"]], "b": [["b1", "b2"]], "a / a2": end, "b / b2": end},
        {"a": 0.9, "b": 0.2, "a1": 0.9, "a2": 0.9, "b1": 0.2, "b2": 0.2},
    )
    search(book, iterations=4, rollout_steps=0, exploration=exploration)
    assert expanded_at(book) == ["", "b", "a", fourth]


def test_children_not_visited_come_first_however_small_the_bonus():
    book = Book({"": [["a", "b", "c"]], "b": [["x"]], "c": [["x"]]}, {"a": 0.9, "b": 0.1, "c": 0.2, "x": 0.5})
    search(book, iterations=3, branch=3, rollout_steps=0, exploration=0.0)
    assert expanded_at(book, 3) == ["", "c", "b"]


def test_a_rollout_does_not_close_what_was_never_expanded():
    """A policy so sure that its samples agree, rolled out to the end: each node is still expanded in its turn."""
    book = Book(
        {
            "": [["a", "a"]],
            "a": [["b"], ["b", "c"]],
            "a / b": [["Answer: 7"], ["Answer: 7", "Answer: 7"]],  # a rollout, then the expansion
            "a / c": [["Answer: 8", "Answer: 9"]],
        },
        {"a": 0.3, "b": 0.6, "c": 0.5, "Answer: 7": 0.7, "Answer: 8": 0.6, "Answer: 9": 0.8},
    )
    tree = search(book, iterations=9, rollout_steps=9)
    assert expanded_at(book) == ["", "a", "a / c", "a / b"]
    assert (tree.stop, tree.visits[0]) == ("exhausted", 4)
    assert tree.copies[tree.text.index("Answer: 7")] == 3
    assert tree.final_answer == "7"


def test_rollouts_reach_the_end_and_take_the_best_of_each_step():
    book = Book(
        {"": [["a"]], "a": [["b", "c"]], "a / c": [["d", "e"]], "a / c / d": [["Answer: 7", "f"]]},
        {"a": 0.4, "b": 0.5, "c": 0.6, "d": 0.9, "e": 0.1, "Answer: 7": 0.8, "f": 0.2},
    )
    tree = search(book, iterations=1, branch=1, rollout_steps=100, rollout_branch=2, alpha=0.25)
    assert tree.text == ["", "a", "b", "c", "d", "e", "Answer: 7", "f"]
    assert tree.value[1] == pytest.approx(0.25 * 0.4 + 0.75 * 0.9)
    assert tree.value[0] == tree.value[1]
    assert tree.raw_value[1] == 0.4
    assert tree.final_answer == "7"


@pytest.mark.parametrize(
    ("settings", "warm"),
    [
        ({}, 0.0),
        ({"rollout_branch": 2}, 0.7),
        ({"rollout": "random"}, 0.7),
        ({"rollout_temperature": 0.3}, 0.3),
        ({"rollout_temperature": 0.3, "rollout": "random"}, 0.3),
    ],
)
def test_a_greedy_rollout_of_single_samples_takes_the_likeliest_steps(settings, warm):
    values = {"a": 0.9, "b": 0.1, "c": 0.1, "a1": 0.5, "a2": 0.1, "Answer: 7": 0.5}
    width = settings.get("rollout_branch", 1)
    book = Book({"": [["a", "b", "c"]], "a": [["a1", "a2"][:width]], "a / a1": [["Answer: 7"] * width]}, values)
    search(book, iterations=1, branch=3, rollout_steps=2, temperature=0.7, **settings)
    first, *rollout = book.asked(Propose)
    assert first.temperature == 0.7
    assert len(rollout) == 2
    assert {request.temperature for request in rollout} == {warm}


def test_a_dead_rollout_ends_and_its_steps_are_kept():
    book = Book({"": [["a"]], "a": [[Sample(Step("b"), "length")]]}, {"a": 0.4})
    tree = search(book, iterations=1, branch=1, rollout_steps=5)
    assert tree.status == ["open", "open", "dead"]
    assert tree.raw_value == [None, 0.4, None]  # what is dead is not worth asking about
    assert tree.value[1] == 0.4


# ---------------------------------------------------------------- how it ends


def test_only_a_finished_node_meets_the_threshold():
    book = Book(
        {"": [["a", "b"]], "b": [["c", "d"]], "a": [["Answer: 7", "Answer: 8"]]},
        {"a": 0.99, "b": 0.1, "c": 0.95, "d": 0.1, "Answer: 7": 0.95, "Answer: 8": 0.2},
    )
    tree = search(book, iterations=9, rollout_steps=0, threshold=0.9, exploration=0)
    assert expanded_at(book) == ["", "b", "a"]
    assert (tree.stop, tree.final_answer) == ("threshold", "7")


def test_the_threshold_ends_the_search_before_the_rollout():
    book = Book({"": [["Answer: 7", "b"]]}, {"Answer: 7": 0.9, "b": 0.1})
    tree = search(book, iterations=9, rollout_steps=5, threshold=0.9)
    assert (tree.stop, tree.final_answer, tree.visits) == ("threshold", "7", [1, 1, 0])
    assert tree.value[0] == 0.9


def test_a_value_below_the_threshold_does_not_finish_anything():
    book = Book({"": [["Answer: 7", "b"]], "b": [["Answer: 8", ""]]}, {"Answer: 7": 0.5, "b": 0.99, "Answer: 8": 0.6})
    tree = search(book, iterations=9, rollout_steps=0, threshold=0.9)
    assert tree.stop == "exhausted"  # nothing open is left, and finished leaves are not selected again
    assert tree.visits[0] == 2
    assert tree.final_answer == "8"
    assert tree.reason[-1] == "empty"


def test_nothing_but_dead_ends():
    book = Book({"": [["", Sample(Step("a"), "end")]]}, {})
    tree = search(book, iterations=9)
    assert (tree.stop, tree.result, tree.final_answer) == ("exhausted", None, None)
    assert not book.asked(Score)


def test_a_spent_budget_in_the_middle_of_an_iteration():
    steps = {"": [["Answer: 7", "b"]]}
    for requests, values in ((1, [None, None, None]), (2, [None, 0.5, 0.4])):
        book = Book(steps, {"Answer: 7": 0.5, "b": 0.4})
        tree = play(mcts_star(PROBLEM, SearchSettings(**PLAIN, branch=2), 0, TASK), book, requests=requests)
        assert (tree.stop, tree.final_answer, tree.raw_value) == ("budget", "7", values)


# ---------------------------------------------------------------- the self-critic


def test_the_critic_advises_the_expansion_and_not_the_rollout():
    book = Book(
        {"": [["a"]], "a": [["b"], ["c"]], "a / c": [["d"]]},
        {"a": 0.5, "b": 0.5, "c": 0.6, "d": 0.5},
        Verdict(solved=False, advice="Add them."),
    )
    search(book, iterations=2, self_critic=True, critic_tokens=11, branch=1)
    (asked,) = book.asked(Critique)
    assert path_text(asked.path) == "a"  # the root is no partial solution
    assert asked.max_tokens == 11
    assert [request.advice for request in book.asked(Propose)] == [None, None, "Add them.", None]


def test_end_of_inference_asks_for_the_answer():
    book = Book({"": [["a"]], "a": [["Answer: 7"]]}, {"a": 0.5, "Answer: 7": 0.8}, Verdict(solved=True))
    tree = search(book, iterations=9, self_critic=True, rollout_steps=0, branch=1)
    assert [request.advice for request in book.asked(Propose)] == [None, STATE_THE_ANSWER]
    assert tree.status == ["open", "open", "finished"]  # "solved" alone finishes nothing


def test_a_critic_that_fails_gives_no_advice():
    book = Book({"": [["a"]], "a": [["Answer: 7"]]}, {"a": 0.5, "Answer: 7": 0.8}, Failed("mute"))
    tree = search(book, iterations=9, self_critic=True, rollout_steps=0, branch=1)
    assert tree.failures == ["critique: mute"]
    assert (tree.stop, tree.final_answer) == ("exhausted", "7")


# ---------------------------------------------------------------- failures


def test_a_failed_expansion_leaves_the_node_open():
    book = Book({"": [Failed("busy"), ["a", "b"]]}, {"a": 0.5, "b": 0.4})
    tree = search(book, iterations=2, rollout_steps=0)
    assert tree.failures == ["propose: busy"]
    assert tree.visits == [2, 1, 0]
    assert tree.stop == "iterations"


def test_a_node_without_a_value_is_not_a_node_of_value_0():
    """V fails on the children of b: they are chosen by the value of b, and left out of what is backed up."""
    book = Book(
        {"": [["a", "b"]], "a": [["a1", "a2"]], "b": [["b1", "b2"]], "b / b2": [["Answer: 7", "Answer: 8"]]},
        {"a": 0.2, "b": 0.8, "a1": 0.1, "a2": 0.1, "b1": None, "b2": None, "Answer: 7": 0.7, "Answer: 8": 0.5},
    )
    tree = search(book, iterations=4, rollout_steps=0, exploration=0)
    assert tree.failures == ["score: no value"]
    assert expanded_at(book) == ["", "a", "b", "b / b2"]
    b1, b2 = tree.text.index("b1"), tree.text.index("b2")
    assert (tree.raw_value[b1], tree.value[b1], tree.visits[b1]) == (None, None, 1)
    assert (tree.raw_value[b2], tree.value[b2]) == (None, pytest.approx(0.6))
    assert tree.value[2] == pytest.approx(0.6)


def test_a_value_model_that_is_gone_ends_the_search():
    book = Book({"": [["a", "b"]], "a": [["c"]], "a / c": [["d"]]}, dict.fromkeys("abcd"))
    tree = search(book, iterations=99, rollout_steps=2)
    assert tree.stop == "failed"
    assert tree.failures == ["score: no value"] * 3
    assert tree.value == [0.0, None, None, None, None]


# ---------------------------------------------------------------- properties


@MANY
@given(settings=settings_strategy, seed=st.integers(0, 2**32), failures=st.sampled_from([0.0, 0.1]))
def test_counts_and_ends_of_any_search(settings, seed, failures):
    tree = play(mcts_star(PROBLEM, settings, seed, TASK), Noise(seed, failures))
    finished = [tree.raw_value[n] for n in tree.finished()]
    whole = settings.parallel == 1 or tree.stop not in ("threshold", "decided", "failed")  # nothing was in flight
    leaves = [n for n in range(len(tree)) if n not in tree.parent]
    early = settings.stop_decided or settings.stop_lead is not None
    assert (tree.stop == "threshold") == any(v is not None and v >= settings.threshold for v in finished)
    first = settings.greedy_first is not False and tree.stop == "threshold"  # the likeliest solution was good enough
    assert (0 if first else 1) <= tree.visits[0] <= settings.iterations
    assert (tree.stop == "iterations") <= (tree.visits[0] == settings.iterations)
    assert (tree.stop == "decided") <= (early and settings.answer_rule != "best" and bool(finished))
    if tree.stop == "exhausted":
        assert all(tree.status[n] != "open" for n in leaves)
    for node in range(len(tree)):
        below = [c for c in range(len(tree)) if tree.parent[c] == node and tree.status[c] != "finished"]
        assert sum(tree.visits[c] for c in below) <= tree.visits[node]
        assert tree.visits[node] == 1 or tree.status[node] != "finished" or not whole
        assert tree.visits[node] == 0 or tree.status[node] != "dead"
    if not failures and whole:
        assert all((tree.raw_value[n] is None) == (n == 0 or tree.status[n] == "dead") for n in range(len(tree)))


def test_a_search_begins_with_the_likeliest_solution():
    """Its steps are children like others: their parents are expanded in their turn, and its end takes part in votes."""
    book = Book(
        {"": [["a"], ["a", "b"]], "a": [["Answer: 7"]], "b": [["b1"]]},
        {"a": 0.4, "b": 0.6, "Answer: 7": 0.5, "b1": 0.3},
    )
    tree = search(book, iterations=1, greedy_first=True)
    assert tree.text == ["", "a", "Answer: 7", "b", "b1"]
    assert tree.origin == ["root", "greedy", "greedy", "expand", "rollout"]
    assert tree.iteration == [0, 0, 0, 1, 1]
    assert [(path_text(r.path), r.n, r.temperature) for r in book.asked(Propose)] == [
        ("", 1, 0.0),
        ("a", 1, 0.0),
        ("", 2, 0.7),
        ("b", 1, 0.0),
    ]
    assert (tree.copies[1], tree.visits[0], tree.final_answer) == (2, 1, "7")


def test_a_likeliest_solution_that_is_good_enough_is_all_there_is():
    book = Book({"": [["a"]], "a": [["Answer: 7"]]}, {"a": 0.4, "Answer: 7": 0.95})
    tree = search(book, greedy_first=True, threshold=0.9)
    assert (tree.text, tree.visits[0], tree.stop) == (["", "a", "Answer: 7"], 0, "threshold")


@pytest.mark.parametrize("first", [Failed("busy"), [""], ["Answer: 7"]])
def test_a_search_goes_on_from_however_its_likeliest_solution_ended(first):
    book = Book({"": [first, ["a", "b"]]}, {"a": 0.4, "b": 0.6, "Answer: 7": 0.5})
    tree = search(book, iterations=1, rollout_steps=0, greedy_first=True)
    assert tree.text[-2:] == ["a", "b"]
    assert (tree.visits[0], tree.stop) == (1, "iterations")


def test_the_likeliest_step_is_asked_for_once():
    """The second rollout goes through the first one's steps, and asks for what comes after them."""
    steps = {"": [["a", "a"]], "a": [["c"], ["c", "d"]], "a / c": [["e"]], "a / c / e": [["Answer: 7"]]}
    values = {"a": 0.6, "c": 0.6, "d": 0.2, "e": 0.6, "Answer: 7": 0.6}
    book = Book(steps, values)
    tree = search(book, iterations=2, rollout_steps=2)
    assert [path_text(request.path) for request in book.asked(Propose)] == ["", "a", "a / c", "a", "a / c / e"]
    assert tree.copies[tree.text.index("e")] == 1
    assert tree.visits[tree.text.index("c")] == 1


def test_widening_gives_a_node_more_children_as_it_is_visited():
    """b·N^w with b = 1 and w = 1: every visit but the first, which had its child, entitles the root to another one."""
    book = Book(
        {"": [["a"], ["b"], ["Answer: 7"]], "a": [["a1"]]},
        {"a": 0.6, "b": 0.5, "a1": 0.4, "Answer: 7": 0.9},
    )
    tree = search(book, iterations=4, branch=1, rollout_steps=0, widening=1.0)
    assert expanded_at(book, 1) == ["", "a", "", ""]
    assert tree.text == ["", "a", "a1", "b", "Answer: 7"]
    assert tree.visits[0] == 4


def test_widening_goes_on_where_nothing_is_left_and_greedy_steps_would_not():
    ends = {"": [["Answer: 7", "Answer: 8"], ["Answer: 9"], ["Answer: 7"]]}
    values = {"Answer: 7": 0.6, "Answer: 8": 0.7, "Answer: 9": 0.5}
    wide = search(Book(ends, values), iterations=3, rollout_steps=0, widening=0.5)
    assert [wide.text[n] for n in wide.finished()] == ["Answer: 7", "Answer: 8", "Answer: 9"]
    assert (wide.copies[1], wide.stop) == (2, "iterations")
    greedy = search(Book(ends, values), iterations=3, rollout_steps=0, widening=0.5, temperature=0.0)
    assert (len(greedy), greedy.stop) == (3, "exhausted")
