"""What each method of self-training is worth on tiny models, with the same tokens to collect data in every round.

    python -m studies.methods OUT --seed 0     one seed, some fifteen minutes of one core; the same command resumes
    python -m studies.methods OUT --report     the tables over all seeds in OUT

Per seed: a policy is trained from scratch (as in `studies.verifiers`: its own solutions can teach it something), and a
first value model on the trees of its samples. From this pair every method goes through its rounds as `restmcts run
--method …` does: on the same questions, with the same budget of generated tokens a round, the same epochs over what it
found, and the same held-out questions. Last comes ReST-EM once more, with as many right traces as ReST-MCTS* had in
each round. A model this small cannot judge in words: self-rewarding, and labels by a judge, are left out.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from restmcts import loop
from restmcts.config import RunConfig, load_config
from restmcts.console import Progress
from restmcts.datasets import PolicyRow, label_trees, policy_rows, read_rows, verify
from restmcts.evaluate import TREES, search_all
from restmcts.files import write_jsonl
from restmcts.lens import bestofn
from restmcts.rows import POLICY_ROWS
from restmcts.search import SearchSettings
from restmcts.seeds import derive_seed
from restmcts.tasks import get_task
from restmcts.tasks.grade import Grader
from restmcts.train.settings import PolicyTraining
from restmcts.types import Tree
from studies.kinds import PROMPT, Kind
from studies.method_tables import CONTROL, NUMBERS, report, share_faultless
from studies.search import solution_tokens
from studies.verifiers import (
    ENGINE,
    FULL,
    VARIED,
    Opened,
    Seed,
    Sizes,
    first_verifier,
    options,
    read,
    sample,
    train_policy,
)

ROUNDS = 2
SOLUTIONS = 8
"""a question's share of a round's tokens, in solutions"""
FIRST_SAMPLES = 8
"""solutions of each question that the first value model learns from"""
SIZES = Sizes(train=400, heldout=200)
POLICY: dict[str, Any] = {"epochs": 2, "learning_rate": 5e-4, "batch_tokens": 512, **FULL}
VALUE: dict[str, Any] = {"epochs": 2, "learning_rate": 5e-4, "batch_tokens": 1024, **FULL}
ONE_BY_ONE = {name: value for name, value in FULL.items() if name != "micro_tokens"}
BY_BUDGET: dict[str, Any] = {"threshold": 2.0, "iterations": 1000, "samples": 1000, **VARIED}
"""of searches for traces to learn from, which end with their tokens"""
GROUPS, GROUP = 16, 8
"""questions of a step of online training, and solutions of each"""
BY_TREE = {"search": {"method": "mcts_star"}}
ARMS: dict[str, dict[str, Any]] = {
    "rest-mcts": {"evaluate": {"base": ["greedy", "search"]}},
    "rest-em": {"method": "rest-em", "evaluate": BY_TREE},
    "mcts-dpo": {"method": "mcts-dpo"},
    "online": {"method": "online", "evaluate": BY_TREE},
    "majority": {"labels": {"source": "majority", "confidence": 0.0}, "evaluate": {"methods": ["greedy"]}},
    "sure majority": {"labels": {"source": "majority", "confidence": 0.7}, "evaluate": {"methods": ["greedy"]}},
    "rest-em on": {"method": "rest-em", "policy_training": {"start": "previous"}, "evaluate": {"methods": ["greedy"]}},
}
"""runs, and in what they differ from ReST-MCTS*; `rest-em on` trains the last policy further, not the first one anew"""


def run(out: Path, seed: int, kind: Kind, sizes: Sizes, arms: Sequence[str]) -> None:
    """One seed: its first pair of models, then every method."""
    study = Seed(out / f"seed-{seed}", seed, kind, sizes)
    policy = train_policy(study)
    value = first_verifier(study, policy, FIRST_SAMPLES)
    for name in ("train", "heldout"):
        asked = study.questions[name]
        write_jsonl(
            study.out / f"{name}.jsonl", ({"id": p.id, "question": p.question, "answer": p.answer} for p in asked)
        )
    policies = {"base": policy}
    for name in arms:
        config = settings(study, name, policy, value)
        loop.run(config, progress=Progress(mode="off"))
        made = [config.out / f"round-{k}" / "policy" for k in range(ROUNDS, 0, -1)]
        policies[name] = next((model for model in made if (model / "config.json").exists()), policy)
    with Grader() as grader:
        if "rest-mcts" in arms:
            policies[CONTROL] = equal_data(study, policy, grader)
        for name, model in policies.items():
            draw(study, name, model, grader)


def settings(study: Seed, name: str, policy: Path, value: Path) -> RunConfig:
    """The run of one arm. Every search, and all of online training, generate the same number of tokens a round."""
    budget = round(SOLUTIONS * solution_tokens(study, policy))
    asked = len(study.questions["train"])
    common: dict[str, Any] = {
        "policy": str(policy),
        "value": str(value),
        "problems": str(study.out / "train.jsonl"),
        "heldout": str(study.out / "heldout.jsonl"),
        "task": study.kind.task,
        "out": study.out / "runs" / name.replace(" ", "-"),
        "seed": study.seed,
        "rounds": ROUNDS,
        "prompt": PROMPT.model_dump(),
        "engine": ENGINE.model_dump(),
        "search": {**study.kind.limits, **BY_BUDGET, "budget_tokens": budget},
        "evaluate": {"base": []},
        "policy_training": POLICY,
        "value_training": VALUE,
        "warm_start": {"policy": False, "value": False},
        "preference": {"learning_rate": 2e-4, "sft_weight": 0.1, "batch_pairs": 32, **ONE_BY_ONE},
        "online": {
            "learning_rate": 2e-4,
            "steps": round(asked * SOLUTIONS / (GROUPS * GROUP)),
            "questions": GROUPS,
            "samples": GROUP,
            "tokens": 64,
            **ONE_BY_ONE,
        },
    }
    own = ARMS[name]
    flags = {**common, **own}
    for section in ("evaluate", "policy_training"):
        flags[section] = {**common[section], **own.get(section, {})}
    return load_config(flags=flags)


def equal_data(study: Seed, base: Path, grader: Grader) -> Path:
    """ReST-EM with as many right traces in each round as ReST-MCTS* trained on, however many samples that takes."""
    policy = base
    for k in range(1, ROUNDS + 1):
        wanted = len(read_rows(study.out / "runs" / "rest-mcts" / f"round-{k}" / "label" / POLICY_ROWS, PolicyRow))
        policy = _equal_round(study, k, base, policy, wanted, grader)
    return policy


def _equal_round(study: Seed, k: int, base: Path, policy: Path, wanted: int, grader: Grader) -> Path:
    from restmcts.train.policy import train_policy as fine_tune

    settings, seed = PolicyTraining(**POLICY), derive_seed(study.seed, "equal", k)

    def work(folder: Path) -> dict[str, Any]:
        rows: list[PolicyRow] = []
        samples, tokens = SOLUTIONS, 0
        while len(rows) < wanted and samples <= 8 * SOLUTIONS:
            trees = _sampled(study, folder / f"samples-{samples}", policy, samples, seed, grader)
            tokens, labels = sum(tree.usage.policy_tokens for tree in trees), label_trees(trees, verify(trees, grader))
            limit = settings.traces_per_question
            rows = policy_rows(trees, labels, traces_per_question=limit, pick="random", seed=seed, round=k)
            samples *= 2
        chosen = random.Random(seed).sample(rows, min(wanted, len(rows)))
        made = fine_tune(chosen, base=base, out=folder / "model", prompt=PROMPT, settings=settings, seed=study.seed)
        figures = {
            "tokens": made["tokens"],
            "faultless": share_faultless(chosen, study.kind),
            "seconds": made["seconds"],
        }
        return {"wanted": wanted, "rows": len(chosen), "policy_tokens": tokens, **figures}

    study.once(f"equal/round-{k}", work)
    return study.out / f"equal/round-{k}" / "model"


def _sampled(study: Seed, folder: Path, policy: Path, count: int, seed: int, grader: Grader) -> list[Tree]:
    trees: list[Tree] = []
    questions = study.questions["train"]
    search = SearchSettings(method="sample", samples=count, **study.kind.limits)
    with Opened(policy, None) as engines:
        options: dict[str, Any] = {"grader": grader, "seed": seed, "concurrency": 64, "path": folder / TREES}
        search_all(questions, search.method, search, engines, each=trees.append, **options)
    order = {problem.id: at for at, problem in enumerate(questions)}
    return sorted(trees, key=lambda tree: order[tree.problem.id])


def draw(study: Seed, name: str, policy: Path, grader: Grader) -> None:
    """Samples of the held-out questions: the chances that one of k is right, and that the majority of k is."""
    part = f"drawn/{name.replace(' ', '-')}"
    trees = sample(study, part, policy, study.questions["heldout"], NUMBERS[-1], grader)
    write_chances(study.out / part, trees, grader, study.seed)


def write_chances(folder: Path, trees: Sequence[Tree], grader: Grader, seed: int) -> None:
    """For each question, the chances by k that one of k of its samples is right, and that their majority is."""
    lines = []
    for tree, flags in zip(trees, verify(trees, grader), strict=True):
        leaves = dataclasses.replace(tree, raw_value=[0.5] * len(tree))  # no value decides here
        drawn = bestofn.pool(leaves, flags, get_task(tree.problem.task))
        assert drawn is not None
        chances = bestofn.expected(drawn, NUMBERS, seed)
        lines.append({"id": tree.problem.id, "pass": chances["any"], "majority": chances["majority"]})
    write_jsonl(folder / "chances.jsonl", lines)


def main() -> None:
    parser = options("methods", str(__doc__))
    parser.add_argument("--arms", default=",".join(ARMS), help="which runs, with commas between")
    asked, out, kind = read(parser, "seed-*/runs/*/report.md")
    if asked.seed is not None:
        run(out, asked.seed, kind, SIZES, asked.arms.split(","))
    if asked.report:
        report(out, Console(width=200), kind)


if __name__ == "__main__":
    main()
