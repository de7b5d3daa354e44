"""Frames as styled text for a terminal."""

from collections.abc import Iterable, Sequence
from typing import Literal

from rich.text import Text

from dlm.film.frames import Cell, Frame
from dlm.film.layout import Piece, shown, wrap

Look = Literal["given", "masked", "revealed", "changed", "settled"]
"""What a cell is: given, still masked, just revealed, just changed, or as it was in the frame before."""

STYLES: dict[Look, str] = {
    "given": "cyan",
    "masked": "dim",
    "revealed": "bold green",
    "changed": "bold yellow",
    "settled": "",
}


def _look(cell: Cell, before: Cell) -> Look:
    """What a cell is, and what just happened to it."""
    if cell.text is None:
        return "masked"
    if cell.given:
        return "given"
    if before.text == cell.text:
        return "settled"
    return "revealed" if before.text is None else "changed"


def looks_of(frame: Frame, previous: Frame | None) -> list[Look]:
    """How each cell of a frame is shown.

    Args:
        frame: What to show.
        previous: The frame before it; None if there is none, and then no cell has just changed.

    Returns:
        One look a cell.
    """
    before = frame if previous is None else previous
    return [_look(cell, old) for cell, old in zip(frame, before, strict=True)]


def paint(rows: Iterable[Iterable[Piece]], looks: Sequence[Look]) -> Text:
    """Rows as one styled text.

    Args:
        rows: What `wrap` made of the cells' texts.
        looks: The look of each cell.

    Returns:
        The text; a terminal that is narrower cuts its lines rather than breaking them again.
    """
    text = Text(end="", no_wrap=True, overflow="crop")
    for number, row in enumerate(rows):
        text.append("\n" if number else "")
        text.append_tokens((piece.text, STYLES[looks[piece.cell]]) for piece in row)
    return text


def render(frame: Frame, previous: Frame | None = None, width: int | None = None) -> Text:
    """The frame as styled text, which holds no markup and no control code.

    Args:
        frame: What to show.
        previous: The frame before it; cells that have changed since are highlighted.
        width: Columns after which rows are broken, between words where possible; None leaves lines whole.

    Returns:
        The texts of the cells one after the other, with `MASK` for each masked one and tabs expanded.
    """
    return paint(wrap(shown(frame), width), looks_of(frame, previous))
