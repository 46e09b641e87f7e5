"""Run benchmarks, all or those named; show their figures, and with --out store them as JSON.

Ends with code 1 when an aim is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks import rewards, search_cost, training
from benchmarks.common import Benchmark, machine, table
from restmcts.files import write_json

BENCHMARKS: dict[str, Benchmark] = {
    "search_cost": search_cost.run,
    "rewards": rewards.run,
    "training": training.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What the parts of restmcts cost.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; by default all")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}")
    console, results, missed = Console(), {}, 0
    for name in asked.names or BENCHMARKS:
        figures = BENCHMARKS[name]()
        table(name, figures).show(console)
        results[name] = [figure.record() for figure in figures]
        missed += sum(figure.met is False for figure in figures)
    if asked.out:
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_json(asked.out, {"finished": finished, **machine(), "benchmarks": results})
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
