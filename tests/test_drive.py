"""Search meets engines: independence of concurrency, budgets, retries, failures, interruption."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from restmcts import drive
from restmcts.account import Account
from restmcts.engines import Busy, Engines, TransientError
from restmcts.engines.scripted import ScriptedPolicy, ScriptedValue, load_scripted, scripted_engines
from restmcts.errors import ConfigError, EngineError
from restmcts.search import SEARCHES, SearchSettings
from restmcts.search.nodes import Search
from restmcts.seeds import derive_seed
from restmcts.tasks import Task, get_task
from restmcts.types import (
    Budget,
    Critique,
    Problem,
    Proposals,
    Propose,
    Sample,
    Score,
    Scores,
    Step,
    Tree,
    Usage,
    Verdict,
)
from tests.playing import PLAIN

MATH = get_task("math")


def make(count: int, terms: int = 3) -> list[Problem]:
    numbers = [[derive_seed(i, k) % 20 for k in range(terms)] for i in range(count)]
    return [Problem(f"q{i}", f"What is {' + '.join(map(str, n))}?", str(sum(n))) for i, n in enumerate(numbers)]


def search(
    problems: Any,
    engines: Engines,
    *,
    method: str | Callable[..., Search] = "mcts_star",
    concurrency: int = 8,
    on_tree: Callable[[Tree], None] | None = None,
    account: Account | None = None,
    questions: int | None = None,
    **settings: object,
) -> list[Tree]:
    trees: list[Tree] = []
    drive.run(
        problems,
        SEARCHES[method] if isinstance(method, str) else method,
        SearchSettings(**({"iterations": 4, "rollout_steps": 3} | settings)),
        engines,
        task_of=lambda problem: MATH,
        seed=7,
        concurrency=concurrency,
        on_tree=on_tree or trees.append,
        account=account,
        questions=questions,
    )
    return trees


def records(trees: list[Tree]) -> dict[str, dict[str, Any]]:
    """The trees by problem, less what the clock says."""
    found = {tree.problem.id: tree.to_record() for tree in trees}
    assert len(found) == len(trees)
    for record in found.values():
        del record["usage"]["seconds"]
    return found


# ---------------------------------------------------------------- concurrency


@pytest.mark.parametrize("method", SEARCHES)
def test_the_same_trees_at_any_width(method):
    problems = make(300)
    options: dict[str, Any] = {"method": method, "self_critic": True, "samples": 3}
    alone = search(problems, scripted_engines(), concurrency=1, **options)
    assert [tree.problem for tree in alone] == problems
    for width in (7, 300):
        latency = 0.0005 if width == 7 else 0.01
        shuffled = search(problems, scripted_engines(latency=latency, order=width), concurrency=width, **options)
        assert [tree.problem.id for tree in shuffled] != [problem.id for problem in problems]
        assert records(shuffled) == records(alone)
    assert len({str(tree.text) for tree in alone}) > 100


def test_the_scripted_pair_gains_by_searching():
    problems = make(60, terms=5)

    def right(**options: Any) -> int:
        return sum(tree.final_answer == tree.problem.answer for tree in search(problems, scripted_engines(), **options))

    greedy = right(method="cot", temperature=0)
    assert greedy < 50
    assert right(iterations=16, rollout_steps=32) > greedy + 5


@pytest.mark.parametrize("method", [method for method in SEARCHES if method != "cot"])
def test_every_method_makes_something_of_its_budget(method):
    """A budget of eight chains: beams and breadth-first search share it out, the others take what is there."""
    problems = make(60, terms=5)

    def right(**options: Any) -> int:
        options |= {"budget_tokens": 250, "step_tokens": 9, "temperature": 1.0, "branch": 4}
        trees = search(problems, scripted_engines(), **options)
        assert all(tree.usage.policy_tokens <= 250 for tree in trees)
        return sum(tree.final_answer == tree.problem.answer for tree in trees)

    one = right(method="cot")
    assert one < 30
    whole = method in ("beam", "tot_bfs")
    many: dict[str, Any] = {"samples": 8 if whole else 1000, "iterations": 1000, "threshold": 2.0, "rollout_steps": 32}
    assert right(method=method, **many) >= one + 10


def test_problems_are_drawn_as_trees_finish():
    drawn, done = 0, 0

    def endless() -> Iterator[Problem]:
        nonlocal drawn
        for problem in make(60):
            drawn += 1
            yield problem

    def on_tree(tree: Tree) -> None:
        nonlocal done
        done += 1
        assert drawn <= done + 5

    search(endless(), scripted_engines(latency=0.001), concurrency=5, on_tree=on_tree)
    assert done == drawn == 60


def test_nothing_to_do_and_no_way_to_do_it():
    assert search([], scripted_engines()) == []
    with pytest.raises(ConfigError, match="concurrency = 0"):
        search(make(1), scripted_engines(), concurrency=0)


def test_a_tree_tells_what_made_it_and_what_it_cost():
    (tree,) = search(make(1), scripted_engines(latency=0.002), self_critic=True)
    assert tree.models == {"policy": "scripted-solver", "value": "scripted-checker", "tokenizer": None}
    assert tree.seed == derive_seed(7, "q0")
    usage = tree.usage
    assert min(usage.policy_tokens, usage.prompt_tokens, usage.value_tokens, usage.requests, usage.seconds) > 0
    steps = sum(len(tree.text[n].split()) * tree.copies[n] + tree.copies[n] for n in range(1, len(tree)))
    assert usage.policy_tokens >= steps
    (tree,) = search(make(1), Engines(load_scripted()[0]), method="cot")
    assert tree.models["value"] is None


def test_also_from_within_an_event_loop():
    async def notebook() -> list[Tree]:
        return search(make(3), scripted_engines())

    assert records(asyncio.run(notebook())) == records(search(make(3), scripted_engines()))

    async def failing() -> list[Tree]:
        return search(make(3), Engines(load_scripted()[0]))

    with pytest.raises(ConfigError, match="no value model"):
        asyncio.run(failing())


# ---------------------------------------------------------------- several expansions of one tree in flight


class Watched:
    """The scripted pair; knows how many requests are in flight, for each question and in all."""

    def __init__(self, latency: float = 0.002, order: int = 0) -> None:
        self.policy, self.value = load_scripted(latency=latency, order=order)
        self.identity, self.tokenizer_id, self.busy_seconds = "watched", None, 0.0
        self.flying: dict[str, int] = {}
        self.most = 0

    async def _watch(self, request: Any, reply: Any) -> Any:
        name = request.problem.id
        self.flying[name] = self.flying.get(name, 0) + 1
        self.most = max(self.most, self.flying[name])
        try:
            return await reply
        finally:
            self.flying[name] -= 1

    async def propose(self, request: Propose) -> Proposals:
        return await self._watch(request, self.policy.propose(request))

    async def critique(self, request: Critique) -> Verdict:
        return await self._watch(request, self.policy.critique(request))

    async def score(self, request: Score) -> Scores:
        return await self._watch(request, self.value.score(request))

    async def close(self) -> None: ...


def watched() -> Engines:
    engine = Watched(latency=0)
    return Engines(engine, engine)


@pytest.mark.parametrize("method", ["mcts_star", "sample"])
def test_a_tree_depends_on_how_many_are_in_flight_and_not_on_who_is_first(method):
    options: dict[str, Any] = {"method": method, "iterations": 12, "samples": 8, "threshold": 2, "parallel": 12}
    problems = make(3, terms=5)
    seen = []
    for order in range(3):
        engine = Watched(order=order)
        seen.append(records(search(problems, Engines(engine, engine), concurrency=1 + order, **options)))
        assert engine.most > 2
        assert engine.most <= 4  # 12 shared by three
    assert seen[0] == seen[1] == seen[2]
    assert {record["settings"]["parallel"] for record in seen[0].values()} == {4}
    alone = records(search(problems, watched(), **(options | {"parallel": 1})))
    assert any(alone[name]["text"] != seen[0][name]["text"] for name in alone)
    # Those left after an interruption become what they would have been.
    rest = records(search(problems[2:], watched(), questions=3, **options))
    assert rest == {"q2": seen[0]["q2"]}


def test_many_trees_have_one_expansion_in_flight_each():
    engine = Watched()
    trees = search(make(20), Engines(engine, engine), parallel=20)
    assert engine.most == 1
    assert records(trees) == records(search(make(20), watched(), parallel=1))
    assert records(trees) == records(search(iter(make(20)), watched(), parallel=20))  # who knows how many


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize("parallel", [1, 4])
def test_a_token_budget_is_never_exceeded(method, parallel):
    stops = set()
    for budget in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 1000):
        options: dict[str, Any] = {"budget_tokens": budget, "step_tokens": 8, "self_critic": True, "threshold": 2}
        options |= {"parallel": 8 * parallel}
        for tree in search(make(8, terms=4), scripted_engines(), method=method, **options):
            assert sum(tree.copies[1:]) <= tree.usage.policy_tokens
            assert tree.usage.policy_tokens <= budget
            assert (tree.result is None) == (not tree.finished())
            stops.add(tree.stop)
            if tree.stop != "budget":
                assert budget > 13
            assert "length" not in tree.reason  # a step that only the budget cut is no step
    assert "budget" in stops
    assert len(stops) > 1


def test_a_request_is_cut_to_fewer_samples_before_shorter_ones():
    asked: dict[int, tuple[int, int]] = {}

    def script(request: Propose, seed: int) -> str:
        asked[request.seed] = request.n, request.max_tokens
        return "a step of six words only"  # 7 tokens with its delimiter

    value = ScriptedValue(lambda problem, path: 0.5)
    options: dict[str, Any] = {"branch": 3, "step_tokens": 8, "rollout_steps": 0, "budget_tokens": 44} | PLAIN
    (tree,) = search(make(1), Engines(ScriptedPolicy(script), value), **options)
    # 44 − 3·7 = 23 < 3·8: two samples; 23 − 2·7 = 9: one; 2 are left for a step of 7, which is cut and dropped.
    assert list(asked.values()) == [(3, 8), (2, 8), (1, 8), (1, 2)]
    assert (tree.stop, tree.usage.policy_tokens) == ("budget", 44)
    assert tree.copies == [1, 3, 2, 1]
    assert set(tree.text[1:]) == {"a step of six words only"}


def test_no_more_scores_once_the_value_budget_is_spent():
    (tree,) = search(make(1), scripted_engines(), budget_value_tokens=1)
    assert tree.stop == "budget"
    assert tree.usage.value_tokens > 1  # the one score that reached it
    assert tree.usage.requests <= 3


@pytest.mark.parametrize("parallel", [1, 5])
def test_a_value_budget_is_exceeded_by_what_is_in_flight_at_most(parallel):
    costs: list[int] = []

    class Costly(ScriptedValue):
        async def score(self, request: Score) -> Scores:
            scores = await super().score(request)
            costs.append(scores.usage.value_tokens)
            return scores

    value = Costly(lambda problem, path: 0.5, latency=0.001)
    for budget in (40, 200, 1000):
        costs.clear()
        options: dict[str, Any] = {"parallel": parallel, "iterations": 40, "threshold": 2}
        (tree,) = search(make(1, 6), Engines(load_scripted()[0], value), budget_value_tokens=budget, **options)
        assert tree.usage.value_tokens == sum(costs)
        assert tree.usage.value_requests == len(costs)
        assert (tree.stop == "budget") == (sum(costs) >= budget)
        assert sum(costs[:-parallel]) < budget


def test_the_budget_of_a_stage():
    problems = make(60, terms=5)
    whole = records(search(problems, watched(), iterations=9))
    for name, asked_at_once in (("policy_tokens", 3 * 256), ("value_tokens", 3 * 60)):
        spent = sum(record["usage"][name] for record in whole.values())
        account = Account(Budget(**{name: spent // 2}))
        engine = Watched()
        trees = search(problems, Engines(engine, engine), iterations=9, concurrency=5, account=account)
        assert account.spent()
        total = sum(getattr(tree.usage, name) for tree in trees)
        assert total == getattr(account.count, name)
        assert spent // 2 <= total < spent // 2 + 5 * asked_at_once
        cut = [tree for tree in trees if tree.stop == "stage_budget"]
        assert len(trees) < 50
        assert 0 < len(cut) <= 5
        assert all(len(tree) > 1 for tree in cut)
        assert not any(engine.flying.values())
        done = {name: record for name, record in records(trees).items() if record["stop"] != "stage_budget"}
        assert done == {name: whole[name] for name in done}
    nothing = Account(Budget(policy_tokens=9), earlier=Usage(policy_tokens=9))
    assert search(problems, scripted_engines(), account=nothing) == []


def test_the_seconds_of_a_stage():
    slow = ScriptedPolicy(lambda request, seed: f"step {seed}", latency=1000.0)
    (tree,) = search(make(9), Engines(slow), method="cot", concurrency=1, account=Account(Budget(seconds=0.05)))
    assert (tree.stop, len(tree)) == ("stage_budget", 1)
    assert search(make(9), Engines(slow), account=Account(Budget(seconds=5.0), elapsed=5.0)) == []


def test_seconds_are_a_hard_limit():
    slow = ScriptedPolicy(lambda request, seed: "a step", latency=1000.0)
    (tree,) = search(make(1), Engines(slow), method="cot", budget_seconds=0.05)
    assert (tree.stop, tree.usage.requests) == ("budget", 0)
    assert 0.04 < tree.usage.seconds < 5
    trees = search(make(3), scripted_engines(latency=0.01), budget_seconds=0.06, iterations=10**6, threshold=2)
    assert {tree.stop for tree in trees} <= {"budget", "exhausted"}


def test_a_method_that_goes_on_asking_is_a_bug():
    def greedy(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
        while True:
            try:
                yield Propose(problem, (), 1, seed, 0.0, 9)
            except drive.BudgetExhausted:
                continue

    with pytest.raises(RuntimeError, match="went on asking"):
        search(make(1), scripted_engines(), method=greedy, budget_tokens=20)


# ---------------------------------------------------------------- failures


class Shaky:
    """The scripted pair, but every request fails `failures` times first."""

    def __init__(self, failures: int, error: type[Exception] = TransientError) -> None:
        self.policy, self.value = load_scripted()
        self.identity, self.tokenizer_id, self.busy_seconds = "shaky", None, 0.0
        self.failures, self.error = failures, error
        self.seen: dict[object, int] = {}

    async def _shake(self, request: object) -> None:
        self.seen[request] = self.seen.get(request, 0) + 1
        if self.seen[request] <= self.failures:
            raise self.error("not just now")

    async def propose(self, request: Propose) -> Proposals:
        await self._shake((request.problem.id, request.seed))
        return await self.policy.propose(request)

    async def critique(self, request: Critique) -> Verdict:
        await self._shake((request.problem.id, request.seed))
        return await self.policy.critique(request)

    async def score(self, request: Score) -> Scores:
        await self._shake((request.problem.id, request.paths))
        return await self.value.score(request)

    async def close(self) -> None: ...


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(drive, "FIRST_PAUSE", 0.0)


def test_what_fails_for_the_moment_is_asked_again(no_pauses):
    shaky = Shaky(drive.RETRIES)
    trees = search(make(4), Engines(shaky, shaky), self_critic=True)
    assert not any(tree.failures for tree in trees)
    calm = search(make(4), scripted_engines(), self_critic=True)
    assert {tree.problem.id: tree.text for tree in trees} == {tree.problem.id: tree.text for tree in calm}
    assert set(shaky.seen.values()) == {drive.RETRIES + 1}


def test_what_keeps_failing_is_recorded_as_a_failure(no_pauses):
    for method, failures in (("mcts_star", 3), ("cot", 1)):
        shaky = Shaky(10**6)
        (tree,) = search(make(1), Engines(shaky, shaky), method=method)
        assert (tree.stop, tree.result, len(tree)) == ("failed", None, 1)
        assert tree.failures == ["propose: not just now"] * failures
        assert set(shaky.seen.values()) == {drive.RETRIES + 1}


@pytest.mark.parametrize(
    ("error", "message"),
    [(EngineError, "not just now"), (MemoryError, "out of memory; lower engine.concurrency")],
)
def test_an_engine_that_is_gone_stops_everything(error, message):
    """Trees that were done are delivered; the searches that were not are closed."""
    closed, done = [], []

    def watched(problem: Problem, settings: SearchSettings, seed: int, task: Task) -> Search:
        try:
            return (yield from SEARCHES["mcts_star"](problem, settings, seed, task))
        except GeneratorExit:
            closed.append(problem.id)
            raise

    policy, value = load_scripted(latency=0.001)
    asked = 0

    class Mortal(Shaky):
        async def propose(self, request: Propose) -> Proposals:
            nonlocal asked
            asked += 1
            if asked > 100:
                raise error("not just now")
            return await policy.propose(request)

    with pytest.raises(EngineError, match=message):
        search(make(99), Engines(Mortal(0), value), method=watched, concurrency=5, on_tree=done.append)
    assert done
    assert all(tree.stop != "running" for tree in done)
    assert len(closed) == 5


def test_what_a_method_or_a_listener_raises_comes_through():
    def broken(*_: object) -> Search:
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        search(make(9), scripted_engines(), method=broken)

    def disk_full(tree: Tree) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        search(make(9), scripted_engines(), on_tree=disk_full)


@pytest.mark.parametrize("how", ["signal", "raised by an engine"])
def test_ctrl_c_comes_through(how):
    done: list[Tree] = []

    def on_tree(tree: Tree) -> None:
        done.append(tree)
        if how == "signal" and len(done) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    class Interrupted(Shaky):
        async def propose(self, request: Propose) -> Proposals:
            if how != "signal" and request.problem.id == "q9":
                raise KeyboardInterrupt
            return await super().propose(request)

    engine = Interrupted(0)
    with pytest.raises(KeyboardInterrupt):
        search(make(500), Engines(engine, engine), concurrency=4, on_tree=on_tree)
    assert 3 <= len(done) < 500


@pytest.mark.parametrize("parallel", [1, 6])
@pytest.mark.parametrize("error", [EngineError("gone"), KeyboardInterrupt(), ZeroDivisionError()])
def test_nothing_stays_in_flight(parallel, error):
    """One request fails for good while others of its own tree and of other trees are under way."""

    class Cut(Watched):
        asked = 0

        async def propose(self, request: Propose) -> Proposals:
            self.asked += 1
            if self.asked == 60:
                raise error
            return await super().propose(request)

    engine = Cut(latency=0.01)
    with pytest.raises(type(error)):
        search(make(8, 6), Engines(engine, engine), parallel=8 * parallel, iterations=30, threshold=2)
    assert len(engine.flying) == 8
    assert not any(engine.flying.values())


# ---------------------------------------------------------------- counting


def test_overlapping_intervals_count_once():
    now = 0.0
    busy = Busy(lambda: now)
    with busy:
        now = 2.0
        with busy:
            now = 5.0
        assert busy.seconds == 5.0  # what is still open counts
    now = 9.0
    assert busy.seconds == 5.0
    with busy:
        now = 10.0
    assert busy.seconds == 6.0


def test_a_stage_knows_what_it_cost_and_how_busy_its_engines_were():
    account = Account(earlier=Usage(policy_tokens=10**6))
    trees = search(make(5), scripted_engines(latency=0.004), account=account)
    speed = account.speed()
    for name in ("policy_tokens", "value_tokens"):
        assert speed[name] == sum(getattr(tree.usage, name) for tree in trees)
    assert 0 < speed["policy_busy"] <= speed["seconds"]
    assert 0 < speed["value_busy"] <= speed["seconds"]
    assert all(0 < tree.usage.value_requests < tree.usage.requests for tree in trees)


# ---------------------------------------------------------------- what engines are held to


def fixed_value(*values: float) -> ScriptedValue:
    class Fixed(ScriptedValue):
        async def score(self, request: Score) -> Scores:
            return Scores(values)

    return Fixed(lambda problem, path: 0.0)


@pytest.mark.parametrize(
    ("values", "message"), [((0.5,), "1 values for"), ((1.5,) * 2, "1.5"), ((float("nan"),) * 2, "nan")]
)
def test_unsound_values_are_refused(values, message):
    policy = ScriptedPolicy(lambda request, seed: f"step {seed % 1000}")
    with pytest.raises(EngineError, match=message):
        search(make(1), Engines(policy, fixed_value(*values)), branch=2, greedy_first=False)


def test_more_samples_than_asked_for_are_refused():
    class Eager(ScriptedPolicy):
        async def propose(self, request: Propose) -> Proposals:
            return Proposals((Sample(Step("a"), "step"),) * (request.n + 1))

    with pytest.raises(EngineError, match="2 samples of 1"):
        search(make(1), Engines(Eager(lambda request, seed: "")), method="cot")


def test_values_without_a_value_model():
    with pytest.raises(ConfigError, match="no value model; give one with --value"):
        search(make(1), Engines(load_scripted()[0]))


@pytest.mark.parametrize(("vocabulary", "kept"), [("v1", True), ("v2", False)])
def test_token_ids_go_to_a_value_model_of_the_same_vocabulary_only(vocabulary, kept):
    class Tokenizing(ScriptedPolicy):
        async def propose(self, request: Propose) -> Proposals:
            return Proposals((Sample(Step(f"step {request.seed % 99}", (1, 2)), "step"),), Usage(policy_tokens=2))

    seen = set()

    def value_of(problem: Problem, path: tuple[Step, ...]) -> float:
        seen.update(step.ids for step in path)
        return 0.5

    policy, value = Tokenizing(lambda request, seed: ""), ScriptedValue(value_of)
    policy.tokenizer_id, value.tokenizer_id = "v1", vocabulary
    (tree,) = search(make(1), Engines(policy, value))
    assert seen == {(1, 2) if kept else None}
    assert tree.ids[1:] == [[1, 2]] * (len(tree) - 1)  # the tree keeps them either way
    assert tree.models["tokenizer"] == "v1"


def test_the_garbage_collector_is_left_as_it_was():
    before = gc.get_threshold()
    seen = []
    search(make(3), scripted_engines(), concurrency=1000, on_tree=lambda tree: seen.append(gc.get_threshold()))
    assert seen == [(max(before[0], 100_000), *before[1:])] * 3
    assert gc.get_threshold() == before
    with pytest.raises(ConfigError):
        search(make(3), Engines(load_scripted()[0]), concurrency=1000)
    assert gc.get_threshold() == before
