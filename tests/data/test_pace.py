"""The line that shows how far the reading is: for a person, and of what takes long."""

import io
from functools import partial
from pathlib import Path

import pytest
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from dlm.config import Source
from dlm.data import pace
from dlm.data.corpus import corpus
from dlm.data.pace import paced
from dlm.data.reading import read


class Terminal(io.StringIO):
    """A stderr at whose other end a person is."""

    def isatty(self) -> bool:
        return True


def at_once(stream: io.StringIO, delay: float, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """The stream as stderr, with a line for each item after a delay."""
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(pace, "tqdm", partial(tqdm, mininterval=0.0, ncols=80))
    monkeypatch.setattr(pace, "DELAY", delay)
    return stream


def shown(stream: io.StringIO, delay: float, monkeypatch: pytest.MonkeyPatch) -> str:
    at_once(stream, delay, monkeypatch)
    assert [*paced(iter("abc"), "reading", "rows", 30, 10)] == ["a", "b", "c"]
    return stream.getvalue()


def test_in_a_terminal_it_counts_and_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    *lines, end = shown(Terminal(), 0.0, monkeypatch).rstrip("\r").split("\r")
    counts = [line.partition("|")[2].rpartition("|")[2].split()[0] for line in lines if "rows/s" in line]
    assert "reading" in lines[-1] and counts[-1] == "30/30" and {"10/30", "20/30"} <= set(counts)
    assert not end.strip()


def test_rows_are_counted_while_they_are_read_and_tokenised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    stream = at_once(Terminal(), 0.0, monkeypatch)
    (tmp_path / "rows.csv").write_text("text\n" + "a row\n" * 300)
    documents = read(Source("csv", str(tmp_path / "rows.csv")), "data.train")
    assert "reading: 300 rows" in stream.getvalue() and "tokenising" not in stream.getvalue()
    assert len(corpus(byte_tokenizer, documents, 8, "pack").tokens) == 300 * 6
    assert "tokenising" in stream.getvalue() and "256/300" in stream.getvalue()


def test_what_is_quick_goes_by_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "rows" not in shown(Terminal(), 60.0, monkeypatch)


def test_elsewhere_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(io.StringIO(), 0.0, monkeypatch) == ""
