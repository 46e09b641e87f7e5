"""Numbers sent to trackers of experiments, through transformers' own callbacks (see `trackers`).

A training is a run of its own in the tracker, and so are the stages of a whole run together: their numbers are sent
whenever one is done, with the round as the step.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from restmcts.errors import ConfigError
from restmcts.trackers import PROJECT, Tracking

log = logging.getLogger("restmcts")

BOARD = "TENSORBOARD_LOGGING_DIR"
"""the environment variable by which transformers' callback finds TensorBoard's folder"""
OURS = {"WANDB_PROJECT": PROJECT, "MLFLOW_EXPERIMENT_NAME": PROJECT}
"""what is set where the user's environment says nothing"""


@contextmanager
def opened(tracking: Tracking, **more: str) -> Iterator[None]:
    """Within it, trackers find their place in the environment; at the end the tracker's run is over."""
    changed = {name: value for name, value in OURS.items() if name not in os.environ} | more
    if tracking.folder is not None:
        root = os.environ.get(BOARD)
        changed[BOARD] = os.path.join(root, str(tracking.name)) if root else str(tracking.folder)
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        wandb = sys.modules.get("wandb")
        if "wandb" in tracking.to and wandb is not None and wandb.run is not None:
            wandb.finish()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class StageReports:
    """Sends the numbers of a run's stages. Raises ConfigError where a tracker refuses to begin."""

    def __init__(self, tracking: Tracking, settings: Mapping[str, Any]) -> None:
        self.tracking = tracking
        self._settings = dict(flat(settings))
        self._same: dict[str, str] = {}
        self._wandb: str | None = None
        self._kept: dict[str, Any] = {}  # TensorBoard's callback, which stays open: one file for all stages
        try:
            self._send(0, {})
        except Exception as error:  # each library has its own
            said = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"report_to = {', '.join(tracking.to)}: it cannot begin ({said}); mend that, or leave report_to out"
            ) from error

    def send(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send them; what a tracker has against it is a warning, since the numbers are in metrics.jsonl as well."""
        try:
            self._send(step, numbers)
        except Exception as error:
            log.warning("the numbers of a stage did not reach %s: %s", ", ".join(self.tracking.to), error)

    def _send(self, step: int, numbers: Mapping[str, float]) -> None:
        arguments = _Arguments(output_dir=str(self.tracking.folder), use_cpu=True, **self.tracking.arguments())
        arguments.told = self._settings
        state, control = TrainerState(global_step=step), TrainerControl()
        with opened(self.tracking, **self._same):
            self._go_on_in_wandb()
            for name in self.tracking.to:
                (make,) = get_reporting_integration_callbacks([name])
                callback = self._kept.get(name) or make()
                callback.on_log(arguments, state, control, logs=dict(numbers))
                if name == "tensorboard":
                    self._kept[name] = callback
                else:
                    self._remember()
                    callback.on_train_end(arguments, state, control)

    def close(self) -> None:
        """End what was kept open."""
        for callback in self._kept.values():
            callback.on_train_end(None, None, None)
        self._kept.clear()

    def _go_on_in_wandb(self) -> None:
        """Open the run that the callback will find: it can only begin new ones."""
        if "wandb" in self.tracking.to:
            import wandb

            project = os.environ["WANDB_PROJECT"]
            self._wandb = wandb.init(project=project, name=self.tracking.name, id=self._wandb, resume="allow").id

    def _remember(self) -> None:
        """Keep the name by which MLflow goes on with a run that was ended."""
        if "mlflow" in self.tracking.to and (run := sys.modules["mlflow"].active_run()) is not None:
            self._same["MLFLOW_RUN_ID"] = run.info.run_id


class _Arguments(TrainingArguments):
    """Arguments whose record in the tracker is the settings of the run."""

    told: dict[str, Any] = {}  # noqa: RUF012 (of the class, so that it is no field of the dataclass)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.told)


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings by dotted names, as text; those that are not set are left out."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", str(value)[:200]
