"""A terminal that shows a denoising as it happens."""

import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.text import Text

from dlm.film.frames import Frame
from dlm.film.layout import Piece, legible, shown, wrap
from dlm.film.paint import looks_of, paint, render


class LiveView:
    """A text in a terminal while it is denoised, as a context manager; call `show` with each frame.

    Of a text taller than the terminal it shows the rows that change. Where the console is no terminal, it prints only
    the last frame, at the end.

    Args:
        console: Where to draw; by default standard error, since standard output is for data.
        keep: Whether the last frame stays on screen, whole and without highlights.
        least_seconds: How long each frame stays at least, so that an eye can follow a fast model.
        clock: Returns the time in seconds.
        sleep: Waits for a number of seconds.
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
        self.is_open = False
        """Whether what is shown is drawn."""

    def __enter__(self) -> Self:
        self.is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the drawing; nothing is drawn any more, and the terminal is free for other lines."""
        final, self._frame, self.is_open = self._frame if self._keep else None, None, False
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
            frame: What to show; cells that differ from the frame shown before are highlighted.
            note: A few words for the line below the text, such as how many steps are done.
        """
        if not self.is_open:
            return
        previous, self._frame = self._frame, frame
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            return
        if self._live is None:
            # Without a thread: a frame is drawn when it is shown. Other output to stdout stays on stdout.
            self._live = Live(
                console=self._console, auto_refresh=False, redirect_stdout=False, transient=not self._keep
            )
            self._live.start()
        if self._drawn_at is not None:
            self._sleep(max(0.0, self._drawn_at + self._least_seconds - self._clock()))
        with self._console:  # one write a frame, painted at once by terminals with mode 2026, so it does not flicker
            self._console.control(_control("\x1b[?2026h"))
            self._live.update(self._screen(frame, previous, note), refresh=True)
            self._console.control(_control("\x1b[?2026l"))
        self._drawn_at = self._clock()

    def _screen(self, frame: Frame, previous: Frame | None, note: str) -> Text:
        width, height = self._console.size
        rows = wrap(shown(frame), width)
        room = max(1, height - 3)  # below: an empty line, the status, and the cursor's own line
        if len(rows) > room:
            self._top = _window(self._top, room, len(rows), _busy_rows(rows, frame, previous))
            note = f"{note} · lines {self._top + 1}-{self._top + room} of {len(rows)}".removeprefix(" · ")
            rows = rows[self._top : self._top + room]
        return Text("\n\n", end="").join([paint(rows, looks_of(frame, previous)), _status(frame, note, width)])


def _control(code: str) -> Control:
    """A control code that rich has no name for; its type only says that it takes no room."""
    control = Control()
    control.segment = Segment(code, None, [(ControlType.BELL,)])
    return control


def _busy_rows(rows: Iterable[Iterable[Piece]], frame: Frame, previous: Frame | None) -> list[int]:
    """The rows in which a cell changed; in the first frame, those with a mask."""
    if previous is None:
        busy = [cell.text is None for cell in frame]
    else:
        busy = [cell.text != old.text for cell, old in zip(frame, previous, strict=True)]
    return [number for number, row in enumerate(rows) if any(busy[piece.cell] for piece in row)]


def _window(top: int, room: int, count: int, busy: Sequence[int]) -> int:
    """The window's first row: it moves to the first busy row once the window shows none."""
    if busy and not any(top <= row < top + room for row in busy):
        top = busy[0] - room // 3
    return max(0, min(top, count - room))


def _status(frame: Frame, note: str, width: int) -> Text:
    """A bar of the share of cells that are no longer masked, and the note."""
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
