"""Where the bound of a text comes from: by noise level, by position in the row, and token by token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dlm.data.batches import Sequences
from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import position_nats
from dlm.diffusion.noise import counts_suffice
from dlm.diffusion.schedule import noise_levels, time_at
from dlm.evaluate.bootstrap import Ratio, ratio_of
from dlm.evaluate.likelihood import denoiser_of, estimator_of
from dlm.lm import DiffusionLM
from dlm.model.text import pieces

LEVELS = 16
"""Noise levels at which the bound's integrand is measured, in the middle of as many equal parts."""

BUCKETS = 32
"""The most parts of a row whose positions are put together."""


@dataclass(frozen=True)
class LevelTerm:
    """The integrand of the bound at a noise level.

    Attributes:
        level: The noise level, 1 - alpha.
        nats: Nats a token; the area under them is the bound, but for the prior and reconstruction terms.
    """

    level: float
    nats: Ratio


@dataclass(frozen=True)
class PositionTerm:
    """The bound at some positions of a row.

    Attributes:
        first: The first of them, from 0.
        last: The last.
        nats: Nats a token.
    """

    first: int
    last: int
    nats: Ratio


@dataclass(frozen=True)
class TokenTerm:
    """What one token adds to the bound of its text.

    Attributes:
        text: The token's text.
        nats: Its nats; of a bound it is an estimate.
    """

    text: str
    nats: float


@torch.inference_mode()
def by_level(
    lm: DiffusionLM,
    sequences: Sequences,
    rows: Sequence[int],
    *,
    levels: int = LEVELS,
    batch_size: int = 32,
    seed: int = 0,
) -> tuple[LevelTerm, ...]:
    """The integrand of the continuous-time bound, E[sum of `nats_per_level`] over tokens, at even noise levels.

    Where masks alone tell the level, it is the mean cross-entropy of a masked token: as the mean over those that are
    masked, which has no error from their number.

    Args:
        lm: The model.
        sequences: The corpus.
        rows: Which of its sequences.
        levels: How many noise levels.
        batch_size: Sequences a forward.
        seed: The noise follows from it, and is that of the same rows for every model.

    Returns:
        The terms; none of a model that is not read in any order, or whose bound is infinite in continuous time.
    """
    if not lm.formulation.readings.any_order or lm.formulation.parameterization == "mixture":
        return ()
    lm.model.eval()
    process = lm.process
    masks = counts_suffice(process.noise, timed=lm.formulation.timed)
    start, end = noise_levels(process.schedule)
    found = []
    for number in range(levels):
        share = (number + 0.5) / levels
        t = time_at(process.schedule, torch.tensor([share], dtype=torch.float64))
        level = start + (end - start) * share
        above: list[float] = []
        below: list[float] = []
        for at in range(0, len(rows), batch_size):
            part = rows[at : at + batch_size]
            batch = sequences.batch(part)
            x0_BL, scored_BL = (x.to(lm.arithmetic_device) for x in (batch.x0_BL, batch.loss_mask_BL))
            t_B = t.expand(len(part))
            streams = [generator(seed, "level", number, row) for row in part]
            xt_BL = process.corrupt(x0_BL, t_B, streams, scored_BL)
            nats_BL = position_nats(denoiser_of(lm, sequences, batch), process, x0_BL, xt_BL, t_B, None, scored_BL)
            counted_BL = process.to_predict(xt_BL) & scored_BL if masks else scored_BL
            above += (nats_BL.sum(1) * (level if masks else 1.0)).tolist()
            below += counted_BL.sum(1).tolist()
        found.append(LevelTerm(level, ratio_of(above, below, seed)))
    return tuple(found)


@torch.inference_mode()
def by_position(
    lm: DiffusionLM,
    sequences: Sequences,
    rows: Sequence[int],
    *,
    reading: str,
    draws: int = 16,
    batch_size: int = 32,
    seed: int = 0,
) -> tuple[PositionTerm, ...]:
    """What the tokens at each position of a row add to the bound, several positions together in a long row.

    Args:
        lm: The model.
        sequences: The corpus.
        rows: Which of its sequences.
        reading: How the model is read.
        draws: Noisy copies of each sequence.
        batch_size: Sequences a forward.
        seed: Decides the noise.

    Returns:
        The terms. Their mean over all tokens is the bound.
    """
    lm.model.eval()
    estimator = estimator_of(lm, draws, None, reading)
    width = -(-sequences.length // BUCKETS)
    starts = range(0, sequences.length, width)
    above = torch.zeros(len(rows), len(starts), dtype=torch.float64)
    below = torch.zeros_like(above)
    bucket_L = torch.arange(sequences.length) // width
    for at in range(0, len(rows), batch_size):
        part = rows[at : at + batch_size]
        batch = sequences.batch(part)
        x0_BL, scored_BL = (x.to(lm.arithmetic_device) for x in (batch.x0_BL, batch.loss_mask_BL))
        streams = [generator(seed, "evaluate", row) for row in part]
        terms_RBL = estimator(denoiser_of(lm, sequences, batch), lm.process, x0_BL, streams, scored_BL)
        above[at : at + len(part)].index_add_(1, bucket_L, terms_RBL.mean(0).cpu())
        below[at : at + len(part)].index_add_(1, bucket_L, scored_BL.double().cpu())
    return tuple(
        PositionTerm(start, min(start + width, sequences.length) - 1, ratio_of(a.tolist(), b.tolist(), seed))
        for start, a, b in zip(starts, above.T, below.T, strict=True)
        if b.any()
    )


@torch.inference_mode()
def by_token(
    lm: DiffusionLM, sequences: Sequences, rows: Sequence[int], *, reading: str, draws: int = 64, seed: int = 0
) -> tuple[TokenTerm, ...]:
    """What each scored token of some rows adds to the bound.

    Args:
        lm: The model.
        sequences: The corpus.
        rows: Which of its sequences; they are scored side by side.
        reading: How the model is read.
        draws: Noisy copies; many, as a single token's term is a rough number.
        seed: Decides the noise.

    Returns:
        The tokens row by row. Their sum is the bound of the rows.
    """
    lm.model.eval()
    estimator = estimator_of(lm, draws, None, reading)
    batch = sequences.batch(rows)
    x0_BL, scored_BL = (x.to(lm.arithmetic_device) for x in (batch.x0_BL, batch.loss_mask_BL))
    streams = [generator(seed, "evaluate", row) for row in rows]
    nats_BL = estimator(denoiser_of(lm, sequences, batch), lm.process, x0_BL, streams, scored_BL).mean(0).cpu()
    ids = batch.x0_BL[batch.loss_mask_BL].tolist()
    terms = zip(pieces(lm.tokenizer, ids), nats_BL[batch.loss_mask_BL].tolist(), strict=True)
    return tuple(TokenTerm(text, nats) for text, nats in terms)
