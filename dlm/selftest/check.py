"""A check: a claim, its known value, and the value computed on this machine."""

import math
from dataclasses import dataclass

from torch import Tensor

SIGMAS = 4.5
"""Standard errors that a random figure may be off: right code fails one in 150,000 seeds, and the seed is fixed."""


@dataclass(frozen=True)
class Check:
    """One figure beside its known value.

    Attributes:
        claim: What is claimed.
        exact: The known value.
        computed: What this machine computed.
        tolerance: How far apart the two may be.
    """

    claim: str
    exact: float
    computed: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the claim holds here."""
        return abs(self.exact - self.computed) <= self.tolerance


def frequency(claim: str, count: int, trials: int, p: float) -> Check:
    """A frequency beside its probability.

    Args:
        claim: What is claimed.
        count: How often the event occurred.
        trials: The number of trials.
        p: Its probability.

    Returns:
        The check, within `SIGMAS` standard errors.
    """
    return Check(claim, p, count / trials, SIGMAS * math.sqrt(p * (1.0 - p) / trials))


def chi_square(claim: str, found_M: Tensor, expected_M: Tensor) -> Check:
    """Pearson's statistic of counts beside its mean, which is its degrees of freedom.

    Args:
        claim: What is claimed.
        found_M: How often each outcome occurred.
        expected_M: How often it should; one that is impossible makes the statistic infinite if it occurred.

    Returns:
        The check, within `SIGMAS` standard deviations of the statistic.
    """
    possible_M = expected_M > 0
    free = int(possible_M.sum()) - 1
    squares_M = (found_M.double() - expected_M)[possible_M] ** 2
    statistic = float((squares_M / expected_M[possible_M]).sum())
    if found_M[~possible_M].any():
        statistic = math.inf
    return Check(f"{claim}: chi-square, mean {free}", free, statistic, SIGMAS * math.sqrt(2.0 * free))
