"""Bounds and exact likelihoods, against enumeration."""

import math

import pytest
import torch

from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import chain_rule_nll, exact_count_nelbo, grid_nelbo
from dlm.diffusion.process import Absorbing
from dlm.diffusion.schedule import Linear
from dlm.diffusion.unmask import Confidence, Entropy, LeftToRight, Margin, Order, Random
from tests.diffusion.joints import Chain, Wrong, exact_nelbo, random_joint

K = 3
PROCESS = Absorbing(Linear(), K)


@pytest.mark.parametrize("draws", [2, 4, 6])
def test_the_estimate_is_unbiased_even_for_a_denoiser_of_no_joint(draws: int) -> None:
    wrong, x0_L, rows = Wrong(K, 5), torch.tensor([0, 2, 1, 1, 0]), 3000
    streams = [generator("unbiased", b) for b in range(rows)]
    terms = exact_count_nelbo(wrong, PROCESS, x0_L.expand(rows, 5), draws, streams)
    found = terms.sum(2).mean(0)
    assert abs(float(found.mean()) - exact_nelbo(wrong, x0_L, K)) < 4 * float(found.std()) / math.sqrt(rows)


def test_replicates_are_independent_and_their_difference_shows_the_error() -> None:
    wrong, x0_L, rows = Wrong(K, 5), torch.tensor([0, 2, 1, 1, 0]), 3000
    streams = [generator("replicates", b) for b in range(rows)]
    first, second = exact_count_nelbo(wrong, PROCESS, x0_L.expand(rows, 5), 8, streams).sum(2)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 4 / math.sqrt(rows)
    claimed = float(((first - second) ** 2 / 4).mean())
    assert claimed == pytest.approx(float(((first + second) / 2).var()), rel=0.15)


def test_a_single_token_is_scored_exactly() -> None:
    joint = random_joint(1, K)
    terms = exact_count_nelbo(joint, PROCESS, torch.tensor([[2]]), 4, [generator(0)])
    torch.testing.assert_close(terms.sum(2)[:, 0], -joint.log_p(torch.tensor([[2], [2]])))


def test_with_context_the_bound_of_an_exact_denoiser_is_the_conditional_likelihood() -> None:
    joint = random_joint(4, K, seed=2)
    x0_L, where_L = torch.tensor([1, 0, 2, 1]), torch.tensor([False, True, False, True])
    rows = 2000
    streams = [generator("conditional", b) for b in range(rows)]
    terms = exact_count_nelbo(joint, PROCESS, x0_L.expand(rows, 4), 2, streams, where_L.expand(rows, 4))
    assert (terms[:, :, ~where_L] == 0).all()
    context = float(joint.table[1, :, 2, :].sum().log())
    truth = context - float(joint.log_p(x0_L[None])[0])
    found = terms.sum(2)[0]
    assert abs(float(found.mean()) - truth) < 4 * float(found.std()) / math.sqrt(rows) + 1e-9


def test_padding_and_neighbours_change_nothing() -> None:
    joint = random_joint(3, K, seed=4)

    def narrow(xt_BL: torch.Tensor, t_B: torch.Tensor, select_BL: torch.Tensor) -> torch.Tensor:
        return joint(xt_BL[:, :3], t_B, select_BL[:, :3])

    x0_BL = torch.tensor([[0, 1, 2], [2, 2, 0]])
    short = exact_count_nelbo(joint, PROCESS, x0_BL[:1], 6, [generator("a")])
    padded, where = torch.nn.functional.pad(x0_BL, (0, 2)), torch.tensor([[True] * 3 + [False] * 2] * 2)
    long = exact_count_nelbo(narrow, PROCESS, padded, 6, [generator("a"), generator("b")], where)
    torch.testing.assert_close(long[:, :1, :3], short, atol=1e-12, rtol=0)


@pytest.mark.parametrize("draws", [0, 1, 3, -2])
def test_an_odd_number_of_draws_is_refused(draws: int) -> None:
    with pytest.raises(ValueError, match="even"):
        exact_count_nelbo(random_joint(2, K), PROCESS, torch.tensor([[0, 1]]), draws, [generator(0)])


def test_left_to_right_the_chain_rule_of_an_exact_denoiser_is_minus_log_p() -> None:
    joint = random_joint(4, K, seed=5)
    texts = joint.texts()
    torch.testing.assert_close(chain_rule_nll(joint, PROCESS, texts, LeftToRight()), -joint.log_p(texts))


@pytest.mark.parametrize("order", [LeftToRight(), Confidence(), Margin(), Entropy()], ids=lambda order: order.name)
def test_the_chain_rule_is_a_distribution_whatever_the_denoiser_says(order: Order) -> None:
    texts = random_joint(4, K).texts()
    nll = chain_rule_nll(Wrong(K, 4, seed=3), PROCESS, texts, order)
    assert float((-nll).exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_a_random_order_has_no_chain_rule() -> None:
    with pytest.raises(ValueError, match="random"):
        chain_rule_nll(random_joint(2, K), PROCESS, torch.tensor([[0, 1]]), Random())


def test_the_monte_carlo_error_is_at_most_half_of_iid_times_at_equal_cost() -> None:
    chain, length, forwards, repeats = Chain(), 128, 16, 300
    x0_BL = chain.draw(1, length, seed=0).expand(repeats, length)
    process = Absorbing(Linear(), chain.mask)
    streams = [generator("mc", b) for b in range(repeats)]
    times = 1 - torch.rand(repeats, forwards, generator=generator("times"), dtype=torch.float64)
    iid = grid_nelbo(chain, process, x0_BL, times, streams, symbols=2).mean(1)
    ours = exact_count_nelbo(chain, process, x0_BL, forwards, streams).mean(0).sum(1)
    assert float(ours.std()) <= 0.5 * float(iid.std())
    assert abs(float(ours.mean() - iid.mean())) < 4 * float(iid.std()) / math.sqrt(repeats)
