"""`restmcts compare`: the greedy answers first, which say what a budget is, then all arms, then the report."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from restmcts import commands
from restmcts.account import Account
from restmcts.compare import plan as planning
from restmcts.compare import report, results
from restmcts.compare.answer import ROWS, CostLog, Row, answer_all, read_cost, read_rows
from restmcts.compare.plan import GREEDY, Arm, Key, Plan
from restmcts.config import RunConfig, dump_yaml
from restmcts.console import Progress
from restmcts.errors import TaskError
from restmcts.evaluate import greedy
from restmcts.evaluate import read_rows as read_evaluation
from restmcts.job import Job, OpenOnDemand, models_and_files
from restmcts.loop import ModelTools
from restmcts.results import CONFIG
from restmcts.store import RunFolder, StageFolder, write_atomic
from restmcts.tables import Table
from restmcts.tasks.grade import Grader
from restmcts.types import Problem, Usage

COST = "cost.jsonl"


def compare_methods(config: RunConfig, out: Path, progress: Progress) -> list[Table]:
    """Do or resume the comparison that `config.compare` describes; returns the tables of its report.

    Arms, budgets and seeds can be added by later calls: what is answered stays answered.
    """
    arms = planning.arms(config.compare, config.search)
    for one, other in itertools.combinations(arms, 2):
        if one.identity() == other.identity() and one.fixed == other.fixed:
            progress.say(f"{one.name} and {other.name} are the same with these settings")
    problems = commands.problems_of(config, need_answer=True)
    if not problems:
        raise TaskError(f"{config.problems} holds no questions; give others with --problems")
    opening = partial(commands.open_engines, config, progress.say)
    with RunFolder(out) as folder, Grader() as grader, OpenOnDemand(opening) as engines, progress:
        job = Job(config, folder, grader, progress, ModelTools(config, progress.say))
        usual, metrics = _greedy(job, problems, engines)
        if metrics.get("owed"):
            commands.say_owed(metrics)
            return []
        tokens = sum(row.policy_tokens for row in usual) / len(usual)
        budgets = planning.budgets_in_tokens(config.compare, tokens)
        seeds = range(config.seed, config.seed + config.compare.seeds)
        plan = Plan(problems, arms, budgets, seeds, tokens)
        rows, owed = _answers(job, plan, engines)
        write_atomic(out / CONFIG, dump_yaml(config))  # only now: a refused change must not replace it
        cost = read_cost(out / COST)
        found = results.evaluate(plan, [*usual, *rows.values()], cost, config.compare.baseline)
        about = {"policy": str(config.policy), "value model": str(config.value or "none")}
        about |= {"problems": str(config.problems), "engine": str(metrics["engine"])}
        tables = report.write(out, plan, found, cost, about | {arm.name: _own(arm) for arm in arms})
    if owed:
        progress.say(f"stage_budget is spent: {owed} searches are owed; raise it and run the same command again")
    return tables


def _greedy(job: Job, problems: list[Problem], engines: OpenOnDemand) -> tuple[list[Row], Mapping[str, Any]]:
    """The greedy answers as rows of the comparison, and the metrics of their stage."""
    config = job.config
    settings = {name: getattr(config, name) for name in ("task", "fields", "limit")}
    settings |= config.prompting()
    search = greedy(config.search.model_copy(update={"budget_tokens": None}))
    inputs = {"policy": config.policy}
    metrics = commands.measure(job, GREEDY, problems, search, engines, settings=settings, inputs=inputs)
    rows = [
        Row(
            id=row.id,
            method=GREEDY,
            budget=None,
            seed=config.seed,
            answer=row.answer,
            gold=row.gold,
            correct=row.correct,
            policy_tokens=row.policy_tokens,
            value_tokens=row.value_tokens,
            requests=row.requests,
            stop=row.stop,
        )
        for row in read_evaluation(job.folder.path / GREEDY / ROWS)
    ]
    return rows, metrics


def _answers(job: Job, plan: Plan, engines: OpenOnDemand) -> tuple[dict[Key, Row], int]:
    """Have all of `plan` answered that is not yet; all rows of its arms, and how many searches are owed."""
    config, out = job.config, job.folder.path
    named, files = models_and_files({"greedy": out / GREEDY, "value": config.value})
    with ExitStack() as stack:
        stages: dict[str, StageFolder] = {}
        for arm in plan.arms:
            settings = {"arm": arm.identity(), **named}
            stage = job.folder.stage(f"arms/{arm.name}", settings=settings, inputs=files)
            stages[arm.name] = stack.enter_context(stage)
        rows = _stored(stages)
        wanted = {trial.key for trial in plan.trials()}
        missing = wanted - rows.keys()
        if missing:
            for name in {arm for _, arm, _, _ in missing}:
                if stages[name].done:
                    stages[name].reopen()
            _answer(job, plan, engines, stages, rows, len(wanted))
            rows = _stored(stages)
            missing = wanted - rows.keys()
        unfinished = {arm for _, arm, _, _ in missing}
        for name, stage in stages.items():
            if not stage.done and name not in unfinished:
                stage.finish({"rows": sum(row.method == name for row in rows.values())})
    return rows, len(missing)


def _answer(
    job: Job, plan: Plan, engines: OpenOnDemand, stages: Mapping[str, StageFolder], rows: dict[Key, Row], total: int
) -> None:
    config, out = job.config, job.folder.path
    before = read_cost(out / COST)
    earlier = Usage(policy_tokens=before.policy_tokens, value_tokens=before.value_tokens)
    account = Account(config.stage_budget.budget(), earlier=earlier, elapsed=before.seconds)
    seen = {"done": len(rows), "right": 0, "new": 0, "tokens": 0}
    job.progress.stage("compare", total, done=len(rows))

    def on_row(row: Row) -> None:
        seen["done"] += 1
        seen["new"] += 1
        seen["right"] += row.correct
        seen["tokens"] += row.policy_tokens
        asked = account.count.policy_tokens
        facts: dict[str, Any] = {"right": f"{seen['right'] / seen['new']:.0%}", "tokens": asked}
        if asked:
            facts["tokens/s"] = round(asked / account.seconds)
        if seen["tokens"] > asked:
            facts["shared"] = f"{1 - asked / seen['tokens']:.0%}"
        job.progress.update(seen["done"], total, **facts)

    answer_all(
        plan,
        {name: stage.path for name, stage in stages.items()},
        engines(),
        known=set(rows),
        grader=job.grader,
        concurrency=config.engine.concurrency,
        account=account,
        cost=CostLog(out / COST, engines(), account),
        on_row=on_row,
        trees=config.compare.trees,
    )
    job.progress.finish()


def _stored(stages: Mapping[str, StageFolder]) -> dict[Key, Row]:
    return {key: row for stage in stages.values() for key, row in read_rows(stage.path / ROWS).items()}


def _own(arm: Arm) -> str:
    return ", ".join(f"{name} = {value}" for name, value in arm.own.items())
