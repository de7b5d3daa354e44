"""Documents that are read while training goes on, and are never all on the disk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset, IterableDataset

from dlm.config import Data, Source
from dlm.data.choosing import format_of
from dlm.data.documents import Documents, Plain, kept_back
from dlm.data.formats import FORMATS, check_columns, no_rows
from dlm.data.keys import option_of
from dlm.data.reading import read
from dlm.data.records import with_key
from dlm.errors import ConfigError, DataError, DlmError, one_line, shortened
from dlm.plain import counted

SCANNED = 10_000
"""Documents at the beginning of a stream that a tokenizer learns from and that validation documents are taken from."""


@dataclass(frozen=True)
class Stream:
    """The documents of a run whose training documents are streamed.

    Attributes:
        name: What it is called in messages.
        train: The documents to train on, with a column `text`; those that are held out are still among them.
        wanted: Whether a document is trained on: not held out, and not empty.
        validation: The documents to validate on.
    """

    name: str
    train: IterableDataset
    wanted: Callable[[str], bool]
    validation: Documents

    def beginning(self) -> Iterator[str]:
        """The first documents to train on, for a tokenizer to learn from."""
        yield from filter(self.wanted, texts_in(self.train.take(SCANNED), self.name))


def open_stream(data: Data) -> Stream:
    """Opens the documents to train on, and reads those to validate on.

    Args:
        data: The sources. Without a validation source, the documents of `held_out` among the first 10,000 are
            validated on, and no document of `held_out` anywhere is trained on.

    Returns:
        Both.

    Raises:
        ConfigError: A source is not valid, or a stream cannot be held out this way.
        DataError: A source cannot be read, or none of its first documents is held out.
    """
    train, name = _open(data.train, "data.train"), data.train.path or data.train.format
    if data.validation is not None:
        return Stream(name, train, bool, read(data.validation, "data.validation"))
    if data.held_out.by == "tail":
        raise ConfigError(
            "data.held_out.by: a stream has no tail that could be kept back; hold out by documents, or name a "
            "data.validation"
        )
    is_held_out = partial(_is_held_out, share=data.held_out.share)
    texts = [text for text in texts_in(train.take(SCANNED), name) if text]
    if not texts:
        raise DataError(f"data.train: {name} holds no text at all")
    validation = [text for text in texts if is_held_out(text)]
    if not validation:
        raise DataError(
            f"data.held_out: a share of {data.held_out.share} holds none of the first "
            f"{counted(len(texts), 'document')} of the stream back; raise it, or name a data.validation"
        )
    return Stream(
        name,
        train,
        lambda text: bool(text) and not is_held_out(text),
        Plain(Dataset.from_dict({"text": validation})),
    )


def texts_in(documents: IterableDataset, name: str) -> Iterator[str]:
    """The texts of a stream to train on.

    Args:
        documents: The stream, with a column `text`.
        name: What it is called in messages.

    Yields:
        The texts, empty where a row has none.

    Raises:
        DataError: The stream breaks off, or its column holds something other than text further down.
    """
    for row in _rows(documents, "data.train", name):
        text = row["text"]
        if not isinstance(text, str | None):
            raise DataError(
                f"data.train: the stream of {name} holds {type(text).__name__} {shortened(repr(text), 40)} "
                "where text is wanted"
            )
        yield text or ""


def _open(source: Source, key: str) -> IterableDataset:
    """The documents of a source, with a column `text`; only the first is read, to check the column."""
    chosen = format_of(source, key)
    try:
        documents = chosen.stream(key)
    except DlmError:
        raise
    except StopIteration as error:  # datasets looks at the first row
        raise no_rows(source.path or source.format, key) from error
    except Exception as error:  # datasets, pyarrow and the Hub each raise their own
        raise DataError(f"{key}: {source.path} cannot be streamed: {one_line(error, 160)}") from error
    first = next(iter(_rows(documents.take(1), key, source.path or source.format)), None)
    if first is None:
        raise no_rows(source.path or source.format, key)
    column = source.field if FORMATS[source.format].tabular else "text"
    check_columns(list(first), {"field": (column,)}, source.path or source.format, key)
    if not isinstance(first[column], str | None):
        raise DataError(
            f"{option_of(key, 'field')}: {column!r} of {source.path} holds {type(first[column]).__name__}, not text"
        )
    documents = documents.select_columns(column)
    return documents if column == "text" else documents.rename_column(column, "text")


def _rows(documents: IterableDataset, key: str, name: str) -> Iterator[dict[str, Any]]:
    """The rows of a stream; an error on the way becomes one line."""
    try:
        yield from documents
    except DataError as error:
        raise with_key(error, key) from error
    except Exception as error:  # as in `_open`
        raise DataError(
            f"{key}: the stream of {name} cannot be read: {one_line(error.__cause__ or error, 160)}"
        ) from error


def _is_held_out(text: str, share: float) -> bool:
    return kept_back([text], share=share, wanted=True)[0]
