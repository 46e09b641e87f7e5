"""Searches on the machines of a Ray cluster (docs/cluster.md): the same searches, the same trees, one writer.

queue.py     who has which job, and what a lost worker had: pure bookkeeping
wire.py      what is sent, as JSON
worker.py    engines and open searches, on each machine
fleet.py     the driver: hands out, takes back, starts workers, sees to lost ones
nodes.py     Ray: where workers may be, and how they are reached
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from restmcts.encoding import PromptSettings
from restmcts.engines import Engines
from restmcts.engines.opening import SCRIPTED, Say, load_engines
from restmcts.engines.settings import EngineSettings
from restmcts.sections import ClusterSettings
from restmcts.types import Problem

__all__ = ["open_engines"]


def open_engines(
    cluster: ClusterSettings,
    policy: str | Path,
    value: str | Path | None,
    prompt: PromptSettings,
    engine: EngineSettings,
    examples: Sequence[Problem] = (),
    *,
    say: Say | None = None,
) -> Engines:
    """`opening.load_engines`, here or, where the settings name a cluster, on each of its workers.

    Raises what that raises; and ConfigError where there is no such cluster, EngineError where it has no room in time.
    """
    if cluster.address is None:
        return load_engines(policy, value, prompt, engine, examples, say=say)
    from restmcts.cluster import wire
    from restmcts.cluster.fleet import Fleet
    from restmcts.cluster.nodes import Nodes

    on_gpus = policy != SCRIPTED and engine.kind not in (SCRIPTED, "openai") and engine.device != "cpu"
    recipe = wire.packed(wire.recipe_record(policy, value, prompt, engine, examples))
    site = Nodes(cluster.address, recipe, workers=cluster.workers, on_gpus=on_gpus)
    return Fleet(site, wait=cluster.wait, say=say or _to_stderr).open()


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
