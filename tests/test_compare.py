"""Methods at equal budgets: what is run, that sharing changes nothing, resuming, statistics, what is written."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from restmcts import drive
from restmcts.compare import answer, plot, report, results
from restmcts.compare.answer import Cost, Row, read_rows
from restmcts.compare.command import compare_methods
from restmcts.compare.plan import GREEDY, USUAL, Arm, Plan, arms, budgets_in_tokens
from restmcts.config import RunConfig, load_config
from restmcts.console import Progress
from restmcts.engines import Engines
from restmcts.engines.scripted import scripted_engines
from restmcts.errors import ConfigError, StoreError
from restmcts.metrics import holm, share
from restmcts.search import SEARCHES, SearchSettings
from restmcts.store import read_jsonl
from restmcts.tables import Table
from restmcts.tasks import get_task
from restmcts.types import Tree
from tests.adder import problem
from tests.conftest import Said
from tests.test_cli import assert_one_line
from tests.test_drive import make

PROBLEMS = make(12, terms=4)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = [{"id": p.id, "question": p.question, "answer": p.answer} for p in PROBLEMS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def config(questions: Path, **settings: Any) -> RunConfig:
    compare = {"methods": ["sample", "mcts_star"], "budgets": [2, 4], "seeds": 2} | settings
    flags = {"policy": "scripted", "problems": str(questions), "compare": compare}
    return load_config(None, flags=flags, overrides=["search.step_tokens=16", "search.threshold=2"])


def compare(settings: RunConfig, out: Path) -> list[Table]:
    return compare_methods(settings, out, Progress(mode="quiet"))


def rows_of(out: Path) -> dict[Any, Row]:
    found: dict[Any, Row] = {}
    for folder in sorted((out / "arms").iterdir()):
        found |= read_rows(folder / "rows.jsonl")
    return found


# ---------------------------------------------------------------- what is run


def test_arms_are_methods_with_settings_of_their_own():
    settings = load_config(
        None,
        flags={
            "compare": {
                "methods": ["sample", "bare", "mcts_star"],
                "arms": {
                    "bare": {"method": "mcts_star", "rollout_steps": 0, "iterations": 5},
                    "mcts_star": {"alpha": 1},
                },
            }
        },
        overrides=["search.temperature=1.0", "search.iterations=3"],
    )
    sample, bare, star = arms(settings.compare, settings.search)
    assert [arm.name for arm in (sample, bare, star)] == ["sample", "bare", "mcts_star"]
    assert [arm.settings.method for arm in (sample, bare, star)] == ["sample", "mcts_star", "mcts_star"]
    assert (bare.settings.rollout_steps, star.settings.rollout_steps, star.settings.alpha) == (0, 32, 1)
    assert {arm.settings.temperature for arm in (sample, bare, star)} == {1.0}
    # It is the budget that ends a search, unless the arm says otherwise.
    assert [arm.at(300, 20.0).iterations for arm in (sample, bare, star)] == [300, 5, 300]
    assert sample.at(300, 20.0).samples == 300
    assert sample.at(300, 20.0).budget_tokens == 300
    wide = Arm("beam", SearchSettings(method="beam"))
    assert [wide.at(budget, 20.0).samples for budget in (20, 80, 800)] == [1, 2, 20]


def test_all_arms_of_the_settings_are_compared_where_none_are_named():
    named = load_config(None, flags={"compare": {"arms": {"a": {"method": "cot"}, "b": {"method": "sample"}}}})
    assert [arm.name for arm in arms(named.compare, named.search)] == ["a", "b"]
    bare = RunConfig()
    assert [arm.name for arm in arms(bare.compare, bare.search)] == list(USUAL)


def test_variants_of_methods_are_arms_by_name():
    flags = {
        "compare": {"methods": ["best_of_n_min", "mcts_star_no_rollout"], "arms": {"best_of_n_min": {"samples": 4}}}
    }
    settings = load_config(None, flags=flags)
    low, bare = arms(settings.compare, settings.search)
    assert (low.settings.method, low.settings.step_aggregation, low.settings.samples) == ("best_of_n", "min", 4)
    assert (bare.settings.method, bare.settings.rollout_steps) == ("mcts_star", 0)


def test_budgets_are_worth_so_many_greedy_answers_or_are_tokens():
    settings = load_config(None, flags={"compare": {"budgets": [4, 0.5, 1]}})
    assert budgets_in_tokens(settings.compare, 30.4) == [15, 30, 122]
    settings = load_config(None, flags={"compare": {"budgets": [200, 100], "unit": "tokens"}})
    assert budgets_in_tokens(settings.compare, 30.4) == [100, 200]


@pytest.mark.parametrize(
    ("compare", "words"),
    [
        ({"methods": ["sampel"]}, ["unknown search method 'sampel'", "did you mean 'sample'?"]),
        ({"methods": ["mcts_star_no_rolout"]}, ["did you mean 'mcts_star_no_rollout'?"]),
        ({"methods": []}, ["compare.methods is empty"]),
        ({"methods": ["sample", "sample"]}, ["name each of them once"]),
        ({"arms": {"a/b": {"method": "sample"}}}, ["'a/b' cannot name an arm"]),
        ({"arms": {"greedy": {"method": "cot"}}}, ["'greedy' cannot name an arm"]),
        ({"arms": {"mine": {"samples": 3}}}, ["compare.arms.mine needs a method"]),
        ({"arms": {"mine": {"method": "cott"}}}, ["unknown search method 'cott'"]),
        (
            {"arms": {"mine": {"method": "cot", "iteration": 3}}},
            ["compare.arms.mine.iteration", "'compare.arms.mine.it"],
        ),
        ({"arms": {"mine": {"method": "cot", "temperature": -1}}}, ["compare.arms.mine.temperature = -1"]),
        ({"arms": {"mine": {"method": "cot", "budget_tokens": 9}}}, ["compare.arms.mine.budget_tokens"]),
        ({"arms": {"mine": {"method": "cot", "budget_seconds": 9}}}, ["budget_seconds = 9 of arm mine"]),
        ({"baseline": "best"}, ["compare.baseline = 'best' is not compared", "mcts_star, greedy"]),
    ],
)
def test_arms_that_are_none(compare, words):
    with pytest.raises(ConfigError) as error:
        settings = load_config(None, flags={"compare": compare})
        arms(settings.compare, settings.search)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("budgets", [[0.001, 1], [1, 1.001]])
def test_budgets_that_are_none(budgets):
    with pytest.raises(ConfigError, match=r"compare\.budgets"):
        budgets_in_tokens(load_config(None, flags={"compare": {"budgets": budgets}}).compare, 30.0)


def test_bad_input_is_one_line(restmcts, questions):
    def said(*words: object) -> Said:
        return restmcts("compare", "--policy", "scripted", "--problems", questions, "--out", "o", "-q", *words)

    assert_one_line(said("--methods", "sampel"), "did you mean 'sample'?")
    assert_one_line(said("--budgets", "1,many"), "compare.budgets.1 = 'many'")
    assert_one_line(said("--budgets", "0"), "compare.budgets.0")
    assert_one_line(said("--budgets", ""), "compare.budgets")
    assert_one_line(said("--unit", "hours"), "compare.unit = 'hours'")
    assert_one_line(said("--seeds", "0"), "compare.seeds = 0")
    assert_one_line(said("--redo", "arms/none"), "no stage 'arms/none'")
    assert_one_line(restmcts("compare", "--policy", "scripted", "--out", "o"), "no problems; give --problems")
    (questions.parent / "none.jsonl").write_text("")
    nothing = restmcts("compare", "--policy", "scripted", "--problems", "none.jsonl", "--out", "o", "-q")
    assert nothing.code == 2
    assert nothing.err.count("\n") == 1


# ---------------------------------------------------------------- sharing, and what is kept


def test_rows_are_what_each_arm_finds_alone(questions, tmp_path):
    settings = config(questions, methods=["cot", "sample", "mcts_star"], trees=True)
    compare(settings, tmp_path / "o")
    rows = rows_of(tmp_path / "o")
    greedy_tokens = [row["policy_tokens"] for row in read_jsonl(tmp_path / "o" / "greedy" / "rows.jsonl")]
    mean = sum(greedy_tokens) / len(PROBLEMS)
    plan = arms(settings.compare, settings.search)
    budgets = [round(2 * mean), round(4 * mean)]
    assert len(rows) == 12 * 3 * 2 * 2
    for arm, budget, seed in itertools.product(plan, budgets, (0, 1)):
        alone: dict[str, Tree] = {}
        drive.run(
            PROBLEMS,
            SEARCHES[arm.settings.method],
            arm.at(budget, mean),
            scripted_engines(),
            task_of=lambda p: get_task(p.task),
            seed=seed,
            concurrency=1,
            on_tree=lambda tree, alone=alone: alone.update({tree.problem.id: tree}),
        )
        kept = {
            record["id"]: record
            for record in read_jsonl(tmp_path / "o" / "arms" / arm.name / f"trees-{budget}-{seed}.jsonl")
        }
        for name, tree in alone.items():
            row, record = rows[name, arm.name, budget, seed], tree.to_record()
            for either in (record, kept[name]):
                del either["usage"]["seconds"]
            assert record == kept[name]
            assert (row.answer, row.stop) == (tree.final_answer, tree.stop)
            assert row.correct == (row.answer == row.gold)
            usage = tree.usage
            assert (row.policy_tokens, row.value_tokens) == (usage.policy_tokens, usage.value_tokens)
            assert row.requests == usage.requests
    asked = sum(row.policy_tokens for row in rows.values())
    assert 0 < answer.read_cost(tmp_path / "o" / "cost.jsonl").policy_tokens < 0.7 * asked


def test_a_comparison_that_was_cut_goes_on(questions, tmp_path, monkeypatch):
    straight = config(questions)
    compare(straight, tmp_path / "a")

    def cut_after(requests: int) -> Any:
        """The scripted pair, until somebody presses Ctrl-C."""
        engines = scripted_engines()
        left = iter(range(requests))
        for engine, name in ((engines.policy, "propose"), (engines.value, "score")):
            method = getattr(engine, name)

            async def cut(request: Any, method: Any = method) -> Any:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return await method(request)

            setattr(engine, name, cut)
        return engines

    seen = []
    for requests in (30, 300, 700):
        with monkeypatch.context() as patch:
            patch.setattr("restmcts.cluster.open_engines", lambda *_, n=requests, **__: cut_after(n))
            with pytest.raises(KeyboardInterrupt):
                compare(straight, tmp_path / "b")
        seen.append(len(rows_of(tmp_path / "b")) if (tmp_path / "b" / "arms").exists() else 0)
    assert seen == sorted(seen)
    assert 0 < seen[-1] < 96
    with (tmp_path / "b" / "arms" / "sample" / "rows.jsonl").open("a") as file:
        file.write('{"id": "q1", "met')  # torn by a crash
    compare(straight, tmp_path / "b")
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "a")
    for name in ("rows.jsonl", "tests.jsonl"):
        assert (tmp_path / "b" / name).read_text() == (tmp_path / "a" / name).read_text()


def test_what_is_answered_stays_answered_and_more_can_be_added(questions, tmp_path, monkeypatch):
    out = tmp_path / "o"
    compare(config(questions), out)
    before = rows_of(out)

    def closed(*_: Any, **__: Any) -> Engines:
        raise AssertionError("nothing is left to be asked")

    with monkeypatch.context() as patch:
        patch.setattr("restmcts.cluster.open_engines", closed)
        first = (out / "compare.md").read_text()
        compare(config(questions), out)
        assert (out / "compare.md").read_text() == first
        fewer = compare(config(questions, methods=["mcts_star"], seeds=1, budgets=[4]), out)
    assert len(fewer[0].rows) == 1
    compare(config(questions, methods=["cot", "mcts_star"], budgets=[2, 4, 6], seeds=3), out)
    after = rows_of(out)
    assert {key: after[key] for key in before} == before
    assert len(after) == 12 * (2 * 2 + 2 * 3 * 3)
    assert len(list(read_jsonl(out / "rows.jsonl"))) == 12 * (1 + 2 * 3 * 3)


def test_other_settings_are_refused(restmcts, questions):
    command = ("compare", "--policy", "scripted", "--problems", questions, "--out", "o", "-q")
    command += ("--methods", "cot,sample", "--budgets", "2", "--seeds", 1)
    assert restmcts(*command).code == 0
    assert_one_line(
        restmcts(*command, "--set", "search.temperature=0.9"), "stage arms/cot", "temperature = 0.7 (now 0.9)", "--redo"
    )
    said = restmcts(*command, "--set", "search.temperature=0.9", "--redo", "arms")
    assert said.code == 0
    said = restmcts(*command, "--set", "search.temperature=0.9", "--redo", "greedy")
    assert said.code == 0
    assert len(list(Path("o/.set-aside").glob("*/arms/cot/rows.jsonl"))) == 2
    questions.write_text(questions.read_text().replace("p1", "p999"))
    assert restmcts(*command, "--set", "search.temperature=0.9").code == 0  # the ids are q1, q2, …
    questions.write_text(questions.read_text().replace("q1", "x1"))
    assert_one_line(
        restmcts(*command, "--set", "search.temperature=0.9"), "stage greedy was made from another problems"
    )


def test_a_stage_budget_begins_no_more_and_can_be_raised(restmcts, questions):
    command = (
        "compare",
        "--policy",
        "scripted",
        "--problems",
        questions,
        "--out",
        "o",
        "--methods",
        "sample,mcts_star",
    )
    command += ("--budgets", "2,4", "--seeds", 2, "--set", "engine.concurrency=2")
    said = restmcts(*command, "--set", "stage_budget.policy_tokens=900")
    assert said.code == 0
    assert "searches are owed; raise it" in said.err
    some = len(rows_of(Path("o")))
    assert 0 < some < 96
    assert not list(Path("o").glob("arms/*/manifest.json"))
    whole = len(list(read_jsonl("o/rows.jsonl")))
    assert whole % 9 == 0  # of the questions that every arm has answered, and a greedy answer
    assert restmcts(*command).code == 0
    assert len(rows_of(Path("o"))) == 96
    assert len(list(Path("o").glob("arms/*/manifest.json"))) == 2
    straight = restmcts(*[word if word != "o" else "p" for word in command])
    assert straight.code == 0
    assert Path("o/rows.jsonl").read_text() == Path("p/rows.jsonl").read_text()


def test_a_method_that_needs_values_says_so(questions, tmp_path, monkeypatch):
    monkeypatch.setattr("restmcts.cluster.open_engines", lambda *_, **__: Engines(scripted_engines().policy))
    with pytest.raises(ConfigError, match="there is no value model"):
        compare(config(questions), tmp_path / "o")


# ---------------------------------------------------------------- statistics


def row(id_: str, method: str, budget: int | None, seed: int, correct: bool, tokens: int = 10, value: int = 0) -> Row:
    answer = "1" if correct else None
    return Row(id_, method, budget, seed, answer, "1", correct, tokens, value, 3, "done")


def made(shares: dict[str, list[list[bool]]], budget: int = 40) -> tuple[Plan, list[Row]]:
    """A plan with one budget, and its rows: `shares[method][question][seed]` is whether that answer was right."""
    first = next(iter(shares.values()))
    problems = [problem(i) for i in range(len(first))]
    plan = Plan(problems, [Arm(name, SearchSettings()) for name in shares], [budget], range(len(first[0])), 20.0)
    rows = [row(p.id, GREEDY, None, 0, False, 20) for p in problems]
    for name, right in shares.items():
        for p, answers in zip(problems, right, strict=True):
            rows += [row(p.id, name, budget, seed, correct) for seed, correct in enumerate(answers)]
    return plan, rows


def test_seeds_of_a_question_stand_together():
    """With all seeds of a question equal, more seeds make nothing surer."""
    right = [i % 3 > 0 for i in range(60)]
    once = results.evaluate(*made({"a": [[r] for r in right]}), Cost())
    thrice = results.evaluate(*made({"a": [[r] * 3 for r in right]}), Cost())
    (a,), (b,) = ([p for p in found.points if p.method == "a"] for found in (once, thrice))
    assert a.accuracy == b.accuracy == pytest.approx(2 / 3)
    assert a.interval == b.interval
    assert a.interval is not None
    assert 0.53 < a.interval.low < 0.58
    # As many questions as answers would be surer.
    many = results.evaluate(*made({"a": [[r] for r in right * 3]}), Cost())
    assert many.points[1].interval.high - many.points[1].interval.low < 0.65 * (a.interval.high - a.interval.low)


def test_tests_are_paired_and_adjusted_for_their_number():
    a = [[i < 10] for i in range(40)]
    b = [[i < 19] for i in range(40)]
    c = [[(i < 10 and i > 0) or i == 39] for i in range(40)]
    found = results.evaluate(*made({"a": a, "b": b, "c": c}), Cost())
    assert [(t.before, t.after) for t in found.tests] == [("a", "b"), ("a", "c"), ("b", "c")]
    ab, ac, bc = found.tests
    assert (ab.difference.wins, ab.difference.losses, ab.difference.mean) == (9, 0, pytest.approx(9 / 40))
    assert ab.difference.p == pytest.approx(2 / 2**9)
    assert ab.p_holm == pytest.approx(3 * 2 / 2**9)
    assert ab.certain
    assert (ac.difference.wins, ac.difference.losses, ac.difference.p) == (1, 1, 1.0)
    assert not ac.certain
    assert (bc.difference.wins, bc.difference.losses) == (1, 10)
    assert bc.p_holm == pytest.approx(2 * bc.difference.p)
    assert bc.certain

    against = results.evaluate(*made({"a": a, "b": b, "c": c}), Cost(), baseline="b")
    assert [(t.before, t.after) for t in against.tests] == [("b", "a"), ("b", "c")]
    greedy = results.evaluate(*made({"a": [x * 2 for x in a]}), Cost(), baseline=GREEDY)
    (test,) = greedy.tests
    assert (test.before, test.difference.mean, test.difference.wins, test.difference.n) == (GREEDY, 0.25, 10, 80)


def test_holm():
    assert holm([]) == []
    assert holm([0.04]) == [0.04]
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([None, 0.01, None]) == [None, pytest.approx(0.03), None]


def test_a_share_of_equal_answers_is_not_certain():
    assert share([True] * 10, list("abcdefghij"))[1].low < 0.75
    assert share([True] * 30, list("abcdefghij") * 3) == share([True] * 10, list("abcdefghij"))
    assert share([False] * 4, list("abcd"))[0] == 0


def test_only_questions_that_all_have_answered_count():
    plan, rows = made({"a": [[True], [False], [True]], "b": [[True], [False], [True]]})
    lacking = [r for r in rows if not (r.id == "sum-2" and r.method == "b")]
    found = results.evaluate(plan, lacking, Cost())
    assert found.questions == 2
    assert {r.id for r in found.rows} == {"sum-0", "sum-1"}
    none = results.evaluate(plan, rows[:3], Cost())
    assert (none.questions, none.points, none.tests) == (0, [], [])
    assert report.tables(plan, none, Cost())[0].notes == ["No question has been answered by every arm yet."]
    assert "<svg" in report.plot(plan, none)


def test_seconds_are_tokens_at_the_rates_of_the_study():
    cost = Cost(policy_tokens=1000, value_tokens=500, policy_busy=2.0, value_busy=5.0, seconds=6.0)
    assert cost.seconds_for(100, 10) == pytest.approx(0.2 + 0.1)
    assert cost.seconds_for(100, 0) == pytest.approx(0.2)
    assert dataclasses.replace(cost, value_tokens=0).seconds_for(100, 10) is None
    assert Cost().seconds_for(0, 0) == 0
    assert (cost + cost - cost) == cost


# ---------------------------------------------------------------- what is written


def test_what_is_written(questions, tmp_path):
    out = tmp_path / "o"
    tables = compare(config(questions, methods=["cot", "sample", "mcts_star"], baseline="sample"), out)
    accuracy, differences, spent, study = tables
    assert accuracy.columns[0] == ""
    assert [row[0] for row in accuracy.rows] == [row[0] for row in spent.rows] == ["cot", "sample", "mcts_star"]
    assert [row[0] for row in differences.rows] == ["cot − sample", "mcts_star − sample"]
    assert accuracy.columns[1].startswith("2×")
    assert study.rows[1][0] == "really asked for"
    rows = [Row(**record) for record in read_jsonl(out / "rows.jsonl")]
    assert len(rows) == 12 * (1 + 3 * 2 * 2)
    for at, method in enumerate(("cot", "sample", "mcts_star")):
        for column, budget in enumerate(sorted({row.budget for row in rows if row.budget}), start=1):
            right = [row.correct for row in rows if (row.method, row.budget) == (method, budget)]
            assert accuracy.rows[at][column].startswith(f"{100 * sum(right) / len(right):.1f} %")
    tests = list(read_jsonl(out / "tests.jsonl"))
    assert len(tests) == 4
    assert {test["before"] for test in tests} == {"sample"}
    text = (out / "compare.md").read_text()
    for words in ("![accuracy against cost](compare.svg)", "| policy | scripted |", "## Accuracy at equal budgets"):
        assert words in text
    assert load_config(out / "config.yaml").compare.baseline == "sample"
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(out / "rows.parquet")
    assert table.to_pylist() == list(read_jsonl(out / "rows.jsonl"))
    assert str(table.schema.field("correct").type) == "bool"


def test_rows_of_something_else_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(StoreError, match="holds no rows of a comparison"):
        read_rows(tmp_path / "rows.jsonl")


def test_the_plot_is_a_picture_of_the_numbers():
    spots = [(10.0, 0.2, 0.1, 0.3), (100.0, 0.5, 0.4, 0.6), (1000.0, 0.9, 0.8, 1.0)]
    lines = [plot.Line("greedy", [spots[:1]] * 2, reference=True)]
    lines += [plot.Line(f"arm <{i}>", [spots, [(0.0, 0.5, 0.4, 0.6)]]) for i in range(30)]
    picture = plot.chart("a & b", ["tokens", "seconds"], lines, "accuracy")
    root = ElementTree.fromstring(picture)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    for words in ("a & b", "tokens", "seconds", "accuracy", "arm <29>", "100", "40 %"):
        assert words in texts
    assert len({*texts} & {f"arm <{i}>" for i in range(30)}) == 30
    alone = ElementTree.fromstring(plot.chart("", ["tokens"], [plot.Line("a", [spots])], ""))
    _, *circles = [e for e in alone.iter() if e.tag.endswith("circle")]  # the first is the legend's
    ups, across = [float(e.get("cy")) for e in circles], [float(e.get("cx")) for e in circles]
    assert ups[0] > ups[1] > ups[2]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)  # a logarithmic scale
    assert picture == plot.chart("a & b", ["tokens", "seconds"], lines, "accuracy")
    low = plot.chart("", ["x"], [plot.Line("a", [[(5.0, 0.0, 0.0, 0.0)]])], "y")
    assert "nan" not in low.lower()
