"""The Hugging Face Hub: whether it answers, files that are downloaded from it, and models that are uploaded to it.

Everything in `dlm` that talks to the Hub itself is here; transformers and datasets download what they load.
"""

import re
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

NAME = r"[\w-][\w.-]*(/[\w.-]+)?"
"""What a repository on the Hub may be called."""


def is_name(text: str) -> bool:
    """Whether a repository on the Hub could be called this."""
    return re.fullmatch(NAME, text) is not None


def ask(name: str, kind: Literal["model", "dataset"] = "model") -> None:
    """Asks the Hub once for a repository, where a download would try for half a minute.

    Any answer will do, such as that there is no such repository: the download says so better.

    Args:
        name: The repository.
        kind: What is in it.

    Raises:
        Exception: The Hub does not answer; each of its network libraries raises its own.
    """
    with suppress(HfHubHTTPError, ValueError):
        HfApi().repo_exists(name, repo_type=kind)


def answers(name: str) -> bool:
    """Whether the Hub answers when it is asked for a model."""
    try:
        ask(name)
    except Exception:  # each of its network libraries raises its own
        return False
    return True


def is_cached(name: str, files: Iterable[str]) -> bool:
    """Whether an earlier download of a model left any of these files in the cache."""
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def download(name: str, file: str) -> Path | None:
    """Downloads a file of a model, or finds it in the cache where the Hub does not answer.

    Args:
        name: The model.
        file: The file's name in it.

    Returns:
        Where it is now; None where the model has no such file.

    Raises:
        OSError: The model cannot be reached, or the Hub refuses it.
        ValueError: The Hub allows no such name.
    """
    try:
        return Path(hf_hub_download(name, file, local_files_only=not answers(name)))
    except LocalEntryNotFoundError:  # a kind of the next one, but it means that there is no network
        raise
    except EntryNotFoundError:
        return None


def upload(name: str, write: Callable[[Path], None], *, private: bool) -> str:
    """Uploads a model, and makes its repository if there is none.

    Args:
        name: The repository, as in `owner/name`.
        write: Writes the model into a folder.
        private: Whether a repository made now is private.

    Returns:
        The address of the commit.
    """
    api = HfApi()
    api.create_repo(name, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return str(api.upload_folder(repo_id=name, folder_path=folder))
