"""Rows of a question set -> problems, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from restmcts.errors import TaskError
from restmcts.files import write_jsonl
from restmcts.tasks import Task, get_task
from restmcts.tasks.answers import find_answer
from restmcts.tasks.questions import content_id, normal_question
from restmcts.tasks.sets import find_set
from restmcts.tasks.sources import kind_of, read_rows
from restmcts.types import Problem

__all__ = ["COLUMNS", "disjoint", "load_problems", "problem_record", "write_problems"]

COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id", "unique_id", "problem_id", "question_id"),
    "question": ("question", "problem", "content", "prompt", "query"),
    "answer": ("answer", "final_answer", "expected_answer", "gold", "target"),
    "solution": ("solution", "rationale", "reasoning", "steps"),
    "task": ("task",),
}
"""What a problem is made of, and the columns recognised for it; the first that is there is taken."""

_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_HASHES = re.compile(r"^[ \t]*####[ \t]*(.+?)[ \t]*$", re.MULTILINE)


def load_problems(
    source: str | Path,
    *,
    fields: Mapping[str, str] | None = None,
    task: str | None = None,
    need_answer: bool = True,
    limit: int | None = None,
) -> list[Problem]:
    """Read problems from a JSONL, JSON, CSV, TSV or Parquet file, a hub data set `name[:config][@split]`, or a public
    set by its name alone (`sets.SETS`), which brings its own columns and task.

    Columns are recognised by name (`COLUMNS`) or named by `fields`, e.g. {"question": "prompt", "answer": "target"};
    columns that mean nothing here are kept in `Problem.extra`. A GSM8K answer ("steps … #### 42") is split into
    solution and answer; where there is no answer, the one marked in the solution is taken (MATH's `\\boxed{…}`).
    A row's own `task` goes before `task`, and `task` before that of the set; without any of them it is "math".

    Rows without an id get one made from the question. Among them, a question met again with the same answer is left
    out. `limit` takes the first so many.

    Raises TaskError, with the place and the remedy, for a source that cannot be read or holds no problems, a malformed
    row, a row without a question (or without an answer, when one is needed), an id used twice, a question met again
    with another answer, and an unknown task or field.
    """
    if limit is not None and limit < 1:
        raise TaskError(f"limit={limit} leaves no problems; give 1 or more, or leave it out")
    named = find_set(source)
    columns = _columns({**named.set.fields, **(fields or {})} if named else fields or {}, named is not None)
    task = task or (named.set.task if named else "math")
    get_task(task)
    problems: dict[str, Problem] = {}
    places: dict[str, str] = {}
    for where, row in named.rows() if named else read_rows(source):
        problem, own_id = _problem(row, where, columns, task, need_answer)
        if problem.id not in problems:
            problems[problem.id] = problem
            places[problem.id] = where
        elif own_id:
            raise TaskError(f"{where}: id {problem.id!r} is that of {places[problem.id]} too; ids must differ")
        elif problem.answer != problems[problem.id].answer:
            raise TaskError(f"{where}: the question of {places[problem.id]} with another answer; remove one of them")
        if len(problems) == limit:
            break
    if not problems:
        raise TaskError(f"{source} holds no problems; give at least one row with a question")
    return list(problems.values())


def write_problems(path: str | Path, problems: Iterable[Problem]) -> None:
    """Write problems as JSONL, whole or not at all; `load_problems` reads them back. Raises StoreError."""
    write_jsonl(Path(path), map(problem_record, problems))


def problem_record(problem: Problem) -> dict[str, Any]:
    """A problem as one JSON-ready row."""
    record = {name: getattr(problem, name) for name in ("id", "question", "answer", "solution", "task")}
    return record | ({"extra": dict(problem.extra)} if problem.extra else {})


def disjoint(train: Sequence[Problem], heldout: Sequence[Problem]) -> tuple[list[Problem], list[Problem]]:
    """`train` without the questions of `heldout`, and those left out; what is equal says `normal_question`."""
    known = {normal_question(problem.question) for problem in heldout}
    kept: list[Problem] = []
    dropped: list[Problem] = []
    for problem in train:
        (dropped if normal_question(problem.question) in known else kept).append(problem)
    return kept, dropped


# ---------------------------------------------------------------- one row


def _columns(fields: Mapping[str, str], usual: bool = False) -> dict[str, tuple[str, ...]]:
    """`COLUMNS` with other names in place of the recognised ones; with `usual`, before them."""
    for name in fields:
        if name not in COLUMNS:
            near = get_close_matches(name, COLUMNS, n=1, cutoff=0.0)
            raise TaskError(
                f"fields names {name!r}, which no problem has; nearest is {near[0]!r}: {', '.join(COLUMNS)}"
            )
    return COLUMNS | {name: (column, *(COLUMNS[name] if usual else ())) for name, column in fields.items()}


def _problem(
    row: Mapping[str, Any], where: str, columns: Mapping[str, tuple[str, ...]], task: str, need_answer: bool
) -> tuple[Problem, bool]:
    """The problem of a row, and whether its id is its own."""
    used = {name: next((c for c in names if row.get(c) is not None), None) for name, names in columns.items()}
    own = {name: row[column] for name, column in used.items() if column is not None}
    problem_task = _task(_cell(own["task"], "task", where) or task if "task" in own else task, where)
    try:
        read = problem_task.read_row({column: row[column] for column in row if column not in columns} | own)
    except TaskError as error:
        raise TaskError(f"{where}: {error}") from None
    cells = {
        name: _cell(read[name], column or name, where) if read.get(name) is not None else None
        for name, column in used.items()
    }
    question = cells["question"]
    if question is None:
        raise TaskError(
            f"{where}: no question; name its column with fields.question (columns: {', '.join(row) or '-'})"
        )
    if not question.strip():
        raise TaskError(f"{where}: the question is blank; fill it in or remove the row")
    answer, solution = _answer(cells["answer"], cells["solution"], problem_task)
    if need_answer and answer is None:
        raise TaskError(f"{where}: no answer, and one is needed; add it, or name its column with fields.answer")
    extra = {column: value for column, value in row.items() if column not in used.values() and _is_plain(value)}
    own_extra = row.get("extra")
    if isinstance(own_extra, Mapping):
        extra.pop("extra", None)
        extra |= {column: value for column, value in own_extra.items() if _is_plain(value)}
    own_id = (cells["id"] or "").strip()
    problem = Problem(own_id or content_id(question), question, answer, solution, problem_task.name, extra)
    return problem, bool(own_id)


def _is_plain(value: Any, depth: int = 20) -> bool:
    """Whether a run can store `value` as JSON (pictures, dates and bytes of a Parquet file it cannot)."""
    if isinstance(value, (list, dict)):
        inner = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(v is None or _is_plain(v, depth - 1) for v in inner)
    return isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def _cell(value: Any, column: str, where: str) -> str:
    """A cell as text: text, a number, a truth value, or for a list of steps one line each."""
    if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
        return "\n".join(line.strip() for line in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise TaskError(f"{where}: {column} is {value}; give a finite number or text")
    if not isinstance(value, (str, int, float)):
        raise TaskError(f"{where}: {column} is {kind_of(value)}; give text or a number")
    text = str(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise TaskError(f"{where}: {column} has half a surrogate pair; write whole characters") from None
    if "\0" in text:
        raise TaskError(f"{where}: {column} has a null byte; remove it")
    return text


def _task(name: str, where: str) -> Task:
    try:
        return get_task(name)
    except TaskError as error:
        raise TaskError(f"{where}: {error}") from None


def _answer(answer: str | None, solution: str | None, task: Task) -> tuple[str | None, str | None]:
    """Answer and solution, taken apart where a data set has them in one."""
    if answer is not None and _HASHES.search(answer):
        answer, solution = _gsm8k(answer, solution)
    elif answer is not None and "\\boxed" in answer:
        found = find_answer(answer)
        solution = answer if solution is None and "\n" in answer else solution
        answer = found or answer
    elif (answer is None or not answer.strip()) and solution is not None:
        if _HASHES.search(solution):
            answer, solution = _gsm8k(solution, None)
        else:
            answer = task.find_answer(solution)
    return (answer or "").strip() or None, (solution or "").strip() or None


def _gsm8k(text: str, solution: str | None) -> tuple[str, str | None]:
    """ "steps … #### 42" -> "42", and the steps with "Answer: 42" at their end unless there is a solution."""
    mark = list(_HASHES.finditer(text))[-1]
    steps = _ANNOTATION.sub("", text[: mark.start()]).strip()
    if solution is None and steps:
        solution = f"{steps}\nAnswer: {mark[1]}"
    return mark[1], solution
