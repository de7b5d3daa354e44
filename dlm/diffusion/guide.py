"""Classifier-free guidance: towards what a text is given, and away from what would be written without it."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.network import NetworkInput

LEAST_LOG_P = -1e30
"""What the second prediction's minus infinity is taken for, so that no token gets the weight of infinity."""


@dataclass(frozen=True)
class Guidance:
    """How far predictions are guided.

    In the convention of LLaDA (2502.09992), log p is (1 + w) log p(x0 | prompt) - w log p(x0 | none) and
    normalised, so that 0 is none. UDLM's gamma (2412.10193) is 1 + w.

    Attributes:
        weight: w, from 0 on.
        late: Whether w is multiplied by the share of the tokens that are revealed: strong guidance while most of them
            are masks makes texts worse (2507.08965).
        negative: The prompt to be guided away from; None for masks in its place.
    """

    weight: float
    late: bool = False
    negative: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight < math.inf:
            raise ValueError(f"guidance must be a number from 0 on, got {self.weight}")


class GuidedDenoiser(Denoiser):
    """A denoiser that is asked twice in one call: about what is written after what is given, and after something else.

    Each row of a call is read beside a second row, whose tokens that are written are the same. So a step has one call
    with twice the rows.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        guidance: Guidance,
        editable_BL: Tensor,
        other_BM: Tensor,
        other_editable_BM: Tensor,
        mask_id: int,
        pad_id: int,
    ) -> None:
        """Wraps a denoiser for one canvas.

        Args:
            denoiser: What predicts; if it keeps rows, it is told of the second ones as B more.
            guidance: How far.
            editable_BL: The positions that are written.
            other_BM: The second rows; what stands at their editable positions does not matter.
            other_editable_BM: The positions that are written there, in each row as many as in the first.
            mask_id: The id of the mask.
            pad_id: What fills up the shorter rows.
        """
        self.denoiser, self.guidance, self.mask_id, self.pad_id = denoiser, guidance, mask_id, pad_id
        self.editable_BL, self.other_BM, self.other_editable_BM = editable_BL, other_BM, other_editable_BM

    def __call__(self, inputs: NetworkInput) -> Tensor:
        """Guided log-probabilities, float64; see `Denoiser`."""
        rows_R = torch.arange(len(inputs.ids_BL)) if inputs.rows_B is None else inputs.rows_B
        editable_RL, other_editable_RM = self.editable_BL[rows_R], self.other_editable_BM[rows_R]
        other_RM = self.other_BM[rows_R].masked_scatter(other_editable_RM, inputs.ids_BL[editable_RL])
        other_wanted_RM = torch.zeros_like(other_editable_RM)
        other_wanted_RM = other_wanted_RM.masked_scatter(other_editable_RM, inputs.wanted_BL[editable_RL])
        width = max(inputs.ids_BL.shape[1], other_RM.shape[1])

        def wide(first_RL: Tensor, second_RM: Tensor, fill: int) -> Tensor:
            both = (nn.functional.pad(each, (0, width - each.shape[1]), value=fill) for each in (first_RL, second_RM))
            return torch.cat([*both])

        doubled = replace(
            inputs,
            ids_BL=wide(inputs.ids_BL, other_RM, self.pad_id),
            wanted_BL=wide(inputs.wanted_BL, other_wanted_RM, 0),
            time_B=inputs.time_B.repeat(2),
            rows_B=torch.cat([rows_R, rows_R + len(self.editable_BL)]),
            padded=None,
        )
        given_NV, other_NV = self.denoiser(doubled).double().chunk(2)
        weight_R = self._weights(inputs.ids_BL, editable_RL)
        weight_N1 = weight_R[inputs.wanted_BL.nonzero()[:, 0]][:, None].to(given_NV.device)
        guided_NV = given_NV + weight_N1 * (given_NV - other_NV.clamp(min=LEAST_LOG_P))
        return guided_NV.where(given_NV > -torch.inf, -torch.inf).log_softmax(-1)

    def _weights(self, ids_RL: Tensor, editable_RL: Tensor) -> Tensor:
        """The weight of each row, float64."""
        if not self.guidance.late:
            return torch.full((len(ids_RL),), self.guidance.weight, dtype=torch.float64)
        masked_RL = (ids_RL == self.mask_id) & editable_RL
        return self.guidance.weight * (1.0 - masked_RL.sum(1).double() / editable_RL.sum(1).clamp(min=1))
