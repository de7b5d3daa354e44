"""The truths with a known answer: exact denoisers against closed forms."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from scipy import stats

from dlm.diffusion.draws import generator
from dlm.diffusion.generate import generate
from dlm.diffusion.likelihood import exact_count_nelbo, grid_nelbo
from dlm.diffusion.process import Absorbing
from dlm.diffusion.schedule import Cosine, Linear, Polynomial, Schedule
from dlm.diffusion.unmask import Ancestral, Budget, LeftToRight, OneAtATime, Order, Random, TokenChoice
from tests.diffusion.joints import Joint, discrete_nelbo, exact_nelbo, random_joint, twins


def sampled(joint: Joint, rows: int, order: Order, budget: Budget, seed: int = 0) -> torch.Tensor:
    shape = (rows, joint.length)
    *_, last = generate(
        joint,
        torch.zeros(shape, dtype=torch.long),
        torch.ones(shape, dtype=torch.bool),
        mask_id=joint.symbols,
        order=order,
        budget=budget,
        token=TokenChoice(),
        generators=[generator(seed, row) for row in range(rows)],
    )
    return last.x_BL


@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_the_T_step_bound_of_two_identical_bits_is_ln2_times_1_plus_1_over_T(steps: int) -> None:
    bound = discrete_nelbo(twins(), Absorbing(Linear(), 2), torch.tensor([1, 1]), steps)
    assert bound == pytest.approx(math.log(2) * (1 + 1 / steps), rel=1e-12)


@pytest.mark.parametrize(("symbols", "steps"), [(2, 2), (2, 4), (3, 4)])
def test_one_ancestral_pass_disagrees_with_probability_1_minus_1_over_K_over_T(symbols: int, steps: int) -> None:
    rows = 20_000
    x_BL = sampled(twins(symbols), rows, Random(), Ancestral(steps))
    wrong = int((x_BL[:, 0] != x_BL[:, 1]).sum())
    assert stats.binomtest(wrong, rows, (1 - 1 / symbols) / steps).pvalue > 1e-4


def test_first_hitting_never_disagrees() -> None:
    x_BL = sampled(twins(), 2000, Random(), OneAtATime())
    assert torch.equal(x_BL[:, 0], x_BL[:, 1])


def test_the_exact_count_bound_is_minus_log_p_for_every_text() -> None:
    joint = random_joint(4, 3)
    for x0_L, log_p in zip(joint.texts(), joint.log_p(joint.texts()), strict=True):
        assert exact_nelbo(joint, x0_L, 3) == pytest.approx(-float(log_p), rel=1e-10)


def test_the_gap_of_the_T_step_bound_falls_like_1_over_T() -> None:
    joint = random_joint(4, 3)
    process = Absorbing(Linear(), 3)

    def gap(steps: int) -> float:
        mean = sum(
            float(log_p.exp()) * discrete_nelbo(joint, process, x0_L, steps)
            for x0_L, log_p in zip(joint.texts(), joint.log_p(joint.texts()), strict=True)
        )
        return mean - joint.entropy()

    gaps = [gap(steps) for steps in (8, 16, 32)]
    rates = [math.log2(a / b) for a, b in pairwise(gaps)]
    assert min(gaps) > 0 and all(abs(rate - 1) < 0.1 for rate in rates)
    assert abs(rates[1] - 1) < abs(rates[0] - 1)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Polynomial(power=2.0)])
def test_every_schedule_gives_the_same_bound_and_it_is_minus_log_p(schedule: Schedule) -> None:
    joint = random_joint(3, 3, seed=1)
    x0_L = torch.tensor([0, 2, 1])
    rows = 4000
    even = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    streams = [generator(7, row) for row in range(rows)]
    terms = grid_nelbo(joint, Absorbing(schedule, 3), x0_L.expand(rows, 3), even[:, None], streams, symbols=3)
    error = float(terms.std() / math.sqrt(rows))
    assert abs(float(terms.mean()) + float(joint.log_p(x0_L[None])[0])) < 4 * error
    assert error < 0.1


@pytest.mark.parametrize("steps", [3, 7])
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Polynomial(power=3.0)])
def test_products_of_transition_matrices_are_the_closed_form(schedule: Schedule, steps: int) -> None:
    process = Absorbing(schedule, 2)
    product = torch.eye(4, dtype=torch.float64)
    for k in range(1, steps + 1):
        t = k / steps
        product = process.transition_matrix((k - 1) / steps, t, 4) @ product
        alpha = float(schedule.alpha(torch.tensor(t, dtype=torch.float64)))
        closed = alpha * torch.eye(4, dtype=torch.float64)
        closed[2] += 1 - alpha
        torch.testing.assert_close(product, closed, atol=1e-12, rtol=0)
        torch.testing.assert_close(product.sum(0), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
def test_the_posterior_is_bayes_rule_on_the_transition_matrices(schedule: Schedule) -> None:
    process, states = Absorbing(schedule, 3), 4
    s, t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    to_s, s_to_t = process.transition_matrix(0.0, 0.3, states), process.transition_matrix(0.3, 0.7, states)
    for x0 in range(3):
        for xt in (x0, 3):
            bayes = s_to_t[xt] * to_s[:, x0]
            one_hot = torch.nn.functional.one_hot(torch.tensor([[x0]]), states).double()
            ours = process.posterior(torch.tensor([[xt]]), one_hot, s, t)[0, 0]
            torch.testing.assert_close(ours, bayes / bayes.sum(), atol=1e-12, rtol=0)


def test_the_kl_of_the_posteriors_is_the_weighted_cross_entropy() -> None:
    process = Absorbing(Cosine(), 3)
    s, t = torch.tensor([0.4, 0.6], dtype=torch.float64)
    guess = torch.tensor([[[0.2, 0.5, 0.3, 0.0]]], dtype=torch.float64)
    truth = torch.tensor([[[0.0, 1.0, 0.0, 0.0]]], dtype=torch.float64)
    masked = torch.tensor([[3]])
    q, p = process.posterior(masked, truth, s, t)[0, 0], process.posterior(masked, guess, s, t)[0, 0]
    kl = float((torch.special.xlogy(q, q) - torch.special.xlogy(q, p)).sum())
    assert kl == pytest.approx(float(process.reveal_probability(s, t)) * -math.log(0.5), abs=1e-10)


def test_the_random_order_chain_of_an_exact_denoiser_has_no_variance() -> None:
    joint = twins(3)
    x0_BL = torch.tensor([[2, 2]] * 50)
    estimates = exact_count_nelbo(joint, Absorbing(Linear(), 3), x0_BL, 2, [generator(1, b) for b in range(50)])
    torch.testing.assert_close(estimates.sum(2), torch.full((1, 50), math.log(3), dtype=torch.float64))


def test_constant_logits_give_exactly_ln_K_a_token() -> None:
    uniform = Joint(torch.full([5] * 6, 5.0**-6, dtype=torch.float64))
    x0_BL = torch.tensor([[0, 1, 2, 3, 4, 0], [4, 4, 4, 4, 4, 4]])
    terms = exact_count_nelbo(uniform, Absorbing(Linear(), 5), x0_BL, 8, [generator(0, b) for b in range(2)])
    torch.testing.assert_close(terms.sum(2) / 6, torch.full((2, 2), math.log(5), dtype=torch.float64))


@dataclass(frozen=True)
class Unfinished:
    """alpha(t) = 1 - 0.9 t: a tenth of the tokens is still clean at the end."""

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return 1 - 0.9 * t

    def alpha_prime(self, t: torch.Tensor) -> torch.Tensor:
        return torch.full_like(t, -0.9)

    def inverse(self, alpha: torch.Tensor) -> torch.Tensor:
        return (1 - alpha) / 0.9


def test_a_schedule_that_ends_above_zero_costs_alpha_1_ln_K_and_the_bound_stays_ln_K() -> None:
    uniform = Joint(torch.full([4] * 4, 4.0**-4, dtype=torch.float64))
    process, rows = Absorbing(Unfinished(), 4), 4000
    assert process.edge_nats(4) == pytest.approx(0.1 * math.log(4), rel=1e-12)
    assert Absorbing(Linear(), 4).edge_nats(4) == 0.0
    times = (torch.arange(rows, dtype=torch.float64)[:, None] + 0.5) / rows
    x0_BL = torch.zeros(rows, 4, dtype=torch.long)
    terms = grid_nelbo(uniform, process, x0_BL, times, [generator(b) for b in range(rows)], symbols=4)
    assert float(terms.mean()) / 4 == pytest.approx(math.log(4), abs=4 * float(terms.std()) / 4 / math.sqrt(rows))


@pytest.mark.parametrize("order", [Random(), LeftToRight()])
def test_first_hitting_samples_of_the_exact_denoiser_follow_the_joint(order: Order) -> None:
    joint, rows = random_joint(3, 2, seed=3), 8000
    x_BL = sampled(joint, rows, order, OneAtATime())
    found = torch.bincount((x_BL * torch.tensor([4, 2, 1])).sum(1), minlength=8)
    assert stats.chisquare(found.numpy(), (joint.table.flatten() * rows).numpy()).pvalue > 1e-4
