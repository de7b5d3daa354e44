"""Likelihoods of what stands on a canvas, given the rest of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.likelihood import Likelihood
from dlm.diffusion.process import Process


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text.

    Attributes:
        log_likelihood: An estimate, in nats, of a lower bound of its log-probability, or its very value.
        monte_carlo_se: The standard error of the estimate, in nats, from the random masks; nan with 2 draws, and 0 of
            an exact value.
        tokens: How many tokens were scored.
    """

    log_likelihood: float
    monte_carlo_se: float
    tokens: int


@torch.inference_mode()
def score_rows(
    denoiser: Denoiser,
    process: Process,
    estimator: Likelihood,
    x0_BL: Tensor,
    editable_BL: Tensor,
    generators: Sequence[torch.Generator],
) -> list[Score]:
    """Bounds of log p(the editable tokens | the others), or its values, one a row.

    Args:
        denoiser: Predicts the clean tokens.
        process: The forward process.
        estimator: How the bound is estimated.
        x0_BL: Clean ids.
        editable_BL: Which of them are scored; the others are given, or padding.
        generators: One stream a row.

    Returns:
        A score a row.
    """
    nats_RBL = estimator(denoiser, process, x0_BL, generators, editable_BL)
    one_B, *other_B = nats_RBL.sum(2)
    if estimator.method(process) == "exact":
        error_B = torch.zeros_like(one_B)
    else:
        error_B = (one_B - other_B[0]).abs() / 2 if other_B else torch.full_like(one_B, math.nan)
    columns = nats_RBL.mean(0).sum(1).tolist(), error_B.tolist(), editable_BL.sum(1).tolist()
    return [Score(-nats, error, tokens) for nats, error, tokens in zip(*columns, strict=True)]
