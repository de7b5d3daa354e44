"""Bounds on, and exact values of, a text's negative log-likelihood under a diffusion model, in nats."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from dlm.diffusion.bound import (
    LEVEL_POWER,
    cross_entropy,
    nats_per_level,
    prior_and_reconstruction_nats,
    step_nats,
)
from dlm.diffusion.counts import Blocked, Copies, count_nelbo
from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import largest
from dlm.diffusion.network import NetworkInput, Reduced
from dlm.diffusion.noise import counts_suffice
from dlm.diffusion.process import Process
from dlm.diffusion.schedule import noise_levels, time_at
from dlm.diffusion.unmask import Order, Predictions


class Likelihood(Protocol):
    """What computes or bounds -log p of texts.

    Attributes:
        steps: T of the chain whose bound it is; None for continuous time, or for none.
    """

    @property
    def steps(self) -> int | None:
        """T of the chain, or None."""
        ...

    def method(self, process: Process) -> Literal["exact", "counts", "times"]:
        """What it takes the mean of: counts of masks, times, or nothing, as it is exact."""
        ...

    def __call__(
        self,
        denoiser: Denoiser,
        process: Process,
        x0_BL: Tensor,
        generators: Sequence[torch.Generator],
        scored_BL: Tensor | None = None,
    ) -> Tensor:
        """Upper bounds of -log p, or its value.

        Args:
            denoiser: Predicts the clean tokens.
            process: The forward process.
            x0_BL: Clean ids.
            generators: One stream a sequence.
            scored_BL: The tokens that are scored; the others are context, or padding. All of them by default.

        Returns:
            Contributions of each token to each of R independent estimates, in nats, float64, shape (R, B, L), zero
            outside `scored_BL`. Where R is above 1, their differences show the Monte-Carlo error; they are all the
            same where there is none. The bound is the mean over R of the sum over L.
        """
        ...


@dataclass(frozen=True)
class Estimator:
    """How the bound is estimated.

    Attributes:
        draws: How many noisy copies of each sequence, an even number; exact counts add the fully masked one.
        steps: T, for the bound of a chain of that many steps; None for continuous time.
        timed: Whether the denoiser takes the time, so that it cannot be integrated out.
        replicates: The most independent estimates; each has at least two of the copies.
    """

    draws: int = 16
    steps: int | None = None
    timed: bool = False
    replicates: int = 2

    def __post_init__(self) -> None:
        Copies(self.draws, self.replicates)

    def method(self, process: Process) -> Literal["counts", "times"]:
        """Counts of masks where they suffice; see `Likelihood`."""
        return "counts" if counts_suffice(process.noise, timed=self.timed) else "times"

    def __call__(
        self,
        denoiser: Denoiser,
        process: Process,
        x0_BL: Tensor,
        generators: Sequence[torch.Generator],
        scored_BL: Tensor | None = None,
    ) -> Tensor:
        """Upper bounds, by the estimator of least variance that process and denoiser allow; see `Likelihood`."""
        scored_BL = torch.ones_like(x0_BL, dtype=torch.bool) if scored_BL is None else scored_BL
        estimate = exact_count_nelbo if self.method(process) == "counts" else timed_nelbo
        inner_RBL = estimate(denoiser, process, x0_BL, self.draws, generators, scored_BL, self.steps, self.replicates)
        return inner_RBL + prior_and_reconstruction_nats(process, x0_BL) * scored_BL


def exact_count_nelbo(
    denoiser: Denoiser,
    process: Process,
    x0_BL: Tensor,
    draws: int,
    generators: Sequence[torch.Generator],
    scored_BL: Tensor,
    steps: int | None = None,
    replicates: int = 2,
) -> Tensor:
    """The any-order bound of absorbing noise; see `count_nelbo`. The prior and reconstruction terms are not in it.

    Args:
        denoiser: Predicts the clean tokens; must not depend on time.
        process: Gives the mask and the schedule.
        x0_BL: Clean ids.
        draws: How many masked copies of each sequence are scored besides the fully masked one; even.
        generators: One stream a sequence.
        scored_BL: The tokens that are scored.
        steps: T; None for continuous time.
        replicates: R, the most independent estimates.

    Returns:
        As `Likelihood`.
    """

    def nats(masked_BL: Tensor) -> Tensor:
        inputs = NetworkInput(x0_BL.masked_fill(masked_BL, process.mask_id), masked_BL, masked_BL.double().mean(1))
        return predicted_nats(denoiser, inputs, x0_BL, masked_BL)

    whole = Blocked(torch.zeros_like(x0_BL), scored_BL)
    return count_nelbo(nats, whole, process.schedule, Copies(draws, replicates), generators, steps)


def timed_nelbo(
    denoiser: Denoiser,
    process: Process,
    x0_BL: Tensor,
    draws: int,
    generators: Sequence[torch.Generator],
    scored_BL: Tensor,
    steps: int | None = None,
    replicates: int = 2,
) -> Tensor:
    """The bound of any noise, at stratified times; the prior and reconstruction terms are not in it.

    In continuous time the integral of `nats_per_level` over the noise level, on a chain of T steps the sum of
    `step_nats`. Even levels would have infinite variance; here u is even on a grid with one random shift, and
    the level is u to the power of `LEVEL_POWER`.

    Args:
        denoiser: Predicts the clean tokens; may depend on time.
        process: The forward process.
        x0_BL: Clean ids.
        draws: How many noisy copies of each sequence are scored.
        generators: One stream a sequence.
        scored_BL: The tokens that are scored.
        steps: T; None for continuous time.
        replicates: R, the most independent estimates.

    Returns:
        As `Likelihood`.
    """
    shift_RB = Copies(draws, replicates).shifts(generators)
    start, end = noise_levels(process.schedule)
    total_RBL = torch.zeros((len(shift_RB), *x0_BL.shape), dtype=torch.float64, device=x0_BL.device)
    for r, shift_B in enumerate(shift_RB):
        size = len(range(r, draws, len(shift_RB)))
        for j in range(size):
            u_B = (j + shift_B) / size
            s_B = None
            if steps is None:
                t_B = time_at(process.schedule, u_B**LEVEL_POWER)
                density_B = 1.0 / (LEVEL_POWER * u_B ** (LEVEL_POWER - 1.0) * (end - start))
            else:
                index_B = (u_B**LEVEL_POWER * steps).floor()
                s_B, t_B = index_B / steps, (index_B + 1.0) / steps
                density_B = t_B ** (1.0 / LEVEL_POWER) - s_B ** (1.0 / LEVEL_POWER)
            xt_BL = process.corrupt(x0_BL, t_B, generators, scored_BL)
            nats_BL = position_nats(denoiser, process, x0_BL, xt_BL, t_B, s_B, scored_BL)
            total_RBL[r] += nats_BL / (size * density_B.to(nats_BL.device)[:, None])
    return total_RBL


def grid_nelbo(
    denoiser: Denoiser,
    process: Process,
    x0_BL: Tensor,
    t_BD: Tensor,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """The continuous-time bound, estimated at given times, with the prior and reconstruction terms.

    NELBO = int_0^1 -alpha'(t) E[sum of `nats_per_level`] dt; for absorbing noise -alpha'(t)/(1 - alpha(t)) times
    the masked tokens' cross-entropy (MDLM, 2406.07524, eq. 11).

    Args:
        denoiser: Predicts the clean tokens.
        process: The forward process.
        x0_BL: Clean ids.
        t_BD: D times in (0, 1) for each sequence: independent, or stratified.
        generators: One stream a sequence.

    Returns:
        One estimate a sequence and draw, in nats, float64, shape (B, D).
    """
    terms = []
    for t_B in t_BD.double().unbind(1):
        xt_BL = process.corrupt(x0_BL, t_B, generators)
        nats_BL = position_nats(denoiser, process, x0_BL, xt_BL, t_B)
        terms.append(-process.schedule.alpha_prime(t_B).to(x0_BL.device) * nats_BL.sum(1))
    return torch.stack(terms, dim=1) + prior_and_reconstruction_nats(process, x0_BL).sum(1, keepdim=True)


def position_nats(
    denoiser: Denoiser,
    process: Process,
    x0_BL: Tensor,
    xt_BL: Tensor,
    t_B: Tensor,
    s_B: Tensor | None = None,
    scored_BL: Tensor | None = None,
) -> Tensor:
    """The bound's term at every position of one noisy copy; zero where nothing is left to predict.

    Args:
        denoiser: Predicts the clean tokens.
        process: The forward process.
        x0_BL: Clean ids.
        xt_BL: Noisy ids.
        t_B: The time of each sequence.
        s_B: The time one step before, for a chain of steps; None for continuous time.
        scored_BL: The tokens that are scored; all of them by default.

    Returns:
        Nats, by the noise level in continuous time, float64, shape (B, L).
    """
    select_BL = process.to_predict(xt_BL)
    if scored_BL is not None:
        select_BL = select_BL & scored_BL
    nats_BL = torch.zeros(x0_BL.shape, dtype=torch.float64, device=x0_BL.device)
    inputs = NetworkInput(xt_BL, select_BL, t_B.to(x0_BL.device))
    x0_N, z_N, t_N = x0_BL[select_BL], xt_BL[select_BL], inputs.of_wanted(t_B)
    s_N = None if s_B is None else inputs.of_wanted(s_B)

    def reducer(log_p0_CV: Tensor, rows: slice) -> Reduced:
        seen = process, log_p0_CV, x0_N[rows], z_N[rows]
        nats_C = nats_per_level(*seen, t_N[rows]) if s_N is None else step_nats(*seen, s_N[rows], t_N[rows])
        return Reduced(nats_C.sum(), nats_C)

    nats_BL[select_BL] = denoiser.reduce(inputs, reducer).values_N.double()
    return nats_BL


@dataclass(frozen=True)
class ChainRule:
    """The exact -log p of the sampler that reveals one token at a time; see `chain_rule_nats`.

    Attributes:
        order: A deterministic order, such as left to right.
    """

    order: Order
    steps: ClassVar[int | None] = None

    def method(self, process: Process) -> Literal["exact"]:
        """It has no error; see `Likelihood`."""
        return "exact"

    def __call__(
        self,
        denoiser: Denoiser,
        process: Process,
        x0_BL: Tensor,
        generators: Sequence[torch.Generator],
        scored_BL: Tensor | None = None,
    ) -> Tensor:
        """One estimate, which has no error; see `Likelihood`."""
        return chain_rule_nats(denoiser, process, x0_BL, self.order, scored_BL)[None]


def chain_rule_nll(
    denoiser: Denoiser, process: Process, x0_BL: Tensor, order: Order, scored_BL: Tensor | None = None
) -> Tensor:
    """The exact negative log-likelihood of each sequence; see `chain_rule_nats`.

    Args:
        denoiser: Predicts the clean tokens.
        process: Gives the mask.
        x0_BL: Clean ids.
        order: A deterministic order, such as left to right or confidence.
        scored_BL: The tokens that are scored, the others being context; all of them by default.

    Returns:
        Nats a sequence, float64, shape (B,).
    """
    return chain_rule_nats(denoiser, process, x0_BL, order, scored_BL).sum(1)


def chain_rule_nats(
    denoiser: Denoiser, process: Process, x0_BL: Tensor, order: Order, scored_BL: Tensor | None = None
) -> Tensor:
    """The exact negative log-likelihood of the sampler that reveals one token at a time in `order`, token by token.

    -log p(x) = sum_i -log p(x_i | the tokens revealed before). The position is a function of the tokens
    revealed so far, so the terms are a chain rule, whichever order the predictions ask for.

    Args:
        denoiser: Predicts the clean tokens.
        process: Gives the mask.
        x0_BL: Clean ids.
        order: A deterministic order, such as left to right or confidence.
        scored_BL: The tokens that are scored, the others being context; all of them by default.

    Returns:
        The term of each token in nats, float64, zero at the others, shape (B, L), after as many denoiser calls as the
        longest has scored tokens.

    Raises:
        ValueError: The order is drawn at random.
    """
    if order.is_random:
        raise ValueError("the chain rule needs an order that is not drawn at random")
    scored_BL = torch.ones_like(x0_BL, dtype=torch.bool) if scored_BL is None else scored_BL
    x_BL = x0_BL.masked_fill(scored_BL, process.mask_id)
    masked_BL = scored_BL.clone()
    nats_BL = torch.zeros(x0_BL.shape, dtype=torch.float64, device=x0_BL.device)

    def first(candidates_BL: Tensor, predictions: Predictions | None) -> Tensor:
        scores_BL = order.score(candidates_BL, predictions, ())
        return largest(scores_BL, torch.ones(len(scores_BL), dtype=torch.long))

    while (rows := masked_BL.any(1).nonzero()[:, 0]).numel():
        left_BL = masked_BL[rows]
        wanted_BL = left_BL if order.needs_predictions else first(left_BL, None)
        inputs = NetworkInput(x_BL[rows], wanted_BL, left_BL.double().mean(1), rows_B=rows)
        predictions = Predictions(denoiser(inputs), wanted_BL)
        first_BL = first(left_BL, predictions) if order.needs_predictions else wanted_BL
        position_B = first_BL.int().argmax(1)
        token_B = x0_BL[rows, position_B]
        nats_BL[rows, position_B] = -predictions.at(first_BL).gather(-1, token_B[:, None])[:, 0].double()
        x_BL[rows, position_B] = token_B
        masked_BL[rows, position_B] = False
    return nats_BL


def predicted_nats(denoiser: Denoiser, inputs: NetworkInput, x0_BL: Tensor, predicted_BL: Tensor) -> Tensor:
    """-log p of the tokens that a call predicts.

    Args:
        denoiser: What predicts.
        inputs: The call.
        x0_BL: Clean ids.
        predicted_BL: The tokens whose predictions are wanted, in the order in which the call gives them.

    Returns:
        Nats, float64, zero elsewhere, shape (B, L).
    """
    nats_BL = torch.zeros(x0_BL.shape, dtype=torch.float64, device=x0_BL.device)
    x0_N = x0_BL[predicted_BL]

    def reducer(log_p_CV: Tensor, rows: slice) -> Reduced:
        nats_C = cross_entropy(log_p_CV, x0_N[rows])
        return Reduced(nats_C.sum(), nats_C)

    nats_BL[predicted_BL] = denoiser.reduce(inputs, reducer).values_N.double()
    return nats_BL
