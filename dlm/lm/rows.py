"""Rows written side by side, so that none changes what another becomes."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TypeVar

from torch import Generator, Tensor

from dlm.diffusion.constrain import Held
from dlm.diffusion.draws import generator
from dlm.diffusion.rules import Rule
from dlm.diffusion.sample import State
from dlm.diffusion.verify import Verified
from dlm.lm.canvas import Canvas, stack
from dlm.lm.sampler import Watch

Item = TypeVar("Item")


@dataclass(frozen=True)
class Task:
    """A row to be written.

    Attributes:
        canvas: What is given, and the masks.
        rule: How a step is taken.
        key: What its random numbers follow from.
        stop_ids: The ids that end the text; none for a text that fills its canvas.
        held: The spans that are held to a language; of next tokens the first alone.
        other: The row that it is guided away from; None without guidance.
    """

    canvas: Canvas
    rule: Rule | Verified
    key: tuple[int | str, ...]
    stop_ids: tuple[int, ...] = ()
    held: tuple[Held, ...] = ()
    other: Canvas | None = None

    def kind(self, timed: bool) -> Hashable:
        """What rows must have in common to be written side by side.

        Args:
            timed: Whether the network takes the time. It is then told the share of masks in a row, to which padding
                would add.

        Returns:
            Equal for rows of one kind.
        """
        steps = self.rule.drafts if isinstance(self.rule, Verified) else self.rule.steps
        return steps, len(self.canvas.ids) if timed else None, self.stop_ids


@dataclass(frozen=True)
class Written:
    """A batch of rows that are finished.

    Attributes:
        tasks: What was asked for, one a row.
        x_BL: The rows, padded on the right; on the CPU.
        editable_BL: Where they were written.
        calls: The network calls that each row took part in.
    """

    tasks: Sequence[Task]
    x_BL: Tensor
    editable_BL: Tensor
    calls: Sequence[int]


Write = Callable[[Sequence[Task], Tensor, Tensor, Sequence[Generator]], Iterator[State]]
"""(tasks of one kind, canvas_BL, editable_BL, one stream a row) -> the states of their rows."""


def write_rows(
    tasks: Sequence[Task],
    write: Write,
    *,
    pad_id: int,
    timed: bool,
    batch_size: int,
    watch: Watch | None,
) -> Iterator[Written]:
    """Writes rows in batches of one kind.

    Args:
        tasks: The rows, in order; each has its own stream of random numbers.
        write: Writes a batch of one kind.
        pad_id: What fills up the shorter rows of a batch.
        timed: Whether the network takes the time.
        batch_size: Rows written side by side.
        watch: Called with every state.

    Yields:
        Each batch as soon as it is finished, in the order of the tasks.
    """
    for _, alike in groupby(tasks, lambda task: task.kind(timed)):
        for batch in in_batches(list(alike), batch_size):
            x_BL, editable_BL = stack([task.canvas for task in batch], pad_id)
            for final in write(batch, x_BL, editable_BL, [generator(*task.key) for task in batch]):
                if watch:
                    watch(final)
            yield Written(batch, final.x_BL, editable_BL, final.calls_B.tolist())


def in_batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items, a batch at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def in_groups(items: Iterator[Item], groups: int, size: int) -> Iterator[list[Item]]:
    """The items in lists of one size, each as soon as it is full."""
    return (list(islice(items, size)) for _ in range(groups))
