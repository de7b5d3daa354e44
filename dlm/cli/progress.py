"""How far a command is: a bar in a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dlm.cli.console import errors
from dlm.plain import counted

PAUSE = 30.0
"""Seconds between two lines about the same thing, and before the first of what is usually quick."""


class Meter:
    """A bar, or lines; it is called with (parts done, all parts, what is being done)."""

    def __init__(self, unit: str, *, shown: bool, patient: bool) -> None:
        """Prepares to show; for the arguments see `progress`."""
        self._unit, self._patient = unit, patient
        self._lines = shown and not errors.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("so far,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=errors,
            transient=True,
            redirect_stdout=False,  # stdout is for data, which may go elsewhere
            disable=not (shown and errors.is_terminal and not errors.is_dumb_terminal),
        )
        self._task = self._bar.add_task("", total=None)
        self._last, self._next_at = "", time.monotonic() + PAUSE

    def __call__(self, done: int, total: int, what: str) -> None:
        """Shows how much is done.

        Args:
            done: The parts that are done.
            total: All parts.
            what: What is being done.
        """
        self._bar.update(self._task, completed=done, total=total, description=what)
        is_due = time.monotonic() > self._next_at and done < total
        if self._lines and (is_due or (what != self._last and not self._patient)):
            line = f"{what}: {done:,} of {counted(total, self._unit)}"
            errors.print(line, highlight=False, markup=False, soft_wrap=True)
            self._last, self._next_at = what, time.monotonic() + PAUSE

    def show(self) -> None:
        """Draws the bar, where there is one."""
        self._bar.start()

    def hide(self) -> None:
        """Takes the bar away, so that the terminal is free."""
        self._bar.stop()


@contextmanager
def progress(unit: str, *, shown: bool, patient: bool = False) -> Iterator[Meter]:
    """Shows how much is done, and of what.

    Args:
        unit: What a part is called.
        shown: Whether anything is: not where the terminal shows something else meanwhile.
        patient: Whether lines, where there is no terminal, are only about what takes long.

    Yields:
        What is to be told how much is done.
    """
    meter = Meter(unit, shown=shown, patient=patient)
    meter.show()
    try:
        yield meter
    finally:
        meter.hide()
