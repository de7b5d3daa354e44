"""Text with holes: `[MASK:12]` is a span of twelve tokens, `[MASK:3-12]` of three to twelve, `[MASK]` of any length."""

import re
from dataclasses import dataclass

from dlm.errors import DataError

LONGEST = 32
"""The most tokens of a hole of any length, where nothing else is asked for."""


@dataclass(frozen=True)
class Hole:
    """A span to be written.

    Attributes:
        tokens: How many tokens it has, or how many at least.
        most: How many at most; None for exactly `tokens`.
    """

    tokens: int
    most: int | None = None

    @property
    def lengths(self) -> range:
        """How many tokens it may have."""
        return range(self.tokens, (self.tokens if self.most is None else self.most) + 1)


Template = tuple[str | Hole, ...]
"""Texts and holes in reading order; the texts are never changed."""


def parse_template(text: str, marker: str = "MASK", longest: int = LONGEST) -> Template:
    r"""Splits a text at its holes.

    A backslash before a hole makes it literal: `\[MASK:3]` stands for the text `[MASK:3]`, and `\\[MASK:3]`
    for one backslash and a hole.

    Args:
        text: Text with at least one hole.
        marker: The word before the colon.
        longest: The most tokens of a hole that says no length.

    Returns:
        The parts; putting them together again gives `text` with its escapes resolved.

    Raises:
        DataError: There is no hole, or the length of one is no number of tokens and no range.
    """
    parts: list[str | Hole] = []
    literal, end = "", 0
    for found in re.finditer(rf"(\\*)\[{re.escape(marker)}(?::([^\]\n]*))?\]", text):
        slashes, size = found.groups()
        literal += text[end : found.start()] + "\\" * (len(slashes) // 2)
        end = found.end()
        if len(slashes) % 2:
            literal += found.group(0).lstrip("\\")
            continue
        parts += [literal, _hole(size, marker, longest)]
        literal = ""
    parts.append(literal + text[end:])
    if len(parts) == 1:
        raise DataError(f"nothing to fill: the text has no span such as [{marker}:12] or [{marker}]")
    return tuple(part for part in parts if part != "")


def _hole(size: str | None, marker: str, longest: int) -> Hole:
    """The hole of a marker that says so many tokens, a range of them, or nothing."""
    if size is None:
        return Hole(1, longest)
    found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", size)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if most < max(least, 1):
        raise DataError(
            f"[{marker}:{size}] is no span: write a number of tokens of at least 1, as in [{marker}:12], a range, as "
            f"in [{marker}:3-12], or [{marker}] for any length"
        )
    return Hole(least) if least == most else Hole(least, most)
