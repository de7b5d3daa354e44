"""Lays the cells of a frame out in rows of text that is safe to print."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.cells import cell_len

from dlm.film.frames import Cell, Frame

MASK = "░░"  # two columns: closer to the width of a token than one, so that less text moves when it is revealed
TAB = 4  # columns between tab stops
_ZWJ = "\u200d"
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they would shuffle a whole line


class Piece(NamedTuple):
    """The part of one cell that stands on one row: the cell's index, the piece's first column and its text."""

    cell: int
    column: int
    text: str


def legible(text: str) -> str:
    r"""Replaces every character that a terminal, a browser or XML could take for something other than text.

    Args:
        text: Any text.

    Returns:
        The text. Line breaks become `\n` and tabs stay. A control character becomes its picture (`␛`); one that has no
        picture, or would reorder the line, becomes `�`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_legible_char, text.replace("\r\n", "\n")))


def _legible_char(char: str) -> str:
    code = ord(char)
    if char in "\n\t":
        return char
    if char in "\u0085\u2028\u2029":
        return "\n"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(char) in ("Cc", "Cs") or char in _REORDERING or code & 0xFFFE == 0xFFFE:
        return "�"
    return char


def legible_cell(cell: Cell) -> str | None:
    """The legible text of a cell; None while it is masked."""
    return None if cell.text is None else legible(cell.text)


def shown(frame: Frame) -> list[str]:
    """The legible text of each cell, `MASK` for a masked one."""
    return [MASK if cell.text is None else legible(cell.text) for cell in frame]


def wrap(texts: Iterable[str], width: int | None = None) -> list[list[Piece]]:
    r"""Lays cells out in rows, which are broken as on a page: at line breaks, then between words, then anywhere.

    Tabs become spaces. A blank for which a row has no room is left out. A cell that is only a line break, or such a
    blank, leaves an empty piece, so that each cell with text has a place.

    Args:
        texts: One text a cell, already `legible`.
        width: Columns in a row; None for no limit.

    Returns:
        The rows, each with its pieces from left to right; at least one row.
    """
    rows: list[list[Piece]] = []
    row: list[tuple[int, int, str]] = []  # the open row: cell, width and cluster
    column = 0
    for cell, text in enumerate(texts):
        for cluster in _clusters(text):
            if cluster == "\n":
                row.append((cell, 0, ""))
                rows.append(_pieces(row))
                row, column = [], 0
                continue
            chars = " " * (TAB - column % TAB) if cluster == "\t" else cluster
            extent = len(chars) if chars.isascii() else cell_len(chars)
            if width is not None and row and column + extent > width:
                if chars.isspace():
                    chars, extent = " " * (width - column), width - column
                else:
                    cut = len(row) if extent > 1 else _last_break(row)
                    rows.append(_pieces(row[:cut]))
                    row = row[cut:]
                    column = sum(taken for _, taken, _ in row)
            row.append((cell, extent, chars))
            column += extent
    return [*rows, _pieces(row)]


def _clusters(text: str) -> list[str]:
    """The characters, each with the combining ones that sit on it; a mask is one."""
    if text == MASK:
        return [text]
    if text.isascii():
        return list(text)
    clusters: list[str] = []
    for char in text:
        joins = clusters and clusters[-1] not in ("\n", "\t") and (clusters[-1].endswith(_ZWJ) or not cell_len(char))
        if joins and char not in "\n\t":
            clusters[-1] += char
        else:
            clusters.append(char)
    return clusters


def _last_break(row: Sequence[tuple[int, int, str]]) -> int:
    """How many clusters of a full row stay on it: up to the last blank, mask or wide character, else all."""
    for index in range(len(row), 0, -1):
        _, extent, chars = row[index - 1]
        if not chars or chars.isspace() or extent > 1:
            return index
    return len(row)


def _pieces(row: Sequence[tuple[int, int, str]]) -> list[Piece]:
    """Joins the clusters of each cell."""
    pieces: list[Piece] = []
    column = 0
    for cell, extent, chars in row:
        if pieces and pieces[-1].cell == cell:
            pieces[-1] = pieces[-1]._replace(text=pieces[-1].text + chars)
        else:
            pieces.append(Piece(cell, column, chars))
        column += extent
    return pieces
