"""Nothing that a stranger hands in breaks anything. The full run: `python -m tests.fuzz 10000`."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restmcts.config import load_config
from restmcts.errors import ConfigError, EngineError, RestmctsError, StoreError, TaskError
from restmcts.results import load_run
from restmcts.tasks import sources
from restmcts.tasks.load import load_problems
from tests.fuzz import READERS, attempt, fuzz


def test_a_sound_input_is_taken() -> None:
    """Else nothing would be tried of what comes after reading."""
    for name, (reader, seeds) in READERS.items():
        assert "taken" in {attempt(reader, seed) for seed in seeds}, name


@pytest.mark.parametrize("name", READERS)
def test_spoilt_inputs_are_taken_or_refused(name: str) -> None:
    found = fuzz(60, 1, (name,))
    assert found.get("taken", 0) + found.get("refused", 0) == 60


@pytest.mark.slow
def test_many_spoilt_inputs() -> None:
    found = fuzz(400, 2)
    assert found["inputs"] == 400 * len(READERS)
    assert found["MB"] < 2000


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=25, deadline=None)
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))))
def test_anything_is_taken_or_refused(name: str, data: bytes) -> None:
    attempt(READERS[name][0], data)


# ---------------------------------------------------------------- bombs


def test_aliases_without_end_cost_nothing() -> None:
    """A few lines of YAML that stand for 10^30 words."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    bomb = ", ".join(line.partition(": ")[2] for line in lines)
    for name in ("rounds", "search", "fields", "policy", "prompt.examples", "evaluate.methods"):
        with pytest.raises(ConfigError) as caught:
            load_config(overrides=[f"{name}=[{bomb}]"])
        assert len(str(caught.value)) < 2000


def test_nesting_without_end(tmp_path: Path) -> None:
    for text in ("[" * 50_000, '{"a":' * 50_000, "- " * 50_000, "{a: " * 50_000):
        for name in ("x.json", "x.jsonl"):
            (tmp_path / name).write_text(text)
            with pytest.raises(TaskError):
                load_problems(tmp_path / name)
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ConfigError):
            load_config(tmp_path / "x.yaml")


def test_a_parquet_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = pyarrow.array(["x" * 1_000_000])
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 80, pyarrow.int32()), texts)
    path = tmp_path / "bomb.parquet"
    parquet.write_table(pyarrow.table({"question": column}), path)
    assert path.stat().st_size < 4_000_000
    monkeypatch.setattr(sources, "LARGEST", 64 << 20)
    with pytest.raises(TaskError, match=r"bomb\.parquet.*more than 64 MiB of text"):
        load_problems(path, need_answer=False)


def test_a_question_of_ten_megabytes(tmp_path: Path) -> None:
    (tmp_path / "big.jsonl").write_text('{"question": "What is ' + "1 + " * 2_600_000 + '1?", "answer": "2600001"}\n')
    (problem,) = load_problems(tmp_path / "big.jsonl")
    assert len(problem.question) > 10_000_000


# ---------------------------------------------------------------- paths and pickles


@pytest.mark.parametrize("out", ["a\0b", "x" * 5000, "\ud800"])
def test_paths_that_are_none(out: str) -> None:
    from restmcts.shell import one_line
    from restmcts.store import RunFolder

    with pytest.raises((StoreError, OSError)) as caught:
        RunFolder(out)
    assert one_line(caught.value) is not None


@pytest.mark.parametrize("stage", ["../secret", "/secret", "a/../../secret", "x\0y"])
def test_a_run_folder_does_not_lead_out_of_itself(tmp_path: Path, stage: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "rows.jsonl").write_text("{}\n")
    (tmp_path / "run").mkdir()
    line = {"stage": stage, "kind": "evaluate", "phase": 0, "mode": "greedy", "metrics": {}}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(StoreError, match=r"metrics\.jsonl is damaged"):
        load_run(tmp_path / "run")


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.model
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "adapter_model.bin", "tokenizer.json"])
def test_pickles_are_never_opened(tmp_path: Path, tiny_model_dir: Path, name: str) -> None:
    """Alone, in the place of the weights, as an adapter, as a tokenizer."""
    pytest.importorskip("transformers")
    import shutil

    from restmcts.engines.transformers import load_engines

    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    if name == "pytorch_model.bin":
        (model / "model.safetensors").unlink()
    if name == "adapter_model.bin":
        (model / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(tiny_model_dir)})
        )
    (model / name).write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    with pytest.raises(RestmctsError) as caught:
        load_engines(model)
    assert isinstance(caught.value, EngineError)
    assert not (tmp_path / "boom").exists()


@pytest.mark.model
def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path, tiny_model_dir: Path) -> None:
    pytest.importorskip("transformers")
    import shutil

    from restmcts.engines.transformers import load_engines

    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "boom.Model", "AutoConfig": "boom.Config"}, "model_type": "boom"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "boom.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'boom')!r})\nclass Model: pass\nConfig = Model\n"
    )
    with pytest.raises(EngineError):
        load_engines(model)
    assert not (tmp_path / "boom").exists()
