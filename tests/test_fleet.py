"""Searches on many machines, without machines: who gets which job, what travels, and a fleet of workers in threads."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from restmcts import drive
from restmcts.account import Account
from restmcts.cluster import fleet as fleets
from restmcts.cluster import nodes, wire
from restmcts.cluster.fleet import Fleet, Lost
from restmcts.cluster.queue import Queue
from restmcts.cluster.worker import News, Worker
from restmcts.encoding import PromptSettings
from restmcts.engines import Engines, TransientError
from restmcts.engines.scripted import ScriptedPolicy, ScriptedValue, advise, check_steps, scripted_engines, solve_step
from restmcts.engines.settings import EngineSettings
from restmcts.errors import ConfigError, EngineError, TaskError
from restmcts.search import SEARCHES, SearchSettings, get_search
from restmcts.tasks import get_task
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

PROBLEMS = [Problem(f"q{i}", f"What is {i} + {i % 7} * {i % 5} - {i % 11}?", answer="0") for i in range(24)]
SETTINGS = SearchSettings(iterations=4, self_critic=True)


# ---------------------------------------------------------------- the queue


def queue_of(count: int, *workers: str, room: int = 4) -> Queue[None]:
    queue = Queue[None](room)
    for worker in workers:
        queue.join(worker)
    for i in range(count):
        queue.put(b"", None, f"q{i}", search=True)
    return queue


def numbers(given: dict[str, list[Any]]) -> dict[str, list[int]]:
    return {worker: [job.number for job in jobs] for worker, jobs in given.items()}


def test_searches_go_to_whoever_has_the_fewest_and_has_room():
    queue = queue_of(10, "a", "b", room=3)
    assert numbers(queue.hand_out()) == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert queue.hand_out() == {}
    queue.done("b", 2)
    queue.done("b", 4)
    queue.done("a", 1)
    assert numbers(queue.hand_out()) == {"b": [7, 9], "a": [8]}


def test_few_searches_are_shared_with_workers_that_are_coming():
    queue = queue_of(8, "a")
    assert numbers(queue.hand_out(coming=3)) == {"a": [1, 2]}
    queue.join("b")
    assert numbers(queue.hand_out(coming=2)) == {"b": [3, 4]}
    assert numbers(queue.hand_out()) == {"a": [5, 7], "b": [6, 8]}


def test_what_a_lost_worker_had_goes_to_the_front_in_its_order_and_is_done_once():
    queue = queue_of(6, "a", "b", room=2)
    queue.hand_out()
    assert queue.lose("a", most=3) == (2, [])
    assert queue.done("a", 1) is None, "a lost worker has nothing to tell"
    queue.join("c")
    assert numbers(queue.hand_out()) == {"c": [1, 3]}
    assert queue.done("c", 1) is not None
    assert queue.done("c", 1) is None
    assert [job.number for job in queue] == [5, 6, 2, 4, 3]


def test_a_question_that_workers_die_of_is_given_up():
    queue = queue_of(2, "a", "b", room=1)
    queue.hand_out()
    assert queue.lose("a", most=2) == (1, [])
    queue.join("c")
    queue.hand_out()
    back, given_up = queue.lose("c", most=2)
    assert (back, [job.name for job in given_up]) == (0, ["q0"])
    assert [job.name for job in queue] == ["q1"]


def test_questions_that_workers_died_of_together_are_told_apart():
    queue = queue_of(5, "a", room=4)
    assert numbers(queue.hand_out()) == {"a": [1, 2, 3, 4]}
    assert queue.lose("a", most=2) == (4, [])
    queue.join("b")
    assert numbers(queue.hand_out()) == {"b": [1, 5]}, "one of them, and what is beyond suspicion"
    queue.join("c")
    assert numbers(queue.hand_out()) == {"c": [2]}
    queue.done("b", 1)
    assert numbers(queue.hand_out()) == {"b": [3]}
    _, given_up = queue.lose("c", most=2)
    assert [job.name for job in given_up] == ["q1"]
    assert [job.number for job in queue] == [4, 5, 3]
    assert [job.number for job in queue.drop()] == [4]


def test_requests_of_a_question_go_to_one_worker_at_once():
    queue = queue_of(0, "a", "b", room=1)
    for _ in range(3):
        for i in range(20):
            queue.put(b"", None, f"q{i}", search=False)
    given = queue.hand_out()
    at = {worker: Counter(job.name for job in jobs) for worker, jobs in given.items()}
    assert not at["a"].keys() & at["b"].keys()
    assert set((at["a"] + at["b"]).values()) == {3}
    assert len(at["a"]) > 4 < len(at["b"])


def test_without_workers_nothing_is_handed_out_and_searches_can_be_dropped():
    queue = queue_of(3)
    queue.put(b"", None, "asked", search=False)
    assert queue.hand_out() == {}
    assert [job.name for job in queue.drop()] == ["q0", "q1", "q2"]
    assert [job.name for job in queue] == ["asked"]


# ---------------------------------------------------------------- what travels


def over_the_wire(record: Any) -> Any:
    return wire.unpacked(wire.packed(record))


def test_requests_replies_and_errors_arrive_as_they_were_sent():
    problem = Problem("q", "1 + 1? \ud800 é", instruction="Add.")
    path = (Step("a", (1, 2)), Step("b"))
    for request in (
        Propose(problem, path, 2, 2**62, 0.7, 9, advice="go", first=3),
        Score(problem, (path, path[:1])),
        Critique(problem, path, 5, 7),
    ):
        assert wire.request_of(over_the_wire(wire.request_record(request))) == request
    usage = Usage(1, 2, 3, 4, 5, 0.1, 6)
    for reply in (
        Proposals((Sample(Step("a", (1,)), "step", -0.1, 3), Sample(Step(""), "end")), usage),
        Scores((0.1, 1 / 3), usage, (4, 5)),
        Scores((0.5,), usage),
        Verdict(False, "go on", usage),
    ):
        assert wire.reply_of(over_the_wire(wire.reply_record(reply))) == reply
    for error in (ConfigError("a"), TaskError("b"), TransientError("c", again=False, usage=usage)):
        arrived = wire.error_of(over_the_wire(wire.error_record(error)))
        assert (type(arrived), str(arrived)) == (type(error), str(error))
    assert isinstance(arrived, TransientError)
    assert (arrived.again, arrived.usage) == (False, usage)


def test_a_search_travels_without_the_known_answer():
    problem = Problem("q", "1 + 1?", answer="2", solution="secret", extra={"more": object()})
    errand = drive.Errand(problem, SEARCHES["beam"], SETTINGS, 7, get_task("numeric"), most=Budget(policy_tokens=5))
    record = over_the_wire(wire.errand_record(errand))
    assert "secret" not in json.dumps(record)
    there = wire.errand_of(record)
    assert there.problem == Problem("q", "1 + 1?")
    assert (there.method, there.settings, there.seed) == (errand.method, errand.settings, errand.seed)
    assert (there.task, there.most) == (errand.task, errand.most)


def test_a_method_that_is_not_built_in_stays_here():
    errand = drive.Errand(PROBLEMS[0], lambda *_: iter(()), SETTINGS, 0, get_task("math"))
    assert wire.errand_record(errand) is None


# ---------------------------------------------------------------- a fleet of workers in threads


class Thread:
    """An event loop in a thread of its own, as every worker has one."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    async def run(self, work: Any) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    def end(self) -> None:
        async def all_tasks() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(all_tasks(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Here(Worker):
    """A worker with engines that a test has made."""

    def __init__(self, engines: Engines) -> None:
        super().__init__()
        self.given = engines

    def load(self, recipe: dict[str, Any], where: str) -> Engines:
        return self.given


class Near:
    """A worker in a thread; `dead` is why it cannot be reached any more."""

    def __init__(self, site: Threads, worker: Worker) -> None:
        self.site, self.worker, self.dead = site, worker, ""
        self.opened: bytes | None = None
        self.told = 0

    async def ask(self, work: Any) -> Any:
        if self.dead:
            work.close()
            raise Lost(self.dead)
        said = await self.site.thread.run(work)
        if self.dead:
            raise Lost(self.dead)
        return said

    async def where(self) -> str:
        return await self.ask(self.worker.where())

    async def open(self) -> bytes:
        self.opened = self.opened or await self.ask(self.worker.open(b"{}"))
        return self.opened

    async def give(self, jobs: Sequence[tuple[int, bytes]], allowance: bytes) -> None:
        self.site.given += [number for number, _ in jobs]
        await self.ask(self.worker.give(jobs, allowance))

    async def news(self, allowance: bytes) -> News:
        if self.told >= self.site.dies_after.get(self, float("inf")):
            self.dead = "the machine is gone"
        news: News = await self.ask(self.worker.news(allowance))
        self.told += len(news[0])
        return news

    async def close(self) -> None:
        if not self.dead:
            await self.ask(self.worker.close())
        self.kill()

    def kill(self) -> None:
        self.dead = self.dead or "killed"


class Threads:
    """A site of threads. Its first worker may be made to die after some results."""

    name = "of threads"

    def __init__(self, engines: Any, places: int = 2) -> None:
        self.engines, self.names, self.thread = engines, [f"place {i}" for i in range(places)], Thread()
        self.given: list[int] = []
        self.started: list[Near] = []
        self.dies_after: dict[Near, float] = {}
        self.first_dies_after = float("inf")

    def places(self) -> list[str]:
        return list(self.names)

    def start(self, place: str) -> Near:
        near = Near(self, Here(self.engines()))
        self.dies_after |= {} if self.started else {near: self.first_dies_after}
        self.started.append(near)
        return near


@contextmanager
def fleet_of(site: Threads, *, wait: float = 5.0, said: list[str] | None = None) -> Iterator[Engines]:
    try:
        engines = Fleet(site, wait=wait, say=(said if said is not None else []).append).open()
        yield engines
        asyncio.run(engines.close())
    finally:
        site.thread.end()


def slow() -> Engines:
    return scripted_engines(latency=0.003)


def searched(engines: Engines, *, method: Any = "mcts_star", account: Account | None = None) -> list[Tree]:
    found: list[Tree] = []
    drive.run(
        PROBLEMS,
        get_search(method) if isinstance(method, str) else method,
        SETTINGS,
        engines,
        task_of=lambda problem: get_task(problem.task),
        seed=3,
        concurrency=4,
        on_tree=found.append,
        account=account,
    )
    return found


def lines(trees: Sequence[Tree]) -> list[str]:
    """The trees in the order of their questions, without the time they took."""
    records = []
    for tree in sorted(trees, key=lambda tree: tree.problem.id):
        record = tree.to_record()
        del record["usage"]["seconds"]
        records.append(json.dumps(record))
    return records


def test_a_fleet_finds_the_same_trees_and_counts_the_same():
    alone, together, said = Account(), Account(), list[str]()
    here = searched(scripted_engines(), account=alone)
    with fleet_of(Threads(slow, 3), said=said) as engines:
        there = searched(engines, account=together)
        assert lines(searched(engines)) == lines(here), "a fleet carries one search after the other"
    assert lines(there) == lines(here)
    assert [tree.problem for tree in sorted(there, key=lambda tree: int(tree.problem.id[1:]))] == PROBLEMS
    assert together.count.usage(0.0) == alone.count.usage(0.0)
    assert 0 < together.policy_busy <= together.seconds
    assert len(said) == 3
    assert said[-1].endswith("(3 in all)")


def test_the_late_word_of_an_earlier_run_ends_no_search_of_this_one():
    def allowance(run: int) -> bytes:
        return wire.packed({"run": run, "concurrency": 4, "left": {}})

    def order(problem: Problem) -> bytes:
        errand = drive.Errand(problem, get_search("mcts_star"), SETTINGS, 3, get_task(problem.task))
        return wire.packed({"search": wire.errand_record(errand)})

    async def overtaken() -> list[int]:
        worker, done = Here(slow()), list[int]()
        await worker.open(b"{}")
        await worker.give([(i, order(PROBLEMS[i])) for i in range(3)], allowance(2))
        assert await worker.news(allowance(1)) == ((), b"{}")
        await worker.give([(3, order(PROBLEMS[3]))], allowance(1))
        while len(done) < 3:
            done += [number for number, _ in (await worker.news(allowance(2)))[0]]
        await worker.close()
        return done

    assert sorted(asyncio.run(asyncio.wait_for(overtaken(), 20))) == [0, 1, 2]


def test_methods_that_stay_here_ask_the_workers():
    def own(*arguments: Any) -> Any:
        return (yield from SEARCHES["mcts_star"](*arguments))

    site = Threads(slow)
    with fleet_of(site) as engines:
        assert lines(searched(engines, method=own)) == lines(searched(scripted_engines(), method=own))
    assert len(site.given) > len(PROBLEMS) * 4


def test_nothing_is_lost_and_nothing_twice_when_a_worker_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fleets, "POLL", 0.01)
    site, said = Threads(slow, 2), list[str]()
    site.first_dies_after = 3
    with fleet_of(site, said=said) as engines:
        assert lines(searched(engines)) == lines(searched(scripted_engines()))
    lost = [line for line in said if line.startswith("lost")]
    assert len(lost) == 1
    assert "the machine is gone" in lost[0]
    assert len(site.started) == 3, "another one takes its place"
    assert len(site.given) > len(PROBLEMS)


def test_a_worker_at_a_new_place_is_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fleets, "POLL", 0.01)
    site = Threads(slow, 1)
    with fleet_of(site) as engines:
        site.names.append("a new one")
        assert lines(searched(engines)) == lines(searched(scripted_engines()))
    assert len(site.started) == 2
    assert all(near.told for near in site.started)


def test_the_budget_of_a_stage_holds_over_all_workers(monkeypatch: pytest.MonkeyPatch):
    whole = Account()
    searched(scripted_engines(), account=whole)
    spent = whole.count.policy_tokens
    account = Account(Budget(policy_tokens=spent // 2))
    with fleet_of(Threads(slow, 2)) as engines:
        found = searched(engines, account=account)
    assert spent // 2 <= account.count.policy_tokens < spent
    assert len(found) < len(PROBLEMS)
    assert any(tree.stop == "stage_budget" for tree in found)
    assert sum(tree.usage.policy_tokens for tree in found) == account.count.policy_tokens


def test_errors_end_the_search_in_one_line():
    with fleet_of(Threads(lambda: Engines(ScriptedPolicy(solve_step)))) as engines, pytest.raises(ConfigError) as told:
        searched(engines)
    assert "--value" in str(told.value)

    def broken(*_: Any) -> float:
        raise ZeroDivisionError

    engines_of = lambda: Engines(ScriptedPolicy(solve_step, advise), ScriptedValue(broken))  # noqa: E731
    with fleet_of(Threads(engines_of)) as engines, pytest.raises(RuntimeError, match="ZeroDivisionError"):
        searched(engines)


def test_a_reply_that_cannot_be_sent_ends_the_search():
    site = Threads(scripted_engines)

    class Unsendable(Here):
        async def _answer(self, record: dict[str, Any]) -> dict[str, Any]:
            return {"reply": {1, 2}}

    def own(*arguments: Any) -> Any:
        return (yield from SEARCHES["mcts_star"](*arguments))

    site.start = lambda place: Near(site, Unsendable(scripted_engines()))  # type: ignore[method-assign]
    with fleet_of(site) as engines, pytest.raises(RuntimeError, match="not JSON serializable"):
        searched(engines, method=own)


def test_a_question_that_breaks_its_engines_ends_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fleets, "POLL", 0.01)

    def broken(problem: Problem, path: Any) -> float:
        if problem.id == "q7":
            raise EngineError("the GPU fell off the bus")
        return check_steps(problem, path)

    site = Threads(lambda: Engines(ScriptedPolicy(solve_step, advise), ScriptedValue(broken)), 3)
    with fleet_of(site) as engines, pytest.raises(EngineError) as told:
        searched(engines)
    assert "3 workers were lost with question 'q7'" in str(told.value)
    assert "fell off the bus" in str(told.value)


def test_a_worker_that_cannot_open_its_engines_ends_the_run():
    def nothing() -> Engines:
        raise AssertionError

    class Refusing(Here):
        def load(self, recipe: dict[str, Any], where: str) -> Engines:
            raise ConfigError("no such model")

    site = Threads(scripted_engines, 1)
    site.start = lambda place: Near(site, Refusing(scripted_engines()))  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="no such model"), fleet_of(site):
        nothing()


def test_without_workers_a_run_ends_after_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fleets, "POLL", 0.01)
    with (
        pytest.raises(EngineError, match=r"no worker on the cluster of threads for 0\.2 s"),
        fleet_of(Threads(slow, 0), wait=0.2),
    ):
        pass
    site, said = Threads(slow, 1), list[str]()
    site.first_dies_after = 5
    with fleet_of(site, wait=0.2, said=said) as engines:
        site.names.clear()
        with pytest.raises(EngineError, match=r"no worker .* \(the last one was lost: the machine is gone\)"):
            searched(engines)
    assert "none is left: waiting up to 0:00 for another" in said[-1]


def test_folders_that_a_worker_does_not_see_are_named(tmp_path: Any):
    (tmp_path / "model").mkdir()
    recipe = wire.recipe_record(tmp_path / "model", "hub/id", PromptSettings(), EngineSettings(), PROBLEMS[:1])
    assert recipe["folders"] == [str(tmp_path / "model")]
    wire.check_folders(recipe, "there")
    (tmp_path / "model").rmdir()
    with pytest.raises(EngineError, match="is not there on elsewhere: models must lie where every machine sees them"):
        wire.check_folders(recipe, "elsewhere")


@pytest.mark.parametrize(
    ("node", "workers", "on_gpus", "expected"),
    [
        ((8, 0), None, False, [(8, 0)]),
        ((8, 2), None, True, [(4, 1), (4, 1)]),
        ((8, 0), None, True, []),
        ((0, 0), None, False, []),
        ((2, 0), 4, False, [(0.5, 0)] * 4),
        ((7, 1), 2, True, [(3, 0.5)] * 2),
        ((8, 2), 3, False, [(2, 0)] * 3),
    ],
)
def test_workers_share_a_node(node: Any, workers: int | None, on_gpus: bool, expected: Any):
    places = nodes._shares("n", *node, workers, on_gpus)
    assert [(place.cpus, place.gpus) for place in places] == expected


def test_of_what_ray_says_of_a_loss_the_cause_is_told():
    said = "The actor died unexpectedly before finishing this task.\n\tclass_name: Worker\n"
    said += "The actor is dead because its node has died. Node Id: 1\n\tmore"
    assert nodes._first_line(RuntimeError(said)) == "The actor is dead because its node has died. Node Id: 1"
    lacking = RuntimeError("x\n  ModuleNotFoundError: No module named 'restmcts'\n")
    assert nodes._first_line(lacking) == "ModuleNotFoundError: No module named 'restmcts'"
    assert nodes._first_line(ValueError()) == "ValueError"


def test_an_address_that_is_none_is_refused():
    for address in ("somewhere", "ray://10.0.0.1:10001", ":6379", "host:port"):
        with pytest.raises(ConfigError, match="it must be HOST:PORT"):
            nodes._reach(address)
