"""`restmcts evaluate value` on the command line; and `restmcts evaluate`, which it must leave as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from restmcts.store import read_jsonl
from tests.tiny import tiny_prm

Run = Callable[..., tuple[int, str, str]]
VALUE = ("evaluate", "value", "--value", "scripted", "-q")


@pytest.fixture
def samples(restmcts: Run) -> Path:
    """16 samples of each of eight questions, drawn from the scripted solver."""
    lines = [{"id": f"p{i}", "question": f"What is {i} + {i} * 2?", "answer": str(3 * i)} for i in range(8)]
    Path("problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sampling = ("--set", "search.method=sample", "--set", "search.samples=16", "-q")
    assert (
        restmcts("search", "--policy", "scripted", "--problems", "problems.jsonl", "--out", "found", *sampling)[0] == 0
    )
    return Path("found")


@pytest.fixture
def bench(restmcts: Run) -> Path:
    """Sums worked out in two steps, the first, the second or none of them wrong."""
    rows = []
    for i in range(30):
        label = i % 3 - 1
        first = 4 + (label == 0)
        last = first + i + (label == 1)
        steps = [f"2 + 2 = {first}", f"{first} + {i} = {last}", f"Answer: {last}"]
        rows.append({"id": f"{'gsm8k' if i < 18 else 'math'}-{i}", "problem": f"What is 2 + 2 + {i}?", "steps": steps})
        rows[-1] |= {"label": label, "final_answer_correct": label < 0, "generator": "hand"}
    Path("bench.json").write_text(json.dumps(rows))
    return Path("bench.json")


def test_processbench_and_samples_in_one_go(restmcts: Run, samples: Path, bench: Path):
    code, out, err = restmcts(*VALUE, "--processbench", bench, "--trees", samples, "--out", "lens")
    assert (code, err) == (0, "")
    for title in (
        "ProcessBench, by value",
        "ProcessBench, by gain",
        "Error by depth",
        "Calibration",
        "Choosing among N",
    ):
        assert title in out
    assert out.rstrip().endswith("values, metrics and tables: lens")
    report = Path("lens/evaluate-value.md").read_text()
    assert "## Choosing among N samples: accuracy, %" in report
    metrics = json.loads(Path("lens/metrics.json").read_text())
    assert metrics["value"] == "scripted"
    assert metrics["scored"] == 38
    assert metrics["processbench"]["gain"]["chosen"]["subsets"]["gsm8k"]["samples"] == 18
    assert metrics["processbench"]["gain"]["chosen"]["average"] > 0.9, "the checker knows arithmetic"
    assert metrics["trees"]["quality"]["auc"] > 0.9
    best = metrics["trees"]["best_of_n"]
    assert best["n"] == [1, 2, 4, 8, 16]
    accuracy = {rule: [cell["accuracy"] for cell in cells] for rule, cells in best["rules"].items()}
    assert accuracy["best last"][-1] > accuracy["majority"][0] + 0.1
    assert all(a <= b + 1e-9 for a, b in zip(accuracy["best last"], accuracy["any"], strict=True))
    rows = list(read_jsonl("lens/processbench.jsonl"))
    assert len(rows) == 30
    assert rows[0].keys() == {"id", "subset", "label", "values", "predicted by value", "predicted by gain"}
    assert {row["id"] for row in read_jsonl("lens/best-of-n.jsonl")} == {f"p{i}" for i in range(8)}


def test_nothing_is_scored_twice_and_another_threshold_scores_nothing(restmcts: Run, samples: Path, bench: Path):
    command = (*VALUE[:-1], "--processbench", bench, "--trees", samples, "--out", "lens")
    first = restmcts(*command)
    stamp = os.stat("lens/values/processbench.jsonl").st_mtime_ns
    again = restmcts(*command)
    assert again[1] == first[1]
    assert "nothing was scored again" in again[2]
    other = restmcts(*command, "--threshold", "gsm8k")
    assert other[0] == 0
    assert "the best threshold for gsm8k" in other[1]
    assert os.stat("lens/values/processbench.jsonl").st_mtime_ns == stamp
    assert json.loads(Path("lens/metrics.json").read_text())["processbench"]["value"]["chosen"]["threshold"] == "gsm8k"
    code, _, err = restmcts(*command, "--seed", 1)
    assert code == 2
    assert "stage values was made with seed = 0 (now 1)" in err
    bench.write_text(bench.read_text().replace('"generator": "hand"', '"generator": "me"'))
    assert "made from another processbench 1" in restmcts(*command)[2]


def test_a_budget_leaves_samples_owed_and_raising_it_goes_on(restmcts: Run, bench: Path):
    command = (*VALUE, "--processbench", bench, "--set", "engine.concurrency=1")
    whole = restmcts(*command, "--out", "whole")
    code, out, _ = restmcts(*command, "--out", "lens", "--set", "stage_budget.value_tokens=300")
    assert code == 0
    assert "stage_budget is spent: " in out
    assert 0 < json.loads(Path("lens/metrics.json").read_text())["scored"] < 30
    code, out, _ = restmcts(*command, "--out", "lens")
    assert out.replace("lens", "whole") == whole[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "value", "--trees", "found", "--out", "x"], "no value model; give --value"),
        (["evaluate", "value", "--value", "scripted", "--out", "x"], "give --processbench, or --trees"),
        (["evaluate", "value", "--value", "scripted", "--trees", "found"], "Missing option '--out'"),
        (["evaluate", "value", "--value", "scripted", "--trees", "none", "--out", "x"], "no such file: none"),
        (["evaluate", "value", "--value", "scripted", "--processbench", "none.json", "--out", "x"], "none.json"),
        (["evaluate", "value", "--value", "scripted", "--processbench", "bench.json", "--threshold", "aime",
          "--out", "x"], "'aime' is neither a number nor a subset (gsm8k, math) nor 'halves'"),
        (["evaluate", "--policy", "scripted"], "Missing option '--out' (see --help)"),
        (["evaluate", "--out", "y", "value", "--value", "scripted", "--trees", "found", "--out", "x"],
         "options belong after 'value'"),
        (["evaluate", "values", "--out", "x"], "No such command 'values'"),
    ],
)  # fmt: skip
def test_bad_words(restmcts: Run, samples: Path, bench: Path, words: list[str], said: str):
    code, _, err = restmcts(*words)
    assert code == 2
    assert err.count("\n") == 1
    assert said in err


def test_trees_without_known_answers_cannot_be_judged(restmcts: Run):
    Path("problems.jsonl").write_text('{"question": "What is 1 + 1?"}\n')
    restmcts("search", "--policy", "scripted", "--problems", "problems.jsonl", "--out", "found", "-q")
    code, _, err = restmcts(*VALUE, "--trees", "found", "--out", "lens")
    assert code == 2
    assert "has no answer, so its values cannot be judged" in err


def test_evaluate_answers_as_before(restmcts: Run, samples: Path):
    assert restmcts("evaluate", "--help")[0] == 0
    code, out, _ = restmcts("evaluate", "--policy", "scripted", "--problems", "problems.jsonl", "--out", "work", "-q")
    assert code == 0
    greedy, search, _ = out.splitlines()
    assert greedy.startswith("greedy")
    assert search.startswith("search")
    restmcts("search", "--policy", "scripted", "--problems", "problems.jsonl", "--out", "trees", "-q")
    code, out, _ = restmcts(*VALUE, "--trees", "trees", "--out", "lens")
    assert code == 0, "trees of a search have no Best-of-N and all the rest"
    assert "Choosing among" not in out
    assert "Error by depth" in out


@pytest.mark.model
@pytest.mark.usefixtures("one_thread")
def test_a_public_model_from_the_command_line(restmcts: Run, samples: Path, bench: Path):
    tiny_prm(Path("prm"), "rlhflow")
    command = ("evaluate", "value", "--processbench", bench, "--trees", samples, "-q", "--value")
    assert "say which kind of process reward model it is: math-shepherd:prm or rlhflow:prm" in restmcts(
        *command, "prm", "--out", "lens"
    )[2]  # fmt: skip
    code, out, err = restmcts(*command, "rlhflow:prm", "--out", "lens")
    assert (code, err) == (0, "")
    assert "ProcessBench, by value" in out
    assert json.loads(Path("lens/metrics.json").read_text())["model"].startswith("rlhflow:prm@")
    manifest = json.loads(Path("lens/values/manifest.json").read_text())
    assert manifest["settings"]["value"] == "rlhflow:prm"
    assert "value" in manifest["inputs"], "the folder's weights are remembered too"
    assert "no model folder './none'" in restmcts(*command, "./none", "--out", "other")[2]
    assert "made with value" in restmcts(*command, "math-shepherd:prm", "--out", "lens")[2]
