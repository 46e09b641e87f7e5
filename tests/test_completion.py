"""Completion: every command and option is there, and a real shell completes with it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from restmcts import cli
from restmcts.formats import EXPORTS
from restmcts.shell import guarded


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli._dispatch(["completion", shell]) is None
    return capsys.readouterr().out


def complete(text: str, words: list[str], folder: Path) -> set[str]:
    """What bash offers after these words."""
    line = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _restmcts; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", f"{text}\n{ask}"], capture_output=True, text=True, check=True, cwd=folder)
    assert not done.stderr
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(capsys, tmp_path):
    text = script("bash", capsys)
    (tmp_path / "trees.jsonl").touch()

    def offered(*words: str) -> set[str]:
        return complete(text, ["restmcts", *words], tmp_path)

    assert {"run", "train", "export", "doctor"} <= offered("")
    assert offered("ex") == {"export"}
    assert offered("train", "") == {"policy", "value"}
    assert "--base" in offered("train", "value", "--")
    assert "--base" not in offered("search", "--")
    assert "--dry-run" in offered("run", "--d")
    assert offered("run", "--method", "mcts") == {"mcts-dpo"}
    assert "demo" in offered("run", "--preset", "")
    assert offered("export", "") == set(EXPORTS)
    assert offered("export", "sft", "tr") == {"trees.jsonl"}
    assert offered("label", "tr") == {"trees.jsonl"}
    assert offered("run", "--problems", "tr") == {"trees.jsonl"}


def every_option(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [(*path, name) for p in command.params for name in p.opts if name.startswith("--")]
    for name, inner in getattr(command, "commands", {}).items():
        found += every_option(inner, (*path, name))
    return found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_option_is_there(shell, capsys):
    lines = script(shell, capsys).splitlines()
    options = every_option(typer.main.get_command(cli.app))
    assert len(options) > 80
    for *path, name in options:
        if shell == "fish":
            condition = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in path)
            assert any(condition in line and f" -l {name[2:]}" in line for line in lines), (path, name)
        else:
            whole = " ".join(["restmcts", *path])
            line = next(line for line in lines if line.lstrip().startswith((f"'{whole}') words", f"{whole}) words")))
            assert name in line.split("options=")[1]


@pytest.mark.parametrize("shell", ["zsh", "fish", "bash"])
def test_the_shell_takes_it(shell, capsys, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    path = tmp_path / "script"
    path.write_text(script(shell, capsys))
    assert subprocess.run([shell, "-n", str(path)], capture_output=True, text=True).stderr == ""


def test_another_shell_is_refused(capsys):
    assert guarded(cli._dispatch, ["completion", "tcsh"]) == 2
    assert "give bash, zsh, fish" in capsys.readouterr().err
