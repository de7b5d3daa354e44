"""Remasking: it keeps the marginals of the noise, and what it writes is the chain that its formulas describe."""

import itertools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser, FunctionDenoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.noise import Absorbing, Hybrid, Noise, Uniform
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.remask import AnyRemasker, AnySigma, Cap, LeastConfident, Loop, Planner, Psi, Rescale, largest_sigma
from dlm.diffusion.remasking import Planned, Remasking
from dlm.diffusion.rules import ReverseChain, Rule
from dlm.diffusion.sample import State, sample
from dlm.diffusion.schedule import Cosine, Linear, NoiseSchedule, Polynomial, Schedule
from dlm.diffusion.unmask import FixedSteps, TokenChoice
from dlm.selftest.joints import Joint
from tests.support.chains import Move, ancestral, chain, every, follows
from tests.support.choices import defaults, named
from tests.support.joints import Narrow, Straight, Wrong, absorbing, marginal, random_joint, twins
from tests.support.networks import ask

K = 3
MASK = K
STRONG: list[AnySigma] = [Cap(0.3), Rescale(0.7), LeastConfident(0.9), Loop(0.1, on=0.6, off=0.3, alpha=0.7), Psi(0.5)]
"""Each with options that remask often."""


def rule_of(remasker: AnyRemasker, steps: int, schedule: NoiseSchedule | None = None, temperature: float = 1.0) -> Rule:
    process, token = absorbing(schedule or Linear(), K), TokenChoice(temperature)
    if isinstance(remasker, Planner):
        return Planned(process, FixedSteps(steps), remasker, token)
    return Remasking(process, steps, remasker, token)


def written(
    rule: Rule,
    denoiser: Denoiser,
    editable_BL: Tensor,
    *,
    canvas_BL: Tensor | None = None,
    keys: list[int] | None = None,
    block_length: int | None = None,
    stop_ids: tuple[int, ...] = (),
) -> list[State]:
    """Every state; a row's stream follows from its key."""
    canvas_BL = torch.zeros_like(editable_BL, dtype=torch.long) if canvas_BL is None else canvas_BL
    streams = [generator("remask", key) for key in keys or range(len(editable_BL))]
    given = rule, denoiser, canvas_BL, editable_BL
    return list(sample(*given, generators=streams, block_length=block_length, stop_ids=stop_ids))


def remasking(remasker: AnySigma, schedule: NoiseSchedule, steps: int, share: Callable[[Tensor], Tensor]) -> Move:
    """The step of ReMDM, of eq. 6 as it is written there; `share` gives each revealed token's part of sigma."""

    def move(k: int, texts_ML: Tensor, p_MLS: Tensor) -> Tensor:
        t = torch.tensor([k / steps], dtype=torch.float64)
        u_t, u_s = (remasker.time(i / steps, schedule) for i in (k, k - 1))
        alpha_s, alpha_t = schedule.alpha(torch.tensor([u_s, u_t], dtype=torch.float64)).tolist()
        sigma = remasker.sigma(float(t), alpha_s, alpha_t)
        mask_S = torch.nn.functional.one_hot(torch.tensor(MASK), K + 1).double()
        shown_ML1 = (sigma * share(texts_ML))[..., None]
        shown_MLS = (1 - shown_ML1) * p_MLS + shown_ML1 * mask_S
        masked_MLS = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t) * p_MLS + (1 - alpha_s - sigma * alpha_t) / (
            1 - alpha_t
        ) * mask_S
        return torch.where((texts_ML == MASK)[..., None], masked_MLS, shown_MLS)

    return move


def equal(texts_ML: Tensor) -> Tensor:
    """Every revealed token has the same sigma."""
    return torch.ones(texts_ML.shape, dtype=torch.float64)


def noisy_marginal(process: Process, p_K: Tensor, t: float) -> Tensor:
    """q(xt) of one token."""
    return marginal(process, t)[:, :K] @ p_K


@pytest.mark.parametrize("schedule", [*defaults(Schedule), Straight(0.9, 0.2), Polynomial(power=60.0)], ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("remasker", [*STRONG, *defaults(AnySigma)], ids=repr)
def test_every_sigma_is_admissible_and_keeps_the_share_of_clean_tokens(
    remasker: AnySigma, steps: int, schedule: NoiseSchedule
) -> None:
    rule = Remasking(absorbing(schedule, K), steps, remasker, TokenChoice())
    for k in range(1, steps + 1):
        time, reveal, sigma = rule.probabilities(k)
        alpha_t, alpha_s = (
            float(schedule.alpha(torch.tensor(remasker.time(i / steps, schedule), dtype=torch.float64)))
            for i in (k, k - 1)
        )
        assert 0 <= time <= 1 and 0 <= sigma <= largest_sigma(alpha_s, alpha_t) + 1e-12
        assert -1e-12 <= reveal <= 1 + 1e-12
        kept = (1 - sigma) * alpha_t + reveal * (1 - alpha_t)
        assert kept == pytest.approx(1.0 if k == 1 else alpha_s, abs=1e-12)


def test_the_sigmas_in_closed_form() -> None:
    assert largest_sigma(0.75, 0.5) == 0.5 and largest_sigma(0.5, 0.25) == 1.0 and largest_sigma(0.1, 0.0) == 1.0
    assert Cap(0.3).sigma(0.5, 0.75, 0.5) == 0.3 and Cap(0.3).sigma(0.5, 0.9, 0.5) == pytest.approx(0.2)
    assert Rescale(0.5).sigma(0.5, 0.75, 0.5) == 0.25 and Rescale(0.5).sigma(0.5, 0.5, 0.25) == 0.5
    assert LeastConfident(0.5).sigma(0.5, 0.9, 0.5) == pytest.approx(0.1)
    assert LeastConfident(0.5).sigma(0.5, 0.5, 0.25) == pytest.approx(0.5 / math.e)
    assert Psi(0.5).sigma(0.5, 0.75, 0.5) == 0.125
    loop = Loop(0.5, on=0.6, off=0.2, alpha=0.9)
    assert [loop.sigma(t, 0.9, 0.9) for t in (0.61, 0.6, 0.21, 0.2)] == [
        0,
        pytest.approx(1 / 9),
        pytest.approx(1 / 9),
        0,
    ]


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=named)
def test_the_loop_stands_still_between_two_runs_of_the_schedule(schedule: NoiseSchedule) -> None:
    loop = Loop(on=0.6, off=0.2, alpha=0.75)

    def alpha(t: float) -> float:
        return float(schedule.alpha(torch.tensor(loop.time(t, schedule), dtype=torch.float64)))

    assert [alpha(t) for t in (0.6, 0.5, 0.2)] == pytest.approx([0.75] * 3, abs=1e-12)
    assert alpha(1.0) == pytest.approx(0.0, abs=1e-12) and alpha(0.0) == pytest.approx(1.0, abs=1e-12)
    rule = Remasking(absorbing(schedule, K), 10, Loop(0.05, on=0.6, off=0.2, alpha=0.75), TokenChoice())
    assert [rule.probabilities(k)[2] for k in range(10, 0, -1)] == [0, 0, 0, 0, *[0.05] * 4, 0, 0]
    falling = [alpha(t / 100) for t in range(101)]
    assert falling == sorted(falling, reverse=True)
    if schedule == Linear():  # 2503.00307, section 4.2
        assert alpha(0.8) == pytest.approx(0.75 * 0.2 / 0.4) and alpha(0.1) == pytest.approx(1 - 0.25 * 0.1 / 0.2)


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=named)
@pytest.mark.parametrize("remasker", [each for each in STRONG if not each.by_confidence], ids=named)
def test_what_it_writes_is_the_chain_of_the_formulas_at_every_time(remasker: AnySigma, schedule: NoiseSchedule) -> None:
    """Of a denoiser of no joint, whose tokens depend on one another."""
    steps, rows = 5, 4000
    denoiser, process = Wrong(K, 2), absorbing(schedule, K)
    texts_ML, found = chain(denoiser, process, 2, steps, remasking(remasker, schedule, steps, equal))
    states = written(rule_of(remasker, steps, schedule), denoiser, every(rows, 2))
    assert len(states) == steps + 1
    for state, p_M in zip(states, found, strict=True):
        assert float(p_M.sum()) == pytest.approx(1.0, abs=1e-12)
        assert follows(state.x_BL, texts_ML, p_M)


@pytest.mark.parametrize("remasker", STRONG, ids=named)
@pytest.mark.parametrize("steps", [2, 9])
def test_of_one_token_every_time_has_the_marginal_of_the_noise(remasker: AnySigma, steps: int) -> None:
    """For an exact denoiser, whatever sigma."""
    joint, process = random_joint(1, K), absorbing(Cosine(), K)
    _, found = chain(joint, process, 1, steps, remasking(remasker, Cosine(), steps, equal))
    states = written(rule_of(remasker, steps, Cosine()), joint, every(3000, 1))
    for k, p_M, state in zip(range(steps, -1, -1), found, states, strict=True):
        q_M = noisy_marginal(process, joint.table, remasker.time(k / steps, Cosine()))
        torch.testing.assert_close(p_M, q_M, atol=1e-12, rtol=0)
        assert follows(state.x_BL, torch.arange(K + 1)[:, None], q_M)


@pytest.mark.parametrize("remasker", [each for each in STRONG if not each.by_confidence], ids=named)
def test_given_the_clean_text_every_time_has_the_noise_of_that_text(remasker: AnySigma) -> None:
    """A denoiser that knows x0: each token is masked on its own, with probability 1 - alpha."""
    x0_L, steps, rows = torch.tensor([2, 0, 1]), 6, 4000
    known = FunctionDenoiser(lambda inputs: _certain(x0_L.expand(inputs.ids_BL.shape)[inputs.wanted_BL]))
    states = written(rule_of(remasker, steps), known, every(rows, 3))
    patterns_ML = torch.tensor(list(itertools.product((False, True), repeat=3)))
    for k, state in zip(range(steps, -1, -1), states, strict=True):
        alpha = 1.0 - remasker.time(k / steps, Linear())
        p_M = torch.where(patterns_ML, 1.0 - alpha, alpha).double().prod(1)
        assert torch.equal(state.x_BL.where(state.x_BL != MASK, x0_L), x0_L.expand(rows, 3))
        assert follows(state.x_BL == MASK, patterns_ML, p_M)


def _certain(x0_N: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(x0_N, K + 1).double().log()


@pytest.mark.parametrize("remasker", [Cap(0.0), Rescale(0.0), LeastConfident(0.0), Psi(0.0)], ids=named)
def test_without_sigma_it_is_ancestral_sampling(remasker: AnySigma) -> None:
    steps, denoiser, process = 4, Wrong(K, 2), absorbing(Cosine(), K)
    texts_ML, found = chain(denoiser, process, 2, steps, ancestral(process, steps))
    states = written(rule_of(remasker, steps, Cosine()), denoiser, every(4000, 2))
    assert all(follows(state.x_BL, texts_ML, p_M) for state, p_M in zip(states, found, strict=True))


@pytest.mark.parametrize("remasker", [*STRONG, Loop(0.0), Planner(0.0), Planner(3.0)], ids=repr)
def test_it_opens_revealed_tokens_just_where_it_is_to(remasker: AnyRemasker) -> None:
    states = written(rule_of(remasker, 12), Wrong(K, 8), every(30, 8))
    reopened = sum(int(((a.x_BL != MASK) & (b.x_BL == MASK)).sum()) for a, b in pairwise(states))
    assert (reopened > 0) == (getattr(remasker, "eta", 1.0) > 0.0)


@pytest.mark.parametrize("make", [Cap, Rescale, Psi], ids=lambda choice: choice.name)
def test_with_ever_more_steps_an_exact_denoiser_writes_the_joint(make: type[Cap] | type[Rescale] | type[Psi]) -> None:
    """Two identical symbols differ with (1 - 1/K)/T without remasking, and with eta in proportion to 1/T like 1/T.

    At one eta the tokens that a step reveals side by side do not get fewer as fast, and it falls like 1/sqrt(T).
    """
    process = absorbing(Linear(), K)

    def differ(remasker: AnySigma, steps: int) -> float:
        texts_ML, found = chain(twins(K), process, 2, steps, remasking(remasker, Linear(), steps, equal))
        return float(found[-1][(texts_ML[:, 0] != texts_ML[:, 1]) & (texts_ML != MASK).all(1)].sum())

    assert differ(make(0.0), 8) == pytest.approx((1 - 1 / K) / 8, abs=1e-12)
    rates = [math.log2(differ(make(eta), 64) / differ(make(eta / fall), 128)) for eta, fall in ((0.04, 2), (0.4, 1))]
    assert rates == [pytest.approx(1.0, abs=0.1), pytest.approx(0.5, abs=0.1)]


def test_the_least_confident_goes_first_and_as_many_go_on_average() -> None:
    """Tokens whose probabilities depend on nothing, so that those they were drawn with are known of every text."""
    p_LK = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)
    log_p_LS = torch.cat([p_LK.log(), torch.full((2, 1), -torch.inf, dtype=torch.float64)], 1)
    denoiser = FunctionDenoiser(lambda inputs: log_p_LS.expand(len(inputs.ids_BL), -1, -1)[inputs.wanted_BL])
    steps, remasker, process = 5, LeastConfident(0.9), absorbing(Linear(), K)

    def share(texts_ML: Tensor) -> Tensor:
        weight_ML = torch.zeros(texts_ML.shape, dtype=torch.float64)
        for text, weight_L in zip(texts_ML.tolist(), weight_ML, strict=True):
            for place, id_ in enumerate(text):
                weight_L[place] = math.exp(-float(p_LK[place, id_])) if id_ != MASK else 0.0
        count_M1 = (texts_ML != MASK).sum(1, keepdim=True)
        return weight_ML / weight_ML.sum(1, keepdim=True).clamp(min=1e-9) * count_M1

    texts_ML, found = chain(denoiser, process, 2, steps, remasking(remasker, Linear(), steps, share))
    states = written(rule_of(remasker, steps), denoiser, every(6000, 2))
    for k, p_M, state in zip(range(steps, -1, -1), found, states, strict=True):
        assert follows(state.x_BL, texts_ML, p_M)
        assert float(p_M @ (texts_ML != MASK).sum(1).double()) == pytest.approx(2 * (1 - k / steps), abs=1e-12)
    last = found[-2]
    surer, less_sure = (float(last[(texts_ML[:, i] == 0)].sum()) / float(p_LK[i, 0]) for i in (0, 1))
    assert surer > less_sure  # a token of probability 0.8 stays more often than one of 0.3


def test_a_token_counts_by_the_probability_that_the_model_gave_it() -> None:
    """Every other position has a certain token, the others three that are equally likely, at any temperature.

    Of those revealed in a text, the others go (e^-1/3)/(e^-1) = 1.95 times as often.
    """
    p_LS = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3, 0.0]], dtype=torch.float64).repeat(6, 1)
    denoiser = FunctionDenoiser(lambda inputs: p_LS.log().expand(len(inputs.ids_BL), -1, -1)[inputs.wanted_BL])
    for temperature in (0.0, 1.0):
        rule = rule_of(LeastConfident(1.0), 12, temperature=temperature)
        *_, before, after, _ = written(rule, denoiser, every(4000, 12))
        shown_N2 = (before.x_BL != MASK).view(-1, 2)
        sure, unsure = ((shown_N2 & (after.x_BL == MASK).view(-1, 2)).sum(0) / shown_N2.sum(0)).tolist()
        assert unsure / sure == pytest.approx(1.95, abs=0.2)


@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("noise", [Absorbing(), Uniform(), Hybrid(0.3)], ids=repr)
def test_psi_steps_are_a_mixture_of_the_posterior_and_the_noise(noise: Noise, steps: int) -> None:
    """And of one token with an exact denoiser, every time has the marginal of the noise."""
    process, eta = Process(noise, Cosine(), Vocabulary.plain(K)), 0.4
    for length, denoiser in ((1, _exact(process)), (2, Wrong(K, 2))):
        texts_ML, found = chain(denoiser, process, length, steps, _psi(process, steps, eta))
        states = written(_psi_rule(process, steps, eta), denoiser, every(4000, length))
        assert all(follows(state.x_BL, texts_ML, p_M) for state, p_M in zip(states, found, strict=True))
        if length == 1:
            p_K = random_joint(1, K).table
            for k, p_M in zip(range(steps, -1, -1), found, strict=True):
                q_M = noisy_marginal(process, p_K, k / steps)[texts_ML[:, 0]]
                torch.testing.assert_close(p_M, q_M, atol=1e-12, rtol=0)


@pytest.mark.parametrize("noise", [Absorbing(), Uniform(), Hybrid(0.3)], ids=repr)
def test_a_token_is_forgotten_as_often_as_eta_says(noise: Noise) -> None:
    """Of one token, before and after each step: the marginals alone do not depend on eta."""
    process, eta, steps = Process(noise, Cosine(), Vocabulary.plain(K)), 0.2, 3
    denoiser, move = _exact(process), _psi(process, steps, eta)
    texts_ML, found = chain(denoiser, process, 1, steps, move)
    states = written(_psi_rule(process, steps, eta), denoiser, every(6000, 1))
    for k, p_M, (before, after) in zip((3, 2), found, pairwise(states), strict=False):
        t_M, select_ML = torch.full((len(texts_ML),), k / steps, dtype=torch.float64), process.to_predict(texts_ML)
        p_MLS = torch.nn.functional.one_hot(texts_ML, K + 1).double()
        p_MLS[select_ML] = ask(denoiser, texts_ML, t_M, select_ML).exp()
        after_MM = move(k, texts_ML, p_MLS)[:, 0, texts_ML[:, 0]]
        pairs_N2 = torch.cartesian_prod(texts_ML[:, 0], texts_ML[:, 0])
        law_N = (p_M[:, None] * after_MM).nan_to_num().flatten()
        assert follows(torch.cat([before.x_BL, after.x_BL], 1), pairs_N2, law_N)


def _psi(process: Process, steps: int, eta: float) -> Move:
    """The mixture of the posterior and the noise."""

    def move(k: int, texts_ML: Tensor, p_MLS: Tensor) -> Tensor:
        anew_MLS = p_MLS @ marginal(process, (k - 1) / steps).T
        return (1 - eta) * ancestral(process, steps)(k, texts_ML, p_MLS) + eta * anew_MLS

    return move


def _exact(process: Process) -> Denoiser:
    return Joint(random_joint(1, K).table).denoiser(process)


def _psi_rule(process: Process, steps: int, eta: float) -> Rule:
    """For masks as a sigma, else the reverse chain with tokens drawn anew."""
    if process.absorbing:
        return Remasking(process, steps, Psi(eta), TokenChoice())
    return ReverseChain(process, steps, TokenChoice(), eta)


@pytest.mark.parametrize("noise", [Uniform(), Hybrid(0.3)], ids=repr)
def test_what_is_given_is_not_drawn_anew_and_a_rows_text_is_its_own(noise: Noise) -> None:
    process = Process(noise, Straight(0.5, 0.2), Vocabulary.plain(K))
    editable_BL = torch.tensor([[True] * 6, [True, False, True, False, True, True], [False] * 6, [True] * 6])
    canvas_BL = torch.tensor([[0, 1, 2, MASK, 1, 0]]).repeat(4, 1)
    rule = ReverseChain(process, 7, TokenChoice(), 0.6)
    states = written(rule, Wrong(K, 6), editable_BL, canvas_BL=canvas_BL)
    assert all(torch.equal(state.x_BL[~editable_BL], canvas_BL[~editable_BL]) for state in states)
    assert not (states[-1].x_BL[editable_BL] == MASK).any()  # though the schedule has noise at t = 0
    for row in range(4):
        given = editable_BL[row : row + 1]
        alone = written(rule, Wrong(K, 6), given, canvas_BL=canvas_BL[:1], keys=[row])[-1]
        assert torch.equal(alone.x_BL[0], states[-1].x_BL[row])


def test_nothing_drawn_anew_is_the_reverse_chain_draw_by_draw() -> None:
    process, token = Process(Uniform(), Linear(), Vocabulary.plain(K)), TokenChoice()
    plain, none = (
        written(rule, Wrong(K, 4), every(20, 4))
        for rule in (ReverseChain(process, 6, token), ReverseChain(process, 6, token, 0.0))
    )
    assert all(torch.equal(a.x_BL, b.x_BL) for a, b in zip(plain, none, strict=True))


@pytest.mark.parametrize("remasker", [*STRONG, Planner(0.0), Planner(), Planner(2.0)], ids=repr)
@pytest.mark.parametrize(("block_length", "steps"), [(None, 1), (None, 9), (3, 4)])
def test_what_is_given_stays_and_every_mask_goes(remasker: AnyRemasker, block_length: int | None, steps: int) -> None:
    random = torch.Generator().manual_seed(5)
    canvas_BL = torch.randint(K + 1, (6, 7), generator=random)  # a mask may be given, too
    editable_BL = torch.rand(6, 7, generator=random) < 0.6
    editable_BL[0] = False
    rule, asked = rule_of(remasker, steps), Narrow(Wrong(K, 7), 7)
    states = written(rule, asked, editable_BL, canvas_BL=canvas_BL, block_length=block_length, stop_ids=(1,))
    assert (states[0].x_BL[editable_BL] == MASK).all()
    for before, state in pairwise(states):
        assert torch.equal(state.x_BL[~editable_BL], canvas_BL[~editable_BL])
        assert torch.equal(state.changed_BL, state.x_BL != before.x_BL) or state.calls == states[-1].calls
        assert before.calls <= state.calls and (before.calls_B <= state.calls_B).all()
    assert not (states[-1].x_BL[editable_BL] == MASK).any()
    assert int(states[-1].calls_B[0]) == 0 and states[-1].calls == len(asked.seen)
    if block_length:
        block_BL = (editable_BL.cumsum(1) - 1) // block_length
        for state in states:
            at = block_BL[state.changed_BL]
            assert not at.numel() or len(at.unique()) == 1  # earlier blocks stay as they were finished


@pytest.mark.parametrize("remasker", [*STRONG, Planner(0.5), Planner()], ids=repr)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_rows_text_is_its_own(remasker: AnyRemasker, temperature: float) -> None:
    editable_BL = torch.tensor([[True] * 6, [True, False, True, False, True, True], [False] * 6, [True] * 6])
    rule = rule_of(remasker, 7, temperature=temperature)
    together = written(rule, Wrong(K, 6), editable_BL, keys=[1, 2, 3, 4])[-1]
    wide_BL = torch.cat([editable_BL, torch.zeros(4, 3, dtype=torch.bool)], 1)
    wide = written(rule, Narrow(Wrong(K, 6), 6), wide_BL, keys=[1, 2, 3, 4])[-1]
    assert torch.equal(wide.x_BL[:, :6], together.x_BL)
    for row in range(4):
        alone = written(rule, Wrong(K, 6), editable_BL[row : row + 1], keys=[row + 1])[-1]
        assert torch.equal(alone.x_BL[0], together.x_BL[row]) and int(alone.calls_B[0]) == int(together.calls_B[row])


@pytest.mark.parametrize("remasker", STRONG, ids=named)
def test_only_what_is_revealed_is_asked_for_and_a_step_without_it_makes_no_call(remasker: AnySigma) -> None:
    told: list[tuple[Tensor, Tensor]] = []
    denoiser = Wrong(K, 3)

    @FunctionDenoiser
    def noting(inputs: NetworkInput) -> Tensor:
        told.append((inputs.ids_BL, inputs.wanted_BL))
        return denoiser(inputs)

    states = written(rule_of(remasker, 40), noting, every(2, 3))
    assert all((ids_BL[wanted_BL] == MASK).all() and wanted_BL.any(1).all() for ids_BL, wanted_BL in told)
    assert states[-1].calls == len(told) < 40
    revealed = [((b.x_BL != MASK) & (a.x_BL == MASK)).any(1) for a, b in pairwise(states)]
    assert torch.equal(states[-1].calls_B, torch.stack(revealed).sum(0))
    assert any(a.calls == b.calls and b.changed_BL.any() for a, b in pairwise(states))  # remasked alone


@pytest.mark.parametrize("grid", ["linear", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0, 4.0])
def test_the_planner_keeps_the_most_likely_of_all(grid: str, eta: float) -> None:
    """At temperature 0, where a plain loop over one text gives the same states."""
    length, steps, denoiser = 8, 5, Wrong(K, 8)
    budget = FixedSteps(steps, "linear" if grid == "linear" else "cosine")
    rule = Planned(absorbing(Linear(), K), budget, Planner(eta), TokenChoice(temperature=0.0))
    states = written(rule, denoiser, every(1, length))
    text = [MASK] * length
    for k, state in zip(range(1, steps + 1), states[1:], strict=True):
        log_p_LS = ask(denoiser, torch.tensor([text]), None, every(1, length))
        scores = []
        for place, id_ in enumerate(text):
            best = int(log_p_LS[place].argmax())
            new = (float(log_p_LS[place, best]), best)
            scores.append(new if id_ == MASK else (eta * float(log_p_LS[place, id_]), id_))
        left = 1 - k / steps if grid == "linear" else math.cos(math.pi / 2 * k / steps)
        keep = length - math.floor(length * left + 1e-9)
        ranks = sorted(range(length), key=lambda place: (-scores[place][0], place))[:keep]
        text = [scores[place][1] if place in ranks else MASK for place in range(length)]
        assert state.x_BL.tolist() == [text] and state.calls == k


def test_the_planner_draws_from_the_distribution_of_a_mask() -> None:
    joint = random_joint(1, K)
    last = written(rule_of(Planner(), 1), joint, every(4000, 1))[-1]
    assert follows(last.x_BL, torch.arange(K)[:, None], joint.table)


@pytest.mark.parametrize("remasker", [*STRONG, Planner()], ids=named)
def test_a_stop_that_may_go_again_ends_nothing(remasker: AnyRemasker) -> None:
    """Of one block."""
    rule = rule_of(remasker, 8)
    assert not rule.tokens_are_final
    plain, stopped = (written(rule, Wrong(K, 6), every(10, 6), stop_ids=stops)[-1] for stops in ((), (0, 1, 2)))
    assert torch.equal(plain.x_BL, stopped.x_BL)


@pytest.mark.parametrize("remasker", [*STRONG, Planner()], ids=named)
def test_a_stop_in_a_finished_block_leaves_the_next_ones_nothing_to_write(remasker: AnyRemasker) -> None:
    blocks = 0, 0, 0, 1, 1, 1, 2, 2
    texts_RL = torch.tensor([[0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 2, 0, 0, 1, 0], [0] * 8])

    @FunctionDenoiser
    def known(inputs: NetworkInput) -> Tensor:
        rows = torch.arange(3) if inputs.rows_B is None else inputs.rows_B
        return _certain(texts_RL[rows][inputs.wanted_BL])

    rule = rule_of(remasker, 5)
    states = written(rule, known, every(3, 8), block_length=3, stop_ids=(1, 2))
    ends = [0, 1, 2]  # the block in which each text ends
    expected = [
        [id_ if block <= end else 1 for id_, block in zip(text, blocks, strict=True)]
        for text, end in zip(texts_RL.tolist(), ends, strict=True)
    ]
    assert states[-1].x_BL.tolist() == expected
    calls = states[-1].calls_B.tolist()
    assert 0 < calls[0] <= 5 and calls[1] <= 10 and calls[0] < calls[1] < calls[2] <= 15


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Cap(-0.1), "eta must be from 0 to 1, got -0.1"),
        (lambda: Rescale(math.nan), "eta must be from 0 to 1"),
        (lambda: LeastConfident(1.5), "eta must be from 0 to 1"),
        (lambda: Psi(2.0), "eta must be from 0 to 1"),
        (lambda: Loop(2.0), "eta must be from 0 to 1"),
        (lambda: Loop(on=0.1, off=0.1), "off and on must be"),
        (lambda: Loop(on=1.0), "off and on must be"),
        (lambda: Loop(off=0.0), "off and on must be"),
        (lambda: Loop(alpha=1.0), "alpha must be between 0 and 1"),
        (lambda: Planner(-1.0), "eta must be at least 0"),
        (lambda: Planner(math.inf), "eta must be at least 0"),
        (lambda: ReverseChain(absorbing(Linear(), K), 3, TokenChoice(), 0.1), "redrawn must be 0 with absorbing"),
        (lambda: rule_of(Cap(), 0), "steps must be at least 1"),
        (lambda: rule_of(Planner(), 0), "steps must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_each_remasker_is_tried_here() -> None:
    assert {type(each) for each in [*STRONG, Planner()]} == set(get_args(AnyRemasker))
