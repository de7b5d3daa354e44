"""A formulation of diffusion: from a few choices to the process, denoiser, objective and estimator they define."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dlm.diffusion.denoiser import Denoiser, LeaveOneOutDenoiser, X0Denoiser
from dlm.diffusion.levels import Levels
from dlm.diffusion.likelihood import ChainRule, Estimator, Likelihood
from dlm.diffusion.memory import BlocksObjective, CausalObjective
from dlm.diffusion.memory_likelihood import BlocksEstimator, CausalEstimator
from dlm.diffusion.network import LedNetwork, Network, ShiftedNetwork
from dlm.diffusion.noise import Absorbing, AnyNoise, counts_suffice
from dlm.diffusion.objective import MaskedObjective, Objective, TimedObjective
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.readings import AnyReadings, Autoregressive, Blocks, Joint, Masked
from dlm.diffusion.remask import AnyRemasker, Psi
from dlm.diffusion.remasking import remasking_rule
from dlm.diffusion.remember import Grid
from dlm.diffusion.rules import ReverseChain, Rule, Unmasking
from dlm.diffusion.schedule import Linear, Schedule
from dlm.diffusion.unmask import Ancestral, Budget, FixedSteps, LeftToRight, OneAtATime, Order, Random, TokenChoice
from dlm.diffusion.weighting import Weighting

FEWEST_STEPS = 64
"""Steps of a reverse chain for short texts, where one a token would be too coarse: its error falls like 1/T at best."""


@dataclass(frozen=True)
class Formulation:
    """The choices that a model is trained with; by default those of plain masked diffusion.

    Attributes:
        noise: What a corrupted token becomes.
        schedule: alpha(t).
        steps: T of a chain of steps; None for continuous time.
        parameterization: What the network's softmax is: for masks alone `subs`; else `mixture`, p(x0 | xt), or
            `plug-in`, the leave-one-out prediction.
        timed: Whether the network takes the time.
        shift: Whether the network predicts the next token, not the one in place.
        readings: What the network is trained to be read as.
    """

    noise: AnyNoise = field(default_factory=Absorbing)
    schedule: Schedule = field(default_factory=Linear)
    steps: int | None = None
    parameterization: Literal["subs", "mixture", "plug-in"] = "subs"
    timed: bool = False
    shift: bool = False
    readings: AnyReadings = field(default_factory=Masked)

    def check(self) -> None:
        """Refuses choices that do not go together.

        Raises:
            ValueError: They do not; the message begins with the name of the choice.
        """
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps: a chain has at least one step, got {self.steps}")
        valid = ("mixture", "plug-in") if self.noise.randomises else ("subs",)
        if self.parameterization not in valid:
            raise ValueError(
                f"parameterization: {self.parameterization!r} is not one of {self.noise.name} noise; "
                f"valid: {', '.join(('auto', *valid))}"
            )
        if self.parameterization == "mixture" and self.steps is None:
            raise ValueError(
                "parameterization: the mixture form has no finite bound in continuous time, but for a network that is "
                "certain of what it sees as t falls to 0; give time.steps, or take plug-in"
            )
        if isinstance(self.readings, Masked):
            return
        if self.noise.name != "absorbing" or self.steps is not None or self.timed or self.shift:
            raise ValueError(
                f"readings: {self.readings.name} goes with absorbing noise in continuous time, a network that takes no "
                "time, and predictions in place"
            )

    @property
    def counts(self) -> bool:
        """Whether losses, bounds and samplers count masks, and need no time; see `counts_suffice`."""
        return counts_suffice(self.noise, timed=self.timed)

    def process(self, vocabulary: Vocabulary) -> Process:
        """The forward process over a vocabulary."""
        return Process(self.noise, self.schedule, vocabulary)

    def denoiser(self, network: Network, process: Process, forbidden: Sequence[int], first_id: int | None) -> Denoiser:
        """The network as a denoiser.

        Args:
            network: Gives logits.
            process: The forward process.
            forbidden: The ids that are never predicted, the mask among them.
            first_id: What the network reads before every text, such as the end of the text before; None for nothing.

        Returns:
            What predicts p(x0 | xt).
        """
        if self.shift:
            network = ShiftedNetwork(network, first_id)
        elif first_id is not None:
            network = LedNetwork(network, first_id)
        if self.parameterization == "plug-in":
            return LeaveOneOutDenoiser(network, forbidden, process)
        return X0Denoiser(network, forbidden)

    def objective(self, weighting: Weighting, levels: Levels, before_id: int | None) -> Objective:
        """The training loss.

        Args:
            weighting: What is minimised of noisy tokens.
            levels: Which noise levels are trained on.
            before_id: The id that stands before every text that is memory; None for nothing, without next tokens.

        Returns:
            The loss.
        """
        match self.readings:
            case Autoregressive():
                assert before_id is not None
                return CausalObjective(before_id)
            case Blocks(size=size, memory=memory):
                return BlocksObjective(weighting, levels, before_id, (size,), causal=memory == "causal", moves=False)
            case Joint(sizes=sizes, next_token=weight):
                return BlocksObjective(weighting, levels, before_id, (*sizes, None), weight)
        kind = MaskedObjective if self.counts else TimedObjective
        return kind(weighting, levels, self.steps)

    def estimator(self, draws: int, replicates: int = 2) -> Estimator:
        """The estimator of the bound of this model's own chain."""
        return Estimator(draws, self.steps, self.timed, replicates)

    def reading(self, name: str, draws: int, before_id: int | None, replicates: int = 2) -> Likelihood:
        """The likelihood of one reading.

        Args:
            name: `any-order`, `causal`, or `blocks:S` for blocks of S tokens; or `left-to-right`, by the chain rule
                the very likelihood of the sampler that fills masks one at a time in that order.
            draws: Noisy copies of each sequence, where there are any.
            before_id: The id that stands before every text that is memory; None for nothing, without next tokens.
            replicates: The most independent estimates that are made of them.

        Returns:
            What computes or bounds it.

        Raises:
            ValueError: The network was not trained to be read so.
        """
        readings, (kind, _, size) = self.readings, name.partition(":")
        if kind == "any-order" and not size and readings.any_order:
            return self.estimator(draws, replicates)
        if name == LeftToRight().name:
            self._check_chain_rule()
            return ChainRule(LeftToRight())
        if kind == "causal" and not size and readings.causal:
            assert before_id is not None
            return CausalEstimator(before_id)
        if kind == "blocks" and size.isdecimal() and int(size) and readings.remembers:
            causal = not isinstance(readings, Blocks) or readings.memory == "causal"
            if causal or name in readings.all:
                return BlocksEstimator(int(size), before_id, draws, causal, replicates)
        raise ValueError(f"this model has no reading {name!r}; it has {', '.join(readings.all)}")

    def _check_chain_rule(self) -> None:
        """Refuses it where no sampler of the network reveals masks one at a time in any order."""
        if not self.readings.any_order:
            raise ValueError(
                "the chain rule is that of the any-order reading, and this model has "
                f"{', '.join(self.readings.all)} alone: leave --chain-rule out"
            )
        if not self.counts:
            raise ValueError(
                "the chain rule is that of samplers that reveal one token at a time, from a network that takes no "
                f"time; this model's noise is {self.noise.name}: leave --chain-rule out"
            )

    def grid(self, size: int) -> Grid:
        """Where blocks of so many tokens lie, for a network with a memory."""
        readings = self.readings
        causal = not isinstance(readings, Blocks) or readings.memory == "causal"
        return Grid(size, aligned=isinstance(readings, Blocks), causal=causal)

    def rule(
        self,
        process: Process,
        token: TokenChoice,
        *,
        order: Order | None = None,
        budget: Budget | None = None,
        remask: AnyRemasker | None = None,
        default_order: Order,
        tokens: int,
    ) -> Rule:
        """The sampling rule that an order, a budget and a remasker ask for; without them the model's own.

        | noise | budget, or remasker | rule |
        |---|---|---|
        | absorbing | none, no T or another order | unmasking one token a step |
        | absorbing | none, T steps | unmasking by `Ancestral(T)`; the reverse chain in T steps for a timed network |
        | absorbing | `Ancestral` | unmasking; the reverse chain for a timed network |
        | absorbing | any other | unmasking |
        | uniform, hybrid | none | the reverse chain in T steps, or one a token and at least `FEWEST_STEPS` |
        | uniform, hybrid | `Ancestral`, or `FixedSteps` on a linear grid | the reverse chain in so many steps |
        | absorbing | any remasker | see `remasking_rule` |
        | uniform, hybrid | `Psi` | the reverse chain with some tokens drawn anew |

        Args:
            process: The forward process.
            token: Which token each position gets.
            order: Which masks first.
            budget: How many a step.
            remask: Which revealed tokens become masks again; None for none.
            default_order: The order that suits the task.
            tokens: How many are to be written.

        Returns:
            The rule.

        Raises:
            ValueError: This noise knows no such order, budget or remasker.
        """
        if remask is not None and process.absorbing:
            return remasking_rule(process, token, remask, order, budget, self.steps)
        if remask is not None and not isinstance(remask, Psi):
            raise ValueError(
                f"--remask {remask.name}: this model's noise is {self.noise.name}, whose tokens may change at every "
                "step anyway; --remask psi is for it"
            )
        if process.absorbing:
            own = self.steps if order is None and default_order == Random() else None
            budget = budget or (Ancestral(own) if own else OneAtATime())
            if self.counts or not isinstance(budget, Ancestral):
                return Unmasking(process, order or budget.order or default_order, budget, token)
            steps = budget.steps
        elif budget is None:
            steps = self.steps or max(tokens, FEWEST_STEPS)
        elif isinstance(budget, Ancestral) or (isinstance(budget, FixedSteps) and budget.grid == "linear"):
            steps = budget.steps
        else:
            raise ValueError(
                f"this model's noise is {self.noise.name}: the only budget for it is --steps N, evenly spaced"
            )
        if order is not None:
            raise ValueError(NO_ORDER)
        return ReverseChain(process, steps, token, remask.eta if remask else 0.0)


NO_ORDER = (
    "this model writes here by the reverse chain, which has no order and no blocks: "
    "leave --order and --block-length out"
)
