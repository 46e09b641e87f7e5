"""Which way of searching is worth its tokens, on tiny models? Every method, MCTS* without each of its parts, and more.

    python -m studies.search OUT --seed 0     one seed, some ten minutes of one core; the same command resumes
    python -m studies.search OUT --report     the tables over all seeds in OUT

Per seed: a policy is trained from scratch on worked solutions; it samples solutions of other questions, and a value
model learns what the trees of these say (both as in `studies.verifiers`). Then `restmcts compare` answers the same
held-out questions with every arm at every budget. A budget of 1 is the tokens of a right solution.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from restmcts.compare import report as reporting
from restmcts.compare import results
from restmcts.compare.answer import ROWS, Cost, Row, read_cost
from restmcts.compare.command import COST, compare_methods
from restmcts.compare.plan import GREEDY, Plan, arms
from restmcts.config import RunConfig, load_config
from restmcts.console import Progress
from restmcts.datasets import label_trees, value_rows, verify
from restmcts.encoding import Encoder
from restmcts.evaluate import read_rows as read_greedy
from restmcts.files import read_jsonl, write_jsonl
from restmcts.models import load_tokenizer
from restmcts.tasks.grade import Grader
from restmcts.types import Step
from studies.arithmetic import PROMPT
from studies.verifiers import ENGINE, LIMITS, Seed, Sizes, sample, train_policy, train_verifier

BUDGETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""in solutions' worth of tokens"""
METHODS = ("sample", "best_of_n", "best_of_n_product", "weighted_vote", "beam", "dvts", "tot_bfs", "tot_dfs", "mcts")
VALUE_SAMPLES = 16
"""solutions of each question that the value model learns from"""
ARMS: dict[str, dict[str, Any]] = {
    "mcts_star": {},
    "no_widening": {"widening": 0.0},
    "widening_1": {"widening": 1.0},
    "no_rollout": {"rollout_steps": 0},
    "greedy_rollout": {"rollout_temperature": 0.0},
    "random_rollout": {"rollout": "random"},
    "vanilla_backup": {"backup": "vanilla"},
    "critic": {"self_critic": True},
    "paper_answer": {"answer_rule": "best"},
    "weighted_answer": {"answer_rule": "weighted"},
    "exploration_0.1": {"exploration": 0.1},
    "exploration_2": {"exploration": 2.0},
    "branch_2": {"branch": 2},
    "branch_6": {"branch": 6},
}
"""MCTS* as it is, without each of its parts, and with other settings"""


def run(out: Path, seed: int, sizes: Sizes, budgets: tuple[float, ...] = BUDGETS) -> None:
    """One seed: its models, then the comparison."""
    study = Seed(out / f"seed-{seed}", seed, sizes)
    policy, questions = train_policy(study), study.questions["train"]
    with Grader() as grader:
        trees = sample(study, "first", policy, questions, VALUE_SAMPLES, grader)
        rows = value_rows(trees, label_trees(trees, verify(trees, grader)), seed=seed)
    value = train_verifier(study, "guide", rows, policy)
    heldout = study.out / "heldout.jsonl"
    write_jsonl(heldout, ({"id": p.id, "question": p.question, "answer": p.answer} for p in study.questions["heldout"]))
    config = settings(study, policy, value, heldout, budgets)
    compare_methods(config, study.out / "compare", Progress(mode="auto"))


def settings(study: Seed, policy: Path, value: Path, heldout: Path, budgets: tuple[float, ...]) -> RunConfig:
    unit = solution_tokens(study, policy)
    own = {name: {"method": "mcts_star", **changed} for name, changed in ARMS.items()}
    return load_config(
        flags={
            "policy": str(policy),
            "value": str(value),
            "problems": str(heldout),
            "seed": study.seed,
            "prompt": PROMPT.model_dump(),
            "engine": ENGINE.model_dump(),
            "search": {**LIMITS, "threshold": 2.0},
            "compare": {
                "methods": [*METHODS, *own],
                "arms": own,
                "budgets": [round(budget * unit) for budget in budgets],
                "unit": "tokens",
                "seeds": 1,
                "baseline": "weighted_vote",
            },
        }
    )


def solution_tokens(study: Seed, policy: Path) -> float:
    """What a right solution takes on average."""
    encoder = Encoder(load_tokenizer(policy), PROMPT)
    asked = study.questions["heldout"]
    lines = [line for problem in asked for line in (problem.solution or "").splitlines()]
    return sum(len(encoder.step(Step(line))) for line in lines) / len(asked)


def report(out: Path, console: Console) -> None:
    """The tables of all seeds together, also written to OUT/compare.md with its plot and rows."""
    folders = sorted(out.glob("seed-*/compare"))
    rows, cost = [], Cost()
    for folder in folders:
        rows += [Row(**record) for record in read_jsonl(folder / ROWS)]
        cost += read_cost(folder / COST)
    config = load_config(folders[0] / "config.yaml")
    asked = read_greedy(folders[0] / GREEDY / ROWS)
    usual = [row for row in rows if row.budget is None]
    problems = Seed(out, 0, Sizes()).questions["heldout"]
    known = {row.id for row in asked}
    plan = Plan(
        [problem for problem in problems if problem.id in known],
        arms(config.compare, config.search),
        sorted({row.budget for row in rows if row.budget}),
        sorted({row.seed for row in rows}),
        sum(row.policy_tokens for row in usual) / len(usual),
    )
    found = results.evaluate(plan, rows, cost, config.compare.baseline)
    for table in reporting.write(out, plan, found, cost, {"seeds": ", ".join(str(seed) for seed in plan.seeds)}):
        table.show(console)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.search", description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--questions", type=int, default=100, help="held-out questions")
    parser.add_argument("--most", type=int, default=BUDGETS[-1], help="largest budget, in solutions")
    asked = parser.parse_args()
    if asked.seed is not None:
        budgets = tuple(budget for budget in BUDGETS if budget <= asked.most)
        run(asked.out, asked.seed, dataclasses.replace(Sizes(), heldout=asked.questions), budgets)
    if asked.report:
        report(asked.out, Console(width=220))


if __name__ == "__main__":
    main()
