"""Rows of tokens, and the batches that a run trains on."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlm.data.tokens import Skipped, Tokens
from dlm.diffusion.draws import generator
from dlm.errors import DataError
from dlm.model.tokenizer import Affixes


@dataclass(frozen=True)
class Batch:
    """Rows of clean text.

    Attributes:
        x0_BL: Ids, int64.
        loss_mask_BL: True at tokens to learn or to score, False at prompts and at padding.
        document_BL: Which document each token belongs to; -1 at padding, and at special tokens around a row.
    """

    x0_BL: Tensor
    loss_mask_BL: Tensor
    document_BL: Tensor


Rearrange = Callable[[Batch, Sequence[torch.Generator]], Batch]
"""(rows without special tokens around them, one stream a row) -> rows of the same length; see `dlm.data.middle`."""


@dataclass(frozen=True)
class Sequences:
    """Tokens cut into rows of one length.

    Attributes:
        tokens: The stream.
        length: Tokens a row, the special tokens around it included.
        packing: `pack` cuts the stream into full rows; `pad` begins a row with each document, cuts a document that
            is longer than the row, and pads the row behind a shorter one.
        pad_id: The padding.
        affixes: The special tokens around each row, which are given.
        skipped: Rows of the source that are in none of them because they are not valid.
    """

    tokens: Tokens
    length: int
    packing: Literal["pack", "pad"]
    pad_id: int
    affixes: Affixes = field(default_factory=Affixes)
    skipped: Skipped = field(default_factory=Skipped)

    @property
    def room(self) -> int:
        """Tokens of a row between its special tokens."""
        return self.length - len(self.affixes)

    def __len__(self) -> int:
        """The number of rows; the last packed one may be short."""
        if self.packing == "pad":
            return len(self._rows)
        return -(-len(self.tokens) // self.room)

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        """The documents that have a row: those whose prompt leaves room for at least one token of the text."""
        return np.flatnonzero(self.tokens.given < self.room)

    @property
    def dropped_whole(self) -> NDArray[np.int64]:
        """The documents that have no row because their prompts would fill it."""
        return np.flatnonzero(self.tokens.given >= self.room) if self.packing == "pad" else np.empty(0, np.int64)

    @property
    def dropped_tokens(self) -> int:
        """Tokens in no row: the ends of documents longer than a row, without their prompts."""
        if self.packing == "pack":
            return 0
        whole_D, given_D = np.diff(self.tokens.offsets), self.tokens.given
        return int((whole_D - given_D - (whole_D.clip(max=self.room) - given_D).clip(min=0)).sum())

    @property
    def cut_documents(self) -> int:
        """Documents that are longer than their row, the end of text included, and lose their ends."""
        if self.packing == "pack":
            return 0
        return int(((np.diff(self.tokens.offsets) > self.room) & (self.tokens.given < self.room)).sum())

    @property
    def learned_tokens(self) -> int:
        """Tokens in the rows, without those of prompts, which are seen and neither learned nor scored."""
        return len(self.tokens) - int(self.tokens.given.sum()) - self.dropped_tokens

    def batch(self, rows: Iterable[int], offset: int = 0) -> Batch:
        """Rows as tensors.

        Args:
            rows: The rows' numbers.
            offset: Where in the stream row 0 begins, for packed rows.

        Returns:
            The batch, every row `length` wide.
        """
        return with_affixes(self.bare_batch(rows, offset), self.affixes, self.pad_id)

    def bare_batch(self, rows: Iterable[int], offset: int = 0) -> Batch:
        """The same without special tokens around the rows, which are `room` wide; see `batch`."""
        rows = list(rows)
        spans = [self._span(row, offset) for row in rows]
        x0_BL = np.full((len(spans), self.room), self.pad_id, dtype=np.int64)
        document_BL = np.full((len(spans), self.room), -1, dtype=np.int64)
        for row, (start, stop) in enumerate(spans):
            x0_BL[row, : stop - start] = self.tokens.ids[start:stop]
            document_BL[row, : stop - start] = (
                np.searchsorted(self.tokens.offsets, np.arange(start, stop), side="right") - 1
            )
        given_B = np.array([self._given(row) for row in rows], dtype=np.int64)
        loss_mask_BL = (document_BL >= 0) & (np.arange(self.room) >= given_B[:, None])
        return Batch(torch.from_numpy(x0_BL), torch.from_numpy(loss_mask_BL), torch.from_numpy(document_BL))

    @property
    def arrangement(self) -> str:
        """How documents became rows, in words."""
        return self.packing

    @property
    def context(self) -> int:
        """Of windows that overlap, how many tokens at least are given before what each further one scores."""
        return 0

    def _given(self, row: int) -> int:
        """How many tokens at the beginning of a row are neither learned nor scored."""
        return int(self.tokens.given[self._rows[row]]) if self.packing == "pad" else 0

    def _span(self, row: int, offset: int) -> tuple[int, int]:
        if self.packing == "pad":
            document = self._rows[row]
            start, end = self.tokens.offsets[document : document + 2].tolist()
        else:
            start, end = offset + row * self.room, len(self.tokens)
        return start, min(start + self.room, end)


class TrainingBatches:
    """Endless batches in an order that is a pure function of the seed and the step.

    Attributes:
        rows: Rows an epoch.
        ahead: Rows worth making ahead (see `dlm.data.prefetch`): the next part alone, as all take equally long.
    """

    ahead = 1

    def __init__(
        self,
        sequences: Sequences,
        batch_size: int,
        seed: int,
        tail_id: int | None = None,
        rearrange: Rearrange | None = None,
    ) -> None:
        """Prepares the order.

        Args:
            sequences: What to train on.
            batch_size: Sequences a step, over all processes.
            seed: The order follows from it.
            tail_id: An id that is put behind each text in its row and learned, a random number of times (uniform from
                none to as often as there is room); None to leave the padding.
            rearrange: Rearranges the texts of the rows; None to leave them as they are.

        Raises:
            DataError: There is less text than one sequence.
        """
        self._sequences, self._batch_size, self._seed, self._tail_id = sequences, batch_size, seed, tail_id
        self._rearrange = rearrange
        # Every epoch begins to cut a packed stream at another place, so the last row is not always full.
        tokens, length = len(sequences.tokens), sequences.room
        self.rows = len(sequences) if sequences.packing == "pad" else (tokens + 1) // length - 1
        if sequences.packing == "pack" and self.rows < 1:
            self.rows = tokens // length
        self._slack = 0 if sequences.packing == "pad" else max(tokens - self.rows * length, 0)
        if self.rows < 1 and sequences.packing == "pad":
            raise DataError(
                f"no prompt is shorter than data.length {sequences.length}, so that there is nothing to learn: raise it"
            )
        if self.rows < 1:
            raise DataError(
                f"the training text has {tokens} tokens, fewer than one sequence of data.length {sequences.length}: "
                "give more text, or a smaller data.length"
            )

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        """Part of the global batch of a step.

        Args:
            step: From 1.
            positions: The wanted positions in the global batch, below `batch_size`.

        Returns:
            One row a position.
        """
        places = [divmod((step - 1) * self._batch_size + position, self.rows) for position in positions]
        parts = []
        for epoch in sorted({epoch for epoch, _ in places}):
            order, offset = self._epoch(epoch)
            parts.append(self._sequences.bare_batch([order[place] for e, place in places if e == epoch], offset))
        fields = zip(*((part.x0_BL, part.loss_mask_BL, part.document_BL) for part in parts), strict=True)
        batch = Batch(*(torch.cat(field) for field in fields))
        if self._tail_id is not None:
            _add_tails(batch, self._tail_id, [generator(self._seed, "tail", step, position) for position in positions])
        if self._rearrange is not None:
            batch = self._rearrange(batch, rearranging_streams(self._seed, step, positions))
        return with_affixes(batch, self._sequences.affixes, self._sequences.pad_id)

    def state(self) -> None:
        """None, since the order follows from the step and there is no place to save."""

    def restore(self, places: Sequence[object]) -> None:
        """Does nothing, since there is no place to restore."""

    @lru_cache(maxsize=2)  # noqa: B019 - a step needs one epoch, or two at their seam
    def _epoch(self, epoch: int) -> tuple[list[int], int]:
        """The order of an epoch's rows, and where in the stream row 0 begins."""
        stream = generator(self._seed, "epoch", epoch)
        order: list[int] = torch.randperm(self.rows, generator=stream).tolist()
        return order, int(torch.randint(self._slack + 1, (), generator=stream))


def rearranging_streams(seed: int, step: int, positions: Sequence[int]) -> list[torch.Generator]:
    """What the cuts of rows follow from: the seed, the step, and each row's position in the global batch."""
    return [generator(seed, "fim", step, position) for position in positions]


def with_affixes(batch: Batch, affixes: Affixes, pad_id: int) -> Batch:
    """Rows with special tokens around what each of them holds.

    Args:
        batch: Rows, padded on the right.
        affixes: The special tokens; they are given.
        pad_id: The padding.

    Returns:
        Rows that are as many tokens wider; the same batch where there are none.
    """
    if not len(affixes):
        return batch
    rows, width = batch.x0_BL.shape
    x0_BL = torch.full((rows, width + len(affixes)), pad_id)
    loss_mask_BL, document_BL = torch.zeros_like(x0_BL, dtype=torch.bool), torch.full_like(x0_BL, -1)
    for row in range(rows):
        used = int((batch.document_BL[row] >= 0).sum())
        before, behind = affixes.around(batch.x0_BL[row, :used].tolist())
        text = slice(len(before), len(before) + used)
        x0_BL[row, : text.start] = torch.tensor(before)
        x0_BL[row, text.stop : text.stop + len(behind)] = torch.tensor(behind)
        for target_BL, source_BL in (
            (x0_BL, batch.x0_BL),
            (loss_mask_BL, batch.loss_mask_BL),
            (document_BL, batch.document_BL),
        ):
            target_BL[row, text] = source_BL[row, :used]
    return Batch(x0_BL, loss_mask_BL, document_BL)


def _add_tails(batch: Batch, tail_id: int, streams: Sequence[torch.Generator]) -> None:
    """Puts a random number of end-of-text tokens behind each text, in place."""
    width = batch.x0_BL.shape[1]
    for row, stream in enumerate(streams):
        used = int((batch.document_BL[row] >= 0).sum())
        stop = used + int(torch.randint(width - used + 1, (), generator=stream))
        batch.x0_BL[row, used:stop] = tail_id
        batch.loss_mask_BL[row, used:stop] = True
        batch.document_BL[row, used:stop] = batch.document_BL[row, 0]
