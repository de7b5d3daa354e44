"""How long spans of a text are, in tokens: words, lines and paragraphs."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from transformers import PreTrainedTokenizerBase

from dlm.model.text import encode

MOST_UNITS, MOST_CHARACTERS = 20_000, 1_000_000
"""The units of each kind that are counted, and the characters of the texts that they are taken from."""


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
        rests = [" ".join(each[i:]) for each in words for i in range(1, len(each))][:MOST_UNITS]
        paragraphs = [part.strip("\n") for text in taken for part in text.split("\n\n") if part.strip()][:MOST_UNITS]
        return cls(
            _counted(tokenizer, [*chain.from_iterable(words)][:MOST_UNITS], rests),
            _counted(tokenizer, lines, paragraphs),
        )

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


def _counted(tokenizer: PreTrainedTokenizerBase, *kinds: Sequence[str]) -> Mapping[int, int]:
    """How many of some texts have each length."""
    counts = Counter(len(ids) for texts in kinds for ids in encode(tokenizer, texts, continues=True))
    return dict(sorted(counts.items()))
