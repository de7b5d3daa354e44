"""Sampling rules that open revealed tokens again; what they open is one of `remask.py`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import largest, random_scores, uniforms
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.process import Process
from dlm.diffusion.remask import AnyRemasker, Planner, SigmaRemasker
from dlm.diffusion.rules import Changes, Generators, StepInput, time_of_share
from dlm.diffusion.unmask import Ancestral, Budget, FixedSteps, Order, Predictions, Step, TokenChoice, check_steps


class _Reopening(ABC):
    """A rule for masks whose revealed tokens may become masks again."""

    process: Process
    tokens_are_final: ClassVar[bool] = False

    def begin(self, canvas_BL: Tensor, editable_BL: Tensor, generators: Generators) -> Tensor:
        """Masks at every editable position; see `Rule`."""
        return canvas_BL.masked_fill(editable_BL, self.process.mask_id)

    def active(self, x_BL: Tensor, block_BL: Tensor) -> Tensor:
        """The whole block: any of its tokens may become a mask; see `Rule`."""
        return block_BL

    @abstractmethod
    def step(self, given: StepInput, denoiser: Denoiser, generators: Generators) -> Changes | None:
        """Takes one step; see `Rule`."""


@dataclass(frozen=True)
class Remasking(_Reopening):
    """The reverse chain of masks with remasking, on a grid of even times (ReMDM, 2503.00307, algorithm 1).

    From t = k/T to s = (k-1)/T a revealed token becomes a mask with probability sigma, and a mask is revealed with
    probability (alpha_s - (1 - sigma) alpha_t)/(1 - alpha_t), with a draw of p(x0 | xt). The last step reveals all.
    A step that reveals nothing in a row makes no network call for it.

    Attributes:
        process: Absorbing noise.
        steps: T.
        remasker: What sigma is.
        token: Which token a revealed mask gets.
    """

    process: Process
    steps: int
    remasker: SigmaRemasker
    token: TokenChoice

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def step(self, given: StepInput, denoiser: Denoiser, generators: Generators) -> Changes | None:
        """Goes back by one time; see `Rule`."""
        x_BL, active_BL, k = given.x_BL, given.active_BL, self.steps + 1 - given.index
        masked_BL = (x_BL == self.process.mask_id) & active_BL
        shown_BL = active_BL & ~masked_BL
        time, reveal, sigma = self.probabilities(k)
        u_BL = random_scores(generators, active_BL)
        reveal_BL = masked_BL & (u_BL < reveal)
        share_BL = _shares(given.drawn_BL, shown_BL) if self.remasker.by_confidence else 1.0
        remask_BL = shown_BL & (u_BL < sigma * share_BL)
        if not (reveal_BL | remask_BL).any():
            return None

        new_BL = x_BL.masked_fill(remask_BL, self.process.mask_id)
        drawn_BL = torch.zeros_like(u_BL) if given.drawn_BL is None else given.drawn_BL
        rows = reveal_BL.any(1).nonzero()[:, 0]
        if rows.numel():
            time_R = torch.full((len(rows),), time, dtype=torch.float64, device=x_BL.device)
            inputs = NetworkInput(x_BL[rows], reveal_BL[rows], time_R, rows_B=rows)
            token_N, log_p_N = draw_tokens(self.token, denoiser, inputs, denoiser(inputs), generators)
            new_BL = new_BL.masked_scatter(reveal_BL, token_N)
            drawn_BL = drawn_BL.masked_scatter(reveal_BL, log_p_N.exp())
        return Changes(new_BL, reveal_BL | remask_BL, reveal_BL.any(1).cpu(), drawn_BL)

    def probabilities(self, k: int) -> tuple[float, float, float]:
        """What the step from k/T to (k-1)/T does.

        Args:
            k: From T, the first step, to 1, the last.

        Returns:
            The time that the network is told, the probability that a mask is revealed, and sigma.
        """
        schedule = self.process.schedule
        s, t = (self.remasker.time(i / self.steps, schedule) for i in (k - 1, k))
        if k == 1:  # a schedule may end below 1, and no mask may stay
            return t, 1.0, 0.0
        alpha_s, alpha_t = schedule.alpha(torch.tensor([s, t], dtype=torch.float64)).tolist()
        if alpha_t >= 1.0:  # a schedule may round to 1 above t = 0, where nothing is noise
            return t, 1.0, 0.0
        sigma = self.remasker.sigma(k / self.steps, alpha_s, alpha_t)
        return t, (alpha_s - (1.0 - sigma) * alpha_t) / (1.0 - alpha_t), sigma


@dataclass(frozen=True)
class Planned(_Reopening):
    """Keeps the most likely tokens of each step and masks the others; see `Planner`.

    Attributes:
        process: Absorbing noise; gives the mask, and the time of a share of masks.
        budget: The steps, and how many tokens are kept after each.
        planner: How old tokens are compared with new ones.
        token: Which token is drawn for a mask.
    """

    process: Process
    budget: FixedSteps
    planner: Planner
    token: TokenChoice

    @property
    def steps(self) -> int:
        """The steps of the budget; see `Rule`."""
        return self.budget.steps

    def step(self, given: StepInput, denoiser: Denoiser, generators: Generators) -> Changes | None:
        """Draws a token for every mask, and keeps the likeliest of all; see `Rule`."""
        x_BL, active_BL, start_B = given.x_BL, given.active_BL, given.initial_count_B
        masked_BL = (x_BL == self.process.mask_id) & active_BL
        kept_B = self.budget.count(Step(given.index, start_B, start_B), generators)
        # A row that keeps all and has no mask is finished.
        asked_BL = active_BL & ((kept_B < start_B) | masked_BL.any(1))[:, None]
        rows = asked_BL.any(1).nonzero()[:, 0]
        if not rows.numel():
            return None

        new_BL, old_BL = asked_BL & masked_BL, asked_BL & ~masked_BL
        share_R = (x_BL[rows] == self.process.mask_id).double().mean(1)
        inputs = NetworkInput(x_BL[rows], asked_BL[rows], time_of_share(self.process, share_R), rows_B=rows)
        predictions = Predictions(denoiser(inputs), asked_BL)
        new = replace(inputs, wanted_BL=new_BL[rows])
        token_N, new_log_p_N = draw_tokens(self.token, denoiser, new, predictions.at(new_BL), generators)
        x0_BL = x_BL.masked_scatter(new_BL, token_N)
        old_log_p_N = log_p_of(predictions.at(old_BL), x_BL[old_BL]).clamp(min=torch.finfo(torch.float64).min)
        score_BL = torch.full(x_BL.shape, -torch.inf, dtype=torch.float64, device=x_BL.device)
        score_BL = score_BL.masked_scatter(new_BL, new_log_p_N)
        score_BL = score_BL.masked_scatter(old_BL, self.planner.eta * old_log_p_N)  # clamped: 0 times -inf is 0 here
        kept_BL = largest(score_BL, kept_B) & asked_BL
        after_BL = torch.where(asked_BL, torch.where(kept_BL, x0_BL, self.process.mask_id), x_BL)
        return Changes(after_BL, after_BL != x_BL, asked_BL.any(1).cpu())


def remasking_rule(
    process: Process,
    token: TokenChoice,
    remask: AnyRemasker,
    order: Order | None,
    budget: Budget | None,
    own_steps: int | None,
) -> Remasking | Planned:
    """The rule of a remasker, for absorbing noise.

    Args:
        process: The forward process.
        token: Which token each position gets.
        remask: What is opened again.
        order: What was asked for, which must be nothing.
        budget: What was asked for: `FixedSteps`, or for all but `Planner` also `Ancestral`.
        own_steps: T of the model's own chain, which is taken where no budget is given.

    Returns:
        The rule.

    Raises:
        ValueError: There is no number of steps, or an order or a budget that does not go with it.
    """
    asked = f"--remask {remask.name}"
    if order is not None:
        raise ValueError(f"{asked} says itself which tokens come first: leave --order {order.name} out")
    if budget is None and own_steps is not None:
        budget = FixedSteps(own_steps)
    if budget is None:
        raise ValueError(f"{asked} takes a number of steps: give --steps N too")
    if not isinstance(budget, FixedSteps | Ancestral):
        raise ValueError(f"{asked} takes a number of steps: give --steps N instead of the budget {budget.name}")
    if isinstance(remask, Planner):
        if not isinstance(budget, FixedSteps):
            raise ValueError(f"{asked} keeps a set number of tokens a step: leave --grid {budget.grid} out")
        return Planned(process, budget, remask, token)
    if budget.grid == "cosine":
        raise ValueError(f"{asked} follows the schedule of the model: leave --grid {budget.grid} out")
    return Remasking(process, budget.steps, remask, token)


def draw_tokens(
    token: TokenChoice,
    denoiser: Denoiser,
    inputs: NetworkInput,
    log_p_NV: Tensor,
    generators: Sequence[torch.Generator],
) -> tuple[Tensor, Tensor]:
    """Draws a token for each wanted position, every row from its own stream.

    Args:
        token: How they are drawn.
        denoiser: What predicted them.
        inputs: The call that they were predicted in; some rows of the canvas, and the N positions.
        log_p_NV: Log-probabilities, a row a position.
        generators: One stream a row of the canvas.

    Returns:
        The ids, and their log-probabilities before temperature and cuts, float64; both where the ids are.
    """
    assert inputs.rows_B is not None
    streams = [generators[row] for row in inputs.rows_B.tolist()]
    u_N = torch.cat(uniforms(streams, inputs.wanted_BL.sum(1).tolist()))
    token_N = denoiser.draw_tokens(token, inputs, log_p_NV, u_N).to(inputs.ids_BL.device)
    return token_N, log_p_of(log_p_NV, token_N)


def log_p_of(log_p_NV: Tensor, token_N: Tensor) -> Tensor:
    """The log-probability of each token in its row, float64, where the tokens are."""
    return log_p_NV.gather(-1, token_N.to(log_p_NV.device)[:, None])[:, 0].double().to(token_N.device)


def _shares(drawn_BL: Tensor | None, shown_BL: Tensor) -> Tensor:
    """The count times the softmax of minus the probabilities that n tokens were drawn with: 1 on average."""
    if drawn_BL is None:
        return torch.ones(shown_BL.shape, dtype=torch.float64, device=shown_BL.device)
    weight_BL = (-drawn_BL).exp() * shown_BL
    return weight_BL * shown_BL.sum(1, keepdim=True) / weight_BL.sum(1, keepdim=True).clamp(min=1e-300)
