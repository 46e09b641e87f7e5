"""The whole of self-training: warm start, then rounds of a method, each measured (ReST-MCTS*: Algorithm 1).

Every line of `run` is a stage that is skipped when it is done, so the same command goes on after any interruption.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from restmcts import cluster, curriculum, ranks, stages, training
from restmcts.cards import write_card
from restmcts.config import RunConfig, dump_yaml
from restmcts.console import Progress
from restmcts.data import Data, prepare_data
from restmcts.engines import Engines
from restmcts.errors import ConfigError, Damaged, TrainError
from restmcts.job import Job, Kind, OnStep, Tools, tracking_of
from restmcts.methods import METHODS, Models, Round
from restmcts.report import report
from restmcts.results import BASE, CONFIG, WARM
from restmcts.search import UNSCORED
from restmcts.sections import THROUGH_TRL
from restmcts.store import RunFolder, write_atomic
from restmcts.tasks.grade import Grader
from restmcts.trackers import check_installed
from restmcts.train.settings import RowTraining, Training
from restmcts.types import Problem

log = logging.getLogger("restmcts")


def run(config: RunConfig, *, tools: Tools | None = None, progress: Progress | None = None) -> Path:
    """Take the models through the whole loop in `config.out`; returns the path of the report written there.

    Raises a RestmctsError for anything unusable; what is finished stays finished.
    """
    check(config)
    if tools is None:
        check_method(config)
    progress = progress or Progress(mode="quiet")
    with RunFolder(config.out) as folder, Grader() as grader:
        job = Job(config, folder, grader, progress, tools or ModelTools(config, progress.say))
        if not (folder.path / CONFIG).exists():
            write_atomic(folder.path / CONFIG, dump_yaml(config))
        try:
            to_the_end(job)
        finally:
            if job.reports is not None:
                job.reports.close()
        write_atomic(folder.path / CONFIG, dump_yaml(config))  # only now: a refused change must not replace it
        progress.finish()
        if not job.worked_on:
            progress.say(f"{config.out} is finished: all {len(job.records)} stages are done, nothing was run again")
        path = report(config.out)
        renew_cards(job)
        return path


def check(config: RunConfig) -> None:
    """Raise ConfigError unless a run can start from these settings."""
    if ranks.count() > 1:
        raise ConfigError(
            f"a run is one process, and {ranks.count()} were launched: start it alone, and name the launcher's "
            "configuration in policy_training.accelerate and value_training.accelerate"
        )
    config.check_complete()
    check_installed(config.report_to)
    for place, section in (("", config), ("warm_start.", config.warm_start)):
        for name in ("policy_training", "value_training"):
            plan = getattr(section, name).accelerate
            if plan is not None and not plan.is_file():  # to be told now, not after hours of searching
                raise ConfigError(
                    f"{place}{name}.accelerate = '{plan}': no such file; write it with: accelerate config "
                    f"--config_file {plan}"
                )
    if config.policy == "scripted":
        raise ConfigError("policy = 'scripted': it cannot be trained; give a model (embedded, a folder or a hub id)")
    if config.engine.kind == "openai":
        raise ConfigError(
            "engine.kind = 'openai': a policy behind a server cannot be trained; give a model (a folder or a hub id) "
            "and another engine, or use search, evaluate or solve"
        )


def renew_cards(job: Job) -> None:
    """Write the cards of the run's models again, now that it is known how good they are."""
    for record in job.records:
        if record["kind"] in ("policy", "value") and not record["metrics"].get("kept"):
            write_card(job.folder.path / record["stage"])


def to_the_end(job: Job) -> None:
    """All stages; where an earlier one turns out to have lost what it made, from the beginning again."""
    seen: set[str] = set()
    while True:
        job.records.clear()
        try:
            loop(job)
            job.folder.check_whole({r["stage"]: job.folder.path / r["stage"] for r in job.records if r["mode"]})
        except Damaged as error:
            what = str(error).partition(": ")[0]
            if what in seen:  # a disk that loses it again
                raise
            seen.add(what)
            job.progress.close()
            log.warning("%s", error)
        else:
            job.write_records()
            return


def loop(job: Job) -> None:
    """The stages of a run, in order."""
    config = job.config
    data = prepare_data(job)
    models = warm_start(job, data)
    searched: list[tuple[Path, list[Problem]]] = []
    for k in range(1, config.rounds + 1):
        questions = curriculum.round_questions(job, data.train, k)
        models = METHODS[config.method](Round(job, data, k, questions, searched), models)
        measured = modes(config, data, k)
        stages.measure(job, k, measured, data, models.policy, models.value)
        if curriculum.should_stop(job, k):
            left = [mode for mode in config.evaluate.methods if mode not in measured]
            stages.measure(job, k, left, data, models.policy, models.value)
            break


def warm_start(job: Job, data: Data) -> Models:
    """π_0 and V_0, and what the untrained model can do.

    With worked examples: π_0 by SFT on them (D_S0), V_0 on their true and corrupted steps (D_V0), and if so set on what
    π_0 makes of other questions. Without: π_0 is the model as given, and V_0 learns from trees that π_0 sampled without
    a value model, unless one was given. Where nothing will ask for values there is no V_0.
    """
    config, policy = job.config, str(job.config.policy)
    examples = data.worked[: config.evaluate.examples]
    base = [mode for mode in config.evaluate.base if data.heldout]
    if "greedy" in base:
        stages.measure(job, BASE, ["greedy"], data, policy, None, examples)
    trained: str | Path = policy
    rows = stages.warm_rows(job, data) if data.worked else None
    if rows is not None and config.warm_start.policy:
        trained = training.train(job, "policy", WARM, rows, policy)
    value = first_value(job, data, rows, trained) if wants_values(config) else None
    if "search" in base:
        stages.measure(job, BASE, ["search"], data, policy, value, examples)
    if trained is not policy:
        stages.measure(job, WARM, modes(config, data, WARM), data, trained, value)
    return Models(trained, value)


def first_value(job: Job, data: Data, rows: Path | None, policy: str | Path) -> str | Path:
    """V_0: the model given, trained unless it is a value model already; `rows` are those of the worked examples.

    Raises TrainError where there is nothing to train it on.
    """
    config = job.config
    value = config.value or policy
    needed = config.value is None or not job.tools.is_value_model(config.value)
    if needed or (rows is not None and config.warm_start.value):
        if rows is None or not config.warm_start.value or config.warm_start.value_data == "sampled":
            rows = sampled_rows(job, data, policy)
        value = training.train(job, "value", WARM, rows, value)
        if job.records[-1]["metrics"].get("kept") and needed:
            raise TrainError(
                "there is nothing to train the first value model on: no sampled solution reached an answer; give "
                "worked examples (--worked), another prompt, or more warm_start.bootstrap"
            )
    return value


def wants_values(config: RunConfig) -> bool:
    """Whether anything in the run asks a value model: the method, its search, or the held-out search."""
    searches = [config.search.method]
    if config.heldout is not None or config.generate is not None:
        measured = {*config.evaluate.methods, *config.evaluate.base}
        searches += [config.evaluate.search.method] if "search" in measured else []
    return config.method == "rest-mcts" or any(name not in UNSCORED for name in searches)


def sampled_rows(job: Job, data: Data, policy: str | Path) -> Path:
    """Rows for V_0 from questions that the policy answered without a value model, and from worked examples."""
    questions = curriculum.round_questions(job, data.train, 1)[: job.config.warm_start.bootstrap]
    settings = job.config.search.model_copy(update={"method": "sample"})
    trees = stages.search(job, WARM, data, questions, settings, policy, None)
    trees = stages.complete(job, WARM, trees, questions, policy)
    return stages.label(job, WARM, data, [(trees, questions)], policy)


def modes(config: RunConfig, data: Data, k: int) -> Sequence[str]:
    """What is measured after round k."""
    if not data.heldout:
        return ()
    last = k == config.rounds
    return [m for m in config.evaluate.methods if m == "greedy" or last or config.evaluate.search_rounds == "every"]


class ModelTools:
    """Models served by the engine that the settings name, and trained in this process or in those that it launches.

    `say` shows a line.
    """

    def __init__(self, config: RunConfig, say: Callable[[str], None] | None = None) -> None:
        self.config, self.say = config, say

    def load_engines(self, policy: str | Path, value: str | Path | None, examples: Sequence[Problem]) -> Engines:
        config = self.config
        return cluster.open_engines(config.cluster, policy, value, config.prompt, config.engine, examples, say=self.say)

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
        if kind == "online":
            options["consensus"] = self.config.labels.source == "majority"
        train = trainer(kind)
        if isinstance(settings, RowTraining) and settings.accelerate is not None and ranks.count() == 1:
            from restmcts.train.launch import launch

            train = partial(launch, kind)
        if not self.config.report_to:
            return train(rows, **options)
        from restmcts.train.reporting import opened

        tracking = tracking_of(self.config, out)
        with opened(tracking):
            return train(rows, **options, tracking=tracking)

    def is_value_model(self, spec: str | Path) -> bool:
        from restmcts.models import is_value_model

        return is_value_model(spec)


def trainer(kind: Kind) -> Callable[..., Mapping[str, Any]]:
    """The function that trains in this way. Raises TrainError where a library that it needs is not installed."""
    try:
        module = import_module(f"restmcts.train.{kind}")
    except ModuleNotFoundError as error:
        extra = "rl" if error.name == "trl" else "hf"
        raise TrainError(
            f"training of the kind {kind!r} needs {error.name}, which is not installed; run: "
            f"pip install 'restmcts[{extra}]'"
        ) from None
    found: Callable[..., Mapping[str, Any]] = getattr(module, f"train_{kind}")
    return found


def check_method(config: RunConfig) -> None:
    """Raise TrainError where the method of a run needs a library that is not installed: before hours of search."""
    if config.method in THROUGH_TRL and find_spec("trl") is None:
        raise TrainError(
            f"method = {config.method!r} needs trl, which is not installed; run: pip install 'restmcts[rl]'"
        )
