"""The nucleus of top-p sampling (1904.09751), found by adding weights up in bins: only one bin of tokens is sorted."""

import torch
from torch import Tensor

BINS_AN_OCTAVE = 64
OCTAVES = 32
"""All weights below 2**-32 share the last bin."""

BINS = BINS_AN_OCTAVE * OCTAVES
"""A vocabulary of no more tokens than this is sorted."""

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
    if weights_NV.shape[1] <= BINS:
        return _cut_(weights_NV, weights_NV.new_zeros(()), p * weights_NV.sum(-1, keepdim=True))
    bin_NV = _bins(weights_NV)
    mass_NH = weights_NV.new_zeros(len(weights_NV), BINS + 1).scatter_add_(1, bin_NV, weights_NV).cumsum_(-1)
    target_N1 = p * mass_NH[:, -1:]
    last_N1 = torch.searchsorted(mass_NH, target_N1).clamp_(max=BINS)  # the bin in which p is reached
    before_N1 = mass_NH.gather(1, last_N1 - 1)
    row_S, id_S = (bin_NV == last_N1).nonzero(as_tuple=True)
    if 2 * len(row_S) > weights_NV.numel():  # nearly equal weights: most of the vocabulary is in this bin
        return _cut_(weights_NV, weights_NV.new_zeros(()), target_N1)

    # The S tokens of that bin stand in a matrix of M columns, with zeros behind them.
    count_N = row_S.bincount(minlength=len(weights_NV))
    column_S = torch.arange(len(row_S), device=row_S.device) - (count_N.cumsum(0) - count_N)[row_S]
    inside_NM = weights_NV.new_zeros(len(weights_NV), int(count_N.max()) if len(count_N) else 0)
    inside_NM[row_S, column_S] = weights_NV[row_S, id_S]
    _cut_(inside_NM, before_N1, target_N1)
    weights_NV.mul_(bin_NV <= last_N1)  # torch.where is slower: it branches
    weights_NV[row_S, id_S] = inside_NM[row_S, column_S]
    return weights_NV


def _cut_(weights_NM: Tensor, before: Tensor, target_N1: Tensor) -> Tensor:
    """Sorts the weights, and keeps those up to the one with which `before` and their sum reach the target."""
    ordered = weights_NM.sort(dim=-1, descending=True, stable=True)
    kept_N1 = (before + ordered.values.cumsum(-1) < target_N1).sum(-1, keepdim=True) + 1
    ordered.values.mul_(torch.arange(weights_NM.shape[1], device=weights_NM.device) < kept_N1)
    return weights_NM.scatter_(1, ordered.indices, ordered.values)


def _bins(weights_NV: Tensor) -> Tensor:
    """The bin of each weight, 1 for the heaviest: the bits of positive floats are in the order of the floats."""
    bits_NV = weights_NV.view(torch.int64)
    return torch.sub(BITS_OF_ONE + (1 << SHIFT), bits_NV).bitwise_right_shift_(SHIFT).clamp_(1, BINS)
