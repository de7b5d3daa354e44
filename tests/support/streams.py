"""Denoisers of plain rows, asked by patterns: each prediction from what its pattern shows, and from nothing else."""

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.network import NetworkInput
from tests.support.networks import ask


class Shown(Denoiser):
    """A denoiser of rows of L tokens, shown for each prediction the tokens that it sees, and masks for all others."""

    def __init__(self, denoiser: Denoiser, mask_id: int) -> None:
        self.denoiser, self.mask_id = denoiser, mask_id

    def __call__(self, inputs: NetworkInput) -> Tensor:
        assert inputs.attention is not None and not isinstance(inputs.attention, Tensor)
        seen_BNN = inputs.attention.dense(inputs.ids_BL.shape[1]).expand(len(inputs.ids_BL), -1, -1)
        predicts_N, holds_N = places(inputs)
        wanted = inputs.wanted_BL.nonzero().tolist()
        if not wanted:
            return torch.empty(0, self.mask_id + 1, dtype=torch.float64)
        length = int(predicts_N.max()) + 1
        rows_ML = torch.full((len(wanted), length), self.mask_id)
        for row_L, (b, n) in zip(rows_ML, wanted, strict=True):
            for m in seen_BNN[b, n].nonzero()[:, 0].tolist():
                if holds_N[m] >= 0 and inputs.ids_BL[b, m] != self.mask_id:
                    row_L[holds_N[m]] = inputs.ids_BL[b, m]
        target_M = predicts_N[[n for _, n in wanted]]
        return ask(self.denoiser, rows_ML, None, torch.nn.functional.one_hot(target_M, length).bool())


def places(inputs: NetworkInput) -> tuple[Tensor, Tensor]:
    """Which token of the text each token of a row predicts, and which one it holds; -1 for what stands before."""
    width = inputs.ids_BL.shape[1]
    if inputs.positions is None:
        return torch.arange(width), torch.arange(width) - 1
    place_L = torch.arange(width // 2)
    return place_L.repeat(2), torch.cat([place_L - 1, place_L])
