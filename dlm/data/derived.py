"""Tables made of other tables, kept in the cache of `datasets`, which by itself writes beside a user's own files."""

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from datasets.fingerprint import Hasher


def filtered(table: Dataset, wanted: Callable[..., list[bool]], columns: Sequence[str]) -> Dataset:
    """Some rows of a table.

    Args:
        table: The table.
        wanted: Whether each row of a batch is wanted; it is called with the columns.
        columns: Which.

    Returns:
        The wanted rows, in their order.
    """
    with _place(table, "filter", wanted, columns) as place:
        return table.filter(wanted, batched=True, input_columns=[*columns], **place)


def mapped(table: Dataset, make: Callable[..., Any], **options: Any) -> Dataset:
    """Rows made of those of a table.

    Args:
        table: The table.
        make: Gives columns for those of a batch.
        **options: As for `Dataset.map`.

    Returns:
        The rows that were made.
    """
    with _place(table, "map", make, options) as place:
        return table.map(make, batched=True, **options, **place)


@contextmanager
def _place(table: Dataset, *how: Any) -> Iterator[dict[str, str]]:
    """Where a table is kept, under a name that follows from the one it is made of, and from how it is made.

    A file whose checksum is not the one beside it is removed first, so that the table is made again.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "dlm" / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    name = Hasher.hash((table._fingerprint, *how))
    file, beside = folder / f"{name}.arrow", folder / f"{name}.sum"
    known = _sum(file)
    if known is not None and not (beside.exists() and beside.read_bytes() == known):
        file.unlink(missing_ok=True)
        known = None
    yield {"new_fingerprint": name, "cache_file_name": str(file)}
    if known is None and (made := _sum(file)) is not None:
        draft = folder / f".{name}.{os.getpid()}"
        draft.write_bytes(made)
        draft.replace(beside)


def _sum(file: Path) -> bytes | None:
    """The size and the checksum of a file; None if it is not there, as for a table without rows."""
    value = size = 0
    try:
        with file.open("rb") as stream:
            while part := stream.read(2**20):
                value, size = zlib.crc32(part, value), size + len(part)
    except FileNotFoundError:
        return None
    return f"{size} {value}".encode()
