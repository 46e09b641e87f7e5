"""Who says which leaves are right: the oracle, the tree's own consensus, or a judge, which is a stage of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from restmcts.datasets import verify
from restmcts.evaluate import TREES, search_all, stored_trees
from restmcts.job import Job, OpenOnDemand
from restmcts.metrics import auc
from restmcts.pseudo import by_judge, by_majority, one_for_each_answer, quality, searched_leaves
from restmcts.search import SearchSettings
from restmcts.sections import JudgeSettings
from restmcts.store import StageFolder, read_jsonl, write_jsonl
from restmcts.tasks.judge import judge_problem, mean_score
from restmcts.types import Problem, Tree

SCORES = "scores.jsonl"


def verdicts(job: Job, folder: Path, trees: Sequence[Tree]) -> tuple[list[list[bool | None]], dict[str, Any] | None]:
    """Which leaves of the trees of a search are right, by `labels.source`, and how good that is.

    The second is None for the oracle, and where there are no known answers to compare with; it has no other use.
    """
    source, confidence = job.config.labels.source, job.config.labels.confidence
    if source == "oracle":
        return verify(trees, job.grader), None
    if source == "majority":
        made = [by_majority(tree, confidence) for tree in trees]
    else:
        scores = read_scores(folder.parent / "judge")
        made = [by_judge(tree, scores, confidence) for tree in trees]
    known = all(tree.problem.answer is not None for tree in trees)
    return made, quality(made, verify(trees, job.grader)) if known else None


def judge(job: Job, k: int, folder: Path, questions: Sequence[Problem], policy: str | Path, *, every: bool) -> Path:
    """Have solutions of round k's trees judged: every finished one, or one for each answer. Returns the stage's folder.

    The judge is `judge.model`, or the policy itself.
    """
    judging = policy if job.config.judge.model is None else job.config.judge.model
    settings = _votes(job.config.judge)

    def work(stage: StageFolder) -> dict[str, Any]:
        problems, asked = _questions(trees_in_order(folder, questions), every=every)
        account = job.account(stage)
        scores: dict[str, float | None] = {}
        with OpenOnDemand(lambda: job.tools.load_engines(judging, None, ())) as engines:
            found = search_all(
                problems,
                settings.method,
                settings,
                engines(),
                grader=job.grader,
                seed=job.seed("round", k, "judge"),
                concurrency=job.config.engine.concurrency,
                path=stage.path / TREES,
                each=lambda tree: scores.update({tree.problem.id: mean_score(tree)}),
                on_tree=job.watch(stage, len(problems), account),
                account=account,
            )
            kind = engines().kind
        records = [
            {"id": tree.problem.id, "leaf": leaf, "score": scores.get(name)} for name, (tree, leaf) in asked.items()
        ]
        write_jsonl(stage.path / SCORES, records)
        return {
            "judged": len(problems),
            "unread": sum(record["score"] is None for record in records),
            **_agreement(job, asked, scores),
            **found.summary(),
            "engine": kind,
            "speed": account.speed(),
        }

    return job.stage(
        f"round-{k}/judge",
        "judge",
        k,
        work,
        settings={
            "search": settings.model_dump(mode="json"),
            "every": every,
            **job.config.prompting(),
            "seed": job.config.seed,
        },
        inputs={"trees": folder, "judge": judging},
    )


def _votes(options: JudgeSettings) -> SearchSettings:
    """A judge's votes are the samples of a search."""
    return SearchSettings(
        method="sample",
        samples=options.votes,
        temperature=options.temperature,
        step_tokens=options.line_tokens,
        max_depth=options.lines,
    )


def _questions(trees: Sequence[Tree], *, every: bool) -> tuple[list[Problem], dict[str, tuple[Tree, int]]]:
    """What the judge is asked, and by its id which leaf of which tree is meant."""
    problems: list[Problem] = []
    asked: dict[str, tuple[Tree, int]] = {}
    for tree in trees:
        for leaf in searched_leaves(tree) if every else one_for_each_answer(tree):
            problems.append(judge_problem(tree.problem, [step.text for step in tree.path(leaf)], str(leaf)))
            asked[problems[-1].id] = tree, leaf
    return problems, asked


def trees_in_order(folder: Path, questions: Sequence[Problem]) -> list[Tree]:
    """The trees of a search in the order of its questions; those left unasked by a budget have none."""
    stored = stored_trees(folder / TREES, questions)
    return [stored[problem.id] for problem in questions if problem.id in stored]


def read_scores(folder: Path) -> dict[tuple[str, int], float]:
    """What the judge said, in [0, 1], of (problem id, leaf); solutions without a readable verdict are left out."""
    records = read_jsonl(folder / SCORES)
    return {(record["id"], record["leaf"]): record["score"] for record in records if record["score"] is not None}


def _agreement(job: Job, asked: dict[str, tuple[Tree, int]], scores: dict[str, float | None]) -> dict[str, Any]:
    """How the judge's scores fit the known answers, where these are known: the chance that right scores above wrong."""
    trees = {id(tree): tree for tree, _ in asked.values()}
    if not trees or any(tree.problem.answer is None for tree in trees.values()):
        return {}
    flags = dict(zip(trees, verify(list(trees.values()), job.grader), strict=True))
    pairs = [
        (s, bool(flags[id(tree)][leaf])) for name, (tree, leaf) in asked.items() if (s := scores.get(name)) is not None
    ]
    return {"auc": auc([score for score, _ in pairs], [right for _, right in pairs]) if pairs else None}
