"""The choices of a sampler: which masked positions first, how many this step, which token.

Each is a small frozen dataclass that knows nothing of the loop in `sample.py`. Published samplers are
points in this grid: first-hitting is `Random` with `OneAtATime`, LLaDA's is `Confidence` with `FixedSteps`,
Fast-dLLM's is `Confidence` with `Threshold` or `Factor`, EB-Sampler's is `Entropy` with `EntropyBound`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from dlm.diffusion.devices import copied
from dlm.diffusion.draws import inverse_cdf_, random_scores, uniforms
from dlm.diffusion.nucleus import keep_nucleus_
from dlm.diffusion.schedule import Linear, NoiseSchedule

Generators = Sequence[torch.Generator]

CPU_SLICE = 2**19
"""Entries of a distribution drawn from at once on a CPU: in float64 they still fit its cache."""

MOST_STEPS = 1_000_000
"""Steps of a sampler, each of which takes its time though it may reveal nothing."""


def check_steps(steps: int) -> None:
    """Refuses a number of steps that no sampler takes.

    Args:
        steps: How many.

    Raises:
        ValueError: They are fewer than one, or more than `MOST_STEPS`.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if steps > MOST_STEPS:
        raise ValueError(f"steps must be at most {MOST_STEPS:,}, got {steps}")


class Predictions:
    """What the denoiser says of the masked positions, with the statistics that orders and budgets ask for."""

    def __init__(self, log_p_NV: Tensor, candidates_BL: Tensor) -> None:
        """Pairs rows with positions.

        Args:
            log_p_NV: Log-probabilities, one row a selected position.
            candidates_BL: The N positions, counted row by row.
        """
        self.log_p_NV = log_p_NV
        self.candidates_BL = candidates_BL

    def at(self, chosen_BL: Tensor) -> Tensor:
        """The rows of `chosen_BL`, a subset of the positions."""
        chosen_N = chosen_BL[self.candidates_BL].nonzero()[:, 0]
        return self.log_p_NV.index_select(0, copied(chosen_N, self.log_p_NV.device))

    @cached_property
    def confidence_BL(self) -> Tensor:
        """The largest probability; 0 where nothing was predicted."""
        return self._dense(self.log_p_NV.amax(-1).exp())

    @cached_property
    def margin_BL(self) -> Tensor:
        """The largest probability less the second largest; 0 where nothing was predicted."""
        first_N, second_N = self.log_p_NV.topk(2, dim=-1).values.exp().unbind(-1)
        return self._dense(first_N - second_N)

    @cached_property
    def entropy_BL(self) -> Tensor:
        """The entropy in nats; 0 where nothing was predicted."""
        finite_NV = self.log_p_NV.clamp(min=torch.finfo(self.log_p_NV.dtype).min)  # 0 log 0 is 0, not nan
        return self._dense(-(self.log_p_NV.exp() * finite_NV).sum(-1))

    def _dense(self, values_N: Tensor) -> Tensor:
        """Values of positions, where the positions are."""
        values_N = values_N.to(self.candidates_BL.device)
        return values_N.new_zeros(self.candidates_BL.shape).masked_scatter(self.candidates_BL, values_N)


class Order(Protocol):
    """Which of the masked positions come first.

    Attributes:
        needs_predictions: Whether it looks at the predictions.
        is_random: Whether it draws random numbers.
    """

    needs_predictions: ClassVar[bool]
    is_random: ClassVar[bool]

    @property
    def name(self) -> str:
        """What `--order` calls it."""
        ...

    def score(self, candidates_BL: Tensor, predictions: Predictions | None, generators: Generators) -> Tensor:
        """A score for each position of `candidates_BL`, higher first, and -inf or less than any score elsewhere."""
        ...


@dataclass(frozen=True)
class Random:
    """Any masked position is as likely as any other. With one at a time, or ancestral, this order is exact."""

    name: Literal["random"] = "random"
    needs_predictions: ClassVar[bool] = False
    is_random: ClassVar[bool] = True

    def score(self, candidates_BL: Tensor, predictions: Predictions | None, generators: Generators) -> Tensor:
        """A random number each; see `Order`."""
        return random_scores(generators, candidates_BL)


@dataclass(frozen=True)
class LeftToRight:
    """The leftmost masked position first."""

    name: Literal["left-to-right"] = "left-to-right"
    needs_predictions: ClassVar[bool] = False
    is_random: ClassVar[bool] = False

    def score(self, candidates_BL: Tensor, predictions: Predictions | None, generators: Generators) -> Tensor:
        """Minus the position; see `Order`."""
        position_L = torch.arange(candidates_BL.shape[1], device=candidates_BL.device, dtype=torch.float64)
        return (-position_L).expand(candidates_BL.shape).masked_fill(~candidates_BL, -torch.inf)


@dataclass(frozen=True)
class Confidence:
    """The position whose best token is the most probable first (MaskGIT, 2202.04200; LLaDA, 2502.09992)."""

    name: Literal["confidence"] = "confidence"
    needs_predictions: ClassVar[bool] = True
    is_random: ClassVar[bool] = False

    def score(self, candidates_BL: Tensor, predictions: Predictions | None, generators: Generators) -> Tensor:
        """The largest probability; see `Order`."""
        assert predictions is not None
        return predictions.confidence_BL.masked_fill(~candidates_BL, -torch.inf)


@dataclass(frozen=True)
class Margin:
    """The position where the best token leads the second best by most first (2502.06768)."""

    name: Literal["margin"] = "margin"
    needs_predictions: ClassVar[bool] = True
    is_random: ClassVar[bool] = False

    def score(self, candidates_BL: Tensor, predictions: Predictions | None, generators: Generators) -> Tensor:
        """The lead; see `Order`."""
        assert predictions is not None
        return predictions.margin_BL.masked_fill(~candidates_BL, -torch.inf)


@dataclass(frozen=True)
class Entropy:
    """The position with the least entropy first."""

    name: Literal["entropy"] = "entropy"
    needs_predictions: ClassVar[bool] = True
    is_random: ClassVar[bool] = False

    def score(self, candidates_BL: Tensor, predictions: Predictions | None, generators: Generators) -> Tensor:
        """Minus the entropy; see `Order`."""
        assert predictions is not None
        return (-predictions.entropy_BL).masked_fill(~candidates_BL, -torch.inf)


AnyOrder = Random | LeftToRight | Confidence | Margin | Entropy


@dataclass(frozen=True)
class Step:
    """Where a sampler stands when it asks a budget.

    Attributes:
        index: The step's number in this block, from 1.
        masked_B: How many positions are masked now.
        start_B: How many were masked before the first step.
        scores_BL: The order's scores; None for a budget that needs none.
        predictions: The predictions; None for a budget that needs none.
        schedule: alpha(t) of the model's process.
    """

    index: int
    masked_B: Tensor
    start_B: Tensor
    scores_BL: Tensor | None = None
    predictions: Predictions | None = None
    schedule: NoiseSchedule = field(default_factory=Linear)


class Budget(Protocol):
    """How many masked positions are revealed in a step.

    The fields of a budget are its options: `--threshold 0.9` on the command line is `Threshold(0.9)`. A field's
    metadata has its help.

    Attributes:
        needs_predictions: Whether it looks at the predictions. One that does not is asked first, and a step in
            which it reveals nothing costs no network call.
        order: The order that goes with it where none is asked for; None for the order that suits the task.
    """

    needs_predictions: ClassVar[bool]
    order: ClassVar[Order | None]

    @property
    def name(self) -> str:
        """What messages and tables call it."""
        ...

    def count(self, step: Step, generators: Generators) -> Tensor:
        """How many positions each row reveals, integers of shape (B,), at most `masked_B`."""
        ...


@dataclass(frozen=True)
class FixedSteps:
    """A fixed number of steps that leaves a set share of masks after each.

    Attributes:
        steps: How many steps.
        grid: `linear` leaves 1 - k/S of the masks after step k, `cosine` cos(pi/2 k/S) (MaskGIT, 2202.04200).
    """

    steps: int = field(
        metadata={
            "help": "Budget: this many steps; with noise that is not masks alone (uniform, hybrid), those of the "
            "reverse chain."
        }
    )
    grid: Literal["linear", "cosine"] = field(
        default="linear",
        metadata={"help": "How --steps are laid out; binomial reveals each token on its own (ancestral sampling)."},
    )
    name: Literal["fixed"] = "fixed"
    needs_predictions: ClassVar[bool] = False
    order: ClassVar[Order | None] = None

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def count(self, step: Step, generators: Generators) -> Tensor:
        """What brings the masks down to the share of this step; see `Budget`."""
        done = min(step.index / self.steps, 1.0)
        left = 1.0 - done if self.grid == "linear" else math.cos(math.pi / 2 * done)
        # The small amount keeps 0.9999... from asking for one mask less than the exact share.
        remaining_B = (step.start_B.double() * left + 1e-9).floor().long()
        return (step.masked_B - remaining_B).clamp(min=0)


@dataclass(frozen=True)
class OneAtATime:
    """One position a step: L calls, and with a random order exact for continuous time (2409.02908, first-hitting)."""

    name: Literal["one"] = "one"
    needs_predictions: ClassVar[bool] = False
    order: ClassVar[Order | None] = None

    def count(self, step: Step, generators: Generators) -> Tensor:
        """1 where anything is masked; see `Budget`."""
        return step.masked_B.clamp(max=1)


@dataclass(frozen=True)
class Ancestral:
    """The reverse process on a grid of times: a binomial number of reveals, exact as the grid grows fine.

    Each mask is revealed on its own with probability (alpha_s - alpha_t)/(1 - alpha_t), so that with a random
    order this is ancestral sampling (MDLM, 2406.07524, eq. 6); the last step reveals everything.

    Attributes:
        steps: Steps of the grid from t = 1 to t = 0 of the model's own schedule.
        grid: What the command line calls it.
    """

    steps: int
    grid: Literal["binomial"] = "binomial"
    name: Literal["ancestral"] = "ancestral"
    needs_predictions: ClassVar[bool] = False
    order: ClassVar[Order | None] = None

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def count(self, step: Step, generators: Generators) -> Tensor:
        """A binomial draw a row; see `Budget`."""
        if step.index >= self.steps:
            return step.masked_B
        ends = 1.0 - torch.tensor([step.index, step.index - 1], dtype=torch.float64) / self.steps
        alpha_s, alpha_t = step.schedule.alpha(ends)
        reveal = (alpha_s - alpha_t) / (1.0 - alpha_t)
        drawn = uniforms(generators, step.masked_B.tolist())
        return torch.stack([(u < reveal).sum() for u in drawn]).to(step.masked_B.device)


@dataclass(frozen=True)
class Threshold:
    """All that are more probable than a threshold, or else the first in order (Fast-dLLM, 2505.22618).

    By confidence these are all such positions; in another order, those up to the first that is not.

    Attributes:
        threshold: A probability.
    """

    threshold: float = field(metadata={"help": "Budget: every token above this probability."})
    name: Literal["threshold"] = "threshold"
    needs_predictions: ClassVar[bool] = True
    order: ClassVar[Order | None] = Confidence()

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold must be from 0 to 1, got {self.threshold}")

    def count(self, step: Step, generators: Generators) -> Tensor:
        """The number above the threshold, at least one; see `Budget`."""
        assert step.predictions is not None and step.scores_BL is not None
        confidence_BL, n_L = _in_order(step.predictions.confidence_BL, step.scores_BL)
        holds_BL = (confidence_BL > self.threshold) & (n_L <= step.masked_B[:, None])
        return holds_BL.cumprod(1).sum(1).clamp(min=1)


@dataclass(frozen=True)
class Factor:
    """The largest n with (n + 1)(1 - c_n) < f, c_n being the least confidence of n (Fast-dLLM, 2505.22618).

    Attributes:
        factor: f; larger reveals more at once.
    """

    factor: float = field(metadata={"help": "Budget: the most n with (n+1)(1-p_n) below this."})
    name: Literal["factor"] = "factor"
    needs_predictions: ClassVar[bool] = True
    order: ClassVar[Order | None] = Confidence()

    def __post_init__(self) -> None:
        if not self.factor > 0.0:
            raise ValueError(f"factor must be above 0, got {self.factor}")

    def count(self, step: Step, generators: Generators) -> Tensor:
        """The largest such n, at least one; see `Budget`."""
        assert step.predictions is not None and step.scores_BL is not None
        confidence_BL, n_L = _in_order(step.predictions.confidence_BL, step.scores_BL)
        holds_BL = ((n_L + 1.0) * (1.0 - confidence_BL.cummin(1).values) < self.factor) & (
            n_L <= step.masked_B[:, None]
        )
        return (holds_BL * n_L).amax(1).clamp(min=1)


@dataclass(frozen=True)
class EntropyBound:
    """The longest prefix of the order whose summed entropy, less its largest, stays within a bound (2505.24857).

    Attributes:
        entropy_bound: gamma, in nats.
    """

    entropy_bound: float = field(
        metadata={"help": "Budget: as many as keep the joint entropy error below this, in nats."}
    )
    name: Literal["entropy-bound"] = "entropy-bound"
    needs_predictions: ClassVar[bool] = True
    order: ClassVar[Order | None] = Entropy()

    def __post_init__(self) -> None:
        if not self.entropy_bound >= 0.0:
            raise ValueError(f"entropy_bound must be at least 0, got {self.entropy_bound}")

    def count(self, step: Step, generators: Generators) -> Tensor:
        """The length of that prefix, at least one; see `Budget`."""
        assert step.predictions is not None and step.scores_BL is not None
        entropy_BL, n_L = _in_order(step.predictions.entropy_BL, step.scores_BL)
        excess_BL = entropy_BL.cumsum(1) - entropy_BL.cummax(1).values  # never falls along the order
        holds_BL = (excess_BL <= self.entropy_bound) & (n_L <= step.masked_B[:, None])
        return holds_BL.sum(1).clamp(min=1)


AnyBudget = FixedSteps | OneAtATime | Ancestral | Threshold | Factor | EntropyBound


def _in_order(values_BL: Tensor, scores_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's values from the highest score down, and the ranks 1..L beside them."""
    order_BL = scores_BL.argsort(dim=1, descending=True, stable=True)
    return values_BL.gather(1, order_BL), torch.arange(1, values_BL.shape[1] + 1, device=values_BL.device)


@dataclass(frozen=True)
class TokenChoice:
    """Which token a revealed position gets.

    Attributes:
        temperature: Divides the log-probabilities; 0 takes the most probable token.
        top_k: Keep only the k most probable tokens.
        top_p: Keep only the fewest tokens whose probabilities reach p together (after temperature and top_k).
    """

    temperature: float = field(default=1.0, metadata={"help": "0 takes the likeliest token."})
    top_k: int | None = field(default=None, metadata={"help": "Draw from the k likeliest tokens."})
    top_p: float | None = field(
        default=None, metadata={"help": "Draw from the likeliest tokens that reach this probability together."}
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def draw(self, log_p_NV: Tensor, u_N: Tensor) -> Tensor:
        """Draws one token a row by inverting the cumulative distribution in float64.

        In float32 the cumulative sums lose the rare tokens, which sharpens the text unasked (2409.02908).

        Args:
            log_p_NV: Log-probabilities.
            u_N: A float64 number in [0, 1) for each row; not used at temperature 0.

        Returns:
            Ids, shape (N,).
        """
        if self.temperature == 0.0:
            return log_p_NV.argmax(-1)
        rows = max(CPU_SLICE // log_p_NV.shape[-1], 1) if log_p_NV.device.type == "cpu" else len(log_p_NV)
        # One block of memory for all slices: fetching it anew would take longer than the arithmetic.
        work_NV = torch.empty((rows, log_p_NV.shape[-1]), dtype=torch.float64, device=log_p_NV.device)
        slices = zip(log_p_NV.split(rows), copied(u_N, log_p_NV.device).split(rows), strict=True)
        weighed = ((self._weights(part_NV, work_NV[: len(part_NV)]), part_N) for part_NV, part_N in slices)
        return torch.cat([inverse_cdf_(weights_NV, part_N) for weights_NV, part_N in weighed])

    def probabilities(self, log_p_NV: Tensor) -> Tensor:
        """The distribution that `draw` draws from.

        Args:
            log_p_NV: Log-probabilities.

        Returns:
            Probabilities, float64, shape (N, V).
        """
        if self.temperature == 0.0:
            return torch.zeros_like(log_p_NV, dtype=torch.float64).scatter(-1, log_p_NV.argmax(-1, keepdim=True), 1.0)
        weights_NV = self._weights(log_p_NV, torch.empty_like(log_p_NV, dtype=torch.float64))
        return weights_NV / weights_NV.sum(-1, keepdim=True)

    def _weights(self, log_p_NV: Tensor, work_NV: Tensor) -> Tensor:
        """The weight of each token after temperature and cuts; overwrites `work_NV`."""
        # Less the largest: at a low temperature every weight would else be zero.
        logits_NV = work_NV.copy_(log_p_NV).sub_(log_p_NV.amax(-1, keepdim=True)).div_(self.temperature)
        if self.top_k is not None and self.top_k < logits_NV.shape[-1]:
            best = logits_NV.topk(self.top_k, dim=-1)
            logits_NV = torch.full_like(logits_NV, -torch.inf).scatter(-1, best.indices, best.values)
        weights_NV = logits_NV.exp_()
        if self.top_p is not None and self.top_p < 1.0:
            keep_nucleus_(weights_NV, self.top_p)
        return weights_NV
