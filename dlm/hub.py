"""The Hugging Face Hub: whether it answers, downloads of single files, and uploads.

All of `dlm`'s own requests to the Hub are made here. The libraries transformers and datasets download what they load.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from huggingface_hub import _CACHED_NO_EXIST, HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

NAME = r"[\w-][\w.-]*(/[\w.-]+)?"
"""The pattern of a repository's name."""


def is_name(text: str) -> bool:
    """Whether this could be the name of a repository on the Hub."""
    return re.fullmatch(NAME, text) is not None


def ask(name: str, kind: Literal["model", "dataset"] = "model") -> None:
    """Asks the Hub once for a repository, because a download without a network would try for half a minute.

    Every answer is accepted, also that there is no such repository: the download reports that better.

    Args:
        name: The repository.
        kind: What the repository holds.

    Raises:
        Exception: The Hub does not answer; its network libraries raise different types.
    """
    with suppress(HfHubHTTPError, ValueError):
        HfApi().repo_exists(name, repo_type=kind)


def answers(name: str) -> bool:
    """Whether the Hub answers a request for a model."""
    try:
        ask(name)
    except Exception:  # its network libraries raise different types
        return False
    return True


def is_cached(name: str, files: Iterable[str]) -> bool:
    """Whether an earlier download of a model left any of these files in the cache."""
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def is_known_absent(name: str, file: str) -> bool:
    """Whether the Hub once answered that a model does not have this file."""
    return try_to_load_from_cache(name, file) is _CACHED_NO_EXIST


def download(name: str, file: str) -> Path | None:
    """Downloads a file of a model, or finds it in the cache if the Hub does not answer.

    Args:
        name: The model.
        file: The file's name in it.

    Returns:
        The local path; None if the model has no such file.

    Raises:
        OSError: The Hub does not answer or refuses, and the file is not in the cache.
        ValueError: The Hub does not allow such a name.
    """
    try:
        return Path(hf_hub_download(name, file, local_files_only=not answers(name)))
    except LocalEntryNotFoundError:  # a subclass of the next, but it means that there is no network
        raise
    except EntryNotFoundError:
        return None


def upload(name: str, folder: str, *, private: bool) -> str:
    """Uploads a model, and creates its repository if there is none.

    Args:
        name: The repository, as in `owner/name`.
        folder: What is uploaded.
        private: Whether a newly created repository is private.

    Returns:
        The address of the commit.

    Raises:
        Exception: The Hub does not answer, or refuses; its network libraries raise different types.
    """
    api = HfApi()
    api.create_repo(name, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=name, folder_path=folder))
