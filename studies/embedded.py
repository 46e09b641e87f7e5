"""The paper's comparison of self-training on a real language model: ReST-MCTS*, ReST-EM and Self-Rewarding.

    python -m studies.embedded OUT --seed 0     one seed: a warm start and three runs; the same command resumes
    python -m studies.embedded OUT --report     the tables over all seeds in OUT

Per seed: a warm start, and from its models, on the same questions, a run of each method. All of them
collect data with the same generated tokens a question (the judge's verdicts come on top), learn from it for the same
epochs, and are asked the same held-out questions: greedily, by search, and the last policies for 16 samples of each. A
run takes minutes on a GPU, and an hour or more on two CPU cores; with `--preset demo-small`, a seed takes about
half an hour of one core with AMX.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from rich.console import Console

from restmcts import loop
from restmcts.config import RunConfig, load_config
from restmcts.console import Progress
from restmcts.engines.opening import load_engines
from restmcts.evaluate import TREES, search_all, stored_trees
from restmcts.seeds import derive_seed
from restmcts.tasks.grade import Grader
from restmcts.tasks.load import load_problems
from studies.method_tables import FIRST, NUMBERS, report
from studies.methods import write_chances

ALL = 1000
"""iterations and samples: more than the tokens of a question pay for"""
PREFERENCE = {"epochs": 1, "learning_rate": 5e-5, "sft_weight": 0.1}
ARMS: dict[str, dict[str, Any]] = {
    FIRST: {"evaluate": {"base": ["greedy"]}},
    "rest-em": {"evaluate": {"base": [], "search": {"method": "mcts_star"}}},
    # A judge's prompt is long: with more questions open, the cache forgets one before its verdict is there.
    "self-rewarding": {
        "evaluate": {"base": [], "search": {"method": "mcts_star"}},
        "engine": {"concurrency": 40},
    },
}
"""methods, and what their runs need beside it"""


def run(out: Path, seed: int, preset: str) -> None:
    """One seed: a warm start, which is the base of the tables, and every method from there."""
    folder = out / f"seed-{seed}"
    common = {"seed": seed, "search": {"iterations": ALL, "samples": ALL}, "preference": PREFERENCE}
    start = load_config(
        preset=preset, flags={**common, "rounds": 0, "out": folder / "start", "evaluate": {"methods": ["greedy"]}}
    )
    loop.run(start, progress=Progress(mode="auto"))
    draw(start, folder / "drawn" / "base")
    for method in ARMS:
        config = from_start(start.out, method, preset, {**common, "out": folder / "runs" / method})
        loop.run(config, progress=Progress(mode="auto"))
        draw(config, folder / "drawn" / method)


def from_start(start: Path, method: str, preset: str, common: dict[str, Any]) -> RunConfig:
    """A method's run from a warm start. What that learned from is not shown again: to no method, so to none alone."""
    return load_config(
        preset=preset,
        flags={
            **common,
            "method": method,
            "policy": str(start / "round-0" / "policy"),
            "value": str(start / "round-0" / "value"),
            "problems": str(start / "data" / "train.jsonl"),
            "heldout": str(start / "data" / "heldout.jsonl"),
            "warm_start": {"policy": False, "value": False},
            **ARMS[method],
        },
    )


def draw(config: RunConfig, folder: Path) -> None:
    """Samples of the held-out questions by a run's last policy: what one of k, and their majority, are worth."""
    if (folder / "chances.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    problems = load_problems(config.out / "data" / "heldout.jsonl")
    settings = config.search.model_copy(update={"method": "sample", "samples": NUMBERS[-1], "budget_tokens": None})
    made = [config.out / f"round-{k}" / "policy" for k in range(config.rounds, -1, -1)]
    trained = [model for model in made if (model / "config.json").exists()]  # none where nothing could be learned
    engines = load_engines(trained[0] if trained else Path(str(config.policy)), settings=config.engine)
    seed = derive_seed(config.seed, "drawn")
    with Grader() as grader:
        try:
            options: dict[str, Any] = {"concurrency": config.engine.concurrency, "path": folder / TREES}
            search_all(problems, "sample", settings, engines, grader=grader, seed=seed, **options)
        finally:
            asyncio.run(engines.close())
        stored = stored_trees(folder / TREES, problems)
        write_chances(folder, [stored[problem.id] for problem in problems], grader, config.seed)


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
