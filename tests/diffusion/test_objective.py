"""Training objectives, draws, corruption and schedules."""

import dataclasses
import itertools
import math

import pytest
import torch
from scipy import stats

from dlm.diffusion.denoiser import FunctionDenoiser, X0Denoiser
from dlm.diffusion.draws import Draws, generator, largest, random_subset, stratified_draws, uniforms
from dlm.diffusion.levels import AnyLevels, Bell, Clip, Even, Levels
from dlm.diffusion.network import FunctionNetwork, NetworkInput
from dlm.diffusion.objective import MaskedObjective
from dlm.diffusion.schedule import Cosine, Linear, Polynomial, Schedule
from dlm.diffusion.weighting import AnyWeighting, CrossEntropy, Elbo, Weighting
from tests.support.choices import COMPLETE_SCHEDULES, defaults
from tests.support.joints import ByCount, Narrow, Wrong, absorbing, exact_nelbo
from tests.support.networks import ask

K, L = 3, 5
PROCESS = absorbing(Linear(), K)
WEIGHTINGS: list[Weighting] = defaults(AnyWeighting)
LEVELS: list[Levels] = defaults(AnyLevels)
PAIRS: list[tuple[Weighting, Levels]] = [(weighting, Even()) for weighting in WEIGHTINGS]
PAIRS += [(CrossEntropy(), levels) for levels in LEVELS if levels != Even()] + [(Elbo(), Bell(4))]
COMPLETE = [(weighting, levels) for weighting, levels in PAIRS if levels.complete]
SCHEDULES: list[Schedule] = [*COMPLETE_SCHEDULES, Polynomial(power=0.5), Polynomial(power=3.0)]


@pytest.mark.parametrize(("weighting", "levels"), COMPLETE, ids=repr)
def test_the_reported_bound_is_unbiased_whatever_is_minimised(weighting: Weighting, levels: Levels) -> None:
    wrong, x0_L, rows = Wrong(K, L), torch.tensor([0, 2, 1, 1, 0]), 4000
    values = []
    for part in range(4):
        draws = stratified_draws(("unbiased", part), range(rows), rows)
        terms = MaskedObjective(weighting, levels)(wrong, PROCESS, x0_L.expand(rows, L), draws)
        values.append(float(terms.nelbo) / rows)
    assert sum(values) / 4 == pytest.approx(exact_nelbo(wrong, x0_L, K), rel=0.02)


def beta_cdf(levels: Levels, level: float) -> float:
    a = levels.concentration if isinstance(levels, Bell) else 1
    return float(stats.beta(a, a).cdf(level))


@pytest.mark.parametrize(("weighting", "levels"), COMPLETE, ids=repr)
def test_over_all_counts_the_reported_bound_is_exact(weighting: Weighting, levels: Levels) -> None:
    says = ByCount([0.4, 3.0, 0.1, 1.0, 0.7])
    edge = [beta_cdf(levels, count / L) for count in range(L + 1)]
    share = torch.tensor(edge).diff()  # how often each count is drawn
    middle = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(edge)], dtype=torch.float64)
    process, x0_BL = absorbing(Linear(), says.mask), torch.zeros(1, L, dtype=torch.long)
    objective = MaskedObjective(weighting, levels)
    terms = [objective(says, process, x0_BL, Draws(u[None], [generator("exact")])) for u in middle]
    found = torch.stack([each.nelbo for each in terms])
    torch.testing.assert_close(found * share, says.cost, atol=1e-6, rtol=0)  # count l contributes S_l / l
    assert float(found @ share.double()) == pytest.approx(says.bound, abs=1e-6)
    if weighting.weighted:  # what is minimised is the bound, whatever the levels, and a share of the cross-entropy
        minimised = torch.stack([each.loss for each in terms]) @ share.double()
        counts = torch.arange(1, L + 1, dtype=torch.float64)
        ce = (counts * says.cost * share.double()).sum()
        assert float(minimised) == pytest.approx(says.bound + weighting.auxiliary * float(ce), abs=1e-6)


@pytest.mark.parametrize(("weighting", "levels"), PAIRS, ids=repr)
def test_the_loss_has_a_gradient_and_what_is_reported_has_none(weighting: Weighting, levels: Levels) -> None:
    logits = torch.zeros(1, K, requires_grad=True)

    @FunctionDenoiser
    def learner(inputs: NetworkInput) -> torch.Tensor:
        select_BL = inputs.wanted_BL
        return logits.log_softmax(-1).expand(int(select_BL.sum()), K)

    x0_BL = torch.tensor([[0, 1, 1, 1, 1]] * 4)
    terms = MaskedObjective(weighting, levels)(learner, PROCESS, x0_BL, stratified_draws(("gradient",), range(4), 4))
    assert not terms.nelbo.requires_grad
    (slope,) = torch.autograd.grad(terms.loss, logits)
    assert slope[0, 2] > 0 > slope[0, 1]  # away from the symbol that never occurs, towards the frequent one


@pytest.mark.parametrize(("weighting", "levels"), PAIRS, ids=repr)
def test_the_denoiser_is_told_the_share_that_is_masked(weighting: Weighting, levels: Levels) -> None:
    told: list[torch.Tensor] = []

    @FunctionDenoiser
    def listen(inputs: NetworkInput) -> torch.Tensor:
        xt_BL, t_B, select_BL = inputs.ids_BL, inputs.time_B, inputs.wanted_BL
        told.extend([t_B, (xt_BL == K).sum(1) / L, select_BL.sum(1) / L])
        return torch.zeros(int(select_BL.sum()), K)

    x0_BL = torch.zeros(16, L, dtype=torch.long)
    MaskedObjective(weighting, levels)(listen, PROCESS, x0_BL, stratified_draws(("told",), range(16), 16))
    t_B, masked_B, selected_B = told
    torch.testing.assert_close(t_B.float(), masked_B)
    torch.testing.assert_close(t_B.float(), selected_B)


@pytest.mark.parametrize(("weighting", "levels"), PAIRS, ids=repr)
def test_the_loss_is_the_bound_or_the_plain_sum_over_masked_tokens(weighting: Weighting, levels: Levels) -> None:
    wrong, x0_BL = Wrong(K, L), torch.randint(K, (8, L), generator=torch.Generator().manual_seed(0))

    def draws() -> Draws:
        return stratified_draws(("loss",), range(8), 8)

    terms = MaskedObjective(weighting, levels)(wrong, PROCESS, x0_BL, draws())
    assert int(terms.tokens) == 8 * L
    if weighting.weighted:
        plain = MaskedObjective(CrossEntropy(), levels)(wrong, PROCESS, x0_BL, draws()).loss  # at the same masks
        beside = float(terms.nelbo) + weighting.auxiliary * float(plain)
        assert float(terms.loss) == pytest.approx(beside, rel=1e-6) and int(terms.count) == 8 * L
    else:
        uniform = MaskedObjective(weighting, levels)(
            FunctionDenoiser(lambda inputs: torch.full((int(inputs.wanted_BL.sum()), K), -math.log(K))),
            PROCESS,
            x0_BL,
            draws(),
        )
        assert float(uniform.loss) == pytest.approx(int(terms.predicted) * math.log(K), rel=1e-6)
        assert int(terms.count) == int(terms.predicted)


@pytest.mark.parametrize(("weighting", "levels"), PAIRS, ids=repr)
def test_padding_changes_neither_loss_nor_masks(weighting: Weighting, levels: Levels) -> None:
    plain, padded = Narrow(Wrong(K, L), L), Narrow(Wrong(K, L), L)
    x0_BL = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    first = MaskedObjective(weighting, levels)(plain, PROCESS, x0_BL, stratified_draws(("pad",), range(2), 2))
    loss_mask_BL = torch.tensor([[True] * L + [False] * 3] * 2)
    # The padding here is the mask itself, which must not be taken for a masked token.
    wide_BL = torch.nn.functional.pad(x0_BL, (0, 3), value=K)
    second = MaskedObjective(weighting, levels)(
        padded, PROCESS, wide_BL, stratified_draws(("pad",), range(2), 2), loss_mask_BL
    )
    assert torch.equal(padded.seen[0][:, :L], plain.seen[0]) and (padded.seen[0][:, L:] == K).all()
    for a, b in zip(dataclasses.astuple(first)[:5], dataclasses.astuple(second)[:5], strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0, equal_nan=True)


@pytest.mark.parametrize(("weighting", "levels"), PAIRS, ids=repr)
def test_context_is_shown_and_never_masked_and_the_masks_do_not_feel_it(weighting: Weighting, levels: Levels) -> None:
    x0_BL, loss_mask_BL = torch.randint(K, (9, 7), generator=generator("text")), torch.zeros(9, 7, dtype=torch.bool)
    loss_mask_BL[:, 2:] = True
    with_context, without = Narrow(Wrong(K, 7), 7), Narrow(Wrong(K, 7), 7)
    terms = MaskedObjective(weighting, levels)(
        with_context, PROCESS, x0_BL, stratified_draws(("c",), range(9), 9), loss_mask_BL
    )
    MaskedObjective(weighting, levels)(without, PROCESS, x0_BL[:, 2:], stratified_draws(("c",), range(9), 9))
    assert torch.equal(with_context.seen[0][:, :2], x0_BL[:, :2])
    assert torch.equal(with_context.seen[0][:, 2:], without.seen[0])
    assert int(terms.tokens) == 9 * 5


def test_an_empty_row_adds_nothing_and_breaks_nothing() -> None:
    x0_BL, loss_mask_BL = torch.zeros(2, L, dtype=torch.long), torch.tensor([[True] * L, [False] * L])
    terms = MaskedObjective(Elbo(), Even())(
        Wrong(K, L), PROCESS, x0_BL, stratified_draws(("e",), range(2), 2), loss_mask_BL
    )
    assert math.isfinite(float(terms.loss)) and int(terms.tokens) == L


@pytest.mark.parametrize("levels", LEVELS, ids=repr)
def test_the_level_is_the_inverse_of_its_distribution(levels: Levels) -> None:
    u = torch.linspace(0, 1 - 1e-9, 1001, dtype=torch.float64)
    level = levels.level(u)
    torch.testing.assert_close(levels.cdf(level), u, atol=1e-12, rtol=0)
    assert (level.diff() > 0).all() and float(level.min()) >= 0 and float(level.max()) < 1


@pytest.mark.parametrize("levels", LEVELS, ids=repr)
def test_the_density_is_the_slope_of_the_distribution(levels: Levels) -> None:
    level = torch.linspace(0.25, 0.75, 101, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(levels.cdf(level).sum(), level)
    torch.testing.assert_close(levels.density(level.detach()), slope)


@pytest.mark.parametrize("a", [1, 2, 4])
def test_the_bell_is_a_beta_distribution(a: int) -> None:
    r = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(Bell(a).cdf(r), torch.from_numpy(stats.beta(a, a).cdf(r.numpy())))
    if a == 2:
        torch.testing.assert_close(Bell(a).cdf(r), 3 * r**2 - 2 * r**3)


def test_even_levels_draw_every_count_equally_often_and_the_others_do_not() -> None:
    rows, x0_BL = 1000, torch.zeros(1000, L, dtype=torch.long)
    counts = {}
    for levels in (Even(), Bell(3), Clip(0.2, 0.8)):
        seen: list[torch.Tensor] = []

        def spy(inputs: NetworkInput, to: list[torch.Tensor] = seen) -> torch.Tensor:
            to.append(inputs.wanted_BL.sum(1))
            return torch.zeros(int(inputs.wanted_BL.sum()), K)

        MaskedObjective(CrossEntropy(), levels)(
            FunctionDenoiser(spy), PROCESS, x0_BL, stratified_draws(("count",), range(rows), rows)
        )
        counts[levels.name] = torch.bincount(seen[0], minlength=L + 1).tolist()
    # One number on each thousandth: the counts are even to within one.
    assert all(abs(n - rows / L) <= 1 for n in counts["even"][1:])
    assert counts["clip"][1] == counts["clip"][5] == 0 and all(abs(n - rows / 3) <= 1 for n in counts["clip"][2:5])
    expected = [stats.beta(3, 3).cdf(n / L) * rows for n in range(L + 1)]
    assert all(abs(n - (b - a)) <= 1 for n, a, b in zip(counts["bell"][1:], expected, expected[1:], strict=False))


def test_draws_are_stratified_over_the_global_batch_and_do_not_depend_on_who_asks() -> None:
    whole = stratified_draws((0, "train", 7), range(12), 12)
    assert sorted((whole.u_B * 12).floor().int().tolist()) == list(range(12))
    gaps = whole.u_B.sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / 12), atol=1e-12, rtol=0)
    part = stratified_draws((0, "train", 7), range(4, 9), 12)
    assert torch.equal(part.u_B, whole.u_B[4:9])
    for mine, theirs in zip(part.generators, whole.generators[4:9], strict=True):
        assert torch.equal(torch.rand(3, generator=mine), torch.rand(3, generator=theirs))
    other = stratified_draws((0, "train", 8), range(12), 12)
    assert not torch.equal(other.u_B, whole.u_B)


@pytest.mark.parametrize(
    ("one", "other"),
    [((1, 23), (12, 3)), ((0, 1), (1, 0)), ((1,), (1, 1)), ((0, "train"), (0, "validate")), ((1,), ("1",))],
)
def test_different_keys_are_different_streams(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> None:
    assert not torch.equal(torch.rand(4, generator=generator(*one)), torch.rand(4, generator=generator(*other)))


def test_nothing_reads_or_moves_the_global_random_state() -> None:
    def everything() -> tuple[torch.Tensor, ...]:
        draws, x0_BL = stratified_draws(("pure",), range(4), 4), torch.zeros(4, L, dtype=torch.long)
        terms = MaskedObjective(CrossEntropy(), Bell(3))(Wrong(K, L), PROCESS, x0_BL, draws)
        noisy = PROCESS.corrupt(x0_BL, torch.full((4,), 0.5), draws.generators)
        assert not x0_BL.any()  # what was handed over is as it was
        return terms.loss, noisy

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = everything()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    for a, b in zip(first, everything(), strict=True):
        assert torch.equal(a, b)


def test_neighbouring_positions_have_unrelated_streams() -> None:
    first = torch.stack([torch.rand(2, generator=g) for g in stratified_draws((5,), range(4000), 4000).generators])
    assert stats.kstest(first[:, 0].numpy(), "uniform").pvalue > 1e-4
    for pair in (first.T, torch.stack([first[:-1, 0], first[1:, 0]])):
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / math.sqrt(4000)


def test_draws_are_finer_than_float32() -> None:
    (numbers,) = uniforms([generator("fine")], [1000])
    assert numbers.dtype == torch.float64 and float(numbers.min()) >= 0 and float(numbers.max()) < 1
    assert int((numbers * 2**24 % 1 != 0).sum()) > 990  # float32 numbers are multiples of 2^-24


def test_the_largest_are_chosen_and_among_equals_the_leftmost() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7], [1.0, 1.0, 1.0, 1.0], [-math.inf, 3.0, -math.inf, 2.0]])
    chosen = largest(scores, torch.tensor([2, 3, 0]))
    assert chosen.int().tolist() == [[0, 1, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0]]
    equal = largest(torch.zeros(3, 2000), torch.tensor([1, 700, 1999]))
    assert equal.sum(1).tolist() == [1, 700, 1999] and not (equal.int().diff(dim=1) > 0).any()


def test_the_shift_of_the_grid_is_uniform() -> None:
    first = [float(stratified_draws((step,), [0], 4).u_B * 4) % 1 for step in range(2000)]
    assert stats.kstest(first, "uniform").pvalue > 1e-4


def test_every_subset_of_a_size_is_equally_likely() -> None:
    rows, where = 6000, torch.tensor([True, False, True, True, True])
    subset = random_subset([generator(b) for b in range(rows)], where.expand(rows, 5), torch.full((rows,), 2))
    assert (subset.sum(1) == 2).all() and not subset[:, 1].any()
    found = torch.bincount((subset * torch.tensor([1, 2, 4, 8, 16])).sum(1))
    assert int((found > 0).sum()) == 6 and stats.chisquare(found[found > 0].numpy()).pvalue > 1e-4


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_count_version_masks_exactly_that_many_and_any_as_often(count: int) -> None:
    rows, where = 6000, torch.tensor([True, True, False, True])
    xt_BL = PROCESS.corrupt_count(
        torch.zeros(rows, 4, dtype=torch.long),
        torch.full((rows,), count),
        [generator("count", b) for b in range(rows)],
        where.expand(rows, 4),
    )
    masked = xt_BL == K
    assert (masked.sum(1) == count).all() and not masked[:, 2].any() and (xt_BL[~masked] == 0).all()
    found = torch.bincount((masked * torch.tensor([1, 2, 4, 8])).sum(1))
    found = found[found > 0]
    assert len(found) == math.comb(3, count) and (len(found) == 1 or stats.chisquare(found.numpy()).pvalue > 1e-4)


def test_each_token_is_masked_on_its_own_at_the_time_of_its_own_row() -> None:
    rows, where = 16_000, torch.tensor([True, False, True, True])
    t_B = torch.tensor([0.2, 0.7]).repeat(rows // 2)
    xt_BL = absorbing(Cosine(), K).corrupt(
        torch.zeros(rows, 4, dtype=torch.long), t_B, [generator("own", b) for b in range(rows)], where.expand(rows, 4)
    )
    masked = xt_BL == K
    assert not masked[:, 1].any()
    for row, t in enumerate((0.2, 0.7)):
        found = torch.bincount((masked[row::2][:, where] * torch.tensor([1, 2, 4])).sum(1), minlength=8)
        noise = math.sin(math.pi / 2 * t)
        expected = [noise ** m.bit_count() * (1 - noise) ** (3 - m.bit_count()) * rows / 2 for m in range(8)]
        assert stats.chisquare(found.numpy(), expected).pvalue > 1e-4


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_token_is_clean_with_probability_alpha(schedule: Schedule) -> None:
    rows, t = 20_000, 0.3
    x0_BL = torch.zeros(rows, 1, dtype=torch.long)
    xt_BL = absorbing(schedule, K).corrupt(x0_BL, torch.full((rows,), t), [generator(b) for b in range(rows)])
    alpha = float(schedule.alpha(torch.tensor(t, dtype=torch.float64)))
    assert stats.binomtest(int((xt_BL == 0).sum()), rows, alpha).pvalue > 1e-4
    assert set(xt_BL.unique().tolist()) <= {0, K}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedules_fall_from_one_to_zero_and_invert(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha = schedule.alpha(t)
    assert float(alpha[0]) == 1 and abs(float(alpha[-1])) < 1e-12 and (alpha.diff() < 0).all()
    torch.testing.assert_close(schedule.inverse(alpha), t, atol=1e-7, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_alpha_prime_is_the_derivative(schedule: Schedule) -> None:
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    torch.testing.assert_close(schedule.alpha_prime(t.detach()), slope)


def test_subs_never_predicts_what_no_text_holds_and_renormalises_the_rest() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    log_p = ask(X0Denoiser(FunctionNetwork(lambda _: logits), [3, 1]), torch.zeros(1, 1), None, torch.ones(1, 1))
    torch.testing.assert_close(log_p[0].exp()[[0, 2]], torch.tensor([1.0, 3.0]).softmax(0))
    assert log_p[0, 1] == log_p[0, 3] == -torch.inf
    assert logits[0, 3] == 9.0  # the network's own tensor is left alone


def test_log_probabilities_are_float32_whatever_the_network_computes_in() -> None:
    logits = torch.randn(3, 500, generator=generator("bf16")).bfloat16()
    log_p = ask(X0Denoiser(FunctionNetwork(lambda _: logits), [0]), torch.zeros(1, 3), None, torch.ones(1, 3))
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.double().exp().sum(1), torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)


def test_draws_hold_one_stream_a_sequence() -> None:
    draws = stratified_draws(("x",), range(3), 3)
    assert isinstance(draws, Draws) and len(draws.generators) == len(draws.u_B) == 3
