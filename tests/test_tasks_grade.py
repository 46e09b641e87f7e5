"""The grader and its symbolic engine: right, in order, within its limits, and gone when it is closed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

import restmcts.tasks.grade as grade_module
from restmcts.errors import TaskError
from restmcts.tasks import AnswerTask, get_task
from restmcts.tasks.answers import find_answer, key, text_key
from restmcts.tasks.grade import Grader
from restmcts.types import Problem


def ask(gold: str | None, task: str = "math") -> Problem:
    return Problem("p", "?", answer=gold, task=task)


def rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def grader():
    with Grader(seconds=20) as made:
        yield made


def test_plain_answers_need_no_engine(monkeypatch):
    monkeypatch.setattr(grade_module, "Worker", None)
    pairs = [(ask(str(i % 7)), str(i % 5)) for i in range(20_000)]
    pairs += [(ask("Paris", "exact"), "paris"), (ask("1/2", "numeric"), "0.5"), (ask("12", "numeric"), "7 + 5")]
    began = time.perf_counter()
    with Grader() as quick:
        verdicts = quick.grade_many(pairs)
    assert time.perf_counter() - began < 2
    assert verdicts[:-3] == [i % 7 == i % 5 for i in range(20_000)]
    assert verdicts[-3:] == [True, True, False]


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("(x+1)^2", "x^2 + 2x + 1", True),
        ("x + y", "y + x", True),
        ("x - y", "y - x", False),
        ("-\\frac{x}{2}", "-0.5x", True),
        ("\\sqrt{8}", "2\\sqrt{2}", True),
        ("\\{1, 2\\}", "\\{2, 1\\}", True),
        ("(1, 2)", "(2, 1)", False),
        ("[0, 1)", "[0, 1]", False),
        ("1 - \\frac{1}{\\mathrm{e}}", "1 + \\frac{1}{\\mathrm{e}}", False),
        ("\\pi", "3.14", False),
        ("\\pi", "3.14159265", True),
        ("\\sqrt{10}", "3.1623", False),
        ("12", "7 + 5", True),
        ("\\frac{1}{10^8}", "\\frac{3}{10^8}", False),
        ("5", "x = 5", True),
        ("1000,99", "1000.99", True),
        ("\\text{east}", "west", False),
    ],
)
def test_mathematics(grader, gold, answer, equal):
    assert grader.grade(ask(gold), answer) is equal


def test_verdicts_come_in_order(grader):
    known = [("2\\sqrt{2}", True), ("3", False), ("\\sqrt{8}", True), ("", False), ("\\sqrt{4}\\sqrt{2}", True)] * 3
    verdicts = grader.grade_many([(ask("\\sqrt{8}"), answer) for answer, _ in known])
    assert verdicts == [verdict for _, verdict in known]


JUNK = [
    *[
        "\\frac{1}{0}",
        "((((((((((",
        "}}}}{{{{",
        "1e999999999",
        "\\boxed{",
        "\x00",
        "\ud800",
        "💥",
        "=",
        "\\",
        "$",
        "$$",
    ],
    *["\\int_0^1", "x" * 1999, "\\frac" * 300, "factorial(10**9)", "lambda: 0", "exit()", "True", "None", "nan", "oo"],
    "__import__('os').kill(__import__('os').getppid(), 9)",
]


def test_junk_is_wrong_and_breaks_nothing(grader):
    before = grader.crashes
    assert grader.grade_many([(ask("x^2 + 3"), junk) for junk in JUNK]) == [False] * len(JUNK)
    assert grader.grade_many([(ask(junk), "x^2 + 3") for junk in JUNK]) == [False] * len(JUNK)
    assert grader.grade(ask("\\sqrt{8}"), "2\\sqrt{2}")
    assert grader.crashes == before


def test_random_text_is_wrong(grader):
    rng = random.Random(0)
    symbols = [*"0123456789+-*/^=(){}[]$\\,. xyzn", "\\frac{", "\\sqrt", "\\pi", "\\text{", "10^", "\\pm"]
    junk = ["".join(rng.choices(symbols, k=rng.randint(1, 25))) for _ in range(150)]
    assert not any(grader.grade_many([(ask("\\sqrt{2} + 77"), text) for text in junk]))


def test_a_hopeless_comparison_is_given_up_in_time():
    with Grader(seconds=1) as short:
        short.symbolic("x", "x + 0")  # starts the engine
        began = time.monotonic()
        assert short.grade(ask("x^2"), r"\sum_{k=1}^{10^9} k!") is False
        assert time.monotonic() - began < 4
        assert (short.timeouts, short.crashes) == (1, 0)
        assert short.grade(ask("\\sqrt{8}"), "2\\sqrt{2}")  # by a new engine
        began = time.monotonic()
        assert short.grade(ask("x^2"), r"\sum_{k=1}^{10^9} k!") is False  # known by now
        assert time.monotonic() - began < 0.1


def test_a_dead_engine_is_replaced(grader):
    assert grader.grade(ask("\\sqrt{18}"), "3\\sqrt{2}")
    before = grader.crashes
    os.kill(grader._worker._process.pid, signal.SIGKILL)
    assert grader.grade(ask("\\sqrt{50}"), "5\\sqrt{2}")
    assert grader.crashes == before


def test_what_always_kills_the_engine_is_wrong(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text(
        "import os\nLatexExtractionConfig = ExprExtractionConfig = object\ndef parse(*_, **__): os.abort()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Grader() as fragile:
        assert fragile.grade(ask("x"), "x + 1") is False
        assert (fragile.timeouts, fragile.crashes) == (0, 1)


def test_threads_share_a_grader(grader):
    verdicts: dict[int, bool] = {}

    def work(n: int) -> None:
        verdicts[n] = grader.grade(ask(f"\\sqrt{{{n * n * 2}}}"), f"{n}\\sqrt{{2}}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == dict.fromkeys(range(2, 10), True)


def test_closing_ends_the_engine():
    with Grader() as used:
        used.symbolic("x", "y")
        process = used._worker._process
    assert process.returncode is not None
    used.close()


def test_the_engine_ends_with_whoever_asked_it():
    """Also when that process is killed in the middle of a comparison that would take forever."""
    code = (
        "import threading, time\n"
        "from restmcts.tasks.grade import Grader\n"
        "g = Grader(seconds=2)\n"
        "g.symbolic('x', 'y')\n"
        "print(g._worker._process.pid, flush=True)\n"
        "g.symbolic('x', '9^{9^{9^{9}}}')\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 15
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def test_an_engine_that_cannot_start_says_so(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('no such engine')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Grader() as broken, pytest.raises(TaskError, match=r"math-verify cannot start \(no such engine\)"):
        broken.grade(ask("x"), "x + 1")


def test_what_cannot_be_graded_is_refused(grader):
    with pytest.raises(TaskError, match="problem 'p' has no answer"):
        grader.grade(ask(None), "5")
    with pytest.raises(TaskError, match="no task is called 'mathe'; nearest is 'math'"):
        grader.grade(ask("5", "mathe"), "5")
    with pytest.raises(TaskError, match="seconds=0 is no time limit"):
        Grader(seconds=0)


def test_a_task_grades_by_itself():
    assert get_task("math").grade("\\sqrt{8}", "2\\sqrt{2}")
    assert not get_task("math").grade("\\sqrt{8}", "2")
    mine = AnswerTask("mine", lambda gold, answer: gold[::-1] == answer)
    assert mine.grade("ab", "ba")


# ---------------------------------------------------------------- public data


@pytest.mark.parametrize("name", ["math500", "gsm8k_test", "gsm_hard", "svamp", "scibench", "theoremqa"])
def test_gold_answers_are_right_however_they_are_stated(shared_data, name):
    golds = [str(row["answer"]) for row in rows(shared_data, name)]
    with Grader() as quick:
        for form in ("\\boxed{%s}", "The answer is $%s$.", "Answer: %s", "Thus the final answer is %s."):
            for gold in golds:
                found = find_answer("Some steps.\n" + form % gold)
                assert found is not None
                assert text_key(found) == text_key(gold) or quick.grade(ask(gold), found)


def test_other_golds_are_wrong(shared_data, grader):
    golds = [str(row["answer"]) for row in rows(shared_data, "math500")][:120]
    others = golds[1:] + golds[:1]
    verdicts = grader.grade_many([(ask(gold), other) for gold, other in zip(golds, others, strict=True)])
    expected = [key(gold) == key(other) for gold, other in zip(golds, others, strict=True)]
    assert Counter(verdicts) == Counter(expected)
