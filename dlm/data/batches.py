"""How documents become batches: one flat array of tokens, cut into rows."""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Self

import datasets
import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from dlm.diffusion.draws import generator
from dlm.errors import DataError

Encode = Callable[[list[str]], list[list[int]]]
EncodeGiven = Callable[[Mapping[str, Sequence[str | None]]], list[list[int]]]
"""What stands before each response, from a batch of columns."""


@dataclass(frozen=True)
class Tokens:
    """Documents as one stream of ids, each followed by the end of text, memory-mapped from the disk.

    Attributes:
        ids: The stream.
        offsets: Where each document begins in it, and after the last where it ends.
        sizes: Bytes of each document's text.
        given: How many tokens at the beginning of each document are a prompt, which is seen and not learned.
    """

    ids: NDArray[np.unsignedinteger]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    given: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        documents: Dataset,
        encode: Encode,
        end_id: int,
        vocabulary: int,
        fingerprint: str,
        encode_given: EncodeGiven | None = None,
    ) -> Self:
        """Tokenises a dataset once and keeps the result in the cache of `datasets`.

        Args:
            documents: A dataset with a column `text`.
            encode: Texts to ids.
            end_id: Goes after every document.
            vocabulary: Number of ids; decides how wide the array's numbers are.
            fingerprint: Changes when `encode` does.
            encode_given: Gives the prompt of each document, where they have prompts.

        Returns:
            The tokens of every document, in order.
        """
        kind = np.uint16 if vocabulary <= 2**16 else np.uint32
        key = hashlib.blake2b(repr((documents._fingerprint, fingerprint, 2)).encode(), digest_size=16).hexdigest()
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "dlm" / key
        try:
            return cls._open(folder)
        except (OSError, ValueError, EOFError):  # not there yet, or left half written
            cls._write(folder, documents, encode, encode_given, end_id, kind)
        return cls._open(folder)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def checksum(self) -> int:
        """A checksum of the stream; of a very long one, of about four million ids spread evenly over it."""
        return zlib.crc32(self.ids[:: max(len(self.ids) // 2**22, 1)].tobytes())

    @classmethod
    def _open(cls, folder: Path) -> Self:
        names = ("ids", "offsets", "sizes", "given", "sums")
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names]
        *own, sums = arrays
        if sums.tolist() != [zlib.crc32(array.data) for array in own]:
            raise ValueError(f"{folder} is damaged")
        return cls(*own)

    @staticmethod
    def _write(
        folder: Path,
        documents: Dataset,
        encode: Encode,
        encode_given: EncodeGiven | None,
        end_id: int,
        kind: type[np.unsignedinteger],
    ) -> None:
        """Writes beside the final name and renames, so that two processes may do it at once."""
        folder.mkdir(parents=True, exist_ok=True)
        lengths: list[int] = []
        sizes: list[int] = []
        given: list[int] = []
        with TemporaryDirectory(dir=folder, prefix=".") as draft:
            raw = Path(draft) / "raw"
            with raw.open("wb") as stream:
                for batch in documents.iter(batch_size=256):
                    texts: list[str] = batch["text"]
                    before = encode_given(batch) if encode_given else [[] for _ in texts]
                    rows = [[*prompt, *row] for prompt, row in zip(before, encode(texts), strict=True)]
                    stream.write(np.concatenate([np.array([*row, end_id], dtype=kind) for row in rows]).tobytes())
                    lengths += [len(row) + 1 for row in rows]
                    sizes += [len(text.encode()) for text in texts]
                    given += [len(prompt) for prompt in before]
            arrays = {
                "ids": np.memmap(raw, dtype=kind, mode="r", shape=(sum(lengths),)),
                "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
                "sizes": np.array(sizes, dtype=np.int64),
                "given": np.array(given, dtype=np.int64),
            }
            arrays["sums"] = np.array([zlib.crc32(array.data) for array in arrays.values()], dtype=np.int64)
            for name, array in arrays.items():
                np.save(Path(draft) / f"{name}.npy", array)
            for name in arrays:
                (Path(draft) / f"{name}.npy").replace(folder / f"{name}.npy")


@dataclass(frozen=True)
class Batch:
    """Rows of clean text.

    Attributes:
        x0_BL: Ids, int64.
        where_BL: True at tokens to learn or to score, False at prompts and at padding.
        document_BL: Which document each token belongs to; -1 at padding.
    """

    x0_BL: Tensor
    where_BL: Tensor
    document_BL: Tensor


@dataclass(frozen=True)
class Sequences:
    """Tokens cut into rows of one length.

    Attributes:
        tokens: The stream.
        length: Tokens a row.
        packing: `pack` cuts the stream wherever a row is full; `pad` begins a row with each document, cuts
            the document where the row ends and pads it where the document does.
        pad_id: The padding.
    """

    tokens: Tokens
    length: int
    packing: Literal["pack", "pad"]
    pad_id: int

    def __len__(self) -> int:
        """The number of rows; the last packed one may be short."""
        if self.packing == "pad":
            return len(self._rows)
        return -(-len(self.tokens) // self.length)

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        """The documents that have a row: those whose prompt leaves room for something to learn."""
        return np.flatnonzero(self.tokens.given < self.length)

    @property
    def dropped_whole(self) -> NDArray[np.int64]:
        """The documents that have no row, as their prompts fill it."""
        return np.flatnonzero(self.tokens.given >= self.length) if self.packing == "pad" else np.empty(0, np.int64)

    @property
    def dropped_tokens(self) -> int:
        """Tokens in no row: the ends of documents longer than a row, prompts apart."""
        if self.packing == "pack":
            return 0
        whole_D, given_D = np.diff(self.tokens.offsets), self.tokens.given
        return int((whole_D - given_D - (whole_D.clip(max=self.length) - given_D).clip(min=0)).sum())

    def batch(self, rows: Iterable[int], offset: int = 0) -> Batch:
        """Rows as tensors.

        Args:
            rows: Which.
            offset: Where in the stream the first packed row begins.

        Returns:
            The batch, every row `length` wide.
        """
        spans = [self._span(row, offset) for row in rows]
        x0_BL = np.full((len(spans), self.length), self.pad_id, dtype=np.int64)
        document_BL = np.full((len(spans), self.length), -1, dtype=np.int64)
        for row, (start, stop) in enumerate(spans):
            x0_BL[row, : stop - start] = self.tokens.ids[start:stop]
            document_BL[row, : stop - start] = (
                np.searchsorted(self.tokens.offsets, np.arange(start, stop), side="right") - 1
            )
        where_BL = document_BL >= 0
        if self.packing == "pad":
            where_BL &= np.arange(self.length) >= self.tokens.given[document_BL[:, :1]]
        return Batch(torch.from_numpy(x0_BL), torch.from_numpy(where_BL), torch.from_numpy(document_BL))

    def _span(self, row: int, offset: int) -> tuple[int, int]:
        if self.packing == "pad":
            document = self._rows[row]
            start, end = self.tokens.offsets[document : document + 2].tolist()
        else:
            start, end = offset + row * self.length, len(self.tokens)
        return start, min(start + self.length, end)


class TrainingBatches:
    """Endless batches in an order that is a pure function of the seed and the step.

    Attributes:
        rows: Rows an epoch.
        ahead: See `dlm.data.prefetch`: one part, as each takes as long as the last.
    """

    ahead = 1

    def __init__(self, sequences: Sequences, batch_size: int, seed: int, tail_id: int | None = None) -> None:
        """Prepares the order.

        Args:
            sequences: What to train on.
            batch_size: Sequences a step, over all processes.
            seed: The order follows from it.
            tail_id: What follows a text in its row, to be learned, a random number of times (uniform from none
                to as often as there is room); None for nothing.

        Raises:
            DataError: There is not one full sequence.
        """
        self._sequences, self._batch_size, self._seed, self._tail_id = sequences, batch_size, seed, tail_id
        # A packed stream is cut at a new place in every epoch, and so has one row less to be sure of.
        tokens, length = len(sequences.tokens), sequences.length
        self.rows = len(sequences) if sequences.packing == "pad" else (tokens + 1) // length - 1
        if sequences.packing == "pack" and self.rows < 1:
            self.rows = tokens // length
        self._slack = 0 if sequences.packing == "pad" else max(tokens - self.rows * length, 0)
        if self.rows < 1 and sequences.packing == "pad":
            raise DataError(
                f"no prompt is shorter than data.length {length}, so that there is nothing to learn: raise it"
            )
        if self.rows < 1:
            raise DataError(
                f"the training text has {tokens} tokens, fewer than one sequence of data.length {length}: "
                "give more text, or a smaller data.length"
            )

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        """Part of the global batch of a step.

        Args:
            step: From 1.
            positions: The positions in the global batch that are wanted, below `batch_size`.

        Returns:
            One row a position.
        """
        places = [divmod((step - 1) * self._batch_size + position, self.rows) for position in positions]
        parts = []
        for epoch in sorted({epoch for epoch, _ in places}):
            order, offset = self._epoch(epoch)
            parts.append(self._sequences.batch([order[place] for e, place in places if e == epoch], offset))
        fields = zip(*((part.x0_BL, part.where_BL, part.document_BL) for part in parts), strict=True)
        batch = Batch(*(torch.cat(field) for field in fields))
        if self._tail_id is not None:
            _add_tails(batch, self._tail_id, [generator(self._seed, "tail", step, position) for position in positions])
        return batch

    def state(self) -> None:
        """Nothing: where it stands follows from the step."""

    def restore(self, places: Sequence[object]) -> None:
        """Nothing, for the same reason."""

    @lru_cache(maxsize=2)  # noqa: B019 - a step needs one epoch, or two at their seam
    def _epoch(self, epoch: int) -> tuple[list[int], int]:
        """The order of an epoch's rows, and where it begins to cut the stream."""
        stream = generator(self._seed, "epoch", epoch)
        order: list[int] = torch.randperm(self.rows, generator=stream).tolist()
        return order, int(torch.randint(self._slack + 1, (), generator=stream))


def _add_tails(batch: Batch, tail_id: int, streams: Sequence[torch.Generator]) -> None:
    """Puts a random number of ends of text behind each text."""
    width = batch.x0_BL.shape[1]
    for row, stream in enumerate(streams):
        used = int((batch.document_BL[row] >= 0).sum())
        stop = used + int(torch.randint(width - used + 1, (), generator=stream))
        batch.x0_BL[row, used:stop] = tail_id
        batch.where_BL[row, used:stop] = True
        batch.document_BL[row, used:stop] = batch.document_BL[row, 0]
