"""Reading ahead changes when a batch is made, and nothing else."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from dlm.data.batches import Batch
from dlm.data.prefetch import Prefetched
from dlm.errors import DataError

PARTS = [range(2), range(2, 4)]
WAIT = 10.0


class Counted:
    """A stream of rows 0, 1, 2, ..., that tells when it is asked, and breaks off."""

    def __init__(self, breaks_at: int = 1000, ahead: int = 1) -> None:
        self.ahead = ahead
        self.asked: list[tuple[int, range]] = []
        self.more = threading.Semaphore(0)
        self.row, self.breaks_at = 0, breaks_at

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        assert isinstance(positions, range)
        if self.row >= self.breaks_at:
            raise DataError("the stream breaks off")
        rows = torch.arange(self.row, self.row + len(positions))[:, None]
        self.row += len(positions)
        self.asked.append((step, positions))
        self.more.release()
        return Batch(rows, rows >= 0, rows)

    def state(self) -> dict[str, Any]:
        return {"row": self.row}


def unprepared(batch: Batch, step: int, positions: range) -> Batch:
    return batch


def take(upcoming: Prefetched[Batch], step: int, part: int) -> list[int]:
    return upcoming.batch(step, part).x0_BL.flatten().tolist()


def test_the_order_is_the_sources_and_the_state_is_that_of_what_was_given_out() -> None:
    source = Counted()
    upcoming = Prefetched(source, PARTS, 3, unprepared)
    for step in (1, 2, 3):
        for part in (0, 1):
            first = 4 * (step - 1) + 2 * part
            assert take(upcoming, step, part) == [first, first + 1]
            assert upcoming.state == {"row": first + 2}
    upcoming.close()
    assert source.asked == [(step, part) for step in (1, 2, 3) for part in PARTS]  # and nothing beyond the last step


def test_the_next_part_is_made_before_it_is_asked_for() -> None:
    source = Counted()
    upcoming = Prefetched(source, PARTS, 9, unprepared)
    take(upcoming, 4, 1)
    assert source.more.acquire(timeout=WAIT) and source.more.acquire(timeout=WAIT)
    assert source.asked == [(4, PARTS[1]), (5, PARTS[0])]
    assert upcoming.state == {"row": 2} and source.row == 4
    upcoming.close()


def test_as_many_rows_are_made_ahead_as_the_source_asks_for() -> None:
    source = Counted(ahead=5)
    upcoming = Prefetched(source, PARTS, 9, unprepared)
    take(upcoming, 1, 0)
    for _ in range(4):
        assert source.more.acquire(timeout=WAIT)
    assert source.row == 2 + 6 and upcoming.state == {"row": 2}  # three parts of two rows hold five
    assert not source.more.acquire(timeout=0.05)
    assert take(upcoming, 1, 1) == [2, 3] and source.more.acquire(timeout=WAIT)
    upcoming.close()


def test_an_error_waits_for_its_own_batch() -> None:
    upcoming = Prefetched(Counted(breaks_at=4), PARTS, 9, unprepared)
    assert take(upcoming, 1, 0) == [0, 1]
    assert take(upcoming, 1, 1) == [2, 3]
    with pytest.raises(DataError, match="breaks off"):
        take(upcoming, 2, 0)
    upcoming.close()
