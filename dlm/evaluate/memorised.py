"""How much of a text stands in another one, word for word."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dlm.errors import ConfigError

LEAST = 32
"""Characters from which on a run that stands in the other text counts as memorised; about six words of English."""


@dataclass(frozen=True)
class Memorised:
    """What of a text stands in another one.

    Attributes:
        characters: The length of the text.
        longest: The length of the longest common substring of the two.
        covered: Characters that are part of a common substring of at least so many characters as were asked for.
    """

    characters: int
    longest: int
    covered: int


class KnownText:
    """A text in which others are looked for, by its suffix array.

    The suffix array sorts all suffixes, so that the longest match of a string with any place of the text is found
    beside where the string would be sorted in: a binary search for each place of the string.
    """

    def __init__(self, documents: Iterable[str]) -> None:
        """Sorts the suffixes.

        Args:
            documents: What is known; no match goes over the border of two of them.

        Raises:
            ConfigError: The package that sorts is not installed.
        """
        try:
            from pydivsufsort import divsufsort
        except ImportError as error:
            raise ConfigError(
                "--memorised needs the package pydivsufsort: pip install pydivsufsort, or dlm[quality]"
            ) from error
        # 0xFF is no byte of UTF-8, so that a match ends where a document does.
        self._known = b"\xff".join(text.encode("utf-8", "replace") for text in documents)
        # A copy, because the package sorts no array that it may not write.
        self._suffixes = divsufsort(np.frombuffer(self._known, np.uint8).copy()) if self._known else np.zeros(0, int)

    def find(self, text: str, least: int = LEAST) -> Memorised:
        """Compares a text with what is known.

        Args:
            text: The text.
            least: The fewest characters of a match that counts as covered; at least 1.

        Returns:
            What was found, in characters.
        """
        matches = self._matches(text)
        covered = np.zeros(len(text), bool)
        for start, length in enumerate(matches):
            if length >= least:
                covered[start : start + length] = True
        return Memorised(len(text), max(matches, default=0), int(covered.sum()))

    def _matches(self, text: str) -> list[int]:
        """For each character the longest match that begins with it, in characters."""
        encoded = [char.encode("utf-8", "replace") for char in text]
        ends = np.cumsum([0, *map(len, encoded)])
        wanted = b"".join(encoded)
        found: list[int] = []
        for at, start in enumerate(ends[:-1].tolist()):
            # In UTF-8 a match may end within a character, which is not part of it.
            end = start + self._longest(wanted[start:])
            found.append(int(np.searchsorted(ends, end, side="right")) - 1 - at)
        return found

    def _longest(self, wanted: bytes) -> int:
        """Bytes of the longest beginning of a string that is known."""
        known, size = self._known, len(wanted)
        place = bisect_left(self._suffixes, wanted, key=lambda at: known[at : at + size])
        neighbours: Sequence[int] = self._suffixes[max(place - 1, 0) : place + 1].tolist()
        return max((_common(wanted, known[at : at + size]) for at in neighbours), default=0)


def _common(one: bytes, other: bytes) -> int:
    """Bytes that two strings have in common at their beginning."""
    size = min(len(one), len(other))
    differs = np.frombuffer(one, np.uint8, size) != np.frombuffer(other, np.uint8, size)
    return int(differs.argmax()) if differs.any() else size
