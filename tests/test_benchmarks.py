"""The benchmarks run, and say whether their aims are met."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import rewards, search_cost, training
from benchmarks.common import Figure, short, table
from tests.adder import problem


def test_aims():
    assert [Figure("", 2.0, "s", aim, better).met for aim, better in ((3, "lower"), (1, "lower"), (1, "higher"))] == [
        True, False, True
    ]  # fmt: skip
    assert Figure("", 2.0, "s").met is None
    assert [short(x) for x in (0.5, 12.34, 1234.5)] == ["0.50", "12.3", "1,234"]
    assert table("t", [Figure("a", 2.0, "s", 1.0)]).rows == [["a", "2.00", "s", "≤ 1.00", "**no**"]]


def test_the_command_shows_and_stores(tmp_path: Path, monkeypatch, capsys):
    made = {"one": lambda: [Figure("a", 1.0, "s", 2.0)], "two": lambda: [Figure("b", 3.0, "s", 2.0)]}
    monkeypatch.setattr(command, "BENCHMARKS", made)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "one", "--out", str(tmp_path / "found.json")])
    assert command.main() == 0
    stored = json.loads((tmp_path / "found.json").read_text())
    assert stored["benchmarks"] == {
        "one": [{"name": "a", "value": 1.0, "unit": "s", "aim": 2.0, "better": "lower", "met": True}]
    }
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    assert command.main() == 1  # the second misses its aim
    monkeypatch.setattr(sys, "argv", ["benchmarks", "three"])
    with pytest.raises(SystemExit):
        command.main()
    assert "no benchmark 'three'; there are: one, two" in capsys.readouterr().err


def test_search_makes_trees_of_the_size_asked_for():
    for nodes in (10, 100, 1000):
        grown: list = []
        search_cost.search(2, nodes, 2, grown)
        assert [len(tree) for tree in grown] == pytest.approx([nodes] * 2, rel=0.2)
        assert {tree.stop for tree in grown} == {"iterations"}
    micros, size = search_cost.one_by_one(10, 3)
    assert micros > 1
    assert 100 < size < 2000
    assert search_cost.engines_alone() > 0
    assert search_cost.worth(problem(1), grown[0].path(1)) == search_cost.worth(problem(2), grown[0].path(1))


def test_trees_to_label_are_verified_at_every_leaf():
    parent, correct = rewards.random_tree(50, 1)
    assert len(parent) == len(correct) == 50
    assert all((verdict is None) == (node in parent) for node, verdict in enumerate(correct))


def test_training_is_measured_in_every_layout(tiny_model_dir: Path, monkeypatch, one_thread):
    pytest.importorskip("peft")
    monkeypatch.setattr("restmcts.models.embedded_model", lambda: tiny_model_dir)
    monkeypatch.setattr(training, "QUESTIONS", 3)
    figures = {figure.name: figure for figure in training.run()}
    assert all(figure.value > 0 for figure in figures.values())
    aims = {name: figure.aim for name, figure in figures.items() if figure.aim is not None}
    assert aims == {"value training: packed ÷ per prefix": training.AIM}
