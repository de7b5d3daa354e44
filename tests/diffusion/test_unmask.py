"""Orders, budgets and token choice, on examples worked out by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from dlm.diffusion.draws import generator
from dlm.diffusion.schedule import Cosine, Polynomial, Schedule
from dlm.diffusion.unmask import (
    CPU_SLICE,
    Ancestral,
    Budget,
    Confidence,
    Entropy,
    EntropyBound,
    Factor,
    FixedSteps,
    LeftToRight,
    Margin,
    Order,
    Predictions,
    Random,
    Step,
    Threshold,
    TokenChoice,
)
from tests.support.choices import BUDGETS, FIXED_ORDERS, named

# Three positions of a row of four. Position 1 is not masked.
P = torch.tensor([[0.50, 0.49, 0.01], [0.48, 0.26, 0.26], [0.40, 0.30, 0.30]], dtype=torch.float64)
WHERE = torch.tensor([[True, False, True, True]])


def predictions() -> Predictions:
    return Predictions(P.log(), WHERE)


@pytest.mark.parametrize(
    ("order", "first"),
    [(Confidence(), [0, 2, 3]), (Margin(), [2, 3, 0]), (Entropy(), [0, 2, 3]), (LeftToRight(), [0, 2, 3])],
    ids=lambda value: getattr(value, "name", None),
)
def test_each_order_ranks_as_its_definition_says(order: Order, first: list[int]) -> None:
    scores = order.score(WHERE, predictions(), ())
    assert scores.argsort(dim=1, descending=True)[0, :3].tolist() == first
    assert scores[0, 1] == scores.min()


def test_every_permutation_is_equally_likely_in_random_order() -> None:
    rows = 6000
    where = torch.ones(rows, 3, dtype=torch.bool)
    ranked = Random().score(where, None, [generator(row) for row in range(rows)]).argsort(1)
    found = torch.bincount((ranked * torch.tensor([9, 3, 1])).sum(1))
    assert stats.chisquare(found[found > 0].numpy()).pvalue > 1e-4 and int((found > 0).sum()) == 6


def test_the_statistics_are_the_largest_the_lead_and_the_entropy() -> None:
    found = predictions()
    torch.testing.assert_close(found.confidence_BL, torch.tensor([[0.5, 0, 0.48, 0.4]], dtype=torch.float64))
    torch.testing.assert_close(found.margin_BL, torch.tensor([[0.01, 0, 0.22, 0.1]], dtype=torch.float64))
    torch.testing.assert_close(found.entropy_BL[0, WHERE[0]], -(P * P.log()).sum(1))
    torch.testing.assert_close(found.at(torch.tensor([[False, False, True, False]])), P.log()[1:2])


def counted(budget: Budget, p_NV: Tensor, order: Order) -> int:
    where = torch.ones(1, len(p_NV), dtype=torch.bool)
    found = Predictions(p_NV.log(), where)
    masked = torch.tensor([len(p_NV)])
    return int(budget.count(Step(1, masked, masked, order.score(where, found, ()), found), ()))


def two(*confidences: float) -> Tensor:
    c = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([c, 1 - c], dim=1)


@pytest.mark.parametrize(("threshold", "count"), [(0.95, 1), (0.9, 1), (0.85, 1), (0.75, 2), (0.5, 4)])
def test_the_threshold_takes_all_above_it_or_else_the_best(threshold: float, count: int) -> None:
    assert counted(Threshold(threshold), two(0.9, 0.6, 0.8, 0.7), Confidence()) == count


def test_the_threshold_and_the_factor_are_strict() -> None:
    sure = two(1.0, 1.0, 1.0)
    assert counted(Threshold(1.0), sure, Confidence()) == 1 and counted(Threshold(1 - 1e-9), sure, Confidence()) == 3
    even = two(0.5, 0.5)  # (n + 1)/2 is 1 and then 1.5
    assert counted(Factor(1.5), even, Confidence()) == 1 and counted(Factor(1.5 + 1e-9), even, Confidence()) == 2


@pytest.mark.parametrize("budget", [budget for budget in BUDGETS if budget.needs_predictions], ids=named)
def test_a_budget_never_counts_what_is_not_masked(budget: Budget) -> None:
    # Four positions, one masked: at the others nothing was predicted, and that is no certainty.
    where = torch.tensor([[False, False, True, False]])
    found = Predictions(two(0.99).log(), where)
    for order in FIXED_ORDERS:
        step = Step(1, torch.tensor([1]), torch.tensor([4]), order.score(where, found, ()), found)
        assert budget.count(step, ()).tolist() == [1]


def test_each_row_has_its_own_count() -> None:
    where = torch.ones(2, 3, dtype=torch.bool)
    found = Predictions(two(0.99, 0.99, 0.99, 0.6, 0.99, 0.6).log(), where)
    masked = torch.tensor([3, 3])
    step = Step(1, masked, masked, Confidence().score(where, found, ()), found)
    assert Threshold(0.9).count(step, ()).tolist() == [3, 1]
    assert Factor(0.1).count(step, ()).tolist() == [3, 1]  # 4 x 0.01 < 0.1; 3 x 0.4 is not
    assert EntropyBound(0.1).count(step, ()).tolist() == [2, 2]  # 2 h(.99) = 0.112, and then h(.99) + h(.6) - h(.6)


@pytest.mark.parametrize(
    ("factor", "count"),
    # (n+1)(1-c_n) for c = .99, .95, .8, .7 is .02, .15, .8, 1.5
    [(0.01, 1), (0.02, 1), (0.1, 1), (0.14, 1), (0.16, 2), (0.79, 2), (0.81, 3), (1.49, 3), (1.51, 4)],
)
def test_the_factor_takes_the_largest_n_with_n_plus_1_times_1_minus_c_below_it(factor: float, count: int) -> None:
    assert counted(Factor(factor), two(0.8, 0.99, 0.7, 0.95), Confidence()) == count


def test_the_entropy_bound_takes_the_longest_prefix_whose_sum_less_its_largest_stays_within() -> None:
    p = two(0.5, 0.9, 0.99)  # entropies ln 2, h(.9), h(.99); in order: h(.99), h(.9), ln 2
    small, middle = (float(-(q * q.log()).sum()) for q in two(0.99, 0.9))
    assert counted(EntropyBound(small - 1e-9), p, Entropy()) == 1
    assert counted(EntropyBound(small + 1e-9), p, Entropy()) == 2
    assert counted(EntropyBound(small + middle - 1e-9), p, Entropy()) == 2
    assert counted(EntropyBound(small + middle + 1e-9), p, Entropy()) == 3


def test_the_entropy_bound_holds_back_the_largest_wherever_it_stands() -> None:
    p = two(0.9, 0.5, 0.99)  # from left to right the second is the largest
    h = [float(-(q * q.log()).sum()) for q in p]
    for bound, count in ((h[0] - 1e-9, 1), (h[0] + 1e-9, 2), (h[0] + h[2] - 1e-9, 2), (h[0] + h[2] + 1e-9, 3)):
        assert counted(EntropyBound(bound), p, LeftToRight()) == count


def test_an_entropy_bound_of_zero_still_takes_everything_that_is_certain() -> None:
    assert counted(EntropyBound(0.0), two(1.0, 0.9, 1.0, 1.0), Entropy()) == 4  # the three, and one to hold back
    assert counted(EntropyBound(0.0), two(0.9, 0.9), Entropy()) == 1


@pytest.mark.parametrize("grid", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 3, 7, 100, 300])
@pytest.mark.parametrize("length", [1, 10, 100])
def test_fixed_steps_leave_the_floor_of_the_grids_share_and_end_at_zero(grid: str, steps: int, length: int) -> None:
    budget = FixedSteps(steps, "cosine" if grid == "cosine" else "linear")
    masked = torch.tensor([length])
    for k in range(1, steps + 1):
        masked = masked - budget.count(Step(k, masked, torch.tensor([length])), ())
        if grid == "linear":
            assert int(masked) == length * (steps - k) // steps
        else:
            assert abs(int(masked) - length * math.cos(math.pi / 2 * k / steps)) < 1
    assert int(masked) == 0


@pytest.mark.parametrize("schedule", [Cosine(), Polynomial(power=3.0)], ids=repr)
def test_ancestral_steps_reveal_the_share_that_the_schedule_says(schedule: Schedule) -> None:
    rows, steps = 6000, 4
    masked = torch.full((rows,), 5)
    streams = [generator("share", row) for row in range(rows)]
    for k in range(1, steps + 1):
        masked = masked - Ancestral(steps).count(Step(k, masked, masked, schedule=schedule), streams)
        noise = 1 - float(schedule.alpha(torch.tensor(1 - k / steps, dtype=torch.float64)))
        assert stats.binomtest(int(masked.sum()), 5 * rows, noise).pvalue > 1e-4
    assert not masked.any()


def test_ancestral_reveals_a_binomial_number_and_everything_at_the_end() -> None:
    rows, masked = 4000, 6
    step = Step(2, torch.full((rows,), masked), torch.full((rows,), masked))
    count = Ancestral(4).count(step, [generator(row) for row in range(rows)])
    expected = stats.binom(masked, 1 / 3).pmf(range(masked + 1)) * rows  # from t = 3/4 to s = 1/2
    found = torch.bincount(count, minlength=masked + 1)
    assert stats.chisquare(found.numpy(), expected).pvalue > 1e-4
    last = Ancestral(4).count(Step(4, torch.tensor([5, 0]), torch.tensor([6, 6])), [generator(0), generator(1)])
    assert last.tolist() == [5, 0]


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
def test_temperature_zero_takes_the_likeliest_whatever_is_drawn(u: float) -> None:
    log_p = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.4, 0.3, 0.3]]).log()
    assert TokenChoice(0.0).draw(log_p, torch.full((3,), u, dtype=torch.float64)).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        (TokenChoice(top_k=1), {1}),
        (TokenChoice(top_k=2), {1, 3}),
        (TokenChoice(top_p=0.39), {1}),
        (TokenChoice(top_p=0.41), {1, 3}),
        (TokenChoice(top_p=0.71), {1, 2, 3}),
        (TokenChoice(top_k=3, top_p=0.7), {1, 3}),  # of the three kept .4/.9 + .3/.9 reach .7
        (TokenChoice(top_p=1.0), {0, 1, 2, 3}),
        (TokenChoice(top_k=9), {0, 1, 2, 3}),
        (TokenChoice(top_p=1e-9), {1}),  # never nothing
        # .1^2, .4^2, .2^2, .3^2 are .01, .16, .04, .09 of .30: the temperature comes first
        (TokenChoice(0.5, top_p=0.53), {1}),
        (TokenChoice(0.5, top_p=0.54), {1, 3}),
        (TokenChoice(0.5, top_p=0.84), {1, 2, 3}),
    ],
)
def test_top_k_and_top_p_keep_exactly_their_set(choice: TokenChoice, kept: set[int]) -> None:
    log_p = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log().expand(1000, 4)
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert set(choice.draw(log_p, u).tolist()) == kept


def test_top_p_stops_as_soon_as_p_is_reached_and_top_k_keeps_k_even_of_equals() -> None:
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    halves = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log().expand(1000, 3)
    assert set(TokenChoice(top_p=0.5).draw(halves, u).tolist()) == {1}
    assert set(TokenChoice(top_p=0.75).draw(halves, u).tolist()) == {0, 1}  # of equals the first
    equal = torch.full((1000, 5), math.log(0.2))
    assert len(set(TokenChoice(top_k=2).draw(equal, u).tolist())) == 2


def test_what_is_kept_keeps_its_proportions() -> None:
    u = (torch.arange(7000, dtype=torch.float64) + 0.5) / 7000
    log_p = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64).log().expand(7000, 4)
    assert torch.bincount(TokenChoice(top_k=2).draw(log_p, u)).tolist() == [0, 4000, 0, 3000]
    assert torch.bincount(TokenChoice(top_p=0.6).draw(log_p, u)).tolist() == [0, 4000, 0, 3000]


@pytest.mark.parametrize("choice", [TokenChoice(), TokenChoice(0.7), TokenChoice(top_k=3), TokenChoice(top_p=0.9)])
def test_each_row_of_a_large_vocabulary_is_drawn_as_if_alone(choice: TokenChoice) -> None:
    rows, vocabulary = 7, CPU_SLICE // 2 - 1  # two rows a slice, and a last slice of one
    random = torch.Generator().manual_seed(0)
    log_p = (3 * torch.randn(rows, vocabulary, generator=random)).log_softmax(-1)
    u = torch.rand(rows, generator=random, dtype=torch.float64)
    together = choice.draw(log_p, u)
    alone = [int(choice.draw(log_p[n : n + 1], u[n : n + 1])) for n in range(rows)]
    assert together.tolist() == alone and len(set(alone)) > 1
    assert choice.draw(log_p[:0], u[:0]).shape == (0,)


def test_tokens_come_as_often_as_they_are_probable() -> None:
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    drawn = TokenChoice().draw(P[:1].log().expand(10_000, 3), u)
    assert torch.bincount(drawn).tolist() == [5000, 4900, 100]


def test_temperature_raises_probabilities_to_its_inverse() -> None:
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    weights = P[0] ** 2 / (P[0] ** 2).sum()
    found = torch.bincount(TokenChoice(0.5).draw(P[:1].log().expand(10_000, 3), u), minlength=3)
    torch.testing.assert_close(found / 10_000, weights.float(), atol=2e-4, rtol=0)
    assert torch.bincount(TokenChoice(1e-4).draw(torch.tensor([[0.5, 0.5]]).log().expand(100, 2), u[::100])).min() == 50


def test_a_token_of_probability_1e_6_comes_out_that_often() -> None:
    rest = 200_000
    p = torch.full((1, rest + 1), (1 - 1e-6) / rest, dtype=torch.float64)
    p[0, -1] = 1e-6
    # The last 3e-6 of the quantiles, evenly: a third of them belong to the rare token at the end.
    u = 1 - 3e-6 * (torch.arange(60, dtype=torch.float64) + 0.5) / 60
    drawn = TokenChoice().draw(p.log().float().expand(60, rest + 1), u)
    assert int((drawn == rest).sum()) == 20


def test_a_token_of_probability_1e_6_comes_out_that_often_by_chance_too() -> None:
    draws, rate = 20_000_000, 1e-6
    log_p = torch.tensor([[1 - rate, rate]], dtype=torch.float64).log()
    stream = generator("rare")
    rare = 0
    for _ in range(20):
        u = torch.rand(draws // 20, generator=stream, dtype=torch.float64)
        rare += int(TokenChoice().draw(log_p.expand(len(u), 2), u).sum())
    assert stats.binomtest(rare, draws, rate).pvalue > 1e-4


def test_the_boundary_between_two_tokens_is_the_cumulative_distribution() -> None:
    p = torch.tensor([0.3, 1e-7, 0.2, 0.0, 0.5 - 2e-7, 1e-7], dtype=torch.float64)
    for edge, below, above in zip(p.cumsum(0)[:-1].tolist(), [0, 1, 2, 2, 4], [1, 2, 4, 4, 5], strict=True):
        u = torch.tensor([edge - 1e-12, edge + 1e-12], dtype=torch.float64)
        assert TokenChoice().draw(p.log().expand(2, 6), u).tolist() == [below, above]


def test_float32_would_lose_the_tail() -> None:
    vocabulary, rare = 50_000, 1e-12  # a token in a vocabulary's long tail: together they weigh 5e-8
    p = torch.full((vocabulary + 1,), rare, dtype=torch.float64)
    p[0] = 1 - rare * vocabulary
    tail = torch.tensor([1 - 4.5e-8, 1 - 2.5e-8, 1 - 0.5e-8], dtype=torch.float64)  # quantiles inside the tail
    drawn = TokenChoice().draw(p.log().expand(3, vocabulary + 1), tail)
    assert drawn.tolist() == pytest.approx([5_000, 25_000, 45_000], abs=10)
    single = torch.searchsorted(p.float().cumsum(0), tail.float() * p.float().sum(), right=True)
    assert (single.clamp(max=vocabulary) - drawn).abs().min() > 1000  # there the quantiles are all 1, or 1 - 2^-24


def test_no_draw_ever_takes_an_impossible_token() -> None:
    log_p = torch.tensor([[-torch.inf, 0.0, -torch.inf], [0.0, -torch.inf, -torch.inf]])
    for u in (0.0, 0.5, 1 - 2**-53):
        assert TokenChoice().draw(log_p, torch.full((2,), u, dtype=torch.float64)).tolist() == [1, 0]


@pytest.mark.parametrize("budget", [Threshold(0.9), Factor(0.5)], ids=lambda budget: budget.name)
def test_in_another_order_nothing_unsure_is_revealed_for_the_sake_of_what_comes_later(budget: Budget) -> None:
    assert counted(budget, two(0.6, 0.99), LeftToRight()) == 1
    assert counted(budget, two(0.99, 0.99, 0.6), LeftToRight()) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: TokenChoice(-1.0),
        lambda: TokenChoice(math.nan),
        lambda: TokenChoice(top_k=0),
        lambda: TokenChoice(top_p=0.0),
        lambda: FixedSteps(0),
        lambda: Ancestral(0),
    ],
)
def test_what_cannot_be_sampled_with_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()


def test_the_smallest_temperature_is_greedy() -> None:
    assert TokenChoice(1e-320).draw(P.log(), torch.full((3,), 0.9, dtype=torch.float64)).tolist() == [0, 0, 0]
