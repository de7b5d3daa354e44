"""Rows lose no text, and a legible text is never anything but text."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len

from dlm.film.layout import MASK, legible, wrap
from tests.support.films import ALL_OF_UNICODE


def test_legible_leaves_ordinary_text_alone() -> None:
    text = "a\tb\nπ 你好 e\u0301 👩‍👧 “x”"
    assert legible(text) == text


def test_legible_text_holds_no_control_and_is_valid_xml() -> None:
    clean = legible(ALL_OF_UNICODE)
    assert all(char in "\n\t" or ord(char) >= 0x20 for char in clean)
    assert not set(clean) & set(map(chr, [*range(0x7F, 0xA0), *range(0x202A, 0x202F), 0xFFFE, 0xFFFF]))
    ElementTree.fromstring(f"<a>{clean.replace('&', '').replace('<', '')}</a>")


@pytest.mark.parametrize(
    ("texts", "width", "rows"),
    [
        (["one", " two", " three"], 8, ["one two ", "three"]),
        (["aaaa", " bbbb", " c"], 9, ["aaaa bbbb", "c"]),  # the blank between two rows is dropped, and parts words
        (["abcdefgh"], 3, ["abc", "def", "gh"]),
        (["ab", "\n\n", "c"], 9, ["ab", "", "c"]),
        (["a", "\tb"], 9, ["a   b"]),
        (["你好", "吗"], 5, ["你好", "吗"]),
        (["x", "e\u0301\u0302", "y"], 2, ["xe\u0301\u0302", "y"]),
        ([], 5, [""]),
        (["a" * 300], None, ["a" * 300]),
    ],
)
def test_wrap(texts: list[str], width: int | None, rows: list[str]) -> None:
    laid = wrap(texts, width)
    assert ["".join(piece.text for piece in row) for row in laid] == rows
    for row in laid:
        for left, right in pairwise(row):
            assert right.column == left.column + cell_len(left.text)


@pytest.mark.parametrize("width", range(2, 12))
def test_wrap_keeps_to_the_width_and_loses_nothing_but_blanks(width: int) -> None:
    texts = ["The", " quick", "你好", MASK, "\tfox \n", "", "\n", " jumps  over", "-the-lazy", " dog" * 9]
    laid = wrap(texts, width)
    assert all(cell_len("".join(piece.text for piece in row)) <= width for row in laid)
    assert {piece.cell for row in laid for piece in row} == {place for place, text in enumerate(texts) if text}
    kept = "".join(piece.text for row in laid for piece in row)
    assert "".join(kept.split()) == "".join("".join(texts).split())
