"""The paper's table of verifiers on a tiny model: what is a labelling rule worth, at one budget of generated tokens?

    python -m studies.verifiers OUT --seed 0     one seed, some ten minutes of one core; the same command resumes
    python -m studies.verifiers OUT --report     the tables over all seeds in OUT

Per seed: a policy is trained from scratch on worked solutions and samples 256 solutions of each held-out question. For
each rule it then collects data on the same other questions, each rule with the same number of generated tokens (what
Math-Shepherd's few traces cost with all their completions), and a value model is trained on the rows, from the policy's
backbone, on the same number of tokens. The value models choose among the same 256 solutions.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from restmcts.completing import complete_trees
from restmcts.config import LabelSettings
from restmcts.datasets import label_trees, value_rows, verify
from restmcts.encoding import Encoder
from restmcts.engines import Engines
from restmcts.engines.opening import load_engines
from restmcts.engines.settings import EngineSettings
from restmcts.evaluate import search_all, stored_trees
from restmcts.files import read_json, read_jsonl, write_json, write_jsonl
from restmcts.metrics import bootstrap_mean, paired_difference
from restmcts.rows import ValueRow
from restmcts.search import SearchSettings
from restmcts.seeds import derive_seed
from restmcts.tables import Table
from restmcts.tasks import get_task
from restmcts.tasks.grade import Grader
from restmcts.train.settings import PolicyTraining, ValueTraining
from restmcts.types import Problem, Tree, Usage
from restmcts.worked import worked_policy_rows
from studies.arithmetic import PROMPT, problems, write_model

NUMBERS = (16, 64, 256)
TASK = get_task("math")
ENGINE = EngineSettings(kind="transformers", device="cpu", dtype="float32", max_rows=256)
LIMITS: dict[str, Any] = {"temperature": 1.0, "step_tokens": 16, "max_depth": 8}


@dataclass(frozen=True)
class Sizes:
    """How large everything is; the usual sizes are those of the study."""

    worked: int = 8000
    epochs: int = 6
    width: int = 96
    train: int = 200
    heldout: int = 150
    samples: int = NUMBERS[-1]
    traces: int = 3
    """traces of a question that Math-Shepherd completes; what this costs is the budget of all rules"""
    completions: int = 8
    omega_traces: int = 7
    """traces of a question that OmegaPRM looks into, as many as the budget pays for; a trace costs it less"""
    trained_tokens: int = 1_000_000
    """tokens that each value model is trained on, as near as whole epochs come"""
    most_epochs: int = 12


@dataclass
class Seed:
    """One seed's folder, its questions, and its engines while they are open."""

    out: Path
    seed: int
    sizes: Sizes
    questions: dict[str, list[Problem]] = field(init=False)

    def __post_init__(self) -> None:
        taken: set[str] = set()
        sizes = {"heldout": self.sizes.heldout, "train": self.sizes.train, "worked": self.sizes.worked}
        # Held-out questions are the same in all seeds, so that seeds are compared question by question.
        self.questions = {
            name: problems(count, derive_seed(name, None if name == "heldout" else self.seed), name, taken=taken)
            for name, count in sizes.items()
        }

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


def run(out: Path, seed: int, sizes: Sizes) -> None:
    """All parts of one seed."""
    study = Seed(out / f"seed-{seed}", seed, sizes)
    policy = train_policy(study)
    with Grader() as grader:
        pool = sample(study, "heldout", policy, study.questions["heldout"], sizes.samples, grader)
        for name, rows in collect(study, policy, grader):
            train_verifier(study, name, rows, policy)
        score(study, pool, grader)


def train_policy(study: Seed) -> Path:
    from restmcts.train import policy

    def work(folder: Path) -> dict[str, Any]:
        base = write_model(folder / "base", study.seed, width=study.sizes.width)
        rows = worked_policy_rows(study.questions["worked"], TASK.find_answer)
        settings = PolicyTraining(epochs=study.sizes.epochs, learning_rate=4e-3, batch_tokens=512, **_FULL)
        return _plain(
            policy.train_policy(
                rows, base=base, out=folder / "model", prompt=PROMPT, settings=settings, seed=study.seed
            )
        )

    study.once("policy", work)
    return study.out / "policy" / "model"


_FULL: dict[str, Any] = {"method": "full", "device": "cpu", "precision": "float32", "micro_tokens": 8192}


def sample(
    study: Seed, name: str, policy: Path, questions: Sequence[Problem], count: int, grader: Grader
) -> list[Tree]:
    """`count` independent solutions of each question."""
    return search(
        study, name, policy, None, questions, SearchSettings(method="sample", samples=count, **LIMITS), grader
    )


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
        with _Open(policy, value) as engines:
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
        with _Open(policy, None) as engines:
            found = complete_trees(
                trees,
                LabelSettings(rule=name, completions=study.sizes.completions),
                SearchSettings(**LIMITS),
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
    settings = SearchSettings(iterations=1000, threshold=2, budget_tokens=left, **LIMITS)
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
        settings = ValueTraining(
            epochs=epochs, learning_rate=1e-3, batch_tokens=1024, traces_per_question=None, **_FULL
        )
        made = value.train_value(
            rows, base=policy, out=folder / "model", prompt=PROMPT, settings=settings, seed=study.seed
        )
        return {"name": name, "epochs": epochs, **_plain(made)}

    study.once(part, work)
    return study.out / part / "model"


def score(study: Seed, pool: Sequence[Tree], grader: Grader) -> None:
    """What every verifier says of every held-out solution: scores.jsonl, a line a question."""
    from restmcts.models import load_token_classifier, load_tokenizer
    from restmcts.train.value import score_traces

    def work(folder: Path) -> dict[str, Any]:
        ends = [[n for n, s in enumerate(tree.status) if s != "open"] for tree in pool]
        correct = verify(pool, grader)
        records: list[dict[str, Any]] = []
        for tree, leaves, flags in zip(pool, ends, correct, strict=True):
            keys = [None if (a := tree.answer[n]) is None else TASK.key(a) for n in leaves]
            record = {"id": tree.problem.id, "copies": [tree.copies[n] for n in leaves], "key": keys}
            records.append(record | {"right": [bool(flags[n]) for n in leaves], "last": {}, "least": {}})
        for path in sorted((study.out / "verifiers").iterdir()):
            name, model = read_json(path / "figures.json")["name"], load_token_classifier(path / "model")
            encoder = Encoder(load_tokenizer(path / "model"), PROMPT)
            traces = [(tree.problem, tree.path(n)) for tree, leaves in zip(pool, ends, strict=True) for n in leaves]
            values = iter(score_traces(model.eval(), encoder, traces, micro_tokens=16384))
            for record, leaves in zip(records, ends, strict=True):
                said = list(itertools.islice(values, len(leaves)))
                record["last"][name] = [round(v[-1], 5) for v in said]
                record["least"][name] = [round(min(v), 5) for v in said]
        write_jsonl(folder / "scores.jsonl", records)
        return {"solutions": sum(map(len, ends))}

    study.once("scores", work)


# ---------------------------------------------------------------- parts


class _Open:
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


# ---------------------------------------------------------------- the tables


Question = tuple[str, list[str | None], list[bool], dict[str, list[float]]]
"""its id; per solution its answer and whether that is right; per verifier the value of each"""


def read(out: Path, of_steps: str) -> list[list[Question]]:
    """The scores of every seed: one entry a solution, in an order drawn by chance."""
    import random

    seeds = []
    for path in sorted(out.glob("seed-*/scores/scores.jsonl")):
        questions: list[Question] = []
        for record in read_jsonl(path):
            order = [i for i, count in enumerate(record["copies"]) for _ in range(count)]
            random.Random(derive_seed(path.parent.parent.name, record["id"])).shuffle(order)
            values = {name: [said[i] for i in order] for name, said in record[of_steps].items()}
            keys, right = [record["key"][i] for i in order], [record["right"][i] for i in order]
            questions.append((record["id"], keys, right, values))
        seeds.append(questions)
    return seeds


def chosen(keys: Sequence[str | None], right: Sequence[bool], weights: Sequence[float], vote: bool) -> bool:
    """Whether the answer is right: of the highest-weighted solution, or of the answer with most weight. First wins."""
    answered = [i for i, key in enumerate(keys) if key is not None]
    if not answered:
        return False
    if not vote:
        return right[max(answered, key=lambda i: weights[i])]
    votes: dict[str | None, float] = {}
    for i in answered:
        votes[keys[i]] = votes.get(keys[i], 0.0) + weights[i]
    winner = max(votes, key=lambda key: votes[key])
    return next(right[i] for i in answered if keys[i] == winner)


def answers(seeds: Sequence[Sequence[Question]], name: str, n: int) -> tuple[list[bool], list[str]]:
    """Right or wrong, and the question, for every n solutions of the pools: disjoint groups, clustered by question."""
    rights: list[bool] = []
    asked: list[str] = []
    vote, verifier = name.startswith("SC"), name.removeprefix("SC").removeprefix(" + ")
    for questions in seeds:
        for identity, keys, right, values in questions:
            weights = values[verifier] if verifier else [1.0] * len(keys)
            for start in range(0, len(keys) - n + 1, n):
                part = slice(start, start + n)
                rights.append(chosen(keys[part], right[part], weights[part], vote))
                asked.append(identity)
    return rights, asked


def report(out: Path, console: Console) -> None:
    """Show the tables over all seeds."""
    for of_steps in ("last", "least"):
        seeds = read(out, of_steps)
        names = [name for name in seeds[0][0][3] if name != "guide"]
        rows = ["SC", *(row for name in names for row in (name, f"SC + {name}"))]
        found = {(row, n): answers(seeds, row, n) for row in rows for n in NUMBERS}
        accuracies = Table(
            f"Right answers, %, by the {of_steps} step's value ({len(seeds)} seeds)", ["", *map(str, NUMBERS)]
        )
        differences = Table("Points above SC, paired", ["", *map(str, NUMBERS)])
        for row in rows:
            cells, gains = [], []
            for n in NUMBERS:
                rights, asked = found[row, n]
                interval = bootstrap_mean(rights, asked)
                assert interval is not None
                cells.append(f"{100 * fmean(rights):.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]")
                gains.append(_difference(found["SC", n], found[row, n]))
            accuracies.rows.append([row, *cells])
            differences.rows.append([row, *gains])
        accuracies.show(console)
        differences.show(console)
        pairs = Table("Paired differences", ["", *map(str, NUMBERS)])
        for one, other in itertools.combinations(names, 2):
            for kind in ("", "SC + "):
                cells = [_difference(found[kind + other, n], found[kind + one, n]) for n in NUMBERS]
                pairs.rows.append([f"{kind}{one} − {other}", *cells])
        pairs.show(console)
    costs = Table("What the data cost, per seed", ["", "tokens", "epochs", "rows", "labelled steps", "trained tokens"])
    for path in sorted(out.glob("seed-*")):
        for figures in sorted(path.glob("**/figures.json")):
            made = read_json(figures)
            tokens = str(made.get("policy_tokens", ""))
            cells = [str(made.get(k, "")) for k in ("epochs", "rows", "labelled_steps", "tokens")]
            costs.rows.append([f"{path.name} {figures.parent.name}", tokens, *cells])
    costs.show(console)


def _difference(before: tuple[list[bool], list[str]], after: tuple[list[bool], list[str]]) -> str:
    made = paired_difference(before[0], after[0], before[1])
    if made is None or made.interval is None:
        return ""
    p = 1.0 if made.p is None else made.p
    return f"{100 * made.mean:+.1f} [{100 * made.interval.low:+.1f}, {100 * made.interval.high:+.1f}] p {p:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.verifiers", description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--report", action="store_true")
    asked = parser.parse_args()
    if asked.seed is not None:
        run(asked.out, asked.seed, Sizes())
    if asked.report:
        report(asked.out, Console(width=200))


if __name__ == "__main__":
    main()
