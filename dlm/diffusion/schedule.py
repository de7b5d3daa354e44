"""Noise schedules: alpha(t), the probability that a token is still clean at time t."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor


class NoiseSchedule(Protocol):
    """A decreasing alpha with alpha(0) = 1. Times and values are tensors of any one shape."""

    def alpha(self, t: Tensor) -> Tensor:
        """The probability that a token is still clean at time `t`."""
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

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t^power."""
        return 1.0 - t**self.power

    def alpha_prime(self, t: Tensor) -> Tensor:
        """-power t^(power - 1)."""
        return -self.power * t ** (self.power - 1.0)

    def inverse(self, alpha: Tensor) -> Tensor:
        """(1 - alpha)^(1/power)."""
        return (1.0 - alpha) ** (1.0 / self.power)


Schedule = Linear | Cosine | Polynomial
