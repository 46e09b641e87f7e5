"""The paper's comparison of self-training on a real language model: ReST-MCTS*, ReST-EM and Self-Rewarding.

    python -m studies.embedded OUT --seed 0     one seed: three runs of `--preset demo`; the same command resumes
    python -m studies.embedded OUT --report     the tables over all seeds in OUT

Per seed: a whole run of ReST-MCTS*; from the models of its warm start, on its questions, the other methods. All of them
collect data with the same generated tokens a question (the judge's verdicts come on top), learn from it for the same
epochs, and are asked the same held-out questions. A run takes minutes on a GPU, and an hour or more on two CPU cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from restmcts import loop
from restmcts.config import RunConfig, load_config
from restmcts.console import Progress
from studies.method_tables import FIRST, report

OTHERS = ("rest-em", "self-rewarding")
ALL = 1000
"""iterations and samples: more than the tokens of a question pay for"""
PREFERENCE = {"epochs": 1, "learning_rate": 5e-5, "sft_weight": 0.1}


def run(out: Path, seed: int, preset: str) -> None:
    """One seed: the first method from the base model, the others from its warm start."""
    runs = out / f"seed-{seed}" / "runs"
    common = {"seed": seed, "search": {"iterations": ALL, "samples": ALL}, "preference": PREFERENCE}
    first = load_config(preset=preset, flags={**common, "out": runs / FIRST, "evaluate": {"base": ["greedy"]}})
    loop.run(first, progress=Progress(mode="auto"))
    for method in OTHERS:
        loop.run(other(first, method, preset, {**common, "out": runs / method}), progress=Progress(mode="auto"))


def other(first: RunConfig, method: str, preset: str, common: dict[str, Any]) -> RunConfig:
    """Another method from where the first one began."""
    begun = first.out / "round-0"
    return load_config(
        preset=preset,
        flags={
            **common,
            "method": method,
            "policy": str(begun / "policy"),
            "value": str(begun / "value"),
            "problems": str(first.out / "data" / "train.jsonl"),
            "heldout": str(first.out / "data" / "heldout.jsonl"),
            "warm_start": {"policy": False, "value": False},
            "evaluate": {"base": [], "search": {"method": "mcts_star"}},
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.embedded", description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--report", action="store_true")
    asked = parser.parse_args()
    if asked.seed is not None:
        run(asked.out, asked.seed, asked.preset)
    if asked.report:
        report(asked.out, Console(width=200))


if __name__ == "__main__":
    main()
