"""Training objectives: a batch of clean text in, sums in nats and counts out."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import Draws
from dlm.diffusion.process import Absorbing


@dataclass(frozen=True)
class LossTerms:
    """What one micro-batch adds to a step; the trainer adds these up and divides once.

    Attributes:
        loss: A differentiable sum in nats.
        count: What `loss` is divided by, once summed over the global batch.
        nelbo: Sum of an unbiased estimate of the true bound, in nats, detached.
        tokens: Number of tokens that the bound is over.
        masked: Number of tokens that were predicted.
    """

    loss: Tensor
    count: Tensor
    nelbo: Tensor
    tokens: Tensor
    masked: Tensor


class Rates(Protocol):
    """The distribution of the masking rate that a weighting trains on, and whether the bound's weight is kept."""

    def rate(self, u_B: Tensor) -> Tensor:
        """The rate in [0, 1) at quantile `u_B`: the inverse of `cdf`."""
        ...

    def cdf(self, rate_B: Tensor) -> Tensor:
        """The probability of a rate below `rate_B`."""
        ...

    @property
    def weighted(self) -> bool:
        """True: the loss is the bound. False: plain cross-entropy a masked token."""
        ...


@dataclass(frozen=True)
class Elbo:
    """The bound itself: uniform rates, each sequence weighted by L/l."""

    name: Literal["elbo"] = "elbo"
    weighted = True

    def rate(self, u_B: Tensor) -> Tensor:
        """The quantile itself."""
        return u_B

    def cdf(self, rate_B: Tensor) -> Tensor:
        """The rate itself."""
        return rate_B


@dataclass(frozen=True)
class CrossEntropy:
    """Unweighted cross-entropy of the masked tokens, uniform rates (2602.15014 reports it ahead of the bound)."""

    name: Literal["ce"] = "ce"
    weighted = False

    def rate(self, u_B: Tensor) -> Tensor:
        """The quantile itself."""
        return u_B

    def cdf(self, rate_B: Tensor) -> Tensor:
        """The rate itself."""
        return rate_B


@dataclass(frozen=True)
class Bell:
    """Unweighted cross-entropy with rates from Beta(a, a), most of them near one half (2605.13026).

    Attributes:
        concentration: a, a whole number; 1 is uniform, more is narrower.
    """

    concentration: int = 2
    name: Literal["bell"] = "bell"
    weighted = False

    def __post_init__(self) -> None:
        if not 1 <= self.concentration <= 16:
            raise ValueError(f"concentration must be from 1 to 16, got {self.concentration}")

    def rate(self, u_B: Tensor) -> Tensor:
        """The root of cdf(r) = u, by bisection to the last bit of float64."""
        low_B, high_B = torch.zeros_like(u_B), torch.ones_like(u_B)
        for _ in range(53):
            middle_B = (low_B + high_B) / 2
            below_B = self.cdf(middle_B) <= u_B
            low_B, high_B = torch.where(below_B, middle_B, low_B), torch.where(below_B, high_B, middle_B)
        return low_B

    def cdf(self, rate_B: Tensor) -> Tensor:
        """The chance that at least a of 2a - 1 uniform numbers lie below the rate: for a = 2, 3r^2 - 2r^3."""
        n = 2 * self.concentration - 1
        terms = (math.comb(n, j) * rate_B**j * (1.0 - rate_B) ** (n - j) for j in range(self.concentration, n + 1))
        return torch.stack(list(terms)).sum(0)


Weighting = Elbo | CrossEntropy | Bell


class Objective(Protocol):
    """A training loss."""

    def __call__(
        self, denoiser: Denoiser, process: Absorbing, x0_BL: Tensor, draws: Draws, where_BL: Tensor | None = None
    ) -> LossTerms:
        """Corrupts the batch, predicts it and compares.

        Args:
            denoiser: Predicts the clean tokens.
            process: Corrupts them.
            x0_BL: Clean ids.
            draws: The randomness of this batch.
            where_BL: The tokens that count, such as all but padding; all of them by default. The others
                are never masked.

        Returns:
            Sums and counts over the batch.
        """
        ...


@dataclass(frozen=True)
class MaskedObjective:
    """Masked diffusion with an exact number of masks a sequence.

    With l drawn from q and S_l the summed cross-entropy of a uniform subset of l of the L tokens,
    NELBO = sum_l (1/l) E[S_l] = E_{l~q}[ S_l / (l q(l)) ] (any-order likelihood; 2406.07524, eq. 11, with
    time integrated out). There is no time, and no epsilon near t = 0.

    Attributes:
        rates: Which rates are trained on, and how they are weighted.
    """

    rates: Rates

    def __call__(
        self, denoiser: Denoiser, process: Absorbing, x0_BL: Tensor, draws: Draws, where_BL: Tensor | None = None
    ) -> LossTerms:
        """One masked copy of each sequence; see `Objective`."""
        where_BL = torch.ones_like(x0_BL, dtype=torch.bool) if where_BL is None else where_BL
        length_B = where_BL.sum(1).double()
        u_B = draws.u_B.to(x0_BL.device)
        # An empty row masks nothing; a rate that rounds up to 1 must not ask for one token too many.
        count_B = torch.minimum((self.rates.rate(u_B) * length_B).floor() + 1.0, length_B)
        xt_BL = process.corrupt_count(x0_BL, count_B, draws.generators, where_BL)
        masked_BL = (xt_BL == process.mask_id) & where_BL

        log_p0_NV = denoiser(xt_BL, count_B / length_B.clamp(min=1.0), masked_BL)
        ce_N = -log_p0_NV.gather(-1, x0_BL[masked_BL][:, None])[:, 0]

        row_N = masked_BL.nonzero()[:, 0]
        weight_N = self._weight(count_B, length_B)[row_N].to(ce_N)
        nelbo = (weight_N * ce_N).sum()
        tokens, masked = length_B.sum(), count_B.sum()
        return LossTerms(
            loss=nelbo if self.rates.weighted else ce_N.sum(),
            count=tokens if self.rates.weighted else masked,
            nelbo=nelbo.detach(),
            tokens=tokens,
            masked=masked,
        )

    def _weight(self, count_B: Tensor, length_B: Tensor) -> Tensor:
        """1 / (l q(l)), with q(l) the probability that the rates give this count."""
        share_B = self.rates.cdf(count_B / length_B) - self.rates.cdf((count_B - 1.0) / length_B)
        return 1.0 / (count_B * share_B)
