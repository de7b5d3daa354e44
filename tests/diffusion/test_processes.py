"""Every kind of noise, on every schedule, is one Markov chain: its matrices, its posteriors, its draws, its edges."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from scipy import stats
from torch import Tensor

from dlm.diffusion.bound import nats_per_level
from dlm.diffusion.draws import generator
from dlm.diffusion.matrices import posterior, transition_matrix
from dlm.diffusion.noise import Absorbing, AnyNoise, Hybrid, Noise, Shares, Uniform
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.schedule import Cosine, Geometric, Linear, NoiseSchedule, Polynomial, Schedule
from tests.support.choices import defaults
from tests.support.joints import Lopsided, Straight, marginal, step_matrix

VOCABULARY = Vocabulary(7, 2, (0, 2, 5))
"""Symbols 1, 3, 4, 6; the mask is 2; no text holds 0 and 5."""

NOISES: list[Noise] = [*defaults(AnyNoise), Hybrid(share=0.3), Lopsided()]
SCHEDULES: list[NoiseSchedule] = [*defaults(Schedule), Polynomial(power=0.5), Straight(0.9, 0.2)]
SYMBOLS = VOCABULARY.symbols_K.tolist()
TIMES = [0.0, 0.1, 0.35, 0.5, 0.8, 0.95, 1.0]


@pytest.fixture(params=NOISES, ids=lambda noise: noise.name + (f"-{noise.share}" if isinstance(noise, Hybrid) else ""))
def noise(request: pytest.FixtureRequest) -> Noise:
    found: Noise = request.param
    return found


@pytest.fixture(params=SCHEDULES, ids=lambda schedule: schedule.name)
def process(noise: Noise, request: pytest.FixtureRequest) -> Process:
    return Process(noise, request.param, VOCABULARY)


@pytest.fixture(params=[Cosine(), Straight(0.9, 0.2)], ids=lambda schedule: schedule.name)
def drawn(noise: Noise, request: pytest.FixtureRequest) -> Process:
    """A process whose draws are counted; fewer schedules, for each takes a moment."""
    return Process(noise, request.param, VOCABULARY)


def at(*t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def one_hot(token: int) -> Tensor:
    return torch.eye(VOCABULARY.size, dtype=torch.float64)[token]


def fits(found_S: Tensor, p_S: Tensor) -> bool:
    """Whether counts are draws of a distribution, by the chi-square test."""
    likely = p_S > 1e-12
    if found_S[~likely].sum():
        return False
    counts, p = found_S[likely].double(), p_S[likely] / p_S[likely].sum()
    return len(counts) == 1 or float(stats.chisquare(counts.numpy(), (p * counts.sum()).numpy()).pvalue) > 1e-5


# The chain


def test_the_vocabulary_is_what_is_not_barred() -> None:
    assert SYMBOLS == [1, 3, 4, 6]
    assert Vocabulary.plain(3) == Vocabulary(4, 3, (3,)) and Vocabulary.plain(3).symbols_K.tolist() == [0, 1, 2]


def test_the_shares_are_a_distribution(process: Process) -> None:
    shares = process.shares(torch.linspace(0, 1, 101))
    torch.testing.assert_close(sum(shares), torch.ones(101, dtype=torch.float64), atol=1e-14, rtol=0)
    assert all(share.dtype == torch.float64 and (share >= 0).all() for share in shares)
    assert shares.masked.any() == process.noise.masks and shares.random.any() == process.noise.randomises
    assert (shares.clean.diff() < 0).all()
    if process.schedule.alpha(at(0.0, 1.0)).tolist() == [1.0, 0.0]:
        assert [share[0].item() for share in shares] == [1.0, 0.0, 0.0] and shares.clean[-1] == 0.0


def test_alpha_is_the_share_of_clean_tokens_without_a_mixture(process: Process) -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    if not (process.noise.masks and process.noise.randomises):
        torch.testing.assert_close(process.shares(t).clean, process.schedule.alpha(t))


def test_noise_is_never_taken_back(process: Process) -> None:
    """What `transition` cuts off at zero is rounding, not a chain that would need a negative probability."""
    grid = torch.linspace(0, 1, 201, dtype=torch.float64)
    for step in (1, 7, 100):
        early, late = process.shares(grid[:-step]), process.shares(grid[step:])
        keep = late.clean / early.clean
        for now, before in ((late.masked, early.masked), (late.random, early.random)):
            assert float((now - keep * before).min()) > -1e-12


def test_a_transition_is_a_distribution_over_what_may_be(process: Process) -> None:
    allowed = sorted({*SYMBOLS} | ({VOCABULARY.mask_id} if process.noise.masks else set()))
    for s, t in pairwise(TIMES):
        q = transition_matrix(process, s, t)
        assert (q >= 0).all()
        torch.testing.assert_close(q.sum(0), torch.ones(VOCABULARY.size, dtype=torch.float64), atol=1e-14, rtol=0)
        columns = q[:, allowed]
        assert not columns[[i for i in range(VOCABULARY.size) if i not in allowed]].any()


def test_the_chain_is_that_of_its_marginals(process: Process) -> None:
    """Q from s to t is the one matrix that takes Q from 0 to s to Q from 0 to t, and steps compose."""
    for r, s, t in [(0.1, 0.35, 0.5), (0.35, 0.5, 0.8), (0.1, 0.8, 0.95), (0.0, 0.1, 0.95), (0.5, 0.8, 1.0)]:
        torch.testing.assert_close(transition_matrix(process, s, t), step_matrix(process, s, t), atol=1e-10, rtol=0)
        both = transition_matrix(process, s, t) @ transition_matrix(process, r, s)
        torch.testing.assert_close(transition_matrix(process, r, t), both, atol=1e-13, rtol=0)


def test_the_closed_forms_of_d3pm(process: Process) -> None:
    alpha, eye = process.schedule.alpha(at(0.4)), torch.eye(VOCABULARY.size, dtype=torch.float64)
    if isinstance(process.noise, Absorbing):
        closed = alpha * eye
        closed[VOCABULARY.mask_id] += 1 - alpha[0]
    elif isinstance(process.noise, Uniform):
        closed = alpha * eye
        closed[SYMBOLS] += (1 - alpha) / len(SYMBOLS)
    else:
        return
    torch.testing.assert_close(transition_matrix(process, 0.0, 0.4), closed, atol=1e-14, rtol=0)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_the_hybrid_is_the_mixing_schedule_of_gidd(share: float) -> None:
    """Its section 4 with gamma = 1, in its own letters; p_u of the tokens are random where t = 1/2."""
    t, n = torch.linspace(0.01, 0.99, 99, dtype=torch.float64), len(SYMBOLS)
    b = 2 / n * share / (1 - share)
    c = b * t**0.5 * (1 - t) ** 0.5
    whole = 1 + n * c
    found = Process(Hybrid(share), Linear(), VOCABULARY).shares(t)
    for mine, theirs in zip(found, ((1 - t) / whole, t / whole, n * c / whole), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-14, rtol=0)
    assert Hybrid(share).shares(at(0.5)).random.item() == pytest.approx(share, abs=1e-15)
    assert float(found.random.max()) == pytest.approx(share, abs=1e-15)


def test_without_random_symbols_the_hybrid_is_absorbing() -> None:
    a = torch.linspace(0, 1, 101, dtype=torch.float64)
    for share in (1e-3, 1e-6):
        for mixed, plain in zip(Hybrid(share).shares(a), Absorbing().shares(a), strict=True):
            assert float((mixed - plain).abs().max()) < 2 * share


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share must be above 0 and below 1"):
        Hybrid(share)


def test_the_rates_are_the_limit_of_ever_shorter_steps(process: Process) -> None:
    t = at(0.1, 0.35, 0.5, 0.8, 0.9)
    now, rates = process.rates(t)
    assert all(torch.equal(a, b) for a, b in zip(now, process.shares(t), strict=True))

    def off(h: float) -> Tensor:
        keep, masked, random = process.transition(t - h, t)
        level = process.schedule.alpha(t - h) - process.schedule.alpha(t)
        found = torch.stack([keep - 1.0, masked, random]) / level
        return found - torch.stack(tuple(rates))

    size = torch.stack(tuple(rates)).abs().amax(0)
    assert float((off(1e-5).abs() / size).max()) < 1e-3
    assert float((off(1e-6).abs() / size).max()) < 1e-4
    torch.testing.assert_close(sum(rates), torch.zeros_like(t), atol=1e-9, rtol=0)
    assert (rates[0] < 0).all() and (rates[1] >= -1e-12).all() and (rates[2] >= -1e-12).all()


def test_the_rates_do_not_depend_on_the_schedule(noise: Noise) -> None:
    alpha = at(0.1, 0.5, 0.9)
    first: tuple[Tensor, ...] | None = None
    for schedule in (Linear(), Cosine(), Polynomial(power=3.0), Geometric()):
        _, rates = Process(noise, schedule, VOCABULARY).rates(schedule.inverse(alpha))
        first = first or tuple(rates)
        for a, b in zip(first, rates, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# The posterior


def pairs(process: Process, t: float) -> Iterator[tuple[int, int]]:
    """Every clean token with every noisy one that may have come of it by `t`."""
    for x0 in SYMBOLS:
        for z in range(VOCABULARY.size):
            if transition_matrix(process, 0.0, t)[z, x0] > 0:
                yield x0, z


def bayes(process: Process, x0: int, z: int, s: float, t: float) -> Tensor:
    """q(xs | xt = z, x0) over the states, from the two marginals alone."""
    joint_S = step_matrix(process, s, t)[z] * marginal(process, s)[:, x0]
    return joint_S / joint_S.sum()


@pytest.mark.parametrize(("s", "t"), [(0.3, 0.7), (0.0, 0.2), (0.9, 1.0), (0.5, 0.5001)])
def test_the_posterior_is_bayes_rule(process: Process, s: float, t: float) -> None:
    guess_S = torch.rand(VOCABULARY.size, generator=generator("guess"), dtype=torch.float64)
    guess_S[list(VOCABULARY.forbidden)] = 0.0
    guess_S /= guess_S.sum()
    for x0, z in pairs(process, t):
        found = posterior(process, torch.tensor([[z]]), one_hot(x0)[None, None], *at(s, t))[0, 0]
        torch.testing.assert_close(found, bayes(process, x0, z, s, t), atol=1e-12, rtol=0)
    for z in {z for _, z in pairs(process, t)}:
        from_S = transition_matrix(process, 0.0, t)[z]
        possible = [x0 for x0 in SYMBOLS if from_S[x0] > 0]
        mixed = sum(guess_S[x0] * bayes(process, x0, z, s, t) for x0 in possible) / guess_S[possible].sum()
        found = posterior(process, torch.tensor([[z]]), guess_S[None, None], *at(s, t))[0, 0]
        torch.testing.assert_close(found, torch.as_tensor(mixed), atol=1e-12, rtol=0)


def test_the_posterior_averaged_over_the_noise_is_the_earlier_noise(process: Process) -> None:
    """The sum over xt of q(xs | xt, x0) q(xt | x0) is q(xs | x0)."""
    every = torch.arange(VOCABULARY.size)[None]
    for x0 in SYMBOLS:
        q_t, q_s = (transition_matrix(process, 0.0, t)[:, x0] for t in (0.7, 0.4))
        back = posterior(process, every, one_hot(x0).expand(1, VOCABULARY.size, -1), *at(0.4, 0.7))[0]
        torch.testing.assert_close(q_t @ back, q_s, atol=1e-13, rtol=0)


# The draws


def test_corrupted_tokens_follow_the_matrix(drawn: Process) -> None:
    x0_BL = torch.tensor(SYMBOLS)[:, None].expand(-1, 4000)
    for t in (0.0, 0.3, 1.0):
        streams = [generator("corrupt", x0) for x0 in SYMBOLS]
        xt_BL = drawn.corrupt(x0_BL, at(t).expand(len(SYMBOLS)), streams)
        for x0, xt_L in zip(SYMBOLS, xt_BL, strict=True):
            q = transition_matrix(drawn, 0.0, t)[:, x0]
            assert fits(torch.bincount(xt_L, minlength=VOCABULARY.size), q)


def test_each_row_is_corrupted_at_its_own_time_and_each_token_on_its_own(drawn: Process) -> None:
    x0_BL = torch.tensor([[3, 6]]).expand(8000, 2)
    times = at(0.2, 0.8)
    xt_BL = drawn.corrupt(x0_BL, times.repeat(4000), [generator("row", b) for b in range(8000)])
    for row, t in enumerate((0.2, 0.8)):
        q = transition_matrix(drawn, 0.0, t)
        both = torch.outer(q[:, 3], q[:, 6]).flatten()
        index = (xt_BL[row::2] * torch.tensor([VOCABULARY.size, 1])).sum(1)
        assert fits(torch.bincount(index, minlength=VOCABULARY.size**2), both)


def test_evolved_tokens_follow_the_matrix(drawn: Process) -> None:
    states = [*SYMBOLS, VOCABULARY.mask_id] if drawn.noise.masks else SYMBOLS
    xs_BL = torch.tensor(states)[:, None].expand(-1, 4000)
    s_B, t_B = (at(t).expand(len(states)) for t in (0.3, 0.7))
    xt_BL = drawn.sample_transition(xs_BL, s_B, t_B, [generator("evolve", x) for x in states])
    for xs, xt_L in zip(states, xt_BL, strict=True):
        q = transition_matrix(drawn, 0.3, 0.7)[:, xs]
        assert fits(torch.bincount(xt_L, minlength=VOCABULARY.size), q)


@pytest.mark.parametrize(("s", "t"), [(0.3, 0.7), (0.0, 0.4), (0.9, 1.0)])
def test_undone_steps_follow_the_posterior(drawn: Process, s: float, t: float) -> None:
    both = list(pairs(drawn, t))
    x0_BL, xt_BL = (torch.tensor(side)[:, None].expand(-1, 3000) for side in zip(*both, strict=True))
    s_B, t_B = at(s).expand(len(both)), at(t).expand(len(both))
    streams, editable_BL = [generator("undo", *pair) for pair in both], torch.ones_like(x0_BL, dtype=torch.bool)
    xs_BL = drawn.sample_posterior(xt_BL, x0_BL, s_B, t_B, streams, editable_BL)
    for (x0, z), xs_L in zip(both, xs_BL, strict=True):
        assert fits(torch.bincount(xs_L, minlength=VOCABULARY.size), bayes(drawn, x0, z, s, t)), (x0, z)


def test_the_prior_is_the_noise_of_a_text_that_may_be_any(drawn: Process) -> None:
    editable_BL = torch.arange(24_000)[None] < 20_000
    x_BL = drawn.prior([generator("prior")], editable_BL)
    expected = transition_matrix(drawn, 0.0, 1.0)[:, SYMBOLS].mean(1)
    assert fits(torch.bincount(x_BL[editable_BL], minlength=VOCABULARY.size), expected)
    assert (x_BL[~editable_BL] == VOCABULARY.mask_id).all()


def test_at_the_end_the_prior_is_masks_or_random_symbols() -> None:
    editable_BL = torch.ones(1, 100, dtype=torch.bool)
    masks, symbols, mixed = (
        Process(noise, Linear(), VOCABULARY).prior([generator("end")], editable_BL)
        for noise in (Absorbing(), Uniform(), Hybrid(0.3))
    )
    assert (masks == VOCABULARY.mask_id).all() and (mixed == VOCABULARY.mask_id).all()
    assert set(symbols.unique().tolist()) == set(SYMBOLS)


def test_what_is_not_to_be_touched_is_not(drawn: Process) -> None:
    x_BL = torch.tensor([[0, 1, 3, 4, 6, 2, 5]]).repeat(200, 1)
    editable_BL = torch.tensor([[False, True, False, True, True, False, False]]).expand(200, 7)
    s_B, t_B, streams = at(0.4).expand(200), at(0.9).expand(200), [generator("still", b) for b in range(200)]
    for found in (
        drawn.corrupt(x_BL, t_B, streams, editable_BL),
        drawn.sample_transition(x_BL, s_B, t_B, streams, editable_BL),
        drawn.sample_posterior(
            x_BL.masked_fill(editable_BL, 2) if drawn.absorbing else x_BL, x_BL, s_B, t_B, streams, editable_BL
        ),
    ):
        assert torch.equal(found[~editable_BL], x_BL[~editable_BL])
        assert not torch.equal(found[editable_BL], x_BL[editable_BL])
    assert torch.equal(x_BL[0], torch.tensor([0, 1, 3, 4, 6, 2, 5]))  # what was handed over is as it was


def test_what_is_drawn_does_not_depend_on_neighbours_and_padding(drawn: Process) -> None:
    x_BL, t_B = torch.tensor([[1, 3, 4, 6], [6, 6, 3, 1]]), at(0.6, 0.8)
    together = drawn.corrupt(x_BL, t_B, [generator("a"), generator("b")])
    wide, editable_BL = torch.nn.functional.pad(x_BL, (0, 3), value=5), torch.arange(7).expand(2, 7) < 4
    padded = drawn.corrupt(wide, t_B, [generator("a"), generator("b")], editable_BL)
    alone = drawn.corrupt(x_BL[1:], t_B[1:], [generator("b")])
    assert torch.equal(padded[:, :4], together) and torch.equal(alone, together[1:])


def test_where_something_is_left_to_predict() -> None:
    xt_BL = torch.tensor([[1, 2, 3, 2]])
    for noise, expected in ((Absorbing(), [False, True, False, True]), (Uniform(), [True] * 4), (Hybrid(), [True] * 4)):
        assert Process(noise, Linear(), VOCABULARY).to_predict(xt_BL).tolist() == [expected]


# The ends of time


@pytest.mark.parametrize("schedule", [Straight(0.9, 0.2), Geometric(sigma_min=0.1, sigma_max=3.0)])
def test_the_ends_of_absorbing_noise_cost_ln_K_a_missing_share(schedule: NoiseSchedule) -> None:
    process = Process(Absorbing(), schedule, VOCABULARY)
    start, end = schedule.alpha(at(0.0, 1.0)).tolist()
    for x0 in SYMBOLS:
        assert float(process.prior_nats_S[x0]) == pytest.approx(end * math.log(4), rel=1e-12)
        assert float(process.reconstruction_nats_S[x0]) == pytest.approx((1 - start) * math.log(4), rel=1e-12)


def test_the_ends_are_a_divergence_and_a_reconstruction(process: Process) -> None:
    """By sums over the states, with a prior text that may be any."""
    at_0, at_1 = (transition_matrix(process, 0.0, t)[:, SYMBOLS] for t in (0.0, 1.0))
    there = at_1.mean(1)
    divergence = (torch.xlogy(at_1, at_1) - torch.xlogy(at_1, there[:, None])).sum(0)
    bayes_SK = at_0 / at_0.sum(1, keepdim=True).clamp(min=1e-300)
    reconstruction = -torch.xlogy(at_0, bayes_SK).sum(0)
    torch.testing.assert_close(process.prior_nats_S[SYMBOLS], divergence, atol=1e-14, rtol=0)
    torch.testing.assert_close(process.reconstruction_nats_S[SYMBOLS], reconstruction, atol=1e-14, rtol=0)
    if process.schedule.alpha(at(0.0, 1.0)).tolist() == [1.0, 0.0]:
        assert not process.reconstruction_nats_S[SYMBOLS].any() and float(process.prior_nats_S[SYMBOLS].max()) < 1e-15


@dataclass(frozen=True)
class TakesBack:
    """Noise that is none: half way it begins to take masks away again."""

    name: str = "takes-back"
    masks: ClassVar[bool] = True
    randomises: ClassVar[bool] = True

    def shares(self, alpha: Tensor) -> Shares:
        masked = (1.0 - alpha) * alpha**2  # relative to the clean tokens it falls once the alpha is below 1/2
        return Shares(alpha, masked, 1.0 - alpha - masked)

    def symbols(self, count: int) -> Tensor:
        return Uniform().symbols(count)


def test_the_test_of_monotone_noise_can_fail() -> None:
    with pytest.raises(AssertionError):
        test_noise_is_never_taken_back(Process(TakesBack(), Linear(), VOCABULARY))


def test_a_process_that_first_scored_a_text_can_still_be_trained_with() -> None:
    process = Process(Uniform(), Cosine(), Vocabulary.plain(3))
    with torch.inference_mode():
        process.corrupt(torch.zeros(1, 2, dtype=torch.long), at(0.5), [generator("first")])
    log_p_NV = torch.tensor([[0.1, 0.2, 0.3, -math.inf]], dtype=torch.float64, requires_grad=True)
    nats_per_level(process, log_p_NV.log_softmax(-1), torch.tensor([0]), torch.tensor([1]), at(0.5)).sum().backward()
    assert log_p_NV.grad is not None and log_p_NV.grad[0, :3].isfinite().all()
