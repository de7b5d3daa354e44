"""The runs of a folder: where each stands, and how to go on with it."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from dlm.config import Source
from dlm.errors import CheckpointError, ConfigError, DlmError, one_line
from dlm.evaluate.bootstrap import Interval
from dlm.model.checkpoint import read_sidecar
from dlm.model.locate import CHECKPOINTS, SIDECAR, follow, is_adapter
from dlm.model.tensors import OPTIMIZER_STATE, RAW_WEIGHTS, TIME_WEIGHTS, check_whole
from dlm.paths import quoted
from dlm.settings import load_config
from dlm.train.history import METRICS, History
from dlm.train.lock import writer_of
from dlm.train.run import LOST, TRAINER, Progress

State = Literal["training", "finished", "interrupted", "broken"]

CONFIG = "config.yaml"
"""The file of a run folder that every run has from its first moment on."""


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    Attributes:
        path: Its folder.
        state: Whether a process trains it now, all its steps are done, some are not, or it cannot be gone on with, as
            a configuration, a history or weights are damaged; of weights, headers and sizes are looked at.
        writer: The process that trains it, in words; None for none.
        step: The last step taken.
        saved: The step of its last checkpoint; None before the first.
        steps: Steps of the whole run; None where that cannot be read.
        best: The lowest validation bound, in nats a token; None before the first.
        best_ci95: Its 95% interval.
        best_step: After which step.
        tokens_per_second: The median speed of the last steps.
        changed: When it last wrote something, in UTC.
        go_on: A command line that goes on with it.
        problem: Why it is broken; empty otherwise.
        reading: What the bound is of, such as any order or the causal reading; None before the first.
    """

    path: str
    state: State
    writer: str | None
    step: int
    saved: int | None
    steps: int | None
    best: float | None
    best_ci95: Interval | None
    best_step: int | None
    tokens_per_second: float | None
    changed: str | None
    go_on: str
    problem: str = ""
    reading: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def list_runs(folder: Path) -> list[RunState]:
    """Looks at every run of a folder, or at the one that the folder is.

    Args:
        folder: A folder of run folders, or a run folder.

    Returns:
        Where each stands, by name. A folder that is no run is left out, and one that is damaged is not.

    Raises:
        ConfigError: There is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}: train a run by dlm train, or name the folder of your runs")
    if is_run(folder):
        return [state_of(folder)]
    return [state_of(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".") and is_run(path)]


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, or what is left of one."""
    try:
        return path.is_dir() and any((path / name).exists() for name in (CONFIG, CHECKPOINTS, METRICS))
    except OSError:
        return True  # that of someone else; it is shown as one that cannot be read


def state_of(run: Path) -> RunState:
    """Where a run stands.

    Args:
        run: Its folder.

    Returns:
        What is known, also of a damaged folder.
    """
    try:
        return _state(run)
    except (DlmError, OSError) as error:
        problem = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else str(error)
        return RunState(
            path=str(run),
            state="broken",
            writer=None,
            step=0,
            saved=None,
            steps=None,
            best=None,
            best_ci95=None,
            best_step=None,
            tokens_per_second=None,
            changed=_changed(run),
            go_on="",
            problem=problem,
        )


def _state(run: Path) -> RunState:
    """Where a run stands, if all of it can be read."""
    if not (run / CONFIG).exists():
        raise ConfigError(f"it has no {CONFIG}, which every run has")
    config = load_config(run / CONFIG)
    writer = writer_of(run)
    saved = max(_saved_steps(run), default=None)
    history = History.read(run)
    if saved is not None:
        Progress.read(run / CHECKPOINTS / f"step-{saved:06d}")
    best, steps = history.best, config.train.steps
    step = max(history.steps[-1].step if history.steps else 0, saved or 0)
    state: State = "finished" if saved is not None and saved >= steps else "interrupted"
    if writer:
        state = "training"
    elif saved is not None:
        last = run / CHECKPOINTS / f"step-{saved:06d}"
        best_folder = follow(run / CHECKPOINTS / "best")
        for folder in dict.fromkeys([last.resolve(), *([best_folder.resolve()] if best_folder.exists() else [])]):
            _check_model(folder)
        for name in (OPTIMIZER_STATE, *([RAW_WEIGHTS] if config.train.ema else [])):
            check_whole(last / TRAINER / name)
    elif history.has_saved:
        raise CheckpointError(f"{run} {LOST}")
    return RunState(
        path=str(run),
        state=state,
        writer=str(writer) if writer else None,
        step=step,
        saved=saved,
        steps=steps,
        best=best.judged.nats_per_token if best else None,
        best_ci95=best.judged.interval if best else None,
        best_step=best.step if best else None,
        tokens_per_second=history.speed(),
        changed=_changed(run),
        go_on=_go_on(run, state, config.data.train),
        reading=best.reading if best else None,
    )


def _check_model(folder: Path) -> None:
    """Refuses a checkpoint that lacks a file of its model, or has one that is damaged; no tensor is read."""
    if read_sidecar(str(folder)) is None:
        raise CheckpointError(f"{folder} is damaged: it has no {SIDECAR}")
    for name in ("adapter_config.json" if is_adapter(str(folder)) else "config.json", "tokenizer.json"):
        try:
            json.loads((folder / name).read_bytes())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder / name} is damaged: {one_line(error, 120)}") from error
    files = {*folder.glob("*.safetensors")}
    if not any(file.name != TIME_WEIGHTS for file in files):
        raise CheckpointError(f"{folder} is damaged: it has no weights")
    for index in folder.glob("*.safetensors.index.json"):
        try:
            files |= {folder / name for name in json.loads(index.read_bytes())["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: {one_line(error, 120)}") from error
    for file in sorted(files):
        check_whole(file)


def _go_on(run: Path, state: State, source: Source) -> str:
    """What to type next: a run that is being trained is looked at."""
    if state == "training":
        return f"dlm report {quoted(run)} -o report.html"
    if state == "interrupted":
        return f"dlm train --resume --run-dir {quoted(run)}"
    ask = " --chat ..." if source.messages else " --prompt ..." if source.supervised else ""
    return f"dlm sample {quoted(run)}{ask}"


def _saved_steps(run: Path) -> Iterator[int]:
    """The steps of its checkpoints."""
    for path in (run / CHECKPOINTS).glob("step-*"):
        if found := re.fullmatch(r"step-(\d+)", path.name):
            yield int(found[1])


def _changed(run: Path) -> str | None:
    """When the last of its files was written; None of a folder that cannot be read."""
    try:
        times = [path.stat().st_mtime for path in (*run.glob("*"), *(run / CHECKPOINTS).glob("*"))]
    except OSError:
        return None
    return datetime.fromtimestamp(max(times), UTC).strftime("%Y-%m-%d %H:%M UTC") if times else None
