"""Rows of a text that is scored: full rows of joined documents, and windows that overlap."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from dlm.data.batches import Sequences
from dlm.errors import ConfigError, DataError


@dataclass(frozen=True)
class Window:
    """A part of a text that is read at once.

    Attributes:
        start: Where it begins.
        scored: From where on its tokens are scored; those before are given.
        stop: Where it ends.
    """

    start: int
    scored: int
    stop: int


def windows(tokens: int, room: int, stride: int | None = None) -> Iterator[Window]:
    """The windows over a text, so that each of its tokens is scored once.

    The first scores all that it holds. Each further one scores the next `stride` tokens, or what is left, given the
    `room - stride` before them, or more where the text ends: the last is as full as any. So the sum of their negative
    log-likelihoods is that of the text by the chain rule, in which no token is given more than what stands before it
    or is scored with it; a sum of bounds is a bound.

    Args:
        tokens: How many the text has.
        room: How many a window holds.
        stride: How many tokens each further window scores; None for `room`: windows then do not overlap, and the last
            may be short.

    Yields:
        Each window; none for an empty text.

    Raises:
        ConfigError: The stride is not from 1 to `room`.
    """
    if stride is not None:
        check_stride(stride, room)
    done = 0
    while done < tokens:
        stop = min(done + (stride if stride and done else room), tokens)
        yield Window(max(stop - room, 0) if stride else done, done, stop)
        done = stop


def check_stride(stride: int, room: int) -> None:
    """Refuses a stride that would leave tokens out, or score none.

    Args:
        stride: How many tokens each further window scores.
        room: How many a window holds.

    Raises:
        ConfigError: It is not from 1 to `room`.
    """
    if not 1 <= stride <= room:
        raise ConfigError(f"the stride must be from 1 to {room} tokens, which is what a window holds, got {stride}")


@dataclass(frozen=True)
class Wrapped(Sequences):
    """Documents joined, with an end of text behind each, and cut into full rows; what is left behind them is dropped.

    So MDLM packs (2406.07524); its own rows also begin and end with a special token, which it scores.
    """

    @classmethod
    def of(cls, sequences: Sequences) -> Self:
        """The same documents in full rows.

        Args:
            sequences: Documents in rows of any kind.

        Returns:
            The rows.

        Raises:
            ConfigError: Documents have prompts, which would be scored.
            DataError: There is less text than one row.
        """
        if sequences.tokens.given.any():
            raise ConfigError("--wrap joins plain texts, and these have prompts, which are not scored: leave it out")
        found = cls(**{**_fields(sequences), "packing": "pack"})
        if not len(found):
            raise DataError(
                f"--wrap: the text has {len(found.tokens):,} tokens, and a row {found.room:,}: leave it out, or score "
                "more text"
            )
        return found

    @override
    def __len__(self) -> int:
        """The number of full rows."""
        return len(self.tokens) // self.room

    @property
    @override
    def dropped_whole(self) -> NDArray[np.int64]:
        """The documents that begin behind the last row."""
        return np.flatnonzero(self.tokens.offsets[:-1] >= len(self) * self.room)

    @property
    @override
    def dropped_tokens(self) -> int:
        """The tokens behind the last row."""
        return len(self.tokens) - len(self) * self.room

    @property
    @override
    def cut_documents(self) -> int:
        """One where the last row ends within a document."""
        return int(len(self) * self.room not in self.tokens.offsets)

    @property
    @override
    def arrangement(self) -> str:
        """In words."""
        return "wrap"


@dataclass(frozen=True)
class Strided(Sequences):
    """Windows over each document, as `windows` lays them; no document is seen from another.

    Attributes:
        stride: Tokens that each further window of a document scores.
    """

    stride: int = 0

    @classmethod
    def of(cls, sequences: Sequences, stride: int) -> Self:
        """The same documents in windows.

        Args:
            sequences: Documents in rows of any kind.
            stride: Tokens that each further window scores.

        Returns:
            The windows.

        Raises:
            ConfigError: The stride is not from 1 to what a row holds.
        """
        check_stride(stride, sequences.room)
        return cls(**{**_fields(sequences), "packing": "pad"}, stride=stride)

    @cached_property
    def _windows(self) -> NDArray[np.int64]:
        """Where each window begins, where its scored part begins, and where it ends, in the stream; shape (W, 3)."""
        tokens = self.tokens
        found: list[tuple[int, int, int]] = []
        for begin, end, given in zip(
            *(x.tolist() for x in (tokens.offsets[:-1], tokens.offsets[1:], tokens.given)), strict=True
        ):
            found += [
                (begin + window.start, begin + max(window.scored, given), begin + window.stop)
                for window in windows(end - begin, self.room, self.stride)
                if given < window.stop  # else it holds nothing but a prompt
            ]
        return np.array(found, dtype=np.int64).reshape(-1, 3)

    @override
    def __len__(self) -> int:
        """The number of windows."""
        return len(self._windows)

    @property
    @override
    def dropped_whole(self) -> NDArray[np.int64]:
        """None: a window goes on behind any prompt."""
        return np.empty(0, np.int64)

    @property
    @override
    def dropped_tokens(self) -> int:
        """None."""
        return 0

    @property
    @override
    def cut_documents(self) -> int:
        """None."""
        return 0

    @property
    @override
    def arrangement(self) -> str:
        """In words."""
        return f"windows that move by {self.stride}"

    @property
    @override
    def context(self) -> int:
        """What a window holds, without what it scores."""
        return self.room - self.stride

    @override
    def _given(self, row: int) -> int:
        start, scored, _ = self._windows[row].tolist()
        return int(scored - start)

    @override
    def _span(self, row: int, offset: int) -> tuple[int, int]:
        start, _, stop = self._windows[row].tolist()
        return start, stop


def _fields(sequences: Sequences) -> dict[str, Any]:
    """The fields that all kinds of rows have."""
    return {each.name: getattr(sequences, each.name) for each in fields(Sequences)}
