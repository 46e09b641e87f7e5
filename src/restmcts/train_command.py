"""`restmcts train`: one training alone, in one process or in several that a launcher started (`ranks`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from restmcts import datasets, ranks
from restmcts.cards import write_card
from restmcts.commands import existing, stage_alone
from restmcts.config import RunConfig
from restmcts.console import Progress
from restmcts.job import Job, OnStep, Tools
from restmcts.loop import ModelTools
from restmcts.rows import POLICY_ROWS, VALUE_ROWS
from restmcts.store import StageFolder
from restmcts.trackers import check_installed


def train_model(
    kind: Literal["policy", "value"], config: RunConfig, rows: Path, base: str, out: Path, progress: Progress
) -> None:
    """Train one model on the rows of a file.

    Of several processes the first has the folder; the others wait until it says whether there is something to do.
    """
    rows = existing(rows, POLICY_ROWS if kind == "policy" else VALUE_ROWS)
    training = config.policy_training if kind == "policy" else config.value_training
    check_installed(config.report_to)

    def train(tools: Tools, folder: Path, on_step: OnStep) -> dict[str, Any]:
        found = datasets.read_rows(rows, datasets.PolicyRow if kind == "policy" else datasets.ValueRow)
        options: dict[str, Any] = {"base": base, "out": folder, "settings": training, "seed": config.seed}
        return dict(tools.train(kind, found, **options, on_progress=on_step))

    def work(stage: StageFolder, job: Job) -> dict[str, Any]:
        progress.stage(f"train {kind}")
        return train(job.tools, stage.path, job.on_step)

    def tell_others(todo: bool) -> None:
        ranks.agreed(lambda: todo)

    settings = {
        f"{kind}_training": training.model_dump(mode="json", exclude={"accelerate"}),
        "prompt": config.prompt.model_dump(mode="json"),
        "seed": config.seed,
    }
    inputs: dict[str, str | Path | None] = {"rows": rows, "base": base}
    with ranks.together(training.device):
        if not ranks.is_first():
            if ranks.agreed(lambda: False):
                train(ModelTools(config), out, lambda *_: None)
            return
        stage_alone(config, out, progress, work, settings=settings, inputs=inputs, begins=tell_others)
    write_card(out)
    print(f"the {kind} model is in {out}")
