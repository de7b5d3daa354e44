"""Tables made of other tables, kept in the cache of `datasets`, which by itself writes beside a user's own files."""

from collections.abc import Callable, Sequence
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
    place = _place(table, "filter", wanted, columns)
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
    return table.map(make, batched=True, **options, **_place(table, "map", make, options))


def _place(table: Dataset, *how: Any) -> dict[str, str]:
    """Where a table is kept, under a name that follows from the one it is made of, and from how it is made."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "dlm" / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    name = Hasher.hash((table._fingerprint, *how))
    return {"new_fingerprint": name, "cache_file_name": str(folder / f"{name}.arrow")}
