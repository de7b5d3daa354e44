"""Checks of the samplers and of their exact likelihoods, with exact denoisers."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser, FunctionDenoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import chain_rule_nll
from dlm.diffusion.noise import Absorbing
from dlm.diffusion.process import Process
from dlm.diffusion.remask import AnySigma, Cap, LeastConfident, Loop, Psi, Rescale
from dlm.diffusion.remasking import Remasking
from dlm.diffusion.rules import ReverseChain, Rule, Unmasking
from dlm.diffusion.sample import sample
from dlm.diffusion.schedule import Cosine
from dlm.diffusion.unmask import Ancestral, Budget, LeftToRight, OneAtATime, Predictions, Random, TokenChoice
from dlm.selftest.check import Check, chi_square, frequency
from dlm.selftest.joints import NOISES, Joint, random_joint, small_process

REMASKERS: tuple[AnySigma, ...] = (Cap(0.3), Rescale(0.7), LeastConfident(0.9), Loop(0.1), Psi(0.5))
"""One of each choice of sigma, each remasking often."""


def two_identical_symbols() -> Iterator[Check]:
    """How often two identical symbols are drawn different."""
    rows, steps = 10_000, 4
    for symbols in (2, 3):
        joint, process = Joint.twins(symbols), small_process(Absorbing(), symbols)
        denoiser, p = joint.mask_denoiser(), (1 - 1 / symbols) / steps
        for name, texts_BL in (
            ("ancestral", _unmask(denoiser, process, rows, 2, Ancestral(steps))),
            ("the reverse chain", _reverse(denoiser, process, rows, 2, steps)),
        ):
            unequal = int((texts_BL[:, 0] != texts_BL[:, 1]).sum())
            yield frequency(
                f"{symbols} symbols: {name} in {steps} steps disagrees (1 - 1/{symbols})/{steps}", unequal, rows, p
            )
    texts_BL = _unmask(denoiser, process, rows, 2, OneAtATime())
    yield Check("first-hitting never disagrees", 0.0, float((texts_BL[:, 0] != texts_BL[:, 1]).double().mean()), 0.0)


def any_order() -> Iterator[Check]:
    """The chain rule of an exact denoiser is -log p(x) in every order."""
    joint = random_joint(4, 3)
    process, denoiser = small_process(Absorbing(), 3), joint.mask_denoiser()
    x0_ML, log_p_M = joint.texts(), joint.table.flatten().log()
    orders = [chain_rule_nll(denoiser, process, x0_ML, _Given(order)) for order in itertools.permutations(range(4))]
    spread = float(torch.stack(orders).std(0).max())
    yield Check("random order with the exact denoiser: the spread over all 24 orders", 0.0, spread, 1e-10)
    left = chain_rule_nll(denoiser, process, x0_ML, LeftToRight())
    yield Check(
        "left to right, the chain rule is -log p(x), largest error", 0.0, float((left + log_p_M).abs().max()), 1e-10
    )


def exact_denoiser() -> Iterator[Check]:
    """Samplers with the exact denoiser draw from the joint."""
    joint, rows = random_joint(3, 3), 20_000
    texts_BL = _unmask(joint.mask_denoiser(), small_process(Absorbing(), 3), rows, 3, OneAtATime())
    yield _draws_from(joint, texts_BL, "first-hitting draws from the joint")
    single = random_joint(1, 4)
    for noise in NOISES:
        process = small_process(noise, 4)
        texts_BL = _reverse(single.denoiser(process), process, 4000, 1, 3)
        yield _draws_from(single, texts_BL, f"{noise.name}, one token, 3 steps: the reverse chain draws from p")


def remasking() -> Iterator[Check]:
    """Remasking keeps the marginals of the noise, whatever sigma."""
    joint, steps, rows = random_joint(1, 3), 6, 3000
    log_p_S = torch.cat([joint.table, torch.zeros(1)]).log()
    exact = FunctionDenoiser(lambda inputs: log_p_S.expand(len(inputs.index_N), -1))
    process = small_process(Absorbing(), 3, Cosine())
    for remasker in REMASKERS:
        rule: Rule = Remasking(process, steps, remasker, TokenChoice())
        *_, before, after = _states(rule, exact, rows, 1, "remask")
        time = torch.tensor(remasker.time(1 / steps, process.schedule), dtype=torch.float64)
        clean = float(process.schedule.alpha(time))
        expected_M = torch.cat([clean * joint.table, torch.tensor([1.0 - clean])]) * rows
        found_M = torch.bincount(before[:, 0], minlength=4)
        yield chi_square(f"one token, {remasker.name}: before the last step it has the noise", found_M, expected_M)
        yield _draws_from(joint, after, f"one token, {remasker.name}: after it, p")
    single = random_joint(1, 4)
    for noise in NOISES:
        if noise.randomises:
            process = small_process(noise, 4)
            rule = ReverseChain(process, 3, TokenChoice(), 0.5)
            texts_BL = _drawn(rule, single.denoiser(process), 2000, 1, "anew")
            yield _draws_from(single, texts_BL, f"{noise.name}, one token, half of it drawn anew a step: p")
    twins, process, rows = Joint.twins(2), small_process(Absorbing(), 2), 3000
    rule = Remasking(process, 4, Cap(0.0), TokenChoice())
    texts_BL = _drawn(rule, twins.mask_denoiser(), rows, 2, "sigma 0")
    unequal = int((texts_BL[:, 0] != texts_BL[:, 1]).sum())
    yield frequency("sigma 0 is ancestral: in 4 steps two identical bits disagree (1 - 1/2)/4", unequal, rows, 1 / 8)


@dataclass(frozen=True)
class _Given:
    """The positions in a given order."""

    first: tuple[int, ...]
    name: Literal["given"] = "given"
    needs_predictions: ClassVar[bool] = False
    is_random: ClassVar[bool] = False

    def score(
        self, candidates_BL: Tensor, predictions: Predictions | None, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Minus the rank of each position; see `Order`."""
        rank_L = torch.tensor(self.first).argsort().double()
        return (-rank_L).expand(candidates_BL.shape).masked_fill(~candidates_BL, -torch.inf)


def _draws_from(joint: Joint, texts_BL: Tensor, claim: str) -> Check:
    """Drawn texts against the probabilities of a joint."""
    index_B = (texts_BL * joint.symbols ** torch.arange(joint.length - 1, -1, -1)).sum(1)
    found_M = torch.bincount(index_B, minlength=joint.symbols**joint.length)
    return chi_square(claim, found_M, joint.table.flatten() * len(texts_BL))


def _unmask(denoiser: Denoiser, process: Process, rows: int, length: int, budget: Budget) -> Tensor:
    """Texts by unmasking in random order."""
    return _drawn(Unmasking(process, Random(), budget, TokenChoice()), denoiser, rows, length, "write")


def _reverse(denoiser: Denoiser, process: Process, rows: int, length: int, steps: int) -> Tensor:
    """Texts by the reverse chain."""
    return _drawn(ReverseChain(process, steps, TokenChoice()), denoiser, rows, length, "reverse")


def _drawn(rule: Rule, denoiser: Denoiser, rows: int, length: int, key: str) -> Tensor:
    """Texts by a rule."""
    return _states(rule, denoiser, rows, length, key)[-1]


def _states(rule: Rule, denoiser: Denoiser, rows: int, length: int, key: str) -> Sequence[Tensor]:
    """The canvases of a rule, from noise to texts."""
    canvas_BL = torch.zeros(rows, length, dtype=torch.long)
    editable_BL, streams = torch.ones_like(canvas_BL, dtype=torch.bool), [generator(key, row) for row in range(rows)]
    return [state.x_BL for state in sample(rule, denoiser, canvas_BL, editable_BL, generators=streams)]
