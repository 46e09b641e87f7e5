"""The whole of ReST-MCTS*: warm start, then rounds of search, verify, label, train, evaluate (Algorithm 1).

Every line of `run` is a stage that is skipped when it is done, so the same command goes on after any interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from restmcts import stages
from restmcts.config import RunConfig, dump_yaml
from restmcts.console import Progress
from restmcts.data import Data, prepare_data
from restmcts.engines import Engines
from restmcts.engines.opening import load_engines
from restmcts.errors import ConfigError
from restmcts.job import Job, Kind, OnStep, Tools
from restmcts.report import report
from restmcts.results import BASE, CONFIG, WARM
from restmcts.store import RunFolder, write_atomic
from restmcts.tasks.grade import Grader
from restmcts.train.settings import Training
from restmcts.types import Problem


def run(config: RunConfig, *, tools: Tools | None = None, progress: Progress | None = None) -> Path:
    """Take the models through the whole loop in `config.out`; returns the path of the report written there.

    Raises a RestmctsError for anything unusable; what is finished stays finished.
    """
    config.check_complete()
    if config.policy == "scripted":
        raise ConfigError("policy = 'scripted': it cannot be trained; give a model (embedded, a folder or a hub id)")
    if config.engine.kind == "openai":
        raise ConfigError(
            "engine.kind = 'openai': a policy behind a server cannot be trained; give a model (a folder or a hub id) "
            "and another engine, or use search, evaluate or solve"
        )
    progress = progress or Progress(mode="quiet")
    with RunFolder(config.out) as folder, Grader() as grader:
        job = Job(config, folder, grader, progress, tools or ModelTools(config, progress.say))
        if not (folder.path / CONFIG).exists():
            write_atomic(folder.path / CONFIG, dump_yaml(config))
        loop(job)
        write_atomic(folder.path / CONFIG, dump_yaml(config))  # only now: a refused change must not replace it
        progress.finish()
        if not job.worked_on:
            progress.say(f"{config.out} is finished: all {len(job.records)} stages are done, nothing was run again")
        return report(config.out)


def loop(job: Job) -> None:
    """The stages of a run, in order."""
    config = job.config
    data = prepare_data(job)
    policy, value = warm_start(job, data)
    searched: list[tuple[Path, list[Problem]]] = []
    for k in range(1, config.rounds + 1):
        questions = stages.round_questions(job, data.train, k)
        trees = stages.search(job, k, data, questions, config.search, policy, value)
        trees = stages.complete(job, k, trees, questions, policy)
        searched.append((trees, questions))
        rows = stages.label(job, k, data, searched if config.accumulate else searched[-1:])
        policy = stages.train(job, "policy", k, rows, policy)
        value = stages.train(job, "value", k, rows, value)
        stages.measure(job, k, modes(config, data, k), data, policy, value)


def warm_start(job: Job, data: Data) -> tuple[str | Path, str | Path]:
    """π_0 and V_0, and what the untrained model can do.

    With worked examples: π_0 by SFT on them (D_S0), V_0 on their true and corrupted steps (D_V0), and if so set on what
    π_0 makes of other questions. Without: π_0 is the model as given, and V_0 learns from trees that π_0 sampled without
    a value model, unless one was given.
    """
    config, policy = job.config, str(job.config.policy)
    examples = data.worked[: config.evaluate.examples]
    base = [mode for mode in config.evaluate.base if data.heldout]
    if "greedy" in base:
        stages.measure(job, BASE, ["greedy"], data, policy, None, examples)
    trained: str | Path = policy
    rows = stages.warm_rows(job, data) if data.worked else None
    if rows is not None and config.warm_start.policy:
        trained = stages.train(job, "policy", WARM, rows, policy)
    value = config.value or trained
    needed = config.value is None or not job.tools.is_value_model(config.value)
    if needed or (rows is not None and config.warm_start.value):
        if rows is None or not config.warm_start.value or config.warm_start.value_data == "sampled":
            rows = sampled_rows(job, data, trained)
        value = stages.train(job, "value", WARM, rows, value)
    if "search" in base:
        stages.measure(job, BASE, ["search"], data, policy, value, examples)
    if trained is not policy:
        stages.measure(job, WARM, modes(config, data, WARM), data, trained, value)
    return trained, value


def sampled_rows(job: Job, data: Data, policy: str | Path) -> Path:
    """Rows for V_0 from questions that the policy answered without a value model, and from worked examples."""
    questions = stages.round_questions(job, data.train, 1)[: job.config.warm_start.bootstrap]
    settings = job.config.search.model_copy(update={"method": "sample"})
    trees = stages.search(job, WARM, data, questions, settings, policy, None)
    trees = stages.complete(job, WARM, trees, questions, policy)
    return stages.label(job, WARM, data, [(trees, questions)])


def modes(config: RunConfig, data: Data, k: int) -> Sequence[str]:
    """What is measured after round k."""
    if not data.heldout:
        return ()
    last = k == config.rounds
    return [m for m in config.evaluate.methods if m == "greedy" or last or config.evaluate.search_rounds == "every"]


class ModelTools:
    """Models served by the engine that the settings name, and trained in this process; `say` shows a line."""

    def __init__(self, config: RunConfig, say: Callable[[str], None] | None = None) -> None:
        self.config, self.say = config, say

    def load_engines(self, policy: str | Path, value: str | Path | None, examples: Sequence[Problem]) -> Engines:
        return load_engines(policy, value, self.config.prompt, self.config.engine, examples, say=self.say)

    def train(
        self,
        kind: Kind,
        rows: Sequence[Any],
        *,
        base: str | Path,
        out: Path,
        settings: Training,
        seed: int,
        on_progress: OnStep,
    ) -> Mapping[str, Any]:
        options: dict[str, Any] = {"base": base, "out": out, "settings": settings, "seed": seed}
        options |= {"prompt": self.config.prompt, "on_progress": on_progress}
        if kind == "policy":
            from restmcts.train.policy import train_policy

            return train_policy(rows, **options)
        from restmcts.train.value import train_value

        return train_value(rows, **options)

    def is_value_model(self, spec: str | Path) -> bool:
        from restmcts.models import is_value_model

        return is_value_model(spec)
