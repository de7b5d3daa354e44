"""How a model writes: the choices of a sampler."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from dlm.diffusion.formulation import NO_ORDER, Formulation
from dlm.diffusion.guide import Guidance
from dlm.diffusion.process import Process
from dlm.diffusion.readings import Blocks
from dlm.diffusion.remask import AnyRemasker
from dlm.diffusion.remasking import Remasking
from dlm.diffusion.reuse import Reuse
from dlm.diffusion.rules import ReverseChain, Rule
from dlm.diffusion.sample import State
from dlm.diffusion.unmask import Budget, Order, TokenChoice
from dlm.diffusion.verify import Verified
from dlm.errors import ConfigError
from dlm.model.public import Family

Watch = Callable[[State], None]
"""Called with every state of a sampler."""

DRAFTS = 2
"""The drafts of a call, where none are asked for."""


@dataclass(frozen=True)
class Sampler:
    """A point in the grid of samplers; see `dlm/diffusion/unmask.py`.

    Attributes:
        order: Which masked positions first; None for the budget's own, or else for what suits the task.
        budget: How many of them a step; None for one, or for the reverse chain where seen tokens may be noise.
        token: Which token each gets; None for the model's own choice, or else a draw from all of them.
        block_length: Tokens a block, written from left to right; None for the model's own, or else one block.
        drafts: Tokens that a call drafts, where the causal reading verifies them; 0 for one token a call, None for
            `DRAFTS`.
        accept: 1 for exactly the causal reading's text; below it, more drafts are accepted (see `Verified`).
        verify: Whether the causal reading writes; None where the model has one, and no order, budget or block is asked.
        reuse: Which keys and values are used again, where every token sees every other: fewer are computed, and the
            text is approximate. None for none.
        remask: Which revealed tokens become masks again; None for none. See `dlm/diffusion/remask.py`.
        guidance: How far predictions are guided towards the prompt, or the text around holes; None for not at all.
    """

    order: Order | None = None
    budget: Budget | None = None
    token: TokenChoice | None = None
    block_length: int | None = None
    drafts: int | None = None
    accept: float = 1.0
    verify: bool | None = None
    reuse: Reuse | None = None
    remask: AnyRemasker | None = None
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        Verified(self.drafts or 0, accept=self.accept)
        for name in ("order", "budget", "token", "remask"):
            value = getattr(self, name)
            if isinstance(value, str | int | float):
                raise ConfigError(f"{name} is an object of dlm.diffusion, such as Confidence(), got {value!r}")

    def completed(self, family: Family | None, *, inside: bool = False) -> Self:
        """The same with what it leaves open taken from a publisher's own sampler.

        Args:
            family: The family of a published model; None for a model of our own.
            inside: Whether it fills holes, which is not done in blocks.

        Returns:
            The sampler.
        """
        if family is None:
            return self
        length = self.block_length or (None if inside else family.block_length)
        return replace(self, token=self.token or family.token, block_length=length)

    def rule(
        self, formulation: Formulation, process: Process, default_order: Order, tokens: int, *, inside: bool = False
    ) -> Rule | Verified:
        """What this asks of a model; see `Formulation.rule`.

        Args:
            formulation: The model's.
            process: Its forward process.
            default_order: The order that suits the task.
            tokens: How many are to be written.
            inside: Whether a text stands behind what is written, which is then not written from left to right.

        Returns:
            The rule.

        Raises:
            ConfigError: The model's noise knows no such order, budget, remasker or blocks.
        """
        if self._verifies(formulation, inside):
            if self.reuse is not None:
                instead = ", or add --no-verify" if formulation.readings.any_order else ""
                raise ConfigError(
                    f"--cache is for masks: next tokens have an exact one of their own; leave it out{instead}"
                )
            drafts = self.drafts if self.drafts is not None else DRAFTS if formulation.readings.remembers else 0
            # A call finds one token more than it drafts.
            return Verified(min(drafts, max(tokens - 1, 0)), self.token or TokenChoice(), self.accept)
        try:
            rule = formulation.rule(
                process,
                self.token or TokenChoice(),
                order=self.order,
                budget=self.budget,
                remask=self.remask,
                default_order=default_order,
                tokens=tokens,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if isinstance(rule, ReverseChain) and self.block_length is not None:
            raise ConfigError(NO_ORDER)
        if isinstance(rule, Remasking) and self.block_length is not None and formulation.timed:
            raise ConfigError(
                "--remask and --block-length: this model takes the time of the whole text, which a block has not: "
                "leave one of them out"
            )
        self._check_reuse(formulation, process, inside)
        self._check_guidance(formulation, process, inside)
        return rule

    def _check_reuse(self, formulation: Formulation, process: Process, inside: bool) -> None:
        """Refuses to use keys and values again where that would be of no use, or wrong."""
        if self.reuse is None:
            return
        if formulation.readings.remembers and not inside and self.blocks(formulation) is not None:
            raise ConfigError("--cache: this model remembers the blocks before the one it writes exactly; leave it out")
        if not process.absorbing:
            raise ConfigError("--cache: with noise that is not masks alone any token may change at each step")
        if formulation.timed:
            raise ConfigError("--cache: this network takes the time, which changes every key and value at each step")

    @property
    def guides(self) -> bool:
        """Whether predictions are guided; a weight of 0 is none."""
        return self.guidance is not None and self.guidance.weight > 0.0

    @property
    def negative(self) -> str | None:
        """The prompt that is guided away from, where there is one."""
        return self.guidance.negative if self.guidance is not None and self.guides else None

    def _check_guidance(self, formulation: Formulation, process: Process, inside: bool) -> None:
        """Refuses guidance where there is nothing to be hidden by masks, or what is given is read but once."""
        if not self.guides:
            return
        if not process.absorbing:
            raise ConfigError(
                f"--guidance hides the prompt by masks, and this model's noise is {process.noise.name}; leave it out"
            )
        if formulation.timed:
            raise ConfigError(
                "--guidance: this network takes the time, which says how many tokens are masks, and guidance has a "
                "second text with more of them; leave it out"
            )
        if formulation.readings.remembers and not inside and self.blocks(formulation) is not None:
            raise ConfigError(
                "--guidance reads the prompt twice, and this model remembers it once for all blocks; leave "
                "--block-length out, or --guidance"
            )

    def _verifies(self, formulation: Formulation, inside: bool) -> bool:
        """Whether the causal reading writes."""
        readings = formulation.readings
        any_order = self.guides or [self.order, self.budget, self.block_length, self.remask] != [None] * 4
        asked = self.drafts is not None or self.accept < 1.0 or self.verify is True
        if asked and not readings.causal:
            raise ConfigError(
                "--verify, --drafts and --accept are for a model that was trained to predict next tokens too, with "
                f"readings joint; this one's readings are {readings.name}: leave them out"
            )
        if asked and (any_order or self.verify is False):
            raise ConfigError(
                "--verify, --drafts and --accept write from left to right: leave them out, or leave out --no-verify, "
                "--order, --block-length, --remask, --guidance and what says how many tokens a step"
            )
        if self.drafts and not readings.remembers:
            raise ConfigError(f"--drafts: masks draft, and this model, {readings.name}, was not trained to fill them")
        if not readings.any_order and readings.causal and (any_order or self.verify is False):
            raise ConfigError(
                f"this model, {readings.name}, writes from left to right alone: leave --no-verify, --order, "
                "--block-length, --remask, --guidance and what says how many tokens a step out"
            )
        if asked and inside:
            raise ConfigError(
                "--verify, --drafts and --accept write from left to right, and a hole has a text behind it"
            )
        return readings.causal and not inside and not any_order and self.verify is not False

    def blocks(self, formulation: Formulation) -> int | None:
        """Tokens a block: what is asked for, or what a model was trained with that writes in blocks alone.

        Args:
            formulation: The model's.

        Returns:
            How many; None for one block.

        Raises:
            ConfigError: Its memory is made of blocks of another size.
        """
        readings = formulation.readings
        if not isinstance(readings, Blocks):
            return self.block_length
        if self.block_length not in (None, readings.size) and readings.memory == "block-causal":
            raise ConfigError(
                f"--block-length: this model's memory has blocks of {readings.size}, got {self.block_length}"
            )
        return self.block_length or readings.size
