"""Training and scoring at drawn times, for any noise: unbiased, whatever is minimised and however time is cut."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dlm.diffusion.bound import LEVEL_POWER, nats_per_level, prior_and_reconstruction_nats, step_nats
from dlm.diffusion.denoiser import Denoiser, FunctionDenoiser, LeaveOneOutDenoiser, X0Denoiser
from dlm.diffusion.draws import Draws, generator, stratified_draws
from dlm.diffusion.levels import AnyLevels, Bell, Clip, Even, Levels
from dlm.diffusion.likelihood import Estimator
from dlm.diffusion.network import FunctionNetwork, NetworkInput
from dlm.diffusion.noise import Absorbing, AnyNoise, Hybrid, Noise, Uniform
from dlm.diffusion.objective import LossTerms, MaskedObjective, Objective, TimedObjective
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.schedule import Cosine, Linear, NoiseSchedule, Polynomial, Schedule
from dlm.diffusion.weighting import AnyWeighting, CrossEntropy, Elbo, HybridCrossEntropy, Weighting
from dlm.selftest.joints import Joint, exact_bound
from tests.support.choices import COMPLETE_SCHEDULES, defaults, named
from tests.support.joints import (
    ByCount,
    Clocked,
    Lopsided,
    Straight,
    Wrong,
    absorbing,
    chain_bound,
    discrete_nelbo,
    marginal,
)
from tests.support.networks import ask

VOCABULARY = Vocabulary(7, 2, (0, 2, 5))
SYMBOLS = VOCABULARY.symbols_K.tolist()
NOISES: list[Noise] = [*defaults(AnyNoise), Lopsided()]
SCHEDULES: list[NoiseSchedule] = [*defaults(Schedule), Straight(0.9, 0.2)]
WEIGHTINGS: list[Weighting] = defaults(AnyWeighting)
LEVELS: list[Levels] = defaults(AnyLevels)
PAIRS: list[tuple[Weighting, Levels]] = [(weighting, Even()) for weighting in WEIGHTINGS]
PAIRS += [(CrossEntropy(), levels) for levels in LEVELS if levels != Even()] + [(Elbo(), Bell(4))]
COMPLETE = [(weighting, levels) for weighting, levels in PAIRS if levels.complete]
EVERY = torch.tensor(SYMBOLS * 1000)
"""A row in which each symbol stands a thousand times."""


@pytest.fixture(params=NOISES, ids=lambda noise: noise.name)
def noise(request: pytest.FixtureRequest) -> Noise:
    found: Noise = request.param
    return found


@pytest.fixture(params=SCHEDULES, ids=lambda schedule: schedule.name)
def process(noise: Noise, request: pytest.FixtureRequest) -> Process:
    return Process(noise, request.param, VOCABULARY)


@pytest.fixture(scope="module")
def streams() -> list[torch.Generator]:
    """Five thousand: to make them takes longer than to draw from them."""
    return [generator(b) for b in range(5000)]


def moments(denoiser: Clocked, process: Process, t: float, s: float | None = None) -> tuple[float, float]:
    """The mean and the variance of the sum of one time's terms over `EVERY`, whose tokens are seen one by one."""
    pairs = [(x0, z) for x0 in SYMBOLS for z in range(VOCABULARY.size) if marginal(process, t)[z, x0] > 0]
    pairs = [(x0, z) for x0, z in pairs if z == VOCABULARY.mask_id or not process.absorbing]
    x0_N, z_N = torch.tensor(pairs).unbind(1)
    t_N = torch.full((len(pairs),), t, dtype=torch.float64)
    log_p_NV = ask(denoiser, z_N[:, None], t_N, torch.ones(len(pairs), 1, dtype=torch.bool))
    if s is None:
        nats_N = nats_per_level(process, log_p_NV, x0_N, z_N, t_N)
    else:
        nats_N = step_nats(process, log_p_NV, x0_N, z_N, torch.full_like(t_N, s), t_N)
    q_N = marginal(process, t)[z_N, x0_N]
    means = [float((q_N * nats_N)[x0_N == x0].sum()) for x0 in SYMBOLS]
    squares = [float((q_N * nats_N**2)[x0_N == x0].sum()) for x0 in SYMBOLS]
    count = len(EVERY) // len(SYMBOLS)
    return count * sum(means), count * sum(b - a**2 for a, b in zip(means, squares, strict=True))


def at_quantile(objective: TimedObjective, process: Process, u: float) -> tuple[LossTerms, float]:
    """The terms of `EVERY` where the draw is `u`, and the time that the denoiser was told."""
    denoiser = Clocked(process)
    draws = Draws(torch.tensor([u], dtype=torch.float64), [generator("quantile", str(u))])
    terms = objective(denoiser, process, EVERY[None], draws)
    return terms, float(denoiser.told[0][1])


@pytest.mark.parametrize(("weighting", "levels"), COMPLETE, ids=repr)
def test_in_continuous_time_the_estimate_is_the_change_of_the_noise_level_times_its_term(
    weighting: Weighting, levels: Levels, process: Process
) -> None:
    """So that, integrated over the draw, it is the bound, edges apart; and from draw 0 to draw 1 no level is missed."""
    objective, edges = TimedObjective(weighting, levels), float(prior_and_reconstruction_nats(process, EVERY).sum())

    def level(u: float) -> float:
        return 1.0 - float(process.schedule.alpha(torch.tensor(at_quantile(objective, process, u)[1])))

    for u in (0.3, 0.6, 0.9):
        slope = (level(u + 1e-5) - level(u - 1e-5)) / 2e-5
        terms, t = at_quantile(objective, process, u)
        mean, variance = moments(Clocked(process), process, t)
        assert abs(float(terms.nelbo) - edges - slope * mean) < 4.5 * slope * math.sqrt(variance)
        assert slope * math.sqrt(variance) < 0.1 * slope * mean
    start, end = (1.0 - float(process.schedule.alpha(torch.tensor(t, dtype=torch.float64))) for t in (0.0, 1.0))
    reached = [level(u) for u in (1e-15, 0.2, 0.5, 0.7, 1 - 1e-15)]
    assert all(a < b for a, b in pairwise(reached))
    assert reached[0] == pytest.approx(start, abs=1e-3) and reached[-1] == pytest.approx(end, abs=1e-3)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(("weighting", "levels"), COMPLETE, ids=repr)
def test_on_a_chain_the_estimate_is_a_steps_term_over_its_probability(
    weighting: Weighting, levels: Levels, process: Process, steps: int, streams: list[torch.Generator]
) -> None:
    objective = TimedObjective(weighting, levels, steps)
    edges = float(prior_and_reconstruction_nats(process, EVERY).sum())
    rows, spy = len(streams), Clocked(process)
    grid = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    objective(spy, process, torch.full((rows, 1), 3), Draws(grid, streams))
    index = (spy.told[0][1] * steps).round().long()
    share = torch.bincount(index, minlength=steps + 1)[1:] / rows
    assert float(share.sum()) == pytest.approx(1.0)
    for k in (share > 1e-3).nonzero()[:, 0].add(1).tolist():
        u = float(grid[index == k].median())
        terms, t = at_quantile(objective, process, u)
        assert t == pytest.approx(k / steps, abs=1e-15)
        mean, variance = moments(Clocked(process), process, k / steps, (k - 1) / steps)
        found, p = float(terms.nelbo) - edges, float(share[k - 1])
        assert abs(found - mean / p) < 4.5 * math.sqrt(variance) / p + 2 / rows / p * mean / p  # the grid's own error


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("schedule", [Cosine(), Straight(0.9, 0.2)], ids=lambda schedule: schedule.name)
def test_over_many_draws_the_reported_bound_is_the_exact_one(
    noise: Noise, schedule: NoiseSchedule, steps: int | None
) -> None:
    process = Process(noise, schedule, VOCABULARY)
    denoiser, rows, batches, x0_L = Clocked(process, mix=1.0), 64, 40, torch.tensor([3, 6])
    found = []
    for batch in range(batches):
        draws = stratified_draws(("many", batch), range(rows), rows)
        terms = TimedObjective(Elbo(), Even(), steps)(denoiser, process, x0_L.expand(rows, 2), draws)
        found.append(float(terms.nelbo) / rows)
        assert int(terms.tokens) == 2 * rows
    exact = exact_bound(denoiser, process, x0_L, steps)
    values = torch.tensor(found, dtype=torch.float64)
    error = float(values.std()) / math.sqrt(batches)
    assert abs(float(values.mean()) - exact) < 4.5 * error + 1e-9 and error < 0.06 * exact


@pytest.mark.parametrize(
    ("objective", "steps"),
    [
        (MaskedObjective(Elbo(), Bell(3)), None),
        (MaskedObjective(Elbo(), Bell(3), 4), 4),
        (TimedObjective(Elbo(), Bell(2), 4), 4),
    ],
    ids=["counts", "counts of a chain", "times of a chain"],
)
def test_at_levels_that_are_not_even_a_weighted_loss_is_the_same_bound(objective: Objective, steps: int | None) -> None:
    """The exact denoiser of a small joint, and one of no joint: the mean of the loss is the exact bound."""
    process, joint = Process(Absorbing(), Cosine(), Vocabulary.plain(3)), Joint.random(3, 3, generator("bell"))
    x0_L, rows, batches = torch.tensor([2, 0, 1]), 64, 40
    for denoiser in (joint.denoiser(process), Wrong(3, 3)):
        losses = []
        for batch in range(batches):
            draws = stratified_draws(("bell", batch), range(rows), rows)
            losses.append(float(objective(denoiser, process, x0_L.expand(rows, 3), draws).loss) / rows)
        values, exact = torch.tensor(losses, dtype=torch.float64), exact_bound(denoiser, process, x0_L, steps)
        error = float(values.std()) / math.sqrt(batches)
        assert abs(float(values.mean()) - exact) < 4 * error < 0.1 * exact
    if steps is None:
        likelihood = -float(joint.table[tuple(x0_L.tolist())].log())
        assert exact_bound(joint.denoiser(process), process, x0_L, None) == pytest.approx(likelihood)


def seen_levels(weighting: Weighting, levels: Levels, process: Process) -> Tensor:
    """The noise levels of two thousand even draws."""
    spy, grid = Clocked(process), (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    draws = Draws(grid, [generator(b) for b in range(2000)])
    terms = TimedObjective(weighting, levels)(spy, process, torch.full((2000, 1), 3), draws)
    assert math.isfinite(float(terms.loss)) and math.isnan(float(terms.nelbo)) == (not levels.complete)
    return 1.0 - process.schedule.alpha(spy.told[0][1])


@pytest.mark.parametrize("schedule", [*COMPLETE_SCHEDULES, Polynomial(power=3.0)], ids=repr)
def test_what_is_trained_on_is_the_same_under_any_schedule(noise: Noise, schedule: NoiseSchedule) -> None:
    process = Process(noise, schedule, VOCABULARY)
    quantiles = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for levels in (Even(), Bell(3), Clip(0.2, 0.8)):
        seen = seen_levels(CrossEntropy(), levels, process)
        torch.testing.assert_close(levels.cdf(seen), quantiles, atol=1e-9, rtol=0)
    for levels in (Even(), Bell(3)):
        seen = seen_levels(Elbo(), levels, process) ** (1.0 / LEVEL_POWER)
        torch.testing.assert_close(levels.cdf(seen), quantiles, atol=1e-9, rtol=0)


def test_clipped_levels_are_seen_alone_and_claim_no_bound(noise: Noise) -> None:
    seen = seen_levels(CrossEntropy(), Clip(0.25, 0.5), Process(noise, Cosine(), VOCABULARY))
    assert 0.25 < float(seen.min()) < 0.251 and 0.499 < float(seen.max()) < 0.5
    for steps in (None, 4):
        terms = TimedObjective(CrossEntropy(), Clip(), steps)(
            Clocked(Process(noise, Cosine(), VOCABULARY)),
            Process(noise, Cosine(), VOCABULARY),
            EVERY.view(-1, 4),
            stratified_draws(("clip",), range(1000), 1000),
        )
        assert math.isnan(float(terms.nelbo)) and math.isfinite(float(terms.loss))
    whole = TimedObjective(CrossEntropy(), Clip(0.0, 1.0))
    assert math.isfinite(float(at_quantile(whole, Process(noise, Linear(), VOCABULARY), 0.5)[0].nelbo))


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.5, 1.1), (math.nan, 0.5)])
def test_an_interval_that_is_none_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="0 <= low < high <= 1"):
        Clip(low, high)


@pytest.mark.parametrize("coefficient", [0.0, -1.0, math.inf, math.nan])
def test_a_coefficient_that_adds_nothing_is_refused(coefficient: float) -> None:
    with pytest.raises(ValueError, match="coefficient must be above 0"):
        HybridCrossEntropy(coefficient)


@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize(("weighting", "levels"), PAIRS, ids=repr)
def test_the_loss_is_the_bound_without_its_ends_or_plain_cross_entropy_or_both(
    noise: Noise, weighting: Weighting, levels: Levels, steps: int | None
) -> None:
    process, x0_BL = Process(noise, Straight(0.9, 0.2), VOCABULARY), EVERY[:60].view(10, 6)
    denoiser, draws = Clocked(process, mix=1.0), stratified_draws(("loss",), range(10), 10)
    terms = TimedObjective(weighting, levels, steps)(denoiser, process, x0_BL, draws)
    ((xt_BL, t_B, select_BL),) = denoiser.told
    ce = -float(ask(denoiser, xt_BL, t_B, select_BL).gather(-1, x0_BL[select_BL][:, None]).sum())
    assert torch.equal(select_BL, process.to_predict(xt_BL)) and int(terms.predicted) == int(select_BL.sum())
    assert int(terms.tokens) == 60
    if weighting.weighted:
        bound = float(terms.nelbo) - float(prior_and_reconstruction_nats(process, x0_BL).sum())
        assert float(terms.loss) == pytest.approx(bound + weighting.auxiliary * ce) and int(terms.count) == 60
    else:
        assert float(terms.loss) == pytest.approx(ce) and int(terms.count) == int(terms.predicted)


class Learner(Denoiser):
    """Free logits at each position of a row, behind a log-softmax over the symbols."""

    def __init__(self, length: int) -> None:
        start = torch.randn(length, VOCABULARY.size, generator=generator("learner"))
        self.logits_LV = start.requires_grad_()

    def __call__(self, inputs: NetworkInput) -> Tensor:
        xt_BL, select_BL = inputs.ids_BL, inputs.wanted_BL
        barred_LV = self.logits_LV.index_fill(-1, torch.tensor(VOCABULARY.forbidden), -math.inf)
        return barred_LV.expand(len(xt_BL), -1, -1)[select_BL].log_softmax(-1)


@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize(("weighting", "levels"), PAIRS, ids=repr)
def test_the_loss_has_a_finite_gradient_and_what_is_reported_has_none(
    noise: Noise, weighting: Weighting, levels: Levels, steps: int | None
) -> None:
    process, learner = Process(noise, Linear(), VOCABULARY), Learner(6)
    x0_BL, draws = torch.full((64, 6), 4), stratified_draws(("gradient",), range(64), 64)
    terms = TimedObjective(weighting, levels, steps)(learner, process, x0_BL, draws)
    assert terms.loss.requires_grad and not terms.nelbo.requires_grad
    (slope_LV,) = torch.autograd.grad(terms.loss, learner.logits_LV)
    assert slope_LV.dtype == torch.float32 and slope_LV.isfinite().all()
    assert (slope_LV[:, 4] < 0).all()  # towards the only symbol there is
    assert not slope_LV[:, list(VOCABULARY.forbidden)].any()


@pytest.mark.parametrize("steps", [None, 4])
def test_context_and_padding_are_neither_corrupted_nor_scored(noise: Noise, steps: int | None) -> None:
    process = Process(noise, Cosine(), VOCABULARY)
    x0_BL, loss_mask_BL = (
        torch.tensor([[1, 3, 4, 6, 5, 2]] * 8),
        torch.tensor([[False, True, True, True, False, False]]),
    )
    loss_mask_BL = loss_mask_BL.expand(8, 6)
    wide, narrow = Clocked(process), Clocked(process)
    draws = stratified_draws(("context",), range(8), 8)
    terms = TimedObjective(Elbo(), Even(), steps)(wide, process, x0_BL, draws, loss_mask_BL)
    draws = stratified_draws(("context",), range(8), 8)
    alone = TimedObjective(Elbo(), Even(), steps)(narrow, process, x0_BL[:, 1:4], draws)
    ((xt_BL, _, select_BL),) = wide.told
    assert torch.equal(xt_BL[~loss_mask_BL], x0_BL[~loss_mask_BL]) and not (select_BL & ~loss_mask_BL).any()
    assert torch.equal(xt_BL[:, 1:4], narrow.told[0][0])
    assert float(terms.loss) == pytest.approx(float(alone.loss)) and int(terms.tokens) == 24


def test_an_empty_row_adds_nothing_and_breaks_nothing(noise: Noise) -> None:
    process, loss_mask_BL = Process(noise, Cosine(), VOCABULARY), torch.tensor([[True] * 3, [False] * 3])
    draws = stratified_draws(("empty",), range(2), 2)
    terms = TimedObjective(Elbo(), Even())(Clocked(process), process, torch.full((2, 3), 4), draws, loss_mask_BL)
    assert math.isfinite(float(terms.loss)) and int(terms.tokens) == 3
    none = TimedObjective(Elbo(), Even())(
        Clocked(process), process, torch.full((2, 3), 4), draws, torch.zeros(2, 3).bool()
    )
    assert float(none.loss) == 0.0 and int(none.predicted) == 0


# Counts of masks on a chain of steps


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("schedule", [*COMPLETE_SCHEDULES, Straight(0.9, 0.2)], ids=named)
@pytest.mark.parametrize(("weighting", "levels"), COMPLETE, ids=repr)
def test_over_all_counts_the_masked_objective_is_the_T_step_bound(
    weighting: Weighting, levels: Levels, schedule: NoiseSchedule, steps: int
) -> None:
    says, length = ByCount([0.4, 3.0, 0.1, 1.0, 0.7]), 5
    process, x0_BL = absorbing(schedule, says.mask), torch.zeros(1, 5, dtype=torch.long)
    edges = float(prior_and_reconstruction_nats(process, x0_BL).sum())
    inner = 0.0
    for count in range(1, length + 1):
        low, high = (float(levels.cdf(torch.tensor(c / length, dtype=torch.float64))) for c in (count - 1, count))
        draws = Draws(torch.tensor([(low + high) / 2], dtype=torch.float64), [generator("count")])
        terms = MaskedObjective(weighting, levels, steps)(says, process, x0_BL, draws)
        inner += (high - low) * (float(terms.nelbo) - edges)
    assert inner == pytest.approx(discrete_nelbo(says, process, x0_BL[0], steps), rel=1e-9)


def test_the_masked_objective_of_a_chain_is_unbiased_for_a_denoiser_of_no_joint() -> None:
    wrong, x0_L, rows = Wrong(3, 4), torch.tensor([0, 2, 1, 1]), 100
    process = absorbing(Cosine(), 3)
    found = torch.tensor(
        [
            float(
                MaskedObjective(Elbo(), Even(), 3)(
                    wrong, process, x0_L.expand(rows, 4), stratified_draws(("wrong", i), range(rows), rows)
                ).nelbo
            )
            / rows
            for i in range(40)
        ]
    )
    exact = discrete_nelbo(wrong, process, x0_L, 3)
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / math.sqrt(40) < 0.05 * exact


# Exact bounds


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_exact_bound_is_that_of_materialised_posteriors(process: Process, steps: int) -> None:
    denoiser, x0_L = Clocked(process, mix=1.0), torch.tensor([6, 1])
    assert exact_bound(denoiser, process, x0_L, steps) == pytest.approx(
        chain_bound(denoiser, process, x0_L, steps), rel=1e-9
    )


@pytest.mark.parametrize("noise", [Absorbing(), Uniform(), Lopsided()], ids=lambda noise: noise.name)
def test_the_continuous_bound_is_the_limit_of_ever_more_steps(noise: Noise) -> None:
    process = Process(noise, Linear(), VOCABULARY)
    denoiser, x0_L = Clocked(process, mix=1.0), torch.tensor([6, 1])
    limit = exact_bound(denoiser, process, x0_L, None)
    gaps = [chain_bound(denoiser, process, x0_L, steps) - limit for steps in (20, 40, 80)]
    rates = [math.log2(a / b) for a, b in pairwise(gaps)]
    assert abs(rates[1] - 1) <= abs(rates[0] - 1) + 1e-3 < 0.25


@pytest.mark.parametrize("noise", [*defaults(AnyNoise), Hybrid(0.3)], ids=repr)
def test_of_an_exact_denoiser_the_continuous_bound_is_minus_log_p_for_every_text(noise: Noise) -> None:
    joint = Joint.random(2, 3, generator("continuous"))
    process = Process(noise, Linear(), Vocabulary.plain(3))
    denoiser = joint.denoiser(process)
    for x0_L, p in zip(joint.texts(), joint.table.flatten().tolist(), strict=True):
        assert exact_bound(denoiser, process, x0_L, None) == pytest.approx(-math.log(p), abs=1e-4)


@pytest.mark.parametrize("noise", defaults(AnyNoise), ids=named)
def test_of_two_identical_symbols_a_chain_costs_more_the_fewer_its_steps(noise: Noise) -> None:
    joint, process = Joint.twins(2), Process(noise, Linear(), Vocabulary.plain(2))
    denoiser = joint.denoiser(process)
    bounds = [exact_bound(denoiser, process, torch.tensor([1, 1]), steps) for steps in (1, 2, 4, 8, 16)]
    assert bounds[0] == pytest.approx(2 * math.log(2), rel=1e-12)  # in one step each is drawn on its own
    assert all(a > b for a, b in pairwise(bounds)) and bounds[-1] > math.log(2)


@pytest.mark.parametrize("noise", [Uniform(), Hybrid(0.3)], ids=lambda noise: noise.name)
def test_a_network_that_doubts_what_it_sees_has_no_finite_bound_in_continuous_time(noise: Noise) -> None:
    """In the mixture form alone: with ever more steps its bound grows like their logarithm."""
    process, x0_L = Process(noise, Linear(), Vocabulary.plain(3)), torch.tensor([1])

    @FunctionNetwork
    def nothing(inputs: NetworkInput) -> Tensor:
        select_BL = inputs.wanted_BL
        return torch.zeros(int(select_BL.sum()), 4, dtype=torch.float64)

    steps = (1, 16, 64, 256)
    mixture = [exact_bound(X0Denoiser(nothing, [3]), process, x0_L, t) for t in steps]
    assert mixture[0] == pytest.approx(math.log(3)) and mixture[3] - mixture[2] > 0.8 * (mixture[2] - mixture[1]) > 0.3
    plug_in = [exact_bound(LeaveOneOutDenoiser(nothing, [3], process), process, x0_L, t) for t in steps]
    assert plug_in == pytest.approx([math.log(3)] * 4)


# The estimator


@pytest.mark.parametrize("steps", [None, 1, 4])
@pytest.mark.parametrize("schedule", [Cosine(), Straight(0.9, 0.2)], ids=lambda schedule: schedule.name)
def test_the_estimator_is_unbiased(noise: Noise, schedule: NoiseSchedule, steps: int | None) -> None:
    process = Process(noise, schedule, VOCABULARY)
    denoiser, rows, x0_L = Clocked(process, mix=1.0), 400, torch.tensor([3, 6])
    streams = [generator("estimator", b) for b in range(rows)]
    terms = Estimator(16, steps, timed=True)(denoiser, process, x0_L.expand(rows, 2), streams)
    assert terms.shape == (2, rows, 2)
    found_B = terms.mean(0).sum(1)
    exact = exact_bound(denoiser, process, x0_L, steps)
    error = float(found_B.std()) / math.sqrt(rows)
    assert abs(float(found_B.mean()) - exact) < 4.5 * error + 1e-9 and error < 0.03 * exact
    first, second = terms.sum(2)
    assert error < 1e-9 or abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 5 / math.sqrt(rows)


def test_times_and_counts_estimate_the_same_bound() -> None:
    process, x0_L, rows = absorbing(Cosine(), 3), torch.tensor([0, 2, 1]), 800
    wrong: Denoiser = Wrong(3, 3)
    for steps in (None, 3):
        found = []
        for timed in (False, True):
            streams = [generator("both", b) for b in range(rows)]
            found.append(Estimator(8, steps, timed)(wrong, process, x0_L.expand(rows, 3), streams).mean(0).sum(1))
        gap, error = (float(f) for f in (found[0].mean() - found[1].mean(), (found[0].var() + found[1].var()).sqrt()))
        assert abs(gap) < 4 * error / math.sqrt(rows)
        assert float(found[0].var()) < float(found[1].var())  # which is why counts are drawn where they can be


def test_times_are_stratified_and_the_same_for_every_noise(noise: Noise) -> None:
    process = Process(noise, Linear(), VOCABULARY)
    spy = Clocked(process)
    Estimator(8, timed=True)(spy, process, torch.full((1, 200), 3), [generator("grid")])
    t = torch.cat([t_B for _, t_B, _ in spy.told]).sqrt()  # the square root of the noise level, here of the time
    assert [sorted((half * 4).floor().int().tolist()) for half in (t[:4], t[4:])] == [[0, 1, 2, 3]] * 2


def test_on_a_chain_the_denoiser_is_told_times_of_the_chain(noise: Noise) -> None:
    process = Process(noise, Cosine(), VOCABULARY)
    spy = Clocked(process)
    streams = [generator("chain", b) for b in range(30)]
    Estimator(8, 5, timed=True)(spy, process, torch.full((30, 4), 3), streams)
    told = torch.cat([t_B for _, t_B, _ in spy.told])
    torch.testing.assert_close(told * 5, (told * 5).round())
    assert set((told * 5).round().int().tolist()) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("draws", [2, 4])
def test_what_is_not_scored_costs_nothing_and_is_seen_as_it_is(noise: Noise, draws: int) -> None:
    process = Process(noise, Straight(0.9, 0.2), VOCABULARY)
    x0_BL, loss_mask_BL = (
        torch.tensor([[1, 3, 4, 2, 5]] * 3),
        torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1] + [0] * 4]),
    )
    spy = Clocked(process)
    streams = [generator("unscored", b) for b in range(3)]
    terms = Estimator(draws, timed=True)(spy, process, x0_BL, streams, loss_mask_BL.bool())
    assert terms.isfinite().all() and (terms[:, ~loss_mask_BL.bool()] == 0).all() and (terms[:, 0, 1] > 0).all()
    assert len(terms) == (1 if draws == 2 else 2)
    for xt_BL, _, select_BL in spy.told:
        assert (
            torch.equal(xt_BL[~loss_mask_BL.bool()], x0_BL[~loss_mask_BL.bool()])
            and not (select_BL & ~loss_mask_BL.bool()).any()
        )


@pytest.mark.parametrize("timed", [False, True])
def test_counts_are_drawn_where_masks_are_all_there_is_to_know(noise: Noise, timed: bool) -> None:
    process = Process(noise, Linear(), VOCABULARY)
    assert Estimator(4, timed=timed).method(process) == ("counts" if process.absorbing and not timed else "times")


def test_conditional_bounds_of_an_exact_denoiser_are_conditional_likelihoods() -> None:
    """Of uniform noise too: the context stays clean, and nothing else is known of it."""
    joint, rows = Joint.random(2, 3, generator("conditional")), 300
    x0_L, where_L = torch.tensor([2, 0]), torch.tensor([True, False])
    truth = -float((joint.table[2, 0] / joint.table[:, 0].sum()).log())
    process = Process(Uniform(), Linear(), Vocabulary.plain(3))
    streams = [generator("conditional", b) for b in range(rows)]
    terms = Estimator(16, timed=True)(
        _given(joint, process, 0), process, x0_L.expand(rows, 2), streams, where_L.expand(rows, 2)
    )
    found_B = terms.mean(0).sum(1)
    error = float(found_B.std()) / math.sqrt(rows)
    assert abs(float(found_B.mean()) - truth) < 4 * error and error < 0.1 * truth


def _given(joint: Joint, process: Process, context: int) -> Denoiser:
    """p(x0 of the first token | its noisy self, the second being clean for certain), by Bayes."""
    log_p_K = joint.table[:, context].log()

    @FunctionDenoiser
    def exact(inputs: NetworkInput) -> Tensor:
        xt_BL, t_B = inputs.ids_BL, inputs.time_B
        shares = process.shares(t_B)
        noise_N1 = (shares.random / joint.symbols)[:, None]
        q_NK = noise_N1 + shares.clean[:, None] * torch.eye(joint.symbols, dtype=torch.float64)[xt_BL[:, 0]]
        log_p_NK = (q_NK.log() + log_p_K).log_softmax(-1)
        return torch.nn.functional.pad(log_p_NK, (0, 1), value=-math.inf)

    return exact
