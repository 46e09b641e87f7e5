"""The documentation is true: its commands parse, those that need no model run, its Python example runs on a model."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

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


def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    """Every command, in order, as it stands there; only the page over the trees is not opened."""
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "tutorial.md"
    (questions,) = blocks(page, "json")
    (tmp_path / "questions.jsonl").write_text(questions)
    for command in commands(page):
        words = shlex.split(command)[1:]
        if words[0] == "view":
            assert Path(words[1]).is_dir()
            continue
        assert cli._dispatch([*words, *(["--quiet"] if words[0] != "solve" else [])]) in (None, 0), capsys.readouterr()
    assert len((tmp_path / "first/search/trees.jsonl").read_text().splitlines()) == 6
    for name in (
        "label/policy_rows.jsonl",
        "label-soft/value_rows.jsonl",
        "evaluate/search/manifest.json",
        "compare/compare.md",
    ):
        assert (tmp_path / "first" / name).stat().st_size > 0


@pytest.mark.parametrize("page", ["tutorial", "method", "own-task", "own-reward"])
def test_the_python_of_the_pages_runs(page, monkeypatch):
    from restmcts import TASKS
    from restmcts.labels import RULES

    monkeypatch.setitem(TASKS, "date", None)  # so that they are taken out again
    monkeypatch.setitem(RULES, "discounted", None)
    (example,) = blocks(ROOT / "docs" / f"{page}.md", "python")
    exec(compile(example, f"{page}.md", "exec"), {})


def test_the_notebook_runs(capsys):
    """Its code cells, one after the other; what is stored are no outputs that could be out of date."""
    notebook = json.loads((ROOT / "examples" / "first_search.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    namespace: dict = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
    correct = namespace["labels"].correct
    assert True in correct
    assert False in correct
    assert namespace["tree"].final_answer == "89"
    assert namespace["picture"]._repr_svg_().startswith("<svg")
    assert "12 * 7 = 84" in capsys.readouterr().out


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


# ---------------------------------------------------------------- the site


def between_marks(page: Path) -> str:
    return page.read_text(encoding="utf-8").split("<!-- results:begin -->")[1].split("<!-- results:end -->")[0]


def test_the_first_page_has_the_results_of_the_readme():
    assert between_marks(ROOT / "docs" / "index.md") == between_marks(ROOT / "README.md")


def test_the_picture_is_of_the_stored_tree():
    from restmcts.types import Tree
    from restmcts.view.picture import tree_svg

    images = ROOT / "docs" / "images"
    tree = Tree.from_record(json.loads((images / "tree.jsonl").read_text(encoding="utf-8")))
    (labels,) = restmcts.label([tree])
    assert (images / "tree.svg").read_text(encoding="utf-8") == tree_svg(tree, labels)


def test_every_public_name_is_in_the_reference():
    stub = ast.parse((ROOT / "src/restmcts/__init__.pyi").read_text(encoding="utf-8"))
    names = {
        f"{node.module}.{alias.name}" for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    shown = set(re.findall(r"^::: (\S+)", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert shown == names


class Assets(HTMLParser):
    """What a browser would fetch to show a page: links that a person may follow are none."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = re.findall(r"(?:url\(|@import\s)\s*['\"]?([^'\")\s]+)", text)
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        names = {"script": ["src"], "img": ["src", "srcset"], "link": ["href"], "iframe": ["src"], "object": ["data"]}
        names |= {one: ["src", "href", "xlink:href"] for one in ("source", "video", "audio", "embed", "use", "image")}
        if tag == "link" and given.get("rel") in ("canonical", "prev", "next", "alternate"):
            return
        self.found += [given[name] for name in names.get(tag, []) if given.get(name)]


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing_from_elsewhere(tmp_path):
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip("the site needs the extra `docs`")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    pages = sorted(site.rglob("*.html"))
    assert {page.stem for page in pages} >= {page.stem for page in (ROOT / "docs").glob("*.md")}
    for file in [*pages, *site.rglob("*.css"), *site.rglob("*.svg")]:
        for target in Assets(file.read_text(encoding="utf-8")).found:
            assert urlsplit(target).netloc == "", (file.name, target)
    text = (site / "reference.html").read_text(encoding="utf-8")
    for name in restmcts.__all__:
        assert name in text
    assert "process rewards" in text
