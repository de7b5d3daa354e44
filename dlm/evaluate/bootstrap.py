"""Ratios of sums over a corpus, with bootstrap errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RESAMPLES = 1000

Interval = tuple[float, float]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """A ratio of two sums over units, with its bootstrap standard error and 95% interval; None for a single unit."""

    value: float
    se: float | None
    interval: Interval | None

    @classmethod
    def of(cls, above_U: Tensor, below_U: Tensor, seed: int) -> "Ratio":
        """The ratio of two sums.

        Args:
            above_U: What each unit adds above, and
            below_U: below.
            seed: Decides the bootstrap; two ratios of the same units resample the same ones.

        Returns:
            The ratio.
        """
        above: Floats = above_U.double().numpy()
        below: Floats = below_U.double().numpy()
        if not np.isfinite(above).all():
            value = float(above.sum())  # infinite, or of two infinite bounds not a number
            return cls(value, math.inf, (value, value))
        value = float(above.sum() / below.sum())
        if len(above) == 1:  # resampled, it is always itself: an error of zero would be a false one
            return cls(value, None, None)
        random = np.random.default_rng(abs(seed))
        even = np.full(len(above), 1.0 / len(above))
        resampled = np.empty(RESAMPLES)
        for i in range(RESAMPLES):  # one at a time: all together would take the memory of a thousand corpora
            weights = random.multinomial(len(above), even)
            resampled[i] = (weights @ above) / (weights @ below)
        low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
        return cls(value, float(resampled.std(ddof=1)), (low, high))

    def se_besides(self, monte_carlo: float) -> float | None:
        """The standard error without that of the masks: the bootstrap sees both at once."""
        if self.se is None or not math.isfinite(monte_carlo):
            return None if self.se is None else math.inf
        return math.sqrt(max(self.se**2 - monte_carlo**2, 0.0))


def ratio_of(above: Sequence[float], below: Sequence[float], seed: int) -> Ratio:
    """A ratio of two sums over units such as texts, with its bootstrap.

    Args:
        above: What each unit adds above, and
        below: below.
        seed: Decides the bootstrap.

    Returns:
        The ratio; not a number where there is nothing below. A unit that adds nothing below, and so nothing above, is
        not resampled.
    """
    used = [(a, b) for a, b in zip(above, below, strict=True) if b]
    if not used:
        return Ratio(math.nan, None, None)
    above_U, below_U = torch.tensor(used, dtype=torch.float64).unbind(1)
    return Ratio.of(above_U, below_U, seed)
