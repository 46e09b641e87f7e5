"""The numbers of a run, or of several seeds of it, as the page's plots and tables want them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from restmcts.findings import result_tables
from restmcts.results import MODES, RunResults, accuracy, phase_name, phases

_QUALITY = ("auc_in_tree", "auc_siblings", "auc_leaves", "mae", "ece", "nodes")
_SEARCHED = ("questions", "solved", "reached", "right_traces")
_COST = ("policy_tokens", "prompt_tokens", "cached_tokens", "value_tokens")


def overview(runs: Sequence[RunResults]) -> dict[str, Any]:
    """Accuracy, value-model quality, searches and costs, JSON-ready; means over the runs where there are several."""
    return {
        "runs": [run.out.name for run in runs],
        "accuracy": [_accuracy(runs, phase) for phase in phases(runs)],
        "value": [found for phase in phases(runs) if (found := _value(runs, phase))],
        "search": [_search(runs, phase) for phase in sorted({p for run in runs for p in run.of_kind("search")})],
        "stages": _stages(runs),
        "tables": [asdict(table) for table in result_tables(runs, places=False)],
    }


def _accuracy(runs: Sequence[RunResults], phase: int) -> dict[str, Any]:
    found: dict[str, Any] = {"phase": phase, "name": phase_name(phase)}
    for mode in MODES:
        measured = accuracy(runs, phase, mode)
        if measured is not None:
            share, interval, n = measured
            found[mode] = {"share": share, "interval": None if interval is None else list(interval), "n": n}
    return found


def _value(runs: Sequence[RunResults], phase: int) -> dict[str, Any] | None:
    records = [record for run in runs if (record := run.evaluation(phase, "search")) is not None]
    quality = [q for record in records if (q := record["metrics"].get("quality"))]
    if not quality:
        return None
    means = {name: _mean([q.get(name) for q in quality]) for name in _QUALITY}
    bins = quality[0].get("reliability") if len(quality) == 1 else None
    return {"phase": phase, "name": phase_name(phase), **means, "reliability": bins}


def _search(runs: Sequence[RunResults], phase: int) -> dict[str, Any]:
    facts = []
    for run in runs:
        if phase in run.of_kind("search"):
            label = run.of_kind("label").get(phase)
            facts.append({**run.of_kind("search")[phase]["metrics"], **(label["metrics"] if label else {})})
    means = {name: _mean([fact.get(name) for fact in facts]) for name in _SEARCHED}
    return {"phase": phase, "name": phase_name(phase), **means}


def _stages(runs: Sequence[RunResults]) -> list[dict[str, Any]]:
    """What each stage took, in the order of the run."""
    found = []
    for stage in dict.fromkeys(record["stage"] for run in runs for record in run.records):
        records = [record for run in runs for record in run.records if record["stage"] == stage]
        usages = [record["usage"] for record in records if record.get("usage")]
        cost = {name: _mean([usage.get(name) for usage in usages]) for name in _COST}
        seconds = _mean([record["seconds"] for record in records])
        found.append({"stage": stage, "kind": records[0]["kind"], "seconds": seconds, **cost})
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
