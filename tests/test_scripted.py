"""The engines without a model: functions as engines, and the built-in arithmetic pair."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restmcts.engines.scripted import (
    ScriptedPolicy,
    ScriptedValue,
    advise,
    check_steps,
    load_scripted,
    read_expression,
    scripted_engines,
    solve_step,
)
from restmcts.types import Critique, Problem, Proposals, Propose, Sample, Score, Step, Verdict
from tests.playing import ANY, MANY

T = TypeVar("T")


def now(awaitable: Awaitable[T]) -> T:
    async def wait() -> T:
        return await awaitable

    return asyncio.run(wait())


def steps(*texts: str) -> tuple[Step, ...]:
    return tuple(map(Step, texts))


def ask(question: str, *path: str, n: int = 1, seed: int = 0, temperature: float = 0.7, most: int = 99) -> Propose:
    return Propose(Problem("p", question), steps(*path), n, seed, temperature, most)


def texts(proposals: Proposals) -> list[str]:
    return [sample.step.text for sample in proposals.samples]


# ---------------------------------------------------------------- functions as engines


def test_a_function_is_a_policy():
    policy = ScriptedPolicy(lambda request, seed: f"{len(request.path)} {seed % 7}")
    reply = now(policy.propose(ask("?", "a", n=5)))
    assert len(reply.samples) == 5
    assert all(sample.finish == "step" and sample.step.text.startswith("1 ") for sample in reply.samples)
    assert reply.samples == now(policy.propose(ask("?", "a", n=5))).samples
    assert reply.samples[:2] == now(policy.propose(ask("?", "a", n=2))).samples  # sample i has its own seed
    assert texts(reply) != texts(now(policy.propose(ask("?", "a", n=5, seed=1))))


def test_greedy_depends_on_question_and_path_alone():
    policy = ScriptedPolicy(lambda request, seed: str(seed))
    (said,) = set(texts(now(policy.propose(ask("?", n=3, seed=1, temperature=0)))))
    assert texts(now(policy.propose(ask("?", seed=2, temperature=0)))) == [said]
    assert texts(now(policy.propose(ask("?", "a", seed=1, temperature=0)))) != [said]


def test_words_are_tokens():
    policy = ScriptedPolicy(lambda request, seed: Sample(Step("one two three"), "end"))
    reply = now(policy.propose(ask("What now?", "a b", n=2)))
    assert (reply.usage.policy_tokens, reply.usage.prompt_tokens, reply.usage.requests) == (8, 5, 1)
    cut = now(policy.propose(ask("?", most=2)))
    assert cut.samples == (Sample(Step("one two"), "length"),)
    assert cut.usage.policy_tokens == 2
    value = ScriptedValue(lambda problem, path: 0.25 * len(path))
    scores = now(value.score(Score(Problem("p", "What now?"), (steps("a b"), steps("a b", "c")))))
    assert (scores.values, scores.usage.value_tokens) == ((0.25, 0.5), 5 + 7)


def test_critics():
    request = Critique(Problem("p", "?"), steps("a"), seed=0, max_tokens=1)
    assert not now(ScriptedPolicy(lambda request, seed: "").critique(request)).solved
    critic = ScriptedPolicy(lambda request, seed: "", lambda request: Verdict(solved=False, advice="Think twice."))
    verdict = now(critic.critique(request))
    assert (verdict.advice, verdict.usage.policy_tokens) == ("Think twice.", 1)


def test_latency_shuffles_arrival_and_nothing_else():
    async def arrivals(order: int) -> tuple[list[int], list[Proposals]]:
        policy, _ = load_scripted(latency=0.02, order=order)
        arrived: list[int] = []

        async def one(i: int) -> Proposals:
            reply = await policy.propose(ask("What is 2 + 3?", seed=i))
            arrived.append(i)
            return reply

        return arrived, await asyncio.gather(*map(one, range(20)))

    (first, replies), (second, same) = (asyncio.run(arrivals(order)) for order in (0, 1))
    assert first != sorted(first)
    assert first != second
    assert replies == same


# ---------------------------------------------------------------- the built-in pair


@pytest.mark.parametrize(
    ("question", "expression"),
    [
        ("What is 3 + 4 - 2?", "3 4 + 2 -"),
        ("What is 12 * 7 + 5?", "12 7 * 5 +"),
        ("What is 5 + 12 × 7?", "5 12 7 * +"),
        ("Work out 2 - 3 - 4.", "2 3 - 4 -"),
        ("Compute (1 + 2)*(3 - -4).", "1 2 + 3 -4 - *"),
        ("-5 + 3 = ?", "-5 3 +"),
        ("Chapter 7: 12-(3+4)*2, page 5", "12 3 4 + 2 * -"),
        ("Tom has 3 apples and buys 14 more. And 2?", "3 14 + 2 +"),  # a word problem: a guess
        ("What is 5?", "5"),
        ("What is (3 + 4?", "3 4 +"),
        ("3 + * 4", "3 4 +"),
        ("2 (3)", "2 3 +"),
        ("9" * 40 + " + 1", "1"),
        ("Why?", ""),
        ("", ""),
        ("²₃ + x", ""),
    ],
)
def test_expressions(question, expression):
    assert " ".join(map(str, read_expression(question))) == expression


@MANY
@given(st.text(alphabet="0123456789+-*() .x×", max_size=40))
def test_no_question_is_too_odd(question):
    expression = read_expression(question)
    if not expression:
        return
    path: tuple[Step, ...] = ()
    for _ in range(len(expression) + 1):
        said = solve_step(Propose(Problem("p", question), path, 1, 0, 0.0, 99), seed=0)
        if isinstance(said, Sample):
            break
        path = (*path, Step(said))
        assert 0 <= check_steps(Problem("p", question), path) <= 1
    assert isinstance(said, Sample)
    assert said.step.text.startswith("Answer: ")


expressions = st.recursive(
    st.integers(0, 99).map(str),
    lambda e: st.tuples(e, st.sampled_from("+-*"), e).map("({0[0]} {0[1]} {0[2]})".format),
    max_leaves=8,
)


@ANY
@given(expressions)
def test_right_steps_lead_to_the_right_answer(expression):
    """Taken literally, the mistakes left out, the steps are the usual arithmetic."""
    problem = Problem("p", f"What is {expression}?")
    steps_in_all = 1 + sum(expression.count(sign) for sign in "+-*")
    path: tuple[Step, ...] = ()
    while True:
        verdict = advise(Critique(problem, path, 0, 9))
        if verdict.solved:
            break
        assert verdict.advice is not None
        a, sign, b = verdict.advice.removeprefix("Work out ").removesuffix(" next.").split(" ")
        result = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
        path = (*path, Step(f"{a} {sign} {b} = {result}"))
        assert check_steps(problem, path) == pytest.approx(len(path) / steps_in_all, abs=0.15)
    said = solve_step(Propose(problem, path, 1, 0, 0.0, 99), seed=0)
    assert isinstance(said, Sample)
    assert said.step.text == f"Answer: {eval(expression)}"
    assert check_steps(problem, (*path, said.step)) > 0.8


def test_the_solver_makes_more_mistakes_the_hotter_it_is():
    def wrong(temperature: float) -> int:
        said = [solve_step(ask("What is 2 + 3?", temperature=temperature), seed) for seed in range(500)]
        return sum(isinstance(text, str) and not text.endswith(" = 5") for text in said)

    assert 10 < wrong(0.0) < wrong(0.7) < wrong(2.0) < 400


def test_the_checker_tells_right_from_wrong():
    problem = Problem("p", "What is 2 + 3 * 4?")
    right = ("3 * 4 = 12", "Next, 2 + 12 = 14", "Answer: 14")
    values = [check_steps(problem, steps(*right[:k])) for k in (1, 2, 3)]
    assert values == pytest.approx([1 / 3, 2 / 3, 1], abs=0.15)
    assert values == [check_steps(problem, steps(*right[:k])) for k in (1, 2, 3)]
    for wrong in (
        ("3 * 4 = 13",),
        ("2 + 3 = 5",),  # not what comes first
        ("3 * 4 = 12", "2 + 12 = 15"),
        ("3 * 4 = 12", "2 + 12 = 15", "Answer: 15"),  # right after a mistake
        ("3 * 4 = 12", "2 + 12 = 14", "Answer: 15"),
        ("Let me think.", "Answer: 14"),
    ):
        assert check_steps(problem, steps(*wrong)) < 0.35, wrong


def test_a_question_without_numbers_is_given_up():
    said = solve_step(ask("Why?"), 0)
    assert said == Sample(Step("There is nothing to work out here."), "end")


def test_the_pair():
    policy, value = load_scripted()
    engines = scripted_engines()
    assert (policy.identity, value.identity) == ("scripted-solver", "scripted-checker")
    assert engines.value is not None
    assert (engines.policy.identity, engines.value.identity) == (policy.identity, value.identity)
    assert policy.tokenizer_id is value.tokenizer_id is None
    now(engines.close())
