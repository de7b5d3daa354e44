"""Training objectives, draws, corruption and schedules."""

import math
from typing import get_args

import pytest
import torch
from scipy import stats

from dlm.diffusion.denoiser import Subs
from dlm.diffusion.draws import Draws, generator, random_subset, stratified_draws
from dlm.diffusion.objective import Bell, CrossEntropy, Elbo, MaskedObjective, Weighting
from dlm.diffusion.process import Absorbing
from dlm.diffusion.schedule import Cosine, Linear, Polynomial, Schedule
from tests.diffusion.joints import Wrong, exact_nelbo

K, L = 3, 5
PROCESS = Absorbing(Linear(), K)
WEIGHTINGS: list[Weighting] = [*(choice() for choice in get_args(Weighting)), Bell(4)]
SCHEDULES: list[Schedule] = [Linear(), Cosine(), Polynomial(power=0.5), Polynomial(power=3.0)]


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
def test_the_reported_bound_is_unbiased_whatever_is_minimised(weighting: Weighting) -> None:
    wrong, x0_L, rows = Wrong(K, L), torch.tensor([0, 2, 1, 1, 0]), 4000
    values = []
    for part in range(4):
        draws = stratified_draws(("unbiased", part), range(rows), rows)
        values.append(float(MaskedObjective(weighting)(wrong, PROCESS, x0_L.expand(rows, L), draws).nelbo) / rows)
    assert sum(values) / 4 == pytest.approx(exact_nelbo(wrong, x0_L, K), rel=0.02)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
def test_the_loss_is_the_bound_or_the_plain_sum_over_masked_tokens(weighting: Weighting) -> None:
    wrong, x0_BL = Wrong(K, L), torch.randint(K, (8, L), generator=torch.Generator().manual_seed(0))
    draws = stratified_draws(("loss",), range(8), 8)
    terms = MaskedObjective(weighting)(wrong, PROCESS, x0_BL, draws)
    assert int(terms.tokens) == 8 * L
    if weighting.weighted:
        assert float(terms.loss) == float(terms.nelbo) and int(terms.count) == 8 * L
    else:
        uniform = MaskedObjective(weighting)(
            lambda x, t, s: torch.full((int(s.sum()), K), -math.log(K)), PROCESS, x0_BL, draws
        )
        assert float(uniform.loss) == pytest.approx(int(terms.masked) * math.log(K), rel=1e-6)
        assert int(terms.count) == int(terms.masked)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
def test_padding_changes_neither_loss_nor_masks(weighting: Weighting) -> None:
    wrong, x0_BL = Wrong(K, L), torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    plain = MaskedObjective(weighting)(wrong, PROCESS, x0_BL, stratified_draws(("pad",), range(2), 2))
    where_BL = torch.tensor([[True] * L + [False] * 3] * 2)
    seen = []

    def narrow(xt_BL: torch.Tensor, t_B: torch.Tensor, select_BL: torch.Tensor) -> torch.Tensor:
        seen.append(xt_BL[:, L:])
        return wrong(xt_BL[:, :L], t_B, select_BL[:, :L])

    padded_BL = torch.nn.functional.pad(x0_BL, (0, 3), value=1)
    padded = MaskedObjective(weighting)(narrow, PROCESS, padded_BL, stratified_draws(("pad",), range(2), 2), where_BL)
    torch.testing.assert_close(padded.loss, plain.loss)
    assert (seen[0] == 1).all() and int(padded.tokens) == int(plain.tokens)


def test_an_empty_row_adds_nothing_and_breaks_nothing() -> None:
    x0_BL, where_BL = torch.zeros(2, L, dtype=torch.long), torch.tensor([[True] * L, [False] * L])
    terms = MaskedObjective(Elbo())(Wrong(K, L), PROCESS, x0_BL, stratified_draws(("e",), range(2), 2), where_BL)
    assert math.isfinite(float(terms.loss)) and int(terms.tokens) == L


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
def test_the_rate_is_the_inverse_of_its_distribution(weighting: Weighting) -> None:
    u = torch.linspace(0, 1 - 1e-9, 1001, dtype=torch.float64)
    rate = weighting.rate(u)
    torch.testing.assert_close(weighting.cdf(rate), u, atol=1e-12, rtol=0)
    assert (rate.diff() > 0).all() and float(rate.min()) >= 0 and float(rate.max()) < 1


@pytest.mark.parametrize("a", [1, 2, 4])
def test_the_bell_is_a_beta_distribution(a: int) -> None:
    r = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(Bell(a).cdf(r), torch.from_numpy(stats.beta(a, a).cdf(r.numpy())))
    if a == 2:
        torch.testing.assert_close(Bell(a).cdf(r), 3 * r**2 - 2 * r**3)


def test_elbo_and_ce_draw_every_count_equally_often_and_the_bell_does_not() -> None:
    rows, x0_BL = 1000, torch.zeros(1000, L, dtype=torch.long)
    counts = {}
    for weighting in (Elbo(), CrossEntropy(), Bell(3)):
        seen: list[torch.Tensor] = []

        def spy(
            xt_BL: torch.Tensor, t_B: torch.Tensor, select_BL: torch.Tensor, to: list[torch.Tensor] = seen
        ) -> torch.Tensor:
            to.append(select_BL.sum(1))
            return torch.zeros(int(select_BL.sum()), K)

        MaskedObjective(weighting)(spy, PROCESS, x0_BL, stratified_draws(("count",), range(rows), rows))
        counts[weighting.name] = torch.bincount(seen[0], minlength=L + 1).tolist()
    # One number on each thousandth: the counts are even to within one.
    assert all(abs(n - rows / L) <= 1 for n in counts["elbo"][1:]) and counts["elbo"] == counts["ce"]
    expected = [stats.beta(3, 3).cdf(n / L) * rows for n in range(L + 1)]
    assert all(abs(n - (b - a)) <= 1 for n, a, b in zip(counts["bell"][1:], expected, expected[1:], strict=False))


def test_draws_are_stratified_over_the_global_batch_and_do_not_depend_on_who_asks() -> None:
    whole = stratified_draws((0, "train", 7), range(12), 12)
    assert sorted((whole.u_B * 12).floor().int().tolist()) == list(range(12))
    part = stratified_draws((0, "train", 7), range(4, 9), 12)
    assert torch.equal(part.u_B, whole.u_B[4:9])
    for mine, theirs in zip(part.generators, whole.generators[4:9], strict=True):
        assert torch.equal(torch.rand(3, generator=mine), torch.rand(3, generator=theirs))
    other = stratified_draws((0, "train", 8), range(12), 12)
    assert not torch.equal(other.u_B, whole.u_B)


def test_the_shift_of_the_grid_is_uniform() -> None:
    first = [float(stratified_draws((step,), [0], 4).u_B * 4) % 1 for step in range(2000)]
    assert stats.kstest(first, "uniform").pvalue > 1e-4


def test_every_subset_of_a_size_is_equally_likely() -> None:
    rows, where = 6000, torch.tensor([True, False, True, True, True])
    subset = random_subset([generator(b) for b in range(rows)], where.expand(rows, 5), torch.full((rows,), 2))
    assert (subset.sum(1) == 2).all() and not subset[:, 1].any()
    found = torch.bincount((subset * torch.tensor([1, 2, 4, 8, 16])).sum(1))
    assert int((found > 0).sum()) == 6 and stats.chisquare(found[found > 0].numpy()).pvalue > 1e-4


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_token_is_clean_with_probability_alpha(schedule: Schedule) -> None:
    rows, t = 20_000, 0.3
    x0_BL = torch.zeros(rows, 1, dtype=torch.long)
    xt_BL = Absorbing(schedule, K).corrupt(x0_BL, torch.full((rows,), t), [generator(b) for b in range(rows)])
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
    log_p = Subs(lambda x, t, s: logits, [3, 1])(torch.zeros(1, 1), torch.zeros(1), torch.ones(1, 1))
    torch.testing.assert_close(log_p[0].exp()[[0, 2]], torch.tensor([1.0, 3.0]).softmax(0))
    assert log_p[0, 1] == log_p[0, 3] == -torch.inf
    assert logits[0, 3] == 9.0  # the network's own tensor is left alone


def test_draws_hold_one_stream_a_sequence() -> None:
    draws = stratified_draws(("x",), range(3), 3)
    assert isinstance(draws, Draws) and len(draws.generators) == len(draws.u_B) == 3
