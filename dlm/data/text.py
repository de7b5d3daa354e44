"""What is text, in values that JSON gave."""

import json
from dataclasses import dataclass
from typing import Any

from dlm.errors import DataError, shortened


@dataclass(frozen=True, repr=False)
class Twice:
    """Stands for the values of a name that an object, or a table, has twice.

    Attributes:
        place: Where a table names its columns, such as `line 1`; nothing for an object, which has its names itself.
    """

    place: str = ""

    def __repr__(self) -> str:
        return "(a name that stands twice)"


TWICE = Twice()


def check_text(value: Any) -> str:
    r"""A value that must be text.

    Args:
        value: What JSON gave.

    Returns:
        The same.

    Raises:
        DataError: It is something else, or stands there twice, or holds half of a character, such as `\ud800`.
    """
    if isinstance(value, Twice):
        raise DataError("stands there twice: rename one of the two")
    if not isinstance(value, str):
        raise DataError(f"holds {shortened(json.dumps(value, default=repr), 40)}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"holds {value[error.start]!r}, which is half of a character and no text") from error
    return value
