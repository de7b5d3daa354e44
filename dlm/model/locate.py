"""From a string to a model: a run folder, a checkpoint folder or the name of a model on the Hub."""

import json
import re
from difflib import get_close_matches
from pathlib import Path

from dlm import hub
from dlm.errors import CheckpointError
from dlm.paths import expand, quoted

CHECKPOINTS = "checkpoints"
"""The folder of a run that holds its checkpoints."""

SIDECAR = "dlm.yaml"
"""The file beside a model that says how `dlm` trained it."""

MAIN_FILES = ("config.json", "tokenizer_config.json")
"""Files of which every model or tokenizer has one."""

ADAPTER = "adapter_config.json"
"""The file that marks a folder of adapters, written by `peft`."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""Files of which every tokenizer has one."""

POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that stands in the place of a large one, until Git LFS fetches that."""

LONGEST_POINTER = 1024
"""Every such file has fewer bytes."""


def resolve(model: str | Path) -> str:
    """Finds the checkpoint that a string names.

    Args:
        model: A run folder (its best checkpoint, or its last where there is no best), a checkpoint folder,
            or the name of a model on the Hub.

    Returns:
        A folder with a model or adapters of one, or the Hub name as it was given.

    Raises:
        CheckpointError: There is no checkpoint at the path, or it is neither a path nor a Hub name.
    """
    if not str(model):
        raise CheckpointError("no model: the name is empty; give a run folder, a checkpoint folder or a Hub name")
    path = expand(model)
    for folder in map(follow, (path, path / CHECKPOINTS / "best", path / CHECKPOINTS / "last")):
        if (folder / "config.json").is_file() or is_adapter(str(folder)):
            return str(folder)
    if (path / CHECKPOINTS).is_dir():
        raise CheckpointError(
            f"the run {path} has no checkpoint yet: wait for its first, or go on with it by: dlm train --resume "
            f"--run-dir {quoted(path)}"
        )
    if path.exists():
        raise CheckpointError(f"{path} is neither a run folder nor a checkpoint: it has no config.json")
    if not hub.is_name(str(model)):
        raise CheckpointError(
            f"no model at {model}: expected a run folder, a checkpoint folder or a Hub name{_nearby(path)}"
        )
    return str(model)


def follow(link: Path) -> Path:
    """The folder that `best` or `last` of a run leads to.

    Args:
        link: A symbolic link, or a small file with the name of its neighbour in it where there are no links; see
            `dlm.model.checkpoint.point`.

    Returns:
        The neighbour that such a file names; any other path as it was given.
    """
    if not link.is_file() or link.stat().st_size > 64:
        return link
    named = re.fullmatch(rb"(step-\d+)\s*", link.read_bytes())
    neighbour = link.with_name(named[1].decode()) if named else link
    return neighbour if neighbour.is_dir() else link


def check_name(path: str) -> None:
    """Refuses a string that is neither a path that exists nor a possible name on the Hub.

    Args:
        path: A path, or a Hub name.

    Raises:
        CheckpointError: It is neither.
    """
    if not Path(path).exists() and not hub.is_name(path):
        raise CheckpointError(f"no model at {path}: there is no such folder, and it is no Hub name")


def check_fetched(path: str | Path, *patterns: str) -> None:
    """Refuses files that were never fetched: Git leaves a pointer of three lines in the place of a large file.

    Args:
        path: The folder of a model, or a file of one; nothing is found behind the name of one on the Hub.
        *patterns: Which files of the folder are looked at, such as `*.safetensors`.

    Raises:
        CheckpointError: One of them is a pointer of Git LFS.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(file for pattern in patterns for file in path.glob(pattern))
    for file in files:
        if file.is_file() and file.stat().st_size < LONGEST_POINTER and file.read_bytes().startswith(POINTER):
            raise CheckpointError(
                f"{file} is a Git LFS pointer and not the file itself: fetch it by `git lfs pull` in {file.parent}"
            )


def check_there(path: str) -> None:
    """Refuses a model that is neither a folder nor in the Hub's cache, if the Hub does not answer.

    Args:
        path: A folder, or a Hub name.

    Raises:
        CheckpointError: The model is not available.
    """
    check_name(path)
    known = Path(path).exists() or hub.is_cached(path, MAIN_FILES)
    if not known and not hub.answers(path):
        raise _unreachable(path)


def file_of(path: str, name: str) -> Path | None:
    """A file of a model, from its folder or from the Hub.

    Args:
        path: A folder, or a Hub name.
        name: The file's name.

    Returns:
        Its local path; None if the model has no such file, or if the Hub does not answer and an earlier download of
            this model did not need it.

    Raises:
        CheckpointError: The Hub does not answer, and nothing of the model is in the cache.
    """
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.exists() else None
    try:
        return hub.download(path, name)
    except (OSError, ValueError) as error:
        if hub.is_cached(path, MAIN_FILES):
            return None
        raise _unreachable(path) from error


def is_adapter(path: str) -> bool:
    """Whether a checkpoint folder holds adapters instead of a model."""
    return (Path(path) / ADAPTER).is_file()


def base_of(path: str) -> str:
    """The model that adapters belong to.

    Args:
        path: A folder of adapters.

    Returns:
        A folder, or a Hub name.

    Raises:
        CheckpointError: The file that names it is damaged.
    """
    try:
        return str(json.loads((Path(path) / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}/{ADAPTER} is damaged: {error}") from error


def has_tokenizer(path: str) -> bool:
    """Whether a folder has files of a tokenizer."""
    return any((Path(path) / name).is_file() for name in TOKENIZER_FILES)


def _unreachable(path: str) -> CheckpointError:
    return CheckpointError(
        f"no model at {path}: there is no such folder, and no such model could be had from the Hub "
        f"(is the name right, is the network there, is the model public?){_nearby(Path(path))}"
    )


def _nearby(path: Path) -> str:
    """Names the model beside a missing one that is called nearly so, where there is one."""
    try:
        beside = [
            each.name
            for each in path.parent.iterdir()
            if (each / "config.json").exists() or (each / CHECKPOINTS).is_dir()
        ]
    except OSError:
        return ""
    near = get_close_matches(path.name, beside, n=1)
    return f"; there is {path.parent / near[0]}" if near else ""
