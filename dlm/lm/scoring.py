"""Likelihoods of what stands on a canvas, given the rest of it."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser, NotingDenoiser
from dlm.diffusion.likelihood import Likelihood
from dlm.diffusion.process import Process


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text.

    Attributes:
        log_likelihood: An estimate, in nats, of a lower bound of its log-probability, or its very value.
        monte_carlo_se: The standard error of the estimate, in nats, from the random masks; nan with 2 draws, and 0 of
            an exact value and of a bound that has no more masks than there were draws.
        tokens: How many tokens were scored.
        estimates: The independent estimates that `log_likelihood` is the mean of: one with 2 draws and of an exact
            value, else several.
        greedy: Whether greedy decoding writes exactly these tokens; None where that was not asked.
    """

    log_likelihood: float
    monte_carlo_se: float
    tokens: int
    estimates: tuple[float, ...] = ()
    greedy: bool | None = None

    def less(self, other: "Score") -> tuple[float, float]:
        """How much likelier this text is than another.

        Args:
            other: The other's score.

        Returns:
            The difference of the log-likelihoods in nats, and its standard error. That is far smaller than those of
            both together where both were scored under common masks: each estimate is compared with its like.
        """
        difference = self.log_likelihood - other.log_likelihood
        if len(self.estimates) < 2:
            return difference, self.monte_carlo_se + other.monte_carlo_se
        return difference, standard_error([a - b for a, b in zip(self.estimates, other.estimates, strict=True)])


def standard_error(estimates: Sequence[float]) -> float:
    """That of the mean of independent estimates; nan of a single one, and where one is not finite."""
    if len(estimates) < 2 or not all(map(math.isfinite, estimates)):
        return math.nan
    return statistics.stdev(estimates) / math.sqrt(len(estimates))


@dataclass(frozen=True)
class Greedy:
    """How it is found whether greedy decoding, one token at a time, writes what is scored.

    Attributes:
        likelihood: An exact one, which predicts each token once, from those that stand before it when it is written.
        unwritten: Ids that are never written, such as that of unknown characters.
    """

    likelihood: Likelihood
    unwritten: Sequence[int] = ()


@torch.inference_mode()
def score_rows(
    denoiser: Denoiser,
    process: Process,
    estimator: Likelihood,
    x0_BL: Tensor,
    editable_BL: Tensor,
    generators: Sequence[torch.Generator],
    greedy: Greedy | None = None,
) -> list[Score]:
    """Bounds of log p(the editable tokens | the others), or its values, one a row.

    Args:
        denoiser: Predicts the clean tokens.
        process: The forward process.
        estimator: How the bound is estimated.
        x0_BL: Clean ids.
        editable_BL: Which of them are scored; the others are given, or padding.
        generators: One stream a row.
        greedy: How it is found whether they are those of greedy decoding; None where that is not asked.

    Returns:
        A score a row.
    """
    asked, written_B = denoiser, None
    if greedy is not None:
        noting = NotingDenoiser(denoiser, x0_BL, greedy.unwritten)
        if greedy.likelihood == estimator:
            asked = noting  # the calls of the one tell the other
        else:
            greedy.likelihood(noting, process, x0_BL, generators, editable_BL)
    nats_RBL = estimator(asked, process, x0_BL, generators, editable_BL)
    if greedy is not None:
        written_B = ((noting.likeliest_BL == x0_BL) | ~editable_BL).all(1).tolist()
    estimates_BR, exact = (-nats_RBL.sum(2)).T.tolist(), estimator.method(process) == "exact"
    columns = (-nats_RBL.mean(0).sum(1)).tolist(), editable_BL.sum(1).tolist(), estimates_BR
    return [
        Score(nats, 0.0 if exact else standard_error(each), tokens, tuple(each), found)
        for nats, tokens, each, found in zip(*columns, written_B or [None] * len(x0_BL), strict=True)
    ]
