"""Searches on real Ray clusters of several nodes on one machine: each a raylet of its own, with its own workers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from restmcts import cluster, drive
from restmcts.cluster.nodes import Nodes
from restmcts.encoding import PromptSettings
from restmcts.engines import Engines
from restmcts.engines.scripted import scripted_engines
from restmcts.engines.settings import EngineSettings
from restmcts.errors import EngineError
from restmcts.search import SearchSettings, get_search
from restmcts.sections import ClusterSettings
from restmcts.store import read_jsonl, write_jsonl
from restmcts.tasks import get_task
from restmcts.types import Problem, Tree
from tests.slow_worker import SlowWorker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROBLEMS = [Problem(f"q{i}", f"What is {i} + {i % 7} * {i % 5} - {i % 11}?", answer="0") for i in range(60)]
SETTINGS = SearchSettings(iterations=8, self_critic=True)
MEMORY = 80 << 20
"""bytes of a node's object store"""
PATIENCE = {
    "health_check_timeout_ms": 120_000,  # a node that does not answer is slow; one that is gone is noticed at once
    "worker_register_timeout_seconds": 240,
    "memory_monitor_refresh_ms": 0,  # it ends workers for what others take of the machine's memory
}
"""Nothing is lost that a test does not end, however busy the machine is. The names are Ray's."""
WAIT = 150
"""seconds without a worker after which a search says so, before the test's own time is up"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster whose head takes no workers, and two nodes."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # whether or not this user has a token for clusters
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False, "_system_config": PATIENCE}
    # With Ray's 15 a worker gets a thirtieth of a core that other tests use. The name is Ray's.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # what workers find modules with
    made = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        for _ in range(2):
            add_node(made)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def add_node(nodes: Any) -> Any:
    return patiently(lambda: nodes.add_node(num_cpus=1, object_store_memory=MEMORY))


def patiently(start: Callable[[], Any], tries: int = 3) -> Any:
    """Ray gives a node half a minute to come up; on a busy machine that may take more than one attempt."""
    for left in reversed(range(tries)):
        try:
            return start()
        except Exception as error:
            if not left or "timed out" not in str(error):
                raise
    raise AssertionError("tries must be positive")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers whose engines take their time."""
    monkeypatch.setattr(Nodes, "worker", SlowWorker)


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    """The trees as one process finds them."""
    return searched(scripted_engines())


def engines_of(nodes: Any, said: list[str] | None = None, wait: float = WAIT, **settings: Any) -> Engines:
    return cluster.open_engines(
        ClusterSettings(address=nodes.address, wait=wait),
        settings.pop("policy", "scripted"),
        "scripted",
        PromptSettings(),
        EngineSettings(**settings),
        say=(said if said is not None else []).append,
    )


def searched(engines: Engines, on_tree: Callable[[int], None] = lambda count: None) -> list[dict[str, Any]]:
    """The trees in the order of their questions, without the time they took."""
    found: list[Tree] = []

    def keep(tree: Tree) -> None:
        found.append(tree)
        on_tree(len(found))

    drive.run(
        PROBLEMS,
        get_search(SETTINGS.method),
        SETTINGS,
        engines,
        task_of=lambda problem: get_task(problem.task),
        seed=5,
        concurrency=2,
        on_tree=keep,
    )
    records = [tree.to_record() for tree in sorted(found, key=lambda tree: tree.problem.id)]
    for record in records:
        del record["usage"]["seconds"]
    return records


def test_a_cluster_finds_the_same_trees(nodes: Any, expected: list[dict[str, Any]]):
    said: list[str] = []
    engines = engines_of(nodes, said)
    try:
        assert searched(engines) == expected
        assert searched(engines) == expected, "the workers stay for the next search"
    finally:
        asyncio.run(engines.close())
    assert 1 <= len(said) <= 2
    assert said[0].startswith("a worker is ready on ")


@pytest.mark.usefixtures("slow")
def test_a_node_that_is_lost_costs_no_question(nodes: Any, expected: list[dict[str, Any]]):
    said: list[str] = []
    doomed = add_node(nodes)
    engines = engines_of(nodes, said)
    killed = threading.Event()

    def kill(count: int) -> None:
        if count == 20:
            nodes.remove_node(doomed, allow_graceful=False)
            killed.set()

    try:
        until(lambda: len(said) == 3, "three workers", engines)
        assert searched(engines, kill) == expected
    finally:
        asyncio.run(engines.close())
    assert killed.is_set()
    assert any(line.startswith("lost the worker on") and "2 left" in line for line in said), said


@pytest.mark.usefixtures("slow")
def test_a_node_that_joins_is_used(nodes: Any, expected: list[dict[str, Any]]):
    said: list[str] = []
    engines = engines_of(nodes, said)
    joined: list[Any] = []

    def join(count: int) -> None:
        if count == 2:
            joined.append(add_node(nodes))

    try:
        until(lambda: len(said) == 2, "two workers", engines)
        assert searched(engines, join) == expected
        until(lambda: len(said) == 3, "a third worker", engines)
        assert searched(engines) == expected
    finally:
        asyncio.run(engines.close())
        nodes.remove_node(joined[0])
    assert said[-1].endswith("(3 in all)")


def test_the_command_goes_on_after_its_driver_was_killed(nodes: Any, tmp_path: Path):
    problems, out = tmp_path / "problems.jsonl", tmp_path / "out"
    write_jsonl(problems, ({"id": p.id, "question": p.question, "answer": "0"} for p in PROBLEMS))
    words = ["search", "--policy", "scripted", "--problems", str(problems), "--seed", "5"]
    words += ["--set", "search.iterations=8", "--set", "engine.concurrency=2"]
    slowly = [sys.executable, "-m", "tests.slow_worker", *words, "--out", str(out), "--ray", nodes.address]
    first = subprocess.Popen(slowly, stderr=subprocess.PIPE, text=True)
    stored = out / "trees.jsonl"
    until(lambda: stored.exists() and stored.read_bytes().count(b"\n") >= 5, "five trees")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = {record["id"]: record for record in read_jsonl(stored, skip_torn=True)}
    assert len(before) < len(PROBLEMS)
    again = subprocess.run(slowly, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"{len(PROBLEMS)} trees" in again.stdout
    assert "a worker is ready on" in again.stderr
    after = list(read_jsonl(stored))
    assert sorted(record["id"] for record in after) == sorted(p.id for p in PROBLEMS), "each once"
    assert all(before[record["id"]] == record for record in after if record["id"] in before)
    alone = [sys.executable, "-m", "restmcts", *words, "--out", str(tmp_path / "alone")]
    subprocess.run(alone, check=True, capture_output=True)
    assert {r["id"]: timeless(r) for r in after} == {
        r["id"]: timeless(r) for r in read_jsonl(tmp_path / "alone" / "trees.jsonl")
    }


def test_evaluation_and_completions_run_on_a_cluster(nodes: Any, tmp_path: Path, restmcts: Any):
    problems = tmp_path / "problems.jsonl"
    write_jsonl(problems, ({"id": p.id, "question": p.question, "answer": "3"} for p in PROBLEMS[:8]))
    ray = ["--ray", nodes.address]
    few = ["--policy", "scripted", "--problems", problems, "--set", "search.iterations=4"]
    assert restmcts("evaluate", *few, "--out", "e", *ray).code == 0
    assert restmcts("evaluate", *few, "--out", "e-alone").code == 0
    for mode in ("greedy", "search"):
        assert (tmp_path / "e" / mode / "rows.jsonl").exists()
        assert rows(tmp_path / "e" / mode) == rows(tmp_path / "e-alone" / mode)
    assert restmcts("search", *few, "--out", "s", "--set", "search.method=sample").code == 0
    rule = ["--policy", "scripted", "--set", "labels.rule=math-shepherd", "--set", "labels.completions=2"]
    assert restmcts("label", "s", *rule, "--out", "l", *ray).code == 0
    assert restmcts("label", "s", *rule, "--out", "l-alone").code == 0
    assert labels(tmp_path / "l") == labels(tmp_path / "l-alone")


@pytest.mark.model
def test_a_whole_run_searches_on_a_cluster(nodes: Any, tmp_path: Path, tiny_model_dir: Path, restmcts: Any):
    """Workers are there for each search and gone for each training; their models are those of the round before."""
    for name, first, count in (("train", 10, 4), ("heldout", 70, 2), ("worked", 50, 4)):
        lines = (
            {"question": f"What is {i} + 1?", "answer": str(i + 1), "solution": f"{i} + 1 = {i + 1}\nAnswer: {i + 1}"}
            for i in range(first, first + count)
        )
        write_jsonl(tmp_path / f"{name}.jsonl", lines)
    small = "search: {iterations: 2, branch: 2, rollout_steps: 1, max_depth: 3, step_tokens: 8}\n"
    small += f"cluster: {{wait: {WAIT}}}\n"
    (tmp_path / "small.yaml").write_text(small + "policy_training: {epochs: 1}\nvalue_training: {epochs: 1}\n")
    files = ["--problems", "train.jsonl", "--heldout", "heldout.jsonl", "--worked", "worked.jsonl", "--rounds", 1]
    command = ["run", "small.yaml", "--policy", tiny_model_dir, *files, "--out", "runs/far"]
    said = restmcts(*command, "--ray", nodes.address)
    assert said.code == 0, said
    out = tmp_path / "runs" / "far"
    tree = next(iter(read_jsonl(out / "round-1" / "search" / "trees.jsonl")))
    assert all(tree["models"][name] for name in ("policy", "value"))
    assert tree["usage"]["policy_tokens"] > 0
    assert (out / "round-1" / "value" / "model.safetensors").exists()
    assert (out / "report.md").exists()
    again = restmcts(*command)
    assert again.code == 0, again
    assert "is finished" in again.err


def test_what_cannot_be_opened_is_said_in_one_line(nodes: Any, tmp_path: Path):
    with pytest.raises(EngineError) as told:
        engines_of(nodes, policy=str(tmp_path / "nothing"))
    assert "nothing" in str(told.value)
    assert "(on " in str(told.value)


def test_without_a_cluster_the_remedy_is_said(tmp_path: Path):
    def told(address: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "restmcts", "search", "--policy", "scripted", "--problems", str(problems)]
        clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return subprocess.run(
            [*words, "--out", str(tmp_path / "out"), "--ray", address], capture_output=True, text=True, env=clean
        )

    problems = tmp_path / "problems.jsonl"
    write_jsonl(problems, [{"question": "1 + 1?", "answer": "2"}])
    done = told("127.0.0.1:1")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: no cluster answers at 127.0.0.1:1 (")
    assert "ray start --head" in done.stderr
    assert told("ray://127.0.0.1:1").stderr.startswith(
        "error: cluster.address = 'ray://127.0.0.1:1': it must be HOST:PORT"
    )


def until(there: Callable[[], bool], what: str, engines: Engines | None = None) -> None:
    """Wait for something; with engines, in an event loop in which their fleet is awake."""

    async def waiting() -> None:
        end = time.monotonic() + 240
        while not there():
            if engines is not None:
                await engines.carrier.ready()  # type: ignore[union-attr]
            assert time.monotonic() < end, f"no {what}"
            await asyncio.sleep(0.05)

    asyncio.run(waiting())


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    del record["usage"]["seconds"]
    return record


def rows(folder: Path) -> list[dict[str, Any]]:
    found = [dict(row) for row in read_jsonl(folder / "rows.jsonl")]
    for row in found:
        del row["seconds"]
    return found


def labels(folder: Path) -> list[bytes]:
    """The lines of a label file, whichever question was done first."""
    return sorted((folder / "labels.jsonl").read_bytes().splitlines())
