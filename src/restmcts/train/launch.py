"""A training handed to `accelerate launch`, so that a run uses several GPUs for it and stays one process itself.

Rows and settings go there as files, steps and metrics come back as lines (`train.worker`). The processes end when this
one does: their standard input is a pipe from here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from restmcts.encoding import PromptSettings
from restmcts.errors import TrainError
from restmcts.rows import PolicyRow, ValueRow, write_rows
from restmcts.trackers import Tracking
from restmcts.train.common import OnProgress
from restmcts.train.settings import PolicyTraining, ValueTraining
from restmcts.train.value import check_trainable

ROWS, TASK, SAID = "rows.jsonl", "task.json", "said.log"
"""what is trained on, how, and what the processes wrote to standard error"""
TO_END = 30.0
"""seconds in which the launcher must have ended its processes"""


def launch(
    kind: str,
    rows: Sequence[PolicyRow] | Sequence[ValueRow],
    *,
    base: str | Path,
    out: Path,
    prompt: PromptSettings,
    settings: PolicyTraining | ValueTraining,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    tracking: Tracking = Tracking(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """As `train_policy` or `train_value`, by `kind`, in the processes that `settings.accelerate` describes.

    Raises TrainError with the line that they ended with.
    """
    if kind == "value":
        check_trainable(base)
    plan = settings.accelerate
    if plan is None or not plan.is_file():
        raise TrainError(f"accelerate = {str(plan)!r}: no such file; write one with: accelerate config --config_file")
    task = {
        "kind": kind,
        "base": str(base),
        "out": str(out),
        "prompt": prompt.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "tracking": asdict(tracking),
    }
    with tempfile.TemporaryDirectory(prefix="restmcts-") as folder:
        write_rows(Path(folder, ROWS), rows)
        Path(folder, TASK).write_text(json.dumps(task, default=str), encoding="utf-8")
        return _started(plan, Path(folder), on_progress)


def _started(plan: Path, folder: Path, on_progress: OnProgress | None) -> dict[str, Any]:
    """Start the processes and hear them to the end. Returns the metrics of the training."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(plan)]
    command += ["-m", "restmcts.train.worker", str(folder)]
    metrics: dict[str, Any] | None = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what search held and does not need is for them
    with (folder / SAID).open("wb") as said:
        pipe: Any = subprocess.PIPE
        # A session of its own: Ctrl-C reaches them through this process alone.
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, start_new_session=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for line in process.stdout:
            message = _message(line)
            metrics = message.get("metrics", metrics)
            if on_progress is not None and "step" in message:
                on_progress(*message["step"])
    finally:
        process.stdin.close()
        try:
            code = process.wait(TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
    if code or metrics is None:
        raise TrainError(_why(folder / SAID, code))
    return metrics


def _message(line: bytes) -> dict[str, Any]:
    """What a line says; nothing where a library wrote it, for they write there too."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _why(said: Path, code: int) -> str:
    """What the processes say went wrong: their own line, else the last ones of whatever it was."""
    with said.open(encoding="utf-8", errors="replace") as lines:
        last: deque[str] = deque(maxlen=3)
        for line in lines:
            if line.startswith("error: "):
                return line.removeprefix("error: ").strip()
            last.append(line.strip())
    return f"the launched training ended with code {code}: {' '.join(last)}; mend that and run the same command again"
