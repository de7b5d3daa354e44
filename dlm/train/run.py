"""The run folder: its configuration, its checkpoints, and which of them is best and last."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from dlm.config import Config
from dlm.errors import CheckpointError, ConfigError
from dlm.model.checkpoint import point, whole_folder
from dlm.model.locate import CHECKPOINTS
from dlm.settings import dump_config, load_config
from dlm.train.scaling import LossScale

TRAINER = "trainer"
"""The folder in a checkpoint that only a resumed run reads."""

FREE_KEYS = {
    "compile",
    "gradient_checkpointing",
    "keep",
    "log_every",
    "micro_batch_size",
    "sample_length",
    "save_every",
    "trackers",
    "validate_every",
}
"""Keys of `train` that may change when a run is resumed: they do not change what is learned."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands at a checkpoint.

    Attributes:
        step: Steps taken.
        tokens: Tokens trained on.
        train_tokens: Tokens of the training text; None of a stream.
        train_checksum: A checksum of it, to notice that it changed; None of a stream.
        best: The lowest validation bound so far, in nats a token; None before the first.
        best_step: The step at which `best` was reached.
        places: The position of each process in the stream it trains on; None without streaming.
        loss_scale: The scale of the loss; None of a run that needs none.
    """

    step: int
    tokens: int
    train_tokens: int | None
    train_checksum: int | None
    best: float | None = None
    best_step: int | None = None
    places: list[dict[str, Any]] | None = None
    loss_scale: LossScale | None = None

    @classmethod
    def parse(cls, tree: dict[str, Any]) -> "Progress":
        """Reads what `asdict` made of it."""
        scale = tree.get("loss_scale")
        return cls(**{**tree, "loss_scale": LossScale(**scale) if scale else None})


class RunFolder:
    """A run on disk.

    Attributes:
        path: The folder.
        config: The resolved configuration.
    """

    def __init__(self, path: Path, config: Config, *, replaces: bool = False) -> None:
        """Use `create` or `reopen`."""
        self.path = path
        self.config = config
        self.checkpoints = path / CHECKPOINTS
        self._replaces = replaces

    @classmethod
    def create(cls, path: Path, config: Config, *, overwrite: bool = False) -> "RunFolder":
        """Plans a run; nothing is written or removed before `begin`.

        Args:
            path: Where.
            config: The resolved configuration.
            overwrite: Whether to remove an existing run.

        Returns:
            The folder.

        Raises:
            ConfigError: The folder is not empty, and `overwrite` is not set or it holds something other than a run.
        """
        if path.is_file():
            raise ConfigError(f"{path} is a file: choose another run folder by --run-dir")
        taken = path.exists() and any(path.iterdir())
        if taken and not overwrite:
            raise ConfigError(
                f"{path} exists already: go on with it by --resume, start again by --overwrite, "
                "or choose another folder by --run-dir"
            )
        if taken and not (path / "config.yaml").exists():
            raise ConfigError(f"{path} is no run folder and is not overwritten: choose another by --run-dir")
        return cls(path, config, replaces=taken)

    @classmethod
    def reopen(cls, path: Path, config: Config | None = None) -> "RunFolder":
        """Opens an existing run.

        Args:
            path: The run folder.
            config: The configuration to resume with; it must describe the same training.

        Returns:
            The folder.

        Raises:
            ConfigError: There is no run, or it was begun with another configuration.
        """
        if not (path / "config.yaml").exists():
            raise ConfigError(f"nothing to resume: {path} holds no run; leave --resume out to begin one")
        begun = load_config(path / "config.yaml")
        if config is not None:
            _check_same(path, begun, config)
        return cls(path, config or begun)

    def begin(self) -> None:
        """Makes the folder and writes the configuration into it.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        try:
            if self._replaces:
                shutil.rmtree(self.path)
                self._replaces = False
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            draft = self.path / ".config.yaml.draft"
            text = yaml.safe_dump(dump_config(self.config), sort_keys=False, allow_unicode=True)
            draft.write_text(text, encoding="utf-8")
            draft.replace(self.path / "config.yaml")
        except OSError as error:
            raise CheckpointError(f"cannot write the run folder {self.path}: {error.strerror}") from error

    def last(self) -> Path | None:
        """The newest complete checkpoint; None before the first."""
        steps = self._steps()
        return self._folder(steps[-1]) if steps else None

    def save(self, progress: Progress, fill: Callable[[Path], None]) -> Path:
        """Writes a checkpoint, moves the links to it and removes what is no longer kept.

        Args:
            progress: Where the run stands.
            fill: Writes the model into the folder it is given, and the trainer's state into its `trainer/`.

        Returns:
            The checkpoint.

        Raises:
            CheckpointError: It could not be written; earlier checkpoints are unchanged.
        """
        target = self._folder(progress.step)
        if not target.exists():
            before = self.last()
            try:
                with whole_folder(target) as draft:
                    (draft / TRAINER).mkdir()
                    fill(draft)
                    text = json.dumps(asdict(progress), indent=2)
                    (draft / TRAINER / "progress.json").write_text(text + "\n", encoding="utf-8")
            except CheckpointError as error:
                raise CheckpointError(f"{error}; the last good checkpoint is {before or 'none yet'}") from error
        self._link(progress)
        self._prune()
        return target

    def resume(self, *, writes: bool = True) -> tuple[Path, Progress] | None:
        """The newest checkpoint and its progress.

        Args:
            writes: Whether to repair the links first; only one process of a run may do so.

        Returns:
            The checkpoint, and where the run stands there; None before the first checkpoint.

        Raises:
            CheckpointError: It is damaged.
        """
        path = None if self._replaces else self.last()
        if path is None:
            return None
        try:
            progress = Progress.parse(json.loads((path / TRAINER / "progress.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged, remove it to go on from the one before: {error}") from error
        if writes:
            self._link(progress)  # the run may have been killed after the checkpoint and before its links
        return path, progress

    def _link(self, progress: Progress) -> None:
        point(self.checkpoints / "last", self._folder(progress.step))
        if progress.best_step is not None and (best := self._folder(progress.best_step)).exists():
            point(self.checkpoints / "best", best)

    def _steps(self) -> list[int]:
        names = (re.fullmatch(r"step-(\d+)", p.name) for p in self.checkpoints.glob("step-*"))
        return sorted(int(name.group(1)) for name in names if name)

    def _folder(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def _prune(self) -> None:
        """Removes old checkpoints, except those that `best` and `last` point to and the newest `train.keep`."""
        named = {(self.checkpoints / link).resolve().name for link in ("best", "last")}
        others = [step for step in self._steps() if self._folder(step).name not in named]
        for step in others[: max(len(others) - self.config.train.keep, 0)]:
            # Renamed first, so that no reader finds half of a folder under a checkpoint's name.
            self._folder(step).rename(self.checkpoints / f".step-{step:06d}.doomed")
        for leftover in (*self.checkpoints.glob(".step-*.doomed"), *self.checkpoints.glob(".step-*.draft")):
            shutil.rmtree(leftover, ignore_errors=True)


def _check_same(path: Path, begun: Config, asked: Config) -> None:
    """Refuses to resume a run with a configuration that describes other training."""
    old, new = _flat(dump_config(begun)), _flat(dump_config(asked))
    free = {f"train.{key}" for key in FREE_KEYS}
    for key in sorted(set(old) | set(new)):
        if key not in free and old.get(key) != new.get(key):
            raise ConfigError(
                f"{path} was begun with another configuration: {key} was {old.get(key)!r} and is now {new.get(key)!r}; "
                "resume it without a configuration, or choose another --run-dir"
            )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree as dotted keys."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {key: value for name, child in tree.items() for key, value in _flat(child, f"{prefix}{name}.").items()}
