"""What is left clean in training, so that a model learns to go on from a text and to fill its holes."""

from collections.abc import Sequence

import torch
from torch import Tensor


def editable_part(editable_BL: Tensor, share: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Takes a random prefix, suffix or both out of some sequences; what is taken out is never corrupted.

    A chosen sequence keeps a prefix, a suffix or both with equal chances. A prefix or a suffix takes one cut, both
    take two, uniform over the gaps between its n tokens. At least one token may still be corrupted.

    Args:
        editable_BL: The tokens that may be corrupted.
        share: The fraction of sequences that keep clean context.
        generators: One stream a sequence.

    Returns:
        The tokens that may still be corrupted, a subset of `editable_BL`.
    """
    draws_B4 = torch.stack([torch.rand(4, generator=g, dtype=torch.float64) for g in generators]).to(editable_BL.device)
    rank_BL = editable_BL.cumsum(1)  # from 1 at a row's first token
    length_B = editable_BL.sum(1)
    first_B, second_B = ((draws_B4[:, i] * length_B).long() for i in (2, 3))  # 0 .. n - 1
    low_B, high_B = torch.minimum(first_B, second_B), torch.maximum(first_B, second_B) + 1
    kind_B = (draws_B4[:, 1] * 3).long()  # 0 keeps a prefix, 1 a suffix, 2 both
    chosen_B = draws_B4[:, 0] < share
    start_B = torch.where(kind_B == 1, 0, torch.where(kind_B == 0, first_B, low_B))
    stop_B = torch.where(kind_B == 0, length_B, torch.where(kind_B == 1, first_B + 1, high_B))
    inside_BL = (rank_BL > start_B[:, None]) & (rank_BL <= stop_B[:, None])
    return editable_BL & (inside_BL | ~chosen_B[:, None])
