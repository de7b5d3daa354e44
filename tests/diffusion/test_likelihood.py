"""Bounds and exact likelihoods, against enumeration."""

import math

import pytest
import torch
from torch import Tensor

from dlm.diffusion.denoiser import FunctionDenoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import Estimator, chain_rule_nll, grid_nelbo
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.schedule import Linear, Schedule
from dlm.diffusion.unmask import Confidence, LeftToRight, Order, Random
from tests.support.choices import FIXED_ORDERS, named
from tests.support.joints import (
    ByCount,
    Chain,
    Joint,
    Narrow,
    Straight,
    Wrong,
    absorbing,
    count_nelbo,
    exact_nelbo,
    random_joint,
)

K = 3
PROCESS = absorbing(Linear(), K)


@pytest.mark.parametrize("draws", [2, 4, 6])
def test_the_estimate_is_unbiased_even_for_a_denoiser_of_no_joint(draws: int) -> None:
    wrong, x0_L, rows = Wrong(K, 5), torch.tensor([0, 2, 1, 1, 0]), 3000
    streams = [generator("unbiased", b) for b in range(rows)]
    terms = count_nelbo(wrong, PROCESS, x0_L.expand(rows, 5), draws, streams)
    found = terms.sum(2).mean(0)
    assert abs(float(found.mean()) - exact_nelbo(wrong, x0_L, K)) < 4 * float(found.std()) / math.sqrt(rows)


@pytest.mark.parametrize("draws", [2, 4, 6, 10])
def test_the_estimate_gives_every_count_its_due(draws: int) -> None:
    says, rows = ByCount([2.0, 0.1, 3.0, 0.2, 1.0]), 4000
    streams = [generator("due", b) for b in range(rows)]
    x0_BL = torch.zeros(rows, 5, dtype=torch.long)
    found = count_nelbo(says, absorbing(Linear(), says.mask), x0_BL, draws, streams).sum(2).mean(0)
    error = float(found.std()) / math.sqrt(rows)
    assert abs(float(found.mean()) - says.bound) < 4 * error and error < 0.01 * says.bound


def test_every_draw_is_scored_together_with_its_complement() -> None:
    joint, where = random_joint(6, 2), torch.tensor([[True, True, False, True, True, True]])
    count_nelbo(joint, absorbing(Linear(), 2), torch.zeros(1, 6, dtype=torch.long), 8, [generator(0)], where)
    everything, *draws = [select for _, select in joint.calls]
    assert torch.equal(everything, where) and len(draws) == 8
    for half, other in zip(draws[::2], draws[1::2], strict=True):
        assert torch.equal(half | other, where) and not (half & other).any()


def test_replicates_are_independent_and_their_difference_shows_the_error() -> None:
    wrong, x0_L, rows = Wrong(K, 5), torch.tensor([0, 2, 1, 1, 0]), 3000
    streams = [generator("replicates", b) for b in range(rows)]
    first, second = count_nelbo(wrong, PROCESS, x0_L.expand(rows, 5), 8, streams).sum(2)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 4 / math.sqrt(rows)
    claimed = float(((first - second) ** 2 / 4).mean())
    assert claimed == pytest.approx(float(((first + second) / 2).var()), rel=0.15)


@pytest.mark.parametrize("replicates", [1, 3, 8])
def test_more_replicates_are_independent_and_show_the_error(replicates: int) -> None:
    rows, x0_L = 1500, torch.tensor([0, 2, 1, 1, 0])
    streams = [generator("more", b) for b in range(rows)]
    found_RB = Estimator(16, replicates=replicates)(Wrong(K, 5), PROCESS, x0_L.expand(rows, 5), streams).sum(2)
    assert len(found_RB) == replicates
    error = float(found_RB.mean(0).std()) / math.sqrt(rows)
    assert abs(float(found_RB.mean()) - exact_nelbo(Wrong(K, 5), x0_L, K)) < 4 * error
    if replicates > 1:
        apart = torch.corrcoef(found_RB) - torch.eye(replicates)
        assert float(apart.abs().max()) < 4.5 / math.sqrt(rows)
        assert float((found_RB.var(0) / replicates).mean()) == pytest.approx(float(found_RB.mean(0).var()), rel=0.15)


@pytest.mark.parametrize("schedule", [Linear(), Straight(0.9, 0.2)], ids=named)
@pytest.mark.parametrize("steps", [None, 3])
def test_the_bound_of_few_tokens_is_enumerated(schedule: Schedule, steps: int | None) -> None:
    process, x0_BL = absorbing(schedule, K), torch.tensor([[0, 2, 1, 1, 0, 2]]).expand(4, 6)
    scored_BL = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 1], [0, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    streams = [generator("few", b) for b in range(4)]
    found_RB = Estimator(14, steps, replicates=4)(Wrong(K, 6), process, x0_BL, streams, scored_BL).sum(2)
    assert float(found_RB[:, :3].std(0).max()) < 1e-12 < 1e-3 < float(found_RB[:, 3].std(0))
    # With fewer draws than subsets, those of the first row are drawn at random.
    rows, apart = 2000, [generator("few", b) for b in range(2000)]
    first = x0_BL[:1].expand(rows, 6), apart, scored_BL[:1].expand(rows, 6)
    drawn = Estimator(12, steps)(Wrong(K, 6), process, *first).sum(2).mean(0)
    assert abs(float(drawn.mean() - found_RB[0, 0])) < 4 * float(drawn.std()) / math.sqrt(rows)


def test_enumeration_is_that_of_every_subset() -> None:
    x0_L = torch.tensor([0, 2, 1, 1])
    found_RB = count_nelbo(Wrong(K, 4), PROCESS, x0_L[None], 14, [generator(0)]).sum(2)
    assert found_RB[:, 0].tolist() == pytest.approx([exact_nelbo(Wrong(K, 4), x0_L, K)] * 2, abs=1e-12)


def test_a_single_token_is_scored_exactly() -> None:
    joint = random_joint(1, K)
    terms = count_nelbo(joint, PROCESS, torch.tensor([[2]]), 4, [generator(0)])
    torch.testing.assert_close(terms.sum(2)[:, 0], -joint.log_p(torch.tensor([[2], [2]])))


@pytest.mark.parametrize("scored", [[1, 3], [0, 1, 2], [2]])
def test_with_context_the_bound_of_an_exact_denoiser_is_the_conditional_likelihood(scored: list[int]) -> None:
    joint = random_joint(4, K, seed=2)
    x0_L, scored_L = torch.tensor([1, 0, 2, 1]), torch.zeros(4, dtype=torch.bool)
    scored_L[scored] = True
    rows = 2000
    streams = [generator("conditional", b) for b in range(rows)]
    terms = count_nelbo(joint, PROCESS, x0_L.expand(rows, 4), 2, streams, scored_L.expand(rows, 4))
    assert (terms[:, :, ~scored_L] == 0).all()
    found, truth = terms.sum(2)[0], conditional(joint, x0_L, scored_L)
    error = float(found.std()) / math.sqrt(rows)
    assert abs(float(found.mean()) - truth) < 4 * error + 1e-9 and error < 0.01 * truth


def conditional(joint: Joint, x0_L: Tensor, scored_L: Tensor) -> float:
    """-log p(the scored tokens | the others)."""
    context = tuple(slice(None) if where else int(x) for x, where in zip(x0_L, scored_L, strict=True))
    return float(joint.table[context].sum().log() - joint.log_p(x0_L[None])[0])


def test_padding_and_neighbours_change_nothing() -> None:
    joint = random_joint(3, K, seed=4)
    x0_BL = torch.tensor([[0, 1, 2], [2, 2, 0]])
    short = count_nelbo(joint, PROCESS, x0_BL[:1], 6, [generator("a")])
    padded, where = torch.nn.functional.pad(x0_BL, (0, 2)), torch.tensor([[True] * 3 + [False] * 2] * 2)
    long = count_nelbo(Narrow(joint, 3), PROCESS, padded, 6, [generator("a"), generator("b")], where)
    torch.testing.assert_close(long[:, :1, :3], short, atol=1e-12, rtol=0)


@pytest.mark.parametrize("timed", [False, True])
def test_the_network_is_called_as_often_whatever_there_is_to_predict(timed: bool) -> None:
    """One that is sharded over processes must be: each of them has another part of the text."""
    found = set()
    for scored in range(5):
        joint, where = random_joint(4, 2), torch.arange(4)[None] < scored
        Estimator(8, None, timed)(
            joint, absorbing(Linear(), 2), torch.zeros(1, 4, dtype=torch.long), [generator(0)], where
        )
        found.add(len(joint.calls))
    assert len(found) == 1 and min(found) >= 8


def test_a_row_with_nothing_to_score_costs_nothing_and_breaks_nothing() -> None:
    where = torch.tensor([[True, True, True], [False, False, False]])
    x0_BL, streams = torch.tensor([[0, 1, 2], [2, 2, 0]]), [generator("a"), generator("b")]
    terms = count_nelbo(random_joint(3, K), PROCESS, x0_BL, 4, streams, where)
    assert terms.isfinite().all() and (terms[:, 1] == 0).all() and (terms[:, 0] > 0).any()
    assert chain_rule_nll(random_joint(3, K), PROCESS, x0_BL, LeftToRight(), where)[1] == 0


@pytest.mark.parametrize("draws", [0, 1, 3, -2])
def test_an_odd_number_of_draws_is_refused(draws: int) -> None:
    with pytest.raises(ValueError, match="even"):
        count_nelbo(random_joint(2, K), PROCESS, torch.tensor([[0, 1]]), draws, [generator(0)])


def test_left_to_right_the_chain_rule_of_an_exact_denoiser_is_minus_log_p() -> None:
    joint = random_joint(4, K, seed=5)
    texts = joint.texts()
    torch.testing.assert_close(chain_rule_nll(joint, PROCESS, texts, LeftToRight()), -joint.log_p(texts))


@pytest.mark.parametrize("order", FIXED_ORDERS, ids=named)
def test_the_chain_rule_is_a_distribution_whatever_the_denoiser_says(order: Order) -> None:
    texts = random_joint(4, K).texts()
    nll = chain_rule_nll(Wrong(K, 4, seed=3), PROCESS, texts, order)
    assert float((-nll).exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_with_context_the_chain_rule_is_the_conditional_likelihood() -> None:
    joint = random_joint(4, K, seed=5)
    scored_BL = torch.tensor([[True, False, True, True], [False, True, False, False], [False, False, True, True]])
    x0_BL = torch.tensor([[0, 2, 1, 1], [2, 0, 0, 1], [1, 1, 2, 0]])
    truth = [conditional(joint, x0_L, scored_L) for x0_L, scored_L in zip(x0_BL, scored_BL, strict=True)]
    for order in (LeftToRight(), Confidence()):
        joint.calls.clear()
        nll = chain_rule_nll(joint, PROCESS, x0_BL, order, scored_BL)
        assert nll.tolist() == pytest.approx(truth, rel=1e-10)
        assert [len(x) for x, _ in joint.calls] == [3, 2, 1]  # finished rows are not sent again


@pytest.mark.parametrize("order", FIXED_ORDERS, ids=named)
def test_with_context_the_chain_rule_is_a_distribution_too(order: Order) -> None:
    texts, scored_L = random_joint(4, K).texts(), torch.tensor([True, False, True, True])
    texts = texts[texts[:, 1] == 2]
    nll = chain_rule_nll(Wrong(K, 4, seed=3), PROCESS, texts, order, scored_L.expand(texts.shape))
    assert len(texts) == K**3 and float((-nll).exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_on_a_wrong_denoiser_orders_are_different_distributions() -> None:
    texts, wrong = random_joint(4, K).texts(), Wrong(K, 4, seed=3)
    left, sure = (chain_rule_nll(wrong, PROCESS, texts, order) for order in (LeftToRight(), Confidence()))
    assert float((left - sure).abs().max()) > 1


def test_the_denoiser_is_told_the_share_that_is_masked_and_asked_no_more_than_is_wanted() -> None:
    calls = 0
    wanted: list[float] = []

    @FunctionDenoiser
    def listen(inputs: NetworkInput) -> Tensor:
        xt_BL, t_B, select_BL = inputs.ids_BL, inputs.time_B, inputs.wanted_BL
        nonlocal calls
        calls += 1
        torch.testing.assert_close(t_B, (xt_BL == K).double().mean(1))
        assert not (select_BL & (xt_BL != K)).any()
        wanted.append(float(select_BL.sum() / (xt_BL == K).sum()))
        return torch.full((int(select_BL.sum()), K), -math.log(K))

    x0_BL = torch.zeros(3, 5, dtype=torch.long)
    count_nelbo(listen, PROCESS, x0_BL, 6, [generator(b) for b in range(3)])
    assert calls == 7 and wanted == [1.0] * 7
    chain_rule_nll(listen, PROCESS, x0_BL, LeftToRight())
    assert calls == 7 + 5 and wanted[7:] == pytest.approx([1 / 5, 1 / 4, 1 / 3, 1 / 2, 1.0])
    chain_rule_nll(listen, PROCESS, x0_BL, Confidence())  # which looks at all of them to choose one
    assert wanted[12:] == [1.0] * 5


def test_a_random_order_has_no_chain_rule() -> None:
    with pytest.raises(ValueError, match="random"):
        chain_rule_nll(random_joint(2, K), PROCESS, torch.tensor([[0, 1]]), Random())


def test_the_monte_carlo_error_is_at_most_half_of_iid_times_at_equal_cost() -> None:
    chain, length, draws, texts, repeats = Chain(), 128, 16, 6, 50
    x0_BL = chain.draw(texts, length, seed=0).repeat_interleave(repeats, 0)
    process, rows = absorbing(Linear(), chain.mask), texts * repeats
    streams = [generator("mc", b) for b in range(rows)]
    times = 1 - torch.rand(rows, draws + 1, generator=generator("times"), dtype=torch.float64)
    iid = grid_nelbo(chain, process, x0_BL, times, streams).mean(1)
    ours = count_nelbo(chain, process, x0_BL, draws, streams).mean(0).sum(1)  # one more: all masks

    def scatter(estimates: Tensor) -> float:
        """Half of the middle 68%: with the weight 1/t no estimate at times has a finite variance."""
        apart = estimates.view(texts, repeats) - estimates.view(texts, repeats).mean(1, keepdim=True)
        low, high = apart.flatten().quantile(torch.tensor([0.16, 0.84], dtype=torch.float64)).tolist()
        return (high - low) / 2

    assert scatter(ours) <= 0.5 * scatter(iid)
    assert abs(float(ours.mean() - iid.mean())) < 4 * scatter(iid) / math.sqrt(rows)
