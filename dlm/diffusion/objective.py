"""Training objectives: a batch of clean text in, sums in nats and counts out."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from dlm.diffusion.bound import (
    LEVEL_POWER,
    count_weights,
    cross_entropy,
    nats_per_level,
    prior_and_reconstruction_nats,
    step_nats,
)
from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.devices import copied
from dlm.diffusion.draws import Draws
from dlm.diffusion.levels import Levels
from dlm.diffusion.network import NetworkInput, Reduced
from dlm.diffusion.process import Process
from dlm.diffusion.schedule import noise_levels, time_at
from dlm.diffusion.weighting import Weighting


@dataclass(frozen=True)
class LossTerms:
    """What one micro-batch adds to a step; the trainer adds these up and divides once.

    Attributes:
        loss: A differentiable sum in nats.
        count: What `loss` is divided by, once summed over the global batch.
        nelbo: Sum of an unbiased estimate of the true bound, in nats, detached; nan where noise levels
            that the bound needs are never drawn.
        tokens: Number of tokens that the bound is over.
        predicted: Number of tokens that were predicted.
        next_token: Sum of the next tokens' cross-entropy, in nats, detached and without the weight that it has in
            `loss`; None where none are learned beside masks.
    """

    loss: Tensor
    count: Tensor
    nelbo: Tensor
    tokens: Tensor
    predicted: Tensor
    next_token: Tensor | None = None


@dataclass(frozen=True)
class Corrupted:
    """A batch of noisy text, and what its predictions are compared with.

    Attributes:
        inputs: What the network is to read.
        x0_N: The clean tokens at the wanted positions.
        values_N: What the objective knows of each of them, such as a weight.
        tokens: Number of tokens that the bound is over.
        constant: Nats of the bound that no prediction changes: the prior and the reconstruction term.
    """

    inputs: NetworkInput
    x0_N: Tensor
    values_N: tuple[Tensor, ...]
    tokens: Tensor
    constant: Tensor

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        if self.x0_N.device == device:
            return self
        return replace(
            self,
            inputs=self.inputs.to(device),
            x0_N=copied(self.x0_N, device),
            values_N=tuple(copied(x, device) for x in self.values_N),
            tokens=copied(self.tokens, device),
            constant=copied(self.constant, device),
        )


class Objective(ABC):
    """A training loss, in two halves: what needs random numbers, and what needs the network.

    The first half runs on the CPU, where the random numbers are, ahead of the step that needs it.
    """

    @abstractmethod
    def corrupt(self, process: Process, x0_BL: Tensor, draws: Draws, loss_mask_BL: Tensor | None = None) -> Corrupted:
        """Corrupts a batch.

        Args:
            process: The forward process.
            x0_BL: Clean ids.
            draws: The randomness of this batch.
            loss_mask_BL: The tokens that count, such as all but padding; all of them by default. The others
                are never corrupted.

        Returns:
            The noisy batch, where the clean one is.
        """

    @abstractmethod
    def loss(self, denoiser: Denoiser, process: Process, batch: Corrupted) -> LossTerms:
        """Predicts a corrupted batch, and compares.

        Args:
            denoiser: Predicts the clean tokens.
            process: What the batch was corrupted with.
            batch: What `corrupt` made, where the denoiser computes.

        Returns:
            Sums and counts over the batch.
        """

    def __call__(
        self, denoiser: Denoiser, process: Process, x0_BL: Tensor, draws: Draws, loss_mask_BL: Tensor | None = None
    ) -> LossTerms:
        """Both halves; see `corrupt` and `loss`."""
        return self.loss(denoiser, process, self.corrupt(process, x0_BL, draws, loss_mask_BL))


@dataclass(frozen=True)
class MaskedObjective(Objective):
    """Absorbing noise with an exact number of masks a sequence, for a denoiser that takes no time.

    With l drawn from q and S_l the summed cross-entropy of a uniform subset of l of the L tokens,
    NELBO = sum_l (w_l/l) E[S_l] = E_{l~q}[ w_l S_l / (l q(l)) ], w_l being 1 in continuous time (any-order
    likelihood; 2406.07524, eq. 11, with time integrated out; for T steps see `count_weights`). There is no
    time, and no epsilon near t = 0.

    Attributes:
        weighting: What is minimised.
        levels: Which shares of masks are trained on.
        steps: T, for a chain of that many steps; None for continuous time.
    """

    weighting: Weighting
    levels: Levels
    steps: int | None = None

    def corrupt(self, process: Process, x0_BL: Tensor, draws: Draws, loss_mask_BL: Tensor | None = None) -> Corrupted:
        """One masked copy of each sequence; the values are the weights of the bound. See `Objective`."""
        loss_mask_BL = torch.ones_like(x0_BL, dtype=torch.bool) if loss_mask_BL is None else loss_mask_BL
        length_B = loss_mask_BL.sum(1).double()
        level_B = self.levels.level(draws.u_B).to(x0_BL.device)
        # An empty row masks nothing; a level that rounds up to 1 must not ask for one token too many.
        count_B = torch.minimum((level_B * length_B).floor() + 1.0, length_B)
        xt_BL = process.corrupt_count(x0_BL, count_B, draws.generators, loss_mask_BL)
        masked_BL = (xt_BL == process.mask_id) & loss_mask_BL
        inputs = NetworkInput(xt_BL, masked_BL, count_B / length_B.clamp(min=1.0))
        return corrupted(process, inputs, x0_BL, loss_mask_BL, self._weight(process, count_B, length_B))

    def loss(self, denoiser: Denoiser, process: Process, batch: Corrupted) -> LossTerms:
        """The weighted cross-entropy of the masked tokens; see `Objective`."""
        (weight_N,) = batch.values_N

        def reducer(log_p0_CV: Tensor, rows: slice) -> Reduced:
            ce_C = cross_entropy(log_p0_CV, batch.x0_N[rows])
            nats_C = weight_N[rows].to(ce_C) * ce_C
            return Reduced(to_minimise(self.weighting, ce_C, nats_C), nats_C.detach())

        return terms(self.weighting, self.levels, batch, denoiser.reduce(batch.inputs, reducer))

    def _weight(self, process: Process, count_B: Tensor, length_B: Tensor) -> Tensor:
        """w_l / (l q(l)), with q(l) the probability that a drawn level gives this count."""
        share_B = self.levels.cdf(count_B / length_B) - self.levels.cdf((count_B - 1.0) / length_B)
        weight_B = 1.0 / (count_B * share_B)
        if self.steps is None and noise_levels(process.schedule) == (0.0, 1.0):
            return weight_B  # every w_l is 1
        pairs = zip(length_B.long().tolist(), count_B.long().tolist(), strict=True)
        time_B = [count_weights(process.schedule, length, self.steps)[count] for length, count in pairs]
        return weight_B * torch.stack(time_B).to(weight_B)


@dataclass(frozen=True)
class TimedObjective(Objective):
    """Any noise, with a time drawn for each sequence; in continuous time, or on a chain of T steps.

    The noise level is drawn and the time follows from it, so that what is trained on is the same under any
    schedule. Where the loss is the bound, the level is a draw from `levels` to the power of `LEVEL_POWER`:
    even levels would have infinite variance.

    Attributes:
        weighting: What is minimised.
        levels: Which noise levels are trained on.
        steps: T, for a chain of that many steps; None for continuous time.
    """

    weighting: Weighting
    levels: Levels
    steps: int | None = None

    def corrupt(self, process: Process, x0_BL: Tensor, draws: Draws, loss_mask_BL: Tensor | None = None) -> Corrupted:
        """One noisy copy of each sequence; the values are two times and the weight of the bound. See `Objective`."""
        loss_mask_BL = torch.ones_like(x0_BL, dtype=torch.bool) if loss_mask_BL is None else loss_mask_BL
        s_B, t_B, weight_B = self._times(process, draws.u_B)
        xt_BL = process.corrupt(x0_BL, t_B, draws.generators, loss_mask_BL)
        wanted_BL = process.to_predict(xt_BL) & loss_mask_BL
        inputs = NetworkInput(xt_BL, wanted_BL, t_B.to(x0_BL.device))
        return corrupted(process, inputs, x0_BL, loss_mask_BL, s_B, t_B, weight_B)

    def loss(self, denoiser: Denoiser, process: Process, batch: Corrupted) -> LossTerms:
        """Each token's term of the bound, or its cross-entropy; see `Objective`."""
        s_N, t_N, weight_N = batch.values_N
        x0_N, z_N = batch.x0_N, batch.inputs.ids_BL.flatten()[batch.inputs.index_N]

        def reducer(log_p0_CV: Tensor, rows: slice) -> Reduced:
            ce_C = cross_entropy(log_p0_CV, x0_N[rows])
            if not (self.weighting.weighted or self.levels.complete):
                return Reduced(to_minimise(self.weighting, ce_C, ce_C), torch.full_like(ce_C, math.nan))
            seen = process, log_p0_CV, x0_N[rows], z_N[rows]
            with torch.set_grad_enabled(self.weighting.weighted and torch.is_grad_enabled()):
                if self.steps is None:
                    nats_C = weight_N[rows] * nats_per_level(*seen, t_N[rows])
                else:
                    nats_C = weight_N[rows] * step_nats(*seen, s_N[rows], t_N[rows])
            return Reduced(to_minimise(self.weighting, ce_C, nats_C), nats_C.detach())

        return terms(self.weighting, self.levels, batch, denoiser.reduce(batch.inputs, reducer))

    def _times(self, process: Process, u_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two times of each sequence, s <= t, and one over the probability of them."""
        power = LEVEL_POWER if self.weighting.weighted else 1.0
        level_B = self.levels.level(u_B)
        start, end = noise_levels(process.schedule)
        t_B = time_at(process.schedule, level_B**power)
        if self.steps is None:
            return t_B, t_B, power * level_B ** (power - 1.0) * (end - start) / self.levels.density(level_B)
        index_B = (t_B * self.steps).floor().clamp(0, self.steps - 1)
        s_B, t_B = index_B / self.steps, (index_B + 1.0) / self.steps
        reached = (((1.0 - process.schedule.alpha(x) - start) / (end - start)).clamp(0.0, 1.0) for x in (s_B, t_B))
        below_B, above_B = (reached_B ** (1.0 / power) for reached_B in reached)
        return s_B, t_B, 1.0 / (self.levels.cdf(above_B) - self.levels.cdf(below_B))


def corrupted(
    process: Process, inputs: NetworkInput, x0_BL: Tensor, loss_mask_BL: Tensor, *values_B: Tensor
) -> Corrupted:
    """The batch, with one value a row as one a wanted position."""
    return Corrupted(
        inputs,
        x0_BL.flatten()[inputs.index_N],
        tuple(inputs.of_wanted(x_B) for x_B in values_B),
        loss_mask_BL.sum().double(),
        (prior_and_reconstruction_nats(process, x0_BL) * loss_mask_BL).sum(),
    )


def to_minimise(weighting: Weighting, ce_C: Tensor, nats_C: Tensor) -> Tensor:
    """The sum that the weighting asks for, from each row's cross-entropy and term of the bound."""
    loss = nats_C.sum() if weighting.weighted else ce_C.sum()
    return loss + weighting.auxiliary * ce_C.sum() if weighting.auxiliary else loss


def terms(weighting: Weighting, levels: Levels, batch: Corrupted, reduced: Reduced) -> LossTerms:
    """The sums, from the loss and each predicted token's term of the bound."""
    loss, nats_N = reduced
    predicted = torch.full_like(batch.tokens, len(nats_N))
    bound = nats_N.sum() + batch.constant if levels.complete else torch.full_like(batch.constant, math.nan)
    return LossTerms(
        loss=loss,
        count=batch.tokens if weighting.weighted else predicted,
        nelbo=bound,
        tokens=batch.tokens,
        predicted=predicted,
    )
