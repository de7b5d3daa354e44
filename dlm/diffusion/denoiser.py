"""Denoisers: what predicts the clean tokens of a noisy text."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(xt_BL, t_B, select_BL) -> logits_NV: any network, its vocabulary projected on the selected rows alone."""


class Denoiser(Protocol):
    """A distribution over clean tokens at each selected position."""

    def __call__(self, xt_BL: Tensor, t_B: Tensor, select_BL: Tensor) -> Tensor:
        """Predicts the clean token at the selected positions.

        Args:
            xt_BL: Noisy ids.
            t_B: The noise level of each sequence in [0, 1]; a time-free denoiser ignores it.
            select_BL: Boolean, the N positions wanted, counted row by row.

        Returns:
            Log-probabilities log_p0_NV, float32 or wider, each row normalised.
        """
        ...


class Subs:
    """The SUBS parameterization of a network (MDLM, 2406.07524, section 3.2.3).

    The mask is never predicted: its logit is minus infinity. Visible tokens are carried over, which here
    means that only masked positions are ever selected. Ids that no text can hold, such as padding, are
    refused in the same way, so the bound is over the K symbols that text is made of.
    """

    def __init__(self, network: Network, never: Sequence[int]) -> None:
        """Wraps a network.

        Args:
            network: Gives logits at the selected positions.
            never: The ids that are never predicted, the mask among them.
        """
        self.network = network
        self._never = torch.tensor(sorted(never), dtype=torch.long)

    def __call__(self, xt_BL: Tensor, t_B: Tensor, select_BL: Tensor) -> Tensor:
        """Log-probabilities log_p0_NV in float32; see `Denoiser`."""
        logits_NV = self.network(xt_BL, t_B, select_BL).float()
        if self._never.device != logits_NV.device:
            self._never = self._never.to(logits_NV.device)
        return logits_NV.index_fill(-1, self._never, -torch.inf).log_softmax(-1)
