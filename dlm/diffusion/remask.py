"""The fourth choice of a sampler: which revealed tokens become masks again.

ReMDM (2503.00307, eq. 6 and 7) gives a step from t to s a number sigma. A revealed token is masked again with
probability sigma, and a mask is revealed with probability (alpha_s - (1 - sigma) alpha_t)/(1 - alpha_t), each on its
own. For every sigma from 0 to min(1, (1 - alpha_s)/alpha_t) a token is still clean with probability alpha_s at s, so
the network sees the noise it was trained on. sigma = 0 is ancestral sampling. `Cap`, `Rescale`, `LeastConfident`,
`Loop` and `Psi` are choices of sigma; `Planner` is none of these.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from dlm.diffusion.schedule import NoiseSchedule


def largest_sigma(alpha_s: float, alpha_t: float) -> float:
    """The largest sigma that keeps alpha_s tokens clean, min(1, (1 - alpha_s)/alpha_t) (2503.00307, eq. 7)."""
    return min(1.0, (1.0 - alpha_s) / alpha_t) if alpha_t > 0.0 else 1.0


class SigmaRemasker(ABC):
    """A choice of sigma for each step.

    Attributes:
        eta: How much is masked again, from 0, ancestral sampling, to 1.
        by_confidence: Whether the remasking of a step is shared out by the probabilities that tokens were drawn with.
    """

    eta: float
    by_confidence: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must be from 0 to 1, got {self.eta}")

    def time(self, t: float, schedule: NoiseSchedule) -> float:
        """The time of the schedule at which a sampler stands that has gone from 1 to `t`; here `t`."""
        return t

    @abstractmethod
    def sigma(self, t: float, alpha_s: float, alpha_t: float) -> float:
        """The probability that a revealed token becomes a mask.

        Args:
            t: How far the sampler is, from 1 down to 0.
            alpha_s: The schedule after the step.
            alpha_t: The schedule before it, at most `alpha_s`.

        Returns:
            At most `largest_sigma`.
        """


@dataclass(frozen=True)
class Cap(SigmaRemasker):
    """sigma = min(eta, its largest): a set share of the revealed tokens a step (2503.00307, section 4.1).

    Attributes:
        eta: From 0 to 1; the more steps, the more tokens are opened again in all.
    """

    eta: float = 0.02
    name: Literal["cap"] = "cap"

    def sigma(self, t: float, alpha_s: float, alpha_t: float) -> float:
        """min(eta, its largest); see `SigmaRemasker`."""
        return min(self.eta, largest_sigma(alpha_s, alpha_t))


@dataclass(frozen=True)
class Rescale(SigmaRemasker):
    """sigma = eta times its largest (2503.00307, section 4.1).

    Attributes:
        eta: From 0 to 1.
    """

    eta: float = 0.05
    name: Literal["rescale"] = "rescale"

    def sigma(self, t: float, alpha_s: float, alpha_t: float) -> float:
        """`eta` times its largest; see `SigmaRemasker`."""
        return self.eta * largest_sigma(alpha_s, alpha_t)


@dataclass(frozen=True)
class LeastConfident(SigmaRemasker):
    """As `Rescale` on average, and more often where a token was drawn with a small probability.

    Of n revealed tokens, i has sigma times n times the softmax of minus the probabilities that they were drawn with.
    So the mean over the revealed tokens is sigma, and as many are masked on average as the schedule says. In ReMDM
    (2503.00307, section 4.1) the shares sum to 1, not to n, and masks are revealed as with sigma = 0, so a text there
    has more masks than the schedule says. A share is at most e times the mean, so sigma is at most 1/e.

    Attributes:
        eta: From 0 to 1.
    """

    eta: float = 0.3
    name: Literal["confidence"] = "confidence"
    by_confidence: ClassVar[bool] = True

    def sigma(self, t: float, alpha_s: float, alpha_t: float) -> float:
        """`eta` times its largest, which is at most 1/e, on average over the tokens; see `SigmaRemasker`."""
        return self.eta * min(math.exp(-1.0), largest_sigma(alpha_s, alpha_t))


@dataclass(frozen=True)
class Loop(SigmaRemasker):
    """Reveals most of the text, then corrects it for a while with as many masks, then reveals the rest.

    From t = `on` to `off` the schedule stands still at `alpha`, and sigma is `eta`; before and after there is no
    remasking, and the schedule runs from 1 to that time and on to 0 (2503.00307, section 4.2).

    Attributes:
        eta: sigma in between, from 0 to 1; at most the largest, (1 - alpha)/alpha.
        on: When it begins.
        off: When it ends, below `on`.
        alpha: The share of tokens that are revealed meanwhile.
    """

    eta: float = 0.02
    on: float = 0.55
    off: float = 0.05
    alpha: float = 0.9
    name: Literal["loop"] = "loop"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.off < self.on < 1.0:
            raise ValueError(f"off and on must be 0 < off < on < 1, got off {self.off} and on {self.on}")
        if not 0.0 < self.alpha < 1.0:
            raise ValueError(f"alpha must be between 0 and 1, got {self.alpha}")

    def time(self, t: float, schedule: NoiseSchedule) -> float:
        """Where the schedule has `alpha` from `on` to `off`, and a line to either end; see `SigmaRemasker`."""
        still = float(schedule.inverse(torch.tensor(self.alpha, dtype=torch.float64)).clamp(0.0, 1.0))
        if t > self.on:
            return still + (1.0 - still) * (t - self.on) / (1.0 - self.on)
        return still * min(t / self.off, 1.0)

    def sigma(self, t: float, alpha_s: float, alpha_t: float) -> float:
        """min(eta, its largest) from `on` to `off`, else 0; see `SigmaRemasker`."""
        return min(self.eta, largest_sigma(alpha_s, alpha_t)) if self.off < t <= self.on else 0.0


@dataclass(frozen=True)
class Psi(SigmaRemasker):
    """Draws each token of the step's end anew with probability eta, for any noise (Psi-samplers, 2602.21185).

    A step draws x0 from p(x0 | xt). With probability 1 - eta it goes on to xs from the posterior q(xs | xt, x0), and
    with probability eta to xs from the noise q(xs | x0), which forgets xt. Both have the same distribution given
    x0, so xs has it too, whatever eta. With masks this is sigma = eta (1 - alpha_s).

    Attributes:
        eta: From 0, ancestral sampling, to 1.
    """

    eta: float = 0.05
    name: Literal["psi"] = "psi"

    def sigma(self, t: float, alpha_s: float, alpha_t: float) -> float:
        """`eta` (1 - alpha_s); see `SigmaRemasker`."""
        return self.eta * (1.0 - alpha_s)


@dataclass(frozen=True)
class Planner:
    """Keeps the most likely tokens of each step, new ones and those that stand there, and masks the others.

    This is P2 with self-planning (2502.03540): after step k of a grid of steps, as many tokens are kept as the grid
    says. A mask has the log-probability of the token drawn for it; a revealed position has eta times the one that the
    network gives the token that stands there. Plain masked training never asks a network about a revealed token.

    Attributes:
        eta: At least 0. At 0 a revealed token is never masked; at 1 old and new tokens are compared as they are;
            above 1 old ones go first.
    """

    eta: float = 1.0
    name: Literal["planner"] = "planner"

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta < math.inf:
            raise ValueError(f"eta must be at least 0, got {self.eta}")


AnySigma = Cap | Rescale | LeastConfident | Loop | Psi
"""Those that are a number for each step."""

AnyRemasker = AnySigma | Planner
