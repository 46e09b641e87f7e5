"""The key of a server is sent to the server, and is in nothing that a command writes or shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from tests.fake_server import FakeServer, Fault

ROOT = Path(__file__).parents[1]
KEY = "sk-S3cretS3cretS3cret"


def restmcts(folder: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own, whose files, temporary ones too, all lie in `folder`."""
    (folder / "tmp").mkdir(exist_ok=True)
    ours = {"RESTMCTS_API_KEY": KEY, "TMPDIR": str(folder / "tmp"), "HOME": str(folder), "OPENAI_LOG": "debug"}
    ours |= {"PYTHONPATH": str(ROOT / "src"), "NO_PROXY": "*"}
    return subprocess.run(
        [sys.executable, "-m", "restmcts", *map(str, words)],
        cwd=folder,
        env={**os.environ, **ours, **environment},
        capture_output=True,
    )


def test_the_key_is_in_nothing_that_is_written(tmp_path: Path) -> None:
    """With a server that repeats it in its errors, with a bug on the way, and with everything logged."""

    def indiscreet(number: int, path: str, body: dict[str, Any]) -> Any:
        if number % 5 == 0:
            return Fault(500, json.dumps({"error": {"message": f"Bearer {KEY} is slow", "code": KEY}}))
        if number % 7 == 0:
            return {"choices": [{"index": 0, "finish_reason": KEY, "message": {"content": ""}}]}
        return None

    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(f'{{"question": "What is {i} + 3 - 2?", "answer": "{i + 1}"}}\n' for i in range(3)))
    with FakeServer(indiscreet) as fake:
        words = ("--policy", "solver", "--value", "judge:solver", "--set", "engine.kind=openai")
        words += ("--set", f"engine.server.base_url={fake.url}", "--set", "engine.server.retries=4")
        words += ("--set", "search.iterations=2")
        said = [
            restmcts(tmp_path, "search", "--problems", problems, "--out", "s", *words),
            restmcts(tmp_path, "evaluate", "--problems", problems, "--out", "e", *words, "--debug"),
            restmcts(tmp_path, "solve", "What is 1 + 1?", "--json", *words),
        ]
        fake.hook = lambda number, path, body: Fault(401, json.dumps({"error": f"no such key: {KEY}"}))
        said.append(restmcts(tmp_path, "solve", "What is 1 + 1?", *words))
        assert any(KEY in headers.get("authorization", "") for _, _, headers in fake.requests), "it was used"
    said.append(restmcts(tmp_path, "search", "--problems", problems, "--out", "x", *words))  # nobody there
    said.append(restmcts(tmp_path, "solve", "1?", *words, "--set", f"engine.server.base_url=http://a:{KEY}@x/v1"))
    assert [done.returncode for done in said] == [0, 0, 0, 2, 2, 2], said
    assert (tmp_path / "s" / "trees.jsonl").stat().st_size > 0
    for done in said:
        assert KEY.encode() not in done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
