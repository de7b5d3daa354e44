"""The next batch, made while this one is computed with."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from dlm.data.batches import Batch


class Batches(Protocol):
    """Where batches come from: a text that is there as a whole, or a stream."""

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        """Part of the global batch of a step: one row a position."""
        ...

    def state(self) -> dict[str, Any] | None:
        """Where it stands, in plain values; None where that follows from the step."""
        ...


class Prefetched:
    """A process's share of every batch, part by part, each made in a thread while the one before is computed with.

    Attributes:
        state: Where the source stood after the part that was given out last, whatever has been made since.
    """

    def __init__(self, source: Batches, parts: Sequence[range], steps: int) -> None:
        """Makes nothing yet.

        Args:
            source: Where batches come from; nobody else may ask it from here to `close`.
            parts: The positions in the global batch of each micro-batch, the same in every step.
            steps: The last step; nothing is made beyond it.
        """
        self.state: dict[str, Any] | None = None
        self._source, self._parts, self._steps = source, parts, steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dlm-batches")
        self._ahead: tuple[int, int] | None = None
        self._made: Future[tuple[Batch, dict[str, Any] | None]]

    def batch(self, step: int, part: int) -> Batch:
        """One micro-batch; they are to be asked for in their order, the first being any.

        Args:
            step: From 1.
            part: Its number within the step.

        Returns:
            One row a position.

        Raises:
            DataError: The source cannot be read.
        """
        if self._ahead != (step, part):
            self._begin(step, part)
        batch, self.state = self._made.result()
        self._ahead = None
        step, part = (step, part + 1) if part + 1 < len(self._parts) else (step + 1, 0)
        if step <= self._steps:
            self._begin(step, part)
        return batch

    def close(self) -> None:
        """Waits for what is being made, and makes no more."""
        self._thread.shutdown()

    def _begin(self, step: int, part: int) -> None:
        self._ahead = step, part
        self._made = self._thread.submit(self._make, step, self._parts[part])

    def _make(self, step: int, positions: range) -> tuple[Batch, dict[str, Any] | None]:
        return self._source.batch(step, positions), self._source.state()
