"""Who imports whom: one way only, and nothing heavy where it is not needed (see docs/structure.md)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import restmcts

SOURCE = Path(restmcts.__file__).parent

# A module may import modules of its own layer and of those above it in this list.
LAYERS = [
    ["records", "types", "errors", "settings", "seeds", "eventloop"],
    [
        "files",
        "hosts",
        "lock",
        "ranks",
        "manifest",
        "store",
        "encoding",
        "metrics",
        "tables",
        "console",
        "shell",
        "trackers",
    ],
    ["tasks", "search", "rewards", "engines", "models"],
    ["rows", "pairs", "pseudo", "worked", "account", "drive", "livegrader", "labels", "datasets", "train"],
    [
        "sections",
        "config",
        "cluster",
        "evaluate",
        "completing",
        "results",
        "method_tables",
        "findings",
        "report",
        "view",
        "cards",
        "hub",
    ],
    ["job", "data", "curriculum", "judging", "stages", "pairing", "training", "methods", "loop", "lens", "formats"],
    [
        "api",
        "commands",
        "train_command",
        "compare",
        "plan",
        "serve",
        "preview",
        "doctor",
        "completion",
        "options",
        "cli_data",
        "cli",
        "__main__",
        "__init__",
    ],
]
FORBIDDEN = {
    "search": {"engines", "models", "store", "files"},
    "rewards": {"search", "tasks", "engines", "models"},
    "tasks": {"search", "engines", "models", "rewards"},
    "engines": {"search", "tasks", "rewards"},
    "train": {"drive"},
}
HEAVY = (
    "torch transformers trl peft accelerate datasets vllm ray "
    "reasoning_gym math_verify sympy pandas pyarrow gguf openai httpx2 huggingface_hub starlette uvicorn tensorboard"
)


def part(module: str) -> str:
    """The file or folder of the package that a dotted module lies in."""
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(file: Path) -> set[str]:
    """The restmcts modules that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively; write the full name"
            base = str(node.module)
            # `from restmcts import models` is an import of restmcts.models
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == "restmcts" else {base}
    return {name for name in found if name.split(".")[0] == "restmcts"} - {"restmcts.__version__"}


def parts() -> dict[str, set[str]]:
    """Every part of the package with the parts it imports."""
    graph: dict[str, set[str]] = {}
    for file in SOURCE.rglob("*.py"):
        name = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        graph.setdefault(name, set()).update(part(module) for module in imports_of(file))
    return {name: needs - {name} for name, needs in graph.items()}


def test_imports_go_one_way():
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    graph = parts()
    homeless = graph.keys() - layer.keys()
    assert not homeless, f"say in LAYERS, and in docs/structure.md, where {homeless} belong"
    del graph["__init__"]  # its public names are loaded on first use
    wrong = [f"{name} → {need}" for name in graph for need in graph[name] if layer[need] > layer[name]]
    wrong += [f"{name} → {need}" for name, never in FORBIDDEN.items() for need in graph.get(name, set()) & never]
    assert not wrong


def test_the_package_loads_at_once_and_loads_nothing_heavy():
    code = "import time; t = time.perf_counter(); import restmcts; t = time.perf_counter() - t; import sys; "
    code += f"print(t, sorted(sys.modules.keys() & set('{HEAVY} numpy pydantic typer'.split())))"
    best = float("inf")
    for _ in range(3):
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        seconds, _, heavy = said.strip().partition(" ")
        assert heavy == "[]"
        best = min(best, float(seconds))
    assert best < 0.3


@pytest.mark.parametrize(
    "modules",
    [
        ["types", "errors", "settings", "seeds", "files", "lock", "store", "encoding", "metrics", "tables", "shell"],
        ["tasks", "tasks.load", "tasks.grade", "search", "rewards", "engines", "engines.settings", "engines.scripted"],
        ["drive", "datasets", "train", "train.settings"],
        [
            "config",
            "evaluate",
            "results",
            "report",
            "cluster",
            "cluster.fleet",
            "cluster.nodes",
            "job",
            "data",
            "stages",
            "loop",
            "lens",
            "lens.measure",
            "lens.show",
            "api",
            "commands",
            "train_command",
            "cli",
        ],
        ["config"],
        ["sections", "pairs", "pseudo", "curriculum", "judging", "pairing", "training", "methods", "plan"],
        ["cards", "hub", "formats", "formats.command", "preview", "doctor", "completion", "cli_data"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_where_it_is_not_needed(modules):
    code = f"""
import importlib, json, sys
loaded = {{}}
for name in {modules}:
    importlib.import_module("restmcts." + name)
    loaded[name] = sorted(sys.modules.keys() & set("{HEAVY}".split()))
print(json.dumps(loaded))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: [] for name in modules}


def test_help_is_there_at_once():
    code = "import sys, time; t = time.perf_counter(); from restmcts.cli import _dispatch; _dispatch(['--help']); "
    code += "print(time.perf_counter() - t, file=sys.stderr)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert "self-training" in runs[0].stdout
    assert min(float(run.stderr) for run in runs) < 0.5


def test_type_checkers_see_the_same_public_names():
    stub = ast.parse((SOURCE / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: node.module for node in imports for alias in node.names}
    assert seen == {name: f"restmcts.{module}" for name, module in restmcts._MODULE_OF.items()}


@pytest.mark.model
def test_every_public_name_is_there():
    for name in restmcts.__all__:
        assert getattr(restmcts, name) is not None
    assert set(restmcts.__all__) <= set(dir(restmcts))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = restmcts.nonsense
