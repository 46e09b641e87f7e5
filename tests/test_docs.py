"""The documentation is true: its commands parse, those that need no model run, its Python example runs on a model."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

import restmcts
from restmcts import cli
from restmcts.search import VARIANTS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STAND_IN = {"runs/mine/round-2/policy": "scripted", "work/policy": "scripted", "NAME": "scripted"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("restmcts ")]


EVERY_COMMAND = [command for page in PAGES for command in commands(page)]


def test_there_are_commands_to_check():
    assert len(EVERY_COMMAND) > 8


PARSED = """
    restmcts.commands.write_generated restmcts.report.combine restmcts.view.server.view restmcts.formats.command.export
    restmcts.formats.command.import_rows restmcts.hub.uploads restmcts.doctor.examine restmcts.completion.script
""".split()
"""what commands without settings do once they are understood"""


class Parsed(Exception):
    """The command line was understood and its settings exist."""


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_commands_parse_and_their_settings_exist(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("policy: embedded\n")
    read_settings = cli.read_settings

    def stop(*args, **flags):
        read_settings(*args, **flags)
        raise Parsed

    def parsed(*_, **__):
        raise Parsed

    monkeypatch.setattr(cli, "read_settings", stop)
    for ends in PARSED:
        monkeypatch.setattr(ends, parsed)
    with pytest.raises(Parsed):
        cli._dispatch(shlex.split(command)[1:])


def on_the_scripted_engine(command: str) -> list[str]:
    """The command with models replaced by the engine that needs none."""
    words = shlex.split(command)[1:]
    if "--value" in words:
        at = words.index("--value")
        del words[at : at + 2]
    return [STAND_IN.get(word, word) for word in words]


ELSEWHERE = {"run", "plan", "report", "train", "view", "serve", "export", "import", "push"}
"""commands that need a run, a server's client or other people's files; their own tests run them"""


def test_commands_that_need_no_training_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("reasoning_gym", reason="the built-in set needs the extra `demo`")
    monkeypatch.chdir(tmp_path)
    for command in commands(ROOT / "README.md"):
        words = on_the_scripted_engine(command)
        if words[0] in ELSEWHERE:
            continue
        code = cli._dispatch([*words, *(["--quiet"] if words[0] not in ("solve", "generate") else [])])
        assert code in (None, 0) or (words[0] == "solve" and code == 1), capsys.readouterr()
    assert (tmp_path / "work" / "search" / "trees.jsonl").stat().st_size > 0
    assert (tmp_path / "work" / "label" / "labels.jsonl").stat().st_size > 0


def test_the_commands_that_compare_run(tmp_path, monkeypatch, capsys):
    """One after the other, on four questions; the last one adds to the first."""
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "comparing.md"
    (tmp_path / "data").mkdir()
    lines = [{"id": f"p{i}", "question": f"What is {i} + 3 + {2 * i}?", "answer": str(3 * i + 3)} for i in range(4)]
    (tmp_path / "data" / "heldout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (settings,) = blocks(page, "yaml")
    (tmp_path / "config.yaml").write_text(settings)
    for command in commands(page):
        assert cli._dispatch([*on_the_scripted_engine(command), "--quiet"]) in (None, 0), capsys.readouterr()
    for out, files in (("work/compare", 4), ("work/ablations", 4)):
        assert len(list((tmp_path / out).glob("arms/*/manifest.json"))) == files
        for name in ("compare.md", "compare.svg", "rows.jsonl", "tests.jsonl", "greedy/rows.jsonl"):
            assert (tmp_path / out / name).stat().st_size > 0
    assert {"mcts_star_no_rollout", "best_of_n_min"} <= VARIANTS.keys()  # the page names them


@pytest.mark.model
def test_the_python_example_runs(tmp_path, tiny_model_dir, tiny_value_dir, monkeypatch):
    """Word for word, on tiny models, in the README's own paths."""
    (tmp_path / "runs" / "mine" / "round-2").mkdir(parents=True)
    os.symlink(tiny_model_dir, tmp_path / "runs" / "mine" / "round-2" / "policy")
    os.symlink(tiny_value_dir, tmp_path / "runs" / "mine" / "round-2" / "value")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(ROOT / "README.md", "python")
    assert len(example.splitlines()) <= 16
    exec(compile(example, "README.md", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_search_method_of_the_guide_works(monkeypatch):
    from restmcts.engines.scripted import scripted_engines
    from restmcts.search import SEARCHES

    (example,) = blocks(ROOT / "docs" / "extending.md", "python")
    monkeypatch.setitem(SEARCHES, "best_first", None)  # so that it is taken out again
    exec(compile(example, "extending.md", "exec"), {})
    tree = restmcts.solve("What is 2 + 3?", scripted_engines(), restmcts.SearchSettings(method="best_first"))
    assert tree.stop in ("done", "iterations")
    assert len(tree) > 1
