"""Training with a clean memory: next tokens, and masks block by block behind the text before them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlm.diffusion.bound import count_weights_of, cross_entropy, prior_and_reconstruction_nats
from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import Draws
from dlm.diffusion.levels import Levels
from dlm.diffusion.network import NetworkInput, Reduced
from dlm.diffusion.objective import Corrupted, LossTerms, Objective, corrupted, terms, to_minimise
from dlm.diffusion.process import Process
from dlm.diffusion.streams import (
    Causal,
    TwoStreams,
    block_lengths,
    block_numbers,
    random_block_subset,
    spread_over_blocks,
)
from dlm.diffusion.weighting import Weighting


@dataclass(frozen=True)
class CausalObjective(Objective):
    """The cross-entropy of every token given those before it: exactly -log p, and no noise.

    Attributes:
        first_id: The id that stands before every text.
    """

    first_id: int

    def corrupt(self, process: Process, x0_BL: Tensor, draws: Draws, loss_mask_BL: Tensor | None = None) -> Corrupted:
        """The text one position later, so that each row predicts the token in place. See `Objective`."""
        loss_mask_BL = torch.ones_like(x0_BL, dtype=torch.bool) if loss_mask_BL is None else loss_mask_BL
        return corrupted(process, causal_input(x0_BL, loss_mask_BL, self.first_id), x0_BL, loss_mask_BL)

    def loss(self, denoiser: Denoiser, process: Process, batch: Corrupted) -> LossTerms:
        """The cross-entropy, which is the likelihood itself; see `Objective`."""

        def reducer(log_p_CV: Tensor, rows: slice) -> Reduced:
            ce_C = cross_entropy(log_p_CV, batch.x0_N[rows])
            return Reduced(ce_C.sum(), ce_C.detach())

        loss, nats_N = denoiser.reduce(batch.inputs, reducer)
        predicted = torch.full_like(batch.tokens, len(nats_N))
        return LossTerms(loss, batch.tokens, nats_N.sum().to(batch.constant), batch.tokens, predicted)


@dataclass(frozen=True)
class BlocksObjective(Objective):
    """Absorbing noise block by block, each block given the clean text before it, and next tokens beside it.

    The bound is a sum over blocks (BD3-LM, 2503.09573, eq. 8), each term of which is that of `MaskedObjective` over the
    block's own tokens, with a level of its own. One size serves all of a step. The blocks of a row take levels from one
    even grid, so that each level is as likely as if it were drawn alone.

    Attributes:
        weighting: What is minimised of the masks.
        levels: Which shares of masks are trained on.
        first_id: The id that stands before every text; None for nothing, where no next token is predicted.
        sizes: The sizes of blocks, one of which is drawn for a step; None for the whole text.
        next_token: The weight of a next token's cross-entropy, that of a mask's being 1; 0 for none.
        causal: Whether a clean token sees those before it alone, or all of its block too.
        moves: Whether blocks begin at a random place, or with the text.
    """

    weighting: Weighting
    levels: Levels
    first_id: int | None
    sizes: tuple[int | None, ...]
    next_token: float = 0.0
    causal: bool = True
    moves: bool = True

    def corrupt(self, process: Process, x0_BL: Tensor, draws: Draws, loss_mask_BL: Tensor | None = None) -> Corrupted:
        """The text and a masked copy; the values are the weights of the bound, 0 at next tokens. See `Objective`."""
        loss_mask_BL = torch.ones_like(x0_BL, dtype=torch.bool) if loss_mask_BL is None else loss_mask_BL
        pattern = self._pattern(x0_BL.shape[1], draws.shared)
        masked_BL, weight_BL = self._masks(process, pattern.block_BL, loss_mask_BL, draws)
        xt_BL = x0_BL.masked_fill(masked_BL, process.mask_id)
        next_BL = loss_mask_BL if self.next_token else torch.zeros_like(loss_mask_BL)
        inputs = two_stream_input(x0_BL, xt_BL, next_BL, masked_BL, self.first_id, pattern)
        weight_BN = torch.cat([torch.zeros_like(weight_BL), weight_BL], 1)
        return Corrupted(
            inputs,
            x0_BL.repeat(1, 2).flatten()[inputs.index_N],
            (weight_BN.flatten()[inputs.index_N],),
            loss_mask_BL.sum().double(),
            (prior_and_reconstruction_nats(process, x0_BL) * loss_mask_BL).sum(),
        )

    def loss(self, denoiser: Denoiser, process: Process, batch: Corrupted) -> LossTerms:
        """The weighted cross-entropy of the masks, and that of next tokens; see `Objective`."""
        (weight_N,) = batch.values_N
        # A step divides by its masks, of which there is this share.
        share = self.next_token * (1.0 if self.weighting.weighted else _mean_level(self.levels))

        def reducer(log_p_CV: Tensor, rows: slice) -> Reduced:
            ce_C = cross_entropy(log_p_CV, batch.x0_N[rows])
            weight_C = weight_N[rows].to(ce_C)
            nats_C, masks_C = weight_C * ce_C, (weight_C > 0).to(ce_C)
            next_C = (1.0 - masks_C) * ce_C
            total = to_minimise(self.weighting, masks_C * ce_C, nats_C) + share * next_C.sum()
            return Reduced(total, (nats_C + next_C).detach())

        loss, nats_N = denoiser.reduce(batch.inputs, reducer)
        is_mask_N = (weight_N > 0).to(nats_N)
        found = terms(self.weighting, self.levels, batch, Reduced(loss, nats_N * is_mask_N))
        masks = is_mask_N.sum().to(found.predicted)
        return replace(
            found,
            count=batch.tokens if self.weighting.weighted else masks,
            predicted=masks,
            next_token=(nats_N * (1.0 - is_mask_N)).sum() if self.next_token else None,
        )

    def _pattern(self, length: int, stream: torch.Generator) -> TwoStreams:
        """The blocks of a step."""
        size = self.sizes[int(torch.randint(len(self.sizes), (), generator=stream))]
        size = length if size is None else min(size, length)
        offset = int(torch.randint(size, (), generator=stream)) if self.moves and size < length else 0
        led = self.first_id is not None
        return TwoStreams(block_numbers(length, size, offset), self.causal, whole=size == length, led=led)

    def _masks(self, process: Process, block_BL: Tensor, loss_mask_BL: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Which tokens are masked, and the weight of each in the bound."""
        block_BL = block_BL.expand_as(loss_mask_BL)
        length_BK = block_lengths(block_BL, loss_mask_BL)
        level_BK = self.levels.level(spread_over_blocks(draws.u_B, length_BK))
        count_BK = torch.minimum((level_BK * length_BK).floor() + 1.0, length_BK)
        masked_BL = random_block_subset(draws.generators, block_BL, loss_mask_BL, count_BK)
        share_BK = self.levels.cdf(count_BK / length_BK) - self.levels.cdf((count_BK - 1.0) / length_BK)
        weight_BK = count_weights_of(process.schedule, length_BK, count_BK) / (count_BK * share_BK)
        return masked_BL, torch.where(masked_BL, weight_BK.gather(1, block_BL), 0.0)


def causal_input(x0_BL: Tensor, wanted_BL: Tensor, first_id: int) -> NetworkInput:
    """A text one position later behind its first id, so that each row predicts the token in place."""
    time_B = torch.zeros(len(x0_BL), dtype=torch.double, device=x0_BL.device)
    return NetworkInput(_later(x0_BL, first_id), wanted_BL, time_B, attention=Causal())


def two_stream_input(
    x0_BL: Tensor, xt_BL: Tensor, next_BL: Tensor, masked_BL: Tensor, first_id: int | None, pattern: TwoStreams
) -> NetworkInput:
    """A clean text and a noisy copy of it in one row; see `TwoStreams`.

    Args:
        x0_BL: Clean ids.
        xt_BL: Noisy ids.
        next_BL: Which tokens are predicted from those before them.
        masked_BL: Which are predicted from their block and the memory.
        first_id: The id that stands before every text; None for nothing.
        pattern: The blocks.

    Returns:
        The input, 2L tokens a row.
    """
    place_L = torch.arange(x0_BL.shape[1], device=x0_BL.device)
    return NetworkInput(
        torch.cat([x0_BL if first_id is None else _later(x0_BL, first_id), xt_BL], 1),
        torch.cat([next_BL, masked_BL], 1),
        torch.zeros(len(x0_BL), dtype=torch.double, device=x0_BL.device),
        attention=pattern,
        positions=torch.cat([place_L, place_L if first_id is None else place_L + 1]),
    )


def _later(x0_BL: Tensor, first_id: int) -> Tensor:
    return torch.cat([torch.full_like(x0_BL[:, :1], first_id), x0_BL[:, :-1]], 1)


def _mean_level(levels: Levels) -> float:
    """The mean of a distribution of levels, by the midpoint rule."""
    return float(levels.level((torch.arange(1000).double() + 0.5) / 1000).mean())
