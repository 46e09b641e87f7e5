"""Trainings in several processes: two on a CPU, which talk by gloo, learn what one would, and leave the same folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("accelerate")

import torch

import restmcts
from restmcts.config import RunConfig, load_config
from restmcts.errors import ConfigError, TrainError
from restmcts.files import read_json
from restmcts.loop import ModelTools, check
from restmcts.models import load_causal, load_token_classifier
from restmcts.rows import write_rows
from restmcts.store import MANIFEST
from restmcts.train.common import TRAINED
from restmcts.train.launch import launch
from restmcts.train.packing import IGNORED, Example
from restmcts.train.policy import train_policy
from restmcts.train.settings import PolicyTraining, ValueTraining
from restmcts.train.steps import StepTrainer
from restmcts.train.value import train_value
from tests import test_train_policy, test_train_value
from tests.tiny import tiny_model

ROOT = Path(restmcts.__file__).parents[1]
PROMPT = test_train_policy.PROMPT
POLICY = PolicyTraining(epochs=2, learning_rate=3e-3, batch_tokens=512, lora_rank=4)
VALUE = ValueTraining(epochs=2, learning_rate=3e-3, batch_tokens=512, lora_rank=4)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of rows for each kind of training. Their numbers of labels differ, and so do the processes' shares."""
    folder = tmp_path_factory.mktemp("rows")
    files = {"policy": folder / "policy_rows.jsonl", "value": folder / "value_rows.jsonl"}
    write_rows(files["policy"], test_train_policy.sums())
    write_rows(files["value"], test_train_value.traces())
    return files


def changed(kind: str, **changes: Any) -> PolicyTraining | ValueTraining:
    settings = POLICY if kind == "policy" else VALUE
    return settings.model_copy(update=changes)


def command(kind: str, rows: Path, base: Path, out: Path, settings: PolicyTraining | ValueTraining) -> list[str]:
    chosen = settings.model_dump(exclude_unset=True) | {"device": "cpu"}
    pairs = [f"{kind}_training.{name}={value}" for name, value in chosen.items()]
    sets = [word for pair in [*pairs, f"prompt.instruction={PROMPT.instruction}"] for word in ("--set", pair)]
    return ["train", kind, str(rows), "--base", str(base), "--out", str(out), "--seed", "3", *sets]


def start(launcher: list[str], module: str, words: list[str], **more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT.parent}"} | more
    line = [sys.executable, *launcher, "-m", module, *words]
    return subprocess.Popen(line, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def together(launcher: list[str], words: list[str], module: str = "restmcts") -> subprocess.CompletedProcess[str]:
    process = start(launcher, module, words)
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.terminate()  # and with it what it launched
        raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def alone(kind: str, base: Path, out: Path, settings: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"base": base, "out": out, "prompt": PROMPT, "settings": settings, "seed": 3}
    if kind == "policy":
        return train_policy(test_train_policy.sums(), **options)
    return train_value(test_train_value.traces(), **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    value = "TokenClassification" in (folder / "config.json").read_text(encoding="utf-8")
    return dict((load_token_classifier if value else load_causal)(folder).state_dict())


def check_equal(one: Path, two: Path, base: Path) -> None:
    """The two models are the same to rounding, and the training changed them by much more than that."""
    a, b, before = weights(one), weights(two), weights(base)
    assert a.keys() == b.keys()
    furthest = max((a[name] - b[name]).abs().max().item() for name in a)
    learned = max((a[name] - before[name]).abs().max().item() for name in a.keys() & before.keys())
    assert furthest < 1e-4 < 1e-3 < learned
    first, second = (read_json(folder / TRAINED)["metrics"] for folder in (one, two))
    assert first["loss_first"] == pytest.approx(second["loss_first"], rel=1e-5)
    assert first["loss_last"] == pytest.approx(second["loss_last"], rel=1e-4)
    assert first["tokens"] == second["tokens"]


# ---------------------------------------------------------------- the parts of a step


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_share_the_labels_of_a_step(processes: int) -> None:
    """Equally many passes for each, every label once, and weights whose mean over the processes sums to one."""
    examples = [Example([1, *range(10, 20 + 7 * i)], [IGNORED] * 3 + [5.0 + i] * (8 + 7 * i)) for i in range(4)]
    parts = []
    for own in range(processes):
        trainer = SimpleNamespace(
            args=SimpleNamespace(world_size=processes, process_index=own),
            **{"cores": 1, "limit": 24, "shift": False, "label_dtype": torch.float32, "blocked": False},
            examples=examples,
        )
        parts.append(StepTrainer._passes(cast(StepTrainer, trainer), [[0], [1], [2], [3]]))
    assert len({len(part) for part in parts}) == 1
    weights = [(one["labels"], one["weights"]) for part in parts for one in part]
    assert sum(weight.sum().item() for _, weight in weights) / processes == pytest.approx(1)
    total = sum(8 + 7 * i for i in range(4))
    for i in range(4):
        learned = sum(weight[labels == 5.0 + i].sum().item() for labels, weight in weights) / processes
        assert learned == pytest.approx((8 + 7 * i) / total)


# ---------------------------------------------------------------- the same as one process


@pytest.mark.parametrize(
    ("kind", "launcher", "changes"),
    [
        ("policy", TORCHRUN, {"method": "full", "micro_tokens": 96}),
        ("policy", ACCELERATE, {"gradient_checkpointing": True}),
        ("value", ACCELERATE, {"method": "full", "micro_tokens": 96, "validation": 0.2}),
        ("value", TORCHRUN, {"micro_tokens": 128, "loss": "bce"}),
    ],
)
def test_two_processes_learn_what_one_does(
    tiny_model_dir: Path, tmp_path: Path, rows: dict[str, Path], kind: str, launcher: list[str], changes: dict[str, Any]
) -> None:
    settings = changed(kind, **changes)
    alone(kind, tiny_model_dir, tmp_path / "one", settings)
    words = command(kind, rows[kind], tiny_model_dir, tmp_path / "two", settings)
    said = together(launcher, words)
    assert said.returncode == 0, said.stderr
    check_equal(tmp_path / "one", tmp_path / "two", tiny_model_dir)
    # One process wrote and spoke.
    assert said.stdout.count(f"the {kind} model is in") == 1
    assert said.stderr.count(f"train {kind}  begins") == 1
    files = {path.name for path in (tmp_path / "two").iterdir()}
    assert files == {path.name for path in (tmp_path / "one").iterdir()} | {MANIFEST, "README.md"}
    again = together(launcher, words)
    assert (again.returncode, again.stdout.count("is finished: nothing was run again")) == (0, 1), again.stderr


@pytest.mark.parametrize(
    ("kind", "method", "tied"), [("policy", "full", True), ("policy", "lora", False), ("value", "lora", False)]
)
def test_a_model_divided_by_fsdp_is_gathered(
    tmp_path: Path, rows: dict[str, Path], kind: str, method: str, tied: bool
) -> None:
    base = tiny_model(tmp_path / "base", tie_word_embeddings=tied)
    settings = changed(kind, method=method)
    alone(kind, base, tmp_path / "one", settings)
    words = command(kind, rows[kind], base, tmp_path / "two", settings)
    said = together(TORCHRUN, words, "tests.fsdp_on_cpu")
    assert said.returncode == 0, said.stderr
    check_equal(tmp_path / "one", tmp_path / "two", base)


# ---------------------------------------------------------------- what goes wrong


def process_of_rank(rank: int, launcher: int) -> int:
    """The process of a rank, of those that a launcher started."""
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"RANK={rank}\0".encode() in (folder / "environ").read_bytes():
                return int(folder.name)
        except (OSError, ValueError):
            continue
    raise LookupError(rank)


def wait_for_a_checkpoint(out: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not any(out.glob("checkpoints/checkpoint-*/whole.json")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("module", ["restmcts", "tests.fsdp_on_cpu"])
def test_when_a_process_is_killed_the_same_command_goes_on(
    tiny_model_dir: Path, tmp_path: Path, rows: dict[str, Path], module: str
) -> None:
    settings = changed("value", epochs=30, checkpoint_seconds=0.0)
    metrics = alone("value", tiny_model_dir, tmp_path / "one", settings)
    words = command("value", rows["value"], tiny_model_dir, tmp_path / "two", settings)
    process = start(TORCHRUN, module, words)
    wait_for_a_checkpoint(tmp_path / "two", process)
    os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "unexpected" not in err
    assert not (tmp_path / "two" / MANIFEST).exists()
    said = together(TORCHRUN, words, module)
    assert said.returncode == 0, said.stderr
    assert 0 < read_json(tmp_path / "two" / TRAINED)["metrics"]["resumed_at"] < metrics["steps"]
    check_equal(tmp_path / "one", tmp_path / "two", tiny_model_dir)


def test_steps_that_cannot_be_shared_are_refused_in_one_line(
    tiny_model_dir: Path, tmp_path: Path, rows: dict[str, Path]
) -> None:
    settings = PolicyTraining(batch_tokens=16)
    said = together(TORCHRUN, command("policy", rows["policy"], tiny_model_dir, tmp_path / "two", settings))
    assert said.returncode != 0
    errors = [line for line in said.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: 2 processes cannot share steps of at most 1 questions: raise batch_tokens (now 16) or start fewer "
        "processes"
    ]


def test_a_run_is_not_launched_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match=r"a run is one process, and 2 were launched: .*policy_training\.accelerate"):
        check(RunConfig())


@pytest.mark.parametrize("section", ["policy_training", "warm_start.value_training"])
def test_a_launcher_without_a_configuration_is_told_before_anything_runs(section: str, tmp_path: Path) -> None:
    base = {"policy": "embedded", "problems": "train.jsonl", "out": tmp_path / "run"}
    config = load_config(flags=base, overrides=[f"{section}.accelerate={tmp_path}/none.yaml"])
    with pytest.raises(
        ConfigError, match=rf"^{section}\.accelerate = '.*none\.yaml': no such file; write it with: acc"
    ):
        check(config)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- launched by restmcts


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """What `accelerate config` writes for two processes."""
    path = tmp_path / "accelerate.yaml"
    path.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_machines: 1\nnum_processes: 2\n"
        "main_process_port: 0\nmixed_precision: 'no'\nuse_cpu: false\n"
    )
    return path


@pytest.mark.parametrize("kind", ["policy", "value"])
def test_a_training_of_a_run_is_launched(tiny_model_dir: Path, tmp_path: Path, plan: Path, kind: str) -> None:
    settings = POLICY if kind == "policy" else VALUE
    alone(kind, tiny_model_dir, tmp_path / "one", settings)
    rows = test_train_policy.sums() if kind == "policy" else test_train_value.traces()
    seen: list[tuple[int, int, float, int]] = []
    options: dict[str, Any] = {"base": tiny_model_dir, "out": tmp_path / "two", "seed": 3}
    options["settings"] = settings.model_copy(update={"accelerate": plan})
    tools = ModelTools(RunConfig(prompt=PROMPT))
    metrics = tools.train(kind, rows, **options, on_progress=lambda *step: seen.append(step))
    assert metrics == read_json(tmp_path / "two" / TRAINED)["metrics"]
    assert [step for step, *_ in seen] == list(range(1, metrics["steps"] + 1))
    assert seen[-1][3] == metrics["tokens"]
    check_equal(tmp_path / "one", tmp_path / "two", tiny_model_dir)


def test_an_error_in_launched_processes_is_one_line(tiny_model_dir: Path, tmp_path: Path, plan: Path) -> None:
    options: dict[str, Any] = {"base": tiny_model_dir, "out": tmp_path / "out", "prompt": PROMPT}
    with pytest.raises(TrainError, match=r"^2 processes cannot share steps of at most 1 questions"):
        launch("policy", test_train_policy.sums(), settings=PolicyTraining(batch_tokens=16, accelerate=plan), **options)
    with pytest.raises(TrainError, match=r"^accelerate = '.*none.yaml': no such file; write one with: accelerate"):
        launch("policy", [], settings=PolicyTraining(accelerate=tmp_path / "none.yaml"), **options)
    plan.write_text("distributed_type: [")
    with pytest.raises(TrainError, match=r"^the launched training ended with code 1: .*; mend that and run"):
        launch("policy", test_train_policy.sums(), settings=PolicyTraining(accelerate=plan), **options)


def workers(folder: Path) -> list[int]:
    """The launched processes whose files lie under a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"restmcts.train.worker" in words and any(word.startswith(str(folder).encode()) for word in words):
            found.append(int(process.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
def test_launched_processes_end_with_the_one_that_launched_them(
    tiny_model_dir: Path, tmp_path: Path, rows: dict[str, Path], plan: Path
) -> None:
    settings = changed("value", epochs=1000, checkpoint_seconds=0.0, accelerate=plan)
    words = command("value", rows["value"], tiny_model_dir, tmp_path / "out", settings)
    process = start([], "restmcts", words, TMPDIR=str(tmp_path))
    wait_for_a_checkpoint(tmp_path / "out", process)
    assert len(workers(tmp_path)) == 3  # the launcher, and two that train
    process.kill()
    process.communicate()
    until = time.monotonic() + 60
    while workers(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)
    assert not workers(tmp_path)
