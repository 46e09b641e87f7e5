"""`restmcts run --dry-run`: the settings, and what of the run is there already; it touches nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from restmcts import cli, loop
from restmcts.config import RunConfig, dump_yaml
from restmcts.errors import ConfigError, Damaged
from restmcts.preview import changed_settings, stages_table
from restmcts.shell import guarded
from tests.adder import AdderTools
from tests.test_loop import config, stages_of


def states(settings: RunConfig) -> dict[str, str]:
    return {row[0]: row[2] for row in stages_table(settings).rows}


def test_before_after_and_with_another_round(tmp_path: Path) -> None:
    settings = config(tmp_path, rounds=1)
    assert set(states(settings).values()) == {"to do"}
    assert not settings.out.exists(), "nothing is made"
    loop.run(settings, tools=AdderTools())
    assert list(states(settings)) == stages_of(settings.out)
    assert set(states(settings).values()) == {"finished"}
    more = states(config(tmp_path, rounds=2))
    assert {state for name, state in more.items() if name.startswith("round-2")} == {"to do"}
    assert {state for name, state in more.items() if not name.startswith("round-2")} == {"finished"}
    label = settings.out / "round-1" / "label"
    (label / "manifest.json").rename(label / "begun.json")
    assert states(settings)["round-1/label"] == "begun"
    (label / "manifest.json").write_text("{")
    with pytest.raises(Damaged, match="not JSON"):
        stages_table(settings)


def test_settings_that_changed_are_named(tmp_path: Path) -> None:
    settings = config(tmp_path, rounds=1)
    settings.out.mkdir()
    (settings.out / "config.yaml").write_text(dump_yaml(settings))
    assert changed_settings(settings) == []
    free = config(tmp_path, rounds=3, engine={"concurrency": 7})
    assert changed_settings(free) == []
    other = config(tmp_path, rounds=1, search={"iterations": 9, "branch": 2})
    assert "search.iterations" in changed_settings(other)
    assert any("search.iterations" in note for note in stages_table(other).notes)


def test_the_command_prints_settings_that_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(tmp_path, rounds=1)
    (tmp_path / "mine.yaml").write_text(dump_yaml(settings))
    assert cli._dispatch(["run", str(tmp_path / "mine.yaml"), "--rounds", "2", "--dry-run"]) is None
    said = capsys.readouterr().out
    shown = yaml.safe_load(said.partition("\nStages in")[0])
    assert shown["rounds"] == 2
    assert shown["search"]["iterations"] == settings.search.iterations
    assert "round-2/policy" in said
    assert not settings.out.exists()


def test_it_refuses_what_a_run_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="cannot be trained"):
        stages_table(config(tmp_path, policy="scripted"))
    assert guarded(cli._dispatch, ["run", "--dry-run"]) == 2
    assert "no policy" in capsys.readouterr().err
