"""The wheel works by itself: installed in an empty environment, with the core dependencies and no model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def do(*command: object, cwd: Path | None = None) -> str:
    # Nothing of this environment may leak into the empty one; pip's own settings stay.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment["PIP_CONSTRAINT"] = str(ROOT / "constraints.txt")
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    do(sys.executable, "-m", "build", "--wheel", "--outdir", out, source)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The commands of an environment that holds the wheel and its core dependencies, nothing else."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=True)
    do(folder / "bin" / "python", "-m", "pip", "install", "--quiet", wheel)
    return folder / "bin"


def test_what_is_in_the_wheel(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {f"restmcts/{file.relative_to(ROOT / 'src' / 'restmcts')}" for file in (ROOT / "src").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
    assert {
        "restmcts/py.typed",
        "restmcts/__init__.pyi",
        "restmcts/presets/demo.yaml",
        "restmcts/presets/paper.yaml",
        "restmcts/prompts/english.yaml",
        *(f"restmcts/view/static/{file.name}" for file in (ROOT / "src/restmcts/view/static").iterdir()),
    } <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"restmcts"}


def test_help_and_version(installed, tmp_path):
    assert "self-training" in do(installed / "restmcts", "--help", cwd=tmp_path)
    assert do(installed / "restmcts", "version", cwd=tmp_path).startswith("restmcts 0.")
    assert "self-training" in do(installed / "python", "-m", "restmcts", "--help", cwd=tmp_path)


def test_no_heavy_library_was_installed(installed):
    listed = json.loads(do(installed / "python", "-m", "pip", "list", "--format", "json"))
    assert not {entry["name"] for entry in listed} & {"torch", "transformers", "trl", "datasets", "reasoning-gym"}


def test_search_and_solve_with_the_scripted_engine(installed, tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        '{"question": "What is 2 + 3?", "answer": "5"}\n{"question": "What is 4 * 6?", "answer": "24"}\n'
    )
    restmcts = installed / "restmcts"
    said = do(restmcts, "search", "--policy", "scripted", "--problems", problems, "--out", "found", cwd=tmp_path)
    assert said.startswith("2 trees")
    assert len((tmp_path / "found" / "trees.jsonl").read_text().splitlines()) == 2
    do(restmcts, "label", "found", "--out", "labels", cwd=tmp_path)
    assert "answer: " in do(restmcts, "solve", "What is 2 + 3?", "--policy", "scripted", cwd=tmp_path)
    do(installed / "python", "-c", "import restmcts; from restmcts import Problem, process_rewards", cwd=tmp_path)


def test_a_model_asked_for_without_its_libraries_is_one_line(installed, tmp_path):
    command = [installed / "restmcts", "solve", "What is 2 + 3?", "--policy", "embedded"]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install" in done.stderr
