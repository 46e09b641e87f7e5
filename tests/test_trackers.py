"""Trackers of experiments: their names, what is sent there, and that they are no part of what a stage is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from restmcts import cli, loop
from restmcts.config import load_config
from restmcts.errors import ConfigError
from restmcts.results import load_run
from restmcts.shell import guarded
from restmcts.trackers import TRACKERS, Tracking, check_installed, stage_numbers
from restmcts.types import Problem
from tests.adder import AdderTools
from tests.test_loop import config


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("none", ()),
        ("null", ()),
        ("[]", ()),
        ("wandb", ("wandb",)),
        ("[mlflow, wandb, mlflow]", ("mlflow", "wandb")),
        ("[none]", ()),
    ],
)
def test_one_name_or_several(given: str, names: tuple[str, ...]):
    assert load_config(overrides=[f"report_to={given}"]).report_to == names


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("tensorbord", "did you mean 'tensorboard'"),
        ("[trackio, w&b]", "there are: tensorboard, wandb, trackio, mlflow"),
        ("7", "report_to"),
        ("{a: 1}", "report_to"),
    ],
)
def test_an_unknown_one_is_refused_on_one_line(given: str, hint: str, capsys: pytest.CaptureFixture[str]):
    assert guarded(cli._dispatch, ["run", "--policy", "embedded", "--set", f"report_to={given}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert hint in line


def test_one_that_is_not_installed_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("restmcts.trackers.find_spec", lambda name: None)
    tools = AdderTools()
    with pytest.raises(ConfigError, match=r"report_to = 'wandb': it is not installed; run: pip install wandb"):
        loop.run(config(tmp_path, report_to="wandb"), tools=tools)
    assert tools.calls == []
    assert not (tmp_path / "run").exists()
    check_installed(())


def test_trainer_arguments():
    assert Tracking().arguments() == {"report_to": "none"}
    assert Tracking(("wandb",), "mine/round-1/policy").arguments() == {
        "report_to": ["wandb"],
        "run_name": "mine/round-1/policy",
        "project": "restmcts",
    }


def test_the_numbers_of_a_stage():
    record: dict[str, Any] = {
        "kind": "search",
        "mode": None,
        "phase": 1,
        "seconds": 9.0,
        "memory_mb": None,
        "usage": {"policy_tokens": 40, "value_tokens": 10, "prompt_tokens": 200, "cached_tokens": 50},
        "speed": {"seconds": 4.0, "policy_tokens": 40},
        "metrics": {"solved": 3, "engine": "scripted", "kept": True, "accuracy": None},
    }
    assert stage_numbers(record) == {
        "search/solved": 3,
        "search/policy_tokens": 40,
        "search/value_tokens": 10,
        "search/tokens_per_second": 10.0,
        "search/cache_hits": 0.25,
        "search/seconds": 9.0,
    }
    told = stage_numbers(record | {"kind": "evaluate", "mode": "greedy", "phase": -1, "metrics": {"accuracy": 0.5}})
    assert told["eval_base_greedy/accuracy"] == 0.5


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What the event files of a folder (not of those below it) hold."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events.*")):
        events = accumulator.EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return found


def needs_tensorboard() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("tensorboard", reason="TensorBoard comes with the extra `dev`")


def test_stages_go_to_tensorboard_and_it_may_be_changed_at_any_time(tmp_path: Path):
    needs_tensorboard()
    loop.run(config(tmp_path, rounds=1, report_to="tensorboard"), tools=AdderTools())
    out = tmp_path / "run"
    found = scalars(out / "tracking")
    run = load_run(out)
    for mode in ("greedy", "search"):
        evaluation = run.evaluation(1, mode)
        assert evaluation is not None
        assert dict(found[f"eval/{mode}/accuracy"])[1] == pytest.approx(evaluation["metrics"]["accuracy"])
        assert f"eval/base_{mode}/accuracy" in found
    assert len(list((out / "tracking").glob("events.*"))) == 1
    label = run.of_kind("label")[1]
    assert found["train/label/solved"] == [(1, label["metrics"]["solved"])]
    assert dict(found["train/search/policy_tokens"])[1] == run.of_kind("search")[1]["usage"]["policy_tokens"]
    assert "train/search/tokens_per_second" in found
    assert load_config(out / "config.yaml").report_to == ("tensorboard",)

    tools = AdderTools()
    loop.run(config(tmp_path, rounds=1), tools=tools)  # not a changed setting, and nothing to do
    assert tools.calls == []
    loop.run(config(tmp_path, rounds=2, report_to="tensorboard"), tools=tools)
    again = scalars(out / "tracking")
    assert [step for step, _ in again["eval/search/accuracy"]] == [0, 1, 2]


def test_a_tracker_that_cannot_begin_is_told_on_one_line(tmp_path: Path):
    needs_tensorboard()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tracking").write_text("in the way")
    with pytest.raises(ConfigError, match="report_to = tensorboard: it cannot begin .* leave report_to out"):
        loop.run(config(tmp_path, report_to="tensorboard"), tools=AdderTools())


def test_a_tracker_that_fails_later_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    needs_tensorboard()
    from restmcts.train.reporting import StageReports

    reports = StageReports(Tracking(("tensorboard",), "run", tmp_path), {"seed": 1})

    def fail(*_: Any) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(reports, "_send", fail)
    reports.send(1, {"search/solved": 1})
    reports.close()
    assert "did not reach tensorboard: gone" in caplog.text


def test_the_stages_of_a_run_are_one_run_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With stand-ins for the library and for transformers' callback to it."""
    pytest.importorskip("transformers")
    from restmcts.train import reporting

    said: list[Any] = []

    class Library(ModuleType):
        run: Any = None

        def init(self, **given: Any) -> Any:
            self.run = SimpleNamespace(id=given["id"] or "new")
            said.append((given["project"], given["name"], given["id"]))
            return self.run

        def finish(self) -> None:
            self.run = None

    class Callback:
        def on_log(self, args: Any, state: Any, control: Any, logs: Any) -> None:
            said.append((state.global_step, logs, args.to_dict()["search.iterations"]))

        def on_train_end(self, *_: Any) -> None: ...

    library = Library("wandb")
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.setattr(reporting, "get_reporting_integration_callbacks", lambda names: [Callback])
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    reports = reporting.StageReports(Tracking(("wandb",), "mine", tmp_path), {"search": {"iterations": 4}})
    reports.send(2, {"search/solved": 3})
    assert said == [
        ("restmcts", "mine", None),
        (0, {}, "4"),
        ("restmcts", "mine", "new"),
        (2, {"search/solved": 3}, "4"),
    ]
    assert library.run is None
    assert "WANDB_PROJECT" not in os.environ


def small(kind: str) -> tuple[Any, Any]:
    """Rows and settings of a short training of each kind."""
    from restmcts.train.settings import OnlineTraining, PolicyTraining, PreferenceTraining, ValueTraining
    from tests import test_train_policy, test_train_rl, test_train_value

    cpu: dict[str, Any] = {"device": "cpu", "precision": "float32", "lora_rank": 4}
    if kind == "policy":
        return test_train_policy.sums(), PolicyTraining(epochs=2, batch_tokens=256, **cpu)
    if kind == "value":
        return test_train_value.traces(), ValueTraining(epochs=2, batch_tokens=256, **cpu)
    if kind == "preference":
        return [test_train_rl.pair(i) for i in range(8)], PreferenceTraining(batch_pairs=4, **cpu)
    questions = [Problem(f"q{i}", f"{i} + 1?", str(i + 1)) for i in range(4)]
    return questions, OnlineTraining(steps=2, questions=2, samples=2, tokens=8, max_length=256, **cpu)


@pytest.mark.model
@pytest.mark.parametrize("kind", ["policy", "value", "preference", "online"])
@pytest.mark.usefixtures("one_thread")
def test_every_training_reports(kind: Any, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """On a tiny model; the folder that the user names is used, and the environment is left as it was."""
    needs_tensorboard()
    if kind in ("preference", "online"):
        pytest.importorskip("trl")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    chosen = load_config(flags={"out": tmp_path / "run", "report_to": "tensorboard"})
    tools = loop.ModelTools(chosen)
    out = tmp_path / "run" / "round-1" / "policy"
    rows, settings = small(kind)
    tools.train(kind, rows, base=tiny_model_dir, out=out, settings=settings, seed=0, on_progress=lambda *_: None)
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "mine")
    assert "WANDB_PROJECT" not in os.environ
    found = scalars(tmp_path / "mine" / "run" / "round-1" / "policy")
    losses = found["train/loss"]
    assert [step for step, _ in losses] == list(range(1, len(losses) + 1))
    assert not (out / "checkpoints").exists()
    assert not list(out.rglob("events.*"))


def test_every_name_is_one_of_transformers():
    integrations = pytest.importorskip("transformers.integrations.integration_utils")
    assert TRACKERS.keys() <= integrations.INTEGRATION_TO_CALLBACK.keys()
