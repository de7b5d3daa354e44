"""The sampling loop: what it leaves alone, what it fills, and what it costs."""

import math
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.generate import State, generate
from dlm.diffusion.unmask import (
    Ancestral,
    Budget,
    Confidence,
    Entropy,
    EntropyBound,
    Factor,
    FixedSteps,
    LeftToRight,
    Margin,
    OneAtATime,
    Order,
    Random,
    Threshold,
    TokenChoice,
)
from tests.diffusion.joints import Wrong, random_joint

K, L = 3, 7
MASK = K
ORDERS: list[Order] = [Random(), LeftToRight(), Confidence(), Margin(), Entropy()]
BUDGETS: list[Budget] = [
    OneAtATime(),
    FixedSteps(3),
    FixedSteps(20, "cosine"),
    Ancestral(4),
    Threshold(0.6),
    Factor(0.8),
    EntropyBound(0.5),
]


def run(
    canvas_BL: Tensor,
    editable_BL: Tensor,
    order: Order,
    budget: Budget,
    *,
    denoiser: Denoiser | None = None,
    keys: list[int] | None = None,
    block_length: int | None = None,
    stop_id: int | None = None,
    temperature: float = 1.0,
) -> list[State]:
    keys = keys or list(range(len(canvas_BL)))
    return list(
        generate(
            denoiser or Wrong(K, 16),
            canvas_BL,
            editable_BL,
            mask_id=MASK,
            order=order,
            budget=budget,
            token=TokenChoice(temperature),
            generators=[generator("row", key) for key in keys],
            block_length=block_length,
            stop_id=stop_id,
        )
    )


def canvas() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(5)
    return torch.randint(K, (4, L), generator=random), torch.rand(4, L, generator=random) < 0.6


@pytest.mark.parametrize(("order", "budget"), list(product(ORDERS, BUDGETS)), ids=lambda choice: choice.name)
@pytest.mark.parametrize(("block_length", "stop_id"), [(None, None), (2, None), (None, 1), (3, 1)])
def test_what_is_given_stays_and_every_mask_goes(
    order: Order, budget: Budget, block_length: int | None, stop_id: int | None
) -> None:
    canvas_BL, editable_BL = canvas()
    states = run(canvas_BL, editable_BL, order, budget, block_length=block_length, stop_id=stop_id)
    for before, state in pairwise(states):
        assert torch.equal(state.x_BL[~editable_BL], canvas_BL[~editable_BL])
        assert state.changed_BL.any() and not (state.changed_BL & ~editable_BL).any()
        assert torch.equal(before.x_BL != state.x_BL, state.changed_BL)  # a mask once revealed stays
    assert not (states[-1].x_BL == MASK).any()
    assert (states[0].x_BL == MASK).equal(editable_BL)


@pytest.mark.parametrize(("order", "budget"), list(product(ORDERS, BUDGETS)), ids=lambda choice: choice.name)
def test_a_row_depends_on_its_own_stream_and_canvas_alone(order: Order, budget: Budget) -> None:
    canvas_BL, editable_BL = canvas()
    together = run(canvas_BL, editable_BL, order, budget)[-1]
    alone = run(canvas_BL[2:3], editable_BL[2:3], order, budget, keys=[2])[-1]
    turned = run(canvas_BL.flip(0), editable_BL.flip(0), order, budget, keys=[3, 2, 1, 0])[-1]
    assert torch.equal(together.x_BL[2], alone.x_BL[0])
    assert int(together.calls_B[2]) == int(alone.calls_B[0])
    assert torch.equal(together.x_BL, turned.x_BL.flip(0))


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
def test_columns_of_padding_change_nothing(order: Order) -> None:
    joint = random_joint(4, K)

    def padded(xt_BL: Tensor, t_B: Tensor, select_BL: Tensor) -> Tensor:
        return joint(xt_BL[:, :4], t_B, select_BL[:, :4])

    given, editable = torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool)
    short = run(given, editable, order, OneAtATime(), denoiser=joint)[-1]
    wide = torch.nn.functional.pad(given, (0, 3)), torch.nn.functional.pad(editable, (0, 3))
    assert torch.equal(run(*wide, order, OneAtATime(), denoiser=padded)[-1].x_BL[:, :4], short.x_BL)


def test_a_step_that_reveals_nothing_costs_no_call() -> None:
    joint = random_joint(3, K)
    every = torch.ones(1, 3, dtype=torch.bool)
    states = run(torch.zeros(1, 3, dtype=torch.long), every, Random(), FixedSteps(50), denoiser=joint)
    assert states[-1].calls == len(joint.calls) == 3 == len(states) - 1


def test_the_network_sees_only_rows_that_change_and_projects_only_what_is_revealed() -> None:
    joint = random_joint(4, K)
    editable = torch.tensor([[True] * 4, [True, False, False, False]])
    run(torch.zeros(2, 4, dtype=torch.long), editable, Random(), OneAtATime(), denoiser=joint)
    assert [len(x) for x, _ in joint.calls] == [2, 1, 1, 1]
    assert [int(select.sum()) for _, select in joint.calls] == [2, 1, 1, 1]


def test_blocks_are_finished_from_left_to_right() -> None:
    every = torch.ones(2, 6, dtype=torch.bool)
    states = run(torch.zeros(2, 6, dtype=torch.long), every, Confidence(), OneAtATime(), block_length=2)
    for state in states:
        open_L = (state.x_BL == MASK).any(0).tolist()
        block = open_L.index(True) // 2 if any(open_L) else 3
        assert not any(open_L[: 2 * block]) and all(open_L[2 * block + 2 :])


def test_text_before_the_stop_is_written_and_masks_after_it_are_not_asked_for() -> None:
    def always_stop_at_2(xt_BL: Tensor, t_B: Tensor, select_BL: Tensor) -> Tensor:
        at_N = select_BL.nonzero()[:, 1]
        best = torch.where(at_N == 2, 1, 0)
        return torch.where(torch.nn.functional.one_hot(best, K + 1).bool(), 0.0, -torch.inf).double()

    every = torch.ones(1, 8, dtype=torch.bool)
    last = run(
        torch.zeros(1, 8, dtype=torch.long), every, LeftToRight(), OneAtATime(), denoiser=always_stop_at_2, stop_id=1
    )[-1]
    assert last.x_BL.tolist() == [[0, 0, 1, 1, 1, 1, 1, 1]]
    assert last.calls == 3


def test_at_temperature_zero_left_to_right_is_greedy() -> None:
    joint = random_joint(4, K, seed=9)
    every = torch.ones(1, 4, dtype=torch.bool)
    last = run(torch.zeros(1, 4, dtype=torch.long), every, LeftToRight(), OneAtATime(), denoiser=joint, temperature=0.0)
    greedy: list[int] = []
    for i in range(4):
        greedy.append(int(joint.table[tuple(greedy)].reshape(K, -1).sum(1).argmax()))
        assert i < 4
    assert last[-1].x_BL.tolist() == [greedy]


@pytest.mark.parametrize("bound", [0.0, math.inf])
def test_the_ends_of_the_entropy_bound_are_one_at_a_time_and_all_at_once(bound: float) -> None:
    every = torch.ones(1, L, dtype=torch.bool)
    last = run(torch.zeros(1, L, dtype=torch.long), every, Entropy(), EntropyBound(bound))[-1]
    assert last.calls == (L if bound == 0.0 else 1)
