"""Run benchmarks, all or those named; show their figures, and with --out store them as JSON.

The main job takes as long as all the others together and more, and `cluster` needs Ray: they run only when named.
Ends with code 1 when an aim is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks import cluster, engines, main_job, rewards, search_cost, serve, training, values
from benchmarks.common import Benchmark, machine, table
from restmcts.errors import RestmctsError
from restmcts.files import write_json

BENCHMARKS: dict[str, Benchmark] = {
    "search_cost": search_cost.run,
    "rewards": rewards.run,
    "training": training.run,
    "engines": engines.run,
    "values": values.run,
    "serve": serve.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What the parts of restmcts cost.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)} (by default all), cluster, main_job"
    )
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--run", type=Path, help="main_job: the folder of a finished run, in place of a new one")
    parser.add_argument("--before", type=Path, help="main_job: the folder of an earlier run, to compare with")
    asked = parser.parse_args()
    known: dict[str, Benchmark] = {
        **BENCHMARKS,
        "cluster": cluster.run,
        "main_job": partial(main_job.run, asked.run, asked.before),
    }
    if unknown := [name for name in asked.names if name not in known]:
        parser.error(f"no benchmark {unknown[0]!r}; there are: {', '.join(known)}")
    console, results, missed = Console(), {}, 0
    for name in asked.names or (["main_job"] if asked.run or asked.before else BENCHMARKS):
        try:
            figures = known[name]()
        except RestmctsError as error:
            parser.error(str(error))
        table(name, figures).show(console)
        results[name] = [figure.record() for figure in figures]
        missed += sum(figure.met is False for figure in figures)
    if asked.out:
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_json(asked.out, {"finished": finished, **machine(), "benchmarks": results})
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
