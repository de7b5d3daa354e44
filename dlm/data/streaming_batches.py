"""Batches of documents that are read, tokenised, packed and shuffled while training goes on."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from numpy.typing import NDArray

from dlm.data.batches import Batch, Rearrange, rearranging_streams, with_affixes
from dlm.data.streaming import Stream, texts_in
from dlm.data.tokens import Encode
from dlm.diffusion.draws import generator
from dlm.errors import ConfigError, DataError
from dlm.model.tokenizer import Affixes


class StreamingBatches:
    """Endless batches of one process's share of every epoch of a stream.

    Rows are shuffled in blocks: a block is filled and given out in an order that follows from the seed, then the next
    one is filled. The place in the stream is the dataset's own cursor at the beginning of a block, and a row of it.

    Attributes:
        ahead: Rows worth making ahead (see `dlm.data.prefetch`): a block, which is made as a whole.
    """

    def __init__(
        self,
        stream: Stream,
        encode: Encode,
        end_id: int,
        pad_id: int,
        *,
        length: int,
        packing: Literal["pack", "pad"],
        buffer: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        affixes: Affixes | None = None,
        rearrange: Rearrange | None = None,
    ) -> None:
        """Prepares; no document is read yet.

        Args:
            stream: The documents of all processes.
            encode: Texts to ids.
            end_id: The end-of-text token, which goes after every document.
            pad_id: The padding.
            length: Tokens a row, the special tokens around it included.
            packing: As `data.packing` in the configuration.
            buffer: Rows a block.
            seed: The order within blocks follows from it.
            process: Which process this is.
            processes: How many there are.
            affixes: The special tokens around every row.
            rearrange: Rearranges the texts of the rows; None to leave them as they are.
        """
        self._affixes, self._rearrange = affixes or Affixes(), rearrange
        length -= len(self._affixes)
        self._name = stream.name
        self._documents = split_dataset_by_node(stream.train, process, processes)
        self._wanted, self._encode, self._end_id, self._pad_id = stream.wanted, encode, end_id, pad_id
        self._length, self._packing, self._buffer, self._seed = length, packing, buffer, seed
        self.ahead = buffer
        self._process, self._processes = process, processes
        self._begin: dict[str, Any] = {"cursor": None, "epoch": 0, "carried": [], "block": 0}
        self._next: dict[str, Any] = self._begin
        self._texts: Iterator[str] | None = None  # stays open between blocks: to open it again costs time
        self._rows: NDArray[np.int64] = np.empty((0, length), dtype=np.int64)
        self._taken = 0

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        """The next rows of the stream.

        Args:
            step: Decides how rows are rearranged; which they are follows from the order of the stream.
            positions: The wanted positions in the global batch; one row is taken for each.

        Returns:
            One row a position.

        Raises:
            DataError: The stream breaks off, or holds no text.
        """
        rows = [self._row() for _ in positions]
        x0_BL = torch.from_numpy(np.stack(rows))
        ends_BL = x0_BL == self._end_id
        document_BL = ends_BL.cumsum(1) - ends_BL.long() + torch.arange(len(rows))[:, None] * self._length
        loss_mask_BL = x0_BL != self._pad_id
        batch = Batch(x0_BL, loss_mask_BL, document_BL.masked_fill(~loss_mask_BL, -1))
        if self._rearrange is not None:
            batch = self._rearrange(batch, rearranging_streams(self._seed, step, positions))
        return with_affixes(batch, self._affixes, self._pad_id)

    def state(self) -> dict[str, Any]:
        """The place in the stream, in plain values that JSON can hold; `restore` goes there."""
        return {**self._begin, "taken": self._taken}

    def restore(self, places: Sequence[dict[str, Any]]) -> None:
        """Goes to the place that `state` gave; the same rows follow.

        Args:
            places: What `state` gave in each process.

        Raises:
            ConfigError: They come from a run on another number of processes.
        """
        if len(places) != self._processes:
            raise ConfigError(
                f"this run streams its text to {len(places)} processes, each with a place of its own in it, and "
                f"can only go on with as many; got {self._processes}"
            )
        state = places[self._process]
        self._next = {key: state[key] for key in ("cursor", "epoch", "carried", "block")}
        self._texts, self._rows = None, self._rows[:0]
        if state["taken"]:
            self._fill()
        self._taken = state["taken"]

    def _row(self) -> NDArray[np.int64]:
        if self._taken == len(self._rows):
            self._fill()
        self._taken += 1
        row: NDArray[np.int64] = self._rows[self._taken - 1]
        return row

    def _fill(self) -> None:
        """Reads the next block."""
        self._begin = begin = self._next
        block, epoch, carried = begin["block"], begin["epoch"], list(begin["carried"])
        cursor = begin["cursor"]
        rows: list[NDArray[np.int64]] = []
        while len(rows) < self._buffer:
            if self._texts is None:
                self._documents.set_epoch(epoch)
                self._documents.load_state_dict(cursor or {})
                self._texts = texts_in(self._documents, self._name)
            read = 0
            for text in self._texts:
                if self._wanted(text):
                    read += 1
                    carried = self._cut([*carried, *self._encode([text])[0], self._end_id], rows)
                    if len(rows) >= self._buffer:
                        break
            else:  # the end of the stream: the next epoch begins
                if not read and cursor is None:
                    fewer = ", or start fewer processes" if self._processes > 1 else ", or hold less of it out"
                    raise DataError(
                        f"data.train: the stream of {self._name} holds no text to train on for this process: give it "
                        f"more documents or files{fewer}"
                    )
                epoch, cursor, self._texts = epoch + 1, None, None
                continue
            cursor = self._documents.state_dict()
        self._next = {"cursor": cursor, "epoch": epoch, "carried": carried, "block": block + 1}
        # A long document may fill more rows than `buffer`; they belong to this block too.
        order = torch.randperm(len(rows), generator=generator(self._seed, "stream", self._process, block))
        self._rows = np.stack(rows)[order.numpy()]
        self._taken = 0

    def _cut(self, ids: list[int], rows: list[NDArray[np.int64]]) -> list[int]:
        """Appends rows made of ids, and returns the ids that are left."""
        if self._packing == "pad":
            row = np.full(self._length, self._pad_id, dtype=np.int64)
            row[: min(len(ids), self._length)] = ids[: self._length]
            rows.append(row)
            return []
        whole = len(ids) // self._length * self._length
        rows.extend(np.array(ids[:whole], dtype=np.int64).reshape(-1, self._length))
        return ids[whole:]
