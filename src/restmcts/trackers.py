"""Trackers of experiments: which there are, and where a run's numbers go there. Loads none of them.

What is sent, and how, is in `train/reporting.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from restmcts.errors import ConfigError

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}
"""names, as transformers' trainer knows them, and the packages that bring them"""
PROJECT = "restmcts"
"""what runs belong to, where the tracker's own environment variable names nothing else"""


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where the numbers of one training, or of a run's stages, go; by default nowhere."""

    to: tuple[str, ...] = ()
    name: str | None = None
    """what this is called there"""
    folder: Path | None = None
    """where TensorBoard's files go"""

    def arguments(self) -> dict[str, Any]:
        """For transformers' `TrainingArguments`."""
        if not self.to:
            return {"report_to": "none"}
        return {"report_to": list(self.to), "run_name": self.name, "project": PROJECT}


def read_names(given: Any) -> Any:
    """Names of trackers as they stand in settings: one name, a list of them, or none. Raises ValueError."""
    names = [given] if isinstance(given, str) else given
    if names is None or names == ["none"]:
        return ()
    if not isinstance(names, Iterable) or isinstance(names, Mapping):
        return given  # its type is refused elsewhere
    found = tuple(dict.fromkeys(names))
    for name in found:
        if name not in TRACKERS:
            near = get_close_matches(str(name), TRACKERS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(TRACKERS)}"
            raise ValueError(f"unknown tracker {str(name)[:100]!r}; {hint}")
    return found


def check_installed(names: Sequence[str]) -> None:
    """Raise ConfigError for the first tracker that is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"report_to = {name!r}: it is not installed; run: pip install {TRACKERS[name]}")


def stage_numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """What a finished stage has to tell, by name: its metrics, tokens, tokens a second, the share of cache hits."""
    found: dict[str, Any] = dict(record["metrics"])
    usage, speed = record.get("usage") or {}, record.get("speed") or {}
    found |= {name: usage.get(name) for name in ("policy_tokens", "value_tokens")}
    if speed.get("seconds") and speed.get("policy_tokens"):
        found["tokens_per_second"] = speed["policy_tokens"] / speed["seconds"]
    if usage.get("prompt_tokens"):
        found["cache_hits"] = usage.get("cached_tokens", 0) / usage["prompt_tokens"]
    found |= {"seconds": record["seconds"], "memory_mb": record.get("memory_mb")}
    place = _place(record)
    return {f"{place}/{name}": value for name, value in found.items() if type(value) in (int, float)}


def _place(record: Mapping[str, Any]) -> str:
    """The group that a stage's numbers stand in; transformers' trackers make `eval/` of `eval_`, else put `train/`
    before it."""
    if record["mode"] is None:
        return str(record["kind"])
    return f"eval_{'base_' if record['phase'] < 0 else ''}{record['mode']}"
