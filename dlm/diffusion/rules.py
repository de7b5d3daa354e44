"""Sampling rules: what one step does to a canvas. The loop in `sample.py` takes the steps.

Two rules serve every process: unmasking by an order and a budget, and the reverse chain. Those that mask revealed
tokens again are in `remasking.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import largest, random_scores, uniforms
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.process import Process
from dlm.diffusion.unmask import Budget, Order, Predictions, Step, TokenChoice, check_steps

Generators = Sequence[torch.Generator]


@dataclass(frozen=True)
class StepInput:
    """What a rule is given for one step.

    Attributes:
        index: The step's number in this block, from 1.
        x_BL: Ids, which the rule does not change in place.
        active_BL: The positions that it may change.
        initial_count_B: How many were open before the first step of this block.
        drawn_BL: What the rule's last step said of this; None before.
    """

    index: int
    x_BL: Tensor
    active_BL: Tensor
    initial_count_B: Tensor
    drawn_BL: Tensor | None = None


class Changes(NamedTuple):
    """What one step brought.

    Attributes:
        x_BL: The new ids.
        changed_BL: Where they differ, or were written.
        called_B: Boolean, on the CPU: the rows that took part in its network call; none where it made no call.
        drawn_BL: The probability that each token was drawn with, for the next step; None for a rule that never asks.
    """

    x_BL: Tensor
    changed_BL: Tensor
    called_B: Tensor
    drawn_BL: Tensor | None = None


class Rule(Protocol):
    """One step of a sampler.

    Attributes:
        tokens_are_final: Whether a token that was written stays as it is.
        steps: The number of steps in a block; None where it goes on until nothing is open.
    """

    tokens_are_final: ClassVar[bool]

    @property
    def steps(self) -> int | None:
        """The number of steps in a block, or None."""
        ...

    def begin(self, canvas_BL: Tensor, editable_BL: Tensor, generators: Generators) -> Tensor:
        """The canvas with noise at every editable position."""
        ...

    def active(self, x_BL: Tensor, block_BL: Tensor) -> Tensor:
        """The positions of a block that may still change."""
        ...

    def step(self, given: StepInput, denoiser: Denoiser, generators: Generators) -> Changes | None:
        """Takes one step.

        Args:
            given: The canvas, and where it may change.
            denoiser: Predicts the clean tokens.
            generators: One stream a row of the canvas.

        Returns:
            The new canvas; None where this step changes nothing and makes no network call.
        """
        ...


@dataclass(frozen=True)
class Unmasking:
    """Reveals masks: those that the order puts first, as many as the budget says, each with a token of its own draw.

    The network sees only the rows that are about to change, and the vocabulary is projected only on positions that
    may be revealed. A denoiser with time conditioning is told the time at which as many tokens are masked on average.

    Attributes:
        process: Absorbing noise; gives the mask, and the time of a share of masks.
        order: Which positions first.
        budget: How many a step.
        token: Which token each gets.
    """

    process: Process
    order: Order
    budget: Budget
    token: TokenChoice
    tokens_are_final: ClassVar[bool] = True
    steps: ClassVar[int | None] = None

    def begin(self, canvas_BL: Tensor, editable_BL: Tensor, generators: Generators) -> Tensor:
        """Masks at every editable position; see `Rule`."""
        return canvas_BL.masked_fill(editable_BL, self.process.mask_id)

    def active(self, x_BL: Tensor, block_BL: Tensor) -> Tensor:
        """The masks; see `Rule`."""
        return (x_BL == self.process.mask_id) & block_BL

    def step(self, given: StepInput, denoiser: Denoiser, generators: Generators) -> Changes | None:
        """Reveals what the budget allows, with one network call; see `Rule`."""
        x_BL, active_BL = given.x_BL, given.active_BL
        rows = active_BL.any(1).nonzero()[:, 0]
        count_R = None
        if not self.budget.needs_predictions:
            streams = [generators[b] for b in rows.tolist()]
            count_R = self.budget.count(self._budgeted(given, rows), streams)
            rows, count_R = rows[count_R > 0], count_R[count_R > 0]
            if not rows.numel():
                return None

        # From here on R stands for the rows that change in this step.
        streams = [generators[b] for b in rows.tolist()]
        x_RL, open_RL = x_BL[rows], active_BL[rows]
        share_R = (x_RL == self.process.mask_id).double().mean(1)
        inputs = NetworkInput(x_RL, open_RL, time_of_share(self.process, share_R), rows_B=rows)
        predictions = None
        if self.order.needs_predictions or self.budget.needs_predictions:
            predictions = Predictions(denoiser(inputs), open_RL)
        scores_RL = self.order.score(open_RL, predictions, streams)
        if count_R is None:
            count_R = self.budget.count(self._budgeted(given, rows, scores_RL, predictions), streams)
        chosen_RL = largest(scores_RL, count_R)
        log_p_NV = predictions.at(chosen_RL) if predictions else denoiser(replace(inputs, wanted_BL=chosen_RL))
        u_N = torch.cat(uniforms(streams, count_R.tolist()))

        changed_BL = torch.zeros_like(active_BL).index_copy(0, rows, chosen_RL)
        token_N = denoiser.draw_tokens(self.token, replace(inputs, wanted_BL=chosen_RL), log_p_NV, u_N)
        new_BL = x_BL.index_copy(0, rows, x_RL.masked_scatter(chosen_RL, token_N.to(x_RL.device)))
        called_B = torch.zeros(len(x_BL), dtype=torch.bool).index_fill(0, rows.cpu(), True)
        return Changes(new_BL, changed_BL, called_B)

    def _budgeted(
        self, given: StepInput, rows: Tensor, scores_RL: Tensor | None = None, predictions: Predictions | None = None
    ) -> Step:
        """What the budget is told of some rows."""
        masked_R = given.active_BL[rows].sum(1)
        return Step(
            given.index, masked_R, given.initial_count_B[rows], scores_RL, predictions, schedule=self.process.schedule
        )


def time_of_share(process: Process, share_R: Tensor) -> Tensor:
    """The time at which that share of tokens is masked on average; alpha may not reach 0 or 1."""
    return process.schedule.inverse(1.0 - share_R).clamp(0.0, 1.0)


@dataclass(frozen=True)
class ReverseChain:
    """Ancestral sampling: the reverse chain of any process, on a grid of even times (D3PM, 2107.03006, eq. 4).

    From t = k/T to s = (k-1)/T each token draws x0 from p(x0 | xt) and then xs from q(xs | xt, x0); the last step
    keeps x0. A token of absorbing noise stays once it is revealed, one of uniform noise may change at each step.

    Attributes:
        process: The forward process.
        steps: T, the network calls.
        token: Which x0 each position draws.
        redrawn: The share of tokens whose xs is drawn from q(xs | x0) instead, whatever xt is; see `Psi`. With
            absorbing noise this is `Remasking`, since a revealed token is no longer predicted here.
    """

    process: Process
    steps: int
    token: TokenChoice
    redrawn: float = 0.0
    tokens_are_final: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if self.redrawn > 0.0 and self.process.absorbing:
            raise ValueError(f"redrawn must be 0 with absorbing noise, got {self.redrawn}: see Remasking")

    def begin(self, canvas_BL: Tensor, editable_BL: Tensor, generators: Generators) -> Tensor:
        """The noise at t = 1 at every editable position; see `Rule`."""
        return self.process.prior(generators, editable_BL).to(canvas_BL.device).where(editable_BL, canvas_BL)

    def active(self, x_BL: Tensor, block_BL: Tensor) -> Tensor:
        """Masks, and everything else that may be noise; see `Rule`."""
        return self.process.to_predict(x_BL) & block_BL

    def step(self, given: StepInput, denoiser: Denoiser, generators: Generators) -> Changes | None:
        """Goes back by one time; see `Rule`."""
        x_BL, active_BL, k = given.x_BL, given.active_BL, self.steps + 1 - given.index
        s_B, t_B = (
            torch.full((len(x_BL),), i / self.steps, dtype=torch.float64, device=x_BL.device) for i in (k - 1, k)
        )
        inputs = NetworkInput(x_BL, active_BL, t_B)
        log_p_NV = denoiser(inputs)
        u_N = torch.cat(uniforms(generators, active_BL.sum(1).tolist()))
        token_N = denoiser.draw_tokens(self.token, inputs, log_p_NV, u_N)
        x0_BL = x_BL.masked_scatter(active_BL, token_N.to(x_BL.device))
        xs_BL = x0_BL if k == 1 else self.process.sample_posterior(x_BL, x0_BL, s_B, t_B, generators, active_BL)
        if self.redrawn > 0.0 and k > 1:
            redrawn_BL = active_BL & (random_scores(generators, active_BL) < self.redrawn)
            xs_BL = self.process.corrupt(x0_BL, s_B, generators, redrawn_BL).where(redrawn_BL, xs_BL)
        return Changes(xs_BL, xs_BL != x_BL, active_BL.any(1).cpu())
