"""The paper's table of verifiers on a tiny model: what is a labelling rule worth, at one budget of generated tokens?

    python -m studies.verifiers OUT --seed 0     one seed, some ten minutes of one core; the same command resumes
    python -m studies.verifiers OUT --report     the tables over all seeds in OUT

Per seed: a policy is trained from scratch on worked solutions. Questions are of one `--kind`: sums of which a quarter
of the facts never comes up in these, so that it guesses at them (`studies.arithmetic`), or numbers with a target
(`studies.countdown`). It samples 256 solutions of each held-out question. For each rule it then collects data on the
same other questions, each rule with the same number of generated tokens (what Math-Shepherd's few traces cost with all
their completions), and a value model is trained on the rows, from the policy's backbone, on the same number of tokens.
The value models choose among the same 256 solutions.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from restmcts.completing import complete_trees
from restmcts.datasets import label_trees, value_rows, verify
from restmcts.encoding import Encoder
from restmcts.engines import Engines
from restmcts.engines.opening import load_engines
from restmcts.engines.settings import EngineSettings
from restmcts.evaluate import search_all, stored_trees
from restmcts.files import read_json, write_json, write_jsonl
from restmcts.lens import bestofn
from restmcts.metrics import auc_within
from restmcts.rows import ValueRow
from restmcts.search import SearchSettings
from restmcts.sections import LabelSettings
from restmcts.seeds import derive_seed
from restmcts.tasks import Task, get_task
from restmcts.tasks.grade import Grader
from restmcts.train.settings import PolicyTraining, ValueTraining
from restmcts.types import Problem, Tree, Usage
from restmcts.worked import worked_policy_rows
from studies import arithmetic, countdown
from studies.kinds import PROMPT, Kind, write_model
from studies.verifier_tables import NUMBERS, report

KINDS = {kind.name: kind for kind in (arithmetic.KIND, countdown.KIND)}
ENGINE = EngineSettings(kind="transformers", device="cpu", dtype="float32", max_rows=256)
MOST_HELDOUT = 200
VARIED: dict[str, Any] = {"greedy_first": False, "rollout_temperature": 1.0}
"""of searches for traces to learn from, which are to differ: nothing takes the likeliest steps"""


@dataclass(frozen=True)
class Sizes:
    """How large everything is; the usual sizes are those of the study."""

    width: int = 96
    train: int = 600
    heldout: int = 100
    samples: int = NUMBERS[-1]
    traces: int = 1
    """traces of a question that Math-Shepherd completes; what this costs is the budget of all rules"""
    completions: int = 8
    omega_traces: int = 2
    """traces of a question that OmegaPRM looks into, as many as the budget pays for; a trace costs it less"""
    trained_tokens: int = 1_000_000
    """tokens that each value model is trained on, as near as whole epochs come"""
    most_epochs: int = 12


@dataclass
class Seed:
    """One seed's folder, its questions, and its engines while they are open."""

    out: Path
    seed: int
    kind: Kind
    sizes: Sizes
    questions: dict[str, list[Problem]] = field(init=False)

    def __post_init__(self) -> None:
        # Held-out questions are the same in all seeds, so that seeds are compared question by question; and a policy
        # is the same whatever else is large or small.
        draw, size, taken = self.kind.draw, self.kind.size, set[str]()
        asked = draw(MOST_HELDOUT, derive_seed("heldout", None), "heldout", size, taken=taken)
        self.questions = {"heldout": asked[: self.sizes.heldout], "worked": []}
        for length, count in self.kind.worked:
            chance, name = derive_seed("worked", self.seed, length), f"worked-{length}"
            self.questions["worked"] += draw(count, chance, name, length, taken=taken, of_seed=self.seed)
        self.questions["train"] = draw(self.sizes.train, derive_seed("train", self.seed), "train", size, taken=taken)

    @property
    def task(self) -> Task:
        return get_task(self.kind.task)

    def once(self, name: str, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Do a part, or find it done; returns its figures."""
        folder = self.out / name
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "figures.json").exists():
            figures = work(folder)
            write_json(folder / "figures.json", figures)
            print(f"{folder}: {figures}", flush=True)
        found: dict[str, Any] = read_json(folder / "figures.json")
        return found


# ---------------------------------------------------------------- one seed


def run(out: Path, seed: int, kind: Kind, sizes: Sizes) -> None:
    """All parts of one seed."""
    study = Seed(out / f"seed-{seed}", seed, kind, sizes)
    policy = train_policy(study)
    with Grader() as grader:
        pool = sample(study, "heldout", policy, study.questions["heldout"], sizes.samples, grader)
        for name, rows in collect(study, policy, grader):
            train_verifier(study, name, rows, policy)
        score(study, pool, grader)


def train_policy(study: Seed) -> Path:
    from restmcts.train import policy

    def work(folder: Path) -> dict[str, Any]:
        base = write_model(folder / "base", study.kind, study.seed, width=study.sizes.width)
        rows = worked_policy_rows(study.questions["worked"], study.task.find_answer)
        settings = PolicyTraining(epochs=study.kind.epochs, learning_rate=2e-3, batch_tokens=512, **FULL)
        return _plain(
            policy.train_policy(
                rows, base=base, out=folder / "model", prompt=PROMPT, settings=settings, seed=study.seed
            )
        )

    study.once("policy", work)
    return study.out / "policy" / "model"


FULL: dict[str, Any] = {"method": "full", "device": "cpu", "precision": "float32", "micro_tokens": 8192}


def sample(
    study: Seed, name: str, policy: Path, questions: Sequence[Problem], count: int, grader: Grader
) -> list[Tree]:
    """`count` independent solutions of each question."""
    settings = SearchSettings(method="sample", samples=count, **study.kind.limits)
    return search(study, name, policy, None, questions, settings, grader)


def search(
    study: Seed,
    name: str,
    policy: Path,
    value: Path | None,
    questions: Sequence[Problem],
    settings: SearchSettings,
    grader: Grader,
) -> list[Tree]:
    def work(folder: Path) -> dict[str, Any]:
        with Opened(policy, value) as engines:
            found = search_all(
                questions,
                settings.method,
                settings,
                engines,
                grader=grader,
                seed=derive_seed(study.seed, name),
                concurrency=64,
                path=folder / "trees.jsonl",
            )
        return _cost(found.usage, found.trees)

    study.once(name, work)
    return _in_order(study.out / name, questions)


def complete(study: Seed, name: str, policy: Path, trees: Sequence[Tree], grader: Grader) -> list[Tree]:
    """`trees` with the completions that the rule `name` asks for."""

    def work(folder: Path) -> dict[str, Any]:
        with Opened(policy, None) as engines:
            found = complete_trees(
                trees,
                LabelSettings(rule=name, completions=study.sizes.completions),
                SearchSettings(**study.kind.limits),
                engines,
                grader=grader,
                seed=derive_seed(study.seed, name),
                concurrency=64,
                path=folder / "trees.jsonl",
            )
        return _cost(found.usage, found.trees)

    study.once(name, work)
    return _in_order(study.out / name, [tree.problem for tree in trees])


def collect(study: Seed, policy: Path, grader: Grader) -> Iterator[tuple[str, list[ValueRow]]]:
    """Each verifier's name and rows, every rule's data bought with the same number of generated tokens."""
    sizes, questions = study.sizes, study.questions["train"]

    def rows(trees: Sequence[Tree], rule: str, estimate: Any = "hard") -> list[ValueRow]:
        labels = label_trees(trees, verify(trees, grader), rule=rule, estimate=estimate)
        return value_rows(trees, labels, seed=study.seed)

    few = sample(study, "few", policy, questions, sizes.traces, grader)
    shepherd = complete(study, "math-shepherd", policy, few, grader)
    chain = _spent(few) / (sizes.traces * len(questions))
    budget = _spent(few) + _spent(shepherd)
    yield "MS hard", rows(shepherd, "math-shepherd")
    yield "MS soft", rows(shepherd, "math-shepherd", "soft")

    many = sample(study, "many", policy, questions, round(budget / chain / len(questions)), grader)
    yield "ORM", rows(many, "orm")
    yield "MS free", rows(many, "math-shepherd", "soft")
    yield "ours, samples", rows(many, "rest-mcts")

    some = sample(study, "some", policy, questions, sizes.omega_traces, grader)
    yield "OmegaPRM", rows(complete(study, "omega-prm", policy, some, grader), "omega-prm")

    first = sample(study, "first", policy, questions, round(budget / chain / len(questions) / 4), grader)
    guide = train_verifier(study, "guide", rows(first, "rest-mcts"), policy)
    left = round((budget - _spent(first)) / len(questions))
    limits = {**study.kind.limits, **VARIED, "branch": 6, "budget_tokens": left}
    settings = SearchSettings(iterations=1000, threshold=2, **limits)
    steered = search(study, "mcts", policy, guide, questions, settings, grader)
    yield "ours", rows([*first, *steered], "rest-mcts")


def train_verifier(study: Seed, name: str, rows: Sequence[ValueRow], policy: Path) -> Path:
    """A value model on `rows`, from the policy's backbone."""
    from restmcts.models import load_tokenizer
    from restmcts.train import value

    part = f"verifiers/{name.replace(', ', '-').replace(' ', '-')}"

    def work(folder: Path) -> dict[str, Any]:
        encoder = Encoder(load_tokenizer(policy), PROMPT)
        once = sum(len(value.encode(row, encoder, 1024).ids) for row in rows)
        epochs = min(study.sizes.most_epochs, max(1, round(study.sizes.trained_tokens / once)))
        rates: dict[str, Any] = {"learning_rate": 1e-3, "head_learning_rate": 1e-2}
        settings = ValueTraining(epochs=epochs, batch_tokens=1024, traces_per_question=None, **rates, **FULL)
        made = value.train_value(
            rows, base=policy, out=folder / "model", prompt=PROMPT, settings=settings, seed=study.seed
        )
        return {"name": name, "epochs": epochs, **_plain(made)}

    study.once(part, work)
    return study.out / part / "model"


def first_verifier(study: Seed, policy: Path, samples: int) -> Path:
    """A value model on what the trees of so many samples of each training question say."""
    with Grader() as grader:
        trees = sample(study, "first", policy, study.questions["train"], samples, grader)
        rows = value_rows(trees, label_trees(trees, verify(trees, grader)), seed=study.seed)
    return train_verifier(study, "guide", rows, policy)


def score(study: Seed, pool: Sequence[Tree], grader: Grader) -> None:
    """What every verifier's choice among the held-out solutions is worth: chances.jsonl, a line a question."""
    from restmcts.models import load_token_classifier, load_tokenizer
    from restmcts.train.value import score_traces

    def work(folder: Path) -> dict[str, Any]:
        correct = verify(pool, grader)
        leaves = [tree.finished() for tree in pool]
        chances: dict[str, dict[str, dict[str, list[float]]]] = {tree.problem.id: {} for tree in pool}
        quality: dict[str, float | None] = {}
        for path in sorted((study.out / "verifiers").iterdir()):
            name, model = read_json(path / "figures.json")["name"], load_token_classifier(path / "model")
            encoder = Encoder(load_tokenizer(path / "model"), PROMPT)
            traces = [(tree.problem, tree.path(n)) for tree, ends in zip(pool, leaves, strict=True) for n in ends]
            said = iter(score_traces(model.eval(), encoder, traces, micro_tokens=16384))
            scores: list[float] = []
            rights: list[bool] = []
            asked: list[str] = []
            for tree, ends, flags in zip(pool, leaves, correct, strict=True):
                values: list[float | None] = [None] * len(tree)
                for end in ends:
                    for node, value in zip(tree.nodes_to(end), next(said), strict=True):
                        values[node] = value
                    scores.append(float(values[end] or 0))
                    rights.append(bool(flags[end]))
                    asked.append(tree.problem.id)
                samples = bestofn.pool(dataclasses.replace(tree, raw_value=values), flags, study.task)
                assert samples is not None
                chances[tree.problem.id][name] = bestofn.expected(samples, NUMBERS, study.seed)
            quality[name] = auc_within(scores, rights, asked)[0]
        write_jsonl(folder / "chances.jsonl", ({"id": i, "by": found} for i, found in chances.items()))
        return {"solutions": sum(map(len, leaves)), "auc_in_question": quality}

    study.once("scores", work)


# ---------------------------------------------------------------- parts


class Opened:
    """Engines that are closed at the end of the block."""

    def __init__(self, policy: Path, value: Path | None) -> None:
        self._engines = load_engines(policy, value, PROMPT, ENGINE)

    def __enter__(self) -> Engines:
        return self._engines

    def __exit__(self, *_: object) -> None:
        asyncio.run(self._engines.close())


def _in_order(folder: Path, questions: Sequence[Problem]) -> list[Tree]:
    stored = stored_trees(folder / "trees.jsonl", questions)
    return [stored[problem.id] for problem in questions]


def _spent(trees: Sequence[Tree]) -> int:
    return sum(tree.usage.policy_tokens for tree in trees)


def _cost(usage: Usage, trees: int) -> dict[str, Any]:
    return {"trees": trees, "policy_tokens": usage.policy_tokens, "value_tokens": usage.value_tokens}


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float | str)}


def options(name: str, about: str) -> argparse.ArgumentParser:
    """What the studies are asked for on the command line."""
    parser = argparse.ArgumentParser(prog=f"python -m studies.{name}", description=about.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder; each kind of questions has one of its own in it")
    parser.add_argument("--kind", choices=KINDS, default=arithmetic.KIND.name, help="of questions")
    parser.add_argument("--seed", type=int, help="run this one")
    parser.add_argument("--report", action="store_true", help="show the tables over all seeds there are")
    return parser


def read(parser: argparse.ArgumentParser, result: str) -> tuple[argparse.Namespace, Path, Kind]:
    """What is asked for, the folder of its kind, and the kind. A report needs a `result` there: "seed-*/..."."""
    asked = parser.parse_args()
    out = asked.out / asked.kind
    if asked.report and asked.seed is None and not any(out.glob(result)):
        parser.error(f"no finished seed in {out}: run one first, with --seed 0")
    return asked, out, KINDS[asked.kind]


def main() -> None:
    asked, out, kind = read(options("verifiers", str(__doc__)), "seed-*/scores/chances.jsonl")
    if asked.seed is not None:
        run(out, asked.seed, kind, Sizes())
    if asked.report:
        report(out, Console(width=200))


if __name__ == "__main__":
    main()
