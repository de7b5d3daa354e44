"""An average of the weights over the last part of the run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def power_of_width(width: float) -> float:
    """The exponent of a power-function average of a given relative width (Karras et al., 2312.02696, section 3.1).

    The average weights step tau of t in proportion to tau^gamma; its standard deviation relative to t is
    width = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).

    Args:
        width: Between 0 and about 0.28; 0.05 averages over roughly the last tenth of the run so far.

    Returns:
        gamma, at least 0.
    """
    inverse = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(max(roots.real[np.isreal(roots)].max(), 0.0))


class Ema:
    """Weights averaged in float32, over a window that grows with the run.

    Attributes:
        weights: The averages, by name of the trainable parameter.
    """

    def __init__(self, model: nn.Module, width: float) -> None:
        """Starts from the model's weights.

        Args:
            model: The model that is trained.
            width: See `power_of_width`.
        """
        self._power = power_of_width(width)
        self.weights = {name: p.detach().clone().float() for name, p in trainable(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Adds the weights after step `step`, with beta = (1 - 1/step)^(gamma + 1) (2312.02696, section 3.1)."""
        beta = (1.0 - 1.0 / step) ** (self._power + 1.0)
        current = [p.detach().float() for p in trainable(model).values()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1.0 - beta)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Puts the averages into the model, and restores its own weights at the end."""
        own = {name: p.detach().clone() for name, p in trainable(model).items()}
        copy_weights(self.weights, model)
        try:
            yield
        finally:
            copy_weights(own, model)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def copy_weights(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copies weights into the model's trainable parameters, by name."""
    for name, parameter in trainable(model).items():
        parameter.copy_(weights[name])
