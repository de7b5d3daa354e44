"""Which folder a new run may take, and what of an earlier run it removes there."""

import re
import shutil
from collections.abc import Iterator
from glob import glob
from pathlib import Path

from dlm.config import Config, Pretrained
from dlm.errors import ConfigError
from dlm.model.locate import CHECKPOINTS
from dlm.paths import expand
from dlm.settings import load_config
from dlm.train.lock import is_lock

WRITTEN = {
    CHECKPOINTS: r"best|last|step-\d+|\.(best|last)\.draft|\.step-\d+\.(draft|doomed)",
    "dlm": r"events\.out\.tfevents\..*|hparams\.yml",
    "wandb": r"(offline-)?run-.*|latest-run|debug(-.*)?\.log",
}
"""What a run writes into each of its folders: checkpoints, and the files of trackers."""

FILES = ("metrics.jsonl", "tracking-id", ".config.yaml.draft")
"""What a run writes beside them; its `config.yaml` stays until that of the next run replaces it."""


def is_taken(path: Path) -> bool:
    """Whether a folder is there and has anything in it but a lock."""
    return path.exists() and not all(is_lock(entry) for entry in path.iterdir())


def check_replaceable(path: Path, config: Config) -> None:
    """Refuses to replace what is no run, or holds what the new run reads.

    Args:
        path: A folder with something in it.
        config: The configuration of the new run.

    Raises:
        ConfigError: It may not be replaced.
    """
    file = path / "config.yaml"
    why = ""
    if not file.exists():
        why = "it has no config.yaml"
    elif not (path / CHECKPOINTS).is_dir() and not (path / "metrics.jsonl").exists():
        why = f"it has neither {CHECKPOINTS} nor metrics.jsonl"
    else:
        try:
            load_config(file)
        except ConfigError as error:
            why = f"its config.yaml is not that of a run: {error}"
    if why:
        raise ConfigError(f"{path} is no run folder and is not overwritten: choose another by --run-dir; {why}")
    _check_needs_nothing_of(path, config)


def clear(folder: Path) -> None:
    """Removes what an earlier run wrote, but for its configuration; all else in the folder stays.

    By the configuration, a folder that was cleared half way is known for a run.

    Args:
        folder: The run folder.
    """
    for name, pattern in WRITTEN.items():
        part = folder / name
        for path in [*part.iterdir()] if part.is_dir() else []:
            if re.fullmatch(pattern, path.name):
                _remove(path)
        if name != CHECKPOINTS and part.is_dir() and not part.is_symlink() and not any(part.iterdir()):
            part.rmdir()
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _check_needs_nothing_of(path: Path, config: Config) -> None:
    """Refuses a run folder that holds what the new run reads."""
    tokenizer = config.tokenizer.path if isinstance(config.tokenizer, Pretrained) else None
    read = {"model.path": config.model.path, "tokenizer.path": tokenizer, "data.train.path": config.data.train.path}
    if config.data.validation is not None:
        read["data.validation.path"] = config.data.validation.path
    for key, named in read.items():
        if named is not None and any(place.is_relative_to(path.resolve()) for place in _places(named)):
            raise ConfigError(
                f"{key} {named} is in {path}, where --overwrite removes the earlier run before it is read: "
                "choose another folder by --run-dir"
            )


def _places(named: str) -> Iterator[Path]:
    """Where what a path or a glob names lies, and where it leads to if it is a link; nothing for what is not there."""
    path = expand(named)
    for found in [path] if path.exists() else map(Path, glob(str(path), recursive=True)):  # noqa: PTH207
        yield from (found.parent.resolve() / found.name, found.resolve())
