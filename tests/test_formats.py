"""Other projects' formats: what is written reads back as it was, what was published reads as it is meant, and what is
wrong is one line with its place."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from restmcts import cli
from restmcts.encoding import PromptSettings
from restmcts.errors import TaskError
from restmcts.formats import EXPORTS, IMPORTS
from restmcts.formats.common import ExportOptions, ImportOptions, Marked, marked, progress
from restmcts.formats.stored import trees_and_labels
from restmcts.rows import PolicyRow, PreferenceRow, ValueRow, read_rows
from restmcts.store import read_jsonl
from restmcts.worked import wrong_values

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A label stage of trees that the scripted solver grew, right and wrong solutions among them."""
    folder = tmp_path_factory.mktemp("stored")
    lines = [{"id": f"p{i}", "question": f"What is {i} + {i} * 2?", "answer": str(3 * i)} for i in range(8)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    long = ("--set", "search.iterations=12", "--set", "search.threshold=2")  # several solutions of a question
    search = ("search", "--policy", "scripted", *long, "-q", "--seed", "3")
    assert cli._dispatch([*search, "--problems", str(folder / "problems.jsonl"), "--out", str(folder / "s")]) is None
    assert cli._dispatch(["label", str(folder / "s"), "--out", str(folder / "label"), "-q"]) is None
    return folder / "label"


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def row(steps: list[str], labels: list[float | None], r: list[float | None], **facts: Any) -> ValueRow:
    named = {"problem_id": "p", "question": "What is 1 + 2?", "tokenizer": None} | facts
    return ValueRow(steps=steps, step_ids=[None] * len(steps), labels=labels, r=r, **named)


def lines_of(name: str, item: Any, **options: Any) -> list[dict[str, Any]]:
    return list(EXPORTS[name].write(item, ExportOptions(**options)))


def read(name: str, path: Path, **options: Any) -> list[ValueRow]:
    found = list(IMPORTS[name](str(path), ImportOptions(**options)))
    assert not [one for one in found if isinstance(one, TaskError)], found
    return [one for one in found if isinstance(one, ValueRow)]


SOLUTION = Marked("p", "What is 1 + 2?", ["1 + 2 = 3", "Answer: 4"], [1.0, 0.25])

# ---------------------------------------------------------------- what is written


def test_every_format_as_its_makers_write_it():
    """By hand, from their own documentation."""
    assert lines_of("stepwise", SOLUTION) == [
        {"prompt": "What is 1 + 2?", "completions": ["1 + 2 = 3", "Answer: 4"], "labels": [True, False]}
    ]
    assert lines_of("stepwise", SOLUTION, soft=True)[0]["labels"] == [1.0, 0.25]
    assert lines_of("math-shepherd", SOLUTION) == [
        {
            "input": "What is 1 + 2? Step 1: 1 + 2 = 3 ки\nStep 2: Answer: 4 ки",
            "label": "What is 1 + 2? Step 1: 1 + 2 = 3 +\nStep 2: Answer: 4 -",
            "task": "restmcts",
        }
    ]
    said = [("user", "What is 1 + 2? 1 + 2 = 3"), ("assistant", "+"), ("user", "Answer: 4"), ("assistant", "-")]
    assert lines_of("rlhflow", SOLUTION) == [{"conversations": [{"role": r, "content": c} for r, c in said]}]
    (line,) = lines_of("prm800k", SOLUTION)
    assert line["question"]["problem"] == "What is 1 + 2?"
    assert [step["completions"][0] for step in line["label"]["steps"]] == [
        {"text": "1 + 2 = 3", "rating": 1, "flagged": None},
        {"text": "Answer: 4", "rating": -1, "flagged": None},
    ]
    assert line["label"]["finish_reason"] == "found_error"
    assert lines_of("reference-value", row(["1 + 2 = 3", "Answer: 4"], [0.5, 0.0], [0.0, 1.0])) == [
        {"prompt_answer": "Problem:What is 1 + 2?\nSolution:\nStep 1: 1 + 2 = 3\n", "label": 0.5},
        {"prompt_answer": "Problem:What is 1 + 2?\nSolution:\nStep 1: 1 + 2 = 3\nStep 2: Answer: 4\n", "label": 0.0},
    ]


def test_prompts_are_those_the_policy_was_asked_with():
    policy = PolicyRow("p", "1 + 2?", ["3", "Answer: 3"], [None] * 2, None)
    prompt = PromptSettings(instruction="Add.", examples=({"question": "1 + 1?", "solution": "Answer: 2"},))
    turns = lines_of("sft", policy, prompt=prompt)[0]["messages"]
    assert [turn["content"] for turn in turns] == ["Add.", "1 + 1?", "Answer: 2", "1 + 2?", "3\nAnswer: 3"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    plain = PromptSettings(instruction="Add.", chat=False, question="Q: {question}\nA: ")
    assert lines_of("sft", policy, prompt=plain) == [{"prompt": "Add.\n\nQ: 1 + 2?\nA: ", "completion": "3\nAnswer: 3"}]


def test_a_pair_of_steps_leads_with_what_both_share():
    sides = {"chosen": ["b"], "chosen_ids": [None], "rejected": ["c"], "rejected_ids": [None]}
    pair = PreferenceRow("p", "Q?", ["a"], [None], None, **sides, chosen_value=0.8, rejected_value=0.1)
    (line,) = lines_of("preference", pair, prompt=PromptSettings(instruction="Add."))
    assert [turn["role"] for turn in line["prompt"]] == ["system", "user"]
    assert line["chosen"] == [{"role": "assistant", "content": "a\nb"}]
    assert line["rejected"] == [{"role": "assistant", "content": "a\nc"}]
    (line,) = lines_of("preference", pair, prompt=PromptSettings(instruction="Add.", chat=False))
    assert (line["chosen"], line["rejected"]) == ("a\nb", "a\nc")


def test_steps_that_other_rows_train_are_marked_from_there():
    whole = row(["a", "b", "c"], [0.3, 0.6, 1.0], [0.0, 0.0, 0.0])
    branch = row(["a", "b", "x"], [None, None, 0.2], [None, None, 1.0])
    assert [one and one.right for one in marked([branch, whole])] == [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    elsewhere = row(["a", "b", "x"], [None, None, 0.2], [None, None, 1.0], question="another?")
    found = list(marked([whole, elsewhere]))[1]
    assert found is not None
    assert (found.steps, found.right) == (["a\nb\nx"], [0.0]), "an equal step of another question is another step"


def test_steps_without_a_label_are_one_with_the_next_that_has_one():
    outcome = row(["a", "b", "c"], [None, None, 1.0], [None, None, 0.0])
    cut = row(["d", "e", "f"], [None, 0.5, None], [None, 0.5, None])
    nothing = row(["g"], [None], [None])
    found = list(marked([outcome, cut, nothing]))
    assert [one and (one.steps, one.right) for one in found] == [(["a\nb\nc"], [1.0]), (["d\ne"], [0.5]), None]


def test_the_threshold_says_what_counts_as_right():
    for threshold, signs in ((0.2, [True, True]), (0.25, [True, True]), (0.3, [True, False])):
        assert lines_of("stepwise", SOLUTION, threshold=threshold)[0]["labels"] == signs


def test_what_a_format_cannot_hold_is_left_out():
    russian = Marked("p", "Сколько?", ["три строки", "слово ки\nещё"], [1.0, 1.0])
    assert lines_of("math-shepherd", russian) == []
    assert len(lines_of("math-shepherd", Marked("p", "Сколько?", ["три строки", "ки два"], [1.0, 1.0]))) == 1


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("name", ["stepwise", "math-shepherd", "prm800k"])
def test_there_and_back(stored, restmcts, name):
    assert restmcts("export", name, stored, "out.jsonl")[0] == 0
    code, said, _ = restmcts("import", name, "out.jsonl", "--out", "back")
    ours = [one for one in marked(read_rows(stored / "value_rows.jsonl", ValueRow)) if one]
    back = read_rows(Path("back/value_rows.jsonl"), ValueRow)
    assert code == 0
    assert said.startswith(f"{len(ours)} rows for the value model")
    assert [(r.question, r.steps) for r in back] == [(one.question, one.steps) for one in ours]
    assert [r.labels for r in back] == [[float(sign) for sign in one.signs(0.5)] for one in ours]
    assert [r.r for r in back] == [[1 - float(sign) for sign in one.signs(0.5)] for one in ours]
    assert {sign for one in ours for sign in one.signs(0.5)} == {True, False}, "both kinds were tried"


@pytest.mark.parametrize("name", ["stepwise", "math-shepherd", "prm800k"])
def test_any_text_comes_back(tmp_path, name):
    """Steps of several lines, numbers, marks and signs of the formats themselves."""
    pieces = [
        "Step 1: ",
        "ки",
        " ки ",
        "+",
        "-",
        "\n",
        "a",
        "Problem:",
        "строки",
        '"',
        "\\frac{1}{2}",
        "{",
        " ",
        "答え",
    ]
    rng = random.Random(0)
    texts = ["x" + "".join(rng.choices(pieces, k=rng.randrange(1, 6))).strip() + "y" for _ in range(400)]
    solutions = [
        Marked("p", f"{texts.pop()}?", [texts.pop() for _ in range(k)], [float(rng.random() < 0.5) for _ in range(k)])
        for k in [3] * 80
    ]
    written = [(one, lines_of(name, one)) for one in solutions]
    kept = [one for one, lines in written if lines]
    assert len(kept) > 60
    back = read(name, write(tmp_path / "out.jsonl", *(line for _, lines in written for line in lines)))
    assert [(r.question, r.steps, r.labels) for r in back] == [(one.question, one.steps, one.right) for one in kept]


def test_soft_labels_and_values_come_back_as_they_are(stored, restmcts):
    assert restmcts("export", "stepwise", stored, "soft.jsonl", "--soft")[0] == 0
    ours = read_rows(stored / "value_rows.jsonl", ValueRow)
    assert [r.labels for r in read("stepwise", Path("soft.jsonl"))] == [one.right for one in marked(ours) if one]
    assert restmcts("export", "reference-value", stored, "value.jsonl")[0] == 0
    nodes = [
        (one.question, one.steps[: k + 1], label)
        for one in ours
        for k, label in enumerate(one.labels)
        if label is not None
    ]
    back = read("reference-value", Path("value.jsonl"))
    assert [(r.question, r.steps, r.labels[-1]) for r in back] == nodes
    assert all(set(r.labels[:-1]) <= {None} for r in back)
    assert len(nodes) == sum(v is not None for one in read_jsonl(stored / "labels.jsonl") for v in one["v"]) - 8, (
        "every labelled node but the roots, once"
    )


def test_parquet_holds_the_same(stored, restmcts):
    pytest.importorskip("pyarrow")
    for name in EXPORTS:
        assert restmcts("export", name, stored, f"{name}.jsonl")[0] == 0
        assert restmcts("export", name, stored, f"{name}.parquet")[0] == 0
        import pyarrow.parquet

        assert pyarrow.parquet.read_table(f"{name}.parquet").to_pylist() == list(read_jsonl(f"{name}.jsonl")), name
    for name in ("stepwise", "math-shepherd", "prm800k", "reference-value"):
        assert read(name, Path(f"{name}.parquet")) == read(name, Path(f"{name}.jsonl"))


def test_trees_are_exported_without_rows(stored, restmcts):
    """Pairs of siblings, every solution, and with --trees all labelled steps, not the chosen ones alone."""
    code, said, _ = restmcts("export", "preference", stored, "pairs.jsonl", "--margin", "0.3")
    trees, labels = trees_and_labels(stored / "labels.jsonl")
    assert code == 0
    assert int(said.split()[0]) == len(list(read_jsonl("pairs.jsonl"))) > 0
    assert restmcts("export", "reference-policy", stored, "policy.jsonl")[0] == 0
    found = list(read_jsonl("policy.jsonl"))
    verdicts = [verdict for one in labels for verdict in one.correct if verdict is not None]
    assert [line["label"] for line in found] == verdicts
    assert all(set(line) == {"content", "summary", "label", "real_answer"} for line in found)
    assert all(line["summary"].startswith("Step 1: ") and "final answer is" in line["summary"] for line in found)
    assert {line["real_answer"] for line in found} <= {tree.problem.answer for tree in trees}
    few = ("--set", "policy_training.traces_per_question=1", "--set", "value_training.traces_per_question=1", "-q")
    assert restmcts("label", stored.parent / "s", "--out", "few", *few)[0] == 0
    counts = {}
    for name in ("sft", "stepwise"):
        for flags in ((), ("--trees",)):
            assert restmcts("export", name, "few", f"{name}{len(flags)}.jsonl", *flags)[0] == 0
            counts[name, bool(flags)] = len(list(read_jsonl(f"{name}{len(flags)}.jsonl")))
    assert counts["sft", False] < counts["sft", True]
    assert counts["stepwise", False] < counts["stepwise", True]


def test_of_a_run_the_last_round_or_the_one_named(restmcts):
    for k in (0, 1, 2):
        folder = Path(f"run/round-{k}/label")
        folder.mkdir(parents=True)
        write(folder / "policy_rows.jsonl", PolicyRow("p", "1?", [f"of {k}"], [None], None).to_record())
    Path("run/config.yaml").write_text("prompt: {instruction: Add., chat: false, question: '{question} '}\n")
    for flags, k in ((), 2), (("--round", "1"), 1):
        assert restmcts("export", "sft", "run", f"{k}.jsonl", *flags)[0] == 0
        assert list(read_jsonl(f"{k}.jsonl")) == [{"prompt": "Add.\n\n1? ", "completion": f"of {k}"}]
    code, _, said = restmcts("export", "sft", "run", "3.jsonl", "--round", "3")
    assert (code, said.count("\n")) == (2, 1)
    assert "round 3" in said


def test_a_file_is_written_whole_or_not_at_all(stored, restmcts):
    Path("there.jsonl").write_text("mine")
    code, _, said = restmcts("export", "sft", stored, "there.jsonl")
    assert (code, Path("there.jsonl").read_text()) == (2, "mine")
    assert "--force" in said
    assert restmcts("export", "sft", stored, "there.jsonl", "--force", "--limit", "2")[0] == 0
    assert len(list(read_jsonl("there.jsonl"))) == 2
    rows = (stored / "policy_rows.jsonl").read_text() + '{"problem_id": "broken"}\n'
    Path("rows.jsonl").write_text(rows)
    code, _, said = restmcts("export", "sft", "rows.jsonl", "new.jsonl")
    assert code == 2
    assert f"rows.jsonl, line {rows.count(chr(10))}" in said
    assert not Path("new.jsonl").exists()


# ---------------------------------------------------------------- what others published


def test_prm800k_with_its_alternatives(tmp_path):
    def step(*completions: tuple[str, int | None], chosen: int | None = 0, human: Any = None) -> dict[str, Any]:
        rated = [{"text": text, "rating": rating, "flagged": None} for text, rating in completions]
        return {"completions": rated, "human_completion": human, "chosen_completion": chosen}

    question = {"problem": "Q?", "ground_truth_answer": "3", "pre_generated_steps": ["a", "b", "c", "d"]}
    first = [step(("a", 1)), step(("b", -1), ("B", 0), chosen=1), step(("c", -1), ("C", -1), chosen=None)]
    human = [step(("a", -1), chosen=None, human={"text": "h", "rating": None}), step(("z", 1))]
    silent = [step(("a", None))]
    path = write(
        tmp_path / "p.jsonl",
        {"question": question, "label": {"steps": first, "finish_reason": "found_error"}},
        {"question": question, "label": {"steps": human, "finish_reason": "solution"}},
        {"question": question, "label": {"steps": silent, "finish_reason": "give_up"}},
        {"question": question, "label": {"steps": first, "finish_reason": "bad_problem"}},
    )
    found = [(r.steps, r.labels) for r in read("prm800k", path)]
    assert found == [
        (["a", "B"], [1.0, 1.0]),
        (["a", "b"], [None, 0.0]),
        (["a", "B", "c"], [None, None, 0.0]),
        (["a", "B", "C"], [None, None, 0.0]),
        (["h", "z"], [1.0, 1.0]),
        (["a"], [0.0]),
    ]
    assert next(r.labels for r in read("prm800k", path, neutral=0.5)) == [1.0, 0.5]
    way, wrong, *_ = read("prm800k", path, scale="progress")
    assert way.labels == pytest.approx([0.25, 0.5]), "of four steps that were generated"
    assert wrong.labels == [None, pytest.approx(wrong_values(1, 4, 1)[0])]
    assert way.problem_id == wrong.problem_id, "kept out of training together"


def test_math_shepherd_as_published(tmp_path):
    tagged = "Janet has 3. How many?\n\nStep 1: 3 + 0 = <<3+0=3>>3. ки\nStep 2: Step 2: so. The answer is: 3 ки"
    label = tagged.replace(" ки", " +", 1).replace(" ки", " -")
    path = write(tmp_path / "m.jsonl", {"input": tagged, "label": label, "task": "GSM8K"})
    (found,) = read("math-shepherd", path)
    assert found.question == "Janet has 3. How many?"
    assert found.steps == ["3 + 0 = <<3+0=3>>3.", "Step 2: so. The answer is: 3"]
    assert found.labels == [1.0, 0.0]


def test_processbench_ends_at_the_first_wrong_step(tmp_path):
    rows = [{"id": f"gsm8k-{i}", "problem": "Q?", "steps": ["a", "b", "c"], "label": i - 1} for i in range(4)]
    path = write(tmp_path / "b.jsonl", *rows)
    found = [(r.steps, r.labels) for r in read("processbench", path)]
    assert found == [
        (["a", "b", "c"], [1.0, 1.0, 1.0]),
        (["a"], [0.0]),
        (["a", "b"], [1.0, 0.0]),
        (["a", "b", "c"], [1.0, 1.0, 0.0]),
    ]
    right, _, wrong, _ = read("processbench", path, scale="progress")
    assert right.labels == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert wrong.labels == pytest.approx([1 / 3, wrong_values(1, 3, 1)[0]])


def test_stepwise_with_steps_that_nobody_judged(tmp_path):
    rows = [
        {"prompt": "Q?", "completions": ["a\n", "b"], "labels": [True, None]},
        {"prompt": "Q?", "completions": ["a"], "labels": [None]},
        {"prompt": "Q?", "completions": ["a"], "labels": [1]},
    ]
    path = write(tmp_path / "s.jsonl", *rows)
    assert [(r.steps, r.labels, r.r) for r in read("stepwise", path)] == [
        (["a", "b"], [1.0, None], [0.0, None]),
        (["a"], [1.0], [0.0]),
    ]


def test_progress_is_the_papers():
    assert progress([1.0] * 5, 5) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    for k in range(5):
        found = progress([1.0] * k + [0.0] * (5 - k), 5)
        assert found == pytest.approx([(i + 1) / 5 for i in range(k)] + wrong_values(k, 5, 5 - k))
    assert progress([1.0, None, 1.0], 3) == [pytest.approx(1 / 3), None, None]


# ---------------------------------------------------------------- what is wrong

GOOD = {
    "stepwise": {"prompt": "Q?", "completions": ["a"], "labels": [True]},
    "math-shepherd": {"input": "Q? Step 1: a ки", "label": "Q? Step 1: a +"},
    "processbench": {"problem": "Q?", "steps": ["a"], "label": 0},
    "reference-value": {"prompt_answer": "Problem:Q?\nSolution:\nStep 1: a\n", "label": 0.5},
    "prm800k": {
        "question": {"problem": "Q?"},
        "label": {"steps": [{"completions": [{"text": "a", "rating": 1}], "chosen_completion": 0}]},
    },
}
STEP = {"completions": [{"text": "a", "rating": 1}], "chosen_completion": 0}


@pytest.mark.parametrize(
    ("name", "bad", "says"),
    [
        ("stepwise", {"completions": "a"}, "completions = 'a'"),
        ("stepwise", {"completions": []}, "completions"),
        ("stepwise", {"labels": [True, False]}, "one for each step"),
        ("stepwise", {"labels": [2]}, "a label = 2"),
        ("stepwise", {"labels": ["+"]}, "a label = '+'"),
        ("stepwise", {"prompt": 3}, "prompt = 3"),
        ("math-shepherd", {"label": "Q? Step 1: b +"}, "differs from input before step 1"),
        ("math-shepherd", {"label": "Q? Step 1: a *"}, "it must be + or -"),
        ("math-shepherd", {"label": "Q? Step 1: a "}, "it must be + or -"),
        ("math-shepherd", {"label": "Q? Step 1: a"}, "differs from input before step 1"),
        ("math-shepherd", {"input": "a ки", "label": "a +"}, "no question before"),
        ("math-shepherd", {"input": None}, "input = None"),
        ("processbench", {"label": 1}, "label = 1"),
        ("processbench", {"steps": [1]}, "steps must be"),
        ("reference-value", {"prompt_answer": "Q? a"}, "it must read"),
        ("reference-value", {"label": 1.5}, "label = 1.5"),
        ("reference-value", {"label": float("nan")}, "label = nan"),
        ("prm800k", {"question": "Q?"}, "no question and label"),
        ("prm800k", {"label": {"steps": 3}}, "label.steps = 3"),
        ("prm800k", {"label": {"steps": [3]}}, "step 1: 3 is no object"),
        ("prm800k", {"label": {"steps": [{"completions": 3}]}}, "step 1: completions = 3"),
        ("prm800k", {"label": {"steps": [{**STEP, "chosen_completion": 1}]}}, "there are 1 completions"),
        ("prm800k", {"label": {"steps": [{**STEP, "chosen_completion": True}]}}, "chosen_completion = True"),
        ("prm800k", {"label": {"steps": [STEP, {"completions": [{"text": "b", "rating": 2}]}]}}, "step 2: rating = 2"),
        ("prm800k", {"label": {"steps": [{"completions": [{"rating": 1}]}]}}, "text = None"),
        ("prm800k", {"label": {"steps": [{"completions": [], "human_completion": 3}]}}, "human_completion = 3"),
    ],
)
def test_a_bad_row_is_one_line_with_its_place(restmcts, name, bad, says):
    write(Path("rows.jsonl"), GOOD[name], {**GOOD[name], **bad}, GOOD[name])
    code, out, err = restmcts("import", name, "rows.jsonl", "--out", "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: rows.jsonl:2")
    assert says in err
    assert not Path("out/value_rows.jsonl").exists()
    code, out, _ = restmcts("import", name, "rows.jsonl", "--out", "kept", "--skip-bad")
    assert code == 0
    assert "1 bad rows are left out, the first of them: rows.jsonl:2" in out
    assert len(read_rows(Path("kept/value_rows.jsonl"), ValueRow)) == 2


def test_junk_breaks_nothing(tmp_path):
    """Whatever stands where, a row is read, says nothing, or is a TaskError."""
    junk: list[Any] = [None, True, -1, 1e308, "", "ки", "Step 1:", [], [[]], [None], {}, {"text": []}, "x" * 10_000]
    rng = random.Random(1)

    def spoil(value: Any) -> Any:
        if rng.random() < 0.25:
            return rng.choice(junk)
        if isinstance(value, dict):
            return {k: spoil(v) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(v) for v in value]
        return value

    for name, good in GOOD.items():
        path = write(tmp_path / "junk.jsonl", *(spoil(good) for _ in range(300)), *({"a": x} for x in junk))
        rows = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join(row for row in rows if row.startswith("{")), encoding="utf-8")
        found = list(IMPORTS[name](str(path), ImportOptions()))
        assert {type(one) for one in found} >= {ValueRow, TaskError}, name
        for one in found:
            if isinstance(one, ValueRow):
                assert ValueRow.from_record(json.loads(json.dumps(one.to_record()))) == one


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("export", "stpwise", "label", "x.jsonl"), "did you mean 'stepwise'?"),
        (("export", "sft", "nowhere", "x.jsonl"), "no such file or folder: nowhere"),
        (("export", "sft", ".", "x.jsonl"), "holds no policy_rows.jsonl"),
        (("export", "sft", ".", "x.csv"), "end it with .jsonl or .parquet"),
        (("export", "stepwise", ".", "x.jsonl", "--threshold", "0"), "--threshold 0"),
        (("export", "rlhflow", ".", "x.jsonl", "--soft"), "hard labels only"),
        (("import", "rlhflow", "x.jsonl", "--out", "o"), "unknown format 'rlhflow'"),
        (("import", "stepwise", "x.jsonl", "--out", "o"), "no such file: x.jsonl"),
        (("import", "stepwise", "x.jsonl", "--out", "o", "--values", "v"), "--values 'v'"),
        (("import", "prm800k", "x.jsonl", "--out", "o", "--neutral", "2"), "--neutral 2"),
    ],
)
def test_what_cannot_be_is_one_line(restmcts, words, says):
    code, out, err = restmcts(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_an_import_is_a_stage(restmcts):
    """The same command again reads nothing; another source or other options are refused."""
    path = write(Path("rows.jsonl"), GOOD["stepwise"])
    assert restmcts("import", "stepwise", path, "--out", "out")[0] == 0
    code, said, _ = restmcts("import", "stepwise", path, "--out", "out")
    assert code == 0
    assert "nothing was read again" in said
    code, _, err = restmcts("import", "stepwise", path, "--out", "out", "--values", "progress")
    assert code == 2
    assert "scale" in err
    write(path, GOOD["stepwise"], GOOD["stepwise"])
    assert restmcts("import", "stepwise", path, "--out", "out")[0] == 2
    empty = write(Path("empty.jsonl"), {**GOOD["stepwise"], "labels": [None]})
    assert "says anything about a step" in restmcts("import", "stepwise", empty, "--out", "none")[2]


def test_imported_rows_train_a_value_model(restmcts, tiny_model_dir, one_thread):
    rows = [
        {
            "prompt": f"What is {i} + 1?",
            "completions": [f"{i} + 1 = {i + 1}", f"Answer: {i + 1}"],
            "labels": [True, i < 3],
        }
        for i in range(6)
    ]
    write(Path("rows.jsonl"), *rows)
    assert restmcts("import", "stepwise", "rows.jsonl", "--out", "rows")[0] == 0
    training = ("--base", tiny_model_dir, "--out", "value", "--set", "value_training.epochs=1", "-q")
    code, _, err = restmcts("train", "value", "rows", *training)
    assert code == 0, err
    assert json.loads(Path("value/manifest.json").read_text())["metrics"]["labelled_steps"] == 12
