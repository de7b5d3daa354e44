"""Documents that are read before training begins."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import datasets
from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from dlm.config import Data, Source
from dlm.data.choosing import format_of
from dlm.data.detokenize import check_detokenizer
from dlm.data.documents import Documents, type_of
from dlm.data.formats import no_rows
from dlm.errors import DataError, one_line
from dlm.plain import counted


@dataclass(frozen=True)
class Splits:
    """The documents of a run.

    Attributes:
        train: The documents to train on.
        validation: The documents to validate on.
    """

    train: Documents
    validation: Documents


def read(source: Source, key: str) -> Documents:
    """Reads the documents of a source.

    Args:
        source: Where they come from.
        key: Its place in the configuration, for messages, such as `data.train`.

    Returns:
        At least one document, none of them empty, in the type that the source's columns mean.

    Raises:
        ConfigError: The format, the path or the split is not valid.
        DataError: The documents are missing, damaged, empty, or not where the source says.
    """
    chosen = format_of(source, key)
    with quiet():
        table = chosen.read(key)
        if chosen.tabular and not len(table):
            raise no_rows(source.path or source.format, key)
        documents = type_of(source).of(table, source, key).without_empty()
    if not chosen.tabular:
        documents = replace(documents, empty=0)  # an empty line or file is no row that lacks something
    if not len(documents) and documents.skipped.rows:
        raise DataError(f"{key}: no row is left, as {documents.skipped.rows} are not valid; {documents.skipped.first}")
    if not len(documents):
        raise DataError(f"{key}: {source.path or source.format} holds no text at all")
    return documents


def read_splits(data: Data) -> Splits:
    """Reads the documents to train on and to validate on.

    Args:
        data: The sources, and the share that is held out where there is no validation source.

    Returns:
        Both, neither of them empty.

    Raises:
        ConfigError: A source is not valid, or `data.detokenize` names no corpus.
        DataError: A source cannot be read, or there is too little to hold any of it out.
    """
    if data.detokenize is not None:
        check_detokenizer(data.detokenize, "data.detokenize")
    documents = _written(data, data.train, "data.train")
    if data.validation is not None:
        return Splits(documents, _written(data, data.validation, "data.validation"))
    with quiet():
        train, validation = documents.split(data.held_out)
    if not len(train) or not len(validation):
        share = data.held_out.share
        change = "lower the share" if not len(train) else "raise the share"
        by_tail = "hold out by tail, " if data.held_out.by != "tail" and share else ""
        parted = data.held_out.by == "documents" and share and len(documents) > 1
        equal = ", as a hash of its text says the side of each, and equal ones stay together" if parted else ""
        raise DataError(
            f"data.held_out: a share of {share} of {counted(len(documents), 'document')} by {data.held_out.by} "
            f"leaves {len(train)} to train on and {len(validation)} to validate on{equal}; {by_tail}{change}, "
            "or name a data.validation"
        )
    return Splits(train, validation)


def _written(data: Data, source: Source, key: str) -> Documents:
    """The documents of a source, as people write them."""
    documents = read(source, key)
    if data.detokenize is None:
        return documents
    with quiet():
        return documents.detokenized(data.detokenize).without_empty()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of `datasets`, which have a global switch, and with its errors in one line."""
    shown = is_progress_bar_enabled()
    level: Any = datasets.logging.get_verbosity()
    disable_progress_bar()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from error
        raise DataError(f"the documents cannot be read: {one_line(error.__cause__ or error, 160)}") from error
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            enable_progress_bar()
