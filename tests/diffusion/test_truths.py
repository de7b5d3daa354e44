"""The truths with a known answer: exact denoisers against closed forms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import ClassVar

import pytest
import torch
from scipy import stats

from dlm.diffusion.bound import prior_and_reconstruction_nats
from dlm.diffusion.denoiser import FunctionDenoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import chain_rule_nll, grid_nelbo
from dlm.diffusion.matrices import posterior, transition_matrix
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.schedule import Cosine, Linear, Polynomial, Schedule
from dlm.diffusion.unmask import (
    Ancestral,
    Budget,
    LeftToRight,
    OneAtATime,
    Order,
    Predictions,
    Random,
    TokenChoice,
)
from tests.support.choices import COMPLETE_SCHEDULES, named
from tests.support.joints import (
    ByCount,
    Joint,
    Straight,
    absorbing,
    count_nelbo,
    discrete_nelbo,
    exact_nelbo,
    random_joint,
    reveal_probability,
    twins,
    urn,
)
from tests.support.networks import unmask


def sampled(
    joint: Joint, rows: int, order: Order, budget: Budget, seed: int = 0, schedule: Schedule | None = None
) -> torch.Tensor:
    shape = (rows, joint.length)
    *_, last = unmask(
        joint,
        torch.zeros(shape, dtype=torch.long),
        torch.ones(shape, dtype=torch.bool),
        mask_id=joint.symbols,
        order=order,
        budget=budget,
        token=TokenChoice(),
        generators=[generator(seed, row) for row in range(rows)],
        schedule=schedule,
    )
    return last.x_BL


@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_the_T_step_bound_of_two_identical_bits_is_ln2_times_1_plus_1_over_T(steps: int) -> None:
    bound = discrete_nelbo(twins(), absorbing(Linear(), 2), torch.tensor([1, 1]), steps)
    assert bound == pytest.approx(math.log(2) * (1 + 1 / steps), rel=1e-12)


@pytest.mark.parametrize(("symbols", "steps"), [(2, 2), (2, 4), (3, 4)])
def test_one_ancestral_pass_disagrees_with_probability_1_minus_1_over_K_over_T(symbols: int, steps: int) -> None:
    rows = 20_000
    x_BL = sampled(twins(symbols), rows, Random(), Ancestral(steps))
    wrong = int((x_BL[:, 0] != x_BL[:, 1]).sum())
    assert stats.binomtest(wrong, rows, (1 - 1 / symbols) / steps).pvalue > 1e-4


@pytest.mark.parametrize("schedule", [Cosine(), Polynomial(power=3.0)])
def test_on_any_schedule_one_pass_disagrees_when_one_step_reveals_both(schedule: Schedule) -> None:
    rows, steps = 20_000, 3
    alpha = schedule.alpha(torch.arange(steps + 1, dtype=torch.float64) / steps)
    expected = 0.5 * float((alpha.diff() ** 2).sum())  # each bit appears in step k with probability alpha_s - alpha_t
    x_BL = sampled(twins(), rows, Random(), Ancestral(steps), schedule=schedule)
    wrong = int((x_BL[:, 0] != x_BL[:, 1]).sum())
    assert abs(expected - 1 / (2 * steps)) > 0.02  # the linear schedule's answer would be noticed
    assert stats.binomtest(wrong, rows, expected).pvalue > 1e-4


def test_first_hitting_never_disagrees() -> None:
    x_BL = sampled(twins(), 2000, Random(), OneAtATime())
    assert torch.equal(x_BL[:, 0], x_BL[:, 1])


def test_the_exact_count_bound_is_minus_log_p_for_every_text() -> None:
    joint = random_joint(4, 3)
    for x0_L, log_p in zip(joint.texts(), joint.log_p(joint.texts()), strict=True):
        assert exact_nelbo(joint, x0_L, 3) == pytest.approx(-float(log_p), rel=1e-10)


def test_the_gap_of_the_T_step_bound_falls_like_1_over_T() -> None:
    joint = random_joint(4, 3)
    process = absorbing(Linear(), 3)

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


@pytest.mark.parametrize("schedule", COMPLETE_SCHEDULES, ids=named)
def test_every_schedule_gives_the_same_bound_and_it_is_minus_log_p(schedule: Schedule) -> None:
    joint = random_joint(3, 3, seed=1)
    x0_L = torch.tensor([0, 2, 1])
    rows = 8000
    even = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    streams = [generator(7, row) for row in range(rows)]
    terms = grid_nelbo(joint, absorbing(schedule, 3), x0_L.expand(rows, 3), even[:, None], streams)
    error = float(terms.std() / math.sqrt(rows))
    truth = -float(joint.log_p(x0_L[None])[0])
    assert abs(float(terms.mean()) - truth) < 4 * error
    assert error < 0.02 * truth


@pytest.mark.parametrize("schedule", [*COMPLETE_SCHEDULES, Polynomial(power=0.5)], ids=repr)
def test_every_schedule_weighs_each_number_of_masks_alike(schedule: Schedule) -> None:
    says, rows = ByCount([0.1, 2.0, 0.3, 1.0]), 20_000
    even = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    x0_BL = torch.zeros(rows, 4, dtype=torch.long)
    streams = [generator("alike", row) for row in range(rows)]
    terms = grid_nelbo(says, absorbing(schedule, says.mask), x0_BL, even[:, None], streams)
    error = float(terms.std() / math.sqrt(rows))
    assert abs(float(terms.mean()) - says.bound) < 4 * error and error < 0.02 * says.bound


def test_the_denoiser_is_told_the_time_of_each_sequence() -> None:
    told: list[list[float]] = []

    @FunctionDenoiser
    def listen(inputs: NetworkInput) -> torch.Tensor:
        t_B, select_BL = inputs.time_B, inputs.wanted_BL
        told.append(t_B.tolist())
        return torch.full((int(select_BL.sum()), 3), -math.log(3))

    t_BD, x0_BL = torch.tensor([[0.9, 0.7], [0.8, 0.6]]).double(), torch.zeros(2, 50, dtype=torch.long)
    grid_nelbo(listen, absorbing(Cosine(), 3), x0_BL, t_BD, [generator(0), generator(1)])
    assert told == t_BD.T.tolist()


@pytest.mark.parametrize("steps", [3, 7])
@pytest.mark.parametrize("schedule", COMPLETE_SCHEDULES, ids=named)
def test_products_of_transition_matrices_are_the_closed_form(schedule: Schedule, steps: int) -> None:
    process = absorbing(schedule, 3)
    product = torch.eye(4, dtype=torch.float64)
    for k in range(1, steps + 1):
        t = k / steps
        product = transition_matrix(process, (k - 1) / steps, t) @ product
        alpha = float(schedule.alpha(torch.tensor(t, dtype=torch.float64)))
        closed = alpha * torch.eye(4, dtype=torch.float64)
        closed[3] += 1 - alpha
        torch.testing.assert_close(product, closed, atol=1e-12, rtol=0)
        torch.testing.assert_close(product.sum(0), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize(("s", "t"), [(0.3, 0.7), (0.0, 0.2), (0.9, 1.0), (0.5, 0.51)])
@pytest.mark.parametrize("schedule", [*COMPLETE_SCHEDULES, Polynomial(power=0.5)], ids=repr)
def test_the_posterior_is_bayes_rule_on_the_transition_matrices(schedule: Schedule, s: float, t: float) -> None:
    process, states = absorbing(schedule, 3), 4
    times = torch.tensor([s, t], dtype=torch.float64)
    to_s, s_to_t = transition_matrix(process, 0.0, s), transition_matrix(process, s, t)
    bayes_MS = s_to_t[3] * to_s.T[:3]  # every x0, the token masked at t
    bayes_MS = bayes_MS / bayes_MS.sum(1, keepdim=True)
    for x0 in range(3):
        one_hot = torch.nn.functional.one_hot(torch.tensor([[x0]]), states).double()
        masked = posterior(process, torch.tensor([[3]]), one_hot, *times)[0, 0]
        torch.testing.assert_close(masked, bayes_MS[x0], atol=1e-12, rtol=0)
        visible = posterior(process, torch.tensor([[x0]]), one_hot, *times)
        torch.testing.assert_close(visible, one_hot, atol=0, rtol=0)
    guess = torch.tensor([0.2, 0.5, 0.3, 0.0], dtype=torch.float64)
    average = posterior(process, torch.tensor([[3]]), guess[None, None], *times)[0, 0]
    torch.testing.assert_close(average, guess[:3] @ bayes_MS, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("s", "t"), [(0.4, 0.6), (0.0, 0.25), (0.75, 1.0)])
@pytest.mark.parametrize("schedule", COMPLETE_SCHEDULES, ids=named)
def test_the_kl_of_the_posteriors_is_the_weighted_cross_entropy(schedule: Schedule, s: float, t: float) -> None:
    process, masked = absorbing(schedule, 3), torch.tensor([[3]])
    times = torch.tensor([s, t], dtype=torch.float64)
    guess = torch.tensor([0.2, 0.5, 0.3, 0.0], dtype=torch.float64)
    for x0 in range(3):
        truth = torch.nn.functional.one_hot(torch.tensor([[x0]]), 4).double()
        q, p = (posterior(process, masked, p0, *times)[0, 0] for p0 in (truth, guess[None, None]))
        kl = float((torch.special.xlogy(q, q) - torch.special.xlogy(q, p)).sum())
        assert kl == pytest.approx(float(reveal_probability(process, *times)) * -math.log(guess[x0]), abs=1e-10)


@dataclass(frozen=True)
class Given:
    """The position with the largest of the given numbers first."""

    rank: tuple[int, ...]
    name: str = "given"
    needs_predictions: ClassVar[bool] = False
    is_random: ClassVar[bool] = False

    def score(
        self, loss_mask_BL: torch.Tensor, predictions: Predictions | None, generators: Sequence[torch.Generator]
    ) -> torch.Tensor:
        return torch.tensor(self.rank).double().expand(loss_mask_BL.shape).masked_fill(~loss_mask_BL, -math.inf)


def test_the_random_order_chain_of_an_exact_denoiser_has_no_variance() -> None:
    joint = random_joint(4, 3, seed=6)
    texts = joint.texts()
    for rank in permutations(range(4)):
        nll = chain_rule_nll(joint, absorbing(Linear(), 3), texts, Given(rank))
        torch.testing.assert_close(nll, -joint.log_p(texts), atol=1e-12, rtol=0)


@pytest.mark.parametrize("length", [2, 3, 6])
def test_with_one_draw_a_count_the_estimate_has_no_variance_left_but_that_of_the_subsets(length: int) -> None:
    rows, draws = 20, 4 * (length - 1)  # two replicates, each with one pair on every count 1 .. L-1
    says, x0_BL = urn(length), torch.zeros(rows, length, dtype=torch.long)
    estimates = count_nelbo(says, absorbing(Linear(), says.mask), x0_BL, draws, [generator(1, b) for b in range(rows)])
    truth = torch.full((2, rows), math.log(length + 1), dtype=torch.float64)  # -log p of the urn
    torch.testing.assert_close(estimates.sum(2), truth, atol=1e-12, rtol=0)


def test_constant_logits_give_exactly_ln_K_a_token() -> None:
    uniform = Joint(torch.full([5] * 6, 5.0**-6, dtype=torch.float64))
    x0_BL = torch.tensor([[0, 1, 2, 3, 4, 0], [4, 4, 4, 4, 4, 4]])
    terms = count_nelbo(uniform, absorbing(Linear(), 5), x0_BL, 8, [generator(0, b) for b in range(2)])
    torch.testing.assert_close(terms.sum(2) / 6, torch.full((2, 2), math.log(5), dtype=torch.float64))


@pytest.mark.parametrize(("first", "last", "edges"), [(1.0, 0.1, 0.1), (0.8, 0.0, 0.2), (0.9, 0.05, 0.15)])
def test_an_end_that_a_schedule_misses_costs_ln_K_and_the_bound_stays_ln_K(
    first: float, last: float, edges: float
) -> None:
    uniform = Joint(torch.full([4] * 4, 4.0**-4, dtype=torch.float64))
    process, rows = absorbing(Straight(first, last), 4), 4000
    tokens = torch.arange(4)
    torch.testing.assert_close(
        prior_and_reconstruction_nats(process, tokens), torch.full((4,), edges * math.log(4)).double()
    )
    assert not prior_and_reconstruction_nats(absorbing(Linear(), 4), tokens).any()
    times = (torch.arange(rows, dtype=torch.float64)[:, None] + 0.5) / rows
    x0_BL = torch.zeros(rows, 4, dtype=torch.long)
    terms = grid_nelbo(uniform, process, x0_BL, times, [generator(b) for b in range(rows)])
    assert float(terms.mean()) / 4 == pytest.approx(math.log(4), abs=4 * float(terms.std()) / 4 / math.sqrt(rows))


@pytest.mark.parametrize("order", [Random(), LeftToRight()])
def test_first_hitting_samples_of_the_exact_denoiser_follow_the_joint(order: Order) -> None:
    joint, rows = random_joint(3, 2, seed=3), 8000
    x_BL = sampled(joint, rows, order, OneAtATime())
    found = torch.bincount((x_BL * torch.tensor([4, 2, 1])).sum(1), minlength=8)
    assert stats.chisquare(found.numpy(), (joint.table.flatten() * rows).numpy()).pvalue > 1e-4
