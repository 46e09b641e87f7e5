"""The command line on the scripted engine: each stage by itself, resuming, and one clear line for bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from restmcts import cli
from restmcts.store import RunFolder, read_jsonl
from tests.conftest import Said


@pytest.fixture
def problems(tmp_path) -> Path:
    return write_problems(tmp_path / "problems.jsonl", 12)


def write_problems(path: Path, count: int) -> Path:
    lines = [{"id": f"p{i}", "question": f"What is {i} + {i + 1}?", "answer": str(2 * i + 1)} for i in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def assert_one_line(said: Said, *parts: str, code: int = 2) -> None:
    assert said.code == code, said
    assert said.err.count("\n") == 1, said.err
    assert said.err.startswith("error: ")
    for part in parts:
        assert part in said.err


SEARCH = ("search", "--policy", "scripted", "--set", "search.iterations=4", "-q")

# ---------------------------------------------------------------- each stage by itself


def test_version_and_help(restmcts):
    assert restmcts("version").out.startswith("restmcts 0.")
    assert "self-training" in restmcts().out
    for command in ("run", "solve", "search", "label", "evaluate", "compare", "generate", "report", "train"):
        assert restmcts(command, "--help").code == 0


def test_solve_shows_steps_values_answer_and_cost(restmcts):
    said = restmcts("solve", "What is 2 + 3?", "--policy", "scripted", "--set", "search.iterations=6")
    *steps, answer, cost = said.out.splitlines()
    assert answer.startswith(("answer: ", "no answer found"))
    assert said.code == (0 if answer.startswith("answer") else 1)
    assert all(0 <= float(line.split()[1]) <= 1 for line in steps)
    assert cost.startswith("cost: ")
    assert "tokens generated" in cost


def test_solve_as_json_is_a_tree_and_depends_on_the_seed_alone(restmcts):
    def tree(seed):
        asked = ("solve", "What is 2 + 3?", "--policy", "scripted", "--json", "--set", "search.greedy_first=false")
        record = json.loads(restmcts(*asked, "--seed", seed).out)
        del record["usage"]
        return record

    assert tree(1)["schema"] == 1
    assert tree(1) == tree(1)
    assert tree(1)["text"] != tree(2)["text"]


def test_search_label_evaluate_on_files(restmcts, problems):
    said = restmcts(*SEARCH, "--problems", problems, "--out", "work/search")
    assert said.code == 0
    assert said.out.startswith("12 trees")
    trees = list(read_jsonl("work/search/trees.jsonl"))
    assert sorted(tree["id"] for tree in trees) == sorted(f"p{i}" for i in range(12))
    assert all(tree["settings"]["iterations"] == 4 for tree in trees)

    said = restmcts("label", "work/search", "--out", "work/label", "-q")
    assert said.code == 0
    labels = list(read_jsonl("work/label/labels.jsonl"))
    assert [record["id"] for record in labels] == [tree["id"] for tree in trees]
    assert [len(record["v"]) for record in labels] == [len(tree["parent"]) for tree in trees]
    said = restmcts("label", "work/search", "--labels", "majority", "--out", "work/majority", "-q")
    assert "against the known answers, leaf by leaf: trees labelled" in said.out
    again = restmcts("label", "work/search/trees.jsonl", "--out", "work/soft", "--set", "labels.estimate=soft", "-q")
    assert again.code == 0

    said = restmcts("evaluate", "--policy", "scripted", "--problems", problems, "--out", "work/evaluate", "-q")
    assert said.code == 0
    greedy, search, _ = said.out.splitlines()
    assert greedy.startswith("greedy")
    assert search.startswith("search")
    assert "of 12 right" in search


def label_manifest(folder: str) -> dict:
    return json.loads(Path(folder, "manifest.json").read_text())


def test_stored_trees_are_labelled_by_any_rule(restmcts, problems):
    restmcts(*SEARCH, "--problems", problems, "--out", "found")
    assert restmcts("label", "found", "--out", "own", "-q").code == 0
    assert label_manifest("own")["settings"]["labels"] == {"unsolved": "zero", "estimate": "hard"}  # as ever
    assert restmcts("label", "found", "--out", "orm", "--set", "labels.rule=orm", "-q").code == 0
    for row in read_jsonl("orm/value_rows.jsonl"):
        assert row["labels"][-1] in (0.0, 1.0)
        assert set(row["labels"][:-1]) <= {None}
    again = restmcts(
        "label", "found", "--out", "orm", "--set", "labels.rule=orm", "--set", "labels.estimate=soft", "-q"
    )
    assert "is finished" in again.out  # that setting means nothing to the rule
    refused = restmcts("label", "found", "--out", "orm", "-q")
    assert_one_line(refused, 'orm was made with labels.rule = "orm" (now nothing)')
    missing = restmcts("label", "found", "--out", "ms", "--set", "labels.rule=math-shepherd", "-q")
    assert_one_line(missing, "labels.rule = 'math-shepherd' needs completions", "'p", "--policy")
    unknown = restmcts("label", "found", "--out", "x", "--set", "labels.rule=shepherd", "-q")
    assert_one_line(unknown, "unknown labelling rule 'shepherd'; did you mean 'math-shepherd'?")


@pytest.mark.parametrize("rule", ["math-shepherd", "omega-prm"])
def test_a_policy_completes_stored_trees_and_they_can_be_labelled_again(restmcts, problems, rule):
    rows = [
        {"id": f"p{i}", "question": f"What is {i} * 3 + 8 - {2 * i} + 5 * 7?", "answer": str(i + 43)} for i in range(12)
    ]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    restmcts(*SEARCH, "--problems", problems, "--out", "found")
    ask = ("label", "found", "--out", "asked", "--policy", "scripted", "--set", f"labels.rule={rule}", "-q")
    said = restmcts(*ask, "--set", "labels.completions=4")
    assert said.code == 0
    assert "tokens of completions: asked/trees.jsonl" in said.out
    trees = {record["id"]: record for record in read_jsonl("asked/trees.jsonl")}
    assert len(trees) == 12
    spent = sum(record["usage"]["policy_tokens"] for record in trees.values())
    assert spent == label_manifest("asked")["metrics"]["usage"]["policy_tokens"] > 0
    for record in read_jsonl("asked/labels.jsonl"):
        assert len(record["v"]) == len(trees[record["id"]]["parent"])
    assert_one_line(restmcts(*ask), "search.samples = 4 (now 8)")

    first = list(read_jsonl("asked/value_rows.jsonl"))
    again = restmcts("label", "asked", "--out", "again", "--set", f"labels.rule={rule}", "-q")  # no policy needed now
    assert again.code == 0
    assert list(read_jsonl("again/value_rows.jsonl")) == first
    for rule_ in ("rest-mcts", "orm"):
        assert restmcts("label", "asked", "--out", rule_, "--set", f"labels.rule={rule_}", "-q").code == 0


def test_completions_whose_stage_budget_is_spent_go_on_when_it_is_raised(restmcts, problems):
    restmcts(*SEARCH, "--problems", problems, "--out", "found")
    ask = ("label", "found", "--policy", "scripted", "--set", "labels.rule=math-shepherd", "-q")
    whole = restmcts(*ask, "--out", "whole")
    limit, asked = "stage_budget.policy_tokens", (*ask, "--out", "asked")
    cut = restmcts(*asked, "--set", f"{limit}=150", "--set", "engine.concurrency=2")
    assert cut.code == 0
    assert "stage_budget is spent" in cut.out
    assert 0 < len(list(read_jsonl("asked/labels.jsonl"))) < 12
    assert restmcts(*asked, "--set", f"{limit}=150").out.splitlines()[1:] == cut.out.splitlines()
    last = restmcts(*asked)
    assert last.out == whole.out.replace("whole", "asked")
    for name in ("value_rows", "policy_rows"):
        key = json.dumps
        found, expected = (sorted(map(key, read_jsonl(f"{folder}/{name}.jsonl"))) for folder in ("asked", "whole"))
        assert found == expected


def test_the_same_command_again_does_nothing_again(restmcts, problems):
    command = (*SEARCH, "--problems", problems, "--out", "found")
    first = restmcts(*command)
    stamp = os.stat("found/trees.jsonl").st_mtime_ns
    second = restmcts(*command)
    assert "is finished: nothing was run again" in second.out
    assert second.out.splitlines()[-1] == first.out.splitlines()[-1]
    assert os.stat("found/trees.jsonl").st_mtime_ns == stamp


def test_a_search_whose_stage_budget_is_spent_goes_on_when_it_is_raised(restmcts, problems):
    settings = ("--set", "engine.concurrency=2", "--set", "search.greedy_first=false")  # which is enough here
    command = (*SEARCH, "--problems", problems, *settings)
    whole = restmcts(*command, "--out", "whole")
    limit = "stage_budget.policy_tokens"
    first = restmcts(*command, "--out", "found", "--set", f"{limit}=120")
    assert first.code == 0
    trees, owed = first.out.splitlines()
    assert 0 < int(trees.split()[0]) < 12
    assert owed.startswith("stage_budget is spent: ")
    assert restmcts("label", "found", "--out", "labels", "-q").code == 0
    again = restmcts(*command, "--out", "found", "--set", f"{limit}=121")  # no room for more
    assert again.out.splitlines()[1:] == [trees, owed]
    last = restmcts(*command, "--out", "found")
    assert last.out == whole.out.replace("whole", "found")
    found = {record["id"]: record["text"] for record in read_jsonl("found/trees.jsonl")}  # the last one counts
    assert found == {record["id"]: record["text"] for record in read_jsonl("whole/trees.jsonl")}
    assert len(list(read_jsonl("found/trees.jsonl"))) > 12
    restmcts("label", "found", "--out", "labels-again", "-q")
    assert len(list(read_jsonl("labels-again/labels.jsonl"))) == 12


def test_speed_settings_may_change_and_result_settings_may_not(restmcts, problems):
    command = (*SEARCH, "--problems", problems, "--out", "found")
    assert restmcts(*command).code == 0
    assert restmcts(*command, "--set", "engine.concurrency=3").code == 0
    said = restmcts(*command, "--set", "search.iterations=5")
    assert_one_line(said, "found was made with search.iterations = 4 (now 5)", "another --out")
    assert_one_line(restmcts(*command, "--seed", 1), "found was made with seed = 0 (now 1)")
    write_problems(problems, 13)
    assert_one_line(restmcts(*command), "was made from another problems")


def as_found(folder: Path) -> dict[str, object]:
    """The trees of a search by id, less what time it took."""
    trees = {}
    for record in read_jsonl(folder / "trees.jsonl"):
        record["usage"].pop("seconds")
        assert record["id"] not in trees, "searched twice"
        trees[record["id"]] = record
    return trees


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_search_resumes_to_what_a_straight_one_finds(restmcts, tmp_path, how):
    problems = write_problems(tmp_path / "many.jsonl", 400)
    command = [*SEARCH, "--problems", str(problems), "--set", "engine.concurrency=4"]
    killed = subprocess.Popen(
        [sys.executable, "-m", "restmcts", *command, "--out", "cut"],
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = tmp_path / "cut" / "trees.jsonl"
    while killed.poll() is None and not (found.exists() and found.stat().st_size > 100):
        time.sleep(0.002)
    killed.send_signal(how)
    _, err = killed.communicate()
    if how == signal.SIGINT and killed.returncode != 0:
        assert killed.returncode == 130
        assert err.startswith("interrupted; finished work is kept, go on with: restmcts search --policy scripted")
    done = found.read_bytes().count(b"\n")
    assert restmcts(*command, "--out", "cut").code == 0
    assert restmcts(*command, "--out", "straight").code == 0
    assert done > 0
    assert as_found(tmp_path / "cut") == as_found(tmp_path / "straight")


def test_generate_writes_three_files_that_load_again(restmcts):
    pytest.importorskip("reasoning_gym", reason="the built-in set needs the extra `demo`")
    said = restmcts("generate", "--out", "data", "--train", 9, "--heldout", 5, "--worked", 3)
    assert said.code == 0
    counts = {name: len(list(read_jsonl(f"data/{name}.jsonl"))) for name in ("train", "heldout", "worked")}
    assert counts == {"train": 9, "heldout": 5, "worked": 3}
    assert restmcts(*SEARCH, "--problems", "data/train.jsonl", "--out", "found").out.startswith("9 trees")


# ---------------------------------------------------------------- bad input

GOOD = '{"id": "a", "question": "What is 1 + 1?", "answer": "2"}\n'


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["problems.jsonl"]),
        (GOOD + '{"question": \n', ["problems.jsonl", "2"]),
        (GOOD + '{"no": "question"}\n', ["problems.jsonl", "2", "question"]),
        (GOOD + GOOD, ["'a'"]),
        ("", ["problems.jsonl"]),
    ],
    ids=["missing", "malformed", "no question", "same id twice", "empty"],
)
def test_bad_problem_files(restmcts, tmp_path, content, parts):
    if content is not None:
        (tmp_path / "problems.jsonl").write_text(content)
    assert_one_line(restmcts(*SEARCH, "--problems", "problems.jsonl", "--out", "found"), *parts)


def test_an_answer_is_needed_to_evaluate_and_not_to_search(restmcts, tmp_path):
    (tmp_path / "problems.jsonl").write_text('{"question": "What is 1 + 1?"}\n')
    assert restmcts(*SEARCH, "--problems", "problems.jsonl", "--out", "found").code == 0
    said = restmcts("evaluate", "--policy", "scripted", "--problems", "problems.jsonl", "--out", "measured", "-q")
    assert_one_line(said, "problems.jsonl", "answer")
    assert_one_line(restmcts("label", "found", "--out", "labels", "-q"), "answer")
    said = restmcts("label", "found", "--labels", "majority", "--out", "labels", "-q")
    assert said.code == 0
    assert "reached an answer that counts as right" in said.out
    assert "known answers" not in said.out  # there are none to compare with
    assert_one_line(restmcts("label", "found", "--labels", "judge", "--out", "x", "-q"), "oracle or majority")
    assert_one_line(restmcts("label", "found", "--labels", "nobody", "--out", "x", "-q"), "labels.source = 'nobody'")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["solve", "What?"], ["no policy; give --policy"]),
        (["solve", " ", "--policy", "scripted"], ["question is empty"]),
        (["search", "--policy", "scripted", "--out", "x"], ["no problems; give --problems"]),
        (["solve", "What?", "--set", "search.iteration=3"], ["did you mean 'search.iterations'?"]),
        (["solve", "What?", "--set", "search.alpha=3"], ["search.alpha = 3: it must be less than or equal to 1"]),
        (["solve", "What?", "--policy", "scripted", "--set", "search.method=mtcs_star"], ["did you mean 'mcts_star'?"]),
        (["solve", "What?", "--policy", "scripted", "--set", "task=maths"], ["'maths'; nearest is 'math'"]),
        (["solve", "What?", "--config", "none.yaml"], ["no such config file: none.yaml"]),
        (["run"], ["no policy"]),
        (["run", "--policy", "embedded"], ["no problems"]),
        (["run", "--policy", "scripted", "--problems", "p.jsonl"], ["scripted"]),
        (["run", "--preset", "dmo"], ["did you mean 'demo'?"]),
        (["run", "--preset", "demo", "--rounds", "-1"], ["rounds = -1"]),
        (["run", "--preset", "demo", "--rounds", "two"], ["'--rounds'", "valid integer"]),
        (["run", "--preset", "demo", "--out", "r", "--redo", "round-1/search"], ["no stage 'round-1/search'"]),
        (["label", "none.jsonl", "--out", "x"], ["no such file: none.jsonl"]),
        (["train", "policy", "none.jsonl", "--base", "embedded", "--out", "x"], ["no such file: none.jsonl"]),
        (["report", "none"], ["none holds no results"]),
        (["serach"], ["serach"]),
        (["solve", "What?", "--polcy", "x"], ["--polcy"]),
        (["solve"], ["Missing argument 'question' (see --help)"]),
        (["generate", "demos", "--out", "x"], ["'demos'"]),
    ],
)  # fmt: skip
def test_bad_words(restmcts, words, parts):
    assert_one_line(restmcts(*words), *parts)


def test_an_output_folder_in_use_or_impossible(restmcts, problems, tmp_path):
    with RunFolder(tmp_path / "taken"):
        said = restmcts(*SEARCH, "--problems", problems, "--out", "taken")
    assert_one_line(said, f"taken is in use by process {os.getpid()}")
    assert_one_line(restmcts(*SEARCH, "--problems", problems, "--out", problems), "a file is where a folder is needed")


def test_damaged_trees_are_named(restmcts, tmp_path):
    (tmp_path / "trees.jsonl").write_text('{"schema": 1}\n')
    assert_one_line(restmcts("label", "trees.jsonl", "--out", "x", "-q"), "trees.jsonl, record 1")
    (tmp_path / "trees.jsonl").write_text("{\n")
    assert_one_line(restmcts("label", "trees.jsonl", "--out", "y", "-q"), "trees.jsonl, line 1")


@pytest.mark.model
def test_bad_models(restmcts, problems, tmp_path, tiny_model_dir):
    import shutil

    (tmp_path / "empty").mkdir()
    solve = ("solve", "What?", "--policy")
    assert_one_line(restmcts(*solve, "empty"), "'empty' is no model", "config.json")
    assert_one_line(restmcts(*solve, "./none"), "no model folder './none'")
    command = ("search", "--problems", problems, "--out", "found", "-q", "--policy")
    assert_one_line(restmcts(*command, "./typo"), "no model folder './typo'")
    assert restmcts(*command, "scripted").code == 0  # a typo is not held against the folder
    assert_one_line(restmcts(*solve, problems), "is a file, not a model")
    assert_one_line(restmcts(*solve, tiny_model_dir, "--value", tiny_model_dir), "not a value model")
    shutil.copytree(tiny_model_dir, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    assert_one_line(restmcts(*solve, "plain"), "no chat template", "prompt.chat")
    shutil.copytree(tiny_model_dir, tmp_path / "torn")
    weights = next((tmp_path / "torn").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_one_line(restmcts(*solve, "torn"), "torn")


@pytest.mark.model
def test_a_whole_run_on_a_tiny_model(restmcts, tmp_path, tiny_model_dir):
    """Every stage through the command line; a second time nothing is done; a stage can be done anew."""
    worked = [
        {"question": f"What is {i} + 1?", "answer": str(i + 1), "solution": f"{i} + 1 = {i + 1}\nAnswer: {i + 1}"}
        for i in range(50, 58)
    ]
    (tmp_path / "worked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in worked))
    train, heldout = write_problems(tmp_path / "train.jsonl", 4), tmp_path / "heldout.jsonl"
    heldout.write_text('{"question": "What is 70 + 3?", "answer": "73"}\n')
    (tmp_path / "small.yaml").write_text(
        "search: {iterations: 2, branch: 2, rollout_steps: 1, max_depth: 3, step_tokens: 8}\n"
        "policy_training: {epochs: 1}\nvalue_training: {epochs: 1}\n"
    )
    command = ("run", "small.yaml", "--policy", tiny_model_dir, "--problems", train, "--heldout", heldout)
    command = (*command, "--worked", "worked.jsonl", "--out", "runs/tiny", "--rounds", 1)
    said = restmcts(*command)
    assert said.code == 0, said
    assert "round-1/search" in said.err
    assert "warm start" in said.out
    assert said.out.rstrip().endswith("report: runs/tiny/report.md")
    for file in ("config.yaml", "metrics.jsonl", "round-1/search/trees.jsonl", "round-1/value/model.safetensors"):
        assert (tmp_path / "runs" / "tiny" / file).exists(), file

    again = restmcts(*command)
    assert "is finished" in again.err
    assert "round-1/search" not in again.err
    change = ("--set", "search.iterations=3", "--set", "evaluate.search.iterations=2")
    refused = restmcts(*command, *change)
    assert_one_line(refused, "stage round-1/search", "search.iterations = 2 (now 3)", "--redo round-1/search")
    anew = restmcts(*command, *change, "--redo", "round-1/search", "-q")
    assert anew.code == 0, anew
    manifest = json.loads((tmp_path / "runs" / "tiny" / "round-1" / "search" / "manifest.json").read_text())
    assert manifest["settings"]["search"]["iterations"] == 3
    assert "round 1" in restmcts("report", "runs/tiny").out
