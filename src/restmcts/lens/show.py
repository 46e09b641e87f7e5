"""Tables of what a value model is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from restmcts.lens.processbench import HALVES, USUAL
from restmcts.tables import Table, count, number, percent, with_interval


def tables(found: Mapping[str, Any]) -> list[Table]:
    """All that was measured, for the screen and for Markdown."""
    made = []
    if (bench := found.get("processbench")) is not None:
        made += [_processbench_table(bench[rule]["chosen"], bench[rule]["usual"]) for rule in USUAL]
    if (seen := found.get("trees")) is not None:
        made += [_quality_table(seen["quality"]), _depth_table(seen["quality"]), _curve_table(seen["quality"])]
        if seen["best_of_n"] is not None:
            made.append(_best_table(seen["best_of_n"]))
    return made


_READ = {
    "value": "a step is taken for wrong when the value falls below the threshold",
    "gain": "a step is taken for wrong when it raises the value by less than the threshold",
}


def _processbench_table(chosen: Mapping[str, Any], usual: Mapping[str, Any]) -> Table:
    rule = chosen["rule"]
    columns = ["", "samples", "F1", "wrong step found", "right seen as right", f"F1 at {usual['threshold']}"]
    table = Table(f"ProcessBench, by {rule}", columns)
    for subset, result in chosen["subsets"].items():
        f1 = with_interval(result["f1"], result["interval"])
        cells = [str(result["samples"]), f1, percent(result["wrong"]), percent(result["right"])]
        table.rows.append([subset, *cells, percent(usual["subsets"][subset]["f1"])])
    average = with_interval(chosen["average"], chosen["average_interval"])
    table.rows.append(["average", "", average, "", "", percent(usual["average"])])
    at = " and ".join(number(threshold) for threshold in chosen["thresholds"])
    how = {
        HALVES: "each half of the samples judged by the threshold that is best for the other half",
        **{
            subset: f"the best threshold for {subset}, whose own F1 is therefore too high"
            for subset in chosen["subsets"]
        },
    }.get(chosen["threshold"], "as given")
    table.notes.append(f"By {rule}: {_READ[rule]}. Threshold {at}: {how}. F1 is the harmonic mean of the two shares.")
    if chosen["unscored"]:
        table.notes.append(f"**{chosen['unscored']} samples could not be scored; they count as not seen through.**")
    return table


def _quality_table(quality: Mapping[str, Any]) -> Table:
    columns = "nodes,MAE,RMSE,within 0.1,Pearson,Spearman,AUC,AUC in tree,siblings ranked,AUC leaves,ECE".split(",")
    keys = "nodes mae rmse within_0.1 pearson spearman auc auc_in_tree auc_siblings auc_leaves ece".split()
    table = Table("Value against label, on the trees", columns)
    table.rows.append([count(quality[key]) if key == "nodes" else number(quality[key]) for key in keys])
    table.notes.append(
        "Labels are process rewards from the verified trees. Within 0.1 is Eq. 38. AUC: the chance that a right step "
        "(r = 0) scores above a wrong one: over all nodes, within a tree, among siblings "
        f"({quality['families_ranked']} families with both); AUC leaves: finished leaves by their answer. ECE: "
        "calibration of finished leaves."
    )
    return table


def _depth_table(quality: Mapping[str, Any]) -> Table:
    columns = ["depth", "nodes", "mean value", "mean label", "MAE", "within 0.1", "AUC", "leaves", "value", "right"]
    table = Table("Error by depth", columns)
    leaves = {row["depth"]: row for row in quality["by_depth"]}
    for row in quality["error_by_depth"]:
        leaf = leaves.get(row["depth"], {})
        ends = [count(leaf.get("n", 0)), number(leaf.get("predicted"), 2), percent(leaf.get("observed"))]
        cells = [number(row[key], 2) for key in ("predicted", "value", "mae", "within_0.1", "auc")]
        table.rows.append([str(row["depth"]), count(row["n"]), *cells, *ends])
    table.notes.append(
        "The last three columns are those of finished leaves: how many, their mean value, how many right."
    )
    return table


def _curve_table(quality: Mapping[str, Any]) -> Table:
    columns = ["value", "nodes", "mean value", "mean label", "right steps", "leaves", "right leaves"]
    table = Table("Calibration", columns)
    leaves = {row["low"]: row for row in quality["reliability"]}
    for row in quality["curve"]:
        leaf = leaves.get(row["low"], {})
        cells = [count(row["n"]), number(row["predicted"], 2), number(row["value"], 2), percent(row["right"])]
        ends = [count(leaf.get("n", 0)), percent(leaf.get("observed"))]
        table.rows.append([f"{row['low']:.1f} – {row['high']:.1f}", *cells, *ends])
    return table


_NAMES = {
    "majority": "self-consistency (majority)",
    "best last": "Best-of-N, last step (outcome)",
    "any": "any sample right",
    **{f"best {of}": f"Best-of-N, {of} of the steps" for of in ("min", "mean", "product")},
    "vote last": "value-weighted vote, last step",
    **{f"vote {of}": f"value-weighted vote, {of} of the steps" for of in ("min", "mean", "product")},
}


def _best_table(found: Mapping[str, Any]) -> Table:
    """Accuracy by rule and N; the interval stands at the largest N."""
    table = Table("Choosing among N samples", ["", *(f"N = {n}" for n in found["n"])])
    for rule, cells in found["rules"].items():
        *most, last = cells
        shown = [percent(cell["accuracy"]) for cell in most] + [with_interval(last["accuracy"], last["interval"])]
        table.rows.append([_NAMES[rule], *shown])
    table.notes.append(
        f"Accuracy on {found['questions']} questions with {count(found['samples'])} samples in all, N of each drawn "
        "without replacement; a question with fewer gives all it has. Brackets: 95 % bootstrap over questions."
    )
    return table
