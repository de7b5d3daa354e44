"""How a model writes: the choices of a sampler, and writing rows side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.formulation import NO_ORDER, Formulation
from dlm.diffusion.process import Process
from dlm.diffusion.rules import ReverseChain, Rule
from dlm.diffusion.sample import State, sample
from dlm.diffusion.unmask import Budget, Order, TokenChoice
from dlm.errors import ConfigError

Watch = Callable[[State], None]
"""Called with every state of a sampler."""


@dataclass(frozen=True)
class Sampler:
    """A point in the grid of samplers; see `dlm/diffusion/unmask.py`.

    Attributes:
        order: Which masked positions first; None for the budget's own, or else for what suits the task.
        budget: How many of them a step; None for one, or for the reverse chain where seen tokens may be noise.
        token: Which token each gets; None for the model's own choice, or else a draw from all of them.
        block_length: Tokens a block, written from left to right; None for the model's own, or else one block.
    """

    order: Order | None = None
    budget: Budget | None = None
    token: TokenChoice | None = None
    block_length: int | None = None

    def rule(self, formulation: Formulation, process: Process, default_order: Order, tokens: int) -> Rule:
        """What this asks of a model; see `Formulation.rule`.

        Args:
            formulation: The model's.
            process: Its forward process.
            default_order: The order that suits the task.
            tokens: How many are to be written.

        Returns:
            The rule.

        Raises:
            ConfigError: The model's noise knows no such order, budget or blocks.
        """
        try:
            rule = formulation.rule(
                process,
                self.token or TokenChoice(),
                order=self.order,
                budget=self.budget,
                default_order=default_order,
                tokens=tokens,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if isinstance(rule, ReverseChain) and self.block_length is not None:
            raise ConfigError(NO_ORDER)
        return rule

    def write(
        self,
        rule: Rule,
        denoiser: Denoiser,
        canvas_BL: Tensor,
        editable_BL: Tensor,
        generators: Sequence[torch.Generator],
        *,
        stop_ids: Sequence[int] = (),
        watch: Watch | None = None,
    ) -> State:
        """Writes the editable positions of a canvas.

        Args:
            rule: How it takes a step.
            denoiser: Predicts the clean tokens.
            canvas_BL: Ids.
            editable_BL: Which of them are to be written.
            generators: One stream a row.
            stop_ids: The ids after which a row needs no more tokens.
            watch: Called with every state.

        Returns:
            The last state.
        """
        for state in sample(
            rule,
            denoiser,
            canvas_BL,
            editable_BL,
            generators=generators,
            block_length=self.block_length,
            stop_ids=stop_ids,
        ):
            if watch:
                watch(state)
        return state
