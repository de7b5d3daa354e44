"""Which noise levels are trained on. A new distribution is one class here, and its name in `AnyLevels`.

The noise level of a sequence is 1 - alpha, or the share of masked tokens where masks are counted and no time is drawn.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor


class Levels(Protocol):
    """The distribution of the noise level in training.

    It decides how often a level is seen. A loss that is the bound is importance-weighted by 1/density, so that its
    expectation does not change. Plain cross-entropy is not, so for it the distribution is a weighting as well.

    Attributes:
        name: What the configuration calls it.
        complete: Whether every level may occur, which an estimate of the bound needs.
    """

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        ...

    @property
    def complete(self) -> bool:
        """Whether every level may occur."""
        ...

    def level(self, u_B: Tensor) -> Tensor:
        """The level in [0, 1) at quantile `u_B`: the inverse of `cdf`."""
        ...

    def cdf(self, level_B: Tensor) -> Tensor:
        """The probability of a lower level than `level_B`."""
        ...

    def density(self, level_B: Tensor) -> Tensor:
        """The derivative of `cdf`."""
        ...


@dataclass(frozen=True)
class Even:
    """Every noise level equally often."""

    name: Literal["even"] = "even"
    complete: ClassVar[bool] = True

    def level(self, u_B: Tensor) -> Tensor:
        """The quantile itself."""
        return u_B

    def cdf(self, level_B: Tensor) -> Tensor:
        """The level itself."""
        return level_B

    def density(self, level_B: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(level_B)


@dataclass(frozen=True)
class Bell:
    """Levels from Beta(a, a), most of them near one half (2605.13026).

    With a weighted loss the rare levels near 0 and 1 have large weights, and the loss a large variance.

    Attributes:
        concentration: a, a whole number; 1 is uniform, more is narrower.
    """

    concentration: int = 2
    name: Literal["bell"] = "bell"
    complete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.concentration <= 16:
            raise ValueError(f"concentration must be from 1 to 16, got {self.concentration}")

    def level(self, u_B: Tensor) -> Tensor:
        """The root of cdf(level) = u, by bisection to the last bit of float64."""
        low_B, high_B = torch.zeros_like(u_B), torch.ones_like(u_B)
        for _ in range(53):
            middle_B = (low_B + high_B) / 2
            below_B = self.cdf(middle_B) <= u_B
            low_B, high_B = torch.where(below_B, middle_B, low_B), torch.where(below_B, high_B, middle_B)
        return low_B

    def cdf(self, level_B: Tensor) -> Tensor:
        """The chance that at least a of 2a - 1 uniform numbers lie below the level: for a = 2, 3x^2 - 2x^3."""
        n = 2 * self.concentration - 1
        terms = (math.comb(n, j) * level_B**j * (1.0 - level_B) ** (n - j) for j in range(self.concentration, n + 1))
        return torch.stack(list(terms)).sum(0)

    def density(self, level_B: Tensor) -> Tensor:
        """(2a - 1)! / (a - 1)!^2 (x (1 - x))^(a - 1)."""
        a = self.concentration
        return math.factorial(2 * a - 1) / math.factorial(a - 1) ** 2 * (level_B * (1.0 - level_B)) ** (a - 1)


@dataclass(frozen=True)
class Clip:
    """Levels from an interval, each equally often (clipped schedules, 2503.09573, section 5.3).

    The levels near 0 and near 1, where there is little or nothing to predict from, are left out.

    Attributes:
        low: The lowest level.
        high: The highest.
    """

    low: float = 0.2
    high: float = 0.8
    name: Literal["clip"] = "clip"

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(f"0 <= low < high <= 1 must hold, got {self.low} and {self.high}")

    @property
    def complete(self) -> bool:
        """Only for the interval from 0 to 1."""
        return self.low == 0.0 and self.high == 1.0

    def level(self, u_B: Tensor) -> Tensor:
        """Linear in u: low + (high - low) u."""
        return self.low + (self.high - self.low) * u_B

    def cdf(self, level_B: Tensor) -> Tensor:
        """(x - low)/(high - low), within 0 and 1."""
        return ((level_B - self.low) / (self.high - self.low)).clamp(0.0, 1.0)

    def density(self, level_B: Tensor) -> Tensor:
        """1/(high - low) inside the interval."""
        return ((level_B >= self.low) & (level_B <= self.high)) / torch.full_like(level_B, self.high - self.low)


AnyLevels = Even | Bell | Clip
