"""Every random number of a batch, one stream a sequence.

A sequence's stream follows from integers alone (a seed, a step, its position in the global batch), so a
result does not depend on which sequences share a batch, on how many processes share a step, or on what
was drawn before.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator that is a pure function of its key, such as (seed, "train", step, position)."""
    return torch.Generator().manual_seed(_seed(key))


def _seed(key: tuple[int | str, ...]) -> int:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Aligned(torch.Generator):
    """The stream of one of several rows that are compared, so that what they have in common gets the same noise.

    Each row draws for as many positions as the longest has, and takes the numbers of its own. So all streams with one
    key go on in step, whatever the rows' lengths.

    Attributes:
        place_N: Which of the numbers belongs to each of the row's own positions; no two are the same.
        width: How many numbers are drawn.
    """

    place_N: Tensor
    width: int

    @classmethod
    def of(cls, key: tuple[int | str, ...], places: Sequence[int], width: int) -> Self:
        """The stream of a row.

        Args:
            key: What its numbers follow from; the same for all rows that are compared.
            places: Which number each of its positions takes; below `width`.
            width: How many are drawn.

        Returns:
            The stream; where the places are all of the numbers in their order, that of `generator`.
        """
        stream = cls()
        stream.manual_seed(_seed(key))
        stream.place_N, stream.width = torch.tensor(places, dtype=torch.long), width
        return stream


@dataclass(frozen=True)
class Draws:
    """The randomness of a batch.

    Attributes:
        u_B: One number in [0, 1) a sequence, float64: the quantile of its noise level. Stratified draws
            spread these evenly over the global batch.
        generators: One generator a sequence, for its mask.
        shared: One generator for what all sequences of the global batch have in common.
    """

    u_B: Tensor
    generators: Sequence[torch.Generator]
    shared: torch.Generator = field(default_factory=lambda: generator("shared"))


def stratified_draws(key: tuple[int | str, ...], positions: Iterable[int], total: int) -> Draws:
    """Noise quantiles on an even grid over the global batch, moved by one random shift: u_b = frac(u + b / total).

    Args:
        key: What the draws depend on besides the position, such as (seed, "train", step).
        positions: Positions in the global batch of the sequences wanted here.
        total: The size of the global batch.

    Returns:
        Draws for the sequences at `positions`, the same whichever others are asked for.
    """
    positions = list(positions)
    shift = torch.rand((), generator=generator(*key, "shift"), dtype=torch.float64)
    u_B = (shift + torch.tensor(positions, dtype=torch.float64) / total) % 1.0
    return Draws(u_B, [generator(*key, position) for position in positions], generator(*key, "shared"))


def uniforms(generators: Sequence[torch.Generator], counts: Sequence[int]) -> list[Tensor]:
    """For each sequence, `counts[b]` float64 numbers in [0, 1) from its own stream; float32 would cut the tails."""
    return [torch.rand(n, generator=g, dtype=torch.float64) for g, n in zip(generators, counts, strict=True)]


def inverse_cdf_(weights_NV: Tensor, u_N: Tensor) -> Tensor:
    """Draws one of V outcomes a row, in proportion to its weights.

    Args:
        weights_NV: Weights, float64, at least one of each row above zero; overwritten.
        u_N: A float64 number in [0, 1) for each row.

    Returns:
        The first outcome whose cumulative weight is above u times the total, shape (N,).
    """
    cdf_NV = weights_NV.cumsum_(-1)
    total_N1 = cdf_NV[:, -1:]
    # Strictly below the total, so that the first larger entry exists and has a weight of its own.
    target_N1 = torch.minimum(u_N[:, None] * total_N1, total_N1.nextafter(torch.zeros_like(total_N1)))
    return torch.searchsorted(cdf_NV, target_N1, right=True)[:, 0]


def random_scores(generators: Sequence[torch.Generator], candidates_BL: Tensor) -> Tensor:
    """A float64 score in [0, 1) a position of `candidates_BL`, -1 elsewhere; as many draws as there are positions.

    Each row draws once for each of its own positions, so padding changes nothing; see `Aligned` for rows in step.
    """
    where = candidates_BL.cpu()
    scores_BL = torch.full(where.shape, -1.0, dtype=torch.float64)
    counts = where.sum(1).tolist()
    widths = [g.width if isinstance(g, Aligned) else n for g, n in zip(generators, counts, strict=True)]
    drawn = [
        u_N[g.place_N] if isinstance(g, Aligned) else u_N
        for g, u_N in zip(generators, uniforms(generators, widths), strict=True)
    ]
    scores_BL[where] = torch.cat(drawn) if drawn else scores_BL.new_empty(0)
    return scores_BL.to(candidates_BL.device)


def largest(scores_BL: Tensor, count_B: Tensor) -> Tensor:
    """Selects each row's `count_B` largest scores; among equals the leftmost.

    Args:
        scores_BL: Scores, any real dtype.
        count_B: How many to select, at most L.

    Returns:
        A boolean selection, shape (B, L).
    """
    order_BL = scores_BL.argsort(dim=1, descending=True, stable=True)
    rank_L = torch.arange(scores_BL.shape[1], device=scores_BL.device)
    chosen_BL = rank_L < count_B.to(scores_BL.device)[:, None]
    return torch.zeros_like(chosen_BL).scatter(1, order_BL, chosen_BL)


def random_subset(generators: Sequence[torch.Generator], candidates_BL: Tensor, count_B: Tensor) -> Tensor:
    """A uniformly random subset of `count_B` of each row's positions in `candidates_BL`, as a boolean selection."""
    return largest(random_scores(generators, candidates_BL), count_B)
