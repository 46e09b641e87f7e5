"""Inputs from strangers: question files, answers, settings, trees, rows, run folders. None may break anything.

`python -m tests.fuzz 100000 [seed]` throws so many at every reader and says how many were taken and how many refused,
how long it took and how much memory; `python -m tests.fuzz --atheris READER` lets coverage guide what is tried (it
needs the package atheris). A reader takes its input or refuses it with a RestmctsError of one line. All else is a bug:
another exception, more than a few seconds, more than a few hundred MB.
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

from restmcts import datasets
from restmcts.config import dump_yaml, load_config
from restmcts.errors import RestmctsError
from restmcts.evaluate import Row, read_stored, score_trees
from restmcts.lock import Lock
from restmcts.manifest import Manifest
from restmcts.models import read_prompt
from restmcts.report import report
from restmcts.rows import PolicyRow, TreeLabels, ValueRow
from restmcts.seeds import derive_seed
from restmcts.tasks import TASKS, get_task
from restmcts.tasks.load import load_problems, write_problems
from restmcts.types import Problem, Step, Tree
from tests.junk import GOLDS, NASTY, junk

SECONDS = 10.0
"""of the processor's time, in which every input must be dealt with"""
MEMORY = Path("/dev/shm")
PLACE = (MEMORY if MEMORY.is_dir() else Path(tempfile.gettempdir())) / f"restmcts-fuzz-{os.getpid()}"

Reader = Callable[[bytes], object]


# ---------------------------------------------------------------- readers


class TextGrader:
    """Compares as text: the symbolic engine has its own tests."""

    def grade_many(self, pairs: list[tuple[Problem, str]]) -> list[bool]:
        return [problem.answer == answer for problem, answer in pairs]


def _file(name: str, data: bytes) -> Path:
    PLACE.mkdir(exist_ok=True)
    path = PLACE / name
    path.write_bytes(data)
    return path


def problems(suffix: str) -> Reader:
    def read(data: bytes) -> object:
        found = load_problems(_file(f"set{suffix}", data), need_answer=False)
        write_problems(PLACE / "again.jsonl", found)
        assert [p.question for p in load_problems(PLACE / "again.jsonl", need_answer=False)] == [
            p.question for p in found
        ]
        return found

    return read


def answers(data: bytes) -> object:
    """Find the answer in a text and compare it, as far as text and numbers go, by every rule."""
    text = data.decode("utf-8", "surrogateescape")
    for name in TASKS:
        task = get_task(name)
        found = task.find_answer(text)
        assert found is None or isinstance(found, str)
        for answer in (text, *([found] if found else [])):
            task.key(answer)
            for gold in GOLDS.get(name, ["42"])[:2]:
                assert task.compare(gold, answer) in (True, False, None)
    return None


def settings(data: bytes) -> object:
    path = _file("config.yaml", data)
    config = load_config(path)
    path.write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(path) == config
    return config


def override(data: bytes) -> object:
    return load_config(overrides=[data.decode("utf-8", "replace")])


def trees(data: bytes) -> object:
    """Read, score, label, make rows, write and read again."""
    path = _file("trees.jsonl", data)
    found = list(read_stored(path, [Problem("p", "What is 3 + 4?", "7"), Problem("q", "1?", "1")], mend=True))
    known = [tree for tree in found if tree.problem.answer is not None]
    grader = TextGrader()
    correct = datasets.verify(known, grader)
    labels = datasets.label_trees(known, correct)
    rows = [*datasets.policy_rows(known, labels), *datasets.value_rows(known, labels)]
    datasets.write_rows(PLACE / "rows.jsonl", rows)
    score_trees(known, grader)  # type: ignore[arg-type]
    for tree in found:
        assert Tree.from_record(json.loads(json.dumps(tree.to_record()))) == tree
    return found


def rows(kind: Any) -> Reader:
    def read(data: bytes) -> object:
        found = datasets.read_rows(_file("rows.jsonl", data), kind)
        for row in found:
            if not isinstance(row, TreeLabels):
                row.path(row.tokenizer)
        return found

    return read


def manifest(data: bytes) -> object:
    return Manifest.read(_file("manifest.json", data))


def lock(data: bytes) -> object:
    _file("run.lock", data)
    try:
        Lock(PLACE / "run.lock").release()
    finally:
        (PLACE / "run.lock").unlink(missing_ok=True)
    return None


def stored_prompt(data: bytes) -> object:
    _file("restmcts.json", data)
    return read_prompt(PLACE)


def run_folder(data: bytes) -> object:
    """The report of a run whose metrics, rows and questions are what they are."""
    run = PLACE / "run"
    parts = (data.split(b"\n\x1e\n") + [b""] * 4)[:4]
    for name, part in zip(("metrics.jsonl", "e/rows.jsonl", "data/heldout.jsonl", "config.yaml"), parts, strict=True):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(part)
    return report(run)


# ---------------------------------------------------------------- inputs that are right, to be spoilt


def _lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _tree() -> dict[str, Any]:
    tree = Tree(Problem("p", "What is 3 + 4?", "7"), "mcts_star", 3)
    step = tree.add(0, Step("3 + 4 = 7", (5, 6)), logprob=-0.5)
    tree.result = tree.add(step, Step("Answer: 7"), status="finished", answer="7")
    tree.add(0, Step("I am lost"), status="dead", reason="length")
    tree.raw_value = [None, 0.5, 0.9, 0.1]
    tree.final_answer, tree.stop = "7", "iterations"
    return tree.to_record()


def _metrics() -> bytes:
    usage = {
        "policy_tokens": 10,
        "prompt_tokens": 9,
        "cached_tokens": 0,
        "value_tokens": 1,
        "requests": 2,
        "seconds": 1.0,
    }
    metrics = {"method": "cot", "n": 2, "correct": 1, "accuracy": 0.5, "interval": [0.1, 0.9], "quality": None}
    record = {"stage": "e", "kind": "evaluate", "phase": 0, "mode": "greedy", "seconds": 2.0, "memory_mb": 5}
    record |= {"usage": usage, "speed": None, "finished": "2026-01-01T00:00:00Z", "metrics": metrics}
    found = {**record, "stage": "round-1/search", "kind": "search", "phase": 1, "mode": None}
    found["metrics"] = {"questions": 2, "nodes": 9, "owed": 0, "stops": {"done": 2}}
    data = {**record, "stage": "data", "kind": "data", "mode": None, "metrics": {"policy": "m", "train": 2, "seed": 0}}
    row = Row("p", "cot", "7", "7", True, 1, 2, 0, 0, 0.5, 3, 1, "done")
    rows = [{name: getattr(row, name) for name in Row.__slots__}, {**dict.fromkeys(Row.__slots__, 1), "id": "q"}]
    questions = [{"id": "p", "question": "3 + 4?", "extra": {"level": 3}}, {"id": "q", "question": "1?"}]
    return b"\n\x1e\n".join([_lines(data, record, found), _lines(*rows[:1]), _lines(*questions), b"seed: 1\n"])


_ROW = {"problem_id": "p", "question": "?", "steps": ["a", "b"], "step_ids": [[1, 2], None], "tokenizer": "t"}
_QUESTIONS = [
    {"id": "a", "question": "What is 3 + 4?", "answer": "7", "solution": "3 + 4 = 7\nAnswer: 7", "level": 3},
    {"problem": "x?", "solution": "So it is $\\boxed{\\frac{1}{2}}$.", "task": "math"},
    {"question": "y?", "answer": "steps <<1+1=2>>\n#### 42", "extra": {"a": [1, None]}},
    {"question": ["a", "b"], "answer": 0.5, "task": "countdown", "numbers": [1, 2], "target": 3},
]
_YAML = """preset: demo
policy: embedded
rounds: 2
search: {method: mcts_star, iterations: 5, branch: 2, budget_tokens: null}
prompt: {name: chinese, delimiter: "\\n", question: "Q: {question}"}
fields: {question: prompt}
evaluate: &e {methods: [greedy], limit: 3}
policy_training: {learning_rate: 1e-4, epochs: 1}
stage_budget: {seconds: 1.5}
"""
_MANIFEST = {"stage": "a", "settings": {"x": 1}, "inputs": {"p": {"path": "p", "sha256": "0"}}, "metrics": {}}
_MANIFEST |= {"seconds": 1.0, "versions": {"python": "3"}, "finished": "now", "files": {"a": "1 b"}, "schema": 1}

READERS: dict[str, tuple[Reader, list[bytes]]] = {
    "jsonl": (problems(".jsonl"), [_lines(*_QUESTIONS), _lines(_QUESTIONS[0])]),
    "json": (problems(".json"), [json.dumps(_QUESTIONS).encode(), json.dumps({"data": _QUESTIONS}).encode()]),
    "csv": (problems(".csv"), [b'question,answer,level\n"a, ""b""\nc?",2,\nd?,4,3\n']),
    "tsv": (problems(".tsv"), [b"question\tanswer\na?\t2\nd?\t4\n"]),
    "answers": (answers, [b"3 + 4 = 7\nAnswer: 7", rb"So \boxed{\frac{1}{2}} m/s", "答案是 7。".encode(), b"(A) 7"]),
    "settings": (settings, [_YAML.encode()]),
    "override": (override, [b"search.iterations=40", b"prompt.examples=[{question: a, solution: b}]", b"out=runs/x"]),
    "trees": (trees, [_lines(_tree(), {**_tree(), "id": "q"})]),
    "policy rows": (rows(PolicyRow), [_lines({**_ROW, "value": 0.5, "round": 1})]),
    "value rows": (rows(ValueRow), [_lines({**_ROW, "labels": [0.5, None], "r": [0.0, None]})]),
    "labels": (rows(TreeLabels), [_lines({"id": "p", **{name: [None] for name in ("correct", "m", "r", "w", "v")}})]),
    "manifest": (manifest, [json.dumps(_MANIFEST).encode()]),
    "lock": (lock, [_lines({"pid": 4194305, "host": socket.gethostname(), "process_started": "1", "since": "now"})]),
    "prompt": (stored_prompt, [b'{"prompt": {"instruction": "Add.", "chat": true, "name": null}}']),
    "run": (run_folder, [_metrics()]),
}


# ---------------------------------------------------------------- spoiling

_PIECES = [
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        "\u202e\u2066\u2028\u200f".encode(),
        b"\r",
        b"\n\n",
        b"\t",
    ),
    *(b"NaN", b"-Infinity", b"1e999", b"-1e-999", b"9" * 5000, b"0x1F", b"1_000", b"true", b"null", b"-0", b"1:99:99"),
    *(
        b"[" * 2000,
        b'{"a":' * 2000,
        b'"\\ud800"',
        b'"\\u0000"',
        b"{}",
        b"[]",
        b'""',
        b"../../../etc/passwd",
        b"/dev/zero",
    ),
    *(
        b"!!python/object/apply:os.system [true]",
        b"&a [*a, *a]",
        b"*e",
        b"<<: *e",
        b"? [a, b] : c",
        b"2001-99-99",
        b"---\n",
    ),
    *(
        b"%YAML 9.9\n",
        b"!!binary x",
        b"!!set {a}",
        b"{question}",
        b"{0.__class__}",
        b"$(true)",
        b"<|im_end|>",
        b"${x}",
        b"~",
    ),
    *(
        b"x" * 5000,
        b"- " * 900,
        b": " * 50,
        b"{" * 900,
        b'"' * 3,
        b"'" * 3,
        b"\\" * 7,
        b"#" * 9,
        b"," * 99,
        b"=" * 5,
        b".",
    ),
]
_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    10**30,
    2**63,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 3000,
    "\ud800",
]
_VALUES += ["\0", "../x", [], {}, [[]], {"a": {}}, [None] * 50, "\u202e42", "p", "7", 7, 0.5, [1, 2], {"question": "x"}]


def _spoil_value(value: Any, rng: random.Random) -> Any:
    """One place in a JSON value gets another value, or is lost, or comes twice."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.2:
            return {**value, rng.choice(["", "x", "\ud800", "id", "answer", "schema", "name", "task"]): value[key]}
        return {**value, key: _spoil_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        kind = rng.random()
        if kind < 0.2:
            return value[:at] + value[at + 1 :]
        if kind < 0.4:
            return value[:at] + value[at : at + 1] * 2 + value[at + 1 :]
        return [*value[:at], _spoil_value(value[at], rng), *value[at + 1 :]]
    return rng.choice(_VALUES)


def _spoil_json(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    try:
        lines[at] = json.dumps(_spoil_value(json.loads(lines[at]), rng)).encode()
    except (ValueError, RecursionError):
        lines[at] = rng.choice(_PIECES)
    return b"\n".join(lines)


def _spoil_bytes(data: bytes, rng: random.Random) -> bytes:
    at, length = rng.randint(0, len(data)), rng.choice((0, 0, 1, 2, 8, 40))
    put = rng.choice(
        (rng.choice(_PIECES), bytes([rng.randrange(256)]), data[at : at + length] * rng.choice((2, 3, 200)), b"")
    )
    return data[:at] + put + data[at + length :]


def spoilt(seeds: list[bytes], rng: random.Random) -> bytes:
    """One of the seeds, with one to four things wrong."""
    data = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = _spoil_json(data, rng) if rng.random() < 0.5 else _spoil_bytes(data, rng)
    return data


# ---------------------------------------------------------------- trying


class Hangs(BaseException):
    """An input took too long."""


def attempt(reader: Reader, data: bytes) -> str:
    """`taken` or `refused`. Raises whatever is a bug."""
    try:
        reader(data)
    except RestmctsError as error:
        said = str(error)
    else:
        return "taken"
    assert len(said.splitlines()) < 2, "more than a line"
    assert len(said) < 3000, "too long a line"
    return "refused"


def fuzz(count: int, seed: int = 0, names: tuple[str, ...] = tuple(READERS)) -> dict[str, Any]:
    """Give `count` inputs to each of the readers; how many were taken and refused. Raises for the first bug."""
    log = logging.getLogger("restmcts")
    level = log.level
    log.setLevel(logging.CRITICAL)

    def too_long(*_: object) -> None:
        raise Hangs

    before = signal.signal(signal.SIGPROF, too_long)
    found: Counter[str] = Counter()
    slowest = (0.0, "")
    began = time.monotonic()
    try:
        for name in names:
            reader, seeds = READERS[name]
            rng = random.Random(derive_seed(seed, name))
            texts = junk(count, seed) if name == "answers" else None
            for number in range(count):
                data = next(texts).encode("utf-8", "surrogatepass") if texts is not None and number % 2 else None
                data = spoilt(seeds, rng) if data is None else data
                start = time.process_time()
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                try:
                    found[attempt(reader, data)] += 1
                except BaseException as error:
                    signal.setitimer(signal.ITIMER_PROF, 0)
                    kept = Path(tempfile.gettempdir(), f"restmcts-fuzz-{name.replace(' ', '-')}")
                    kept.write_bytes(data)
                    error.add_note(f"reader {name!r}, input number {number} of seed {seed}: {kept}")
                    raise
                signal.setitimer(signal.ITIMER_PROF, 0)
                slowest = max(slowest, (time.process_time() - start, name))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        log.setLevel(level)
        shutil.rmtree(PLACE, ignore_errors=True)
    return {
        "inputs": sum(found.values()),
        **found,
        "seconds": round(time.monotonic() - began, 1),
        "slowest": slowest,
        "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def guided(name: str, arguments: list[str]) -> None:
    """atheris on one reader; its own arguments follow (`-runs=100000`)."""
    import atheris

    reader, seeds = READERS[name]
    logging.getLogger("restmcts").setLevel(logging.CRITICAL)
    corpus = Path(tempfile.gettempdir(), f"restmcts-corpus-{name.replace(' ', '-')}")
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    for function in _own_functions():  # instrument_all takes minutes over the libraries
        atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], str(corpus), *arguments], lambda data: print(end="", sep=attempt(reader, data)))
    atheris.Fuzz()


def _own_functions() -> Iterator[FunctionType]:
    """Every function and method of restmcts that is loaded."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "restmcts":
            places = [module, *(thing for thing in vars(module).values() if isinstance(thing, type))]
            things = [thing for place in places for thing in vars(place).values()]
            yield from (t for t in things if isinstance(t, FunctionType) and t.__module__ == name)


assert NASTY  # of the answers


if __name__ == "__main__":
    if sys.argv[1] == "--atheris":
        guided(sys.argv[2], sys.argv[3:])
    else:
        seed_ = int(sys.argv[2]) if len(sys.argv) > 2 else 0
        print(json.dumps(fuzz(int(sys.argv[1]), seed_, tuple(sys.argv[3:]) or tuple(READERS))))
