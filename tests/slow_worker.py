"""A worker whose scripted engines take their time, and a command line that searches with such workers.

`python -m tests.slow_worker search …` is `restmcts search …` with them: something that can be killed meanwhile.
"""

from __future__ import annotations

import sys
from typing import Any

from restmcts import cli
from restmcts.cluster import wire
from restmcts.cluster.nodes import Nodes
from restmcts.cluster.worker import Worker
from restmcts.engines import Engines
from restmcts.engines.scripted import scripted_engines

LATENCY = 0.1
"""seconds that a request takes at most, half of that on average"""


class SlowWorker(Worker):
    def load(self, recipe: dict[str, Any], where: str) -> Engines:
        wire.check_folders(recipe, where)
        return scripted_engines(latency=LATENCY)


if __name__ == "__main__":
    from tests.slow_worker import SlowWorker as Importable  # not of __main__: workers must find it

    Nodes.worker = Importable
    cli.main(sys.argv[1:])
