"""What a run gained, what it cost and how sure that is, as tables. Reads stored runs only.

One run or several seeds of it go through the same code: over several, accuracies and differences are pooled, and
their intervals come from a bootstrap that draws whole questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from restmcts.errors import StoreError
from restmcts.method_tables import best_note, method_tables
from restmcts.metrics import Difference
from restmcts.results import (
    BASE,
    CONFIG,
    METRICS,
    MODES,
    WARM,
    RunResults,
    accuracy,
    best_phase,
    comparisons,
    difference,
    differing,
    phase_name,
    phases,
    pooled,
)
from restmcts.tables import ABSENT, Table, count, duration, number, percent, points, probability, with_interval


def result_tables(runs: Sequence[RunResults], *, places: bool = True) -> list[Table]:
    """All tables on one run, or on several seeds of it; for one run, `places` adds where things lie on the disk.

    Raises StoreError for results that are damaged.
    """
    try:
        return _result_tables(runs, places=places)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise StoreError(
            f"the results in {', '.join(str(run.out) for run in runs)} are damaged ({type(error).__name__}: {error}); "
            "run the same command again, which writes its metrics anew"
        ) from error


def _result_tables(runs: Sequence[RunResults], *, places: bool = True) -> list[Table]:
    """All tables on one run, or on several seeds of it; for one run, `places` adds where things lie on the disk."""
    own = method_tables(runs)
    averaged = [value_table(runs), search_table(runs), training_table(runs), *own, cost_table(runs)]
    tables = [
        accuracy_table(runs),
        differences_table(runs),
        kinds_table(runs),
        averaged[0],
        calibration_table(runs),
        *averaged[1:],
    ]
    if len(runs) > 1:
        tables.insert(1, seeds_table(runs))
        for table in averaged:
            table.notes += [f"Means over {len(runs)} runs."] if table.rows else []
    elif places:
        tables.append(places_table(runs[0]))
    return [*(table for table in tables if table.rows or table.notes), conditions_table(runs)]


# ---------------------------------------------------------------- held-out accuracy


def accuracy_table(runs: Sequence[RunResults]) -> Table:
    columns = ["", "greedy", "tokens a question", "search", "tokens a question", "seconds a question"]
    table = Table("Held-out accuracy", columns)
    sizes = set()
    for phase in phases(runs):
        cells = [phase_name(phase)]
        for mode in MODES:
            found, items = accuracy(runs, phase, mode), pooled(runs, phase, mode)
            cells.append(with_interval(found[0], found[1]) if found else ABSENT)
            cells.append(count(_mean([row.policy_tokens for _, row in items])) if items else ABSENT)
            if found:
                sizes.add(found[2])
            if mode == "search":
                cells.append(number(_mean([row.seconds for _, row in items]), 1) if items else ABSENT)
        table.rows.append(cells)
    kind = "Wilson" if len(runs) == 1 else f"bootstrap over questions, {len(runs)} runs pooled"
    table.notes.append(
        f"n = {', '.join(map(str, sorted(sizes)))} answers; 95 % intervals ({kind}); "
        "tokens are those the policy generated; a question without an answer counts as wrong; "
        "seconds are those a question waited for its replies, many being open at once."
    )
    if len(runs) == 1 and (best := best_note(runs[0])) is not None:
        table.notes.append(best)
    if any(phase == BASE for phase in phases(runs)) and ("search" in {m for p, m in runs[0].rows if p == BASE}):
        table.notes.append("The base model has no value model of its own; the first one trained scores its search.")
    return table


def seeds_table(runs: Sequence[RunResults]) -> Table:
    table = Table("Held-out accuracy by run", ["", *(run.out.name for run in runs)])
    for phase in phases(runs):
        for mode in MODES:
            if pooled(runs, phase, mode) is not None:
                alone = [accuracy([run], phase, mode) for run in runs]
                table.rows.append([f"{phase_name(phase)}, {mode}", *(percent(a[0]) if a else ABSENT for a in alone)])
    return table


# ---------------------------------------------------------------- differences


def differences_table(runs: Sequence[RunResults]) -> Table:
    table = Table("Differences, on the same questions", ["", "points gained", "better", "worse", "p", "excludes 0"])
    for before, after in comparisons(runs):
        found = difference(runs, before, after)
        if found is not None:
            table.rows.append(
                [
                    _comparison_name(before, after),
                    points(found.mean, found.interval),
                    str(found.wins),
                    str(found.losses),
                    probability(found.p),
                    _verdict(found),
                ]
            )
    if table.rows:
        table.notes.append(
            "95 % paired bootstrap over questions; better and worse count questions; p is the exact sign test. "
            "Where the interval includes 0 (excludes 0: no), the data do not show a difference; where only p does not "
            "agree, there are too few questions to be sure."
        )
    return table


def kinds_table(runs: Sequence[RunResults]) -> Table:
    """The last phase, kind of question by kind: where the models are good, and where search helps."""
    columns = ["", "answers", "greedy", "search", "search − greedy"]
    table = Table("Held-out accuracy by kind of question, at the end", columns)
    last = max(phases(runs), default=BASE)
    groups: dict[str, dict[str, list[bool]]] = {}
    for mode in MODES:
        for run in runs:
            for row in run.rows.get((last, mode), ()):
                if (kind := run.kinds.get(row.id)) is not None:
                    groups.setdefault(kind, {}).setdefault(mode, []).append(row.correct)
    if len(groups) < 2:
        return table
    for kind, found in sorted(groups.items()):
        shares = [_ratio(sum(found.get(mode, ())), len(found.get(mode, ()))) for mode in MODES]
        greedy, search = shares
        gain = ABSENT if greedy is None or search is None else points(search - greedy, None)
        answers = max(map(len, found.values()))
        table.rows.append([kind, str(answers), *(ABSENT if x is None else percent(x) for x in shares), gain])
    table.notes.append("One kind has few questions: its numbers are rough, and no interval is given.")
    return table


def _verdict(found: Difference) -> str:
    if not found.certain:
        return "**no**"
    return "yes" if found.p is not None and found.p < 0.05 else "**yes, but p ≥ 0.05**"


def _comparison_name(before: tuple[int, str], after: tuple[int, str]) -> str:
    if before[0] == after[0]:
        return f"{phase_name(after[0])}: search − greedy"
    return f"{after[1]}: {phase_name(after[0])} − {phase_name(before[0])}"


# ---------------------------------------------------------------- value models


def value_table(runs: Sequence[RunResults]) -> Table:
    columns = "MAE,RMSE,within 0.1,Pearson,Spearman,AUC,AUC in tree,AUC siblings,AUC leaves,ECE,nodes".split(",")
    keys = "mae rmse within_0.1 pearson spearman auc auc_in_tree auc_siblings auc_leaves ece nodes".split()
    table = Table("Value model, on the trees of the held-out search", ["", *columns])
    for phase in phases(runs):
        found = [_quality(run, phase) for run in runs]
        if any(found):
            cells = [_over_runs([q.get(key) for q in found if q], count if key == "nodes" else number) for key in keys]
            table.rows.append([phase_name(phase), *cells])
    if table.rows:
        table.notes.append(
            "Against process rewards from the verified trees. Within 0.1 is Eq. 38. AUC: the chance that a right step "
            "(r = 0) scores above a wrong one: over all nodes, within a tree, among siblings; AUC leaves: finished "
            "leaves by their answer. ECE: calibration of finished leaves. Each row is measured on its own trees, so "
            "rows differ in difficulty too."
        )
    return table


def calibration_table(runs: Sequence[RunResults]) -> Table:
    table = Table("Calibration of the last value model at finished leaves", ["value", "leaves", "mean value", "right"])
    searched = [phase for phase in phases(runs) if _quality(runs[0], phase)]
    if len(runs) > 1 or not searched:
        return table
    quality = _quality(runs[0], searched[-1])
    for b in quality["reliability"]:
        cells = [f"{b['low']:.1f} – {b['high']:.1f}", count(b["n"]), number(b["predicted"], 2), percent(b["observed"])]
        table.rows.append(cells)
    depths = [f"{d['depth']}: {d['predicted']:.2f} / {percent(d['observed'])} ({d['n']})" for d in quality["by_depth"]]
    if depths:
        table.notes.append("By number of steps, mean value / share right (leaves): " + "; ".join(depths) + ".")
    return table


def _quality(run: RunResults, phase: int) -> dict[str, Any]:
    found = run.evaluation(phase, "search")
    return (found["metrics"].get("quality") or {}) if found else {}


# ---------------------------------------------------------------- search, training, cost


def search_table(runs: Sequence[RunResults]) -> Table:
    columns = ["", *"questions,solved,with a right leaf,right traces,nodes a tree,tokens a tree,cache hits".split(",")]
    table = Table("Search for training data", columns)
    for phase in sorted({p for run in runs for p in run.of_kind("search")}):
        found = [_search_facts(run, phase) for run in runs if phase in run.of_kind("search")]
        table.rows.append(
            [
                phase_name(phase),
                _over_runs([m["questions"] for m in found], count),
                _over_runs([_ratio(m.get("solved"), m["questions"]) for m in found], percent),
                _over_runs([_ratio(m.get("reached"), m["questions"]) for m in found], percent),
                _over_runs([m.get("right_traces") for m in found], count),
                _over_runs([_ratio(m["nodes"], m["questions"]) for m in found], count),
                _over_runs([_ratio(m["usage"]["policy_tokens"], m["questions"]) for m in found], count),
                _over_runs([_ratio(m["usage"]["cached_tokens"], m["usage"]["prompt_tokens"]) for m in found], percent),
            ]
        )
    if table.rows:
        table.notes.append("Solved: the answer given is right. With a right leaf: some finished leaf of the tree is.")
    return table


def _search_facts(run: RunResults, phase: int) -> dict[str, Any]:
    """What the search cost and, where its trees are labelled already, what it found."""
    search, label = run.of_kind("search")[phase], run.of_kind("label").get(phase)
    return {**search["metrics"], "usage": search["usage"], **(label["metrics"] if label else {})}


def training_table(runs: Sequence[RunResults]) -> Table:
    table = Table("Training", ["", "rows", "loss at first", "loss at last", "time"])
    for phase in sorted({r["phase"] for run in runs for r in run.records if r["kind"] in ("policy", "value")}):
        for kind in ("policy", "value"):
            found = [run.of_kind(kind)[phase] for run in runs if phase in run.of_kind(kind)]
            if found:
                metrics = [r["metrics"] for r in found]
                table.rows.append(
                    [
                        f"{phase_name(phase)}, {'policy' if kind == 'policy' else 'value model'}",
                        _over_runs([m.get("rows") for m in metrics], count),
                        _over_runs([m.get("loss_first") for m in metrics], number),
                        _over_runs([m.get("loss_last") for m in metrics], number),
                        _over_runs([r["seconds"] for r in found], duration),
                    ]
                )
    return table


def cost_table(runs: Sequence[RunResults]) -> Table:
    columns = "policy tokens,prompt tokens,cache hits,value tokens,requests,policy tokens/s,busy,memory".split(",")
    table = Table("Time and tokens by stage", ["stage", "time", *columns])
    stages = list(dict.fromkeys(r["stage"] for run in runs for r in run.records))
    for stage in stages:
        found = [r for run in runs for r in run.records if r["stage"] == stage]
        table.rows.append([stage, *_cost_cells(found, len(found))])
    table.rows.append(["all", *_cost_cells([r for run in runs for r in run.records], len(runs))])
    table.notes.append(
        "Cache hits: the share of the prompt tokens that were not computed again. Busy: the share of the search's time "
        "in which the policy and the value model worked on a request. Memory: the most that the process had held by "
        "the end of the stage."
    )
    owed = {r["stage"]: r["metrics"]["owed"] for run in runs for r in run.records if r["metrics"].get("owed")}
    table.notes += [f"**The budget of {stage} left {n} questions unsearched or cut off.**" for stage, n in owed.items()]
    return table


def _cost_cells(records: Sequence[dict[str, Any]], runs: int) -> list[str]:
    time = duration(sum(r["seconds"] for r in records) / runs)
    used = [r["usage"] for r in records if r.get("usage")]
    held = [r["memory_mb"] for r in records if r.get("memory_mb")]
    memory = f"{max(held) / 1024:.1f} GiB" if held else ABSENT
    if not used:
        return [time, *[ABSENT] * 7, memory]
    names = ("policy_tokens", "prompt_tokens", "cached_tokens", "value_tokens", "requests")
    made, prompt, cached, valued, requests = (sum(usage[name] for usage in used) for name in names)
    counts = [count(made / runs), count(prompt / runs), percent(_ratio(cached, prompt))]
    counts += [count(valued / runs), count(requests / runs)]
    return [time, *counts, *_speed_cells([r for r in records if r.get("usage")]), memory]


def _speed_cells(records: Sequence[dict[str, Any]]) -> list[str]:
    """Policy tokens a second, and the shares of time in which policy and value model were busy.

    A stage that was interrupted knows this of its last attempt, one of an older version does not know it.
    """
    known = [r["speed"] for r in records if r.get("speed")]
    seconds = sum(speed["seconds"] for speed in known)
    if not known:
        made = sum(r["usage"]["policy_tokens"] for r in records)
        return [count(_ratio(made, sum(r["seconds"] for r in records))), ABSENT]
    rate, policy, value = (
        _ratio(sum(speed[name] for speed in known), seconds) for name in ("policy_tokens", "policy_busy", "value_busy")
    )
    return [count(rate), f"{percent(policy)} + {percent(value)}" if value else percent(policy)]


# ---------------------------------------------------------------- where and how


def places_table(run: RunResults) -> Table:
    """Where things are and how to use them."""
    data = run.of_kind("data").get(WARM, {}).get("metrics", {})
    policy, value = (_last_model(run, kind) or data.get(kind) for kind in ("policy", "value"))
    table = Table("Where it is", ["", "path"], words=True)
    trees = [str(run.out / record["stage"] / "trees.jsonl") for record in run.of_kind("search").values()]
    rows = [str(run.out / r["stage"]) for r in run.of_kind("label").values()]
    for name, path in (
        ("policy", policy),
        ("value model", value),
        ("trees", ", ".join(trees)),
        ("labels and training rows", ", ".join(rows)),
        ("questions", str(run.out / "data")),
        ("numbers", str(run.out / METRICS)),
    ):
        if path:
            table.rows.append([name, path])
    models = f"--policy {policy}" + (f" --value {value}" if value else "")
    table.notes += [
        "How to use them:",
        f'    restmcts solve "What is 12 * 7 + 5?" {models}',
        f"    restmcts evaluate --problems {run.out / 'data' / 'heldout.jsonl'} {models} --out evaluation",
        f"    restmcts search --problems {run.out / 'data' / 'train.jsonl'} {models} --out trees",
        "Both are plain Hugging Face checkpoints, for AutoModelForCausalLM and AutoModelForTokenClassification.",
    ]
    return table


def _last_model(run: RunResults, kind: str) -> str | None:
    """The folder of the last model that was trained (a round may have left it as it was), or of the best round's."""
    trained = [r for r in run.records if r["kind"] == kind and not r["metrics"].get("kept")]
    if best_note(run) is not None and (best := best_phase(run.records)) is not None:
        trained = [r for r in trained if r["phase"] <= best]
    return str(run.out / trained[-1]["stage"]) if trained else None


def conditions_table(runs: Sequence[RunResults]) -> Table:
    """Model, data, n, seeds, machine: what the numbers hold for."""
    names = {
        "policy": "policy model", "value": "first value model", "data": "data", "train": "training questions",
        "heldout": "held-out questions", "worked": "worked examples", "dropped": "dropped: held out as well",
        "seed": "seed", "cpus": "CPU cores", "device": "device", "python": "Python", "restmcts": "restmcts",
        "torch": "torch", "transformers": "transformers",
    }  # fmt: skip
    table = Table("What this holds for", ["", ""], words=True)
    facts = [run.of_kind("data").get(WARM, {}).get("metrics", {}) for run in runs]
    for key, name in names.items():
        seen = list(dict.fromkeys(str(f[key]) for f in facts if f.get(key) is not None))
        if seen:
            table.rows.append([name, ", ".join(seen)])
    table.rows.append(["settings", ", ".join(str(run.out / CONFIG) for run in runs)])
    changed = sorted({name for run in runs[1:] for name in differing(runs[0].settings, run.settings)})
    if changed:
        table.notes.append(f"**The runs differ in more than their seed**: {', '.join(changed)}.")
    return table


# ---------------------------------------------------------------- helpers


def _over_runs(values: Sequence[float | None], form: Callable[[float | None], str]) -> str:
    """The mean over the runs that have the number."""
    return form(_mean([x for x in values if x is not None]))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _ratio(part: float | None, whole: float) -> float | None:
    return part / whole if part is not None and whole else None
