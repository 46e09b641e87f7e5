"""The benchmarks run, and say whether their aims are met."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import cluster, engines, main_job, rewards, search_cost, serve, training
from benchmarks.common import Figure, short, table
from restmcts.engines import Engines
from restmcts.engines.scripted import ScriptedPolicy, ScriptedValue
from restmcts.types import Critique, Propose, Score, Step
from tests.adder import problem
from tests.test_report import make_run


def test_aims():
    assert [Figure("", 2.0, "s", aim, better).met for aim, better in ((3, "lower"), (1, "lower"), (1, "higher"))] == [
        True, False, True
    ]  # fmt: skip
    assert Figure("", 2.0, "s").met is None
    assert [short(x) for x in (0.5, 12.34, 1234.5)] == ["0.50", "12.3", "1,234"]
    assert table("t", [Figure("a", 2.0, "s", 1.0)]).rows == [["a", "2.00", "s", "≤ 1.00", "**no**"]]
    compared = table("t", [Figure("a", 2.0, "s", before=5.0), Figure("b", 3.0, "s")])
    assert [row[5:] for row in compared.rows] == [["5.00", "2.50"], ["–", "–"]]


def test_the_command_shows_and_stores(tmp_path: Path, monkeypatch, capsys):
    made = {"one": lambda: [Figure("a", 1.0, "s", 2.0)], "two": lambda: [Figure("b", 3.0, "s", 2.0)]}
    monkeypatch.setattr(command, "BENCHMARKS", made)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "one", "--out", str(tmp_path / "found.json")])
    assert command.main() == 0
    stored = json.loads((tmp_path / "found.json").read_text())
    assert stored["benchmarks"] == {
        "one": [{"name": "a", "value": 1.0, "unit": "s", "aim": 2.0, "better": "lower", "before": None, "met": True}]
    }
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    assert command.main() == 1  # the second misses its aim
    monkeypatch.setattr(sys, "argv", ["benchmarks", "three"])
    with pytest.raises(SystemExit):
        command.main()
    assert "no benchmark 'three'; there are: one, two, cluster, main_job" in capsys.readouterr().err


def test_the_tree_that_ready_workers_give_back_is_one_of_a_model():
    tree = cluster.tree_at_hand()
    tree.check()
    assert len(tree) > 30
    assert all(ids is not None and len(ids) == cluster.STEP_IDS for ids in tree.ids[1:])
    assert {problem.id for problem in cluster.questions(30)} == {f"q{i}" for i in range(30)}


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


def test_engines_are_measured_side_by_side(tiny_model_dir: Path, monkeypatch, capsys, one_thread):
    monkeypatch.setattr("restmcts.models.embedded_model", lambda: tiny_model_dir)
    monkeypatch.setattr("restmcts.engines.vllm.why_not", lambda *_: "it is not installed")
    for name, size in {"TREES": 4, "TOKENS": 1200, "FEW_TOKENS": 80, "BATCHES": 1, "WARM_UP": 2}.items():
        monkeypatch.setattr(engines, name, size)
    monkeypatch.setattr(engines, "alone", lambda work, *arguments: work(*arguments))
    figures = {figure.name: figure for figure in engines.run()}
    assert capsys.readouterr().out == "engines: vllm is left out: it is not installed\n"
    assert not [name for name, figure in figures.items() if not figure.value > 0]
    assert {name: figure.aim for name, figure in figures.items() if figure.aim is not None} == {
        "bare engine, transformers ÷ generate": 2.0,
        "search, transformers ÷ bare engine": 0.9,
        "speed-up, transformers over generate one at a time": 3.0,
        "speed-up, transformers over itself one at a time": 3.0,
    }


def test_the_server_is_measured_against_drive(tiny_model_dir: Path, monkeypatch, one_thread):
    pytest.importorskip("uvicorn")
    monkeypatch.setattr("restmcts.models.embedded_model", lambda: tiny_model_dir)
    monkeypatch.setattr(engines, "WARM_UP", 2)
    for name, size in {"REQUESTS": 12, "LATENCY": 0.004, "TOKENS": 20}.items():
        monkeypatch.setattr(serve, name, size)
    figures = {figure.name: figure for figure in serve.run()}
    assert not [name for name, figure in figures.items() if not figure.value > 0]
    assert {name: figure.aim for name, figure in figures.items() if figure.aim is not None} == {
        "scripted engines, served ÷ driven": 0.9,
        "the embedded model, served ÷ driven": 0.9,
    }
    for way in ("driven", "served"):
        assert figures[f"scripted engines, {way}: p50"].value <= figures[f"scripted engines, {way}: p95"].value


def test_one_request_at_a_time_asks_for_the_same_in_pieces():
    policy = ScriptedPolicy(lambda request, seed: f"{request.n} {seed}")
    value = ScriptedValue(lambda problem, path: len(path) / 10)
    found = engines.Searched()
    noted = engines.Noted(policy, found)
    pieces = engines.split(Engines(noted, engines.Noted(value, found)))
    request = Propose(problem(1), (), 3, 7, 1.0, 9)
    paths = ((Step("a"),), (Step("a"), Step("b")))

    async def ask():
        return await pieces.policy.propose(request), await pieces.value.score(Score(problem(1), paths))

    proposals, scores = asyncio.run(ask())
    assert [one.n for one in found.asked] == [1, 1, 1]
    assert len({sample.step.text for sample in proposals.samples}) == 3
    assert scores.values == (0.1, 0.2)
    assert [one.paths for one in found.scored] == [paths[:1], paths[1:]]
    assert proposals.usage.requests == 3
    tokens, _ = engines.asked_alone(policy.propose, found.asked, at_once=2)
    assert tokens == proposals.usage.policy_tokens


def test_plain_generation_ends_at_the_delimiter(tiny_model_dir: Path, tiny_value_dir: Path, one_thread):
    from benchmarks.plain import plain_engines
    from restmcts.encoding import Encoder, PromptSettings
    from restmcts.models import load_tokenizer

    encoder = Encoder(load_tokenizer(tiny_model_dir), PromptSettings())
    plain = plain_engines(tiny_model_dir, tiny_value_dir, encoder)
    request = Propose(problem(1), (), 2, 7, 1.0, 300)

    async def ask():
        proposals = await plain.policy.propose(request)
        again = await plain.policy.propose(request)
        path = (proposals.samples[0].step,)
        scores = await plain.value.score(Score(problem(1), (path, path * 2)))
        return proposals, again, scores, await plain.policy.critique(Critique(problem(1), path, 7, 12))

    proposals, again, scores, verdict = asyncio.run(ask())
    assert proposals.samples == again.samples
    for sample in proposals.samples:
        assert encoder.delimiter not in sample.step.text
        assert sample.finish in ("step", "end")  # of 400 tokens, some end it long before the 300th
    assert proposals.usage.requests == 2
    assert len(scores.values) == 2
    assert verdict.solved or verdict.advice
    assert 0 < verdict.usage.policy_tokens <= 12
    assert plain.policy.busy_seconds > 0


def test_the_main_job_is_told_by_stage_and_compared(tmp_path: Path, monkeypatch, capsys):
    now, before = make_run(tmp_path / "now", 0), make_run(tmp_path / "before", 1)
    records = [json.loads(line) for line in (now / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record["seconds"] /= 2
        if record["kind"] == "search":
            record["speed"] = {"seconds": 10.0, "policy_tokens": 1000}
    (now / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    figures = {figure.name: figure for figure in main_job.run(now, before)}
    assert (figures["round-1/search"].value, figures["round-1/search"].before) == (30.5, 61.0)
    assert figures["round-1/search: tokens"].value == 100
    assert figures["the whole job"].value == len(records) * 30.5 / 60
    assert figures["the whole job: before ÷ now"].value == 2.0
    assert figures["all of kind evaluate"].value == 5 * 30.5
    assert 65 < figures["right after round 1, search"].value < 75
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--run", str(now), "--before", str(before)])
    assert command.main() == 0
    assert "before ÷ now" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["benchmarks", "main_job", "--run", str(tmp_path)])
    with pytest.raises(SystemExit):
        command.main()
    assert "holds no results" in capsys.readouterr().err
