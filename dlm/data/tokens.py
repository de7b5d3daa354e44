"""Tokenised documents: one stream of ids, written to the disk once and read from there ever after."""

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import datasets
import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from dlm.data.pace import paced
from dlm.plain import counted

Encode = Callable[[list[str]], list[list[int]]]
"""From texts to their ids."""

BATCH = 256
"""Documents that are tokenised together."""

EncodePrompts = Callable[[Mapping[str, Sequence[Any]]], list[list[int]]]
"""From some documents, column by column, to the ids before each text."""


@dataclass(frozen=True)
class Skipped:
    """Rows of a source that were left out because they are not valid.

    Attributes:
        rows: How many.
        first: What is wrong with the first of them.
    """

    rows: int = 0
    first: str = ""

    def __str__(self) -> str:
        return f"{counted(self.rows, 'row')} left out; the first: {self.first}"


@dataclass(frozen=True)
class Tokens:
    """Documents as one stream of ids, memory-mapped from the disk, with an end-of-text token after each document.

    Attributes:
        ids: The stream.
        offsets: Where each document begins in the stream; the last entry is where the stream ends.
        sizes: Bytes of each document's text.
        given: How many tokens at the beginning of each document are its prompt, which is seen and not learned.
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
        encode_prompts: EncodePrompts | None = None,
        encode_responses: Encode | None = None,
    ) -> Self:
        """Tokenises a dataset once and keeps the result in the cache of `datasets`.

        Args:
            documents: A dataset with a column `text`.
            encode: Texts to ids.
            end_id: The end-of-text token.
            vocabulary: The largest id and one; up to 65,536 ids are kept in 16 bits, more in 32.
            fingerprint: Changes when `encode` does.
            encode_prompts: Gives the prompt of each document; None where documents have none.
            encode_responses: Encodes a text behind a prompt that is not empty; `encode` by default.

        Returns:
            The tokens of every document, in order.
        """
        kind = np.uint16 if vocabulary <= 2**16 else np.uint32
        key = hashlib.blake2b(repr((documents._fingerprint, fingerprint, 2)).encode(), digest_size=16).hexdigest()
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "dlm" / key
        try:
            return cls._open(folder)
        except (OSError, ValueError, EOFError):  # not there yet, or damaged
            cls._write(folder, documents, encode, encode_prompts, encode_responses or encode, end_id, kind)
        return cls._open(folder)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def checksum(self) -> int:
        """A checksum of every id, of the documents' borders and sizes, and of where their prompts end."""
        value = 0
        for array in (self.ids, self.offsets, self.sizes, self.given):
            value = zlib.crc32(np.ascontiguousarray(array).data, value)  # in place: nothing is copied from the disk
        return value

    @property
    def earlier_checksum(self) -> int:
        """The checksum that earlier versions recorded: of the ids alone, and of about four million of very many."""
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
        encode_prompts: EncodePrompts | None,
        encode_responses: Encode,
        end_id: int,
        kind: type[np.unsignedinteger],
    ) -> None:
        """Writes to a temporary folder and renames, so that two processes may write at the same time."""
        folder.mkdir(parents=True, exist_ok=True)
        lengths: list[int] = []
        sizes: list[int] = []
        given: list[int] = []
        with TemporaryDirectory(dir=folder, prefix=".") as draft:
            raw = Path(draft) / "raw"
            with raw.open("wb") as stream:
                batches = documents.iter(batch_size=BATCH)
                for batch in paced(batches, "tokenising", "documents", len(documents), BATCH):
                    texts: list[str] = batch["text"]
                    before = encode_prompts(batch) if encode_prompts else [[] for _ in texts]
                    rows = [[*prompt] for prompt in before]
                    for make, behind in ((encode, False), (encode_responses, True)):
                        places = [i for i, prompt in enumerate(before) if bool(prompt) == behind]
                        found = make([texts[i] for i in places]) if places else []
                        for i, ids in zip(places, found, strict=True):
                            rows[i] += ids
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
