"""How long spans of a text are, in tokens: words, lines and paragraphs."""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice

from transformers import PreTrainedTokenizerBase

from dlm.model.text import encode, token_ends

MOST_UNITS, MOST_CHARACTERS = 20_000, 1_000_000
"""The units of each kind that are counted, and the characters of the texts that they are taken from."""

MOST_WORDS = 500
"""The last words of a line that are looked at for what follows a word: no hole is as long as a book in one line."""


@dataclass(frozen=True)
class LengthPrior:
    """How often spans of each length occur; all lengths alike where nothing was counted.

    Attributes:
        inside: Counts by length of what stands within a line: words, and what follows a word up to the line's end.
        lines: The same of whole lines, and of paragraphs.
    """

    inside: Mapping[int, int] = field(default_factory=dict)
    lines: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of_texts(cls, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> "LengthPrior":
        """Counts the spans of some texts.

        Args:
            texts: Such as those that a model learns.
            tokenizer: The model's.

        Returns:
            The prior.
        """
        taken, characters = list[str](), 0
        for text in texts:
            taken.append(text[:MOST_CHARACTERS])
            characters += len(taken[-1])
            if characters >= MOST_CHARACTERS:
                break
        lines = [line for text in taken for line in text.splitlines() if line.strip()][:MOST_UNITS]
        words = [line.split() for line in lines]
        rests = islice((length for each in words for length in _rests(tokenizer, each)), MOST_UNITS)
        paragraphs = [part.strip("\n") for text in taken for part in text.split("\n\n") if part.strip()][:MOST_UNITS]
        inside = islice((length for each in words for length in _words(tokenizer, each[:MOST_UNITS])), MOST_UNITS)
        return cls(_counted(inside, rests), _counted(_lines(tokenizer, [*lines, *paragraphs])))

    def log_p(self, lengths: Sequence[int], *, whole_lines: bool) -> list[float]:
        """The logarithm of the prior of each length, normalised over these.

        Args:
            lengths: Tokens.
            whole_lines: Whether the hole stands on lines of its own.

        Returns:
            Nats. Every length has been seen once more than it was, so that none is impossible.
        """
        counts = self.lines if whole_lines else self.inside
        weights = [counts.get(length, 0) + 1 for length in lengths]
        return [math.log(weight / sum(weights)) for weight in weights]


def _counted(*kinds: Iterable[int]) -> Mapping[int, int]:
    """How often each length occurs."""
    return dict(sorted(Counter(chain(*kinds)).items()))


def _words(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> Iterator[int]:
    """How long the words of a line are, each with the blank before it where a token joins the two."""
    ends = token_ends(tokenizer, " ".join(words))
    for start, word in zip(accumulate((len(word) + 1 for word in words), initial=0), words, strict=False):
        yield bisect_right(ends, start + len(word)) - bisect_right(ends, start)


def _lines(tokenizer: PreTrainedTokenizerBase, lines: Sequence[str]) -> Iterator[int]:
    """How long lines are, without the token of the line break before them, which may hold their indentation."""
    (before,) = encode(tokenizer, ["\n"], continues=True)
    return (len(ids) - len(before) for ids in encode(tokenizer, ["\n" + line for line in lines], continues=True))


def _rests(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> Iterator[int]:
    """How long what follows a word up to the line's end is, the longest first.

    The line is encoded once: each rest for itself would take a time quadratic in the length of the line.
    """
    last = words[-MOST_WORDS - 1 :]
    if len(last) > 1:
        ends = token_ends(tokenizer, " ".join(last))
        for start in accumulate(len(word) + 1 for word in last[:-1]):
            yield len(ends) - bisect_right(ends, start)
