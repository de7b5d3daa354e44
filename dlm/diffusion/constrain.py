"""A denoiser whose predictions fill spans with strings of a language, and with no others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dlm.diffusion.automaton import IMPOSSIBLE, Automaton, Chances
from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.unmask import TokenChoice


@dataclass(frozen=True)
class Held:
    """A span that is held to a language.

    Attributes:
        places: Its positions in the row.
        automaton: The language, which has a string of as many tokens.
    """

    places: range
    automaton: Automaton


@dataclass(frozen=True)
class _Seen:
    """A span of one row at one call: its chances, and its rows among all that were predicted."""

    span: Held
    masses_NC: Tensor
    index_of: dict[int, int]


class ConstrainedDenoiser(Denoiser):
    """A denoiser of masks whose predictions in some spans are given that the spans are strings of their languages.

    The network predicts each mask of a span on its own. Given that they are a string of the language, the distribution
    of each follows exactly, and so does that of several together (`draw_tokens`). A token that is revealed keeps at
    least one string possible. So no span comes to a dead end, whatever the order, the budget, and the cuts of a token's
    choice, which are made of these conditional distributions.
    """

    def __init__(self, denoiser: Denoiser, spans: Sequence[Sequence[Held]], mask_id: int) -> None:
        """Wraps a denoiser for one canvas.

        Args:
            denoiser: What predicts.
            spans: Those of each row of the canvas that are held to a language; no two of them overlap.
            mask_id: The id of the mask.
        """
        self.denoiser, self.spans, self.mask_id = denoiser, spans, mask_id
        self._seen: list[tuple[int, _Seen]] = []
        self._log_p_MV = torch.empty(0, 0)

    def __call__(self, inputs: NetworkInput) -> Tensor:
        """Log-probabilities of the wanted positions, given the languages; see `Denoiser`."""
        touched, self._seen = self._touched(inputs), []
        if not touched:
            return self.denoiser(inputs)
        ids_BL, wide_BL = inputs.ids_BL, inputs.wanted_BL.clone()
        for row, span in touched:
            places = slice(span.places.start, span.places.stop)
            wide_BL[row, places] |= ids_BL[row, places] == self.mask_id
        log_p_MV = self.denoiser(replace(inputs, wanted_BL=wide_BL))
        number_BL = (wide_BL.flatten().cumsum(0) - 1).reshape(wide_BL.shape)
        self._log_p_MV = log_p_MV
        found_MV = log_p_MV.clone()
        for row, span in touched:
            at = [place for place in span.places if ids_BL[row, place] == self.mask_id]
            index_of = dict(zip(at, number_BL[row, at].tolist(), strict=True))
            seen = _Seen(span, self._masses(span, ids_BL[row], index_of), index_of)
            self._seen.append((row, seen))
            chances = Chances(span.automaton, seen.masses_NC)
            for place in span.places:
                if place in index_of:
                    given_V = self._given(log_p_MV[index_of[place]], chances, span.automaton)
                    found_MV[index_of[place]] = given_V.to(found_MV.dtype)
                chances.go_on()
        return found_MV[inputs.wanted_BL[wide_BL].to(found_MV.device)]

    def draw_tokens(self, token: TokenChoice, inputs: NetworkInput, log_p_NV: Tensor, u_N: Tensor) -> Tensor:
        """Tokens of the wanted positions, all at once; see `Denoiser`.

        Those of a span are drawn from left to right, each given those before it.
        """
        ids_N = super().draw_tokens(token, inputs, log_p_NV, u_N)
        number_BL = (inputs.wanted_BL.flatten().cumsum(0) - 1).reshape(inputs.wanted_BL.shape)
        for row, seen in self._seen:
            chosen = [place for place in seen.index_of if inputs.wanted_BL[row, place]]
            if len(chosen) < 2:
                continue  # one alone was drawn from what is given for it
            automaton, chances = seen.span.automaton, Chances(seen.span.automaton, seen.masses_NC)
            for place in range(seen.span.places.start, chosen[-1] + 1):
                if place not in chosen:
                    chances.go_on()
                    continue
                number = int(number_BL[row, place])
                log_p_1V = self._given(self._log_p_MV[seen.index_of[place]], chances, automaton)[None]
                ids_N[number] = token.draw(log_p_1V, u_N[number : number + 1])[0]
                chances.go_on(int(automaton.class_V[int(ids_N[number])]))
        return ids_N

    def _touched(self, inputs: NetworkInput) -> list[tuple[int, Held]]:
        """The spans in which predictions are wanted, by their rows in this call."""
        rows = range(len(inputs.ids_BL)) if inputs.rows_B is None else inputs.rows_B.tolist()
        asked = ((row, span) for row, of_canvas in enumerate(rows) for span in self.spans[of_canvas])
        return [(row, span) for row, span in asked if inputs.wanted_BL[row, span.places.start : span.places.stop].any()]

    def _masses(self, span: Held, ids_L: Tensor, index_of: dict[int, int]) -> Tensor:
        """The log-probability of each class at each position of a span."""
        masses_NC = torch.full((len(span.places), span.automaton.classes), -torch.inf, dtype=torch.float64)
        own = torch.tensor([place in index_of for place in span.places])
        index_M = torch.tensor([*index_of.values()], dtype=torch.long, device=self._log_p_MV.device)
        masses_NC[own] = span.automaton.masses(self._log_p_MV[index_M])
        settled = span.automaton.class_V[ids_L[span.places.start : span.places.stop][~own].cpu()]
        masses_NC[(~own).nonzero()[:, 0], settled] = 0.0
        return masses_NC

    @staticmethod
    def _given(log_p_V: Tensor, chances: Chances, automaton: Automaton) -> Tensor:
        """What the network says of the next position, given what is settled and the language."""
        weights_V = automaton.of_tokens(chances.weights(), log_p_V.device)
        return (log_p_V.double().clamp(min=IMPOSSIBLE) + weights_V).log_softmax(-1)
