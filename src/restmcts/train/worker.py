"""One process of a training that `train.launch` started: `python -m restmcts.train.worker FOLDER` under a launcher.

The first process writes a line of JSON for every step, `{"step": [step, total, loss, tokens]}`, and `{"metrics": …}` at
the end. All end when standard input does, whatever has become of who started them.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from restmcts import ranks
from restmcts.encoding import PromptSettings
from restmcts.rows import PolicyRow, ValueRow, read_rows
from restmcts.shell import guarded
from restmcts.trackers import Tracking
from restmcts.train.launch import ROWS, TASK
from restmcts.train.settings import PolicyTraining, ValueTraining


def main(arguments: list[str]) -> None:
    """Train as the files in the folder say."""
    folder = Path(arguments[0])
    task = json.loads((folder / TASK).read_text(encoding="utf-8"))
    tracked = task["tracking"]
    options: dict[str, Any] = {
        "base": task["base"],
        "out": Path(task["out"]),
        "prompt": PromptSettings(**task["prompt"]),
        "seed": task["seed"],
        "tracking": Tracking(tuple(tracked["to"]), tracked["name"], tracked["folder"] and Path(tracked["folder"])),
        "on_progress": lambda *step: _tell({"step": step}),
    }
    with ranks.together(task["settings"]["device"]):
        metrics = _train(task["kind"], folder / ROWS, task["settings"], options)
    if ranks.is_first():
        _tell({"metrics": metrics})


def _train(kind: str, rows: Path, settings: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    if kind == "policy":
        from restmcts.train.policy import train_policy

        return train_policy(read_rows(rows, PolicyRow), settings=PolicyTraining(**settings), **options)
    from restmcts.train.value import train_value

    return train_value(read_rows(rows, ValueRow), settings=ValueTraining(**settings), **options)


def _tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _end_with_the_input() -> None:
    while os.read(0, 1):  # not by sys.stdin, whose lock a thread must not hold when the interpreter ends
        pass
    os._exit(1)  # also in the middle of a step: nobody waits for the result


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    sys.exit(guarded(main, sys.argv[1:]))
