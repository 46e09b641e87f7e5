"""One tree as the page draws it: its columns, its labels, and what the policy was asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from restmcts.datasets import Grader, label_trees, verify
from restmcts.encoding import PromptSettings, chat_turns, plain_prompt, shown_examples
from restmcts.errors import RestmctsError
from restmcts.types import Problem, Tree
from restmcts.view.sets import TreeSet, read_questions

_LABELS = ("correct", "m", "r", "w", "v")
_COLUMNS = "parent text status answer reason origin iteration copies logprob raw_value value visits".split()


def tree_detail(
    tree: Tree, labels: Mapping[str, Any] | None, tree_set: TreeSet, out: Path, grader: Grader
) -> dict[str, Any]:
    """Everything the page shows of one tree, JSON-ready.

    `labels` are those of the run; where it made none, they are inferred here by the usual rule, from answers graded as
    the run grades them. `labels_from` says which: run, here, or null for a question without a known answer.
    """
    source = "run" if labels is not None else None
    if labels is None and tree.problem.answer is not None:
        labels, source = infer_labels(tree, grader), "here"
    absent = [None] * len(tree)
    return {
        "id": tree.problem.id,
        "question": tree.problem.question,
        "gold": tree.problem.answer,
        "solution": tree.problem.solution,
        "method": tree.method,
        "settings": tree.settings,
        "models": tree.models,
        "stop": tree.stop,
        "result": tree.result,
        "final_answer": tree.final_answer,
        "failures": tree.failures[:20],
        "usage": asdict(tree.usage),
        "nodes": {
            **{name: getattr(tree, name) for name in _COLUMNS},
            "tokens": [None if ids is None else len(ids) for ids in tree.ids],
            **{name: absent if labels is None else labels[name] for name in _LABELS},
        },
        "labels_from": source,
        "prompt": prompt_of(tree_set, tree.problem, out),
    }


def infer_labels(tree: Tree, grader: Grader) -> dict[str, Any] | None:
    """Labels of a tree that has none; None when its answers cannot be graded."""
    try:
        return asdict(label_trees([tree], verify([tree], grader))[0])
    except (RestmctsError, ValueError):
        return None


def prompt_of(tree_set: TreeSet, problem: Problem, out: Path) -> list[dict[str, str]] | None:
    """What the policy was given before the steps: turns of a chat, or one text (role: text).

    None where the stage does not say. A chat template adds its own marks around the turns.
    """
    found = tree_set.settings.get("prompt")
    if not isinstance(found, dict):
        return None
    try:
        prompt = PromptSettings(**found)
        count = int(tree_set.settings.get("examples") or 0)
        worked = read_questions(out, "worked.jsonl")[:count] if count else []
        examples = shown_examples(
            prompt, [Problem(row["id"], row["question"], solution=row["solution"]) for row in worked]
        )
        if prompt.chat:
            return chat_turns(prompt, examples, problem)
        return [{"role": "text", "content": plain_prompt(prompt, examples, problem)}]
    except (ValidationError, RestmctsError, KeyError, TypeError, ValueError):
        return None
