"""The Hub: which of its answers mean that it is there, where a file comes from, and what is uploaded."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError

from dlm import hub
from dlm.errors import CheckpointError, ConfigError, WriteError
from dlm.model.checkpoint import upload_model
from dlm.model.locate import check_there, file_of
from tests.support.fixtures import Refused

RESPONSE = Mock(headers={})


def answer(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
    """Makes every request to the Hub raise an error, or succeed."""

    class Api:
        def repo_exists(self, name: str, repo_type: str) -> bool:
            if error is not None:
                raise error
            return True

    monkeypatch.setattr(hub, "HfApi", Api)


def downloads(monkeypatch: pytest.MonkeyPatch, result: str | Exception) -> list[bool]:
    """Makes every download return a path or raise an error; the list says which of them asked the cache only."""
    local: list[bool] = []

    def download(name: str, file: str, *, local_files_only: bool) -> str:
        local.append(local_files_only)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(hub, "hf_hub_download", download)
    return local


@pytest.mark.parametrize(
    ("error", "answers"),
    [
        (None, True),
        (HfHubHTTPError("401 Client Error", response=RESPONSE), True),
        (ValueError("not a name"), True),
        (ConnectionError("no route to host"), False),
        (RuntimeError("of a library"), False),
    ],
)
def test_every_answer_means_that_the_hub_is_there(
    error: Exception | None, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, error)
    assert hub.answers("owner/model") is answers


@pytest.mark.parametrize(
    ("text", "is_name"), [("gpt2", True), ("owner/a-model.v2", True), ("a/b/c", False), (".", False)]
)
def test_names(text: str, is_name: bool) -> None:
    assert hub.is_name(text) is is_name


def test_only_the_cache_is_asked_where_the_hub_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    local = downloads(monkeypatch, "/cache/dlm.yaml")
    answer(monkeypatch)
    assert file_of("owner/model", "dlm.yaml") == Path("/cache/dlm.yaml")
    answer(monkeypatch, ConnectionError())
    assert file_of("owner/model", "dlm.yaml") == Path("/cache/dlm.yaml")
    assert local == [False, True]


def test_a_file_that_a_model_lacks_is_not_one_that_cannot_be_reached(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch)
    downloads(monkeypatch, RemoteEntryNotFoundError("404 Entry Not Found", response=RESPONSE))
    assert file_of("owner/model", "dlm.yaml") is None
    downloads(monkeypatch, LocalEntryNotFoundError("not in the cache"))
    with refused(CheckpointError, "no model at owner/model", "network"):
        file_of("owner/model", "dlm.yaml")


def test_a_model_in_the_cache_needs_no_network(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, ConnectionError())
    with refused(CheckpointError, "no model at owner/model"):
        check_there("owner/model")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda name, file: f"/cache/{file}")
    check_there("owner/model")


def test_what_is_written_is_what_is_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Api:
        def create_repo(self, name: str, **options: bool) -> None:
            seen[name] = options

        def upload_folder(self, repo_id: str, folder_path: str) -> str:
            seen["files"] = {path.name: path.read_text() for path in Path(folder_path).iterdir()}
            return f"https://huggingface.co/{repo_id}/commit/1"

    monkeypatch.setattr(hub, "HfApi", Api)
    address = upload_model("owner/model", lambda folder: (folder / "config.json").write_text("{}"), private=True)
    assert address == "https://huggingface.co/owner/model/commit/1"
    assert seen == {"owner/model": {"private": True, "exist_ok": True}, "files": {"config.json": "{}"}}


@pytest.mark.parametrize(
    "error", [HfHubHTTPError("403 Forbidden", response=RESPONSE), ConnectionError("403 Forbidden")], ids=type
)
def test_an_upload_that_fails_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    class Api:
        def create_repo(self, *_: Any, **__: Any) -> None:
            raise error

    monkeypatch.setattr(hub, "HfApi", Api)
    with refused(WriteError, "the Hub does not take me/model: 403 Forbidden (is the network there"):
        upload_model("me/model", lambda folder: None, private=True)


def test_an_upload_needs_a_name(refused: Refused) -> None:
    with refused(ConfigError, "owner/name"):
        upload_model("me/model/more", lambda folder: None, private=True)
