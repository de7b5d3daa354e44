"""The bound of absorbing noise by the number of masks, of a text or of each of its blocks.

NELBO = E_{l~U{1..L}} (w_l L/l) E[sum of the cross-entropy over a uniform subset of l tokens], with w_l = 1 in
continuous time, else as in `count_weights`. Time is integrated out, so it needs a denoiser that takes none.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dlm.diffusion.bound import count_weights_of
from dlm.diffusion.draws import uniforms
from dlm.diffusion.schedule import NoiseSchedule
from dlm.diffusion.streams import block_lengths, random_block_subset, spread_over_blocks


@dataclass(frozen=True)
class Copies:
    """The noisy copies that a bound is estimated from.

    Attributes:
        draws: How many of each sequence; even.
        replicates: The most independent estimates that are made of them; each has at least two of the copies.
    """

    draws: int
    replicates: int = 2

    def __post_init__(self) -> None:
        if self.draws < 2 or self.draws % 2:
            raise ValueError(f"draws must be even and at least 2, got {self.draws}")
        if self.replicates < 1:
            raise ValueError(f"replicates must be at least 1, got {self.replicates}")

    def shifts(self, generators: Sequence[torch.Generator]) -> Tensor:
        """A shift in [0, 1) for each of the R replicates and each sequence, shape (R, B)."""
        count = min(self.replicates, self.draws // 2)
        return torch.stack(uniforms(generators, [count] * len(generators)), dim=1)


@dataclass(frozen=True)
class Blocked:
    """The scored tokens of a batch, by blocks.

    Attributes:
        block_BL: The number of each token's block.
        scored_BL: The tokens that are scored.
    """

    block_BL: Tensor
    scored_BL: Tensor

    @cached_property
    def length_BK(self) -> Tensor:
        """How many scored tokens each block has, float64."""
        return block_lengths(self.block_BL, self.scored_BL)

    @property
    def wide(self) -> bool:
        """Whether a block has room for more than one token; the same on all processes, as sharded weights need it."""
        return len(self.block_BL[0].unique()) < self.block_BL.shape[1]

    @cached_property
    def place_BL(self) -> Tensor:
        """How many scored tokens of its block stand before each token."""
        before_BL = self.scored_BL.cumsum(1) - self.scored_BL.long()
        first_BK = (self.length_BK.cumsum(1) - self.length_BK).long()
        return before_BL - first_BK.gather(1, self.block_BL)

    def counted(self, masked_BL: Tensor) -> Tensor:
        """How many of each block are chosen, float64, shape (B, K)."""
        return block_lengths(self.block_BL, masked_BL)

    def subset(self, number: int) -> Tensor:
        """A proper subset of each block's scored tokens; those from 1 on are all of them, each once.

        Args:
            number: Which: token i is in it if bit i is set.

        Returns:
            A boolean selection, shape (B, L); empty in a block that has fewer proper subsets.
        """
        most_BK = 2.0**self.length_BK - 2.0
        bit_BL = (number >> self.place_BL.clamp(0, 62)) & 1
        return self.scored_BL & (bit_BL == 1) & (number <= most_BK.gather(1, self.block_BL))


def count_nelbo(
    nats: Callable[[Tensor], Tensor],
    blocks: Blocked,
    schedule: NoiseSchedule,
    copies: Copies,
    generators: Sequence[torch.Generator],
    steps: int | None = None,
) -> Tensor:
    """The sum over blocks of the bound of each; the prior and reconstruction terms are not in it.

    The l = L term, all masks, is taken exactly. So are the others in a row whose blocks have no more proper subsets
    than there are draws: each is taken once. Elsewhere they come in pairs: l on an even grid of {1..L-1} with one
    random shift, and for each l a subset together with its complement of size L - l. Each copy masks all blocks of a
    row at once, each at a level of its own.

    Args:
        nats: Gives -log p of the masked tokens given the rest, (B, L) -> (B, L).
        blocks: The scored tokens.
        schedule: alpha(t).
        copies: How many noisy copies.
        generators: One stream a sequence.
        steps: T; None for continuous time.

    Returns:
        As `Likelihood`.
    """
    length_BK, block_BL = blocks.length_BK, blocks.block_BL
    every_BK = length_BK.clamp(min=1.0)
    most_B1 = (2.0**length_BK - 2.0).amax(1, keepdim=True)
    few_B1 = most_B1 <= copies.draws

    def weights(count_BK: Tensor) -> Tensor:
        return count_weights_of(schedule, length_BK, count_BK, steps)

    shift_RB = copies.shifts(generators).to(block_BL.device)
    total_RBL = (nats(blocks.scored_BL) * (weights(length_BK) / every_BK).gather(1, block_BL)).repeat(
        len(shift_RB), 1, 1
    )
    share_BK = (length_BK - 1.0).clamp(min=0.0) / every_BK
    for number, (r, part, drawn_BL) in enumerate(_drawn(blocks, copies, shift_RB, generators), start=1):
        # A row that has had all of its subsets is masked as drawn and not counted: a call always predicts something.
        left_B1 = few_B1 & (number <= most_B1)
        masked_BL = torch.where(left_B1, blocks.subset(number), drawn_BL)
        count_BK = blocks.counted(masked_BL)
        drawn_BK = 0.5 * share_BK / part * weights(count_BK) * length_BK / count_BK.clamp(min=1.0)
        subsets_BK = torch.exp(_log_choose(length_BK, count_BK))
        enumerated_BK = weights(count_BK) / count_BK.clamp(min=1.0) / subsets_BK
        nats_BL = nats(masked_BL) * torch.where(left_B1, enumerated_BK, drawn_BK).gather(1, block_BL)
        total_RBL[r] += nats_BL.masked_fill(few_B1, 0.0)
        total_RBL += nats_BL.masked_fill(~left_B1, 0.0)
    return total_RBL


def _drawn(
    blocks: Blocked, copies: Copies, shift_RB: Tensor, generators: Sequence[torch.Generator]
) -> Iterator[tuple[int, int, Tensor]]:
    """Subsets and their complements: of which replicate, how many pairs that has, and which tokens, shape (B, L)."""
    length_BK, scored_BL = blocks.length_BK, blocks.scored_BL
    pairs, replicates = copies.draws // 2, len(shift_RB)
    for r, shift_B in enumerate(shift_RB):
        # Replicate r has every R-th pair of the grid, and a shift of its own.
        part = len(range(r, pairs, replicates))
        for j in range(part) if blocks.wide else ():
            u_BK = spread_over_blocks((j + shift_B) / part, length_BK)
            count_BK = ((u_BK * (length_BK - 1.0)).floor().clamp(min=0.0) + 1.0).minimum(length_BK)  # 1 .. L-1
            subset_BL = random_block_subset(generators, blocks.block_BL, scored_BL, count_BK)
            yield r, part, subset_BL
            yield r, part, scored_BL & ~subset_BL


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1.0) - torch.lgamma(k + 1.0) - torch.lgamma(n - k + 1.0)
