"""The terms of the bound, for any noise: divergences of materialised posteriors, their limit, and their gradients."""

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import Tensor

from dlm.diffusion import bound
from dlm.diffusion.bound import count_weights, nats_per_level, prior_and_reconstruction_nats, step_nats
from dlm.diffusion.denoiser import LeaveOneOutDenoiser, X0Denoiser, leave_one_out, own_token_log_odds, with_own_token
from dlm.diffusion.draws import generator
from dlm.diffusion.matrices import posterior
from dlm.diffusion.network import FunctionNetwork
from dlm.diffusion.noise import Absorbing, AnyNoise, Hybrid, Noise, Uniform
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.schedule import Cosine, Geometric, Linear, NoiseSchedule, Polynomial, Schedule, noise_levels
from tests.support.choices import COMPLETE_SCHEDULES, defaults, named
from tests.support.joints import Lopsided, Straight, marginal, step_matrix
from tests.support.networks import ask

VOCABULARY = Vocabulary(7, 2, (0, 2, 5))
SYMBOLS = VOCABULARY.symbols_K.tolist()
NOISES: list[Noise] = [*defaults(AnyNoise), Hybrid(0.3), Lopsided()]
RANDOM = [noise for noise in NOISES if noise.randomises]
SCHEDULES: list[NoiseSchedule] = [*defaults(Schedule), Polynomial(power=0.5), Straight(0.9, 0.2)]
SPANS = [(0.3, 0.7), (0.0, 0.2), (0.8, 1.0), (0.5, 0.501)]


@pytest.fixture(params=NOISES, ids=repr)
def noise(request: pytest.FixtureRequest) -> Noise:
    found: Noise = request.param
    return found


@pytest.fixture(params=SCHEDULES, ids=lambda schedule: schedule.name)
def process(noise: Noise, request: pytest.FixtureRequest) -> Process:
    return Process(noise, request.param, VOCABULARY)


@pytest.fixture(params=RANDOM, ids=repr)
def mixing(request: pytest.FixtureRequest) -> Process:
    return Process(request.param, Cosine(), VOCABULARY)


def at(*t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def guesses(rows: int, key: str = "guess") -> Tensor:
    """Predictions, one a row: log-probabilities, minus infinity where no text has the id."""
    logits_NV = 2.0 * torch.randn(rows, VOCABULARY.size, generator=generator(key), dtype=torch.float64)
    return logits_NV.index_fill(-1, torch.tensor(VOCABULARY.forbidden), -math.inf).log_softmax(-1)


def seen(process: Process, t: float) -> tuple[Tensor, Tensor]:
    """Every clean token with every noisy one that may have come of it and says less than all, side by side."""
    q = marginal(process, t)
    pairs = [(x0, z) for x0 in SYMBOLS for z in range(VOCABULARY.size) if q[z, x0] > 0]
    if process.absorbing:
        pairs = [(x0, z) for x0, z in pairs if z == VOCABULARY.mask_id]
    x0_N, z_N = torch.tensor(pairs).unbind(1)
    return x0_N, z_N


def posteriors(process: Process, z_N: Tensor, s: float, t: float) -> Tensor:
    """q(xs | xt = z, x0) for every x0 that z may come of and nothing for the others, shape (N, x0, xs)."""
    to_s, step = marginal(process, s), step_matrix(process, s, t)
    joint_NXS = step[z_N][:, None, :] * to_s.T[None]
    total_NX1 = joint_NXS.sum(-1, keepdim=True)
    return torch.where(total_NX1 > 0, joint_NXS / total_NX1, 0.0)


def divergence(q_NS: Tensor, p_NS: Tensor) -> Tensor:
    return (torch.xlogy(q_NS, q_NS) - torch.xlogy(q_NS, p_NS)).sum(-1)


@pytest.mark.parametrize(("s", "t"), SPANS)
def test_a_steps_term_is_the_divergence_of_the_posteriors(process: Process, s: float, t: float) -> None:
    x0_N, z_N = seen(process, t)
    log_p_NV = guesses(len(x0_N))
    back_NXS = posteriors(process, z_N, s, t)
    true_NS = back_NXS[torch.arange(len(x0_N)), x0_N]
    mixed_NS = (log_p_NV.exp()[:, :, None] * back_NXS).sum(1)
    assert float(mixed_NS.sum(-1).min()) > 1 - 1e-9
    found_N = step_nats(process, log_p_NV, x0_N, z_N, at(s).expand(len(z_N)), at(t).expand(len(z_N)))
    torch.testing.assert_close(found_N, divergence(true_NS, mixed_NS), atol=1e-10, rtol=0)
    assert found_N.dtype == torch.float64 and float(found_N.max()) > 1e-4 * (t - s)


def test_the_last_step_is_a_reconstruction(noise: Noise) -> None:
    process = Process(noise, Cosine(), VOCABULARY)
    x0_N, z_N = seen(process, 0.3)
    log_p_NV = guesses(len(x0_N))
    found_N = step_nats(process, log_p_NV, x0_N, z_N, at(0.0).expand(len(z_N)), at(0.3).expand(len(z_N)))
    torch.testing.assert_close(found_N, -log_p_NV[torch.arange(len(x0_N)), x0_N], atol=1e-12, rtol=0)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_continuous_term_is_the_limit_of_ever_shorter_steps(process: Process, t: float) -> None:
    x0_N, z_N = seen(process, t)
    log_p_NV, t_N = guesses(len(x0_N)), at(t).expand(len(z_N))
    rate_N = nats_per_level(process, log_p_NV, x0_N, z_N, t_N) * -process.schedule.alpha_prime(t_N)

    def off(h: float) -> Tensor:
        return step_nats(process, log_p_NV, x0_N, z_N, t_N - h, t_N) / h - rate_N

    far, near = (off(h).abs() / rate_N for h in (2e-4, 1e-4))
    assert float(near.max()) < 0.02
    assert (near < 0.51 * far + 1e-6).all()  # the error falls like h, or there is none


def test_at_a_mask_of_absorbing_noise_the_term_is_the_weighted_cross_entropy() -> None:
    process, log_p_NV = Process(Absorbing(), Cosine(), VOCABULARY), guesses(4)
    x0_N, z_N, t_N = torch.tensor(SYMBOLS), torch.full((4,), VOCABULARY.mask_id), at(0.1, 0.4, 0.6, 0.99)
    expected_N = -log_p_NV[torch.arange(4), x0_N] / (1 - process.schedule.alpha(t_N))
    torch.testing.assert_close(nats_per_level(process, log_p_NV, x0_N, z_N, t_N), expected_N, rtol=1e-12, atol=0)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_for_uniform_noise_the_term_is_that_of_udlm(schedule: NoiseSchedule, t: float) -> None:
    """(alpha'/(K alpha)) [K/xbar_z - K/xbar_th_z - sum_j (xbar_j/xbar_z) log(xbar_th_z xbar_j/(xbar_th_j xbar_z))]."""
    process, k = Process(Uniform(), schedule, VOCABULARY), len(SYMBOLS)
    alpha, slope = (float(f(at(t))) for f in (schedule.alpha, schedule.alpha_prime))
    x0_N, z_N = seen(process, t)
    out_NV = guesses(len(x0_N))  # the leave-one-out prediction
    t_N = at(t).expand(len(z_N))
    log_p_NV = with_own_token(out_NV, z_N, process, t_N)
    found_N = nats_per_level(process, log_p_NV, x0_N, z_N, t_N) * -slope
    for x0, z, out_V, found in zip(x0_N.tolist(), z_N.tolist(), out_NV, found_N, strict=True):
        bar = {j: k * alpha * (j == x0) + (1 - alpha) for j in SYMBOLS}
        bar_th = {j: k * alpha * math.exp(out_V[j]) + (1 - alpha) for j in SYMBOLS}
        logs = sum(bar[j] / bar[z] * math.log(bar_th[z] * bar[j] / (bar_th[j] * bar[z])) for j in SYMBOLS)
        expected = slope / (k * alpha) * (k / bar[z] - k / bar_th[z] - logs)
        assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_for_hybrid_noise_the_term_is_that_of_gidd(t: float) -> None:
    """Its eq. 9: w_t(z, x) (KL(q(. | x) || q(. | x_th)) + IS(q(z | x), q(z | x_th))), by sums over the states.

    w_t = (alpha/q(z | x)) d/dt(beta pi/alpha), the rate at which noise arrives at z relative to clean tokens.
    """
    process = Process(Hybrid(0.3), Linear(), VOCABULARY)
    x0_N, z_N = seen(process, t)
    out_NV, t_N = guesses(len(x0_N)), at(t).expand(len(z_N))
    q, h, rows_N = marginal(process, t), 1e-6, torch.arange(len(x0_N))
    ratio_S = [(marginal(process, x)[:, 0] / marginal(process, x)[0, 0]) for x in (t - h, t + h)]  # beta pi/alpha
    w_N = ((ratio_S[1] - ratio_S[0]) / (2 * h))[z_N] * q[0, 0] / q[z_N, x0_N]
    true_NS, guess_NS = q.T[x0_N], out_NV.exp() @ q.T
    kl_N = divergence(true_NS, guess_NS)
    over_N = true_NS[rows_N, z_N] / guess_NS[rows_N, z_N]
    found_N = nats_per_level(process, with_own_token(out_NV, z_N, process, t_N), x0_N, z_N, t_N)
    torch.testing.assert_close(found_N, w_N * (kl_N + over_N - over_N.log() - 1), rtol=1e-6, atol=1e-9)


def test_the_right_answer_costs_nothing(process: Process) -> None:
    x0_N, z_N = seen(process, 0.5)
    sure_NV = torch.where(torch.nn.functional.one_hot(x0_N, VOCABULARY.size) > 0, 0.0, -math.inf).double()
    s_N, t_N = at(0.3).expand(len(z_N)), at(0.5).expand(len(z_N))
    for found_N in (
        nats_per_level(process, sure_NV, x0_N, z_N, t_N),
        step_nats(process, sure_NV, x0_N, z_N, s_N, t_N),
    ):
        torch.testing.assert_close(found_N, torch.zeros_like(found_N), atol=1e-12, rtol=0)
    for key in range(20):
        wrong_NV = guesses(len(z_N), f"wrong {key}")
        assert float(nats_per_level(process, wrong_NV, x0_N, z_N, t_N).min()) > 0
        assert float(step_nats(process, wrong_NV, x0_N, z_N, s_N, t_N).min()) > 0


# Gradients


@pytest.mark.parametrize("plug_in", [False, True], ids=["mixture", "plug-in"])
@pytest.mark.parametrize("span", [None, *SPANS, (0.0, 1.0), (0.0, 0.001), (0.999, 1.0)], ids=str)
def test_terms_and_gradients_are_finite_in_float32(
    process: Process, plug_in: bool, span: tuple[float, float] | None
) -> None:
    s, t = span or (0.5, 0.5)
    x0_N, z_N = seen(process, t)
    s_N, t_N = at(s).expand(len(z_N)), at(t).expand(len(z_N))
    logits_NV = (5.0 * torch.randn(len(z_N), VOCABULARY.size, generator=generator("logits"))).requires_grad_()
    barred_NV = logits_NV.index_fill(-1, torch.tensor(VOCABULARY.forbidden), -math.inf)
    log_p_NV = with_own_token(barred_NV, z_N, process, t_N) if plug_in else barred_NV.log_softmax(-1)
    if span is None:
        nats_N = nats_per_level(process, log_p_NV, x0_N, z_N, t_N)
    else:
        nats_N = step_nats(process, log_p_NV, x0_N, z_N, s_N, t_N)
    assert nats_N.dtype == torch.float64 and nats_N.isfinite().all() and float(nats_N.detach().min()) > -1e-5
    (slope_NV,) = torch.autograd.grad(nats_N.sum(), logits_NV)
    assert slope_NV.isfinite().all() and not slope_NV[:, list(VOCABULARY.forbidden)].any()
    exact_NV = barred_NV.detach().double()
    exact_NV = with_own_token(exact_NV, z_N, process, t_N) if plug_in else exact_NV.log_softmax(-1)
    exact_N = (
        nats_per_level(process, exact_NV, x0_N, z_N, t_N)
        if span is None
        else step_nats(process, exact_NV, x0_N, z_N, s_N, t_N)
    )
    torch.testing.assert_close(nats_N, exact_N, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("t", [1e-6, 1e-3, 1 - 1e-6])
def test_terms_and_gradients_are_finite_near_the_ends(process: Process, t: float) -> None:
    x0_N, z_N = seen(process, t)
    logits_NV = torch.randn(len(z_N), VOCABULARY.size, generator=generator("ends")).requires_grad_()
    barred_NV = logits_NV.index_fill(-1, torch.tensor(VOCABULARY.forbidden), -math.inf)
    nats_N = nats_per_level(process, barred_NV.log_softmax(-1), x0_N, z_N, at(t).expand(len(z_N)))
    assert nats_N.isfinite().all() and torch.autograd.grad(nats_N.sum(), logits_NV)[0].isfinite().all()


@pytest.mark.parametrize("span", [None, (0.3, 0.7), (0.0, 0.2)], ids=str)
def test_the_gradient_is_the_slope(process: Process, span: tuple[float, float] | None) -> None:
    s, t = span or (0.5, 0.5)
    x0_N, z_N = seen(process, t)
    s_N, t_N = at(s).expand(len(z_N)), at(t).expand(len(z_N))

    def nats(logits_NK: Tensor) -> Tensor:
        wide_NV = torch.full((len(z_N), VOCABULARY.size), -math.inf, dtype=torch.float64)
        log_p_NV = wide_NV.index_copy(1, VOCABULARY.symbols_K, logits_NK).log_softmax(-1)
        if span is None:
            return nats_per_level(process, log_p_NV, x0_N, z_N, t_N)
        return step_nats(process, log_p_NV, x0_N, z_N, s_N, t_N)

    start = torch.randn(len(z_N), len(SYMBOLS), generator=generator("slope"), dtype=torch.float64)
    assert torch.autograd.gradcheck(nats, start.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("span", [None, (0.3, 0.7)], ids=str)
def test_the_best_prediction_is_the_exact_one(mixing: Process, span: tuple[float, float] | None) -> None:
    """Over x0 and z the mean term is least, and stationary, where the prediction is p(x0 | z) itself."""
    p_S = guesses(1, "prior")[0].exp()
    s, t = span or (0.5, 0.5)
    x0_N, z_N = seen(mixing, t)
    weight_N = marginal(mixing, t)[z_N, x0_N] * p_S[x0_N]
    table_SV = torch.zeros(VOCABULARY.size, VOCABULARY.size, dtype=torch.float64)
    table_SV[z_N, x0_N] = weight_N
    best_SV = (table_SV / table_SV.sum(1, keepdim=True).clamp(min=1e-300)).log()

    def mean(shift_SV: Tensor) -> Tensor:
        log_p_NV = (best_SV + shift_SV).log_softmax(-1)[z_N]
        s_N, t_N = at(s).expand(len(z_N)), at(t).expand(len(z_N))
        if span is None:
            return weight_N @ nats_per_level(mixing, log_p_NV, x0_N, z_N, t_N)
        return weight_N @ step_nats(mixing, log_p_NV, x0_N, z_N, s_N, t_N)

    at_best = torch.zeros_like(best_SV, requires_grad=True)
    least = mean(at_best)
    (slope_SV,) = torch.autograd.grad(least, at_best)
    assert float(slope_SV[table_SV > 0].abs().max()) < 1e-12
    for key in range(10):
        away_SV = 0.1 * torch.randn(best_SV.shape, generator=generator("away", key), dtype=torch.float64)
        assert float(mean(away_SV)) > float(least.detach()) + 1e-6


# Two forms of one prediction


@pytest.mark.parametrize("t", [0.01, 0.5, 1.0])
def test_the_own_token_can_be_put_in_and_left_out(process: Process, t: float) -> None:
    z_N = seen(process, t)[1].unique()
    log_p_NV, t_N = guesses(len(z_N)), at(t).expand(len(z_N))
    inside = with_own_token(log_p_NV, z_N, process, t_N)
    torch.testing.assert_close(leave_one_out(inside, z_N, process, t_N), log_p_NV, atol=1e-12, rtol=0)
    outside = leave_one_out(log_p_NV, z_N, process, t_N)
    torch.testing.assert_close(with_own_token(outside, z_N, process, t_N), log_p_NV, atol=1e-12, rtol=0)
    by_bayes = log_p_NV.exp() * marginal(process, t)[z_N]
    torch.testing.assert_close(inside.exp(), by_bayes / by_bayes.sum(1, keepdim=True), atol=1e-13, rtol=0)


def test_what_a_token_says_of_itself(process: Process) -> None:
    q, t_N = marginal(process, 0.5), at(0.5).expand(4)
    if process.noise.randomises:
        others = [SYMBOLS[(i + 1) % 4] for i in range(4)]
        expected = (q[SYMBOLS, SYMBOLS] / q[SYMBOLS, others]).log()
        torch.testing.assert_close(own_token_log_odds(process, torch.tensor(SYMBOLS), t_N), expected)
    if process.noise.masks:
        assert own_token_log_odds(process, torch.tensor([VOCABULARY.mask_id]), t_N[:1]).tolist() == [0.0]


@pytest.mark.parametrize(("s", "t"), SPANS)
def test_the_mixture_of_a_plug_in_network_is_the_plug_in_step(s: float, t: float) -> None:
    """K alpha_t x(z) e_z + (alpha_ts - alpha_t) e_z + (alpha_s - alpha_t) x + (1 - alpha_ts)(1 - alpha_s)/K."""
    process, k = Process(Uniform(), Cosine(), VOCABULARY), len(SYMBOLS)
    logits_NV, xt_BL = guesses(4, "network"), torch.tensor([SYMBOLS])
    denoiser = LeaveOneOutDenoiser(FunctionNetwork(lambda _: logits_NV), VOCABULARY.forbidden, process)
    every_BL = torch.ones_like(xt_BL, dtype=torch.bool)
    p0_BLS = ask(denoiser, xt_BL, at(t), every_BL).exp()[None]
    found_LS = posterior(process, xt_BL, p0_BLS, *at(s, t))[0]
    alpha_s, alpha_t = process.schedule.alpha(at(s, t)).tolist()
    ts, uniform_S = alpha_t / alpha_s, process.pi_S
    for z, x_S, found_S in zip(SYMBOLS, logits_NV.exp(), found_LS, strict=True):
        own_S = torch.eye(VOCABULARY.size, dtype=torch.float64)[z]
        step_S = k * alpha_t * x_S * own_S + (ts - alpha_t) * own_S + (alpha_s - alpha_t) * x_S
        step_S = step_S + (1 - ts) * (1 - alpha_s) * uniform_S
        torch.testing.assert_close(found_S, step_S / step_S.sum(), atol=1e-12, rtol=0)
    if t < 1:  # else xt says nothing; with the network's answer taken for p(x0 | xt) the step would be another
        mixed_BLS = ask(X0Denoiser(denoiser.network, VOCABULARY.forbidden), xt_BL, at(t), every_BL).exp()[None]
        other_LS = posterior(process, xt_BL, mixed_BLS, *at(s, t))[0]
        assert float((other_LS - found_LS).abs().max()) > 0.1 * (t - s)


def test_where_all_noise_is_masks_the_two_forms_are_one() -> None:
    process, logits_NV = Process(Absorbing(), Cosine(), VOCABULARY), torch.randn(2, 7, generator=generator("same"))
    xt_BL, select_BL = torch.tensor([[2, 1, 2]]), torch.tensor([[True, False, True]])
    one = ask(
        LeaveOneOutDenoiser(FunctionNetwork(lambda _: logits_NV), VOCABULARY.forbidden, process),
        xt_BL,
        at(0.5),
        select_BL,
    )
    other = ask(X0Denoiser(FunctionNetwork(lambda _: logits_NV), VOCABULARY.forbidden), xt_BL, at(0.5), select_BL)
    torch.testing.assert_close(one, other)


def test_a_plug_in_network_is_told_the_time_of_each_row(mixing: Process) -> None:
    xt_BL, select_BL = torch.tensor([[1, 3], [4, 1]]), torch.tensor([[True, True], [False, True]])
    logits_NV, t_B = guesses(3, "rows"), at(0.2, 0.9)
    found = ask(
        LeaveOneOutDenoiser(FunctionNetwork(lambda _: logits_NV), VOCABULARY.forbidden, mixing), xt_BL, t_B, select_BL
    )
    expected = with_own_token(logits_NV, torch.tensor([1, 3, 1]), mixing, at(0.2, 0.2, 0.9))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


# Counts instead of times


def test_the_ends_of_the_noise_level() -> None:
    assert noise_levels(Linear()) == noise_levels(Cosine()) == (0.0, 1.0)
    assert noise_levels(Straight(0.9, 0.2)) == pytest.approx((0.1, 0.8))


@pytest.mark.parametrize("length", [1, 5, 64])
def test_in_continuous_time_every_count_weighs_one(length: int) -> None:
    for schedule in (*COMPLETE_SCHEDULES, Polynomial(power=3.0)):
        assert (count_weights(schedule, length, None) == 1).all()


@pytest.mark.parametrize("schedule", [Straight(0.9, 0.2), Geometric(), Geometric(0.5, 2.0)], ids=repr)
@pytest.mark.parametrize("length", [1, 5, 64])
def test_what_a_schedule_leaves_out_is_a_tail_of_a_beta(schedule: NoiseSchedule, length: int) -> None:
    start, end = noise_levels(schedule)
    found = count_weights(schedule, length, None)[1:]
    for count, weight in enumerate(found.tolist(), start=1):
        beta = stats.beta(count, length - count + 1)
        assert weight == pytest.approx(beta.cdf(end) - beta.cdf(start), abs=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 50])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_in_steps_a_count_weighs_what_its_times_sum_to(schedule: NoiseSchedule, steps: int) -> None:
    length = 6
    expected = [0.0] * (length + 1)
    for k in range(1, steps + 1):
        alpha_s, alpha_t = schedule.alpha(at((k - 1) / steps, k / steps)).tolist()
        for count in range(length + 1):
            chance = math.comb(length, count) * (1 - alpha_t) ** count * alpha_t ** (length - count)
            expected[count] += count * (alpha_s - alpha_t) / (1 - alpha_t) * chance
    assert count_weights(schedule, length, steps).tolist() == pytest.approx(expected, rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("part", [1, 3, 7, 100])
def test_a_long_chain_is_added_up_in_parts(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    whole = count_weights(Cosine(), 5, 7)
    monkeypatch.setattr(bound, "STEPS_A_PART", part)
    assert count_weights.__wrapped__(Cosine(), 5, 7).tolist() == pytest.approx(whole.tolist(), rel=1e-12)


@pytest.mark.parametrize("schedule", [*COMPLETE_SCHEDULES, Straight(0.9, 0.2)], ids=named)
def test_with_many_steps_counts_weigh_as_in_continuous_time(schedule: NoiseSchedule) -> None:
    limit = count_weights(schedule, 8, None)[1:]
    gaps = [float((count_weights(schedule, 8, steps)[1:] - limit).abs().max()) for steps in (100, 200, 400)]
    assert all(math.log2(a / b) == pytest.approx(1.0, abs=0.05) for a, b in pairwise(gaps))


def test_long_texts_have_finite_weights() -> None:
    for steps in (1, 7, 1000):
        weights = count_weights(Cosine(), 4096, steps)
        assert weights.isfinite().all() and (weights >= 0).all()
        assert float((weights[1:] / torch.arange(1, 4097)).sum()) == pytest.approx(_harmonic(Cosine(), 4096, steps))


def _harmonic(schedule: NoiseSchedule, length: int, steps: int) -> float:
    """The sum of w_l/l, which is that of the reveal probabilities times P(any mask)."""
    alpha = schedule.alpha(torch.arange(steps + 1, dtype=torch.float64) / steps)
    return float((-alpha.diff() / (1 - alpha[1:]) * (1 - alpha[1:] ** length)).sum())


def test_every_token_pays_the_ends_once() -> None:
    process = Process(Lopsided(), Straight(0.9, 0.2), VOCABULARY)
    x0_BL = torch.tensor([[1, 3], [6, 6]])
    found_BL = prior_and_reconstruction_nats(process, x0_BL)
    for token, found in zip(x0_BL.flatten(), found_BL.flatten(), strict=True):
        assert float(found) == float(process.prior_nats_S[token] + process.reconstruction_nats_S[token])
    assert found_BL.unique().numel() == 3  # a rare symbol costs another amount than a frequent one
