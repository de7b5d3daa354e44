"""The choices that a union holds, for tests that must hold for each of them."""

from typing import Any, get_args


def names(union: Any) -> list[str]:
    """The names of a union's choices, in its order."""
    return [choice.name for choice in get_args(union)]
