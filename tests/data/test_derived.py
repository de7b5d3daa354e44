"""Tables in the cache: what is damaged there is made again."""

from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset

from dlm.data.derived import filtered, mapped


def even(texts: list[str]) -> list[bool]:
    return [len(text) % 2 == 0 for text in texts]


def doubled(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    return {"text": [text * 2 for text in batch["text"]]}


def made(table: Dataset) -> list[list[str]]:
    """What a filter and a map give."""
    return [filtered(table, even, ["text"])["text"][:], mapped(table, doubled)["text"][:]]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_rows(data: bytes) -> bytes:
    """Cut behind the schema: Arrow reads that as a table of no rows, without a word."""
    stream = pa.BufferOutputStream()
    pa.ipc.new_stream(stream, pa.ipc.open_stream(data).schema).close()
    return stream.getvalue().to_pybytes()


def flipped(data: bytes) -> bytes:
    place = data.rindex(b"abab") if b"abab" in data else len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [cut, flipped, lambda data: b"", lambda data: b"no table"])
@pytest.mark.parametrize("what", ["*.arrow", "*.sum"])
def test_a_damaged_table_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes], what: str
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    table = Dataset.from_dict({"text": ["ab", "a", "abc", "abcd"] * 5})
    expected = [["ab", "abcd"] * 5, ["abab", "aa", "abcabc", "abcdabcd"] * 5]
    assert made(table) == expected
    files = list((tmp_path / "dlm/tables").glob(what))
    assert len(files) == 2
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    assert made(table) == expected
    whole = {file: file.read_bytes() for file in (tmp_path / "dlm/tables").iterdir()}
    assert made(table) == expected and {file: file.read_bytes() for file in whole} == whole


def test_a_table_that_lost_its_rows_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    table = Dataset.from_dict({"text": ["ab", "a"]})
    expected = made(table)
    for file in (tmp_path / "dlm/tables").glob("*.arrow"):
        file.write_bytes(without_rows(file.read_bytes()))
    assert made(table) == expected != [[], []]


def test_a_table_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    table = Dataset.from_dict({"text": ["ab", "a"]})
    first = made(table)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "dlm/tables").iterdir()}
    assert made(table) == first and {file: file.stat().st_mtime_ns for file in times} == times
