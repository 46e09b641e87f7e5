"""Model cards: what they say, that the hub can read it, that they change nothing; and that the models load plainly."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from restmcts.cards import MARK, card, write_card
from restmcts.evaluate import Row
from restmcts.manifest import fingerprint
from restmcts.rows import PolicyRow, ValueRow, write_rows
from restmcts.store import RunFolder, read_jsonl, write_atomic, write_jsonl


def model_stage(run: Path, name: str, *, value: bool = False, base: str = "owner/base", **settings: Any) -> Path:
    """A stage that left a model, as far as its card is concerned."""
    with RunFolder(run) as folder:
        inputs = {"base": run / base} if (run / base).is_dir() else {}
        named = {} if inputs else {"base": base}
        stage = folder.stage(name, settings={"training": {"epochs": 3}, "seed": 1, **named, **settings}, inputs=inputs)
        kind = "ForTokenClassification" if value else "ForCausalLM"
        write_atomic(stage.path / "config.json", json.dumps({"architectures": [f"Qwen3{kind}"]}))
        metrics: dict[str, Any] = {"rows": 120, "loss_first": 1.5, "loss_last": 0.25}
        if value:
            metrics |= {"validation_steps": 40, "validation_mse": 0.0625, "validation_within_0.1": 0.5}
        stage.finish(metrics)
    return run / name


def made_run(run: Path, **settings: Any) -> Path:
    """A run with two rounds, whose policies answer 2 and 3 of four held-out questions."""
    config = {"method": "rest-mcts", "rounds": 2, "problems": "gsm8k", "heldout": "/home/me/secret/questions.jsonl"}
    write_atomic(run / "config.yaml", yaml.safe_dump(config | settings))
    write_jsonl(run / "data" / "heldout.jsonl", [{"id": str(i), "question": f"{i}?"} for i in range(4)])
    records: list[dict[str, Any]] = []
    for k in (1, 2):
        for kind in ("policy", "value"):
            base = "owner/base" if k == 1 else f"round-{k - 1}/{kind}"
            model_stage(run, f"round-{k}/{kind}", value=kind == "value", base=base)
            records.append({"stage": f"round-{k}/{kind}", "kind": kind, "phase": k, "mode": None, "metrics": {}})
        rows = [Row(str(i), "cot", "1", "1", i <= k, 9, 9, 0, 0, 0.1, 2, 1, "done") for i in range(4)]
        write_jsonl(run / f"round-{k}/evaluate/greedy/rows.jsonl", map(asdict, rows))
        stage = f"round-{k}/evaluate/greedy"
        records.append({"stage": stage, "kind": "evaluate", "phase": k, "mode": "greedy", "metrics": {}})
    write_jsonl(run / "metrics.jsonl", records)
    return run


def head_of(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_a_card_knows_base_data_method_and_quality(tmp_path):
    run = made_run(tmp_path / "mine")
    text = card(run / "round-2" / "policy")
    assert text is not None
    head = head_of(text)
    assert head["base_model"] == "owner/base", "through the rounds before"
    assert head["datasets"] == ["openai/gsm8k"]
    assert (head["library_name"], head["pipeline_tag"]) == ("transformers", "text-generation")
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "name": "accuracy, greedy", "value": 75.0}]
    assert result["dataset"]["name"] == "questions.jsonl"
    assert "/home/me" not in text
    assert str(tmp_path) not in text
    for part in ("`rest-mcts`", "in round 2", "120 rows", "75.0 %", "epochs: 3", "AutoModelForCausalLM"):
        assert part in text


def test_a_value_models_card(tmp_path):
    run = made_run(tmp_path / "mine")
    text = card(run / "round-1" / "value", "me/value")
    assert text is not None
    head = head_of(text)
    assert head["pipeline_tag"] == "token-classification"
    assert "process-reward-model" in head["tags"]
    assert "model-index" not in head
    for part in ("0.062", "50.0 %", "AutoModelForTokenClassification", "--value me/value"):
        assert part in text


def test_the_hubs_own_library_reads_it(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    run = made_run(tmp_path / "mine")
    for kind in ("policy", "value"):
        found = hub.ModelCard(card(run / "round-1" / kind))
        assert found.data.base_model == "owner/base"
        assert found.data.library_name == "transformers"
        results = found.data.eval_results or []
        assert [result.metric_value for result in results] == ([50.0] if kind == "policy" else [])


def test_writing_a_card_changes_no_fingerprint(tmp_path):
    run = made_run(tmp_path / "mine")
    folder = run / "round-1" / "policy"
    before = fingerprint(folder), (folder / "manifest.json").read_bytes()
    assert write_card(folder) == folder / "README.md"
    assert (fingerprint(folder), (folder / "manifest.json").read_bytes()) == before
    with RunFolder(run) as again:  # the next round, made from this folder, is still finished
        settings = {"training": {"epochs": 3}, "seed": 1}
        assert again.stage("round-2/policy", settings=settings, inputs={"base": folder}).done


def test_a_card_is_renewed_and_somebodys_own_is_not(tmp_path):
    run = made_run(tmp_path / "mine")
    folder = run / "round-1" / "policy"
    (run / "metrics.jsonl").rename(run / "later")
    write_card(folder)
    early = (folder / "README.md").read_text()
    (run / "later").rename(run / "metrics.jsonl")
    write_card(folder)
    assert "Not measured" in early
    assert "50.0 %" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("My words")
    assert write_card(folder) is None
    assert (folder / "README.md").read_text() == "My words"


def test_where_the_base_comes_from(tmp_path):
    """The embedded model by its name on the hub; a folder by its name alone, or by what its own card says."""
    run = tmp_path / "run"
    embedded = card(model_stage(run, "round-1/policy", base="embedded"))
    assert head_of(embedded or "")["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert head_of(embedded or "")["license"] == "apache-2.0"
    local = tmp_path / "secret" / "model"
    local.mkdir(parents=True)
    (local / "weights").write_text("x")
    text = card(model_stage(run, "round-2/policy", base=str(local))) or ""
    assert "base_model" not in head_of(text)
    assert "`model`" in text
    assert "secret" not in text
    (local / "README.md").write_text("---\nlicense: mit\nbase_model: some/one\n---\n# x\n")
    assert head_of(card(run / "round-2/policy") or "")["license"] == "mit"
    assert head_of(card(run / "round-2/policy") or "")["base_model"] == "some/one"
    (local / "README.md").write_text("---\nlicense: [a]\nbase_model: {\n---\n")
    assert "license" not in head_of(card(run / "round-2/policy") or ""), "a card that is broken says nothing"


def test_there_is_no_card_where_there_is_no_model(tmp_path):
    assert card(tmp_path) is None
    with RunFolder(tmp_path / "x") as folder:
        folder.stage(".", settings={}).finish()
    assert write_card(tmp_path / "x") is None
    assert not (tmp_path / "x" / "README.md").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A policy and a value model as `restmcts train` leaves them."""
    pytest.importorskip("transformers")
    from restmcts import cli

    out = tmp_path_factory.mktemp("trained")
    steps, none = ["1 + 2 = 3", "Answer: 3"], [None, None]
    write_rows(out / "policy_rows.jsonl", [PolicyRow(f"p{i}", f"{i}?", steps, none, None) for i in range(4)])
    rows = [ValueRow(f"p{i}", f"{i}?", steps, none, None, [0.5, 1.0], [0.0, 0.0]) for i in range(4)]
    write_rows(out / "value_rows.jsonl", rows)
    for kind in ("policy", "value"):
        words = ("train", kind, str(out), "--base", str(tiny_model_dir), "--out", str(out / kind), "-q")
        assert cli._dispatch([*words, "--set", f"{kind}_training.epochs=1"]) is None
    return out


def test_what_training_writes_loads_in_transformers_as_the_card_says(trained, monkeypatch, one_thread, capsys):
    """The card's own example, word for word."""
    monkeypatch.chdir(trained)
    for kind in ("policy", "value"):
        text = (trained / kind / "README.md").read_text()
        assert MARK in text
        code = text.split("```python\n")[1].split("```")[0]
        found: dict[str, Any] = {}
        exec(compile(code, "README.md", "exec"), found)
        if kind == "value":
            assert 0 < float(found["value"]) < 1
    assert "What is 2 + 3?" in capsys.readouterr().out


def test_the_example_scores_as_the_engine_does(trained, monkeypatch, one_thread):
    import asyncio

    from restmcts.encoding import PromptSettings
    from restmcts.engines.settings import EngineSettings
    from restmcts.engines.transformers import load_value
    from restmcts.types import Problem, Score, Step

    monkeypatch.chdir(trained)
    code = (trained / "value" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), found)
    engine = load_value(trained / "value", PromptSettings(), EngineSettings(dtype="float32"))

    async def ask() -> float:
        reply = await engine.score(Score(Problem("p", "What is 2 + 3?"), ((Step("2 + 3 = 5"),),)))
        await engine.close()
        return float(reply.values[0])

    assert asyncio.run(ask()) == pytest.approx(float(found["value"]), abs=1e-3)


def test_a_models_files_name_no_place_of_this_machine(trained, tiny_model_dir):
    from restmcts.hub import uploads

    for kind in ("policy", "value"):
        (made,) = uploads(trained / kind, "me/it")
        assert {"model.safetensors", "config.json", "tokenizer.json", "restmcts.json"} <= made.files.keys()
        for name, content in made.files.items():
            raw = content if isinstance(content, bytes) else content.read_bytes()
            for place in (trained, tiny_model_dir):
                assert str(place).encode() not in raw, name
    assert list(read_jsonl(trained / "value_rows.jsonl"))
