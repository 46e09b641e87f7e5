"""The page on lm-evaluation-harness is true: its files and its command, word for word, on a tiny trained policy."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from restmcts.store import write_jsonl

PAGE = (Path(__file__).parents[1] / "docs" / "lm-evaluation-harness.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.mark.model
def test_the_grading_of_the_page_is_our_own() -> None:
    names: dict = {}
    exec(compile(block("python"), "grading.py", "exec"), names)
    countdown = {"answer": "48 from all of 1 6 7", "task": "countdown"}
    graded = [
        names["process_results"](doc, [reply])["accuracy"]
        for doc, reply in [
            ({"answer": "7"}, "3 + 4 = 7\nAnswer: 7.0"),
            ({"answer": "7", "task": "math"}, "Answer: 8"),
            ({"answer": "7"}, "no answer"),
            (countdown, "Answer: 6 * (7 + 1)"),
            (countdown, "Answer: 48"),
        ]
    ]
    assert graded == [1.0, 0.0, 0.0, 1.0, 0.0]


@pytest.mark.model
@pytest.mark.slow
def test_the_command_of_the_page_evaluates_a_policy_that_restmcts_wrote(tmp_path: Path, tiny_model_dir: Path) -> None:
    pytest.importorskip("lm_eval", reason="pip install 'lm-eval[hf]'")
    from restmcts.datasets import PolicyRow
    from restmcts.encoding import PromptSettings
    from restmcts.train.policy import train_policy
    from restmcts.train.settings import PolicyTraining

    steps = {"What is 1 + 1?": ["1 + 1 = 2", "Answer: 2"], "What is 5 + 3?": ["5 + 3 = 8", "Answer: 8"]}
    rows = [PolicyRow(question, question, worked, [None] * 2, None) for question, worked in steps.items()]
    policy = tmp_path / "runs" / "mine" / "round-2" / "policy"
    policy.mkdir(parents=True)
    train_policy(
        rows,
        base=tiny_model_dir,
        out=policy,
        prompt=PromptSettings(instruction="Solve step by step."),
        settings=PolicyTraining(method="full", epochs=150, learning_rate=3e-3, batch_tokens=512, precision="float32"),
    )
    # The third answer is another than the policy learned, so that not everything is right.
    known = [("What is 1 + 1?", "2"), ("What is 5 + 3?", "8.0"), ("What is 5 + 3?", "9")]
    problems = [{"id": f"p{i}", "question": q, "answer": a, "task": "math"} for i, (q, a) in enumerate(known)]
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "heldout.jsonl", problems)
    (tmp_path / "heldout.yaml").write_text(block("yaml"))
    (tmp_path / "grading.py").write_text(block("python"))
    words = shlex.split(block("sh").replace("\\\n", " "))
    assert words[0] == "lm_eval"
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *words[1:], "--device", "cpu"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "harness").rglob("results_*.json")
    found = json.loads(results.read_text())["results"]["heldout"]
    assert found["accuracy,none"] == pytest.approx(2 / 3)
