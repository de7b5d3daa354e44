"""The sentinel tokens of fill-in-the-middle, which mark a prefix, a suffix and the middle between them."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dlm.config import FimOrder
from dlm.model.tokenizer import special_token

PREFIX, SUFFIX, MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"

BESIDE = 4
"""The tokens of a rearranged text that are none of its own: three sentinels, and the end of text behind the middle."""


@dataclass(frozen=True)
class Sentinels:
    """The ids of the sentinels (2207.14255, section 3), and the order of what they mark.

    With PRE, SUF and MID for the three, a text is rearranged to `PRE prefix SUF suffix MID middle end`, or in the order
    `spm` to `PRE SUF suffix MID prefix middle end`, in which a middle goes on where its prefix ends. The end is the
    end of text.

    Attributes:
        prefix: The first.
        suffix: The second, before the suffix.
        middle: The third.
        order: Whether the prefix comes first, or the suffix.
    """

    prefix: int
    suffix: int
    middle: int
    order: FimOrder = "psm"

    @property
    def all(self) -> tuple[int, int, int]:
        """All three."""
        return self.prefix, self.suffix, self.middle

    def before_middle(self, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """The ids that a middle is written behind.

        Args:
            prefix: The ids before the middle.
            suffix: The ids behind it.

        Returns:
            Three ids more than both have.
        """
        if self.order == "psm":
            return [self.prefix, *prefix, self.suffix, *suffix, self.middle]
        return [self.prefix, self.suffix, *suffix, self.middle, *prefix]


def add_sentinels(tokenizer: PreTrainedTokenizerBase, order: FimOrder) -> Sentinels:
    """Gives a tokenizer the sentinels that it does not have; one that has them, as Qwen2.5 does, keeps its own.

    Args:
        tokenizer: Changed in place.
        order: The order of what they mark.

    Returns:
        Their ids, and the order.
    """
    prefix, suffix, middle = (special_token(tokenizer, name) for name in (PREFIX, SUFFIX, MIDDLE))
    return Sentinels(prefix, suffix, middle, order)
