"""Identities between the parts: what is sampled is what is scored, and what is scored is what is trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import ClassVar

import pytest
import torch
from scipy import stats
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import chain_rule_nll
from dlm.diffusion.matrices import posterior
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.sample import State
from dlm.diffusion.schedule import Linear, Schedule
from dlm.diffusion.unmask import (
    Ancestral,
    Budget,
    FixedSteps,
    LeftToRight,
    OneAtATime,
    Order,
    Predictions,
    Random,
    TokenChoice,
)
from tests.support.choices import BUDGETS, COMPLETE_SCHEDULES, FIXED_ORDERS, ORDERS, named
from tests.support.joints import Joint, Narrow, Wrong, absorbing, count_nelbo, exact_nelbo, random_joint
from tests.support.networks import ask, unmask

K = 3
PROCESS = absorbing(Linear(), K)


@dataclass(frozen=True)
class Given:
    """The position with the largest of the given numbers first."""

    rank: tuple[int, ...]
    name: str = "given"
    needs_predictions: ClassVar[bool] = False
    is_random: ClassVar[bool] = False

    def score(
        self, candidates_BL: Tensor, predictions: Predictions | None, generators: Sequence[torch.Generator]
    ) -> Tensor:
        return torch.tensor(self.rank).double().expand(candidates_BL.shape).masked_fill(~candidates_BL, -math.inf)


def every_text(length: int, symbols: int) -> Tensor:
    return torch.tensor(list(product(range(symbols), repeat=length)))


def written(
    denoiser: Denoiser,
    editable_BL: Tensor,
    order: Order,
    budget: Budget,
    *,
    symbols: int = K,
    keys: Sequence[int] | None = None,
    block_length: int | None = None,
    stop_id: int | None = None,
    temperature: float = 1.0,
    schedule: Schedule | None = None,
) -> list[State]:
    return list(
        unmask(
            denoiser,
            torch.zeros_like(editable_BL, dtype=torch.long),
            editable_BL,
            mask_id=symbols,
            order=order,
            budget=budget,
            token=TokenChoice(temperature),
            generators=[generator("identity", key) for key in (keys or range(len(editable_BL)))],
            block_length=block_length,
            stop_id=stop_id,
            schedule=schedule,
        )
    )


@pytest.mark.parametrize("order", FIXED_ORDERS, ids=named)
def test_the_chain_rule_is_how_often_its_own_sampler_writes_each_text(order: Order) -> None:
    wrong, rows, length = Wrong(2, 3, seed=8), 8000, 3
    p = (-chain_rule_nll(wrong, absorbing(Linear(), 2), every_text(length, 2), order)).exp()
    last = written(wrong, torch.ones(rows, length, dtype=torch.bool), order, OneAtATime(), symbols=2)[-1]
    found = torch.bincount((last.x_BL * torch.tensor([4, 2, 1])).sum(1), minlength=8)
    assert stats.chisquare(found.numpy(), (p * rows).numpy()).pvalue > 1e-4


def test_first_hitting_of_a_wrong_denoiser_writes_the_mean_over_all_orders() -> None:
    wrong, rows, length = Wrong(2, 3, seed=8), 8000, 3
    texts, process = every_text(length, 2), absorbing(Linear(), 2)
    chains = [(-chain_rule_nll(wrong, process, texts, Given(rank))).exp() for rank in permutations(range(length))]
    p = torch.stack(chains).mean(0)
    assert all(float((chain - p).abs().max()) > 0.01 for chain in chains)  # no single order would pass for the mean
    last = written(wrong, torch.ones(rows, length, dtype=torch.bool), Random(), OneAtATime(), symbols=2)[-1]
    found = torch.bincount((last.x_BL * torch.tensor([4, 2, 1])).sum(1), minlength=8)
    assert stats.chisquare(found.numpy(), (p * rows).numpy()).pvalue > 1e-4


def test_the_bound_is_the_mean_of_the_chain_rule_over_all_orders_and_above_the_random_samplers_nll() -> None:
    wrong, texts = Wrong(K, 4, seed=2), every_text(4, K)[::7]
    nll = torch.stack([chain_rule_nll(wrong, PROCESS, texts, Given(rank)) for rank in permutations(range(4))])
    bound = torch.tensor([exact_nelbo(wrong, x0_L, K) for x0_L in texts], dtype=torch.float64)
    torch.testing.assert_close(nll.mean(0), bound, atol=1e-12, rtol=0)
    sampler = math.log(len(nll)) - (-nll).logsumexp(0)  # -log of the mean over orders of p
    assert (bound > sampler + 1e-3).all()


@pytest.mark.parametrize("schedule", COMPLETE_SCHEDULES, ids=named)
def test_ancestral_sampling_is_the_chain_of_posteriors(schedule: Schedule) -> None:
    symbols, length, steps, rows = 2, 2, 12, 10_000
    # Two bits that all but agree: it matters how often both appear in the same step.
    process, bits = absorbing(schedule, symbols), Joint(torch.tensor([[0.6, 0.01], [0.02, 0.37]], dtype=torch.float64))
    states = every_text(length, symbols + 1)
    p = torch.zeros(len(states), dtype=torch.float64)
    p[-1] = 1.0  # all masks
    for k in range(steps, 0, -1):
        s, t = torch.tensor([(k - 1) / steps, k / steps], dtype=torch.float64)
        after = torch.zeros_like(p)
        for x_L, weight in zip(states, p, strict=True):
            p0 = torch.zeros(1, length, symbols + 1, dtype=torch.float64)
            masked = (x_L == symbols)[None]
            p0[masked] = ask(bits, x_L[None], t[None], masked).exp()
            left, right = posterior(process, x_L[None], p0, s, t)[0]
            after += weight * torch.outer(left, right).flatten()
        p = after
    clean = (states < symbols).all(1)
    assert float(p[clean].sum()) == pytest.approx(1.0, abs=1e-12)
    every = torch.ones(rows, length, dtype=torch.bool)
    x_BL = written(bits, every, Random(), Ancestral(steps), symbols=symbols, schedule=schedule)[-1].x_BL
    found = torch.bincount((x_BL * torch.tensor([2, 1])).sum(1), minlength=4)
    assert stats.chisquare(found.numpy(), (p[clean] * rows).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("order", ORDERS, ids=named)
def test_in_one_step_every_token_is_drawn_from_its_own_marginal(order: Order) -> None:
    joint, rows = random_joint(3, 2, seed=3), 8000
    every = torch.ones(rows, 3, dtype=torch.bool)
    x_BL = written(joint, every, order, FixedSteps(1), symbols=2)[-1].x_BL
    first, second, third = (joint.table.sum([a for a in range(3) if a != i]) for i in range(3))
    independent = torch.einsum("i,j,k->ijk", first, second, third).flatten()
    found = torch.bincount((x_BL * torch.tensor([4, 2, 1])).sum(1), minlength=8)
    assert stats.chisquare(found.numpy(), (independent * rows).numpy()).pvalue > 1e-4
    assert stats.chisquare(found.numpy(), (joint.table.flatten() * rows).numpy()).pvalue < 1e-6  # and not the joint


@pytest.mark.parametrize("order", ORDERS, ids=named)
def test_blocks_of_one_are_left_to_right_whatever_the_order(order: Order) -> None:
    every = torch.ones(2, 5, dtype=torch.bool)
    states = written(Wrong(K, 5), every, order, OneAtATime(), block_length=1, temperature=0.0)
    straight = written(Wrong(K, 5), every, LeftToRight(), OneAtATime(), temperature=0.0)
    assert [s.x_BL.tolist() for s in states] == [s.x_BL.tolist() for s in straight]


@pytest.mark.parametrize("budget", BUDGETS, ids=named)
@pytest.mark.parametrize("order", ORDERS, ids=named)
def test_neighbours_that_stop_or_have_fewer_blocks_change_no_other_row(order: Order, budget: Budget) -> None:
    editable = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0, 0]]).bool()

    def run(rows: list[int]) -> State:
        return written(Wrong(K, 8), editable[rows], order, budget, keys=rows, block_length=3, stop_id=1)[-1]

    together = run([0, 1, 2])
    assert int(together.calls_B[2]) < together.calls  # the short row has left the batch before the others
    for row in range(3):
        alone = run([row])
        assert torch.equal(alone.x_BL[0], together.x_BL[row])
        assert int(alone.calls_B[0]) == int(together.calls_B[row]) == alone.calls


def test_texts_of_different_lengths_share_a_batch_and_are_scored_as_if_alone() -> None:
    wrong, lengths = Wrong(K, 6, seed=1), (1, 2, 4, 6)
    x0_BL = torch.randint(K, (4, 6), generator=generator("lengths"))
    candidates_BL = torch.arange(6) < torch.tensor(lengths)[:, None]

    class Trimmed(Denoiser):
        """Each row alone, without its padding."""

        def __call__(self, inputs: NetworkInput) -> Tensor:
            xt_BL, t_B, select_BL = inputs.ids_BL, inputs.time_B, inputs.wanted_BL
            rows = zip(lengths, xt_BL, t_B, select_BL, strict=True)
            return torch.cat([ask(Narrow(wrong, n), x[None], t[None], s[None]) for n, x, t, s in rows])

    streams = [generator("alone", b) for b in range(4)]
    together = count_nelbo(Trimmed(), PROCESS, x0_BL, 6, streams, candidates_BL)
    for b, n in enumerate(lengths):
        alone = count_nelbo(wrong, PROCESS, x0_BL[b : b + 1, :n], 6, [generator("alone", b)])
        torch.testing.assert_close(together[:, b, :n], alone[:, 0], atol=1e-12, rtol=0)
        assert (together[:, b, n:] == 0).all()
