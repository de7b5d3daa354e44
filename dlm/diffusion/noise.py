"""Kinds of noise: what a corrupted token becomes. A new kind is one class here, and its name in `AnyNoise`."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor


class Shares(NamedTuple):
    """What a token is at one time: three probabilities that sum to 1, tensors of one shape.

    Attributes:
        clean: Still the clean token; alpha itself for absorbing and uniform noise.
        masked: The mask.
        random: A symbol drawn without a look at the clean one, which it may be by chance.
    """

    clean: Tensor
    masked: Tensor
    random: Tensor


class Noise(Protocol):
    """A kind of noise, q(xt | x0) = clean x0 + masked e_m + random pi.

    The chain between the times, its posteriors, its bounds and its samplers all follow from `shares` and
    `symbols`; see `dlm/diffusion/process.py`.

    Attributes:
        name: What the configuration calls it.
        masks: Whether a token may become the mask.
        randomises: Whether a token may become another symbol.
    """

    masks: ClassVar[bool]
    randomises: ClassVar[bool]

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        ...

    def shares(self, alpha: Tensor) -> Shares:
        """The shares at one value of the schedule.

        Args:
            alpha: The value, from 1 (clean) to 0 (pure noise). It is differentiated through.

        Returns:
            Three tensors of that shape. masked/clean and random/clean must not fall as t grows, or a
            transition would have negative probabilities.
        """
        ...

    def symbols(self, count: int) -> Tensor:
        """pi, the distribution of a random symbol over the `count` symbols of text, float64, shape (count,)."""
        ...


def evenly(count: int) -> Tensor:
    """The uniform distribution over `count` symbols, float64."""
    return torch.full((count,), 1.0 / count, dtype=torch.float64)


@dataclass(frozen=True)
class Absorbing:
    """Every token turns into the mask, once and for good (D3PM, 2107.03006, appendix A.2.2)."""

    name: Literal["absorbing"] = "absorbing"
    masks: ClassVar[bool] = True
    randomises: ClassVar[bool] = False

    def shares(self, alpha: Tensor) -> Shares:
        """All noise is mask; see `Noise`."""
        return Shares(alpha, 1.0 - alpha, torch.zeros_like(alpha))

    def symbols(self, count: int) -> Tensor:
        """Never drawn from; see `Noise`."""
        return evenly(count)


@dataclass(frozen=True)
class Uniform:
    """A token turns into any symbol with equal chances, again and again (D3PM, 2107.03006, appendix A.2.1)."""

    name: Literal["uniform"] = "uniform"
    masks: ClassVar[bool] = False
    randomises: ClassVar[bool] = True

    def shares(self, alpha: Tensor) -> Shares:
        """All noise is random symbols; see `Noise`."""
        return Shares(alpha, torch.zeros_like(alpha), 1.0 - alpha)

    def symbols(self, count: int) -> Tensor:
        """1/K each; see `Noise`."""
        return evenly(count)


@dataclass(frozen=True)
class Hybrid:
    """Masks with a share of random symbols, which is largest half way and gone at either end (GIDD, 2503.04482).

    With a the schedule's alpha, masks and clean tokens are in the ratio (1 - a) : a, and random symbols come
    to 2 share/(1 - share) sqrt(a (1 - a)) on the same scale; then all three are scaled to sum to 1. This is the
    paper's mixing schedule (its section 4) with gamma = 1 and 1 - t written a.

    Attributes:
        share: The share p_u of random symbols among all tokens where a = 1/2; above 0 and below 1.
    """

    share: float = 0.1
    name: Literal["hybrid"] = "hybrid"
    masks: ClassVar[bool] = True
    randomises: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"share must be above 0 and below 1, got {self.share}")

    def shares(self, alpha: Tensor) -> Shares:
        """The three in the ratio alpha : 1 - alpha : 2 share/(1 - share) sqrt(alpha (1 - alpha)); see `Noise`."""
        random = 2.0 * self.share / (1.0 - self.share) * (alpha * (1.0 - alpha)).sqrt()
        whole = 1.0 + random
        return Shares(alpha / whole, (1.0 - alpha) / whole, random / whole)

    def symbols(self, count: int) -> Tensor:
        """1/K each; see `Noise`."""
        return evenly(count)


AnyNoise = Absorbing | Uniform | Hybrid


def counts_suffice(noise: Noise, *, timed: bool) -> bool:
    """Whether the number of masks tells all that the time could: masks alone, and no time conditioning.

    Then losses, bounds and samplers count masks, and time is integrated out.

    Args:
        noise: What a corrupted token becomes.
        timed: Whether the denoiser takes the time.

    Returns:
        Whether no time need be drawn.
    """
    return not noise.randomises and not timed
