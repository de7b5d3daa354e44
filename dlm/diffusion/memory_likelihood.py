"""Likelihoods of networks with a clean memory: exact from left to right, and bounds block by block."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dlm.diffusion.bound import count_weights_of, prior_and_reconstruction_nats
from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.likelihood import check_draws, predicted_nats, replicate_shifts
from dlm.diffusion.memory import causal_input, two_stream_input
from dlm.diffusion.process import Process
from dlm.diffusion.streams import TwoStreams, block_lengths, block_numbers, random_block_subset, spread_over_blocks


@dataclass(frozen=True)
class CausalEstimator:
    """The exact -log p of a text, read from left to right in one forward.

    Attributes:
        before_id: The id that stands before every text.
    """

    before_id: int
    steps: ClassVar[int | None] = None

    def method(self, process: Process) -> Literal["exact"]:
        """It has no error; see `Likelihood`."""
        return "exact"

    def __call__(
        self,
        denoiser: Denoiser,
        process: Process,
        x0_BL: Tensor,
        generators: Sequence[torch.Generator],
        scored_BL: Tensor | None = None,
    ) -> Tensor:
        """One estimate, which has no error; see `Likelihood`."""
        scored_BL = torch.ones_like(x0_BL, dtype=torch.bool) if scored_BL is None else scored_BL
        return predicted_nats(denoiser, causal_input(x0_BL, scored_BL, self.before_id), x0_BL, scored_BL)[None]


@dataclass(frozen=True)
class BlocksEstimator:
    """The bound of diffusion in blocks, each given the clean text before it (BD3-LM, 2503.09573, eq. 8).

    A sum over blocks of what `exact_count_nelbo` estimates for one: all masks exactly, and pairs of a subset and its
    complement. Each draw masks all blocks of a row at once, each at a level of its own. Blocks of one token make it
    the exact -log p of that reading.

    Attributes:
        size: Tokens a block; None for the whole text.
        before_id: The id that stands before every text; None for nothing.
        draws: Masked copies of each sequence besides the one of masks alone, an even number.
        causal: Whether a clean token sees those before it alone, or all of its block too.
    """

    size: int | None
    before_id: int | None
    draws: int = 16
    causal: bool = True
    steps: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_draws(self.draws)

    def method(self, process: Process) -> Literal["exact", "counts"]:
        """Exact for blocks of one token; see `Likelihood`."""
        return "exact" if self.size == 1 else "counts"

    def __call__(
        self,
        denoiser: Denoiser,
        process: Process,
        x0_BL: Tensor,
        generators: Sequence[torch.Generator],
        scored_BL: Tensor | None = None,
    ) -> Tensor:
        """Upper bounds of -log p; see `Likelihood`."""
        scored_BL = torch.ones_like(x0_BL, dtype=torch.bool) if scored_BL is None else scored_BL
        length = x0_BL.shape[1]
        size = min(self.size or length, length)
        block_1L = block_numbers(length, size).to(x0_BL.device)
        block_BL = block_1L.expand_as(x0_BL)
        pattern = TwoStreams(block_1L, self.causal, whole=size == length, led=self.before_id is not None)
        length_BK = block_lengths(block_BL, scored_BL)

        def weights(count_BK: Tensor) -> Tensor:
            return count_weights_of(process.schedule, length_BK, count_BK)

        def nats(masked_BL: Tensor, scale_BK: Tensor) -> Tensor:
            xt_BL = x0_BL.masked_fill(masked_BL, process.mask_id)
            nothing_BL = torch.zeros_like(masked_BL)
            inputs = two_stream_input(x0_BL, xt_BL, nothing_BL, masked_BL, self.before_id, pattern)
            return scale_BK.gather(1, block_BL) * predicted_nats(denoiser, inputs, x0_BL, masked_BL)

        shift_RB = replicate_shifts(self.draws, generators).to(x0_BL.device)
        replicates, pairs = len(shift_RB), self.draws // 2
        every_BK = length_BK.clamp(min=1.0)
        total_RBL = nats(scored_BL, weights(length_BK) / every_BK).repeat(replicates, 1, 1)
        share_BK = (length_BK - 1.0).clamp(min=0.0) / every_BK
        sizes = [len(range(r, pairs, replicates)) for r in range(replicates)]
        for r, number in enumerate(sizes) if size > 1 else ():
            for j in range(number):
                u_BK = spread_over_blocks((j + shift_RB[r]) / number, length_BK)
                count_BK = ((u_BK * (length_BK - 1.0)).floor().clamp(min=0.0) + 1.0).minimum(length_BK)
                subset_BL = random_block_subset(generators, block_BL, scored_BL, count_BK)
                for half_BL, size_BK in ((subset_BL, count_BK), (scored_BL & ~subset_BL, length_BK - count_BK)):
                    scale_BK = 0.5 * share_BK / number * weights(size_BK) * length_BK / size_BK.clamp(min=1.0)
                    total_RBL[r] += nats(half_BL, scale_BK)
        return total_RBL + prior_and_reconstruction_nats(process, x0_BL) * scored_BL
