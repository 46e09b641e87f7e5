"""Tables of what the methods of self-training do beside searching and imitating; see `report`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from restmcts.results import WARM, RunResults, best_phase, held_out, phase_name
from restmcts.tables import Table, count, number, percent

Form = Callable[[float | None], str]


@dataclass(frozen=True, slots=True)
class _Spec:
    """A table: for each phase the metrics of its stage of a kind, by column."""

    title: str
    kind: str
    columns: dict[str, tuple[str, Form]]
    note: str
    within: str | None = None
    """the metrics' part that holds them"""
    needs: str | None = None
    """the metric without which a stage is another method's"""


PSEUDO = _Spec(
    "Labels without known answers, against these",
    "label",
    {
        "trees labelled": ("covered", percent),
        "leaves": ("leaves", count),
        "precision": ("precision", percent),
        "recall": ("recall", percent),
        "agreement": ("agreement", percent),
        "questions": ("questions", percent),
    },
    "The known answers were not used to train. Leaf by leaf: precision, of those called right; recall, of those that "
    "are; agreement, of all judged. Questions: of those with a leaf called right, the share in which one of these is.",
    within="pseudo",
)
JUDGE = _Spec(
    "The judge",
    "judge",
    {"solutions": ("judged", count), "unread": ("unread", count), "AUC": ("auc", number)},
    "Unread: no verdict on it could be read. AUC: the chance that a right solution gets more points than a wrong one; "
    "0.5 is no better than chance.",
)
PREFERENCE = _Spec(
    "Preference training",
    "policy",
    {
        "pairs": ("rows", count),
        "preferred at first": ("accuracy_first", percent),
        "at last": ("accuracy_last", percent),
        "margin at last": ("margin_last", number),
    },
    "Preferred: the share of pairs whose better side gained more over the policy of before than the worse one, in the "
    "first and the last fifth of the steps.",
    needs="accuracy_last",
)
ONLINE = _Spec(
    "Online training",
    "policy",
    {
        "steps": ("steps", count),
        "reward at first": ("reward_first", percent),
        "at last": ("reward_last", percent),
        "tokens at first": ("length_first", count),
        "at last ": ("length_last", count),
        "silent groups": ("silent_last", percent),
    },
    "Reward: the share of sampled solutions that were right, in the first and the last fifth of the steps. Silent "
    "groups: questions all of whose solutions were right, or none, at last: nothing is learned of them.",
    needs="reward_last",
)


def method_tables(runs: Sequence[RunResults]) -> list[Table]:
    """The tables of pseudo-labels, of a judge, of pairs and of online training; empty ones say nothing."""
    return [_by_phase(spec, runs) for spec in (PSEUDO, JUDGE, PREFERENCE, ONLINE)]


def best_note(run: RunResults) -> str | None:
    """Which round is the best, where the run was told to stop when held-out accuracy falls."""
    patience = (run.settings.get("curriculum") or {}).get("patience")
    best = best_phase(run.records)
    if patience is None or best is None:
        return None
    share, last = held_out(run.records)[best], max(held_out(run.records))
    rounds = run.settings.get("rounds")
    stopped = f"The run ended after {phase_name(last)} of {rounds}. " if last > WARM and last != rounds else ""
    return (
        f"**Best: {phase_name(best)}**, {share:.1%}. {stopped}It was chosen by these held-out questions, so its "
        "accuracy on them flatters it a little: measure it on others."
    )


def _by_phase(spec: _Spec, runs: Sequence[RunResults]) -> Table:
    """One row for each phase; means over the runs."""
    table = Table(spec.title, ["", *spec.columns])
    found: dict[int, list[dict[str, Any]]] = {}
    for run in runs:
        for phase, record in run.of_kind(spec.kind).items():
            facts = record["metrics"] if spec.within is None else record["metrics"].get(spec.within)
            if facts and (spec.needs is None or spec.needs in facts):
                found.setdefault(phase, []).append(facts)
    for phase in sorted(found):
        cells = []
        for key, form in spec.columns.values():
            values = [facts[key] for facts in found[phase] if facts.get(key) is not None]
            cells.append(form(sum(values) / len(values) if values else None))
        table.rows.append([phase_name(phase), *cells])
    if table.rows:
        table.notes.append(spec.note)
    return table
