"""Documents that are never all on the disk: read, tokenised, packed and shuffled while training goes on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from datasets.distributed import split_dataset_by_node
from numpy.typing import NDArray

from dlm.config import Data, Source
from dlm.data import sources
from dlm.data.batches import Batch, Encode
from dlm.diffusion.draws import generator
from dlm.errors import ConfigError, DataError

SCANNED = 10_000
"""Documents from the beginning of a stream that a tokenizer learns from, and held-out ones are taken from."""

SHARDS = 64
"""Parts of a dataset saved to disk, which processes share."""


@dataclass(frozen=True)
class Stream:
    """The documents of a run that is too long to be read before it begins.

    Attributes:
        name: What it is called in messages.
        train: What is learned from, with a column `text`; it still holds the documents that are held out.
        wanted: Whether a document is learned from: not held out, and not empty.
        validation: What is kept back.
    """

    name: str
    train: IterableDataset
    wanted: Callable[[str], bool]
    validation: Dataset

    def beginning(self) -> Iterator[str]:
        """The first documents, for a tokenizer to learn from."""
        yield from filter(self.wanted, _texts(self.train.take(SCANNED), self.name))


def open_stream(data: Data) -> Stream:
    """Opens what to train on, and reads what to validate on.

    Args:
        data: The sources; without one for validation, the documents of `held_out` among the first 10,000 are
            validated on, and none of `held_out` at all is trained on.

    Returns:
        Both.

    Raises:
        ConfigError: A source is not valid, or `held_out` cannot be had of a stream.
        DataError: A source cannot be read, or none of its first documents is held out.
    """
    train, name = _open(data.train, "data.train"), data.train.path or data.train.format
    if data.validation is not None:
        return Stream(name, train, bool, sources.read(data.validation, "data.validation"))
    if data.held_out.by == "tail":
        raise ConfigError(
            "data.held_out.by: a stream has no tail that could be kept back; hold out by documents, or name a "
            "data.validation"
        )
    kept_back = partial(_kept_back, share=data.held_out.share)
    texts = [text for text in _texts(train.take(SCANNED), name) if text]
    if not texts:
        raise DataError(f"data.train: {name} holds no text at all")
    validation = [text for text in texts if kept_back(text)]
    if not validation:
        raise DataError(
            f"data.held_out: a share of {data.held_out.share} holds none of the first {len(texts)} documents of the "
            "stream back; raise it, or name a data.validation"
        )
    return Stream(name, train, lambda text: bool(text) and not kept_back(text), Dataset.from_dict({"text": validation}))


class StreamingBatches:
    """Endless batches of one process's share of every epoch of a stream.

    Rows are shuffled in blocks: so many are filled, given out in an order that follows from the seed, and the next
    are filled. Where the stream stands is the dataset's own cursor at the beginning of a block, and a place in it.

    Attributes:
        ahead: See `dlm.data.prefetch`: a block, as all of one is made when its first row is asked for.
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
    ) -> None:
        """Goes to the beginning; nothing is read yet.

        Args:
            stream: The documents of all processes.
            encode: Texts to ids.
            end_id: Goes after every document.
            pad_id: The padding.
            length: Tokens a row.
            packing: As `data.packing` in the configuration.
            buffer: Rows a block.
            seed: The order within blocks follows from it.
            process: Which process this is.
            processes: How many there are.
        """
        self._name = stream.name
        self._documents = split_dataset_by_node(stream.train, process, processes)
        self._wanted, self._encode, self._end_id, self._pad_id = stream.wanted, encode, end_id, pad_id
        self._length, self._packing, self._buffer, self._seed = length, packing, buffer, seed
        self.ahead = buffer
        self._process, self._processes = process, processes
        self._begin: dict[str, Any] = {"cursor": None, "epoch": 0, "carried": [], "block": 0}
        self._next: dict[str, Any] = self._begin
        self._texts: Iterator[str] | None = None  # stays open from block to block: going back in costs
        self._rows: NDArray[np.int64] = np.empty((0, length), dtype=np.int64)
        self._taken = 0

    def batch(self, step: int, positions: Sequence[int]) -> Batch:
        """The next rows of the stream, whichever the step.

        Args:
            step: From 1.
            positions: The positions in the global batch that are wanted: as many rows are taken.

        Returns:
            One row a position.

        Raises:
            DataError: The stream breaks off, or holds no text.
        """
        rows = [self._row() for _ in positions]
        x0_BL = torch.from_numpy(np.stack(rows))
        ends_BL = x0_BL == self._end_id
        document_BL = ends_BL.cumsum(1) - ends_BL.long() + torch.arange(len(rows))[:, None] * self._length
        where_BL = x0_BL != self._pad_id
        return Batch(x0_BL, where_BL, document_BL.masked_fill(~where_BL, -1))

    def state(self) -> dict[str, Any]:
        """Where the stream stands, in plain values that JSON can hold; `restore` goes there."""
        return {**self._begin, "taken": self._taken}

    def restore(self, places: Sequence[dict[str, Any]]) -> None:
        """Goes to where `state` was called; the rows after it are the same.

        Args:
            places: What `state` gave in each process.

        Raises:
            ConfigError: They are of a run on another number of processes.
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
                self._texts = _texts(self._documents, self._name)
            read = 0
            for text in self._texts:
                if self._wanted(text):
                    read += 1
                    carried = self._cut([*carried, *self._encode([text])[0], self._end_id], rows)
                    if len(rows) >= self._buffer:
                        break
            else:  # the end of the stream: once more from its beginning
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
        # A long document may fill more rows than a block has; they belong to it all the same.
        order = torch.randperm(len(rows), generator=generator(self._seed, "stream", self._process, block))
        self._rows = np.stack(rows)[order.numpy()]
        self._taken = 0

    def _cut(self, ids: list[int], rows: list[NDArray[np.int64]]) -> list[int]:
        """Makes rows of ids, and gives back what is left."""
        if self._packing == "pad":
            row = np.full(self._length, self._pad_id, dtype=np.int64)
            row[: min(len(ids), self._length)] = ids[: self._length]
            rows.append(row)
            return []
        whole = len(ids) // self._length * self._length
        rows.extend(np.array(ids[:whole], dtype=np.int64).reshape(-1, self._length))
        return ids[whole:]


def _open(source: Source, key: str) -> IterableDataset:
    """The documents of a source, unread, with a column `text`."""
    sources.check_source(source, key)
    documents = _reader(source, key)
    column = "text" if source.format in ("text", "python-stdlib") else source.field
    first = next(iter(_reading(documents.take(1), key, str(source.path or source.format))), None)
    if first is None:
        raise DataError(f"{key}: {source.path} holds no text at all")
    sources.check_column(list(first), column, "text", source, key)
    if not isinstance(first[column], str | None):
        raise DataError(f"{key}.field: {column!r} of {source.path} holds {type(first[column]).__name__}, not text")
    documents = documents.select_columns(column)
    return documents if column == "text" else documents.rename_column(column, "text")


def _reader(source: Source, key: str) -> IterableDataset:
    suffixes = {"text": "txt", "jsonl": "jsonl", "csv": "csv", "parquet": "parquet"}
    try:
        if source.format in ("text", "python-stdlib"):
            stdlib = source.format == "python-stdlib"
            files = sources.stdlib_files(key) if stdlib else sources.files_of(source, key, "txt")
            if source.documents == "file" and len(files) == 1:
                raise ConfigError(
                    f"{key}.documents: one file is one document, which is never read in parts; set line or paragraph"
                )
            given = {"files": files, "documents": "file" if stdlib else source.documents, "stamp": ""}
            return IterableDataset.from_generator(sources.texts_of, gen_kwargs=given)
        if source.format == "saved":
            found = sources.split_of(load_from_disk(str(source.path)), source, key)
            return found.to_iterable_dataset(num_shards=min(SHARDS, max(len(found), 1)))
        if source.format == "hub":
            sources.ask_hub(str(source.path))
            return load_dataset(source.path, source.subset, split=source.split or "train", streaming=True)
        builder = "json" if source.format == "jsonl" else source.format
        paths = [escape(file) for file in sources.files_of(source, key, suffixes[source.format])]
        return load_dataset(builder, data_files=paths, split="train", streaming=True, **sources.options_of(source))
    except (ConfigError, DataError):
        raise
    except StopIteration as error:  # datasets looks at the first row
        raise DataError(f"{key}: {source.path} holds no text at all") from error
    except Exception as error:  # datasets, pyarrow and the Hub each raise their own
        raise DataError(f"{key}: {source.path} cannot be streamed: {sources.line_of(error)}") from error


def _reading(documents: IterableDataset, key: str, name: str) -> Iterator[dict[str, Any]]:
    """The documents, what goes wrong on the way being told in one line."""
    try:
        yield from documents
    except DataError:
        raise
    except Exception as error:  # as in `_reader`
        raise DataError(
            f"{key}: the stream of {name} cannot be read: {sources.line_of(error.__cause__ or error)}"
        ) from error


def _texts(documents: IterableDataset, name: str) -> Iterator[str]:
    """The texts to train on; a column may turn out to hold something else further down."""
    for row in _reading(documents, "data.train", name):
        text = row["text"]
        if not isinstance(text, str | None):
            raise DataError(
                f"data.train: the stream of {name} holds {type(text).__name__} {text!r:.40} where text is wanted"
            )
        yield text or ""


def _kept_back(text: str, share: float) -> bool:
    return sources.kept_back([text], share, True)[0]
