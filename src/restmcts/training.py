"""The stages that train: on rows of traces, steps or pairs, or online on what the policy samples meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from restmcts import curriculum
from restmcts.cards import write_card
from restmcts.config import RunConfig
from restmcts.data import DATA_FILES, Data
from restmcts.datasets import PolicyRow, PreferenceRow, ValueRow, read_rows
from restmcts.errors import FixedModelError
from restmcts.job import Job, Kind, release_memory
from restmcts.results import WARM
from restmcts.rows import PAIRS, POLICY_ROWS, VALUE_ROWS
from restmcts.store import StageFolder
from restmcts.train.settings import Training
from restmcts.types import Problem

ROWS: dict[str, tuple[str, type[PolicyRow | ValueRow | PreferenceRow]]] = {
    "policy": (POLICY_ROWS, PolicyRow),
    "value": (VALUE_ROWS, ValueRow),
    "preference": (PAIRS, PreferenceRow),
}
"""what each kind of training reads"""


def train(job: Job, kind: Kind, k: int, rows: Path, previous: str | Path) -> str | Path:
    """Train one of the models of round k on the rows in folder `rows`; returns where it is.

    A round without a right trace (or a pair) teaches the policy nothing, one without labels nothing the value model,
    and a public process reward model is not trained: the model then stays what it was, and the stage says so.
    """
    name, record = ROWS[kind]
    file = rows / name

    def found() -> Sequence[Any]:
        read = read_rows(file, record)
        fresh = [row for row in read if k == WARM or not isinstance(row, PolicyRow) or row.round]
        return read if fresh else ()

    return _train(job, kind, k, found, {"rows": file}, previous)


def train_online(job: Job, k: int, data: Data, questions: Sequence[Problem], previous: str | Path) -> str | Path:
    """Train the policy of round k on what it samples of `questions` meanwhile; returns where it is."""
    inputs = {"problems": data.folder / DATA_FILES["train"], **curriculum.inputs(job, k)}
    source = job.config.labels.source
    asked = {
        "questions_per_round": job.config.questions_per_round,
        **curriculum.identity(job.config),
        **({"labels": source} if source != "oracle" else {}),
    }
    return _train(job, "online", k, lambda: questions, inputs, previous, asked)


def _train(
    job: Job,
    kind: Kind,
    k: int,
    found: Callable[[], Sequence[Any]],
    inputs: Mapping[str, str | Path | None],
    previous: str | Path,
    asked: Mapping[str, Any] | None = None,
) -> str | Path:
    """The stage that trains on what `found` gives; `asked` are settings that decide what that is."""
    config = job.config
    options = _options(config, kind, k)
    model = "value" if kind == "value" else "policy"
    first = str(config.policy if model == "policy" else config.value or config.policy)
    base = previous if options.start == "previous" else first

    def work(stage: StageFolder) -> dict[str, Any]:
        job.progress.stage(stage.name)
        rows = found()
        if not rows:
            job.progress.say(f"round {k} found nothing to teach the {model} model: it stays as it is")
            return {"rows": 0, "kept": True}
        seed = job.seed("round", k, kind)
        on_progress = job.on_reward if kind == "online" else job.on_step
        try:
            metrics = job.tools.train(
                kind, rows, base=base, out=stage.path, settings=options, seed=seed, on_progress=on_progress
            )
        except FixedModelError:
            job.progress.say(f"{base} is not trained: it stays the {model} model of all rounds")
            return {"rows": 0, "kept": True}
        release_memory()
        return {"rows": len(rows), **metrics}

    settings = {
        "training": options.model_dump(mode="json", exclude={"checkpoint_seconds", "device", "accelerate"}),
        "prompt": config.prompt.model_dump(mode="json"),
        "seed": config.seed,
        **(asked or {}),
    }
    folder = job.stage(f"round-{k}/{model}", model, k, work, settings=settings, inputs={**inputs, "base": base})
    if job.records[-1]["metrics"].get("kept"):
        return previous
    write_card(folder)
    return folder


def _options(config: RunConfig, kind: Kind, k: int) -> Training:
    if kind == "preference":
        return config.preference
    if kind == "online":
        return config.online
    source = config.warm_start if k == WARM else config
    return source.policy_training if kind == "policy" else source.value_training
