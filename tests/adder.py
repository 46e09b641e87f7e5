"""A make-believe model that adds numbers, with a skill that training raises: engines and tools for testing the loop."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from restmcts.engines import Engines
from restmcts.seeds import derive_seed
from restmcts.types import (
    Critique,
    Problem,
    Proposals,
    Propose,
    Sample,
    Score,
    Scores,
    Step,
    Usage,
    Verdict,
)

SKILL = "skill.json"


def problem(number: int, terms: int = 3, most: int = 9) -> Problem:
    """Sum number `number`, of terms from 1 to `most`, with its steps worked out."""
    numbers = [derive_seed("term", number, i) % most + 1 for i in range(terms)]
    question = "What is " + " + ".join(map(str, numbers)) + f"? (no. {number})"
    steps, total = [], numbers[0]
    for x in numbers[1:]:
        steps.append(f"{total} + {x} = {total + x}")
        total += x
    return Problem(f"sum-{number}", question, str(total), "\n".join([*steps, f"Answer: {total}"]))


def right_step(problem: Problem, path: Sequence[Step]) -> tuple[str, bool]:
    """The next step that follows from the last one, right or wrong as that was, and whether it is the last."""
    numbers = [int(x) for x in re.findall(r"\d+", problem.question.partition("?")[0])]
    total = int(path[-1].text.rpartition(" ")[2]) if path else numbers[0]
    if len(path) == len(numbers) - 1:
        return f"Answer: {total}", True
    return f"{total} + {numbers[len(path) + 1]} = {total + numbers[len(path) + 1]}", False


class Adder:
    """Adds rightly with probability `skill`, else gets up to 7 more; both engines in one. Knows no token ids."""

    tokenizer_id: str | None = None
    busy_seconds = 0.0

    def __init__(self, skill: float, interrupt_after: int | None = None) -> None:
        self.identity = f"adder-{skill:.2f}"
        self.skill, self.left = skill, interrupt_after
        self.closed = False

    async def propose(self, request: Propose) -> Proposals:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        samples = []
        for i in range(request.first, request.first + request.n):
            text, last = right_step(request.problem, request.path)
            seed = derive_seed(request.seed if request.temperature else request.problem.id, i, len(request.path))
            if seed % 1000 >= 1000 * self.skill:
                head, _, total = text.rpartition(" ")
                text = f"{head} {int(total) + 1 + seed % 7}"
            samples.append(Sample(Step(text), "end" if last else "step"))
        return Proposals(tuple(samples), Usage(policy_tokens=5 * request.n, prompt_tokens=20, requests=1))

    async def critique(self, request: Critique) -> Verdict:
        return Verdict(solved=False)

    async def score(self, request: Score) -> Scores:
        values = []
        for path in request.paths:
            right = all(step.text == right_step(request.problem, path[:k])[0] for k, step in enumerate(path))
            noise = derive_seed(*(step.text for step in path)) % 100 / 500
            values.append((0.8 if right else 0.2) + noise - 0.1)
        return Scores(tuple(values), Usage(value_tokens=7 * len(request.paths), requests=1))

    async def close(self) -> None:
        self.closed = True


class AdderTools:
    """`job.Tools` over the adder: a checkpoint is a folder with a number in it; training raises it by 0.1."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.calls: list[str] = []
        self.opened: list[Adder] = []
        self.interrupt_after = interrupt_after

    def load_engines(self, policy: str | Path, value: str | Path | None, examples: Sequence[Problem]) -> Engines:
        self.calls.append(f"load {Path(policy).parent.name or policy} {len(examples)}")
        engine = Adder(self._skill(policy), self.interrupt_after)
        self.opened.append(engine)
        return Engines(engine, None if value is None else engine)

    def train(self, kind: str, rows: Sequence[Any], *, base: str | Path, out: Path, **_: Any) -> Mapping[str, Any]:
        self.calls.append(f"train {kind}")
        (out / SKILL).write_text(json.dumps(min(0.95, self._skill(base) + 0.1)), encoding="utf-8")
        return {"rows": len(rows), "loss_first": 1.0, "loss_last": 0.5}

    def is_value_model(self, spec: str | Path) -> bool:
        return (Path(spec) / SKILL).exists()

    def _skill(self, model: str | Path) -> float:
        path = Path(model) / SKILL
        return float(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else 0.6
