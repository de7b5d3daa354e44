"""How much of a text stands in another one, word for word."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlm.errors import ConfigError

LEAST = 32
"""Characters from which on a run that stands in the other text counts as memorised; about six words of English."""

BORDER = b"\xff"
"""What stands between two documents: no byte of UTF-8."""

Places = NDArray[np.int64]


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
    """A text in which others are looked for, by a suffix array of all of them.

    It sorts the suffixes of the known text and of the others side by side. The longest match of a place of a text is
    then with the nearest known suffix before or behind it. It is as long as the least of the common prefixes of
    neighbours on the way there.
    """

    def __init__(self, documents: Iterable[str]) -> None:
        """Keeps the text.

        Args:
            documents: What is known; no match goes over the border of two of them.

        Raises:
            ConfigError: The package that sorts is not installed.
        """
        try:
            import pydivsufsort  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "--memorised needs the package pydivsufsort: pip install pydivsufsort, or dlm[quality]"
            ) from error
        self._known = BORDER.join(_bytes(text) for text in documents)

    def find(self, texts: Sequence[str], least: int = LEAST) -> list[Memorised]:
        """Compares texts with what is known.

        Args:
            texts: The texts; all at once take little longer than one.
            least: The fewest characters of a match that counts as covered; at least 1.

        Returns:
            What was found of each, in characters.
        """
        encoded = [_bytes(text) for text in texts]
        longest_P = self._longest(BORDER.join(encoded))
        found, start = list[Memorised](), 0
        for text, each in zip(texts, encoded, strict=True):
            code_L = np.frombuffer(each.decode().encode("utf-32-le"), np.uint32)
            sizes = 1 + np.sum([code_L >= first for first in (0x80, 0x800, 0x10000)], axis=0, dtype=np.int64)
            ends = np.cumsum(sizes)
            begins = ends - sizes
            # In UTF-8 a match may end within a character, which is not part of it.
            last = begins + longest_P[start + begins]
            matches = np.searchsorted(ends, last, side="right") - np.arange(len(text))  # none goes on behind the text
            covered = np.zeros(len(text) + 1, np.int64)  # how many matches begin or end at each character
            places = np.flatnonzero(matches >= least)
            np.add.at(covered, places, 1)
            np.add.at(covered, places + matches[places], -1)
            found.append(Memorised(len(text), int(matches.max(initial=0)), int((covered.cumsum() > 0).sum())))
            start += len(each) + len(BORDER)
        return found

    def _longest(self, wanted: bytes) -> Places:
        """For each byte of some texts how many from there on are known; what goes over a border is not meant."""
        from pydivsufsort import divsufsort, kasai

        first = len(self._known) + len(BORDER)  # the byte where the texts begin
        # A copy, because the package sorts no array that it may not write.
        both = np.frombuffer(self._known + BORDER + wanted, np.uint8).copy()
        place_R = divsufsort(both)
        common_R = np.minimum(kasai(both, place_R), len(both)).astype(np.int64)  # with the suffix of the next rank
        ranks = np.flatnonzero(place_R >= first)
        places, after = place_R[ranks] - first, common_R[ranks]
        before = np.where(ranks > 0, common_R[ranks - 1], 0)
        follows = np.append(False, np.diff(ranks) == 1)  # on a text's suffix, and not on a known one
        longest_P = np.zeros(len(wanted), np.int64)
        for steps, joined, order in (
            (before, follows, range(len(ranks))),
            (after, np.append(follows[1:], False), range(len(ranks) - 1, -1, -1)),
        ):
            np.maximum.at(longest_P, places, _least_on_the_way(steps.tolist(), joined.tolist(), order))
        return longest_P


def _least_on_the_way(steps: list[int], joined: list[bool], order: Iterable[int]) -> Places:
    """The least of the steps from each rank to the nearest known one, which each rank that is not joined is beside."""
    found, least = [0] * len(steps), 0
    for rank in order:
        least = min(least, steps[rank]) if joined[rank] else steps[rank]
        found[rank] = least
    return np.array(found, np.int64)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
