"""What a disk can do to a run, and what a kill can: nothing is lost that was paid for, and what is damaged is named.

The large kill test: `python -m tests.crash --kills 200`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from restmcts import loop
from restmcts.errors import ConfigError, Damaged, RestmctsError, StoreError
from restmcts.shell import one_line
from restmcts.store import RunFolder, read_jsonl
from tests.adder import AdderTools
from tests.crash import contents, differences, make_config
from tests.test_store import python

ROOT = Path(__file__).parents[1]


def run(folder: Path, out: Path, tools: AdderTools | None = None) -> None:
    loop.run(make_config(folder, out, "adder"), tools=tools or AdderTools())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The questions of all runs here."""
    return tmp_path_factory.mktemp("crash")


@pytest.fixture(scope="module")
def straight(folder: Path) -> Path:
    """A run that nothing happens to."""
    run(folder, folder / "straight")
    return folder / "straight"


@pytest.fixture
def out(tmp_path: Path, straight: Path) -> Path:
    """A copy of that run, to be damaged."""
    shutil.copytree(straight, tmp_path / "run")
    return tmp_path / "run"


# ---------------------------------------------------------------- kills


def killed(engine: str, kills: int) -> dict[str, Any]:
    """What `tests.crash` reports."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash", "--engine", engine, "--kills", str(kills)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("{"), done.stderr[-3000:]
    return dict(json.loads(done.stdout))


@pytest.mark.timeout(900)
def test_a_run_that_is_killed_again_and_again_ends_as_a_straight_one() -> None:
    found = killed("adder", 25)
    assert found["kills"] >= 25
    assert len(found["stages"]) >= 4
    assert not found["differences"]


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["tiny", "crowd"])
def test_a_true_run_that_is_killed_again_and_again(engine: str) -> None:
    """Trained models bit for bit where the engine repeats; with many trees at once, each question once."""
    pytest.importorskip("transformers")
    found = killed(engine, 12)
    assert found["kills"] >= 12
    assert not found["differences"]


# ---------------------------------------------------------------- every write


class Faults:
    """Lets every write below `folder` fail, from the `first` one on. It counts them in any case."""

    def __init__(self) -> None:
        self.folder = ""
        self.number = 0
        self.first: int | None = None
        self.error = 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder:
            return
        if (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ) or event in ("os.rename", "os.mkdir", "os.link", "os.truncate"):
            self.write(arguments[0])

    def write(self, path: object) -> None:
        if isinstance(path, int) or str(path).startswith(self.folder):
            self.number += 1
            if self.first is not None and self.number >= self.first:
                raise OSError(self.error, os.strerror(self.error), str(path))


_faults: list[Faults] = []


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    if not _faults:  # a hook stays for good
        _faults.append(Faults())
    (one,) = _faults
    write, sync = os.write, os.fsync

    def faulty_write(descriptor: int, data: Any) -> int:
        if one.folder and descriptor > 2:
            try:
                one.write(descriptor)
            except OSError:
                if len(data) > 1:
                    write(descriptor, data[: len(data) // 2])  # a torn line
                raise
        return write(descriptor, data)

    def faulty_sync(descriptor: int) -> None:
        if one.folder:
            one.write(descriptor)
        sync(descriptor)

    monkeypatch.setattr(os, "write", faulty_write)
    monkeypatch.setattr(os, "fsync", faulty_sync)
    yield one
    one.folder, one.first = "", None


ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ESTALE)


def fail_at(first: int, error: int, faults: Faults, folder: Path, out: Path) -> None:
    """A run whose writes fail from that one on, ends with one line; without the fault it goes on to the same end."""
    faults.folder, faults.number, faults.first, faults.error = str(out), 0, first, error
    with pytest.raises((RestmctsError, OSError)) as caught:
        run(folder, out)
    faults.folder = ""
    said = one_line(caught.value)
    assert said is not None, repr(caught.value)
    assert "\n" not in said
    run(folder, out)


def count_writes(faults: Faults, folder: Path, out: Path) -> int:
    faults.folder, faults.number, faults.first = str(out), 0, None
    run(folder, out)
    faults.folder = ""
    return faults.number


def test_writes_that_fail_are_one_line_and_cost_nothing(
    faults: Faults, folder: Path, straight: Path, tmp_path: Path
) -> None:
    total = count_writes(faults, folder, tmp_path / "count")
    assert total > 200
    for index, first in enumerate(range(1, total, total // 5)):
        out = tmp_path / f"run-{first}"
        fail_at(first, ERRORS[index % len(ERRORS)], faults, folder, out)
        assert not differences(out, straight, "adder"), first


@pytest.mark.slow
def test_every_write_that_fails(faults: Faults, folder: Path, straight: Path, tmp_path: Path) -> None:
    """`RESTMCTS_EVERY=1` tries every one."""
    total = count_writes(faults, folder, tmp_path / "count")
    for first in range(1, total, int(os.environ.get("RESTMCTS_EVERY", total // 20))):
        out = tmp_path / f"run-{first}"
        fail_at(first, ERRORS[first % len(ERRORS)], faults, folder, out)
        assert not differences(out, straight, "adder"), first
        shutil.rmtree(out)


# ---------------------------------------------------------------- a real disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; only root may have one."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


def test_a_disk_that_is_full_and_one_that_cannot_be_written(folder: Path, straight: Path, disk: Path) -> None:
    for kilobytes in (64, 100, 140):
        remount(disk, f"size={kilobytes}k")
        with pytest.raises(RestmctsError, match="disk full: cannot write .*; free some space and run"):
            run(folder, disk / "run")
    remount(disk, "ro")
    with pytest.raises(StoreError, match="no permission; choose a place you may write to"):
        run(folder, disk / "run")
    with pytest.raises(StoreError, match="no permission"):
        RunFolder(disk / "other")
    remount(disk, "rw,size=10m")
    run(folder, disk / "run")
    assert not differences(disk / "run", straight, "adder")


@pytest.mark.model
def test_a_training_on_a_full_disk_says_so(disk: Path, tiny_model_dir: Path) -> None:
    pytest.importorskip("transformers")
    from restmcts.errors import TrainError
    from tests.test_train_policy import QUICK
    from tests.test_train_policy import run as train

    settings = QUICK.model_copy(update={"checkpoint_seconds": 0.0, "method": "full"})
    for kilobytes in (64, 400, 700):
        remount(disk, f"size={kilobytes}k")
        with pytest.raises((TrainError, StoreError), match=r"free some space and run") as caught:
            train(tiny_model_dir, disk / "out", settings)
        assert "\n" not in str(caught.value)
    remount(disk, "size=20m")
    assert train(tiny_model_dir, disk / "out", settings)["steps"] > 0


# ---------------------------------------------------------------- damage


def aside(out: Path) -> list[str]:
    """What was set aside."""
    return sorted(path.relative_to(path.parents[0]).as_posix() for path in (out / ".set-aside").rglob("*.*"))


def test_a_damaged_line_is_set_aside_and_its_question_searched_again(
    out: Path, folder: Path, straight: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = out / "round-1" / "search"
    shutil.rmtree(out / "round-1" / "label")
    os.replace(stage / "manifest.json", stage / "kept")
    lines = (stage / "trees.jsonl").read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:40] + b"\x00\xff" + lines[2][60:]
    lines[4] = json.dumps({**json.loads(lines[4]), "parent": ["x"]}).encode() + b"\n"
    (stage / "trees.jsonl").write_bytes(b"".join(lines)[:-9])
    manifest = json.loads((stage / "kept").read_text())
    begun = {name: manifest[name] for name in ("stage", "settings", "inputs", "seconds")}
    (stage / "begun.json").write_text(json.dumps({**begun, "attempts": 1}))
    (stage / "kept").unlink()
    for later in ("policy", "value", "evaluate"):
        shutil.rmtree(out / "round-1" / later)
    run(folder, out)
    assert not differences(out, straight, "adder")
    assert (stage / "trees.jsonl.torn").read_bytes().count(b"\n") == 3
    assert "3 lines, the first of them line 3: not JSON" in caplog.text


@pytest.mark.parametrize(
    ("lost", "unfinished"),
    [
        ("data/train.jsonl", []),
        ("data/heldout.jsonl", ["round-1/evaluate/search"]),
        ("round-1/search/trees.jsonl", ["round-1/label", "round-1/policy", "round-1/value", "round-1/evaluate"]),
        ("round-1/label/value_rows.jsonl", ["round-1/value", "round-1/evaluate"]),
        ("round-0/policy/skill.json", ["round-1"]),
        ("round-1/evaluate/search/rows.jsonl", []),
        ("base/evaluate/greedy/rows.jsonl", []),
    ],
)
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_what_a_finished_stage_lost_is_made_again(
    out: Path,
    folder: Path,
    straight: Path,
    lost: str,
    unfinished: list[str],
    how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is named, what is left is copied, and the run ends as it would have."""
    file = out / lost
    if how == "gone" or not lost.endswith(".jsonl"):
        file.unlink()
    else:
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    for stage in unfinished:
        shutil.rmtree(out / stage)
    run(folder, out)
    assert f"{lost} {'has changed' if file.suffix == '.jsonl' and how == 'cut' else 'is gone'}" in caplog.text
    assert not differences(out, straight, "adder")
    assert "manifest.json" in aside(out)


def test_what_nobody_needs_any_more_may_be_cleared_away(out: Path, folder: Path) -> None:
    for path in out.glob("round-*/policy/skill.json"):
        path.unlink()
    (out / "round-1/search/trees.jsonl").unlink()
    tools = AdderTools()
    run(folder, out, tools)
    assert tools.calls == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"[" * 100_000, b"\xff", b'{"schema": 1}', b'{"schema": 1, "x": 2']
)
@pytest.mark.parametrize("mark", ["manifest.json", "begun.json"])
def test_a_stage_whose_mark_is_damaged_is_set_aside_and_done_again(
    out: Path, folder: Path, straight: Path, content: bytes, mark: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage = out / "round-1" / "evaluate" / "search"
    trees = (stage / "trees.jsonl").read_bytes()
    (stage / "manifest.json").unlink()
    (stage / mark).write_bytes(content)
    run(folder, out)
    assert not differences(out, straight, "adder")
    assert f"evaluate/search/{mark}" in caplog.text
    assert "set aside" in caplog.text
    (kept,) = (out / ".set-aside").rglob("trees.jsonl")
    assert kept.read_bytes() == trees


def test_a_stage_of_another_version_is_left_alone(out: Path, folder: Path) -> None:
    manifest = out / "round-1" / "label" / "manifest.json"
    manifest.write_text('{"schema": 2}')
    with pytest.raises(StoreError, match="not a manifest of schema 1; use the restmcts that wrote it"):
        run(folder, out)
    assert manifest.read_text() == '{"schema": 2}'


def test_other_rows_than_those_that_were_trained_on_are_told_apart(out: Path, folder: Path) -> None:
    """What was made again differs: what was made from it is not taken for its result."""
    rows = out / "round-1" / "label" / "value_rows.jsonl"
    rows.write_bytes(rows.read_bytes() + rows.read_bytes())
    shutil.rmtree(out / "round-1" / "evaluate")
    with pytest.raises(ConfigError, match="stage round-1/value was made from another rows.*--redo round-1/value"):
        run(folder, out)


def test_a_file_that_is_lost_again_and_again_ends_the_run(out: Path, folder: Path) -> None:
    class Losing(AdderTools):
        def train(self, kind: str, rows: Any, *, out: Path, **options: Any) -> Any:
            metrics = super().train(kind, rows, out=out, **options)
            (out / "rows.jsonl").write_text("{}\n")
            return metrics

    shutil.rmtree(out / "round-1")
    shutil.rmtree(out / "round-0" / "value")
    shutil.rmtree(out / "round-0" / "evaluate")
    real, count = RunFolder.check_whole, 0

    def check_whole(self: RunFolder, inputs: Any) -> None:
        nonlocal count
        for path in out.glob("round-0/value/rows.jsonl"):
            if (path.parent / "manifest.json").exists():
                path.unlink()
                count += 1
        real(self, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "check_whole", check_whole)
        with pytest.raises(Damaged, match=r"round-0/value/rows\.jsonl is gone"):
            run(folder, out, Losing())
    assert count == 2


def test_a_finished_run_without_metrics_writes_them_again(out: Path, folder: Path, straight: Path) -> None:
    """A process may have died between the last manifest and the metrics."""
    (out / "metrics.jsonl").unlink()
    (out / "report.md").unlink()
    run(folder, out)
    assert not differences(out, straight, "adder")
    assert (out / "report.md").exists()


def test_a_clock_that_is_set_back_changes_nothing(
    folder: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    out, real = tmp_path / "run", time.time
    while True:
        try:
            run(folder, out, AdderTools(interrupt_after=40))
        except KeyboardInterrupt:
            shift = 3600.0 * len(list(out.rglob("manifest.json")))
            monkeypatch.setattr(time, "time", lambda shift=shift: real() - shift)
            monkeypatch.setattr(time, "gmtime", lambda *_: time.struct_time((1970, 1, 1, 0, 0, 0, 3, 1, 0)))
            for path in out.rglob("*"):
                os.utime(path, (2e9, 2e9))
        else:
            break
    assert not differences(out, straight, "adder")
    assert all(record["seconds"] >= 0 for record in read_jsonl(out / "metrics.jsonl"))


# ---------------------------------------------------------------- checkpoints


@pytest.mark.model
@pytest.mark.usefixtures("one_thread")
def test_checkpoints_that_are_damaged_or_from_a_clock_gone_wrong(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch = pytest.importorskip("torch")
    from tests.test_train_policy import QUICK, Killed, weights
    from tests.test_train_policy import run as train

    settings = QUICK.model_copy(update={"checkpoint_seconds": 0.0, "epochs": 4})
    steps = train(tiny_model_dir, tmp_path / "straight", settings)["steps"]
    seen: list[int] = []
    out = tmp_path / "out"

    def kill_after(last: int) -> None:
        def kill(step: int, *_: Any) -> None:
            seen.append(step)
            if step == last:
                raise Killed

        with pytest.raises(Killed):
            train(tiny_model_dir, out, settings, on_progress=kill)

    kill_after(4)
    checkpoints = out / "checkpoints"
    assert sorted(path.name for path in checkpoints.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    for path in checkpoints.iterdir():
        os.utime(path, (4e9, 4e9))  # the clock was an hour ahead, or a century
    kill_after(6)
    assert seen[-3:] == [4, 5, 6]
    assert sorted(path.name for path in checkpoints.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    weights_file = next((checkpoints / "checkpoint-5").glob("*.safetensors"))
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"\x7f")
    resumed = train(tiny_model_dir, out, settings)
    assert resumed["resumed_at"] == 4
    assert resumed["steps"] == steps
    assert "a checkpoint is set aside" in caplog.text
    ours, theirs = weights(out), weights(tmp_path / "straight")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
    assert not checkpoints.exists()
    assert train(tiny_model_dir, out, settings) == resumed, "what is trained is not trained again"
    next(out.glob("*.safetensors")).unlink()
    assert train(tiny_model_dir, out, settings)["resumed_at"] == 0


# ---------------------------------------------------------------- one process at a time


def test_of_many_processes_one_gets_the_folder_without_any_locks_of_the_system(tmp_path: Path) -> None:
    """As on network file systems that know no locks; with a stale lock that all of them want to take over."""
    (tmp_path / "run.lock").write_text(json.dumps({"pid": 2**22 + 1, "host": os.uname().nodename}))
    code = """
        import errno, fcntl, sys, time
        def flock(*_):
            raise OSError(errno.EBADF, "no locks here")
        fcntl.flock = flock
        from restmcts.errors import StoreError
        from restmcts.store import RunFolder
        time.sleep(max(0, float(sys.argv[2]) - time.time()))
        try:
            run = RunFolder(sys.argv[1])
        except StoreError:
            print("refused")
        else:
            print("held", flush=True)
            time.sleep(3)
    """
    import time

    processes = [python(code, tmp_path, time.time() + 3) for _ in range(5)]
    said = [process.communicate()[0] for process in processes]
    assert sorted(said) == ["held\n", *["refused\n"] * 4]
    assert not list(tmp_path.glob(".run.lock*"))


def test_a_lock_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", link)
    with RunFolder(tmp_path), pytest.raises(StoreError, match="in use"):
        RunFolder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_contents_see_what_matters(straight: Path) -> None:
    """The comparison of this file can fail."""
    found = contents(straight)
    assert {"metrics.jsonl", "round-1/search/trees.jsonl", "round-1/policy/skill.json"} <= found.keys()
    assert len(found["round-1/search/trees.jsonl"]) == 8


@pytest.fixture(autouse=True)
def _warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
