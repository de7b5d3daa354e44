"""How far the reading of documents is, in a terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from dlm.distributed import process_state

T = TypeVar("T")

DELAY = 2.0
"""Seconds of reading that go by without a word."""


def paced(items: Iterable[T], what: str, unit: str, total: int | None = None, each: int = 1) -> Iterator[T]:
    """Items, with their count and their speed on a line of stderr that vanishes at the end.

    The line is for a person: it is there if stderr is a terminal, in the first of several processes alone.

    Args:
        items: What takes long.
        what: The word before it, such as `reading`.
        unit: What is counted, such as `rows`.
        total: How many there are; None where no one knows.
        each: How many one item counts for.

    Yields:
        The items.
    """
    if not (sys.stderr.isatty() and process_state().is_main_process):
        yield from items
        return
    with tqdm(desc=what, unit=f" {unit}", total=total, delay=DELAY, leave=False) as bar:
        for item in items:
            yield item
            bar.update(each)
