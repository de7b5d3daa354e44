"""Numbers as JSON has them, and as sentences do."""

import json
import math
from typing import Any

_IRREGULAR = {"are": "is", "were": "was", "have": "has"}


def finite(value: Any) -> Any:
    """Plain values, with None for the numbers that JSON has none for: infinity, and what is not a number.

    Args:
        value: Numbers, texts and None, in dictionaries, lists and tuples.

    Returns:
        The same, with a list for a tuple.
    """
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [*map(finite, value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain_json(value: Any) -> str:
    """JSON of plain values, with null for the numbers that it has none for; see `finite`.

    Args:
        value: Plain values.

    Returns:
        One line.
    """
    return json.dumps(finite(value), allow_nan=False)


def counted(number: int, what: str, verb: str = "") -> str:
    """A number of things, in words.

    Args:
        number: How many.
        what: What one of them is called, such as `text`.
        verb: What several of them do, such as `are` or `stand`.

    Returns:
        Such as `1 text is` or `2,000 texts are`.
    """
    if number == 1:
        does = _IRREGULAR.get(verb, f"{verb}s") if verb else ""
        return f"1 {what} {does}".rstrip()
    return f"{number:,} {what}{'es' if what.endswith('s') else 's'} {verb}".rstrip()
