"""Kills real runs with SIGKILL at random moments, starts them again, and compares them with a run left alone.

`python -m tests.crash --kills 200` prints what was tried and what differed, as one JSON object; it ends with 1 when
anything did. Two kinds of moments: after a random time, and just before a random write. Every attempt is a process of
its own, forked from this one, which has the libraries loaded: so a start costs nothing.

--engine adder   a make-believe model that trains in no time; repeats bit for bit
--engine tiny    a tiny transformer that is really trained, one tree at a time without a cache: repeats bit for bit
--engine crowd   the same with many trees at a time and a cache: the same questions are answered, each once
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from restmcts import loop
from restmcts.config import RunConfig, load_config
from restmcts.engines import Engines
from restmcts.store import read_jsonl, write_jsonl
from restmcts.types import Problem, Proposals, Propose
from tests.adder import Adder, AdderTools, problem

PATIENCE = 600.0
"""seconds after which an attempt that was not to be killed counts as hanging"""


# ---------------------------------------------------------------- the run


def write_problems(path: Path, problems: Sequence[Problem]) -> str:
    names = ("id", "question", "answer", "solution")
    write_jsonl(path, ({name: getattr(p, name) for name in names} for p in problems))
    return str(path)


def make_config(folder: Path, out: Path, engine: str) -> RunConfig:
    """A run in `out` with its questions and, where it needs one, its model in `folder`; both are made if missing."""
    crowd = engine == "crowd"
    small = {"method": "full", "learning_rate": 5e-3, "batch_tokens": 512, "device": "cpu", "precision": "float32"}
    small |= {"checkpoint_seconds": 0.0, "epochs": 1}
    raw: dict[str, Any] = {
        "policy": "adder" if engine == "adder" else str(folder / "model"),
        "out": out,
        "rounds": 1,
        "prompt": {"instruction": "Add."},
        "search": {"iterations": 4, "branch": 2, "step_tokens": 12, "max_depth": 4},
        "evaluate": {"base": ["greedy"]},
        "engine": {"kind": "transformers", "device": "cpu", "dtype": "float32"},
        "policy_training": small,
        "value_training": small,
        "warm_start": {"policy_training": {**small, "epochs": 2}, "corruptions": 1},
    }
    raw["engine"] |= {"concurrency": 6, "cache_mb": 64} if crowd else {"concurrency": 1, "cache_mb": 0}
    for name, start, count in (("problems", 0, 8), ("heldout", 500, 5), ("worked", 1000, 40)):
        path = folder / f"{name}.jsonl"
        raw[name] = (
            str(path) if path.exists() else write_problems(path, [problem(start + i, 2, 3) for i in range(count)])
        )
    return load_config(flags=raw)


class SlowAdder(Adder):
    """Takes its time, so that there is some to be killed in."""

    async def propose(self, request: Propose) -> Proposals:
        await asyncio.sleep(0.004)
        return await super().propose(request)


class SlowTools(AdderTools):
    def load_engines(self, policy: str | Path, value: str | Path | None, examples: Sequence[Problem]) -> Engines:
        engine = SlowAdder(self._skill(policy))
        return Engines(engine, None if value is None else engine)

    def train(self, kind: str, rows: Sequence[Any], *, out: Path, **options: Any) -> Mapping[str, Any]:
        time.sleep(0.02)
        return super().train(kind, rows, out=out, **options)


def run(config: RunConfig) -> None:
    if config.policy == "adder":
        loop.run(config, tools=SlowTools())
        return
    import torch

    torch.set_num_threads(1)
    loop.run(config)


# ---------------------------------------------------------------- attempts


def attempt(work: Callable[[], None], log: Path, *, after: float | None = None, before_write: int | None = None) -> int:
    """Do `work` in a process of its own, killed at the moment that is given; its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            if before_write is not None:
                die_before(before_write)
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + (PATIENCE if after is None else after)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            os.killpg(pid, signal.SIGKILL)  # its own group, which it leads
            _, status = os.waitpid(pid, 0)
            assert after is not None, "a run hangs"
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)


def die_before(number: int) -> None:
    """Have this process killed just before its write of that number: a file opened for it, moved, made or removed."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event in ("os.rename", "os.remove", "os.mkdir", "os.truncate", "os.link")
        if event == "open" and isinstance(arguments[2], int):
            writes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if writes:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def where(out: Path) -> str:
    """What a killed run was at."""
    if not (out / "config.yaml").exists():
        return "start"
    for begun in sorted(out.rglob("begun.json")):
        stage = begun.parent
        kind = stage.name if stage.parent.name != "evaluate" else "evaluate"
        if (stage / "training.json").exists():
            return f"{kind}: trained"
        if list(stage.glob("model*.safetensors")):
            return f"{kind}: saving the model"
        if (stage / "checkpoints").exists():
            return f"{kind}: checkpoints"
        return kind
    return "report" if (out / "round-1/evaluate/search/manifest.json").exists() else "between stages"


# ---------------------------------------------------------------- what came of it

TIMES = {"seconds", "finished", "speed", "memory_mb", "tokens_per_second", "resumed_at"}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if name not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def contents(out: Path) -> dict[str, Any]:
    """All trees, rows, labels, weights and metrics of a run, without times; trees by question."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".jsonl" and ".set-aside" not in name:
            records = without_times(list(read_jsonl(path)))
            found[name] = sorted(records, key=lambda r: str(r["id"])) if path.name == "trees.jsonl" else records
        elif path.name in ("model.safetensors", "skill.json"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return json.loads(json.dumps(found).replace(str(out), "OUT"))


def questions(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of all that, which questions were answered and which stages done."""
    trees = {name: [record["id"] for record in records] for name, records in found.items() if "trees" in name}
    return trees | {"metrics.jsonl": [record["stage"] for record in found["metrics.jsonl"]]}


def differences(out: Path, straight: Path, engine: str) -> list[str]:
    """Names of the files in which a run that was killed differs from the straight one."""
    ours, theirs = contents(out), contents(straight)
    if engine == "crowd":
        ours, theirs = questions(ours), questions(theirs)
    wrong = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    leftover = [
        p.relative_to(out).as_posix() for p in out.rglob("*") if p.name.endswith(".part") or p.name == "run.lock"
    ]
    leftover += [p.relative_to(out).as_posix() for p in out.rglob("begun.json") if ".set-aside" not in p.parts]
    return wrong + leftover


# ---------------------------------------------------------------- the test


def crash(folder: Path, engine: str, kills: int, seed: int) -> dict[str, Any]:
    """Runs killed again and again, until there were so many kills; what was tried and what differed."""
    rng = random.Random(seed)
    if engine != "adder":
        import torch

        from tests.tiny import tiny_model

        if os.fork() == 0:
            torch.set_num_threads(1)
            tiny_model(folder / "model", hidden_size=64)
            os._exit(0)
        os.wait()
    log, straight = folder / "log", folder / "straight"
    began = time.monotonic()
    assert attempt(lambda: run(make_config(folder, straight, engine)), log) == 0, log.read_text()[-3000:]
    long = time.monotonic() - began
    stages: Counter[str] = Counter()
    wrong: list[str] = []
    tried = {"time": 0, "write": 0}
    runs = failed = 0
    while sum(stages.values()) < kills or runs == 0:
        out = folder / f"run-{runs}"
        config = make_config(folder, out, engine)
        for number in range(400):
            kind = rng.choice(("time", "write"))
            moment: dict[str, Any] = {"after": rng.uniform(0, long / 5)}
            if kind == "write":
                moment = {"before_write": min(int(rng.expovariate(1 / 25)) + 1, 400)}
            if number == 399 or sum(stages.values()) >= kills:
                moment = {}
            code = attempt(partial(run, config), log, **moment)
            if code == 0:
                break
            if code == -signal.SIGKILL:
                stages[where(out)] += 1
                tried[kind] += 1
            else:
                failed += 1
                wrong.append(f"run-{runs} failed: {log.read_text(errors='replace')[-1500:]}")
                break
        else:
            wrong.append(f"run-{runs} came to no end")
        wrong += [f"run-{runs}: {name}" for name in differences(out, straight, engine)]
        runs += 1
    return {
        "engine": engine,
        "kills": sum(stages.values()),
        "moments": tried,
        "runs": runs,
        "failed": failed,
        "stages": dict(sorted(stages.items())),
        "straight_seconds": round(long, 1),
        "seconds": round(time.monotonic() - began, 1),
        "differences": wrong,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("adder", "tiny", "crowd"), default="tiny")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder to work in and to leave")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="restmcts-crash-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = crash(folder, arguments.engine, arguments.kills, arguments.seed)
    print(json.dumps(found, indent=1))
    return 1 if found["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
