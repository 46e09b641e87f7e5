"""How the command line ends: exit codes, and one line for each kind of trouble."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from restmcts.errors import ConfigError
from restmcts.shell import guarded, how_to_resume


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def raising(error: BaseException):
    def command(arguments: list[str]) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("x = 3: it must\n be 4"), 2, "error: x = 3: it must be 4"),
        (OSError(errno.ENOSPC, "No space left", "a/b"), 2, "error: disk full at a/b; free some space and run the same"),
        (OSError(errno.EDQUOT, "Quota"), 2, "error: disk full; free some space"),
        (PermissionError(errno.EACCES, "denied", "a/b"), 2, "error: no permission at a/b; choose a place"),
        (MemoryError(), 2, "error: out of memory; lower engine.max_rows"),
        (OutOfMemoryError("CUDA"), 2, "error: out of memory"),
        (
            RuntimeError("[enforce fail] CPUAllocator: can't allocate memory: you tried"),
            2,
            "error: out of memory",
        ),
        (
            ModuleNotFoundError("No", name="torch.nn"),
            2,
            "error: torch.nn is not installed; run: pip install 'restmcts[hf]'",
        ),
        (KeyboardInterrupt(), 130, "interrupted; finished work is kept, go on with: restmcts run --out 'a b'"),
    ],
)
def test_each_kind_of_trouble_is_one_line(error, code, said, capsys):
    assert guarded(raising(error), ["run", "--out", "a b"]) == code
    shown = capsys.readouterr()
    assert shown.err.startswith(said)
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_a_bug_is_one_line_and_its_details_are_in_a_file(capsys):
    assert guarded(raising(ValueError("odd\nthing")), ["run"]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: unexpected ValueError: odd thing; this is a bug in restmcts, details are in ")
    log = Path(line.rsplit(" ", 1)[1].strip())
    assert "Traceback" in log.read_text()
    log.unlink()


@pytest.mark.parametrize("arguments", [["--debug", "run"], ["run", "--debug"]])
def test_debug_shows_the_traceback_and_is_kept_from_the_command(arguments, capsys):
    seen = []

    def command(arguments: list[str]) -> None:
        seen.append(arguments)
        raise ValueError("odd")

    assert guarded(command, arguments) == 1
    assert seen == [["run"]]
    assert "Traceback" in capsys.readouterr().err


def test_done_and_the_commands_own_code():
    assert guarded(lambda arguments: None, []) == 0
    assert guarded(lambda arguments: 1, []) == 1


def test_resuming_does_not_redo():
    assert how_to_resume(["run", "--redo", "round-1/search", "c.yaml"]).endswith("go on with: restmcts run c.yaml")
    assert how_to_resume(["run", "--redo=round-1", "c.yaml"]).endswith("go on with: restmcts run c.yaml")
    assert how_to_resume(["solve", "What?"]) == "nothing was changed"


def test_a_closed_pipe_is_quiet():
    code = "import sys; from restmcts.shell import guarded\n"
    code += "def talk(_):\n    for i in range(100000): print(i)\n"
    code += "sys.exit(guarded(talk, []))"
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    os.close(reader)
    _, err = process.communicate()
    assert err == ""
    assert process.returncode == 141
