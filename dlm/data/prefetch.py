"""The next batches, made in a thread while the network computes with this one."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from dlm.data.batches import Batch

Made = TypeVar("Made")


class Batches(Protocol):
    """Where batches come from: documents read as a whole, or a stream."""

    @property
    def ahead(self) -> int:
        """How many rows are worth making before they are asked for."""
        ...

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        """Part of the global batch of a step: one row a position."""
        ...

    def state(self) -> dict[str, Any] | None:
        """The place it has reached, in plain values; None where that follows from the step."""
        ...


class Prefetched(Generic[Made]):
    """One process's micro-batches, made ahead in a thread.

    Attributes:
        state: The source's state after the micro-batch that was given out last, whatever has been made since.
    """

    def __init__(
        self, source: Batches, parts: Sequence[range], steps: int, prepare: Callable[[Batch, int, range], Made]
    ) -> None:
        """Prepares; nothing is made before the first call of `batch`.

        Args:
            source: Where batches come from; nothing else may call it until `close`.
            parts: The positions in the global batch of each micro-batch, the same in every step.
            steps: The last step; batches beyond it are made only when asked for.
            prepare: What is made of a micro-batch, its step and its positions, in the same thread.
        """
        self.state: dict[str, Any] | None = None
        self._source, self._parts, self._steps, self._prepare = source, parts, steps, prepare
        self._depth = -(-source.ahead // len(parts[0]))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dlm-batches")
        self._plan: Iterator[tuple[int, int]] = iter(())
        self._made: deque[tuple[tuple[int, int], Future[tuple[Made, dict[str, Any] | None]]]] = deque()

    def batch(self, step: int, part: int) -> Made:
        """One micro-batch; the first call may ask for any, and each later call must ask for the next.

        Args:
            step: From 1.
            part: Its number within the step.

        Returns:
            What was made of it.

        Raises:
            DataError: The source cannot be read.
        """
        if not self._made or self._made[0][0] != (step, part):
            self._made.clear()
            self._plan = self._from(step, part)
            self._make(1)
        batch, self.state = self._made[0][1].result()
        self._made.popleft()
        self._make(self._depth - len(self._made))
        return batch

    def close(self) -> None:
        """Waits for the micro-batch that is being made, and makes no more."""
        self._thread.shutdown(cancel_futures=True)

    def _from(self, step: int, part: int) -> Iterator[tuple[int, int]]:
        """The micro-batches from one on, in order, as (step, part)."""
        yield step, part
        yield from ((step, later) for later in range(part + 1, len(self._parts)))
        yield from ((later, part) for later in range(step + 1, self._steps + 1) for part in range(len(self._parts)))

    def _make(self, count: int) -> None:
        """Starts making the next so many micro-batches."""
        for asked in islice(self._plan, count):
            self._made.append((asked, self._thread.submit(self._part, *asked)))

    def _part(self, step: int, part: int) -> tuple[Made, dict[str, Any] | None]:
        batch, state = self._source.batch(step, self._parts[part]), self._source.state()
        return self._prepare(batch, step, self._parts[part]), state
