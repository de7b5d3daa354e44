"""Experiment trackers: a run under its own name, with its configuration, and the same run again when it goes on."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from dlm.config import Config
from dlm.errors import TrainingError, one_line
from dlm.settings import dump_config, flatten

PROJECT = "dlm"
"""What trackers call the project; for those that write files, their folder in the run folder."""

IDENTITY = "tracking-id"
"""The file of a run folder by which a tracker knows the run again."""


def start_trackers(accelerator: Accelerator, folder: Path, config: Config, step: int) -> None:
    """Starts the trackers of a run, or goes on with them; the first process alone has any.

    TensorBoard hides what it has of later steps, since they are taken again. Weights & Biases keeps the first value of
    each step.

    Args:
        accelerator: The accelerator of the run.
        folder: The run folder; its name is the run's.
        config: The run's configuration.
        step: Steps taken.

    Raises:
        TrainingError: A tracker could not be started.
    """
    if not config.train.trackers or not accelerator.is_main_process:
        return
    options = {"tensorboard": {"purge_step": step + 1} if step else {}, "wandb": _wandb(folder)}
    try:
        accelerator.init_trackers(PROJECT, init_kwargs=options)
        for tracker in accelerator.trackers:
            if tracker.name == "tensorboard":  # Accelerate would make another run for the configuration
                tracker.tracker.add_hparams(settings(config), {}, run_name=".")
            else:
                tracker.store_init_configuration(settings(config))
    except Exception as error:
        names = ", ".join(config.train.trackers)
        raise TrainingError(f"train.trackers: {names} could not be started: {one_line(error)}") from error


def settings(config: Config) -> dict[str, bool | int | float | str]:
    """The configuration by dotted keys, in values that every tracker takes: lists and null are JSON."""
    flat = flatten(dump_config(config))
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value) for key, value in flat.items()
    }


def _wandb(folder: Path) -> dict[str, Any]:
    """The arguments of `wandb.init`, but for those that its user has set in the environment."""
    identity = folder / IDENTITY
    if not identity.exists():
        identity.write_text(f"{uuid.uuid4().hex[:8]}\n", encoding="utf-8")
    given = {
        "WANDB_NAME": ("name", folder.resolve().name),
        "WANDB_RUN_ID": ("id", identity.read_text(encoding="utf-8").strip()),
        "WANDB_RESUME": ("resume", "allow"),
        "WANDB_DIR": ("dir", str(folder)),
    }
    return {key: value for variable, (key, value) in given.items() if variable not in os.environ}
