"""Tables of what the methods of self-training do beside searching and imitating; see `report`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from restmcts.results import WARM, RunResults, best_phase, held_out, phase_name
from restmcts.tables import Table, count, number, percent

Form = Callable[[float | None], str]


def method_tables(runs: Sequence[RunResults]) -> list[Table]:
    """The tables of pseudo-labels, of a judge, of pairs and of online training; empty ones say nothing."""
    return [pseudo_table(runs), judge_table(runs), preference_table(runs), online_table(runs)]


def pseudo_table(runs: Sequence[RunResults]) -> Table:
    columns: dict[str, tuple[str, Form]] = {
        "trees labelled": ("covered", percent),
        "leaves": ("leaves", count),
        "precision": ("precision", percent),
        "recall": ("recall", percent),
        "agreement": ("agreement", percent),
        "questions": ("questions", percent),
    }
    table = _by_phase("Labels without known answers, against these", runs, "label", columns, within="pseudo")
    if table.rows:
        table.notes.append(
            "The known answers were not used to train. Leaf by leaf: precision, of those called right; recall, of "
            "those that are; agreement, of all judged. Questions: of those with a leaf called right, the share in "
            "which one of these is."
        )
    return table


def judge_table(runs: Sequence[RunResults]) -> Table:
    columns: dict[str, tuple[str, Form]] = {
        "solutions": ("judged", count),
        "unread": ("unread", count),
        "AUC": ("auc", number),
    }
    table = _by_phase("The judge", runs, "judge", columns)
    if table.rows:
        table.notes.append(
            "Unread: no verdict on it could be read. AUC: the chance that a right solution gets more points than a "
            "wrong one; 0.5 is no better than chance."
        )
    return table


def preference_table(runs: Sequence[RunResults]) -> Table:
    columns: dict[str, tuple[str, Form]] = {
        "pairs": ("rows", count),
        "preferred at first": ("accuracy_first", percent),
        "at last": ("accuracy_last", percent),
        "margin at last": ("margin_last", number),
    }
    table = _by_phase("Preference training", runs, "policy", columns, needs="accuracy_last")
    if table.rows:
        table.notes.append(
            "Preferred: the share of pairs whose better side gained more over the policy of before than the worse one, "
            "in the first and the last fifth of the steps."
        )
    return table


def online_table(runs: Sequence[RunResults]) -> Table:
    columns: dict[str, tuple[str, Form]] = {
        "steps": ("steps", count),
        "reward at first": ("reward_first", percent),
        "at last": ("reward_last", percent),
        "tokens at first": ("length_first", count),
        "at last ": ("length_last", count),
        "silent groups": ("silent_last", percent),
    }
    table = _by_phase("Online training", runs, "policy", columns, needs="reward_last")
    if table.rows:
        table.notes.append(
            "Reward: the share of sampled solutions that were right, in the first and the last fifth of the steps. "
            "Silent groups: questions all of whose solutions were right, or none, at last: nothing is learned of them."
        )
    return table


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


def _by_phase(
    title: str,
    runs: Sequence[RunResults],
    kind: str,
    columns: dict[str, tuple[str, Form]],
    *,
    within: str | None = None,
    needs: str | None = None,
) -> Table:
    """One row for each phase, from the metrics of its stage of this kind; means over the runs."""
    table = Table(title, ["", *columns])
    found: dict[int, list[dict[str, Any]]] = {}
    for run in runs:
        for phase, record in run.of_kind(kind).items():
            facts = record["metrics"] if within is None else record["metrics"].get(within)
            if facts and (needs is None or needs in facts):
                found.setdefault(phase, []).append(facts)
    for phase in sorted(found):
        cells = []
        for key, form in columns.values():
            values = [facts[key] for facts in found[phase] if facts.get(key) is not None]
            cells.append(form(sum(values) / len(values) if values else None))
        table.rows.append([phase_name(phase), *cells])
    return table
