"""Tables of what a value model is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from restmcts.lens.processbench import HALVES, USUAL
from restmcts.tables import ABSENT, Table, count, number


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
    "value": "A step is taken for wrong when the value falls below the threshold",
    "gain": "A step is taken for wrong when it raises the value by less than the threshold",
}


def _processbench_table(chosen: Mapping[str, Any], usual: Mapping[str, Any]) -> Table:
    rule = chosen["rule"]
    columns = ["%", "samples", "F1", "95 %", "wrong", "right", f"F1 at {usual['threshold']}"]
    table = Table(f"ProcessBench, by {rule}", columns)
    for subset, result in chosen["subsets"].items():
        shares = [_percent(result["wrong"]), _percent(result["right"]), _percent(usual["subsets"][subset]["f1"])]
        table.rows.append([subset, str(result["samples"]), _percent(result["f1"]), _span(result["interval"]), *shares])
    average = [_percent(chosen["average"]), _span(chosen["average_interval"]), "", "", _percent(usual["average"])]
    table.rows.append(["average", str(sum(r["samples"] for r in chosen["subsets"].values())), *average])
    at = " and ".join(number(threshold) for threshold in chosen["thresholds"])
    how = {
        HALVES: "each half of the samples judged by the threshold that is best for the other half",
        **{
            subset: f"the best threshold for {subset}, whose own F1 is therefore too high"
            for subset in chosen["subsets"]
        },
    }.get(chosen["threshold"], "as given")
    table.notes.append(
        f"{_READ[rule]}. Threshold {at}: {how}. "
        "Wrong: solutions whose first wrong step was found; right: right ones seen as such; F1: their harmonic mean."
    )
    if chosen["unscored"]:
        table.notes.append(f"**{chosen['unscored']} samples could not be scored; they count as not seen through.**")
    return table


def _quality_table(quality: Mapping[str, Any]) -> Table:
    table = Table("Value against label, on the trees", ["measure", ""])
    rows = {
        "nodes": "labelled nodes",
        "mae": "mean absolute error",
        "rmse": "root mean squared error",
        "within_0.1": "share within 0.1 of the label (Eq. 38)",
        "pearson": "correlation",
        "spearman": "rank correlation",
        "auc": "right steps above wrong ones",
        "auc_in_tree": "… within a tree",
        "auc_siblings": f"… among siblings ({count(quality['families_ranked'])} families with both)",
        "auc_leaves": "right leaves above wrong ones",
        "ece": "calibration error of leaves",
    }
    table.rows = [[name, count(quality[key]) if key == "nodes" else number(quality[key])] for key, name in rows.items()]
    table.notes.append(
        "Labels are process rewards from the verified trees; a step is right when a right leaf lies below."
    )
    return table


def _depth_table(quality: Mapping[str, Any]) -> Table:
    columns = ["depth", "nodes", "value", "label", "MAE", "≤ 0.1", "AUC", "leaves", "value", "right, %"]
    table = Table("Error by depth", columns)
    leaves = {row["depth"]: row for row in quality["by_depth"]}
    for row in quality["error_by_depth"]:
        leaf = leaves.get(row["depth"], {})
        ends = [count(leaf.get("n", 0)), number(leaf.get("predicted"), 2), _percent(leaf.get("observed"))]
        cells = [number(row[key], 2) for key in ("predicted", "value", "mae", "within_0.1", "auc")]
        table.rows.append([str(row["depth"]), count(row["n"]), *cells, *ends])
    table.notes.append(
        "Mean value and mean label, mean absolute error, share within 0.1, and the chance that a right step scores "
        "above a wrong one there. The last three columns: finished leaves, their mean value, how many are right."
    )
    return table


def _curve_table(quality: Mapping[str, Any]) -> Table:
    columns = ["value", "nodes", "mean", "label", "steps right, %", "leaves", "right, %"]
    table = Table("Calibration", columns)
    leaves = {row["low"]: row for row in quality["reliability"]}
    for row in quality["curve"]:
        leaf = leaves.get(row["low"], {})
        cells = [count(row["n"]), number(row["predicted"], 2), number(row["value"], 2), _percent(row["right"])]
        ends = [count(leaf.get("n", 0)), _percent(leaf.get("observed"))]
        table.rows.append([f"{row['low']:.1f} – {row['high']:.1f}", *cells, *ends])
    return table


def _span(interval: Sequence[float] | None) -> str:
    return ABSENT if interval is None else f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"


def _percent(x: float | None) -> str:
    return ABSENT if x is None else f"{100 * x:.1f}"


def _best_table(found: Mapping[str, Any]) -> Table:
    """Accuracy by rule and N in per cent; the interval is that of the largest N."""
    table = Table("Choosing among N samples: accuracy, %", ["N =", *(str(n) for n in found["n"]), "95 %"])
    for rule, cells in found["rules"].items():
        name = {"majority": "SC", "any": "any right"}.get(rule, rule.replace("best", "BoN"))
        table.rows.append([name, *(f"{100 * cell['accuracy']:.1f}" for cell in cells), _span(cells[-1]["interval"])])
    table.notes.append(
        f"{found['questions']} questions with {count(found['samples'])} samples in all, N of each drawn without "
        "replacement; a question with fewer gives all it has. SC: the answer given most often; BoN: the sample of the "
        "highest value; vote: the answer whose samples have the most value. A sample is worth what its last step is "
        "(so judges an outcome reward model), or the least, the mean or the product of its steps. Any right: what the "
        "best choice could reach. 95 %: bootstrap over questions, at the largest N."
    )
    return table
