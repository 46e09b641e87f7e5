"""Public question sets by name: where each is on the hub, how its columns are called, and by which rule it is graded.

A name may say more: `gsm8k@train` (another split), `ceval:high_school_physics` (another part), and
`scibench=atkins.json` (the user's own copy, read as that set). Without a copy named, one is looked for in the folder
that the environment variable RESTMCTS_DATA names: `<name>_<split>.jsonl` or `<name>.jsonl` (or .json, .csv, .parquet).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restmcts.tasks.sources import READERS, Row, read_hub, read_rows

FOLDER = "RESTMCTS_DATA"
"""Environment variable: a folder with the user's copies of question sets."""


def _always(row: Mapping[str, Any]) -> bool:
    return True


def _without_picture(row: Mapping[str, Any]) -> bool:
    return not (row.get("Picture") or row.get("has_picture") in (True, "True", "true"))


def _solvable(row: Mapping[str, Any]) -> bool:
    return bool(row.get("solvable", True))


def _with_answer(row: Mapping[str, Any]) -> bool:
    return bool(row.get("answer"))


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """A public set. `config` "*" means all its parts; `fields` are its own column names; `keep` leaves rows out."""

    about: str
    task: str
    hub: str
    split: str
    licence: str
    config: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    keep: Callable[[Mapping[str, Any]], bool] = _always


SETS: dict[str, QuestionSet] = {
    "gsm8k": QuestionSet("grade-school word problems", "numeric", "openai/gsm8k", "test", "MIT", "main"),
    "svamp": QuestionSet(
        "word problems with changed wording",
        "numeric",
        "ChilleD/SVAMP",
        "test",
        "MIT",
        fields={"question": "question_concat", "answer": "Answer", "id": "ID"},
    ),
    "gsm-hard": QuestionSet(
        "GSM8K with large numbers",
        "numeric",
        "reasoning-machines/gsm-hard",
        "train",
        "MIT",
        fields={"question": "input", "answer": "target"},
    ),
    "math": QuestionSet("competition mathematics", "math", "EleutherAI/hendrycks_math", "test", "MIT, disputed", "*"),
    "math500": QuestionSet("500 problems of MATH", "math", "HuggingFaceH4/MATH-500", "test", "MIT, disputed"),
    "scibench": QuestionSet(
        "college science with units",
        "scibench",
        "xw27/scibench",
        "train",
        "MIT; problems from textbooks",
        fields={"question": "problem_text", "answer": "answer_number"},
    ),
    "theoremqa": QuestionSet(
        "questions on theorems; those that need a picture are left out",
        "theoremqa",
        "TIGER-Lab/TheoremQA",
        "test",
        "MIT",
        fields={"question": "Question", "answer": "Answer"},
        keep=_without_picture,
    ),
    "gpqa": QuestionSet(
        "graduate science, four options; asks for your agreement on the hub",
        "choice",
        "Idavidrein/gpqa",
        "train",
        "CC BY 4.0",
        "gpqa_diamond",
        {"question": "Question", "answer": "Correct Answer", "id": "Record ID"},
    ),
    "ceval": QuestionSet(
        "Chinese exams, 52 subjects; the split with known answers",
        "choice",
        "ceval/ceval-exam",
        "val",
        "CC BY-NC-SA 4.0",
        "*",
    ),
    "scieval": QuestionSet(
        "science, mostly four options; rows without an answer are left out",
        "choice",
        "OpenDFM/SciEval",
        "validation",
        "see its page",
        keep=_with_answer,
    ),
    "aime": QuestionSet("AIME 2022 to 2024", "numeric", "AI-MO/aimo-validation-aime", "train", "Apache-2.0"),
    "game24": QuestionSet("four numbers to 24", "game24", "nlile/24-game", "train", "Apache-2.0", keep=_solvable),
    "countdown": QuestionSet(
        "three or four numbers to a target", "countdown", "Jiayi-Pan/Countdown-Tasks-3to4", "train", "see its page"
    ),
}

_NAME = re.compile(r"(?P<name>[\w-]+)(?::(?P<config>[^@=\s]+))?(?:@(?P<split>[^=\s]+))?(?:=(?P<path>.+))?")
_OTHER_NAMES = {"math-500": "math500", "gsmhard": "gsm-hard", "c-eval": "ceval", "game-of-24": "game24"}


@dataclass(frozen=True, slots=True)
class Named:
    """A question set that somebody asked for by name."""

    name: str
    set: QuestionSet
    config: str | None
    split: str | None
    path: str | None

    def rows(self) -> Iterator[Row]:
        """Its rows, each with an id, from the copy named, a copy in RESTMCTS_DATA, or the hub. Raises TaskError."""
        number = 0
        for where, row in self._all_rows():
            if self.set.keep(row):
                number += 1
                own = next((row[c] for c in ("id", self.set.fields.get("id", "id"), "unique_id") if row.get(c)), None)
                yield where, {**row, "id": own or f"{self.name}-{number}"}

    def _all_rows(self) -> Iterator[Row]:
        copy = self.path or self._copy()
        if copy is not None:
            return read_rows(Path(copy))
        return read_hub(self.set.hub, self.config or self.set.config, self.split or self.set.split)

    def _copy(self) -> Path | None:
        """The user's copy in the folder that RESTMCTS_DATA names, if there is one."""
        folder = os.environ.get(FOLDER)
        if not folder:
            return None
        parts = [self.name, *([self.config] if self.config else [])]
        stems = ["_".join([*parts, self.split or self.set.split]), *([] if self.split else ["_".join(parts)])]
        spellings = [spelling for stem in stems for spelling in dict.fromkeys((stem, stem.replace("-", "_")))]
        files = (Path(folder) / f"{stem}{kind}" for stem in spellings for kind in READERS)
        return next((file for file in files if file.is_file()), None)


def set_name(name: str) -> str | None:
    """The name in `SETS` that `name` is, however it is spelt; None if it is none."""
    plain = name.casefold().replace("_", "-")
    plain = _OTHER_NAMES.get(plain, plain)
    return plain if plain in SETS else None


def find_set(source: str | Path) -> Named | None:
    """The set that `source` names; None where it is a file or anything else."""
    match = _NAME.fullmatch(str(source))
    if match is None or isinstance(source, Path) or Path(source).exists():
        return None
    name = set_name(match["name"])
    return None if name is None else Named(name, SETS[name], match["config"], match["split"], match["path"])
