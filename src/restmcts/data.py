"""The questions of a run: read or made, train and held-out kept apart, and stored with the run."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from restmcts.config import RunConfig
from restmcts.errors import TaskError
from restmcts.job import Job
from restmcts.models import pick_device
from restmcts.results import WARM
from restmcts.store import StageFolder, read_jsonl
from restmcts.tasks.load import disjoint, load_problems, write_problems
from restmcts.types import Problem

DATA_FILES = {"train": "train.jsonl", "heldout": "heldout.jsonl", "worked": "worked.jsonl"}


@dataclass(frozen=True, slots=True)
class Data:
    """The questions of a run."""

    folder: Path
    train: list[Problem]
    heldout: list[Problem]
    worked: list[Problem]


def prepare_data(job: Job) -> Data:
    """Read or make the questions, keep train and held-out apart, and store what the run uses."""
    config = job.config
    settings = {
        "generate": None if config.generate is None else config.generate.model_dump(mode="json"),
        "task": config.task,
        "fields": config.fields,
        "limit": config.limit,
    }
    inputs: dict[str, str | Path | None] = {
        "problems": config.problems,
        "heldout": config.heldout,
        "worked": config.worked,
    }

    def work(stage: StageFolder) -> dict[str, Any]:
        job.progress.stage(stage.name)
        train, heldout, worked = _questions(config)
        train, dropped = disjoint(train, heldout)
        worked, dropped_worked = disjoint(worked, heldout)
        lost = len(dropped) + len(dropped_worked)
        if lost:
            job.progress.say(f"{lost} training questions are held-out questions too: dropped from training")
        if not train:
            raise TaskError("no training questions are left; give more problems, or other held-out questions")
        for name, problems in (("train", train), ("heldout", heldout), ("worked", worked)):
            write_problems(stage.path / DATA_FILES[name], problems)
        return {
            "policy": config.policy,
            "value": config.value,
            "data": f"generated set {config.generate.name!r}" if config.generate else config.problems,
            "train": len(train),
            "heldout": len(heldout),
            "worked": len(worked),
            "dropped": lost,
            "seed": config.seed,
            "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "device": device_of(config.engine.device),
            "python": platform.python_version(),
            **{name: installed(name) for name in ("restmcts", "torch", "transformers")},
        }

    folder = job.stage("data", "data", WARM, work, settings=settings, inputs=inputs)
    job.folder.check_whole({"data": folder})
    return Data(folder, *(_problems(folder / DATA_FILES[name]) for name in ("train", "heldout", "worked")))


def device_of(name: str) -> str | None:
    """The device that models run on; None for `auto` where torch is not installed."""
    try:
        return pick_device(name)
    except ImportError:
        return None


def installed(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _questions(config: RunConfig) -> tuple[list[Problem], list[Problem], list[Problem]]:
    if config.generate is not None:
        from restmcts.tasks.generate import generate

        g = config.generate
        made = generate(g.name, train=g.train, heldout=g.heldout, worked=g.worked, seed=g.seed)
        return list(made.train), list(made.heldout), list(made.worked)
    options: dict[str, Any] = {"fields": config.fields or None, "task": config.task}
    graded = config.labels.source == "oracle" and config.method != "self-rewarding"
    train = load_problems(str(config.problems), limit=config.limit, need_answer=graded, **options)
    heldout = [] if config.heldout is None else load_problems(config.heldout, **options)
    worked = [] if config.worked is None else load_problems(config.worked, **options)
    without = [problem.id for problem in worked if not problem.solution]
    if without:
        raise TaskError(f"{config.worked}: {without[0]!r} has no `solution`; worked examples need one step per line")
    return train, heldout, worked


def _problems(path: Path) -> list[Problem]:
    return [Problem(**record) for record in read_jsonl(path)]
