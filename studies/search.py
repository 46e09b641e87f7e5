"""Which way of searching is worth its tokens, on tiny models? Every method, MCTS* without each of its parts, and more.

    python -m studies.search OUT --seed 0     one seed, some ten minutes of one core; the same command resumes
    python -m studies.search OUT --report     the tables over all seeds in OUT, each arm beside `--beside`

Per seed: a policy is trained from scratch on worked solutions; it samples solutions of other questions, and a value
model learns what the trees of these say (both as in `studies.verifiers`). Then `restmcts compare` answers the same
held-out questions with every arm at every budget. A budget of 1 is the tokens of a right solution.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
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
from restmcts.encoding import Encoder
from restmcts.evaluate import read_rows as read_greedy
from restmcts.files import read_jsonl, write_jsonl
from restmcts.models import load_tokenizer
from restmcts.types import Step
from studies.kinds import PROMPT, Kind
from studies.verifiers import ENGINE, Seed, Sizes, first_verifier, options, read, train_policy

BUDGETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""in solutions' worth of tokens"""
METHODS = ("sample", "best_of_n", "best_of_n_product", "weighted_vote", "beam", "dvts", "tot_bfs", "tot_dfs", "mcts")
VALUE_QUESTIONS, VALUE_SAMPLES = 600, 8
"""what the value model learns from"""
ARMS: dict[str, dict[str, Any]] = {
    "mcts_star": {},
    "no_greedy_first": {"greedy_first": False},
    "no_widening": {"widening": 0.0},
    "widening_1": {"widening": 1.0},
    "no_rollout": {"rollout_steps": 0},
    "sampled_rollout": {"rollout_temperature": 1.0},
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


def run(out: Path, seed: int, kind: Kind, asked: argparse.Namespace) -> None:
    """One seed: its models, then the comparison."""
    study = Seed(out / f"seed-{seed}", seed, kind, Sizes(train=VALUE_QUESTIONS, heldout=asked.heldout))
    policy = train_policy(study)
    value = first_verifier(study, policy, VALUE_SAMPLES)
    heldout = study.out / "heldout.jsonl"
    write_jsonl(heldout, ({"id": p.id, "question": p.question, "answer": p.answer} for p in study.questions["heldout"]))
    config = settings(study, policy, value, heldout, asked)
    compare_methods(config, study.out / "compare", Progress(mode="auto"))


def settings(study: Seed, policy: Path, value: Path, heldout: Path, asked: argparse.Namespace) -> RunConfig:
    unit = solution_tokens(study, policy)
    chosen = [name for name in (*METHODS, *ARMS) if not asked.arms or name in asked.arms]
    own = {name: {"method": "mcts_star", **changed} for name, changed in ARMS.items() if name in chosen}
    return load_config(
        flags={
            "policy": str(policy),
            "value": str(value),
            "problems": str(heldout),
            "task": study.kind.task,
            "seed": study.seed,
            "prompt": PROMPT.model_dump(),
            "engine": ENGINE.model_dump(),
            "search": {**study.kind.limits, "threshold": 2.0, "temperature": asked.temperature},
            "compare": {
                "methods": chosen,
                "arms": own,
                "budgets": [round(budget * unit) for budget in BUDGETS if budget <= asked.most],
                "unit": "tokens",
                "seeds": 1,
            },
        }
    )


def solution_tokens(study: Seed, policy: Path) -> float:
    """What a right solution takes on average."""
    encoder = Encoder(load_tokenizer(policy), PROMPT)
    asked = study.questions["heldout"]
    lines = [line for problem in asked for line in (problem.solution or "").splitlines()]
    return sum(len(encoder.step(Step(line))) for line in lines) / len(asked)


def report(out: Path, kind: Kind, console: Console, shown: Sequence[str], beside: str) -> None:
    """The tables of all seeds together, also written to OUT/compare.md with its plot and rows.

    Of the arms that are `shown`, or of all; how far each is from the one `beside` them.
    """
    folders = sorted(out.glob("seed-*/compare"))
    rows, cost = [], Cost()
    for folder in folders:
        found = (Row(**record) for record in read_jsonl(folder / ROWS))
        rows += [row for row in found if not shown or row.budget is None or row.method in shown]
        cost += read_cost(folder / COST)
    config = load_config(folders[0] / "config.yaml")
    asked = read_greedy(folders[0] / GREEDY / ROWS)
    usual = [row for row in rows if row.budget is None]
    problems = Seed(out, 0, kind, Sizes()).questions["heldout"]
    known = {row.id for row in asked}
    plan = Plan(
        [problem for problem in problems if problem.id in known],
        [arm for arm in arms(config.compare, config.search) if not shown or arm.name in shown],
        sorted({row.budget for row in rows if row.budget}),
        sorted({row.seed for row in rows}),
        sum(row.policy_tokens for row in usual) / len(usual),
    )
    if beside not in (names := [arm.name for arm in plan.arms]):
        print(f"error: --beside {beside} is not among what was run: {', '.join(names)}", file=sys.stderr)
        raise SystemExit(2)
    measured = results.evaluate(plan, rows, cost, beside)
    for table in reporting.write(out, plan, measured, cost, {"seeds": ", ".join(str(seed) for seed in plan.seeds)}):
        table.show(console)


def main() -> None:
    parser = options("search", str(__doc__))
    parser.add_argument("--heldout", type=int, default=100, help="how many questions are answered")
    parser.add_argument("--most", type=int, default=BUDGETS[-1], help="largest budget, in solutions")
    parser.add_argument("--temperature", type=float, default=1.0, help="of every search")
    parser.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="run or show these, in place of all")
    parser.add_argument("--beside", default="weighted_vote", metavar="ARM", help="the others are held against it")
    asked, out, kind = read(parser, f"seed-*/compare/{ROWS}")
    if asked.seed is not None and (unknown := set(asked.arms) - {*METHODS, *ARMS}):
        parser.error(f"there is no arm {', '.join(sorted(unknown))}; there are {', '.join((*METHODS, *ARMS))}")
    if asked.report and asked.arms and asked.beside not in asked.arms:
        parser.error(f"--beside {asked.beside} is not shown; choose one of {', '.join(asked.arms)}")
    if asked.seed is not None:
        run(out, asked.seed, kind, asked)
    if asked.report:
        report(out, kind, Console(width=220), asked.arms, asked.beside)


if __name__ == "__main__":
    main()
