"""Public question sets by name: from the hub (a stand-in), from a copy, from a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from restmcts.config import RunConfig
from restmcts.errors import TaskError
from restmcts.tasks import TASKS, get_task
from restmcts.tasks.load import load_problems
from restmcts.tasks.sets import FOLDER, SETS, find_set, set_name
from tests.test_tasks_equivalent import AT_TWO_DECIMALS, DISAGREEMENTS

# Rows with the columns that each set has on the hub.
HUB_ROWS = {
    "gsm8k": {"question": "How many?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"},
    "svamp": {"ID": "chal-1", "Body": "b", "Question": "How?", "question_concat": "b How?", "Answer": "42.0"},
    "gsm-hard": {"input": "How many?", "code": "def solution(): ...", "target": 42.0},
    "math": {
        "problem": "What is $6 \\cdot 7$?",
        "level": "Level 1",
        "type": "Algebra",
        "solution": "It is $\\boxed{42}$.",
    },
    "math500": {"problem": "6 * 7?", "solution": "So $\\boxed{42}$.", "answer": "42", "unique_id": "test/1.json"},
    "scibench": {
        "problem_text": "Find it.",
        "answer_number": "42",
        "answer_latex": "42",
        "unit": "J",
        "problemid": "1",
    },
    "theoremqa": {"Question": "How many?", "Answer": "42", "Answer_type": "integer", "Picture": None},
    "gpqa": {
        "Question": "Which?",
        "Correct Answer": "42",
        "Incorrect Answer 1": "41",
        "Incorrect Answer 2": "43",
        "Incorrect Answer 3": "44",
        "Record ID": "rec1",
    },
    "ceval": {
        "id": 0,
        "question": "哪个？",
        "A": "41",
        "B": "42",
        "C": "43",
        "D": "44",
        "answer": "B",
        "explanation": "",
    },
    "scieval": {"id": "1", "question": "Which?\n\nA. 41\nB. 42", "answer": ["B"], "type": "multiple-choice"},
    "aime": {"id": 0, "problem": "How many?", "solution": "So $\\boxed{042}$.", "answer": "42", "url": "u"},
    "game24": {"numbers": [1, 1, 4, 6], "solutions": ["(1-1)+4*6"], "solvable": True},
    "countdown": {"nums": [3, 5, 8], "target": 9},
}
RIGHT = {
    "scibench": "42 J",
    "gpqa": None,
    "ceval": "B",
    "scieval": "(B)",
    "game24": "(1 - 1) + 4 * 6",
    "countdown": "3 * (8 - 5)",
}


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub library; returns the list of what it was asked for."""
    asked: list[tuple] = []
    by_id = {wanted.hub: name for name, wanted in SETS.items()}

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return [dict(HUB_ROWS[by_id[name]])]

    library = ModuleType("datasets")
    library.load_dataset = load_dataset
    library.get_dataset_config_names = lambda name: ["one", "two"]
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.delenv(FOLDER, raising=False)
    return asked


@pytest.mark.parametrize("name", SETS)
def test_every_set_loads_by_its_name(hub, name):
    problems = load_problems(name)
    wanted = SETS[name]
    parts = ["one", "two"] if wanted.config == "*" else [wanted.config]
    assert hub == [(wanted.hub, part, wanted.split) for part in parts]
    assert {problem.task for problem in problems} == {wanted.task}
    task = get_task(name)
    assert task is TASKS[wanted.task]
    for problem in problems:
        right = RIGHT.get(name, "42") or problem.answer
        assert task.grade(problem.answer, task.find_answer(f"So.\nAnswer: {right}"))
        assert not task.grade(problem.answer, "17")


def test_options_and_solutions_of_sets(hub):
    (gpqa,) = load_problems("gpqa")
    assert f"{gpqa.answer}. 42" in gpqa.question
    assert gpqa.id == "rec1"
    (gsm8k,) = load_problems("gsm8k")
    assert gsm8k.solution == "6 * 7 = 42\nAnswer: 42"
    (scibench,) = load_problems("scibench")
    assert scibench.question == "Find it. The unit of the answer is $J$."


def test_other_parts_and_splits(hub):
    load_problems("gsm8k@train")
    load_problems("ceval:high_school_physics@dev")
    assert hub == [("openai/gsm8k", "main", "train"), ("ceval/ceval-exam", "high_school_physics", "dev")]


def test_a_task_given_goes_before_that_of_the_set(hub):
    assert load_problems("gsm8k", task="math")[0].task == "math"
    assert RunConfig().task is None


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("GSM8K", "gsm8k"), ("gsm_hard", "gsm-hard"), ("MATH-500", "math500"), ("C-Eval", "ceval"), ("mathe", None)],
)
def test_spellings(spelling, name):
    assert set_name(spelling) == name


def test_a_copy_is_read_as_the_set(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # nothing is asked of the hub
    copy = tmp_path / "mine.json"
    copy.write_text(json.dumps([HUB_ROWS["gsm-hard"]]))
    (problem,) = load_problems(f"gsm-hard={copy}")
    assert (problem.question, problem.answer, problem.task) == ("How many?", "42.0", "numeric")
    with pytest.raises(TaskError, match="no such file"):
        load_problems(f"gsm-hard={tmp_path / 'other.json'}")


def test_copies_are_found_in_the_users_folder(tmp_path, monkeypatch, hub):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    load_problems("gsm-hard")
    assert len(hub) == 1  # there is no copy yet
    for stem in ("gsm_hard", "gsm8k_test", "gsm8k_train"):
        (tmp_path / f"{stem}.jsonl").write_text(json.dumps({"question": f"{stem}?", "answer": "42"}))
    assert load_problems("gsm-hard")[0].question == "gsm_hard?"
    assert load_problems("gsm8k")[0].question == "gsm8k_test?"
    assert load_problems("gsm8k@train")[0].question == "gsm8k_train?"
    assert len(hub) == 1


def test_a_file_of_that_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "math").write_text("")
    assert find_set("math") is None
    assert find_set("svamp") is not None
    assert find_set("someone/svamp") is None


def test_rows_that_cannot_be_asked_are_left_out(hub, monkeypatch):
    for name, row in (
        ("theoremqa", {"Picture": object()}),
        ("scieval", {"answer": None}),
        ("game24", {"solvable": False}),
    ):
        monkeypatch.setitem(HUB_ROWS, name, HUB_ROWS[name] | row)
        with pytest.raises(TaskError, match="holds no problems"):
            load_problems(name)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *[("gsm8k", 1319), ("gsm8k@train", 5000), ("svamp", 1000), ("gsm-hard", 1319), ("math500", 500)],
        *[("scibench", 692), ("theoremqa", 747), ("game24", 1362), ("countdown", 1500)],
    ],
)
def test_public_copies(shared_data, monkeypatch, name, count):
    """Every set loads from its copy, and its known answers are right however they are stated."""
    monkeypatch.setenv(FOLDER, str(shared_data))
    problems = load_problems(name)
    assert len(problems) == count
    task = get_task(name.split("@")[0])
    for problem in problems:
        if task.name in ("game24", "countdown"):
            assert task.grade(problem.answer, task.find_answer(problem.solution))
            continue
        for form in ("Answer: {}", "So the answer is $\\boxed{{{}}}$.", "因此答案是{}。"):
            assert task.grade(problem.answer, task.find_answer(form.format(problem.answer)))


def test_worked_solutions_state_the_right_answer(shared_data, monkeypatch):
    """All but one of MATH-500: its last line checks the answer after its box."""
    monkeypatch.setenv(FOLDER, str(shared_data))
    task = get_task("math500")
    found = {problem.id: (problem, task.find_answer(problem.solution)) for problem in load_problems("math500")}
    wrong = {id for id, (problem, answer) in found.items() if not task.grade(problem.answer, answer)}
    assert wrong == {"math500-448"}


def test_the_documentation_lists_every_set_and_every_rule():
    page = (Path(__file__).parents[1] / "docs" / "grading.md").read_text(encoding="utf-8")
    for name, wanted in SETS.items():
        config = f":{wanted.config}" if wanted.config else ""
        assert f"| {name} | {wanted.hub}{config}@{wanted.split} | {wanted.task} | {wanted.licence} |" in page
    for rule in TASKS:
        assert f"| `{rule}` |" in page
    for case in (*DISAGREEMENTS, *AT_TWO_DECIMALS):
        assert f"| {case} |" in page
