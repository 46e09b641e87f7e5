"""What a method is given for one round."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from restmcts.data import Data
from restmcts.job import Job
from restmcts.types import Problem

Searched = list[tuple[Path, list[Problem]]]
"""folders of searches, each with its questions, by round"""


@dataclass(frozen=True, slots=True)
class Models:
    """The policy π and the value model V; None where no method of searching asks for values."""

    policy: str | Path
    value: str | Path | None


@dataclass(frozen=True, slots=True)
class Round:
    """Round `k` (from 1): its questions, and what earlier rounds searched."""

    job: Job
    data: Data
    k: int
    questions: list[Problem]
    earlier: Searched

    def trained_on(self, trees: Path) -> Searched:
        """Take down what this round searched; returns whose traces are trained on, this round's last."""
        self.earlier.append((trees, self.questions))
        return self.earlier if self.job.config.accumulate else self.earlier[-1:]
