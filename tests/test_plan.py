"""What a run will do, said beforehand: the very stages that it then has, and estimates that follow from settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from restmcts import cli
from restmcts.config import load_config
from restmcts.errors import ConfigError
from restmcts.plan import Assumptions, StagePlan, make_plan, parameters_of, show_plan
from tests.test_loop import config, stages_of
from tests.test_methods import run

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "paper").glob("*.yaml"))


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("rest-mcts", {}),
        ("rest-mcts", {"labels": {"source": "judge"}, "warm_start": {"value_data": "sampled", "bootstrap": 5}}),
        ("rest-mcts", {"warm": False, "rounds": 2, "evaluate": {"base": [], "search_rounds": "last"}}),
        ("rest-mcts", {"labels": {"rule": "math-shepherd", "completions": 2}}),
        ("rest-em", {"evaluate": {"base": ["greedy", "search"], "limit": 3}}),
        ("self-rewarding", {"heldout": None}),
        ("mcts-dpo", {}),
        ("online", {"evaluate": {"base": [], "search": {"method": "mcts_star"}}}),
    ],
)
def test_the_stages_are_those_of_the_run(tmp_path: Path, method: str, changes: dict[str, Any]) -> None:
    out, _ = run(tmp_path, method, **changes)
    plan = make_plan(load_config(out / "config.yaml"))
    assert [stage.name for stage in plan.stages] == stages_of(out)


def test_tokens_and_hours_follow_from_the_settings(tmp_path: Path) -> None:
    settings = {"policy": "some/model-7B", "search": {"method": "sample", "samples": 4}, "warm": False, "heldout": None}
    assumed = Assumptions(prompt_tokens=100, step_tokens=10, steps=5, right=0.5)
    plan = make_plan(config(tmp_path, method="rest-em", rounds=1, **settings), assumed)
    stages = {stage.name: stage for stage in plan.stages}
    search, policy = stages["round-1/search"], stages["round-1/policy"]
    assert (search.questions, search.policy, search.value) == (12, 12 * 4 * 50, 0)
    assert policy.trained == 12 * 2 * 3 * 150  # questions × right samples × epochs × (prompt + solution)
    assert plan.hours(search) == pytest.approx(2 * 7e9 * 2400 / (312e12 * 0.15) / 3600)
    assert plan.hours(policy) == pytest.approx(4 * 7e9 * policy.trained / (312e12 * 0.35) / 3600)
    capped = config(tmp_path, method="rest-em", rounds=1, **settings | {"search": {"samples": 4, "budget_tokens": 80}})
    assert {s.name: s for s in make_plan(capped, assumed).stages}["round-1/search"].policy == 12 * 80


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8e9),
        ("zd21/SciGLM-6B", 6e9),
        ("Qwen/Qwen2.5-1.5B", 1.5e9),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6),
        ("embedded", 135e6),
        ("someone/model-v3", None),
    ],
)
def test_the_size_of_a_model_is_read_off_its_name(name: str, size: float | None) -> None:
    assert parameters_of(name) == size


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path, policy="someone/model", problems="somewhere/else", heldout=None))
    assert "somewhere/else: 7500 questions assumed." in plan.guessed
    stages, memory = show_plan(plan)
    assert "**The size of 'someone/model' is not known" in memory.notes[0]
    assert all(row[-1] == "–" for row in stages.rows)
    assert plan.hours(StagePlan("x", policy=1.0)) is None
    with pytest.raises(ConfigError, match="no policy"):
        make_plan(load_config())


def test_what_does_not_fit_is_marked(tmp_path: Path) -> None:
    full = {"policy": "some/model-8B", "policy_training": {"method": "full"}}
    memory = show_plan(make_plan(config(tmp_path, **full)))[1]
    cells = {row[0]: row[1:] for row in memory.rows}
    assert cells["searching, policy and value model"] == ["32.0", "yes"]
    assert cells["training the policy, full"] == ["128.0", "**no**"]
    assert cells["training the value model, lora"] == ["17.3", "yes"]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_papers_configurations_are_valid_and_fit(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._dispatch(["plan", str(file)]) is None
    assert "round-2/value" in capsys.readouterr().out
    assert "**no**" not in show_plan(make_plan(load_config(file)))[1].markdown()


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "family"), [("llama3", "llama"), ("mistral", "mistral"), ("sciglm", "glm")])
def test_the_papers_configurations_run(tmp_path: Path, name: str, family: str) -> None:
    """End to end, with a tiny random model of the same architecture and chat template: one round, few questions."""
    from restmcts import loop
    from tests.adder import problem
    from tests.test_loop import write_problems
    from tests.tiny import tiny_model

    [file] = [file for file in CONFIGS if file.stem.startswith(name)]
    small = ["search.iterations=2", "search.step_tokens=8", "search.max_depth=3", "warm_start.bootstrap=2"]
    small += ["search.critic_tokens=4", "engine.device=cpu", "engine.dtype=float32"]
    small += [f"{part}.device=cpu" for part in ("policy_training", "value_training")]
    settings = load_config(
        file,
        flags={
            "policy": str(tiny_model(tmp_path / "policy", family)),
            "problems": write_problems(tmp_path / "t.jsonl", [problem(i, 2) for i in range(3)]),
            "worked": write_problems(tmp_path / "w.jsonl", [problem(200 + i, 2) for i in range(8)]),
            "heldout": write_problems(tmp_path / "h.jsonl", [problem(100 + i, 2) for i in range(2)]),
            "out": tmp_path / "run",
            "rounds": 1,
        },
        overrides=small,
    )
    loop.run(settings)
    assert stages_of(tmp_path / "run") == [stage.name for stage in make_plan(settings).stages]


def test_there_are_three_backbones() -> None:
    assert [file.stem for file in CONFIGS] == ["llama3-8b-instruct", "mistral-7b-metamath", "sciglm-6b"]
