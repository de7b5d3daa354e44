"""How far a command is: a bar in a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dlm.cli.console import errors

PAUSE = 30.0
"""Seconds between two lines about the same thing."""


@contextmanager
def progress(unit: str, *, shown: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Shows how much is done, and of what.

    Args:
        unit: What the parts are, in the plural.
        shown: Whether anything is; nothing is shown beside JSON.

    Yields:
        What is to be called with (parts done, all parts, what is being done).
    """
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not (shown and errors.is_terminal),
    )
    task = bar.add_task("", total=None)
    last, said_at = "", 0.0

    def told(done: int, total: int, what: str) -> None:
        nonlocal last, said_at
        bar.update(task, completed=done, total=total, description=what)
        if shown and not errors.is_terminal and (what != last or time.monotonic() > said_at + PAUSE):
            errors.print(f"{what}: {done:,} of {total:,} {unit}", highlight=False, markup=False, soft_wrap=True)
            last, said_at = what, time.monotonic()

    with bar:
        yield told
