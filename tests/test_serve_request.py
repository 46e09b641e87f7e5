"""What the server makes of requests that anybody may have written, and of text that comes in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restmcts.config import load_config
from restmcts.search import SEARCHES, UNSCORED, SearchSettings
from restmcts.serve.refusal import Refusal
from restmcts.serve.reply import Cut, chosen_nodes
from restmcts.serve.request import Asked, Menu
from restmcts.types import Budget, Problem, Step, Tree

CONFIG = load_config(flags={"policy": "scripted"}, overrides=("serve.most_policy_tokens=5000", "search.samples=99"))
MENU = Menu(CONFIG, scored=True)
USER = [{"role": "user", "content": "What is 1 + 1?"}]

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
PARAMETERS = (
    "model messages stream stream_options temperature seed max_tokens max_completion_tokens stop restmcts n top_p "
    "tools response_format user metadata logit_bias nonsense"
).split()
OWN = [*SearchSettings.model_fields, "policy_tokens", "value_tokens", "seconds", "tree", "task", "nonsense"]


def read(**given: Any) -> Asked:
    return MENU.read(json.dumps({"model": "restmcts", "messages": USER, **given}).encode())


def check(asked: Asked) -> None:
    """What was let through is within all limits."""
    chosen, own = asked.errand.settings, CONFIG.search
    assert chosen.method in SEARCHES
    for name in ("samples", "branch", "rollout_branch", "parallel"):
        assert getattr(chosen, name) <= max(256, getattr(own, name))
    budget = asked.errand.limits()
    assert budget.policy_tokens is not None
    assert 1 <= budget.policy_tokens <= 5000
    assert budget.value_tokens is not None
    assert budget.seconds is not None
    assert 0 < budget.seconds <= 600
    assert asked.errand.problem.question.strip()


def refusal_of(body: bytes) -> Refusal | None:
    try:
        check(MENU.read(body))
    except Refusal as refusal:
        return refusal
    return None


def answered(body: bytes) -> None:
    """It is read, within all limits, or refused in a few words."""
    refusal = refusal_of(body)
    if refusal is not None:
        assert refusal.status in (400, 404)
        assert len(json.dumps(refusal.body())) < 15_000


quick = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(st.dictionaries(st.sampled_from(PARAMETERS), anything, max_size=6))
def test_whatever_the_parameters_are_it_is_read_or_refused(changed):
    answered(json.dumps({"model": "restmcts", "messages": USER, **changed}).encode())


@quick
@given(st.dictionaries(st.sampled_from(OWN), scalars, max_size=5))
def test_whatever_the_settings_are_they_are_within_limits_or_refused(changed):
    answered(json.dumps({"model": "restmcts", "messages": USER, "restmcts": changed}).encode())


@quick
@given(st.binary(max_size=60) | anything.map(lambda value: json.dumps(value).encode()))
def test_whatever_the_body_is_it_is_refused(body):
    with pytest.raises(Refusal):
        MENU.read(body)


@quick
@given(st.lists(st.dictionaries(st.sampled_from(["role", "content", "name"]), anything | st.sampled_from(
    ["user", "system", "assistant", "tool"]), max_size=3), max_size=4))  # fmt: skip
def test_whatever_the_messages_are_they_are_read_or_refused(messages):
    answered(json.dumps({"model": "restmcts", "messages": messages}).encode())


def test_the_smallest_budget_holds_and_methods_plan_with_what_was_asked_for():
    assert read().errand.settings == CONFIG.search
    assert read().errand.limits() == Budget(5000, 2_000_000, 600)
    asked = read(model="restmcts:sample@900", max_tokens=700, restmcts={"policy_tokens": 800, "seconds": 2})
    assert (asked.errand.settings.budget_tokens, asked.errand.settings.budget_seconds) == (700, 2)
    assert read(restmcts={"budget_tokens": 30}).errand.settings.budget_tokens == 30
    own = Menu(load_config(flags={"policy": "scripted"}, overrides=("search.budget_tokens=40",)), scored=True)
    body = json.dumps({"model": "restmcts", "messages": USER}).encode()
    assert own.read(body).errand.settings.budget_tokens == 40
    assert own.read(body).errand.limits().policy_tokens == 40


def test_the_sections_settings_win_over_the_protocols():
    asked = read(temperature=0.2, restmcts={"temperature": 0.9, "method": "best_of_n_min"})
    assert asked.errand.settings.temperature == 0.9
    assert (asked.errand.settings.method, asked.errand.settings.step_aggregation) == ("best_of_n", "min")
    assert read(temperature=0.2).errand.settings.temperature == 0.2
    assert read(n=1, top_p=1.0, tools=[], response_format={"type": "text"}, user="me").errand == read().errand


def test_without_a_value_model_only_methods_that_need_none_are_offered():
    menu = Menu(load_config(flags={"policy": "scripted"}, overrides=("search.method=cot",)), scored=False)
    assert set(menu.methods()) == UNSCORED


@quick
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.integers(1, 5))
def test_text_in_pieces_is_cut_as_in_one(text, stops, size):
    cut = Cut(stops)
    said = "".join(cut.feed(text[at : at + size]) for at in range(0, len(text), size)) + cut.rest()
    if any(stop in text for stop in stops):
        # As early as a whole stop has come: no text that was said holds one, and nothing was lost before it.
        assert cut.done
        assert text.startswith(said)
        assert not any(stop in said for stop in stops)
        assert any(text[len(said) :].startswith(stop) for stop in stops)
    else:
        assert said == text


def test_without_an_answer_the_most_that_there_is_is_chosen():
    tree = Tree(Problem("q", "?"), "sample", 0)
    assert chosen_nodes(tree) == []
    first = tree.add(0, Step("a"))
    tree.add(first, Step(" "), status="dead", reason="empty")
    assert chosen_nodes(tree) == [first]
    long = tree.add(tree.add(first, Step("b")), Step("c"), status="dead", reason="length")
    assert chosen_nodes(tree) == tree.nodes_to(long)
    ended = tree.add(0, Step("I do not know."), status="dead", reason="ended")
    assert chosen_nodes(tree) == [ended]
    tree.result = tree.add(0, Step("Answer: 1"), status="finished", answer="1")
    assert chosen_nodes(tree) == [tree.result]
