"""The line that shows how far the reading is: for a person, and of what takes long."""

import io
from functools import partial

import pytest
from tqdm import tqdm

from dlm.data import pace
from dlm.data.pace import paced


class Terminal(io.StringIO):
    """A stderr at whose other end a person is."""

    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, delay: float, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(pace, "tqdm", partial(tqdm, mininterval=0.0, ncols=80))
    monkeypatch.setattr(pace, "DELAY", delay)
    assert [*paced(iter("abc"), "reading", "rows", 30, 10)] == ["a", "b", "c"]
    return stream.getvalue()


def test_in_a_terminal_it_counts_and_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    *lines, end = shown(Terminal(), 0.0, monkeypatch).rstrip("\r").split("\r")
    counts = [line.partition("|")[2].rpartition("|")[2].split()[0] for line in lines if "rows/s" in line]
    assert "reading" in lines[-1] and counts[-1] == "30/30" and {"10/30", "20/30"} <= set(counts)
    assert not end.strip()


def test_what_is_quick_goes_by_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "rows" not in shown(Terminal(), 60.0, monkeypatch)


def test_elsewhere_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(io.StringIO(), 0.0, monkeypatch) == ""
