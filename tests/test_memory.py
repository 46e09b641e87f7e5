"""Engines with a memory: what is shared, what is paid, and that nobody can tell from the replies."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable
from typing import Any, TypeVar

import pytest

from restmcts import drive
from restmcts.account import Count
from restmcts.engines import Engines, TransientError
from restmcts.engines.memory import Memory
from restmcts.engines.scripted import ScriptedPolicy, ScriptedValue, scripted_engines
from restmcts.errors import EngineError
from restmcts.search import SEARCHES, SearchSettings
from restmcts.types import Critique, Problem, Proposals, Propose, Score, Scores, Step, Usage
from tests.test_drive import MATH, make

T = TypeVar("T")
PROBLEM = Problem("q", "What is 2 + 3 + 4?", "9")


def now(reply: Awaitable[T]) -> T:
    async def wait() -> T:
        return await reply

    return asyncio.run(wait())


def ask(n: int = 1, seed: int = 1, *, first: int = 0, **facts: Any) -> Propose:
    usual: dict[str, Any] = {"path": (), "temperature": 0.7, "max_tokens": 64}
    return Propose(facts.pop("problem", PROBLEM), n=n, seed=seed, first=first, **(usual | facts))


def remembering(engines: Engines | None = None) -> tuple[Memory, Count]:
    paid = Count()
    return Memory(engines or scripted_engines(), paid.add), paid


@pytest.mark.parametrize("first", [[(0, 8)], [(0, 3)], [(0, 3), (6, 2)], [(4, 2), (0, 1)]])
def test_samples_are_served_from_what_was_drawn_and_only_the_missing_ones_are_asked(first):
    alone = now(scripted_engines().policy.propose(ask(8)))
    memory, paid = remembering()
    for at, n in first:
        part = now(memory.engines.policy.propose(ask(n, first=at)))
        assert part.samples == alone.samples[at : at + n]
        assert part.usage.policy_tokens == sum(s.tokens or 0 for s in alone.samples[at : at + n])
    assert now(memory.engines.policy.propose(ask(8))) == alone
    assert paid.policy_tokens == alone.usage.policy_tokens or len(first) > 1  # a gap is filled in one request
    before = paid.policy_tokens, paid.requests
    assert now(memory.engines.policy.propose(ask(5))) == now(scripted_engines().policy.propose(ask(5)))
    assert (paid.policy_tokens, paid.requests) == before


def test_what_makes_another_request():
    memory, paid = remembering()
    now(memory.engines.policy.propose(ask(2)))
    once = paid.policy_tokens
    others = [
        ask(2, seed=2),
        ask(2, temperature=0.8),
        ask(2, max_tokens=3),
        ask(2, path=(Step("2 + 3 = 5"),)),
        ask(2, advice="Be careful."),
        ask(2, problem=Problem("other", "What is 2 + 3 + 4?", "9")),
    ]
    for number, other in enumerate(others, start=2):
        now(memory.engines.policy.propose(other))
        assert paid.requests == number
    assert paid.policy_tokens > once
    greedy = [now(memory.engines.policy.propose(ask(1, seed=seed, temperature=0.0))) for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    assert paid.requests == len(others) + 2  # the seed of a greedy sample does not matter


def test_a_sample_that_ends_by_itself_is_the_same_under_any_limit_that_leaves_it_room():
    most = max(sample.tokens or 0 for sample in now(scripted_engines().policy.propose(ask(4))).samples)
    memory, paid = remembering()
    for limit in (64, most, 100):
        alone = now(scripted_engines().policy.propose(ask(4, max_tokens=limit)))
        assert now(memory.engines.policy.propose(ask(4, max_tokens=limit))) == alone
    assert paid.requests == 1
    for _ in range(2):  # one that a limit cuts short is another, and remembered as well
        cut = now(memory.engines.policy.propose(ask(4, max_tokens=most - 1)))
        assert cut == now(scripted_engines().policy.propose(ask(4, max_tokens=most - 1)))
        assert paid.requests == 2
    assert now(memory.engines.policy.propose(ask(4))) == now(scripted_engines().policy.propose(ask(4)))
    assert paid.requests == 2


def test_values_are_remembered_path_by_path():
    paths = tuple((Step(f"2 + 3 = {k}"),) for k in range(4, 8))
    memory, paid = remembering()
    value = memory.engines.value
    assert value is not None
    for some in (paths[:2], paths[1:3], paths, paths[::-1], (paths[0], paths[0])):
        assert now(value.score(Score(PROBLEM, some))) == now(scripted_engines().value.score(Score(PROBLEM, some)))
    assert paid.value_tokens == sum(now(scripted_engines().value.score(Score(PROBLEM, (p,)))).usage.value_tokens
                                    for p in paths)  # fmt: skip
    assert paid.value_requests == 3


def test_verdicts_are_remembered():
    memory, paid = remembering()
    asked = Critique(PROBLEM, (Step("2 + 3 = 5"),), 1, 48)
    first, second = (now(memory.engines.policy.critique(asked)) for _ in range(2))
    assert first == second == now(scripted_engines().policy.critique(asked))
    assert paid.requests == 1


def test_what_is_forgotten_is_asked_again():
    memory, paid = remembering()
    now(memory.engines.policy.propose(ask(1)))
    now(memory.engines.policy.propose(ask(1, problem=make(1)[0])))
    assert len(memory) == 2
    memory.forget("q")
    memory.forget("q")
    assert len(memory) == 1
    now(memory.engines.policy.propose(ask(1)))
    assert paid.requests == 3


class Flaky(ScriptedPolicy):
    """Fails whenever it is told to, after a while."""

    fail = 0

    async def propose(self, request: Propose) -> Proposals:
        await asyncio.sleep(0.001)
        if self.fail:
            self.fail -= 1
            raise TransientError("not now", usage=Usage(policy_tokens=1, requests=1))
        return await super().propose(request)


def test_equal_requests_wait_for_one_another_and_outlive_the_failure_of_the_first():
    policy = Flaky(lambda request, seed: f"step {seed % 97}")
    memory, paid = remembering(Engines(policy))

    async def together(*requests: Propose) -> list[Any]:
        return await asyncio.gather(*map(memory.engines.policy.propose, requests), return_exceptions=True)

    alone = now(Flaky(lambda request, seed: f"step {seed % 97}").propose(ask(6)))
    replies = asyncio.run(together(ask(4), ask(4), ask(6), ask(2)))
    assert [reply.samples for reply in replies] == [alone.samples[:n] for n in (4, 4, 6, 2)]
    assert (paid.policy_tokens, paid.requests) == (alone.usage.policy_tokens, 2)

    policy.fail = 1
    failed, *others = asyncio.run(together(*[ask(2, seed=5)] * 3))
    assert isinstance(failed, TransientError)
    assert others[0] == others[1] == now(Flaky(lambda request, seed: f"step {seed % 97}").propose(ask(2, seed=5)))
    assert paid.policy_tokens == alone.usage.policy_tokens + 1 + others[0].usage.policy_tokens


def test_a_request_that_is_cancelled_is_left_to_the_others():
    memory, paid = remembering(Engines(Flaky(lambda request, seed: "a step")))

    async def together() -> Proposals:
        first, second = (asyncio.create_task(memory.engines.policy.propose(ask())) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert [sample.step.text for sample in asyncio.run(together()).samples] == ["a step"]
    assert paid.requests == 1


def test_costs_that_an_engine_does_not_tell_apart_are_shared_out():
    class Silent(ScriptedPolicy):
        async def propose(self, request: Propose) -> Proposals:
            reply = await super().propose(request)
            import dataclasses

            samples = tuple(dataclasses.replace(sample, tokens=None) for sample in reply.samples)
            return dataclasses.replace(reply, samples=samples, usage=Usage(policy_tokens=11, requests=1))

    class SilentValue(ScriptedValue):
        async def score(self, request: Score) -> Scores:
            return Scores((await super().score(request)).values, Usage(value_tokens=7, requests=1))

    memory, _ = remembering(Engines(Silent(lambda request, seed: "a"), SilentValue(lambda problem, path: 0.5)))
    assert now(memory.engines.policy.propose(ask(4))).usage.policy_tokens == 11
    parts = [now(memory.engines.policy.propose(ask(1, first=i))).usage.policy_tokens for i in range(4)]
    assert sum(parts) == 11
    assert max(parts) - min(parts) == 1
    paths = tuple((Step(str(k)),) for k in range(3))
    assert now(memory.engines.value.score(Score(PROBLEM, paths))).usage.value_tokens == 7
    assert now(memory.engines.value.score(Score(PROBLEM, paths[:1]))).usage.value_tokens in (2, 3)


def test_an_engine_that_gives_the_wrong_number_of_values_is_found_out():
    class Miscounting(ScriptedValue):
        async def score(self, request: Score) -> Scores:
            return Scores((0.5,) * (len(request.paths) + 1))

    memory, _ = remembering(Engines(scripted_engines().policy, Miscounting(lambda problem, path: 0.5)))
    with pytest.raises(EngineError, match="one for each is needed"):
        run(memory.engines, [("mcts_star", 100, 0)])


# ---------------------------------------------------------------- searches


def run(engines: Engines, arms: list[tuple[str, int, int]], concurrency: int = 40) -> dict[Any, Any]:
    """The trees of some questions, by (method, budget, seed, question), less what the clock says."""
    found = {}
    errands = [
        drive.Errand(
            problem,
            SEARCHES[method],
            SearchSettings(method=method, samples=budget, iterations=budget, budget_tokens=budget, self_critic=True),
            seed,
            MATH,
        )
        for problem in make(6)
        for method, budget, seed in arms
    ]

    def keep(errand: drive.Errand, tree: Any) -> None:
        record = tree.to_record()
        del record["usage"]["seconds"]
        found[tree.method, errand.settings.budget_tokens, errand.seed, tree.problem.id] = record

    drive.run_errands(errands, engines, concurrency=concurrency, on_tree=keep)
    return found


def test_no_tree_can_tell_that_there_is_a_memory():
    arms = list(itertools.product(SEARCHES, (30, 60, 120, 240), (0, 1)))
    memory, paid = remembering(scripted_engines(latency=0.001))
    together = run(memory.engines, arms)
    alone: dict[Any, Any] = {}
    for arm in arms:
        alone |= run(scripted_engines(), [arm], concurrency=1)
    assert together == alone
    asked = sum(record["usage"]["policy_tokens"] for record in alone.values())
    assert 0 < paid.policy_tokens < 0.7 * asked


def test_a_pool_of_chains_serves_all_smaller_ones():
    memory, paid = remembering()
    for samples in (64, 1, 2, 4, 8, 16, 32):
        for method, rule in (("sample", "majority"), ("sample", "weighted")):
            before = paid.policy_tokens
            drive.run(
                make(5),
                SEARCHES[method],
                SearchSettings(method=method, samples=samples, answer_rule=rule),
                memory.engines,
                task_of=lambda problem: MATH,
                seed=3,
                concurrency=5,
                on_tree=lambda tree: None,
            )
            assert (paid.policy_tokens > before) == (samples == 64 and rule == "majority")
