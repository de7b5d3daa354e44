"""Loss scaling, which keeps small gradients above the least number of float16 (1710.03740, section 3.2).

torch's own scaler skips an optimizer whose gradients are not finite. Here the global gradient norm decides for all
optimizers and all processes at once, so that no step is taken by half of the parameters, sharded or not.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dlm.diffusion.network import Network, NetworkInput, Reduced, Reducer
from dlm.errors import TrainingError

PATIENCE = 2000
"""Steps without an overflow after which the scale is doubled, as in torch."""

LEAST = 2.0**-14
"""The least scale of the mean loss: gradients that overflow there are larger than 10**9, and the run has diverged."""


@dataclass(frozen=True)
class LossScale:
    """The factor of the mean loss in the backward pass; half of it after each overflow, and doubled again later.

    Attributes:
        value: The factor, a power of two, so that it is multiplied and divided without rounding.
        steps: Steps since it last changed.
    """

    value: float = 2.0**16
    steps: int = 0

    def after(self, finite: bool) -> "LossScale":
        """The scale after a step whose gradients were finite, or were not."""
        if not finite:
            return LossScale(self.value / 2.0)
        return LossScale(self.value * 2.0) if self.steps + 1 == PATIENCE else LossScale(self.value, self.steps + 1)

    def of_sum(self, tokens: int) -> float:
        """The factor of a loss that is a sum.

        Args:
            tokens: At most so many tokens are summed over.

        Returns:
            The scale over that number, rounded up to a power of two.
        """
        return self.value / 2.0 ** (tokens - 1).bit_length()


def rescaled(
    scale: LossScale | None, norm: Tensor, step: int, last: Callable[[], Path | None]
) -> tuple[LossScale | None, bool]:
    """The scale of the next step's loss, and whether this step overflowed.

    Args:
        scale: The scale of this step's loss; None without scaling, where nothing is skipped.
        norm: The norm of its gradients.
        step: The step, for the message.
        last: Gives the last good checkpoint, for the message.

    Returns:
        The next scale, and whether the step is to be skipped.

    Raises:
        TrainingError: The gradients overflow at every scale.
    """
    if scale is None:
        return None, False
    finite = math.isfinite(norm.item())  # a GPU is waited for: nothing may be changed by what overflowed
    scale = scale.after(finite)
    if scale.value < LEAST:
        raise TrainingError(
            f"the gradients overflow in fp16 at every scale of the loss, at step {step}; the last good checkpoint "
            f"is {last() or 'none yet'}; train.precision fp32, or a lower optim.lr, may help"
        )
    return scale, not finite


def scaled(network: Network, scale: Tensor) -> Network:
    """A network whose totals are scaled where they are made, before the head takes its gradient chunk by chunk.

    Args:
        network: Gives logits.
        scale: The factor, a scalar; it may be changed in place between steps.

    Returns:
        The network. The values of single rows are not scaled.
    """

    def call(inputs: NetworkInput, reducer: Reducer | None = None) -> Tensor | Reduced:
        if reducer is None:
            return network(inputs)

        def larger(logits_CV: Tensor, rows: slice) -> Reduced:
            total, values_C = reducer(logits_CV, rows)
            return Reduced(total * scale, values_C)

        return network(inputs, larger)

    return call  # type: ignore[return-value]  # a closure cannot say that a reducer decides what is returned
