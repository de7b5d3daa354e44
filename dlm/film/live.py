"""Shows a denoising as it happens: the frames of a film, and a terminal that plays them.

A frame holds one cell a token, in reading order. Cells are masked, revealed or given by the user; between two
frames any cell that was not given may be revealed, changed or masked again.
"""

import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from rich.cells import cell_len
from rich.console import Console
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.text import Text

MASK = "░░"  # two columns: closer to the width of a token than one, so that less text moves when it is revealed
TAB = 4  # columns between tab stops
STYLES = {"given": "cyan", "masked": "dim", "revealed": "bold green", "changed": "bold yellow", "settled": ""}
_ZWJ = "\u200d"
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they would shuffle a whole line


@dataclass(frozen=True, slots=True)
class Cell:
    """One token's place in the text.

    Attributes:
        text: what the token reads; None while it is masked.
        given: whether it came from the user, and so never changes.
    """

    text: str | None
    given: bool = False


Frame = tuple[Cell, ...]


@dataclass(frozen=True)
class Film:
    """A denoising from its first canvas to its finished text.

    Attributes:
        title: what the text is, in a few words.
        frames: one canvas a step, the first before any step; all have the same cells, and the same ones given.
        calls: how many times the network had been called when each frame was taken.
        footer: how to make the film again, such as the command line.

    Raises:
        ValueError: There is no frame, a frame has other cells than the first, or `calls` does not fit `frames`.
    """

    title: str
    frames: tuple[Frame, ...]
    calls: tuple[int, ...]
    footer: str = ""

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("a film needs at least one frame")
        if len(self.calls) != len(self.frames):
            raise ValueError(f"a film of {len(self.frames)} frames needs as many calls, not {len(self.calls)}")
        given = [cell.given for cell in self.frames[0]]
        for number, frame in enumerate(self.frames):
            if len(frame) != len(given):
                raise ValueError(f"frame {number} has {len(frame)} cells, the first frame {len(given)}")
            if [cell.given for cell in frame] != given:
                raise ValueError(f"frame {number} has not the same given cells as the first frame")


class Piece(NamedTuple):
    """The part of one cell that stands on one row: the cell's index, its first column and its text."""

    cell: int
    column: int
    text: str


def legible(text: str) -> str:
    r"""The text with nothing in it that a terminal, a browser or XML could take for anything but text.

    Line breaks become `\n` and tabs stay. Control characters become their pictures (`␛`); what has none, or would
    reorder the line, becomes `�`.
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


def wrap(texts: Iterable[str], width: int | None = None) -> list[list[Piece]]:
    r"""Lays cells out in rows, as a page would: at line breaks, then between words, then anywhere.

    Tabs become spaces. A blank for which a row has no room is left out there. A cell that is only a line break, or
    such a blank, leaves an empty piece, so that each cell with text has a place.

    Args:
        texts: one text a cell, already `legible`.
        width: columns in a row; None for no limit.

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


def _state(cell: Cell, before: Cell) -> str:
    """The name in `STYLES` of what a cell is, and of what just happened to it."""
    if cell.text is None:
        return "masked"
    if cell.given:
        return "given"
    if before.text == cell.text:
        return "settled"
    return "revealed" if before.text is None else "changed"


def _looks(frame: Frame, previous: Frame | None) -> list[str]:
    before = frame if previous is None else previous
    return [_state(cell, old) for cell, old in zip(frame, before, strict=True)]


def _shown(frame: Frame) -> list[str]:
    return [MASK if cell.text is None else legible(cell.text) for cell in frame]


def _paint(rows: Iterable[Iterable[Piece]], looks: Sequence[str]) -> Text:
    """Rows as one text, whose lines are cut rather than broken again where a terminal is narrower."""
    text = Text(end="", no_wrap=True, overflow="crop")
    for number, row in enumerate(rows):
        text.append("\n" if number else "")
        text.append_tokens((piece.text, STYLES[looks[piece.cell]]) for piece in row)
    return text


def paint(frame: Frame, looks: Sequence[str], width: int | None = None) -> Text:
    """The frame as `render` shows it, but in these looks: for each cell a key of `STYLES`."""
    return _paint(wrap(_shown(frame), width), looks)


def render(frame: Frame, previous: Frame | None = None, width: int | None = None) -> Text:
    """The frame as styled text, in which nothing is markup or a control code.

    Args:
        frame: what to show.
        previous: the frame before it; cells that it masks or reads otherwise are highlighted.
        width: columns after which rows are broken, between words where possible; None leaves lines whole.

    Returns:
        The texts of the cells one after the other, with `MASK` for each masked one and tabs expanded.
    """
    return paint(frame, _looks(frame, previous), width)


class Watch:
    """A terminal in which a text is denoised, as a context manager; call `show` with each frame.

    A text taller than the terminal is seen through a window that follows the changes. Where the console is no
    terminal, nothing is shown but the last frame, at the end.

    Args:
        console: where to draw; standard error unless told otherwise, since standard output is for data.
        keep: whether the last frame stays on screen, whole and without highlights.
        least_seconds: how long each frame stays at least; a fast model is slowed down to what an eye can follow.
        clock: tells the time in seconds.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        keep: bool = True,
        least_seconds: float = 0.04,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._keep = keep
        self._least_seconds = least_seconds
        self._clock = clock
        self._sleep = sleep
        self._frame: Frame | None = None
        self._drawn_at: float | None = None
        self._top = 0  # the first row that the window shows
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            # No thread: a frame is drawn when there is one. What others print to stdout is theirs, and stays there.
            self._live = Live(
                console=self._console, auto_refresh=False, redirect_stdout=False, transient=not self._keep
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        final = self._frame if self._keep else None
        if self._live is not None:
            if final is not None:
                self._live.update(render(final, width=self._console.width))
            self._live.stop()
            self._live = None
        elif final is not None:
            self._console.print(render(final), soft_wrap=True)

    def show(self, frame: Frame, note: str = "") -> None:
        """Draws the next frame.

        Args:
            frame: what to show; what differs from the frame shown before is highlighted.
            note: a few words for the line below the text, such as how many steps are done.
        """
        previous, self._frame = self._frame, frame
        if self._live is None:
            return
        if self._drawn_at is not None:
            self._sleep(max(0.0, self._drawn_at + self._least_seconds - self._clock()))
        with self._console:  # one write a frame, which terminals that know mode 2026 paint at once: no flicker
            self._console.control(_control("\x1b[?2026h"))
            self._live.update(self._picture(frame, previous, note), refresh=True)
            self._console.control(_control("\x1b[?2026l"))
        self._drawn_at = self._clock()

    def _picture(self, frame: Frame, previous: Frame | None, note: str) -> Text:
        width, height = self._console.size
        rows = wrap(_shown(frame), width)
        room = max(1, height - 3)  # below: an empty line, the status, and the cursor's own line
        if len(rows) > room:
            self._top = _window(self._top, room, len(rows), _busy_rows(rows, frame, previous))
            note = f"{note} · lines {self._top + 1}-{self._top + room} of {len(rows)}".removeprefix(" · ")
            rows = rows[self._top : self._top + room]
        return Text("\n\n", end="").join([_paint(rows, _looks(frame, previous)), _status(frame, note, width)])


def _control(code: str) -> Control:
    """A control that rich has no name for; the type given only marks it as taking no room."""
    control = Control()
    control.segment = Segment(code, None, [(ControlType.BELL,)])
    return control


def _busy_rows(rows: Iterable[Iterable[Piece]], frame: Frame, previous: Frame | None) -> list[int]:
    """The rows in which something changed; before any change, those which wait for it."""
    if previous is None:
        busy = [cell.text is None for cell in frame]
    else:
        busy = [cell.text != old.text for cell, old in zip(frame, previous, strict=True)]
    return [number for number, row in enumerate(rows) if any(busy[piece.cell] for piece in row)]


def _window(top: int, room: int, count: int, busy: Sequence[int]) -> int:
    """The window's first row: where it was while something happens in it, else around the first busy row."""
    if busy and not any(top <= row < top + room for row in busy):
        top = busy[0] - room // 3
    return max(0, min(top, count - room))


def _status(frame: Frame, note: str, width: int) -> Text:
    """A bar of the cells that are no longer masked, and the note."""
    wanted = [cell for cell in frame if not cell.given]
    revealed = sum(cell.text is not None for cell in wanted)
    length = max(4, min(24, width // 3))
    done = length * revealed // max(1, len(wanted))
    status = Text.assemble(
        ("━" * done, "green"),
        ("━" * (length - done), "dim"),
        (f" {revealed}/{len(wanted)} tokens" + (f" · {legible(note)}" if note else ""), "dim"),
        no_wrap=True,
        overflow="ellipsis",
    )
    status.truncate(width, overflow="ellipsis")
    return status
