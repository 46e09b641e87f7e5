"""A value model under the lens: ProcessBench, Best-of-N and votes, and the scoring of what is given."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restmcts.account import Account
from restmcts.engines import TransientError
from restmcts.engines.scripted import ScriptedValue, load_scripted
from restmcts.errors import ConfigError, StoreError, TaskError
from restmcts.lens.bestofn import OF_STEPS, RULES, Pool, best_of, expected, pool, sizes, table
from restmcts.lens.measure import on_processbench, on_trees
from restmcts.lens.processbench import HALVES, Sample, best_threshold, first_error, load_samples, measure, step_scores
from restmcts.lens.scoring import read_scored, score_given
from restmcts.lens.show import tables
from restmcts.tasks import get_task
from restmcts.types import Budget, Problem, Score, Scores, Step, Tree

# ---------------------------------------------------------------- ProcessBench: reading

HUB = {
    "id": "gsm8k-0",
    "generator": "Qwen2-7B-Instruct",
    "problem": "What is 1 + 1?",
    "steps": ["1 + 1 = 3", "Answer: 3"],
    "final_answer_correct": False,
    "label": 0,
}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_samples_are_read_as_the_hub_has_them(tmp_path: Path, kind: str):
    rows = [HUB, {**HUB, "id": "omnimath-7", "label": -1}]
    one, two = load_samples([write(tmp_path / f"bench.{kind}", rows)])
    assert one == Sample("gsm8k-0", "gsm8k", "What is 1 + 1?", ("1 + 1 = 3", "Answer: 3"), 0)
    assert (two.subset, two.label) == ("omnimath", -1)
    tree = one.tree()
    tree.check()
    assert tree.text == ["", *one.steps]
    assert tree.finished() == [2]


def test_a_copy_of_the_user_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RESTMCTS_DATA", str(tmp_path))
    write(tmp_path / "processbench.jsonl", [HUB])
    write(tmp_path / "processbench_math.jsonl", [{**HUB, "id": "math-3"}])
    assert [s.id for s in load_samples(["processbench"])] == ["gsm8k-0"]
    assert [s.id for s in load_samples(["Qwen/ProcessBench@math"])] == ["math-3"]


def test_all_splits_of_the_hub_are_read(monkeypatch: pytest.MonkeyPatch):
    """The data set of the hub has its subsets as splits."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.delenv("RESTMCTS_DATA", raising=False)
    asked = []

    def load(name: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((name, split))
        return [{**HUB, "id": f"{split}-0"}]

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["gsm8k", "math"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [s.subset for s in load_samples(["processbench"])] == ["gsm8k", "math"]
    assert [s.subset for s in load_samples(["processbench@math"])] == ["math"]
    assert asked == [("Qwen/ProcessBench", split) for split in ("gsm8k", "math", "math")]


def test_the_subset_may_stand_in_a_column_and_a_limit_draws(tmp_path: Path):
    rows = [
        {"id": f"x-{i}", "question": "q", "steps": ["a"], "label": -1, "subject": "gsm8k" if i < 50 else "math"}
        for i in range(100)
    ]
    source = write(tmp_path / "bench.jsonl", rows)
    drawn = load_samples([source], limit=20, seed=3)
    assert drawn == load_samples([source], limit=20, seed=3)
    assert drawn != load_samples([source], limit=20, seed=4)
    assert {s.subset for s in drawn} == {"gsm8k", "math"}, "never the first so many: rows are ordered"
    assert len(load_samples([source], limit=1000)) == 100


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": 2}, "label = 2: it is the index of the first wrong of 2 steps, or -1"),
        ({"label": True}, "label = True"),
        ({"label": None}, "label = None"),
        ({"steps": []}, "steps must be a list"),
        ({"steps": "one"}, "steps must be a list"),
        ({"problem": None}, "no problem"),
    ],
)
def test_bad_samples_are_named(tmp_path: Path, change: dict[str, Any], said: str):
    source = write(tmp_path / "bench.jsonl", [HUB, {**HUB, "id": "other", **change}])
    with pytest.raises(TaskError, match=rf"bench\.jsonl:2: {said}"):
        load_samples([source])
    with pytest.raises(TaskError, match="there already"):
        load_samples([write(tmp_path / "twice.jsonl", [HUB, HUB])])
    with pytest.raises(TaskError, match="no samples"):
        load_samples([write(tmp_path / "none.jsonl", [])])


# ---------------------------------------------------------------- ProcessBench: F1


def test_the_first_step_below_the_threshold():
    assert first_error([0.9, 0.4, 0.6, 0.1], 0.5) == 1
    assert first_error([0.9, 0.5], 0.5) == -1, "not below"
    assert step_scores([0.25, 0.5, 0.25], "value") == [0.25, 0.5, 0.25]
    assert step_scores([0.25, 0.5, 0.25], "gain") == [0.25, 0.25, -0.25]
    assert step_scores([0.25, None], "gain") is None


def samples(*labels: int, steps: int = 3, subset: str = "s") -> list[Sample]:
    return [Sample(f"{subset}-{i}", subset, "q", ("x",) * steps, label) for i, label in enumerate(labels)]


def test_f1_is_the_harmonic_mean_of_the_two_accuracies():
    """By hand: 2 of 3 wrong steps found, the third only that something is wrong; 1 of 2 right solutions passed."""
    given = samples(0, 1, 2, -1, -1)
    values = dict(
        zip(
            (s.id for s in given),
            [[0.1] * 3, [0.9, 0.1, 0.9], [0.9, 0.1, 0.1], [0.6] * 3, [0.9, 0.9, 0.4]],
            strict=True,
        )
    )
    found = measure(given, values, "value", "0.5")
    result = found["subsets"]["s"]
    assert found["predicted"] == {"s-0": 0, "s-1": 1, "s-2": 1, "s-3": -1, "s-4": 2}
    assert (result["wrong"], result["right"]) == pytest.approx((2 / 3, 1 / 2))
    assert result["f1"] == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    assert found["average"] == result["f1"]
    assert result["interval"][0] < result["f1"] < result["interval"][1]
    other = samples(-1, 0, subset="t")
    both = measure([*given, *other], values | {"t-0": [0.9] * 3, "t-1": [0.0] * 3}, "value", "0.5")
    assert both["subsets"]["t"]["f1"] == 1.0
    assert both["average"] == pytest.approx((1 + result["f1"]) / 2), "subsets weigh the same, however large"
    assert measure(given[:3], values, "value", "0.5")["average"] is None, "one kind alone has no F1"


def test_a_solution_that_was_not_scored_is_not_seen_through():
    given = samples(0, -1, -1)
    values: dict[str, list[float | None]] = {"s-0": [0.1] * 3, "s-1": [0.9, None, 0.9], "s-2": [0.9] * 3}
    found = measure(given, values, "value", "0.5")
    assert found["unscored"] == 1
    assert found["predicted"]["s-1"] is None
    assert found["subsets"]["s"]["right"] == 0.5


def random_bench(seed: int, n: int = 40, subset: str = "s") -> tuple[list[Sample], dict[str, list[float]]]:
    rng = random.Random(seed)
    given, values = [], {}
    for i in range(n):
        steps = rng.randint(1, 5)
        label = rng.randint(-1, steps - 1)
        sample = Sample(f"{subset}-{i}", subset, "q", ("x",) * steps, label)
        given.append(sample)
        values[sample.id] = [
            round(min(1, max(0, rng.gauss(0.4 if 0 <= label <= k else 0.6, 0.2))), 2) for k in range(steps)
        ]
    return given, values


@pytest.mark.parametrize("rule", ["value", "gain"])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_the_best_of_all(seed: int, rule: Any):
    given, values = random_bench(seed)
    scores = {name: step_scores(v, rule) for name, v in values.items()}

    def f1(threshold: float) -> float:
        hits = {kind: [] for kind in (True, False)}
        for sample in given:
            hits[sample.label < 0].append(first_error(scores[sample.id], threshold) == sample.label)
        a, b = (sum(found) / len(found) for found in hits.values())
        return 2 * a * b / (a + b) if a + b else 0.0

    known = sorted({score for own in scores.values() for score in own})
    between = [(a + b) / 2 for a, b in itertools.pairwise([-2.0, *known, 2.0])]
    assert f1(best_threshold(given, scores)) == pytest.approx(max(map(f1, between)))


def test_the_threshold_is_chosen_on_other_samples_than_it_is_used_on():
    """Each half's labels change the threshold for the other half alone."""
    given, values = random_bench(1, 200)
    found = measure(given, values, "value", HALVES)
    whole = measure(given, values, "value", "s")
    assert len(found["thresholds"]) == 2
    assert len(whole["thresholds"]) == 1
    assert found["average"] <= whole["average"], "on its own samples a threshold is too good"
    from restmcts.lens.processbench import _half

    turned = [Sample(s.id, s.subset, s.question, s.steps, 0 if _half(s) else s.label) for s in given]
    again = measure(turned, values, "value", HALVES)
    same = [s.id for s in given if _half(s)]
    assert {name: found["predicted"][name] for name in same} == {name: again["predicted"][name] for name in same}
    assert found["predicted"] != again["predicted"]


def test_a_threshold_chosen_on_one_subset_holds_for_all():
    one, values = random_bench(1, 60, "gsm8k")
    two, more = random_bench(2, 60, "math")
    found = measure([*one, *two], values | more, "value", "gsm8k")
    (threshold,) = found["thresholds"]
    assert threshold == best_threshold(one, values)
    assert found["subsets"]["math"] == measure(two, more, "value", repr(threshold))["subsets"]["math"]
    for wrong in ("gsm", "nan", "inf"):
        with pytest.raises(ConfigError, match=rf"'{wrong}' is neither a number nor a subset \(gsm8k, math\) nor"):
            measure([*one, *two], values | more, "value", wrong)


def labels_of_the_paper(steps: int, wrong: int) -> list[float]:
    """v after each of `steps`, those from `wrong` on wrong (Eqs. 1 and 2; they keep the m of the last right one)."""
    values, v = [], 0.0
    for k in range(steps):
        gain = (1 - v) / (steps - min(k, wrong) + (k >= wrong))
        v = max(0.0, v - gain if k >= wrong else v + gain)
        values.append(v)
    return values


def test_perfect_values_after_the_paper_are_seen_by_gain_and_not_by_value():
    assert labels_of_the_paper(4, 4) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert labels_of_the_paper(4, 3) == pytest.approx([0.25, 0.5, 0.75, 0.625])
    given = samples(0, 1, 2, 3, -1, -1, -1, -1, steps=4) + samples(0, 1, -1, -1, steps=2, subset="short")
    values: dict[str, list[float | None]] = {}
    for sample in given:
        wrong = sample.label if sample.label >= 0 else len(sample.steps)
        values[sample.id] = [None, *labels_of_the_paper(len(sample.steps), wrong)]
    found, rows = on_processbench(given, values, "s")
    assert found["gain"]["chosen"]["average"] == 1.0
    assert found["value"]["chosen"]["average"] < 0.7
    assert found["gain"]["usual"]["subsets"]["s"]["wrong"] == 0.75, "a first step that is wrong has nothing to lower"
    assert [row["predicted by gain"] for row in rows] == [row["label"] for row in rows]
    assert all(row["values"] == values[row["id"]][1:] for row in rows)


def test_the_real_set(shared_data: Path):
    """Labels as values: what is known perfectly gets F1 1 in every subset."""
    given = load_samples([str(shared_data / "processbench.jsonl")])
    assert len(given) == 1800
    values = {s.id: [float(s.label < 0 or k < s.label) for k in range(len(s.steps))] for s in given}
    found = measure(given, values, "value", HALVES)
    assert {name: result["f1"] for name, result in found["subsets"].items()} == dict.fromkeys(
        ("gsm8k", "math", "olympiadbench", "omnimath"), 1.0
    )
    assert found["subsets"]["gsm8k"]["samples"] == 400


# ---------------------------------------------------------------- Best-of-N and votes


def make_pool(key: list[int], right: list[int], **values: list[float]) -> Pool:
    good = np.array([k in right for k in key])
    return Pool("q", np.array(key), good, {of: np.array(v, dtype=float) for of, v in values.items()})


def all_alike(values: list[float]) -> dict[str, list[float]]:
    return dict.fromkeys(OF_STEPS, values)


def by_enumeration(samples: Pool, n: int, rule: str) -> float:
    """The same, over every subset of n samples."""
    how, _, of = rule.partition(" ")
    hits = []
    for chosen in itertools.combinations(range(len(samples)), n):
        answered = [i for i in chosen if samples.key[i] >= 0]
        if how == "any":
            hits.append(float(any(samples.right[i] for i in answered)))
            continue
        if not answered:
            hits.append(0.0)
            continue
        if how == "best":
            top = max(samples.values[of][i] for i in answered)
            winners = [samples.right[i] for i in answered if samples.values[of][i] == top]
        else:
            votes: dict[int, float] = {}
            for i in answered:
                votes[samples.key[i]] = votes.get(samples.key[i], 0.0) + (samples.values[of][i] if of else 1.0)
            rights = {int(samples.key[i]): bool(samples.right[i]) for i in answered}
            winners = [rights[int(key)] for key, vote in votes.items() if math.isclose(vote, max(votes.values()))]
        hits.append(sum(winners) / len(winners))
    return sum(hits) / len(hits)


POOL = make_pool(
    [0, 1, 0, 2, -1, 1, -1, 0],
    [1],
    last=[0.9, 0.9, 0.2, 0.4, 0.0, 0.7, 0.0, 0.2],
    min=[0.1, 0.2, 0.3, 0.4, 0.0, 0.5, 0.0, 0.6],
    mean=[0.5] * 8,
    product=[0.3, 0.1, 0.3, 0.1, 0.0, 0.1, 0.0, 0.3],
)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_expected_is_the_mean_over_all_draws(rule: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("restmcts.lens.bestofn._DRAWS", 40_000)
    numbers = [1, 2, 3, 5, 8]
    exact = [by_enumeration(POOL, n, rule) for n in numbers]
    close = 1e-9 if rule.startswith(("best", "any")) else 0.01
    assert expected(POOL, numbers)[rule] == pytest.approx(exact, abs=close)
    assert expected(POOL, [8])[rule] == pytest.approx(exact[-1:], abs=1e-9), (
        "with all samples nothing is left to chance"
    )


def test_samples_without_an_answer():
    none = make_pool([-1, -1], [], **all_alike([0.9, 0.9]))
    assert set(itertools.chain(*expected(none, [1, 2]).values())) == {0.0}
    zero = make_pool([0, 1, 0], [0], **all_alike([0.0, 0.0, 0.0]))
    assert expected(zero, [3])["vote last"] == [1.0], "answers of value 0 are answers: the more frequent one"
    assert best_of(np.array([0.5]), np.array([True]), np.array([True]), [1]) == pytest.approx([1.0])


def test_a_large_pool_has_no_rounding_trouble():
    n = 2000
    rng = np.random.default_rng(0)
    key = rng.integers(-1, 30, n)
    found = expected(Pool("q", key, key == 3, {of: rng.random(n) for of in OF_STEPS}), [1, 256, 2000])
    assert all(0 <= chance <= 1 + 1e-9 for chances in found.values() for chance in chances)
    assert found["any"][1] == pytest.approx(1 - math.comb(n - int((key == 3).sum()), 256) / math.comb(n, 256))
    assert found["best last"][0] == pytest.approx(float(np.mean(key == 3)), abs=1e-9)


def sampled_tree() -> tuple[Tree, list[bool | None]]:
    """Two right samples along one way (one twice), a wrong one, one that broke off."""
    tree = Tree(Problem("q", "1 + 1?", "2"), "sample", 0)
    start = tree.add(0, Step("1 + 1"))
    right = tree.add(start, Step("Answer: 2"), status="finished", answer="2")
    tree.copies[start], tree.copies[right] = 3, 2
    tree.add(start, Step("Answer: 2.0"), status="finished", answer="2.0")
    tree.add(0, Step("Answer: 3"), status="finished", answer="3")
    tree.add(0, Step("…"), status="dead", reason="length")
    return tree, [None, None, True, True, False, None]


def test_a_tree_of_samples_becomes_a_pool():
    tree, correct = sampled_tree()
    tree.raw_value = [None, 0.5, 0.8, 0.6, 0.1, None]
    made = pool(tree, correct, get_task("math"))
    assert made is not None
    assert made.key.tolist() == [0, 0, 0, 1, -1], "2 and 2.0 are one answer; the twice drawn counts twice"
    assert made.right.tolist() == [True, True, True, False, False]
    assert made.values["last"].tolist() == [0.8, 0.8, 0.6, 0.1, 0.0]
    assert made.values["min"].tolist() == [0.5, 0.5, 0.5, 0.1, 0.0]
    assert made.values["mean"].tolist() == pytest.approx([0.65, 0.65, 0.55, 0.1, 0.0])
    assert made.values["product"].tolist() == pytest.approx([0.4, 0.4, 0.3, 0.1, 0.0])
    tree.method = "mcts_star"
    assert pool(tree, correct, get_task("math")) is None, "leaves of a search are no independent samples"
    tree.method, tree.raw_value[1] = "best_of_n", None
    assert pool(tree, correct, get_task("math")) is None, "a value is missing"


def test_the_table_of_verifiers():
    few = Pool("q0", POOL.key[:4], POOL.right[:4], {of: v[:4] for of, v in POOL.values.items()})
    pools = [few, Pool("q1", POOL.key, POOL.right, POOL.values)]
    found = table(pools)
    assert sizes(pools) == found["n"] == [1, 2, 4, 8]
    assert sizes(pools, most=5) == [1, 2, 4]
    cell = found["rules"]["best last"][3]
    rows = {row["id"]: row for row in found["rows"]}
    assert cell["accuracy"] == pytest.approx((rows["q0"]["best last"][2] + rows["q1"]["best last"][3]) / 2)
    perfect = table([make_pool([0, 0], [0], **all_alike([0.5, 0.5]))])
    assert perfect["rules"]["majority"][0]["interval"][0] < 0.9, "one question makes nobody sure"


# ---------------------------------------------------------------- scoring what is given


class Checker(ScriptedValue):
    """The checker of arithmetic, with a record of what it is asked; it can fail or be interrupted."""

    def __init__(self, interrupt_after: int | None = None, fails: str = "") -> None:
        super().__init__(load_scripted()[1]._script)
        self.asked: list[Score] = []
        self.left, self.fails = interrupt_after, fails

    async def score(self, request: Score) -> Scores:
        self.asked.append(request)
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        if self.fails and self.fails in request.problem.id:
            raise TransientError("too long", again=False)
        return await super().score(request)


def given_trees(count: int = 6) -> dict[str, Tree]:
    trees = {}
    for i in range(count):
        tree, _ = sampled_tree()
        tree.problem = Problem(f"q{i}", "What is 1 + 1?", "2")
        trees[tree.problem.id] = tree
    return trees


def test_every_node_on_the_way_to_an_answer_is_scored_once(tmp_path: Path):
    engine = Checker()
    trees = given_trees(1)
    (scored,) = score_given(trees, engine, tmp_path / "v.jsonl", concurrency=4).values()
    paths = [tuple(step.text for step in path) for request in engine.asked for path in request.paths]
    assert sorted(paths) == sorted([("1 + 1",), ("1 + 1", "Answer: 2"), ("1 + 1", "Answer: 2.0"), ("Answer: 3",)])
    assert [len(request.paths) for request in engine.asked] == [2, 1, 1], "what lies on one way is asked for at once"
    assert [value is None for value in scored.values] == [True, False, False, False, False, True]
    assert scored.usage.value_tokens > 0
    assert trees["q0"].raw_value == [None] * 6, "what is given stays as it is"
    assert read_scored(tmp_path / "v.jsonl", trees) == {"q0": scored}


def test_ids_go_to_a_value_model_of_the_same_vocabulary_only(tmp_path: Path):
    for tokenizer, ids in (("abc", (1, 2)), ("xyz", None)):
        engine = Checker()
        engine.tokenizer_id = "abc"
        trees = given_trees(1)
        trees["q0"].models["tokenizer"] = tokenizer
        trees["q0"].ids[1] = [1, 2]
        score_given(trees, engine, tmp_path / f"{tokenizer}.jsonl", concurrency=1)
        assert engine.asked[0].paths[0][0].ids == ids


def test_scoring_goes_on_where_it_was_interrupted(tmp_path: Path):
    trees, path = given_trees(), tmp_path / "v.jsonl"
    straight = score_given(trees, Checker(), tmp_path / "straight.jsonl", concurrency=1)
    with pytest.raises(KeyboardInterrupt):
        score_given(trees, Checker(interrupt_after=8), path, concurrency=1)
    done = read_scored(path, trees)
    assert 0 < len(done) < 6
    with path.open("a") as file:
        file.write('{"id": "q5", "val')  # torn by a crash
    rest = Checker()
    resumed = score_given(trees, rest, path, concurrency=1)
    assert {request.problem.id for request in rest.asked} == trees.keys() - done.keys()
    assert {name: s.values for name, s in resumed.items()} == {name: s.values for name, s in straight.items()}
    nobody = Checker(interrupt_after=0)
    assert score_given(trees, nobody, path, concurrency=1).keys() == trees.keys()
    assert not nobody.asked


def test_a_budget_leaves_trees_owed_and_not_half_scored(tmp_path: Path):
    trees, path = given_trees(), tmp_path / "v.jsonl"
    whole = score_given(trees, Checker(), tmp_path / "whole.jsonl", concurrency=1)
    tokens = sum(scored.usage.value_tokens for scored in whole.values())
    half = score_given(trees, Checker(), path, concurrency=1, account=Account(Budget(value_tokens=tokens // 2)))
    assert 0 < len(half) < 6
    assert all(half[name].values == whole[name].values for name in half)
    assert read_scored(path, trees).keys() == half.keys()


def test_what_could_not_be_scored_is_recorded_and_is_no_zero(tmp_path: Path):
    found = score_given(given_trees(), Checker(fails="q3"), tmp_path / "v.jsonl", concurrency=2)
    assert found["q3"].values == [None] * 6
    assert found["q3"].failures == ["score: too long"] * 3
    assert not found["q2"].failures


def test_rows_of_other_trees_are_refused(tmp_path: Path):
    score_given(given_trees(3), Checker(), tmp_path / "v.jsonl", concurrency=1)
    with pytest.raises(StoreError, match=r"the row of 'q.' fits no tree"):
        read_scored(tmp_path / "v.jsonl", given_trees(2))
    other = given_trees(3)
    other["q1"].add(0, Step("more"))
    with pytest.raises(StoreError, match=r"the row of 'q1' fits no tree"):
        score_given(other, Checker(), tmp_path / "v.jsonl", concurrency=1)


class Exact:
    """Grades 2 and 2.0 as right."""

    def grade_many(self, pairs: list[tuple[Problem, str]]) -> list[bool]:
        return [float(answer) == 2 for _, answer in pairs]


def test_trees_are_judged_by_their_labels(tmp_path: Path):
    trees = given_trees()
    values = {name: [None, 0.5, 0.95, 1.0, 0.3, None] for name in trees}
    found, rows = on_trees(trees, values, Exact())
    quality = found["quality"]
    assert quality["nodes"] == 24
    assert quality["auc_siblings"] == 1.0
    assert quality["within_0.1"] == pytest.approx(3 / 4)
    by_depth = {row["depth"]: row for row in quality["error_by_depth"]}
    assert by_depth[1] == {
        "depth": 1, "n": 12, "predicted": pytest.approx(0.4), "value": pytest.approx(0.25),
        "mae": pytest.approx(0.15), "within_0.1": 0.5, "auc": 1.0,
    }  # fmt: skip
    assert by_depth[2]["mae"] == pytest.approx(0.025)
    assert by_depth[2]["auc"] is None, "only right steps there"
    curve = {row["low"]: row for row in quality["curve"]}
    assert curve[0.3] == {"low": 0.3, "high": 0.4, "n": 6, "predicted": pytest.approx(0.3), "value": 0.0, "right": 0.0}
    assert curve[0.9]["n"] == 12
    assert found["best_of_n"]["questions"] == len(rows) == 6
    assert found["best_of_n"]["n"] == [1, 2, 4]
    shown = "\n".join(made.markdown() for made in tables({"trees": found}))
    assert "| labelled nodes | 24 |" in shown
    assert "| BoN last |" in shown
    for tree in trees.values():
        tree.method = "mcts_star"
    assert on_trees(trees, values, Exact())[0]["best_of_n"] is None, "leaves of a search are no independent samples"
