"""Noise schedules: alpha(t), which falls as noise grows.

With absorbing and with uniform noise alpha(t) is the probability that a token is still clean.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor


class NoiseSchedule(Hashable, Protocol):
    """A decreasing alpha, from 1 or just below it to 0 or just above. Tensors are of any one shape."""

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        ...

    def alpha(self, t: Tensor) -> Tensor:
        """The value at time `t`."""
        ...

    def alpha_prime(self, t: Tensor) -> Tensor:
        """The derivative of alpha at `t`, never positive."""
        ...

    def inverse(self, alpha: Tensor) -> Tensor:
        """The time at which alpha takes this value."""
        ...


@dataclass(frozen=True)
class Linear:
    """alpha(t) = 1 - t: the weight of the bound is 1/t. D3PM's beta_k = 1/(T-k+1) (2107.03006, section 3.1)."""

    name: Literal["linear"] = "linear"

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1.0 - t

    def alpha_prime(self, t: Tensor) -> Tensor:
        """-1."""
        return -torch.ones_like(t)

    def inverse(self, alpha: Tensor) -> Tensor:
        """1 - alpha."""
        return 1.0 - alpha


@dataclass(frozen=True)
class Cosine:
    """alpha(t) = 1 - cos(pi/2 (1 - t)): masks leave slowly at first (MaskGIT 2202.04200; MDLM 2406.07524)."""

    name: Literal["cosine"] = "cosine"

    def alpha(self, t: Tensor) -> Tensor:
        """1 - cos(pi/2 (1 - t)), written as 1 - sin(pi/2 t)."""
        return 1.0 - torch.sin(math.pi / 2 * t)

    def alpha_prime(self, t: Tensor) -> Tensor:
        """-(pi/2) cos(pi/2 t)."""
        return -math.pi / 2 * torch.cos(math.pi / 2 * t)

    def inverse(self, alpha: Tensor) -> Tensor:
        """(2/pi) asin(1 - alpha)."""
        return 2 / math.pi * torch.asin(1.0 - alpha)


@dataclass(frozen=True)
class Polynomial:
    """alpha(t) = 1 - t^power.

    Attributes:
        power: Above 1 the text stays clean for longer, below 1 for less long; positive.
    """

    name: Literal["polynomial"] = "polynomial"
    power: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 < self.power < math.inf:
            raise ValueError(f"power must be above 0, got {self.power}")

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t^power."""
        return 1.0 - t**self.power

    def alpha_prime(self, t: Tensor) -> Tensor:
        """-power t^(power - 1)."""
        return -self.power * t ** (self.power - 1.0)

    def inverse(self, alpha: Tensor) -> Tensor:
        """(1 - alpha)^(1/power)."""
        return (1.0 - alpha) ** (1.0 / self.power)


@dataclass(frozen=True)
class Geometric:
    """alpha(t) = exp(-sigma(t)) with sigma(t) = sigma_min^(1-t) sigma_max^t (SEDD, 2310.16834, section 5.1).

    It begins a little below 1 and ends a little above 0; bounds count what that costs.

    Attributes:
        sigma_min: The total noise at t = 0, positive.
        sigma_max: The total noise at t = 1, above `sigma_min`.
    """

    sigma_min: float = 1e-4
    sigma_max: float = 20.0
    name: Literal["geometric"] = "geometric"

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"0 < sigma_min < sigma_max must hold, got {self.sigma_min} and {self.sigma_max}")

    def alpha(self, t: Tensor) -> Tensor:
        """exp(-sigma(t))."""
        return torch.exp(-self._sigma(t))

    def alpha_prime(self, t: Tensor) -> Tensor:
        """-sigma'(t) exp(-sigma(t)), sigma' being sigma ln(sigma_max/sigma_min)."""
        sigma = self._sigma(t)
        return -sigma * math.log(self.sigma_max / self.sigma_min) * torch.exp(-sigma)

    def inverse(self, alpha: Tensor) -> Tensor:
        """ln(-ln(alpha)/sigma_min) / ln(sigma_max/sigma_min)."""
        return torch.log(-torch.log(alpha) / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min ** (1.0 - t) * self.sigma_max**t


Schedule = Linear | Cosine | Polynomial | Geometric


@lru_cache(maxsize=64)
def noise_levels(schedule: NoiseSchedule) -> tuple[float, float]:
    """The noise level 1 - alpha at t = 0 and at t = 1."""
    start, end = (1.0 - schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))).tolist()
    return start, end


def time_at(schedule: NoiseSchedule, level: Tensor) -> Tensor:
    """The time at which the noise level is at this fraction between its values at t = 0 and t = 1.

    Args:
        schedule: alpha(t).
        level: From 0 to 1, any shape; for most schedules 1 - alpha itself.

    Returns:
        Times in [0, 1], of that shape.
    """
    start, end = noise_levels(schedule)
    return schedule.inverse(1.0 - start - (end - start) * level)
