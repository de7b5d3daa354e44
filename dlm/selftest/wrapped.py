"""Checks of denoisers around denoisers: spans that are held to a language, and guidance."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dlm.diffusion.automaton import Automaton
from dlm.diffusion.constrain import ConstrainedDenoiser, Held
from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.guide import Guidance, GuidedDenoiser
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.noise import Absorbing
from dlm.diffusion.rules import Unmasking
from dlm.diffusion.sample import sample
from dlm.diffusion.unmask import Budget, FixedSteps, OneAtATime, Random, TokenChoice
from dlm.selftest.check import Check, chi_square
from dlm.selftest.joints import random_joint, small_process

SYMBOLS = 3


def languages() -> Iterator[Check]:
    """Predictions given a language are those of its strings, by enumeration."""
    joint, length, rows = random_joint(3, SYMBOLS), 3, 500
    texts_ML, denoiser = joint.texts(), joint.mask_denoiser()
    sum_M = texts_ML.sum(1)
    for name, automaton, accepted_M in (
        ("the sum is even", _sum_is_even(), sum_M % 2 == 0),
        ("one string alone", _only((2, 0, 1)), (texts_ML == torch.tensor([2, 0, 1])).all(1)),
    ):
        held = ConstrainedDenoiser(denoiser, [[Held(range(length), automaton)]] * rows, SYMBOLS)
        log_p_LS = _ask(denoiser, torch.full((1, length), SYMBOLS))
        p_M = log_p_LS.gather(1, texts_ML.T).sum(0).exp() * accepted_M
        p_M = p_M / p_M.sum()
        one_LS = _ask(held, torch.full((1, length), SYMBOLS)).exp()
        shares = [p_M[texts_ML[:, place] == symbol].sum() for place in range(length) for symbol in range(SYMBOLS)]
        error = (one_LS[:, :SYMBOLS].flatten() - torch.stack(shares)).abs().max()
        yield Check(f"{name}: predictions given it, largest error", 0.0, float(error), 1e-10)
        found_M = _counted(_filled(held, rows, length, FixedSteps(1)), texts_ML)
        if int(accepted_M.sum()) > 1:
            yield chi_square(f"{name}: one step draws from its strings", found_M, p_M * rows)
        found_M = _counted(_filled(held, 100, length, OneAtATime()), texts_ML)
        yield Check(f"{name}: texts outside of it, one token a step", 0.0, float(found_M[~accepted_M].sum()), 0.0)


def guidance() -> Iterator[Check]:
    """One step of guidance is the formula, and equal predictions are not changed."""
    joint, weight = random_joint(3, SYMBOLS), 1.5
    x_1L, hidden_1L = torch.tensor([[1, SYMBOLS, 0]]), torch.tensor([[SYMBOLS, SYMBOLS, 0]])
    editable_1L = torch.tensor([[False, True, True]])
    denoiser = joint.mask_denoiser()

    def guided(w: float, other_1L: Tensor) -> Tensor:
        pair = GuidedDenoiser(denoiser, Guidance(w), editable_1L, other_1L, editable_1L, SYMBOLS, SYMBOLS)
        return _ask(pair, x_1L).exp()[:, :SYMBOLS]

    given_S, none_S = joint.table[1, :, 0], joint.table[:, :, 0].sum(0)
    expected_S = (given_S / given_S.sum()) ** (1 + weight) / (none_S / none_S.sum()) ** weight
    error = (guided(weight, hidden_1L) - expected_S / expected_S.sum()).abs().max()
    yield Check("p(x | prompt)^(1 + w) / p(x)^w by enumeration, largest error", 0.0, float(error), 1e-10)
    plain_1S = _ask(denoiser, x_1L).exp()[:, :SYMBOLS]
    for claim, found_1S in (
        ("weight 0 is no guidance", guided(0.0, hidden_1L)),
        ("away from the same prompt is no guidance", guided(weight, x_1L)),
    ):
        yield Check(f"{claim}, largest error", 0.0, float((found_1S - plain_1S).abs().max()), 1e-10)


def _sum_is_even() -> Automaton:
    """The strings of symbols whose sum is even."""
    return Automaton(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 1, 0, 2]), torch.tensor([True, False]), 0)


def _only(string: Sequence[int]) -> Automaton:
    """One string; the last state accepts nothing."""
    dead = len(string) + 1
    next_SC = torch.full((len(string) + 2, SYMBOLS), dead)
    for place, symbol in enumerate(string):
        next_SC[place, symbol] = place + 1
    return Automaton(next_SC, torch.arange(SYMBOLS + 1), torch.arange(dead + 1) == len(string), 0)


def _ask(denoiser: Denoiser, x_1L: Tensor) -> Tensor:
    """What is said of the masks of a text."""
    return denoiser(NetworkInput(x_1L, x_1L == SYMBOLS, torch.ones(1, dtype=torch.float64)))


def _filled(denoiser: Denoiser, rows: int, length: int, budget: Budget) -> Tensor:
    """Rows of masks, filled in random order."""
    canvas_BL = torch.full((rows, length), SYMBOLS)
    rule = Unmasking(small_process(Absorbing(), SYMBOLS), Random(), budget, TokenChoice())
    streams = [generator("held", row) for row in range(rows)]
    *_, last = sample(rule, denoiser, canvas_BL, torch.ones_like(canvas_BL, dtype=torch.bool), generators=streams)
    return last.x_BL


def _counted(texts_BL: Tensor, texts_ML: Tensor) -> Tensor:
    """How often each text is among some."""
    return (texts_BL[:, None] == texts_ML).all(2).sum(0)
