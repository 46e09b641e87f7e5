"""What goes over the network, as JSON: searches and requests out, trees and replies back. Nothing else is sent.

Known answers of what is searched stay with the driver, which puts a tree back on its own problem. Of the worked
examples that the policy is shown, workers are told all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from restmcts import errors
from restmcts.drive import Errand
from restmcts.encoding import PromptSettings
from restmcts.engines import TransientError
from restmcts.engines.settings import EngineSettings
from restmcts.errors import EngineError, RestmctsError
from restmcts.models import named_style
from restmcts.search import SEARCHES, SearchSettings
from restmcts.tasks import TASKS, get_task
from restmcts.types import (
    Budget,
    Critique,
    Problem,
    Proposals,
    Propose,
    Reply,
    Request,
    Sample,
    Score,
    Scores,
    Step,
    Tree,
    Usage,
    Verdict,
)
from restmcts.types import Path as Steps

_METHODS = {method: name for name, method in SEARCHES.items()}


def packed(record: Any) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode("ascii")  # what is no character is escaped too


def unpacked(line: bytes) -> Any:
    return json.loads(line)


# ---------------------------------------------------------------- whole searches


def errand_record(errand: Errand) -> dict[str, Any] | None:
    """A search as data; None where it is more than data: a method or a task that is not one of the built-in ones."""
    method = _METHODS.get(errand.method)
    if method is None or TASKS.get(errand.task.name) is not errand.task:
        return None
    return {
        "problem": _problem_record(errand.problem),
        "method": method,
        "settings": errand.settings.model_dump(mode="json"),
        "seed": errand.seed,
        "task": errand.task.name,
        "most": None if errand.most is None else dataclasses.asdict(errand.most),
    }


def errand_of(record: Mapping[str, Any]) -> Errand:
    most = record["most"]
    return Errand(
        Problem(**record["problem"]),
        SEARCHES[record["method"]],
        SearchSettings.model_validate(record["settings"]),
        record["seed"],
        get_task(record["task"]),
        most=None if most is None else Budget(**most),
    )


def tree_of(record: Mapping[str, Any], problem: Problem) -> Tree:
    """The tree that a worker has grown, on the driver's own problem."""
    tree = Tree.from_record(record)
    tree.problem = problem
    return tree


def _problem_record(problem: Problem) -> dict[str, Any]:
    names = ("id", "question", "task", "instruction")
    return {name: getattr(problem, name) for name in names}


# ---------------------------------------------------------------- single requests


def request_record(request: Request) -> dict[str, Any]:
    record = {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}
    record["problem"] = _problem_record(request.problem)
    if isinstance(request, Score):
        record["paths"] = [_steps_record(path) for path in request.paths]
    else:
        record["path"] = _steps_record(request.path)
    return {"kind": type(request).__name__, **record}


def request_of(record: Mapping[str, Any]) -> Request:
    given = {**record, "problem": Problem(**record["problem"])}
    kind = given.pop("kind")
    if kind == "Score":
        return Score(given["problem"], tuple(_steps(path) for path in given["paths"]))
    given["path"] = _steps(given["path"])
    return Propose(**given) if kind == "Propose" else Critique(**given)


def reply_record(reply: Reply) -> dict[str, Any]:
    return {"kind": type(reply).__name__, **dataclasses.asdict(reply)}


def reply_of(record: Mapping[str, Any]) -> Proposals | Scores | Verdict:
    given = {**record, "usage": Usage(**record["usage"])}
    kind = given.pop("kind")
    if kind == "Scores":
        tokens = given["tokens"]
        return Scores(tuple(given["values"]), given["usage"], None if tokens is None else tuple(tokens))
    if kind == "Verdict":
        return Verdict(**given)
    samples = tuple(Sample(**{**sample, "step": _step(**sample["step"])}) for sample in given["samples"])
    return Proposals(samples, given["usage"])


def _steps_record(path: Steps) -> list[dict[str, Any]]:
    return [{"text": step.text, "ids": step.ids} for step in path]


def _steps(path: Sequence[Mapping[str, Any]]) -> Steps:
    return tuple(_step(**step) for step in path)


def _step(text: str, ids: Sequence[int] | None) -> Step:
    return Step(text, None if ids is None else tuple(ids))


# ---------------------------------------------------------------- errors


def error_record(error: RestmctsError) -> dict[str, Any]:
    """An error that a person can do something about, as data."""
    record: dict[str, Any] = {"kind": type(error).__name__, "message": str(error)}
    if isinstance(error, TransientError):
        record |= {"again": error.again, "usage": dataclasses.asdict(error.usage)}
    return record


def error_of(record: Mapping[str, Any]) -> RestmctsError:
    message = record["message"]
    if record["kind"] == "TransientError":
        return TransientError(message, again=record["again"], usage=Usage(**record["usage"]))
    found = getattr(errors, record["kind"], RestmctsError)
    error: RestmctsError = found(message)
    return error


# ---------------------------------------------------------------- how engines are opened


def recipe_record(
    policy: str | Path,
    value: str | Path | None,
    prompt: PromptSettings,
    engine: EngineSettings,
    examples: Sequence[Problem],
) -> dict[str, Any]:
    """All that a worker needs to open its engines; folders by their whole path."""
    specs = {"policy": str(policy), "value": None if value is None else str(value)}
    folders = []
    for name, spec in specs.items():
        style, place = named_style(spec) if spec is not None else (None, "")
        if place and Path(place).exists():
            place = str(Path(place).resolve())
            folders.append(place)
            specs[name] = place if style is None else f"{style}:{place}"
    shown = [{**_problem_record(p), "answer": p.answer, "solution": p.solution} for p in examples]
    settings = {"prompt": prompt.model_dump(mode="json"), "engine": engine.model_dump(mode="json")}
    return {**specs, **settings, "examples": shown, "folders": folders}


def check_folders(recipe: Mapping[str, Any], where: str) -> None:
    """Raise EngineError where a model that the driver sees is not to be seen."""
    for folder in recipe["folders"]:
        if not Path(folder).exists():
            raise EngineError(
                f"{folder} is not there on {where}: models must lie where every machine sees them; put them, and "
                "the run folder, on a file system that all share, or name a model of the hub"
            )
