"""Searches on a Ray cluster of several hosts: network namespaces, one of which falls silent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from restmcts.store import read_jsonl, write_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PORT = 20_000 + os.getpid() % 10_000
NET = f"10.{64 + os.getpid() // 256 % 64}.{os.getpid() % 256}"
"""of this process alone: Ray looks for clusters on the whole machine"""
COUNT = 100


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Hosts:
    """Three hosts on a bridge, the first of them the head; a host's processes end with `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"rm{os.getpid() % 10_000}-{i}" for i in (1, 2, 3)]
        self.bridge = f"rmb{os.getpid() % 10_000}"
        self.running: list[subprocess.Popen[Any]] = []

    def open(self) -> None:
        ip("link", "add", self.bridge, "type", "bridge")
        ip("link", "set", self.bridge, "up")
        for i, name in enumerate(self.names, start=1):
            ip("netns", "add", name)
            ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}v", "master", self.bridge, "up")
            for words in (["addr", "add", f"{NET}.{i}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
                ip("-n", name, *words)
            ip("-n", name, "link", "set", "lo", "up")

    def start(self, host: int, log: Path, *words: object) -> subprocess.Popen[Any]:
        """Run something on a host; what it says goes to a file."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_AUTH_MODE": "disabled"}
        command = ["ip", "netns", "exec", self.names[host], *map(str, words)]
        with log.open("w") as said:
            process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
        self.running.append(process)
        return process

    def ray(self, host: int, cpus: int) -> None:
        """A node of the cluster on a host."""
        joins = ["--address", f"{NET}.1:{PORT}"] if host else ["--head", "--port", PORT, "--include-dashboard", "false"]
        own = ["--node-ip-address", f"{NET}.{host + 1}", "--num-cpus", cpus, "--object-store-memory", 80 << 20]
        command = Path(sys.executable).with_name("ray")
        until_it_is_up = ["sh", "-c", 'until "$@"; do sleep 1; done', "sh"]
        self.start(host, self.folder / f"host-{host}.log", *until_it_is_up, command, "start", *joins, *own, "--block")

    def wait(self, seconds: float) -> None:
        """Until every host is a node."""
        end = time.monotonic() + seconds
        logs = [self.folder / f"host-{host}.log" for host in range(3)]
        while not all("Ray runtime started" in log.read_text() for log in logs):
            assert time.monotonic() < end, [log.read_text()[-2000:] for log in logs]
            time.sleep(0.2)

    def silence(self, host: int) -> None:
        """Pull the cable: nobody is told anything."""
        ip("link", "set", f"{self.names[host]}v", "down")

    def close(self) -> None:
        for name in self.names:
            told = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for pid in told.stdout.split():
                subprocess.run(["kill", "-9", pid], capture_output=True)
        for process in self.running:
            process.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            subprocess.run(["ip", "link", "del", f"{name}v"], capture_output=True)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    pytest.importorskip("ray")
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("making network namespaces needs root and iproute2")
    made = Hosts(tmp_path)
    try:
        made.open()
    except subprocess.CalledProcessError as error:
        made.close()
        pytest.skip(f"no network namespaces here: {error.stderr!r}")
    try:
        for host, cpus in enumerate((0, 1, 1)):
            made.ray(host, cpus)
        made.wait(300)
        yield made
    finally:
        made.close()


def test_a_host_that_falls_silent_costs_no_question(hosts: Hosts, tmp_path: Path):
    problems, out, log = tmp_path / "problems.jsonl", tmp_path / "out", tmp_path / "driver.log"
    write_jsonl(problems, ({"id": f"q{i}", "question": f"What is {i} + {i % 7} * 2?"} for i in range(COUNT)))
    words = ["search", "--policy", "scripted", "--problems", str(problems), "--seed", "5"]
    words += ["--set", "search.iterations=8", "--set", "engine.concurrency=2"]
    stored = out / "trees.jsonl"
    searching = hosts.start(
        0, log, sys.executable, "-m", "tests.slow_worker", *words, "--out", out, "--ray", f"{NET}.1:{PORT}"
    )
    while "(2 in all)" not in log.read_text():
        assert searching.poll() is None, log.read_text()
        time.sleep(0.1)
    before = stored.read_bytes().count(b"\n")
    while stored.read_bytes().count(b"\n") < before + 4:
        assert searching.poll() is None, log.read_text()
        time.sleep(0.05)
    hosts.silence(2)
    assert searching.wait(300) == 0, log.read_text()
    assert "lost the worker" in log.read_text()
    alone = [sys.executable, "-m", "restmcts", *words, "--out", str(tmp_path / "alone")]
    subprocess.run(alone, check=True, capture_output=True)
    assert sorted(map(timeless, read_jsonl(stored))) == sorted(
        map(timeless, read_jsonl(tmp_path / "alone" / "trees.jsonl"))
    )


def timeless(record: dict[str, Any]) -> str:
    del record["usage"]["seconds"]
    return json.dumps(record)
