"""How far a command is: a bar in a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dlm.cli.console import errors

PAUSE = 30.0
"""Seconds between two lines about the same thing."""


@contextmanager
def progress(unit: str, *, shown: bool, after: float = 0.0) -> Iterator[Callable[[int, int, str], None]]:
    """Shows how much is done, and of what.

    Args:
        unit: What the parts are, in the plural.
        shown: Whether anything is; nothing is shown beside JSON.
        after: Seconds before the first line, where there is no terminal.

    Yields:
        What is to be called with (parts done, all parts, what is being done).
    """
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        redirect_stdout=False,  # stdout is for data, which may go elsewhere
        disable=not (shown and errors.is_terminal),
    )
    task = bar.add_task("", total=None)
    last, next_at = "", time.monotonic() + after

    def told(done: int, total: int, what: str) -> None:
        nonlocal last, next_at
        bar.update(task, completed=done, total=total, description=what)
        changed = what != last and not after
        if shown and not errors.is_terminal and (changed or time.monotonic() > next_at):
            errors.print(f"{what}: {done:,} of {total:,} {unit}", highlight=False, markup=False, soft_wrap=True)
            last, next_at = what, time.monotonic() + PAUSE

    with bar:
        yield told
