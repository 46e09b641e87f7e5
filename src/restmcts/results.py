"""What run folders hold, read back: stage records, held-out rows, accuracies and differences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restmcts.config import read_yaml
from restmcts.errors import StoreError
from restmcts.evaluate import ROWS, Row, read_rows
from restmcts.metrics import Difference, Interval, paired_difference, share, wilson
from restmcts.store import read_jsonl

METRICS, CONFIG = "metrics.jsonl", "config.yaml"
BASE, WARM = -1, 0
"""phases of a run: the untrained model, the warm start, then rounds 1, 2, …"""
MODES = ("greedy", "search")
KINDS = ("family", "subject", "type", "level")
"""columns of question sets that say what kind of question it is, the most telling first"""


def phase_name(phase: int) -> str:
    return {BASE: "base model", WARM: "warm start"}.get(phase, f"round {phase}")


def held_out(records: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Held-out accuracy after the warm start and every round: greedy where it was measured, else by search."""
    found: dict[str, dict[int, float]] = {mode: {} for mode in MODES}
    for record in records:
        share = record["metrics"].get("accuracy")
        if record["kind"] == "evaluate" and record["phase"] >= WARM and share is not None:
            found[record["mode"]][record["phase"]] = share
    return next((shares for shares in found.values() if shares), {})


def best_phase(records: Sequence[Mapping[str, Any]]) -> int | None:
    """The phase with the highest `held_out` accuracy, the earliest of equals; None where nothing was measured."""
    measured = held_out(records)
    return max(sorted(measured), key=measured.__getitem__, default=None)


@dataclass(slots=True)
class RunResults:
    """What a run folder says about itself."""

    out: Path
    records: list[dict[str, Any]]
    """metrics.jsonl: one per finished stage"""
    rows: dict[tuple[int, str], list[Row]]
    """held-out rows by (phase, mode)"""
    questions: dict[str, str]
    """held-out questions by id: over several runs, equal questions are one cluster"""
    kinds: dict[str, str]
    """held-out questions by id: what kind they are, where the question set says so"""
    settings: dict[str, Any]
    """its config.yaml"""

    def of_kind(self, kind: str) -> dict[int, dict[str, Any]]:
        """The records of one kind of stage, by phase."""
        return {record["phase"]: record for record in self.records if record["kind"] == kind}

    def evaluation(self, phase: int, mode: str) -> dict[str, Any] | None:
        found = [r for r in self.records if r["kind"] == "evaluate" and (r["phase"], r["mode"]) == (phase, mode)]
        return found[-1] if found else None


def load_run(out: str | Path) -> RunResults:
    """Read the results of a run folder. Raises StoreError when it holds none."""
    out = Path(out)
    if not (out / METRICS).is_file():
        raise StoreError(f"{out} holds no results ({METRICS} is missing); give the folder of a run (its --out)")
    records = list(read_jsonl(out / METRICS))
    for record in records:
        sound = "mode" in record and type(record.get("phase")) is int and isinstance(record.get("metrics"), dict)
        if not (sound and _inside(record)):
            raise StoreError(f"{out / METRICS} is damaged; run the same command again, which writes it anew")
    rows = {(r["phase"], r["mode"]): read_rows(out / r["stage"] / ROWS) for r in records if r["kind"] == "evaluate"}
    heldout = out / "data" / "heldout.jsonl"
    problems = list(read_jsonl(heldout)) if heldout.is_file() else []
    if not all(isinstance(p.get(name), str) for p in problems for name in ("id", "question")):
        raise StoreError(f"{heldout} holds no questions; restore it")
    questions = {p["id"]: p["question"] for p in problems}
    extras = ((p["id"], p["extra"]) for p in problems if isinstance(p.get("extra"), dict))
    kinds = {name: kind for name, extra in extras if (kind := kind_of(extra)) is not None}
    config = out / CONFIG
    settings = read_yaml(config) if config.is_file() else {}
    return RunResults(out, records, rows, questions, kinds, settings)


def _inside(record: Mapping[str, Any]) -> bool:
    """Whether a record names a stage, of a kind and a mode, in the run's own folder: the file may be a stranger's."""
    named = [record.get(name) for name in ("stage", "kind", "mode")]
    if not all(isinstance(value, str) for value in named[:2]) or not isinstance(named[2], str | None):
        return False
    stage = Path(str(named[0]))
    return not stage.is_absolute() and ".." not in stage.parts and "\0" not in str(stage)


def kind_of(extra: Mapping[str, Any]) -> str | None:
    """What kind of question this is, from the further columns of its row; None where they do not say."""
    return next((str(extra[column]) for column in KINDS if extra.get(column) not in (None, "")), None)


def differing(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Names of the settings in which two runs differ, but for those of seeds, places and trackers."""
    for name in sorted(a.keys() | b.keys()):
        x, y = a.get(name), b.get(name)
        if prefix + name in ("out", "seed", "generate.seed", "report_to"):
            continue
        if isinstance(x, Mapping) and isinstance(y, Mapping):
            yield from differing(x, y, f"{prefix}{name}.")
        elif x != y:
            yield prefix + name


def phases(runs: Sequence[RunResults]) -> list[int]:
    return sorted({phase for phase, _ in runs[0].rows})


def pooled(runs: Sequence[RunResults], phase: int, mode: str) -> list[tuple[str, Row]] | None:
    """(question, row) of every run; None where that was not measured."""
    if any((phase, mode) not in run.rows for run in runs):
        return None
    return [(run.questions.get(row.id, row.id), row) for run in runs for row in run.rows[phase, mode]]


def accuracy(runs: Sequence[RunResults], phase: int, mode: str) -> tuple[float, Interval | None, int] | None:
    """Share of right answers, its 95 % interval, rows; Wilson's for one run, clustered by question for several."""
    items = pooled(runs, phase, mode)
    if not items:
        return None
    right = [row.correct for _, row in items]
    n = len(right)
    if len(runs) == 1:
        return sum(right) / n, wilson(sum(right), n), n
    return *share(right, [question for question, _ in items]), n


def comparisons(runs: Sequence[RunResults]) -> list[tuple[tuple[int, str], tuple[int, str]]]:
    """(before, after) of every comparison the report makes: each phase and the one before it, the last and the first
    trained one, the last and the base, search and greedy."""
    found: list[tuple[tuple[int, str], tuple[int, str]]] = []
    for mode in MODES:
        seen = [phase for phase in phases(runs) if pooled(runs, phase, mode) is not None]
        pairs = list(itertools.pairwise(seen))
        trained = [phase for phase in seen if phase >= WARM]
        pairs += [(first, seen[-1]) for first in (*trained[:1], *seen[:1]) if first < seen[-1]]
        found += [((a, mode), (b, mode)) for a, b in dict.fromkeys(pairs)]
    both = [p for p in phases(runs) if all(pooled(runs, p, mode) is not None for mode in MODES)]
    return found + [((phase, "greedy"), (phase, "search")) for phase in both]


def difference(runs: Sequence[RunResults], before: tuple[int, str], after: tuple[int, str]) -> Difference | None:
    """after − before on the questions that both answered, run by run."""
    old: list[bool] = []
    new: list[bool] = []
    questions: list[str] = []
    for run in runs:
        earlier = {row.id: row.correct for row in run.rows[before]}
        for row in run.rows[after]:
            if row.id in earlier:
                old.append(earlier[row.id])
                new.append(row.correct)
                questions.append(run.questions.get(row.id, row.id))
    return paired_difference(old, new, questions)
