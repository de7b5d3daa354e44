"""Languages of token strings, and independent predictions conditioned on them, exactly.

Where each position has a distribution of its own, those of strings that an automaton accepts are a hidden Markov chain
over its states, and a pass from each end gives every conditional (2508.10111; the forward-backward algorithm).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from dlm.diffusion.devices import copied

IMPOSSIBLE = -1e30
"""The log-probability of a token that is allowed and that a network rules out; strings without one are preferred."""


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton over tokens. Tokens that lead to the same state from every state are a class.

    Attributes:
        next_SC: The state after a token of each class, in each state.
        class_V: The class of each id; C of an id that no accepted string holds.
        accepting_S: Boolean, whether a string may end in a state.
        start: The state before the first token.
    """

    next_SC: Tensor
    class_V: Tensor
    accepting_S: Tensor
    start: int

    @classmethod
    def of_string(cls, ids: Sequence[int], vocabulary: int) -> Self:
        """The language of one string of tokens.

        Args:
            ids: The string.
            vocabulary: V.

        Returns:
            What accepts it alone.
        """
        distinct, dead = sorted({*ids}), len(ids) + 1
        class_V = torch.full((vocabulary,), len(distinct))
        class_V[distinct] = torch.arange(len(distinct))
        next_SC = torch.full((dead + 1, len(distinct)), dead)
        next_SC[torch.arange(len(ids)), class_V[torch.tensor(ids, dtype=torch.long)]] = torch.arange(1, dead)
        return cls(next_SC, class_V, torch.arange(dead + 1) == len(ids), 0)

    def accepts(self, ids: Sequence[int]) -> bool:
        """Whether a string of tokens is in the language."""
        state = self.start
        for id_ in ids:
            number = int(self.class_V[id_])
            if number == self.classes:
                return False
            state = int(self.next_SC[state, number])
        return bool(self.accepting_S[state])

    def first_V(self, tokens: int) -> Tensor:
        """Boolean, whether an accepted string of so many tokens may begin with each id."""
        live_S = self.accepting_S
        for _ in range(tokens - 1):
            live_S = live_S[self.next_SC].any(1)
        live_C = live_S[self.next_SC[self.start]]
        return torch.cat([live_C, live_C.new_zeros(1)])[self.class_V]

    @property
    def classes(self) -> int:
        """C."""
        return self.next_SC.shape[1]

    def lengths(self, most: int) -> list[int]:
        """The numbers of tokens, up to `most`, that accepted strings have."""
        reached_S = torch.zeros_like(self.accepting_S)
        reached_S[self.start] = True
        found = []
        for length in range(most + 1):
            if (reached_S & self.accepting_S).any():
                found.append(length)
            reached_S = torch.zeros_like(reached_S).index_fill(0, self.next_SC[reached_S].flatten(), True)
        return found

    def masses(self, log_p_NV: Tensor) -> Tensor:
        """The log-probability of each class at some positions, float64, shape (N, C), on the CPU."""
        class_NV = copied(self.class_V, log_p_NV.device).expand_as(log_p_NV)
        log_p_NV = log_p_NV.double().clamp(min=IMPOSSIBLE)
        return _sums(log_p_NV, class_NV, self.classes + 1)[:, : self.classes].cpu()

    def of_tokens(self, values_C: Tensor, device: torch.device) -> Tensor:
        """A value a class as a value a token, minus infinity for tokens that no accepted string holds."""
        values = torch.cat([values_C, values_C.new_full((1,), -torch.inf)])
        return copied(values, device)[copied(self.class_V, device)]

    @cached_property
    def next_1X(self) -> Tensor:
        """The states after each class in each state, in a row."""
        return self.next_SC.flatten()[None]


def _sums(values_NX: Tensor, index_NX: Tensor, size: int) -> Tensor:
    """The logarithms of sums of exponentials, of the values that share an index, shape (N, size)."""
    top_NY = values_NX.new_full((len(values_NX), size), -torch.inf).scatter_reduce(1, index_NX, values_NX, "amax")
    top_NY = top_NY.where(top_NY > -torch.inf, 0.0)
    shares_NX = (values_NX - top_NY.gather(1, index_NX)).exp()
    return torch.zeros_like(top_NY).scatter_add(1, index_NX, shares_NX).log() + top_NY


class Chances:
    """What may stand at each position of a span: predictions made one by one, given that the string is accepted.

    From left to right, what stands at a position may be settled; the positions after it are then conditioned on it.
    """

    def __init__(self, automaton: Automaton, masses_NC: Tensor) -> None:
        """Takes a pass from the right.

        Args:
            automaton: The language. It has a string of N tokens of the classes that are possible.
            masses_NC: The log-probability of each class at each position, float64; for a token that stands there,
                0 for its class and minus infinity for the others.
        """
        self.automaton, self.masses_NC = automaton, masses_NC
        right_S = torch.where(automaton.accepting_S, 0.0, -torch.inf).double()
        right = [right_S]
        for mass_C in masses_NC.flip(0):
            right_S = (mass_C + right_S[automaton.next_SC]).logsumexp(1)
            right.append(right_S)
        self._right = right[::-1]
        self._left_S = torch.full_like(right_S, -torch.inf)
        self._left_S[automaton.start] = 0.0
        self._place = 0

    def weights(self) -> Tensor:
        """Of the next position: the logarithm of what each class's predictions are to be multiplied by, shape (C,)."""
        after_SC = self._right[self._place + 1][self.automaton.next_SC]
        return (self._left_S[:, None] + after_SC).logsumexp(0)

    def go_on(self, class_: int | None = None) -> None:
        """Passes the next position, which is settled by the class of its token, or left open."""
        mass_C = self.masses_NC[self._place]
        if class_ is not None:
            mass_C = torch.full_like(mass_C, -torch.inf)
            mass_C[class_] = 0.0
        left_1X = (self._left_S[:, None] + mass_C).flatten()[None]
        self._left_S = _sums(left_1X, self.automaton.next_1X, len(self._left_S))[0]
        self._place += 1
