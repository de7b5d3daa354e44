"""Text with holes: `[MASK:12]` stands for a span of twelve tokens."""

import re
from dataclasses import dataclass

from dlm.errors import DataError


@dataclass(frozen=True)
class Hole:
    """A span to be written.

    Attributes:
        tokens: How many tokens it has.
    """

    tokens: int


Template = tuple[str | Hole, ...]
"""Texts and holes in reading order; the texts are never changed."""


def parse_template(text: str, marker: str = "MASK") -> Template:
    r"""Splits a text at its holes.

    A backslash before a hole makes it literal: `\[MASK:3]` stands for the text `[MASK:3]`, and `\\[MASK:3]`
    for one backslash and a hole.

    Args:
        text: Text with at least one hole.
        marker: The word before the colon.

    Returns:
        The parts; putting them together again gives `text` with its escapes resolved.

    Raises:
        DataError: There is no hole, or a hole has no tokens or no number.
    """
    parts: list[str | Hole] = []
    literal, end = "", 0
    for found in re.finditer(rf"(\\*)\[{re.escape(marker)}:([^\]\n]*)\]", text):
        slashes, size = found.groups()
        literal += text[end : found.start()] + "\\" * (len(slashes) // 2)
        end = found.end()
        if len(slashes) % 2:
            literal += found.group(0).lstrip("\\")
            continue
        if not re.fullmatch(r"[0-9]{1,9}", size) or int(size) == 0:
            raise DataError(
                f"[{marker}:{size}] is no span: write a number of tokens of at least 1, as in [{marker}:12]"
            )
        parts += [literal, Hole(int(size))]
        literal = ""
    parts.append(literal + text[end:])
    if len(parts) == 1:
        raise DataError(f"nothing to fill: the text has no span such as [{marker}:12]")
    return tuple(part for part in parts if part != "")
