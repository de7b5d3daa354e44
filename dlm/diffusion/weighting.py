"""What training minimises. A new loss is one class here, and its name in `AnyWeighting`."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol


class Weighting(Protocol):
    """How the predictions of noisy tokens are summed into a loss, whatever noise levels are drawn.

    Attributes:
        name: What the configuration calls it.
        weighted: True: the loss is the bound, a sum over all tokens. False: plain cross-entropy, averaged over the
            predicted tokens.
        auxiliary: How much plain cross-entropy is added to the loss.
    """

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        ...

    @property
    def weighted(self) -> bool:
        """Whether the loss is the bound."""
        ...

    @property
    def auxiliary(self) -> float:
        """How much plain cross-entropy is added."""
        ...


@dataclass(frozen=True)
class Elbo:
    """The bound itself."""

    name: Literal["elbo"] = "elbo"
    weighted: ClassVar[bool] = True
    auxiliary: ClassVar[float] = 0.0


@dataclass(frozen=True)
class CrossEntropy:
    """Unweighted cross-entropy of the predicted tokens (2602.15014 reports it ahead of the bound)."""

    name: Literal["ce"] = "ce"
    weighted: ClassVar[bool] = False
    auxiliary: ClassVar[float] = 0.0


@dataclass(frozen=True)
class HybridCrossEntropy:
    """The bound plus a little cross-entropy: L_vb + lambda L_ce (D3PM, 2107.03006, eq. 5).

    Attributes:
        coefficient: lambda.
    """

    coefficient: float = 0.01
    name: Literal["hybrid-ce"] = "hybrid-ce"
    weighted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 < self.coefficient < math.inf:
            raise ValueError(f"coefficient must be above 0, got {self.coefficient}")

    @property
    def auxiliary(self) -> float:
        """The coefficient."""
        return self.coefficient


AnyWeighting = Elbo | CrossEntropy | HybridCrossEntropy
