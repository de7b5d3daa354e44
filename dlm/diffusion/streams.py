"""What tokens see where some of them are memory: a causal text, or a clean text with a noisy copy of it behind."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

from dlm.diffusion.devices import copied
from dlm.diffusion.draws import random_scores


class Pattern(Protocol):
    """What each token of a row sees, in fewer numbers than a mask has; see `NetworkInput.attention`."""

    def dense(self, length: int) -> Tensor:
        """The same as a mask.

        Args:
            length: Tokens a row, N.

        Returns:
            Boolean, shape (1 or B, N, N): what each query (the second dimension) sees.
        """
        ...

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        ...


@dataclass(frozen=True)
class Open:
    """Each token sees every other, and all of a cache."""

    def dense(self, length: int) -> Tensor:
        """All true; see `Pattern`."""
        return torch.ones(1, length, length, dtype=torch.bool)

    def to(self, device: torch.device) -> Self:
        """Itself: it holds no tensor."""
        return self


@dataclass(frozen=True)
class Causal:
    """Each token sees itself and those before it."""

    def dense(self, length: int) -> Tensor:
        """A lower triangle; see `Pattern`."""
        return torch.ones(1, length, length, dtype=torch.bool).tril()

    def to(self, device: torch.device) -> Self:
        """Itself: it holds no tensor."""
        return self


@dataclass(frozen=True)
class TwoStreams:
    """A row of 2L tokens: a clean text, which is memory, and a noisy copy of it, which is predicted block by block.

    The clean half holds what stands before the text and then its first L - 1 tokens, so that both halves have a place
    for each prediction: clean token j is the one before token j of the text, and predicts it. A noisy token sees its
    own block, and the clean tokens of the text before it; what stands before the text is seen with the first of them.
    A block that begins the text sees no memory, and so is plain masked diffusion if it is the whole text. No clean
    token sees a noisy one. (BD3-LM, 2503.09573, section 3.3, whose memory is causal block by block.)

    Attributes:
        block_BL: The number of each token's block, shape (1 or B, L); it never falls along a row.
        causal: Whether a clean token sees those before it alone, or all of its block too.
        whole: Whether every row is one block, so that no noisy token sees memory.
        led: Whether the clean half holds what stands before the text; else both halves are the text alone.
    """

    block_BL: Tensor
    causal: bool = True
    whole: bool = False
    led: bool = True

    @property
    def length(self) -> int:
        """L, half of a row's tokens."""
        return self.block_BL.shape[1]

    @cached_property
    def clean_block_BL(self) -> Tensor:
        """The block of each clean token's text; what stands before the text is in that of its first token."""
        if not self.led:
            return self.block_BL
        return torch.cat([self.block_BL[:, :1], self.block_BL[:, :-1]], 1)

    @cached_property
    def clean_BLL(self) -> Tensor:
        """Boolean, what each clean token sees of the clean ones."""
        past_BLL = Causal().dense(self.length).to(self.block_BL.device)
        if self.causal:
            return past_BLL
        return past_BLL | (self.clean_block_BL[:, :, None] >= self.clean_block_BL[:, None])

    @cached_property
    def memory_BLL(self) -> Tensor:
        """Boolean, what each noisy token sees of the clean ones."""
        return self.block_BL[:, :, None] > self.clean_block_BL[:, None]

    @cached_property
    def own_BLL(self) -> Tensor:
        """Boolean, what each noisy token sees of the noisy ones."""
        return self.block_BL[:, :, None] == self.block_BL[:, None]

    @cached_property
    def noisy_BLN(self) -> Tensor:
        """Boolean, what each noisy token sees of all; made once a call and not once a layer."""
        return torch.cat([self.memory_BLL, self.own_BLL], 2)

    def dense(self, length: int) -> Tensor:
        """The four quarters in one; see `Pattern`."""
        if length != 2 * self.length:
            raise ValueError(f"two streams of {self.length} tokens are no row of {length}")
        rows = len(self.block_BL)
        clean_BLL = self.clean_BLL.expand(rows, -1, -1)
        above_BLN = torch.cat([clean_BLL, torch.zeros_like(clean_BLL)], 2)
        return torch.cat([above_BLN, self.noisy_BLN], 1)

    def without(self, padding_BL: Tensor) -> Self:
        """The same where padding, at the end of rows, is a block of its own, which no text sees."""
        block_BL = torch.where(padding_BL, self.length, self.block_BL)
        return replace(self, block_BL=block_BL, whole=False)

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return replace(self, block_BL=copied(self.block_BL, device))


def block_numbers(length: int, size: int, offset: int = 0) -> Tensor:
    """The blocks of a text.

    Args:
        length: L.
        size: Tokens a block.
        offset: Tokens of the first block that lie before the text, so that it is shorter by them.

    Returns:
        The number of each token's block, shape (1, L).
    """
    return (torch.arange(length) + offset)[None] // size


def block_lengths(block_BL: Tensor, candidates_BL: Tensor) -> Tensor:
    """How many candidates each of the K blocks of each row has, float64, shape (B, K)."""
    zeros_BK = torch.zeros(len(block_BL), int(block_BL.max()) + 1, dtype=torch.double, device=block_BL.device)
    return zeros_BK.scatter_add(1, block_BL, candidates_BL.double())


def spread_over_blocks(u_B: Tensor, length_BK: Tensor) -> Tensor:
    """A quantile for each block, shape (B, K): the row's own, and the others evenly spaced from it.

    Args:
        u_B: The row's own.
        length_BK: How many candidates each block has; those with none, such as padding, change nothing.

    Returns:
        Quantiles in [0, 1).
    """
    some_BK = length_BK > 0
    number_BK = some_BK.cumsum(1) - some_BK.long()
    return (u_B[:, None] + number_BK / some_BK.sum(1, keepdim=True).clamp(min=1)) % 1.0


def random_block_subset(
    generators: Sequence[torch.Generator], block_BL: Tensor, candidates_BL: Tensor, count_BK: Tensor
) -> Tensor:
    """Uniformly random subsets of each block's candidates.

    Args:
        generators: One stream a row.
        block_BL: The number of each token's block.
        candidates_BL: Boolean, the tokens to choose from.
        count_BK: How many of each block.

    Returns:
        A boolean selection, shape (B, L); of one block that of `random_subset`.
    """
    # Each block's scores lie in an interval of their own, and those of no candidates behind all of them.
    scores_BL = torch.where(candidates_BL, block_BL - random_scores(generators, candidates_BL), torch.inf)
    order_BL = scores_BL.argsort(dim=1, stable=True)
    place_BL = torch.arange(block_BL.shape[1], device=block_BL.device).expand_as(block_BL)
    rank_BL = torch.zeros_like(place_BL).scatter(1, order_BL, place_BL)
    length_BK = block_lengths(block_BL, candidates_BL)
    last_BK = length_BK.cumsum(1) - length_BK + count_BK.to(length_BK)
    return candidates_BL & (rank_BL < last_BK.gather(1, block_BL))
