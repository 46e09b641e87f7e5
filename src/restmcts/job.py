"""What every stage of a run works with: its settings, its folder, its models, and the record of what is done."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from restmcts.account import Account
from restmcts.config import RunConfig
from restmcts.console import Progress
from restmcts.engines import Engines
from restmcts.evaluate import TREES, spent_on
from restmcts.livegrader import OnTree
from restmcts.models import named_style
from restmcts.results import METRICS
from restmcts.seeds import derive_seed
from restmcts.store import RunFolder, StageFolder, write_jsonl
from restmcts.tasks.grade import Grader
from restmcts.trackers import Tracking, stage_numbers
from restmcts.train.settings import Training
from restmcts.types import Budget, Problem, Tree, Usage

if TYPE_CHECKING:
    from restmcts.train.reporting import StageReports

Kind = Literal["policy", "value", "preference", "online"]
"""of training: on right traces, on labelled steps, on pairs, on what the policy samples meanwhile"""
OnStep = Callable[[int, int, float, int], None]
"""called after every training step with: step, total steps, its loss, tokens trained so far"""


TRACKING = "tracking"
"""folder for TensorBoard's files"""


class Tools(Protocol):
    """What a run needs of models: open them, train them. `loop.ModelTools` is the built-in one."""

    def load_engines(self, policy: str | Path, value: str | Path | None, examples: Sequence[Problem]) -> Engines:
        """Open a pair of models; `examples` are shown to the policy before each question."""

    def train(
        self,
        kind: Kind,
        rows: Sequence[Any],
        *,
        base: str | Path,
        out: Path,
        settings: Training,
        seed: int,
        on_progress: OnStep,
    ) -> Mapping[str, Any]:
        """Train on `PolicyRow`s, `ValueRow`s, `PreferenceRow`s or questions, with that kind's settings; metrics."""

    def is_value_model(self, spec: str | Path) -> bool:
        """Whether this is a trained value model, as against a language model."""


@dataclass(slots=True)
class Job:
    """What every stage works with."""

    config: RunConfig
    folder: RunFolder
    grader: Grader
    progress: Progress
    tools: Tools
    records: list[dict[str, Any]] = field(default_factory=list)
    """what metrics.jsonl holds: one record per finished stage, in the order of the run"""
    worked_on: int = 0
    """stages done by this process, as against found done"""
    reports: StageReports | None = None
    """where the numbers of stages go too, opened when there is something to do"""

    def stage(
        self,
        name: str,
        kind: str,
        phase: int,
        work: Callable[[StageFolder], Mapping[str, Any]],
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str | Path | None] | None = None,
        mode: str | None = None,
    ) -> Path:
        """Do stage `name`, or find it done; returns its folder. `work` returns its metrics."""
        named, files = models_and_files(inputs or {})
        with self.folder.stage(name, settings={**settings, **named}, inputs=files) as stage:
            take_up_again(stage, self.config.stage_budget.budget())
            fresh = not stage.done
            if fresh:
                self.open_reports()
                stage.finish({**work(stage), "memory_mb": peak_memory_mb()})
                self.progress.finish()
            assert stage.manifest is not None
            metrics = dict(stage.manifest.metrics)
            self.records.append(
                {
                    "stage": name,
                    "kind": kind,
                    "phase": phase,
                    "mode": mode,
                    "seconds": stage.manifest.seconds,
                    "memory_mb": metrics.pop("memory_mb", None),
                    "usage": metrics.pop("usage", None),
                    "speed": metrics.pop("speed", None),
                    "finished": stage.manifest.finished,
                    "metrics": metrics,
                }
            )
        if fresh:
            self.worked_on += 1
            self.write_records()
            if self.reports is not None:
                self.reports.send(max(phase, 0), stage_numbers(self.records[-1]))
        return stage.path

    def open_reports(self) -> None:
        """Begin to report to the trackers of the settings, if there are any."""
        config = self.config
        if self.reports is None and config.report_to:
            from restmcts.train.reporting import StageReports

            self.reports = StageReports(tracking_of(config, config.out), config.model_dump(mode="json"))

    def write_records(self) -> None:
        """Write metrics.jsonl: also at the end, for a process may have died between a manifest and this."""
        write_jsonl(self.folder.path / METRICS, self.records)

    def seed(self, *parts: object) -> int:
        return derive_seed(self.config.seed, *parts)

    def on_step(self, step: int, total: int, loss: float, tokens: int) -> None:
        """Show a training step."""
        self.progress.update(step, total, loss=loss, tokens=tokens)

    def on_reward(self, step: int, total: int, reward: float, tokens: int) -> None:
        """Show a step of online training."""
        self.progress.update(step, total, reward=reward, tokens=tokens)

    def account(self, stage: StageFolder) -> Account:
        """What a stage that searches may still spend."""
        budget = self.config.stage_budget.budget()
        earlier = spent_on(stage.path / TREES) if budget != Budget() else Usage()
        return Account(budget, earlier=earlier, elapsed=stage.seconds)

    def watch(self, stage: StageFolder, total: int, account: Account) -> OnTree:
        """Begin to show a search: trees that are ready, questions solved, tokens generated, how fast, cache hits."""
        self.progress.stage(stage.name, total, done=_lines(stage.path / TREES))
        seen = {"solved": 0, "tokens": 0, "done": 0}

        def on_tree(tree: Tree, right: bool) -> None:
            seen["done"] += 1
            seen["solved"] += right
            seen["tokens"] += tree.usage.policy_tokens
            facts: dict[str, Any] = {"solved": seen["solved"], "tokens": seen["tokens"]}
            count = account.count
            if count.policy_tokens:
                facts["tokens/s"] = round(count.policy_tokens / account.seconds)
            if count.prompt_tokens:
                facts["cache hits"] = f"{count.cached_tokens / count.prompt_tokens:.0%}"
            self.progress.update(seen["done"], total, **facts)

        return on_tree


def tracking_of(config: RunConfig, folder: Path) -> Tracking:
    """Where the numbers of what happens in `folder` go: named as it is inside the run's folder, or on its own."""
    out, folder = config.out.resolve(), folder.resolve()
    if folder.is_relative_to(out):
        inside = folder.relative_to(out)
        return Tracking(config.report_to, (Path(out.name) / inside).as_posix(), out / TRACKING / inside)
    return Tracking(config.report_to, folder.name, folder.parent / TRACKING / folder.name)


def take_up_again(stage: StageFolder, budget: Budget) -> None:
    """Reopen a finished stage that its budget had cut short, if the budget has room again."""
    if stage.manifest is None or not stage.manifest.metrics.get("owed"):
        return
    earlier = Usage(**stage.manifest.metrics["usage"])
    if not Account(budget, earlier=earlier, elapsed=stage.seconds).spent():
        stage.reopen()


def peak_memory_mb() -> int:
    """The most memory this process has held so far, in MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used >> 20 if sys.platform == "darwin" else used >> 10


def release_memory() -> None:
    """Give back to the system what models held: glibc keeps freed memory, and a run opens one model after another."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


def models_and_files(inputs: Mapping[str, str | Path | None]) -> tuple[dict[str, str], dict[str, Path]]:
    """Split inputs into models known by name (hub ids, `embedded`) and files or folders on the disk.

    A folder whose name says how its model is read, `rlhflow:FOLDER`, is both. A `Path` is a file or
    folder also where it is gone.
    """
    given = {label: (str(spec), *named_style(spec)) for label, spec in inputs.items() if spec is not None}
    files = {
        label: Path(name)
        for label, (_, _, name) in given.items()
        if isinstance(inputs[label], Path) or Path(name).exists()
    }
    return {label: spec for label, (spec, style, _) in given.items() if style or label not in files}, files


class OpenOnDemand:
    """Engines that load when first asked for and free their memory at the end of the `with` block."""

    def __init__(self, load: Callable[[], Engines]) -> None:
        self._load = load
        self._engines: Engines | None = None

    def __call__(self) -> Engines:
        if self._engines is None:
            self._engines = self._load()
        return self._engines

    def __enter__(self) -> OpenOnDemand:
        return self

    def __exit__(self, *_: object) -> None:
        if self._engines is not None:
            engines, self._engines = self._engines, None
            asyncio.run(engines.close())
            del engines
            release_memory()
