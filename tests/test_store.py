"""The run folder and the files in it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restmcts import files
from restmcts.errors import ConfigError, StoreError
from restmcts.store import (
    JsonlWriter,
    RunFolder,
    fingerprint,
    read_json,
    read_jsonl,
    write_atomic,
    write_json,
    write_jsonl,
)

SETTINGS = {"search": {"iterations": 16, "alpha": 0.5}, "seed": 0}


def finish(run: RunFolder, name: str, *, settings=SETTINGS, inputs=None, files=(("out.jsonl", "{}\n"),), metrics=None):
    with run.stage(name, settings=settings, inputs=inputs) as stage:
        for file, text in files:
            (stage.path / file).write_text(text)
        return stage.finish(metrics)


def python(code: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)], stdout=subprocess.PIPE, text=True
    )


# ---------------------------------------------------------------- records


def test_records_come_back_as_written(tmp_path):
    records = [{"id": "a", "text": "x² + é\u2028\n", "n": None}, {"id": "b", "list": [1, 2.5, True]}]
    with JsonlWriter(tmp_path / "deep" / "trees.jsonl") as writer:
        for record in records:
            writer.write(record)
    assert list(read_jsonl(tmp_path / "deep" / "trees.jsonl")) == records


def test_a_record_is_readable_as_soon_as_it_is_written(tmp_path):
    writer = JsonlWriter(tmp_path / "x.jsonl", sync_seconds=1e9)
    writer.write({"a": 1})
    assert list(read_jsonl(tmp_path / "x.jsonl")) == [{"a": 1}]
    writer.close()
    writer.close()
    with pytest.raises(StoreError, match="already closed"):
        writer.write({"a": 2})


def test_lone_surrogates_survive(tmp_path):
    with JsonlWriter(tmp_path / "x.jsonl") as writer:
        writer.write({"text": "broken \ud83d token"})
    (tmp_path / "x.jsonl").read_bytes().decode("utf-8")
    assert list(read_jsonl(tmp_path / "x.jsonl")) == [{"text": "broken \ud83d token"}]


def test_nan_is_refused_and_leaves_the_file_whole(tmp_path):
    with JsonlWriter(tmp_path / "x.jsonl") as writer:
        writer.write({"v": 1.0})
        with pytest.raises(ValueError, match="JSON compliant"):
            writer.write({"v": float("nan")})
    assert list(read_jsonl(tmp_path / "x.jsonl")) == [{"v": 1.0}]


@given(keep=st.integers(min_value=0, max_value=3), cut=st.integers(min_value=0, max_value=40))
def test_a_torn_last_line_is_owed_again_and_nothing_else(tmp_path_factory, keep, cut):
    path = tmp_path_factory.mktemp("torn") / "x.jsonl"
    lines = [json.dumps({"id": i, "text": "é" * 5}, ensure_ascii=False).encode() + b"\n" for i in range(keep + 1)]
    whole = b"".join(lines[:-1])
    torn = lines[-1][:cut]
    path.write_bytes(whole + torn)
    with JsonlWriter(path) as writer:
        writer.write({"id": "next"})
    ids = [record["id"] for record in read_jsonl(path)]
    survived = len(torn) >= len(lines[-1]) - 1  # only the newline was missing, or nothing
    assert ids == [*range(keep + survived), "next"]
    aside = path.with_name("x.jsonl.torn")
    assert aside.exists() == (not survived and torn != b"")


def test_repair_of_a_long_line_and_of_zeros_left_by_a_power_cut(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b'{"a": "' + b"y" * 300_000)
    JsonlWriter(path).close()
    assert list(read_jsonl(path)) == [{"a": 1}]
    path.write_bytes(b'{"a": 1}\n' + bytes(500) + b"\n")
    JsonlWriter(path).close()
    assert list(read_jsonl(path)) == [{"a": 1}]


def test_reading_names_file_and_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n{"a": 2}\n')
    with pytest.raises(StoreError, match=r"x\.jsonl, line 3: not JSON"):
        list(read_jsonl(path))
    path.write_text('{"a": 1}\n[1]\n')
    with pytest.raises(StoreError, match=r"line 2: JSON, but list"):
        list(read_jsonl(path))
    path.write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(StoreError, match="line 1: not JSON"):
        list(read_jsonl(path))
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(StoreError, match="line 1"):
        list(read_jsonl(path))
    with pytest.raises(StoreError, match="no such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))
    with pytest.raises(StoreError, match="it is a folder"):
        list(read_jsonl(tmp_path))


def test_only_a_torn_last_line_can_be_skipped(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    assert list(read_jsonl(path, skip_torn=True)) == [{"a": 1}]
    with pytest.raises(StoreError, match="line 2"):
        list(read_jsonl(path))
    path.write_text('{"a": \n{"a": 1}\n')
    with pytest.raises(StoreError, match="line 1"):
        list(read_jsonl(path, skip_torn=True))


def full_disk(descriptor, data, after=[3]):  # noqa: B006  the count is the point
    if after[0] > 0:
        after[0] = 0
        return real_write(descriptor, bytes(data)[:3])
    raise OSError(errno.ENOSPC, "No space left on device")


real_write = os.write


def test_a_full_disk_is_one_line_and_takes_the_partial_record_back(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    writer = JsonlWriter(path)
    writer.write({"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", full_disk)
        with pytest.raises(StoreError, match=r"disk full: .*x\.jsonl.*run the same command again") as caught:
            writer.write({"a": 2})
    assert "\n" not in str(caught.value)
    assert path.read_text() == '{"a":1}\n'
    writer.write({"a": 3})
    writer.close()
    assert list(read_jsonl(path)) == [{"a": 1}, {"a": 3}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_really_full_disk(tmp_path):
    (tmp_path / "x.jsonl").symlink_to("/dev/full")
    with pytest.raises(StoreError), JsonlWriter(tmp_path / "x.jsonl") as writer:
        writer.write({"a": 1})


# ---------------------------------------------------------------- whole files


def test_write_atomic_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_text() == "two"
    assert [file.name for file in path.parent.iterdir()] == ["b.txt"]
    with pytest.raises(StoreError, match="it is a folder"):
        write_atomic(tmp_path / "a", "x")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "b.txt"
    write_atomic(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StoreError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["b.txt"]


def test_json_files(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, None], "p": Path("q")})
    assert read_json(tmp_path / "x.json") == {"a": [1, None], "p": "q"}
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(StoreError, match="is not JSON"):
        read_json(tmp_path / "x.json")
    write_jsonl(tmp_path / "y.jsonl", [{"a": 1}, {"a": 2}])
    assert len(list(read_jsonl(tmp_path / "y.jsonl"))) == 2


# ---------------------------------------------------------------- stages


def test_a_stage_is_finished_when_its_manifest_exists(tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text("{}\n")
    with RunFolder(tmp_path / "run") as run:
        assert run.finished("round-1/search") is None
        with run.stage("round-1/search", settings=SETTINGS, inputs={"problems": problems}) as stage:
            assert not stage.done
            assert not stage.resumed
            (stage.path / "trees.jsonl").write_text("{}\n")
            assert run.finished("round-1/search") is None
            manifest = stage.finish({"solved": 3})
        assert stage.done
        assert run.finished("round-1/search") == manifest
        with run.stage("round-1/search", settings=SETTINGS, inputs={"problems": problems}) as again:
            assert again.done
            assert again.manifest is not None
            assert again.manifest.metrics == {"solved": 3}
    assert manifest.settings == SETTINGS
    assert manifest.versions["python"]
    assert manifest.inputs["problems"]["sha256"] == fingerprint(problems)
    assert sorted(file.name for file in stage.path.iterdir()) == ["manifest.json", "trees.jsonl"]


def test_an_interrupted_stage_is_resumed_and_its_time_counts(tmp_path):
    with RunFolder(tmp_path) as run:
        with pytest.raises(KeyboardInterrupt), run.stage("data", settings=SETTINGS) as stage:
            (stage.path / "train.jsonl").write_text("{}\n")
            time.sleep(0.05)
            raise KeyboardInterrupt
        with run.stage("data", settings=SETTINGS) as stage:
            assert stage.resumed
            assert stage.seconds >= 0.05
            assert stage.finish().seconds >= 0.05


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "half done"])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"search": {"iterations": 40, "alpha": 0.5}, "seed": 0}, r"search\.iterations = 16 \(now 40\)"),
        ({"search": {"iterations": 16}, "seed": 0}, r"search\.alpha = 0\.5 \(now nothing\)"),
        ({"search": {"iterations": 16, "alpha": 0.5, "x": "y"}, "seed": 0}, r'search\.x = nothing \(now "y"\)'),
        ({}, r"search\.iterations = 16 \(now nothing\), search\.alpha .*, seed = 0"),
    ],
)
def test_changed_settings_are_refused_with_stage_setting_and_remedy(tmp_path, finished, settings, said):
    with RunFolder(tmp_path) as run:
        if finished:
            finish(run, "round-1/search")
        else:
            with run.stage("round-1/search", settings=SETTINGS) as stage:
                (stage.path / "trees.jsonl").write_text("{}\n")
        with pytest.raises(ConfigError, match=said) as caught:
            run.stage("round-1/search", settings=settings)
    assert "stage round-1/search was made with" in str(caught.value)
    assert str(caught.value).endswith("use another --out, or --redo round-1/search")
    assert "\n" not in str(caught.value)


def test_settings_of_an_attempt_that_left_nothing_may_change(tmp_path):
    with RunFolder(tmp_path) as run:
        with run.stage(".", settings={"policy": "a typo"}) as stage:
            (stage.path / "trees.jsonl").touch()
        with run.stage(".", settings={"policy": "mended"}) as stage:
            assert not stage.resumed
            assert stage.finish().settings == {"policy": "mended"}


def test_settings_compare_as_stored(tmp_path):
    with RunFolder(tmp_path) as run:
        finish(run, "a", settings={"methods": ("greedy", "search"), "path": Path("x"), "rate": 1e-4, "none": {}})
        assert run.stage("a", settings={"methods": ["greedy", "search"], "path": "x", "rate": 0.0001, "none": {}}).done


def test_changed_inputs_are_refused_but_cleared_ones_are_not(tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text("{}\n")
    with RunFolder(tmp_path / "run") as run:
        finish(run, "data", inputs={"problems": problems})
        problems.write_text("{}\n{}\n")
        with pytest.raises(ConfigError, match=r"data was made from another problems: .* changed since.*--redo data"):
            run.stage("data", settings=SETTINGS, inputs={"problems": problems})
        problems.unlink()
        assert run.stage("data", settings=SETTINGS, inputs={"problems": problems}).done
        with pytest.raises(StoreError, match="no such file"):
            run.stage("more", settings=SETTINGS, inputs={"problems": problems})


def test_a_moved_run_is_still_finished(tmp_path):
    with RunFolder(tmp_path / "one") as run:
        finish(run, "a")
        finish(run, "b", inputs={"a": run.path / "a", "rows": run.path / "a" / "out.jsonl"})
    (tmp_path / "one").rename(tmp_path / "two")
    with RunFolder(tmp_path / "two") as run:
        stage = run.stage("b", settings=SETTINGS, inputs={"a": run.path / "a", "rows": run.path / "a" / "out.jsonl"})
        assert stage.done


def test_redo_sets_aside_the_stage_and_what_was_made_from_it(tmp_path):
    with RunFolder(tmp_path) as run:
        finish(run, "data")
        finish(run, "round-1/search", inputs={"data": tmp_path / "data" / "out.jsonl"})
        finish(run, "round-1/policy", inputs={"trees": tmp_path / "round-1" / "search" / "out.jsonl"})
        finish(run, "base/evaluate", inputs={"data": tmp_path / "data" / "out.jsonl"})
        with run.stage("round-2/search", settings=SETTINGS, inputs={"policy": tmp_path / "round-1" / "policy"}) as half:
            (half.path / "trees.jsonl").write_text("{}\n")
        assert run.redo("round-1/search") == ["round-1/policy", "round-1/search", "round-2/search"]
        assert run.stages() == ["base/evaluate", "data"]
        aside = list((tmp_path / ".set-aside").glob("*/round-1/search/out.jsonl"))
        assert len(aside) == 1
        finish(run, "round-1/search", settings={"other": 1}, inputs={"data": tmp_path / "data" / "out.jsonl"})
        assert run.redo("round-1") == ["round-1/search"]


def test_redo_of_no_stage_names_the_nearest(tmp_path):
    with RunFolder(tmp_path) as run:
        with pytest.raises(ConfigError, match="there are: none yet"):
            run.redo("round-1/search")
        finish(run, "round-1/search")
        with pytest.raises(ConfigError, match=r"no stage 'round-1/serch'.*did you mean 'round-1/search'\?"):
            run.redo("round-1/serch")


def test_a_damaged_manifest_is_named(tmp_path):
    with RunFolder(tmp_path) as run:
        finish(run, "data")
        manifest = tmp_path / "data" / "manifest.json"
        manifest.write_text("{")
        with pytest.raises(StoreError, match="manifest.json is not JSON"):
            run.finished("data")
        manifest.write_text('{"schema": 99}')
        with pytest.raises(StoreError, match="not a manifest of schema 1"):
            run.finished("data")
        manifest.write_text('{"schema": 1}')
        with pytest.raises(StoreError, match="lacks stage, settings"):
            run.finished("data")


def test_fingerprints_of_folders_see_names_sizes_and_content(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.bin").write_bytes(bytes(5_000_000))
    seen = {fingerprint(folder)}
    (folder / "a.bin").write_bytes(bytes(4_999_999) + b"x")
    seen.add(fingerprint(folder))
    (folder / "a.bin").rename(folder / "b.bin")
    seen.add(fingerprint(folder))
    (folder / "c.json").write_text("{}")
    seen.add(fingerprint(folder))
    assert len(seen) == 4


# ---------------------------------------------------------------- one process at a time


def test_a_folder_in_use_is_refused_by_the_process_that_holds_it(tmp_path):
    with RunFolder(tmp_path), pytest.raises(StoreError, match=rf"in use by process {os.getpid()}"):
        RunFolder(tmp_path)
    RunFolder(tmp_path).close()
    assert not (tmp_path / "run.lock").exists()


HOLD = """
    import sys, time
    from restmcts.store import RunFolder
    run = RunFolder(sys.argv[1])
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_outlives_no_killed_process(tmp_path):
    holder = python(HOLD, tmp_path)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"in use by process {holder.pid}"):
            RunFolder(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (tmp_path / "run.lock").exists()
        RunFolder(tmp_path).close()
    finally:
        holder.kill()
        holder.communicate()


def test_a_lock_is_released_when_the_process_ends(tmp_path):
    code = "import sys; from restmcts.store import RunFolder; run = RunFolder(sys.argv[1])"
    python(code, tmp_path).communicate()
    assert not (tmp_path / "run.lock").exists()


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        ("", False),
        ("[]", False),
        ({"pid": 2**22 + 1}, False),
        ({"pid": os.getpid(), "process_started": "long ago"}, False),
        ({"pid": os.getpid(), "process_started": None}, True),
        ({"pid": 1, "host": "another.host"}, True),
    ],
    ids=["empty", "junk", "gone", "number given to another", "alive", "another machine"],
)
def test_stale_locks(tmp_path, content, refused):
    import socket

    if isinstance(content, dict):
        content = json.dumps({"host": socket.gethostname(), **content})
    (tmp_path / "run.lock").write_text(content)
    if refused:
        with pytest.raises(StoreError, match="in use by process"):
            RunFolder(tmp_path)
        assert (tmp_path / "run.lock").read_text() == content
    else:
        RunFolder(tmp_path).close()


def test_of_many_processes_one_gets_the_folder(tmp_path):
    (tmp_path / "run.lock").write_text("")  # a stale lock, so that all of them try to take it over
    code = """
        import sys, time
        from restmcts.errors import StoreError
        from restmcts.store import RunFolder
        try:
            run = RunFolder(sys.argv[1])
        except StoreError:
            print("refused")
        else:
            print("held", flush=True)
            time.sleep(2)
    """
    processes = [python(code, tmp_path) for _ in range(4)]
    said = [process.communicate()[0] for process in processes]
    assert sorted(said) == ["held\n", *["refused\n"] * 3]


def test_places_that_cannot_be_a_run_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a file is where a folder is needed"):
        RunFolder(tmp_path / "file")
    with pytest.raises(StoreError, match="a file is where a folder is needed"):
        RunFolder(tmp_path / "file" / "below")
    with pytest.raises(StoreError):
        RunFolder("/proc/restmcts")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="no permission"):
        RunFolder(tmp_path / "run")


def test_a_folder_can_be_one_stage_alone(tmp_path):
    with RunFolder(tmp_path / "search") as run:
        finish(run, ".")
        assert run.stage(".", settings=SETTINGS).done
        with pytest.raises(ConfigError, match=r"search was made with seed = 0 \(now 1\).*move that folder away"):
            run.stage(".", settings={**SETTINGS, "seed": 1})
    assert sorted(file.name for file in (tmp_path / "search").iterdir()) == ["manifest.json", "out.jsonl"]
