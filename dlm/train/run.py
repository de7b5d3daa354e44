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
from dlm.errors import CheckpointError, ConfigError, WriteError, unwritten
from dlm.model.checkpoint import flush, point, whole_folder
from dlm.model.locate import CHECKPOINTS, follow
from dlm.settings import dump_config, flatten, load_config
from dlm.train.history import METRICS, History
from dlm.train.lock import RunLock, refusal, writer_of
from dlm.train.optim import learning_rate_factor
from dlm.train.overwriting import check_replaceable, clear, is_taken
from dlm.train.scaling import LossScale

TRAINER = "trainer"
"""The folder in a checkpoint that only a resumed run reads."""

PROGRESS = "progress.json"
"""The file in it that says where the run stands."""

LOST = f"has lost its checkpoints, of which its {METRICS} tells"
"""What is said of a run whose checkpoints are gone."""

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
"""Keys of `train` that may change when a run is resumed: they do not change what is learned, but for rounding, and with
dropout for what it drops in micro-batches of another size."""

PLACE_KEYS = {f"data.{part}.{key}" for part in ("train", "validation") for key in ("format", "path", "split", "subset")}
"""Keys that say where text is; they may change when a run is resumed, since its text is known by its checksum."""

SCHEDULE_KEYS = {"train.steps", *(f"optim.{key}" for key in ("lr", "muon_lr", "warmup", "decay", "restart"))}
"""Keys of the learning rate, which may change where the steps that were taken do not depend on them."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands at a checkpoint.

    Attributes:
        step: Steps taken.
        tokens: Tokens trained on.
        train_tokens: Tokens of the training text; None of a stream.
        train_checksum: A checksum of it, to notice that it changed, by the rule of today or, in checkpoints of earlier
            versions, by theirs; None of a stream.
        best: The lowest validation bound so far, in nats a token; None before the first.
        best_step: The step at which `best` was reached.
        validation_checksum: A checksum of the validation text; None in checkpoints of earlier versions.
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
    validation_checksum: int | None = None
    loss_scale: LossScale | None = None

    @classmethod
    def parse(cls, tree: dict[str, Any]) -> "Progress":
        """Reads what `asdict` made of it."""
        scale = tree.get("loss_scale")
        return cls(**{**tree, "loss_scale": LossScale(**scale) if scale else None})

    @classmethod
    def read(cls, checkpoint: Path) -> "Progress":
        """Reads where its run stood at a checkpoint.

        Args:
            checkpoint: The folder.

        Returns:
            The progress.

        Raises:
            CheckpointError: It cannot be read.
        """
        try:
            return cls.parse(json.loads((checkpoint / TRAINER / PROGRESS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{checkpoint} is damaged: {error}") from error


class RunFolder:
    """A run on disk.

    Attributes:
        path: The folder.
        config: The resolved configuration.
        changes: What is different from the configuration it was begun with, each a line.
    """

    def __init__(self, path: Path, config: Config, check: Callable[[], None], *, replaces: bool = False) -> None:
        """Use `create` or `reopen`."""
        self.changes: list[str] = []
        self.path = path
        self.config = config
        self.checkpoints = path / CHECKPOINTS
        self._replaces = replaces
        self._check = check
        self._lock = RunLock(path)

    @classmethod
    def create(cls, path: Path, config: Config, *, overwrite: bool = False) -> "RunFolder":
        """Plans a run; nothing is written or removed before `begin`.

        Args:
            path: Where.
            config: The resolved configuration.
            overwrite: Whether to remove what an existing run wrote; what else lies in its folder stays.

        Returns:
            The folder.

        Raises:
            ConfigError: The folder is not empty, and `overwrite` is not set, it holds something other than a run, or
                the new run starts from what is in it.
        """

        def check() -> None:
            if config.optim.restart:
                raise ConfigError(f"optim.restart {config.optim.restart}: it is for a run that goes on; set it to 0")
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{path} is a file: choose another run folder by --run-dir")
            if not is_taken(path):
                return
            if not overwrite:
                if holder := writer_of(path):
                    raise refusal(path, holder)
                if not (path / "config.yaml").exists():
                    raise ConfigError(f"{path} is not empty and holds no run: choose another folder by --run-dir")
                raise ConfigError(
                    f"{path} exists already: go on with it by --resume, start again by --overwrite, "
                    "or choose another folder by --run-dir"
                )
            check_replaceable(path, config)

        check()
        return cls(path, config, check, replaces=overwrite)

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
            CheckpointError: It has no checkpoint any more.
        """

        def begun() -> Config:
            if not (path / "config.yaml").exists():
                raise ConfigError(f"nothing to resume: {path} holds no run; leave --resume out to begin one")
            return load_config(path / "config.yaml")

        asked = config or begun()

        def check() -> None:
            saved = max(run._steps(), default=0)
            run.changes = _changes(path, begun(), asked, saved)
            if not saved and History.read(path).has_saved:
                raise CheckpointError(f"{path} {LOST}; to train it from the first step, use --overwrite for --resume")

        run = cls(path, asked, check)
        check()
        return run

    def lock(self, tell: Callable[[str], None]) -> None:
        """Makes this process the one writer of the folder, until `unlock` or the end of the process.

        Args:
            tell: Is told why this takes long, where it does.

        Raises:
            ConfigError: Another process writes the folder, or has begun or changed the run in the meantime; or the
                name is one where no folder can be.
            WriteError: The folder cannot be written.
        """
        self._lock.acquire(tell)
        try:
            self._check()
        except BaseException:
            self.unlock()
            raise

    def unlock(self) -> None:
        """Lets another process write the folder; does nothing without `lock`."""
        self._lock.release()

    def begin(self) -> None:
        """Makes the folder and writes the configuration into it.

        Raises:
            ConfigError: The name is one where no folder can be.
            WriteError: The folder cannot be written.
        """
        try:
            if self._replaces:
                clear(self.path)
                self._replaces = False
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            draft = self.path / ".config.yaml.draft"
            text = yaml.safe_dump(dump_config(self.config), sort_keys=False, allow_unicode=True)
            draft.write_text(text, encoding="utf-8")
            flush(draft)
            draft.replace(self.path / "config.yaml")
            flush(self.path)
        except OSError as error:
            raise unwritten(f"cannot write the run folder {self.path}", error) from error

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
            WriteError: It could not be written; earlier checkpoints are unchanged.
            TrainingError: Another process has taken the folder over.
        """
        self._lock.check()
        target = self._folder(progress.step)
        if not target.exists():
            before = self.last()
            try:
                with whole_folder(target) as draft:
                    (draft / TRAINER).mkdir()
                    fill(draft)
                    text = json.dumps(asdict(progress), indent=2)
                    (draft / TRAINER / PROGRESS).write_text(text + "\n", encoding="utf-8")
            except (ConfigError, WriteError) as error:
                raise WriteError(f"{error}; the last good checkpoint is {before or 'none yet'}") from error
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
            progress = Progress.read(path)
        except CheckpointError as error:
            why = error.__cause__
            raise CheckpointError(f"{path} is damaged, remove it to go on from the one before: {why}") from error
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
        named = {follow(self.checkpoints / link).resolve().name for link in ("best", "last")}
        others = [step for step in self._steps() if self._folder(step).name not in named]
        for step in others[: max(len(others) - self.config.train.keep, 0)]:
            # Renamed first, so that no reader finds half of a folder under a checkpoint's name.
            self._folder(step).rename(self.checkpoints / f".step-{step:06d}.doomed")
        for leftover in (*self.checkpoints.glob(".step-*.doomed"), *self.checkpoints.glob(".step-*.draft")):
            shutil.rmtree(leftover, ignore_errors=True)


def _changes(path: Path, begun: Config, asked: Config, step: int) -> list[str]:
    """What is asked for that was otherwise when the run was begun.

    Args:
        path: The run folder.
        begun: The configuration of the run so far.
        asked: The one to go on with.
        step: Steps taken.

    Returns:
        A line for each key that changed.

    Raises:
        ConfigError: It describes other training.
    """
    old, new = flatten(dump_config(begun)), flatten(dump_config(asked))
    changed = [key for key in sorted(set(old) | set(new)) if old.get(key) != new.get(key)]
    free = {f"train.{key}" for key in FREE_KEYS}
    if not begun.data.streaming:  # a stream has no checksum
        free |= PLACE_KEYS
    steps, restart = asked.train.steps, asked.optim.restart
    if steps < step:
        raise ConfigError(f"train.steps {steps}: {path} has taken {step} steps already; ask for at least as many")
    if restart > step or (restart < step and restart != begun.optim.restart):
        leave = f", or leave it at {begun.optim.restart}" if begun.optim.restart <= step else ""
        raise ConfigError(
            f"optim.restart {restart}: {path} stands at step {step}; set it to that for a new schedule from here on"
            f"{leave}"
        )
    if restart == step:
        free |= SCHEDULE_KEYS
    elif not any(key in SCHEDULE_KEYS - {"train.steps"} for key in changed):
        rates = {learning_rate_factor(step, config.train.steps, config.optim) for config in (begun, asked)}
        free |= {"train.steps"} if len(rates) == 1 else set()
    for key in changed:
        if key not in free:
            anew = ""
            if key in SCHEDULE_KEYS:
                anew = f"; for a new schedule from here on, add --set optim.restart={step}"
            raise ConfigError(
                f"{path} was begun with another configuration: {key} was {old.get(key)!r} and is now {new.get(key)!r}; "
                f"resume it without a configuration, or choose another --run-dir{anew}"
            )
    return [f"{key} was {old.get(key)!r} and is {new.get(key)!r} from here on" for key in changed]
