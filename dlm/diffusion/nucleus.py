"""The nucleus of top-p sampling (1904.09751), found by counting weights in bins: only one bin of tokens is sorted."""

import torch
from torch import Tensor

BINS_AN_OCTAVE = 64
OCTAVES = 32
"""All weights below 2**-32 share the last bin."""

BINS = BINS_AN_OCTAVE * OCTAVES
"""A vocabulary of no more tokens than this is one bin."""

MANTISSA_BITS = 52
SHIFT = MANTISSA_BITS - (BINS_AN_OCTAVE - 1).bit_length()
BITS_OF_ONE = 1023 << MANTISSA_BITS


def keep_nucleus_(weights_NV: Tensor, p: float) -> Tensor:
    """Keeps the fewest tokens of each row that together reach the share p of the row's weight.

    The heaviest tokens come first, and of equal ones those of the lowest ids. The token that reaches p is kept too.
    A sum that equals p but for the rounding of float64 may fall on either side.

    Args:
        weights_NV: float64 weights in [0, 1], the largest of each row 1; they are overwritten.
        p: The share to reach, in (0, 1).

    Returns:
        `weights_NV`, now 0 for every token outside of the nucleus.
    """
    rows, vocabulary = weights_NV.shape
    bins = BINS if vocabulary > BINS else 1
    bin_NV = _bins(weights_NV, bins)
    mass_NH = weights_NV.new_zeros(rows, bins + 1).scatter_add_(1, bin_NV, weights_NV).cumsum_(-1)
    target_N1 = p * mass_NH[:, -1:]
    last_N1 = torch.searchsorted(mass_NH, target_N1).clamp_(max=bins)  # the bin in which p is reached
    before_N1 = mass_NH.gather(1, last_N1 - 1)

    # The S tokens of that bin are sorted: their weights stand in a matrix of M columns, with zeros behind them.
    row_S, id_S = (bin_NV == last_N1).nonzero(as_tuple=True)
    count_N = row_S.bincount(minlength=rows)
    column_S = torch.arange(len(row_S), device=row_S.device) - (count_N.cumsum(0) - count_N)[row_S]
    inside_NM = weights_NV.new_zeros(rows, int(count_N.max()) if rows else 0)
    inside_NM[row_S, column_S] = weights_NV[row_S, id_S]
    ordered = inside_NM.sort(dim=-1, descending=True, stable=True)
    kept_N = ((before_N1 + ordered.values.cumsum(-1)) < target_N1).sum(-1) + 1
    beyond_NM = torch.arange(inside_NM.shape[1], device=kept_N.device) >= kept_N[:, None]
    beyond_S = torch.empty_like(beyond_NM).scatter_(1, ordered.indices, beyond_NM)[row_S, column_S]

    weights_NV.mul_(bin_NV <= last_N1)  # torch.where is slower: it branches
    weights_NV[row_S[beyond_S], id_S[beyond_S]] = 0.0
    return weights_NV


def _bins(weights_NV: Tensor, bins: int) -> Tensor:
    """The bin of each weight, 1 for the heaviest: the bits of positive floats are in the order of the floats."""
    bits_NV = weights_NV.view(torch.int64)
    return torch.sub(BITS_OF_ONE + (1 << SHIFT), bits_NV).bitwise_right_shift_(SHIFT).clamp_(1, bins)
