"""Likelihoods of networks with a clean memory: exact from left to right, and bounds block by block."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dlm.diffusion.bound import prior_and_reconstruction_nats
from dlm.diffusion.counts import Blocked, Copies, count_nelbo
from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.likelihood import predicted_nats
from dlm.diffusion.memory import causal_input, two_stream_input
from dlm.diffusion.process import Process
from dlm.diffusion.streams import TwoStreams, block_numbers


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

    A sum over blocks of the bound of each; see `count_nelbo`. Blocks of one token make it the exact -log p of that
    reading.

    Attributes:
        size: Tokens a block; None for the whole text.
        before_id: The id that stands before every text; None for nothing.
        draws: Masked copies of each sequence besides the one of masks alone, an even number.
        causal: Whether a clean token sees those before it alone, or all of its block too.
        replicates: The most independent estimates; each has at least two of the copies.
    """

    size: int | None
    before_id: int | None
    draws: int = 16
    causal: bool = True
    replicates: int = 2
    steps: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        Copies(self.draws, self.replicates)

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
        pattern = TwoStreams(block_1L, self.causal, whole=size == length, led=self.before_id is not None)

        def nats(masked_BL: Tensor) -> Tensor:
            xt_BL, nothing_BL = x0_BL.masked_fill(masked_BL, process.mask_id), torch.zeros_like(masked_BL)
            inputs = two_stream_input(x0_BL, xt_BL, nothing_BL, masked_BL, self.before_id, pattern)
            return predicted_nats(denoiser, inputs, x0_BL, masked_BL)

        blocks, copies = Blocked(block_1L.expand_as(x0_BL), scored_BL), Copies(self.draws, self.replicates)
        inner_RBL = count_nelbo(nats, blocks, process.schedule, copies, generators)
        return inner_RBL + prior_and_reconstruction_nats(process, x0_BL) * scored_BL
