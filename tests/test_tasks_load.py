"""Reading problems: what is understood, and one clear line for what is not."""

from __future__ import annotations

import csv
import json
import sys
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restmcts.errors import TaskError
from restmcts.tasks.load import disjoint, load_problems, write_problems
from restmcts.tasks.questions import content_id
from restmcts.types import Problem

ROWS = [{"question": "1 + 1?", "answer": "2"}, {"question": "2 + 2?", "answer": "4"}]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def expected(rows=ROWS):
    return [Problem(content_id(row["question"]), row["question"], row["answer"]) for row in rows]


# ---------------------------------------------------------------- kinds of sources


def test_jsonl(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(map(json.dumps, ROWS)).encode() + b"\r\n")
    assert load_problems(path) == load_problems(str(path)) == expected()


@pytest.mark.parametrize("value", [ROWS, {"data": ROWS}, {"version": 1, "problems": ROWS}])
def test_json(tmp_path, value):
    path = tmp_path / "set.json"
    path.write_text(json.dumps(value, indent=1))
    assert load_problems(path) == expected()


@pytest.mark.parametrize(("name", "delimiter"), [("set.csv", ","), ("set.tsv", "\t")])
def test_csv(tmp_path, name, delimiter):
    rows = [{"question": 'A, "b"\nand c?', "answer": "2", "level": ""}, {"question": "d?", "answer": "4", "level": "3"}]
    with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    first, second = load_problems(tmp_path / name)
    assert (first.question, first.answer, first.extra) == ('A, "b"\nand c?', "2", {})
    assert (second.question, second.answer, second.extra) == ("d?", "4", {"level": "3"})


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [row | {"level": 3, "picture": b"\x00"} for row in ROWS]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "set.parquet")
    problems = load_problems(tmp_path / "set.parquet")
    assert [(p.question, p.answer, p.extra) for p in problems] == [
        (r["question"], r["answer"], {"level": 3}) for r in ROWS
    ]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(TaskError, match=r"bad\.parquet is not a readable Parquet file"):
        load_problems(tmp_path / "bad.parquet")


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("openai/gsm8k:main@test", ("openai/gsm8k", "main", "test")),
        ("openai/gsm8k:main", ("openai/gsm8k", "main", "train")),
        ("someone/set@train[:10]", ("someone/set", None, "train[:10]")),
        ("other", ("other", None, "train")),
    ],
)
def test_hub(monkeypatch, source, asked):
    library = ModuleType("datasets")
    library.load_dataset = lambda name, config, split: ROWS if (name, config, split) == asked else 1 / 0
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert load_problems(source) == expected()


def test_a_hub_that_cannot_be_reached(monkeypatch):
    def unreachable(name, config, split):
        raise ConnectionError(f"Couldn't reach {name!r} on the Hub\nmore\nlines")

    library = ModuleType("datasets")
    library.load_dataset = unreachable
    monkeypatch.setitem(sys.modules, "datasets", library)
    with pytest.raises(
        TaskError, match=r"^some/set@train is neither a file nor .*Couldn't reach 'some/set'.*$"
    ) as caught:
        load_problems("some/set")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskError, match="pip install"):
        load_problems("some/set")


# ---------------------------------------------------------------- kinds of rows


@pytest.mark.parametrize("question", ["question", "problem", "content", "prompt"])
@pytest.mark.parametrize("answer", ["answer", "final_answer", "target"])
def test_usual_names_are_recognised(tmp_path, question, answer):
    path = jsonl(tmp_path / "set.jsonl", [{question: "1 + 1?", answer: 2}])
    assert load_problems(path) == expected(ROWS[:1])


def test_other_names_are_mapped(tmp_path):
    path = jsonl(tmp_path / "set.jsonl", [{"q": "1 + 1?", "a": "2", "answer": "not this", "key": 7, "how": "think"}])
    fields = {"question": "q", "answer": "a", "id": "key", "solution": "how"}
    (problem,) = load_problems(path, fields=fields, task="exact")
    assert problem == Problem("7", "1 + 1?", "2", "think", "exact", {"answer": "not this"})


def test_gsm8k(tmp_path):
    answer = "She has 3 * 4 = <<3*4=12>>12 eggs.\nThat is 12 + 30 = <<12+30=42>>42 in all.\n#### 42"
    path = jsonl(tmp_path / "set.jsonl", [{"question": "How many?", "answer": answer}])
    (problem,) = load_problems(path)
    assert problem.answer == "42"
    assert problem.solution == "She has 3 * 4 = 12 eggs.\nThat is 12 + 30 = 42 in all.\nAnswer: 42"


def test_math(tmp_path):
    solution = "We add.\nSo it is $\\boxed{\\frac{1}{2}}$."
    rows = [
        {"problem": "a?", "solution": solution, "level": "Level 1"},
        {"problem": "b?", "answer": "\\boxed{7}"},
        {"problem": "c?", "answer": solution},
        {"problem": "d?", "solution": "3 + 4 = 7\n#### 7"},
        {"problem": "e?", "answer": "5", "solution": ["2 + 3 = 5", "Answer: 5"]},
    ]
    a, b, c, d, e = load_problems(jsonl(tmp_path / "set.jsonl", rows))
    assert (a.answer, a.solution, a.extra) == ("\\frac{1}{2}", solution, {"level": "Level 1"})
    assert (b.answer, b.solution) == ("7", None)
    assert (c.answer, c.solution) == ("\\frac{1}{2}", solution)
    assert (d.answer, d.solution) == ("7", "3 + 4 = 7\nAnswer: 7")
    assert (e.answer, e.solution) == ("5", "2 + 3 = 5\nAnswer: 5")


def test_answers_may_be_numbers_and_may_be_missing(tmp_path):
    rows = [{"question": "a", "answer": 5}, {"question": "b", "answer": 0.5}, {"question": "c", "answer": None}]
    path = jsonl(tmp_path / "set.jsonl", rows)
    assert [p.answer for p in load_problems(path, need_answer=False)] == ["5", "0.5", None]
    assert [p.answer for p in load_problems(path, limit=2)] == ["5", "0.5"]


def test_ids_depend_on_the_question_alone(tmp_path):
    path = jsonl(tmp_path / "set.jsonl", ROWS)
    reverse = jsonl(tmp_path / "reverse.jsonl", [*ROWS[::-1], ROWS[0]])  # one question twice, and the same answer
    assert load_problems(path) == load_problems(reverse)[::-1]


def test_written_problems_are_read_back(tmp_path):
    problems = [
        Problem("a", "What is\n“1½”\u2028?", "3/2", "1 + 1/2 = 3/2\nAnswer: 3/2", "numeric", {"family": "x", "n": 3}),
        Problem("b", "No answer", task="exact"),
    ]
    write_problems(tmp_path / "set.jsonl", problems)
    assert load_problems(tmp_path / "set.jsonl", need_answer=False) == problems


plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(plain, plain.filter(lambda a: "#" not in a and "\\" not in a)), min_size=1, max_size=5))
def test_any_text_survives(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("sets") / "set.jsonl"
    problems = [Problem(f"{i}", question, answer.strip()) for i, (question, answer) in enumerate(pairs)]
    write_problems(path, problems)
    assert load_problems(path) == problems


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"question": "x", "answer": "1"}\n{"question": \n',
            r"a\.jsonl:2: not JSON .* mend or remove the line",
        ),
        ("a.jsonl", b'{"question": "x", "answer": "1"}\n[1]\n', r"a\.jsonl:2: a list, not an object"),
        ("a.jsonl", b'{"question": "x"}\n', r"a\.jsonl:1: no answer, and one is needed"),
        ("a.jsonl", b'{"question": "x", "answer": " "}\n', r"a\.jsonl:1: no answer, and one is needed"),
        ("a.jsonl", b'{"text": "x", "answer": "1"}\n', r"a\.jsonl:1: no question; .* \(columns: text, answer\)"),
        ("a.jsonl", b'{"question": " ", "answer": "1"}\n', r"a\.jsonl:1: the question is blank"),
        (
            "a.jsonl",
            b'{"question": {"a": 1}, "answer": "1"}\n',
            r"a\.jsonl:1: question is an object; give text or a number",
        ),
        ("a.jsonl", b'{"question": "x", "answer": [1, 2]}\n', r"a\.jsonl:1: answer is a list"),
        ("a.jsonl", b'{"question": "x", "answer": NaN}\n', r"a\.jsonl:1: answer is nan"),
        ("a.jsonl", b'{"question": "x", "answer": "\\ud800"}\n', r"a\.jsonl:1: answer has half a surrogate pair"),
        ("a.jsonl", b'{"question": "x", "answer": "\\u0000"}\n', r"a\.jsonl:1: answer has a null byte"),
        (
            "a.jsonl",
            b'{"question": "x", "answer": "1", "task": "mth"}\n',
            r"a\.jsonl:1: no task is called 'mth'; nearest is 'math'",
        ),
        ("a.jsonl", b'{"question": "x", "answer": "1"}\n{"question": "\xff"}\n', r"a\.jsonl:2: not UTF-8"),
        ("a.jsonl", b'{"question": "x", "answer": "1"}\n\x00\n', r"a\.jsonl:2: a null byte"),
        ("a.jsonl", b"[" * 100_000 + b"\n", r"a\.jsonl:1: JSON that cannot be read"),
        ("a.jsonl", b'{"answer": ' + b"9" * 5000 + b"}\n", r"a\.jsonl:1: JSON that cannot be read"),
        (
            "a.jsonl",
            b'{"id": 1, "question": "x", "answer": "1"}\n' * 2,
            r"a\.jsonl:2: id '1' is that of .*a\.jsonl:1 too",
        ),
        (
            "a.jsonl",
            b'{"question": "x", "answer": "1"}\n{"question": "X", "answer": "2"}\n',
            r"a\.jsonl:2: the question of .*a\.jsonl:1 with another answer",
        ),
        ("a.jsonl", b"", r"a\.jsonl holds no problems"),
        ("a.jsonl", b"\n \n", r"a\.jsonl holds no problems"),
        ("a.json", b'[{"question": "x", "answer": "1"},\n {"question": }]', r"a\.json:2: not JSON"),
        ("a.json", b'[{"question": "x", "answer": "1"}, 5]', r"a\.json, item 2: a number, not an object"),
        ("a.json", b'{"question": "x"}', r"a\.json holds one object"),
        ("a.json", b"5", r"a\.json holds a number"),
        ("a.json", b"\n\n\xff", r"a\.json:3: not UTF-8"),
        ("a.csv", b"question,answer\nx,1\ny,2,3\n", r"a\.csv:3: 3 cells where the header has 2"),
        ("a.csv", b"question,answer\nx,\n", r"a\.csv:2: no answer"),
        ("a.csv", b'question,answer\n"a\nb",1\n"x,2\n', r"a\.csv:\d: broken row"),
        ("a.csv", b"answer,answer\n1,2\n", r"a\.csv:1: two columns have one name"),
        ("a.csv", b"question,answer\n", r"a\.csv holds no problems"),
        ("a.txt", b"hello", r"a\.txt is of no known kind; give \.jsonl, \.json"),
    ],
)
def test_bad_files_are_named_with_line_and_remedy(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=message) as caught:
        load_problems(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere/set.jsonl", {}, "no such file: nowhere/set.jsonl"),
        ("./nowhere", {}, "no such file"),
        ("with space", {}, "no such file"),
        (".", {}, "is a folder"),
        ("x.jsonl", {"limit": 0}, "limit=0 leaves no problems"),
        ("x.jsonl", {"fields": {"questoin": "q"}}, "fields names 'questoin', .* nearest is 'question'"),
        ("x.jsonl", {"task": "maths"}, "no task is called 'maths'; nearest is 'math'"),
    ],
)
def test_bad_requests(source, options, message):
    with pytest.raises(TaskError, match=message):
        load_problems(source, **options)


def test_disjoint():
    train = [Problem("1", "What is 1,000 + 1?"), Problem("2", "What is 2 + 2?"), Problem("3", "what is  1000+1")]
    heldout = [Problem("x", "WHAT IS 1000 + 1 ?")]
    kept, dropped = disjoint(train, heldout)
    assert [problem.id for problem in kept] == ["2"]
    assert [problem.id for problem in dropped] == ["1", "3"]
    assert disjoint(train, []) == (train, [])


@pytest.mark.parametrize(
    ("name", "count"),
    [("gsm8k_train", 5000), ("gsm8k_test", 1319), ("math500", 500), ("svamp", 1000), ("theoremqa", 800)],
)
def test_public_sets(shared_data, name, count):
    problems = load_problems(shared_data / f"{name}.jsonl")
    assert len(problems) == count
    assert all(problem.question and problem.answer for problem in problems)
