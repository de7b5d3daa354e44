"""The sampling loop: what it leaves alone, what it fills, and what it costs."""

import math
from dataclasses import dataclass, field
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser, FunctionDenoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.sample import State
from dlm.diffusion.unmask import (
    Ancestral,
    Budget,
    Confidence,
    Entropy,
    EntropyBound,
    FixedSteps,
    LeftToRight,
    OneAtATime,
    Order,
    Random,
    TokenChoice,
)
from tests.support.choices import BUDGETS, FIXED_ORDERS, ORDERS, named
from tests.support.joints import Narrow, Wrong, random_joint
from tests.support.networks import ask, unmask

K, L = 3, 7
MASK = K
GRIDS: list[Budget] = [*BUDGETS, FixedSteps(20, "cosine")]


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
        unmask(
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


@pytest.mark.parametrize(("order", "budget"), list(product(ORDERS, GRIDS)), ids=lambda choice: choice.name)
@pytest.mark.parametrize(("block_length", "stop_id"), [(None, None), (2, None), (None, 1), (3, 1)])
def test_what_is_given_stays_and_every_mask_goes(
    order: Order, budget: Budget, block_length: int | None, stop_id: int | None
) -> None:
    canvas_BL, editable_BL = canvas()
    given_BL, wanted_BL = canvas_BL.clone(), editable_BL.clone()
    states = run(canvas_BL, editable_BL, order, budget, block_length=block_length, stop_id=stop_id)
    assert torch.equal(canvas_BL, given_BL) and torch.equal(editable_BL, wanted_BL)
    for before, state in pairwise(states):
        assert torch.equal(state.x_BL[~editable_BL], canvas_BL[~editable_BL])
        assert state.changed_BL.any() and not (state.changed_BL & ~editable_BL).any()
        assert torch.equal(before.x_BL != state.x_BL, state.changed_BL)  # a mask once revealed stays
    assert not (states[-1].x_BL == MASK).any()
    assert (states[0].x_BL == MASK).equal(editable_BL)


@pytest.mark.parametrize(("order", "budget"), list(product(ORDERS, GRIDS)), ids=lambda choice: choice.name)
def test_a_row_depends_on_its_own_stream_and_canvas_alone(order: Order, budget: Budget) -> None:
    canvas_BL, editable_BL = canvas()
    together = run(canvas_BL, editable_BL, order, budget)[-1]
    alone = run(canvas_BL[2:3], editable_BL[2:3], order, budget, keys=[2])[-1]
    turned = run(canvas_BL.flip(0), editable_BL.flip(0), order, budget, keys=[3, 2, 1, 0])[-1]
    assert torch.equal(together.x_BL[2], alone.x_BL[0])
    assert int(together.calls_B[2]) == int(alone.calls_B[0])
    assert torch.equal(together.x_BL, turned.x_BL.flip(0))


@pytest.mark.parametrize(("order", "budget"), list(product(ORDERS, GRIDS)), ids=lambda choice: choice.name)
@pytest.mark.parametrize("block_length", [None, 2])
def test_columns_of_padding_change_nothing(order: Order, budget: Budget, block_length: int | None) -> None:
    canvas_BL, editable_BL = canvas()
    short = run(canvas_BL, editable_BL, order, budget, block_length=block_length)
    wide = torch.nn.functional.pad(canvas_BL, (0, 3)), torch.nn.functional.pad(editable_BL, (0, 3))
    long = run(*wide, order, budget, denoiser=Narrow(Wrong(K, 16), L), block_length=block_length)
    assert torch.equal(long[-1].x_BL, torch.nn.functional.pad(short[-1].x_BL, (0, 3)))
    assert torch.equal(long[-1].calls_B, short[-1].calls_B)


@dataclass
class Recorder(Denoiser):
    """Keeps what a denoiser is asked."""

    denoiser: Denoiser
    asked: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, inputs: NetworkInput) -> Tensor:
        xt_BL, t_B, select_BL = inputs.ids_BL, inputs.time_B, inputs.wanted_BL
        self.asked.append((xt_BL.clone(), select_BL.clone()))
        torch.testing.assert_close(t_B.float(), (xt_BL == MASK).float().mean(1))
        return ask(self.denoiser, xt_BL, t_B, select_BL)


@pytest.mark.parametrize(
    ("order", "budget"), list(product(ORDERS, [*GRIDS, Ancestral(40)])), ids=lambda choice: choice.name
)
@pytest.mark.parametrize(("block_length", "stop_id"), [(None, None), (3, 1)])
def test_every_call_changes_every_row_it_sees_and_asks_for_no_more_than_it_needs(
    order: Order, budget: Budget, block_length: int | None, stop_id: int | None
) -> None:
    canvas_BL, editable_BL = canvas()
    recorder = Recorder(Wrong(K, 16))
    states = run(canvas_BL, editable_BL, order, budget, denoiser=recorder, block_length=block_length, stop_id=stop_id)
    called = [state for before, state in pairwise(states) if state.calls > before.calls]
    assert len(called) == len(recorder.asked) == states[-1].calls
    assert len(states) - 1 - len(called) <= (stop_id is not None)  # only the filling after a stop is free
    calls_B = torch.zeros(len(canvas_BL), dtype=torch.long)
    for before, state in pairwise(states):
        if state.calls == before.calls:
            continue
        xt_RL, select_RL = recorder.asked[before.calls]
        rows = state.changed_BL.any(1)
        calls_B += rows
        assert torch.equal(xt_RL, before.x_BL[rows])
        if order.needs_predictions or budget.needs_predictions:
            assert (state.changed_BL[rows] & ~select_RL).sum() == 0 and (xt_RL[select_RL] == MASK).all()
        else:
            assert torch.equal(select_RL, state.changed_BL[rows])
        assert torch.equal(state.calls_B, calls_B)


@pytest.mark.parametrize("budget", [FixedSteps(50), Ancestral(200)], ids=lambda budget: budget.name)
def test_a_step_that_reveals_nothing_costs_no_call(budget: Budget) -> None:
    joint = random_joint(3, K)
    every = torch.ones(1, 3, dtype=torch.bool)
    states = run(torch.zeros(1, 3, dtype=torch.long), every, Random(), budget, denoiser=joint)
    assert states[-1].calls == len(joint.calls) == 3 == len(states) - 1


def test_the_network_sees_only_rows_that_change_and_projects_only_what_is_revealed() -> None:
    joint = random_joint(4, K)
    editable = torch.tensor([[True] * 4, [True, False, False, False]])
    run(torch.zeros(2, 4, dtype=torch.long), editable, Random(), OneAtATime(), denoiser=joint)
    assert [len(x) for x, _ in joint.calls] == [2, 1, 1, 1]
    assert [int(select.sum()) for _, select in joint.calls] == [2, 1, 1, 1]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
def test_every_block_has_the_whole_budget(order: Order) -> None:
    every = torch.ones(2, 12, dtype=torch.bool)
    states = run(torch.zeros(2, 12, dtype=torch.long), every, order, FixedSteps(2), block_length=4)
    assert [int(state.changed_BL.sum()) for state in states] == [0] + [4] * 6  # two a row, six times


def test_nothing_reads_or_moves_the_global_random_state() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = run(*canvas(), Random(), Ancestral(4))[-1].x_BL
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(run(*canvas(), Random(), Ancestral(4))[-1].x_BL, first)


def test_blocks_are_finished_from_left_to_right() -> None:
    every = torch.ones(2, 6, dtype=torch.bool)
    states = run(torch.zeros(2, 6, dtype=torch.long), every, Confidence(), OneAtATime(), block_length=2)
    for state in states:
        open_L = (state.x_BL == MASK).any(0).tolist()
        block = open_L.index(True) // 2 if any(open_L) else 3
        assert not any(open_L[: 2 * block]) and all(open_L[2 * block + 2 :])


def test_text_before_the_stop_is_written_and_masks_after_it_are_not_asked_for() -> None:
    @FunctionDenoiser
    def always_stop_at_2(inputs: NetworkInput) -> Tensor:
        select_BL = inputs.wanted_BL
        at_N = select_BL.nonzero()[:, 1]
        best = torch.where(at_N == 2, 1, 0)
        return torch.where(torch.nn.functional.one_hot(best, K + 1).bool(), 0.0, -torch.inf).double()

    every = torch.ones(1, 8, dtype=torch.bool)
    last = run(
        torch.zeros(1, 8, dtype=torch.long), every, LeftToRight(), OneAtATime(), denoiser=always_stop_at_2, stop_id=1
    )[-1]
    assert last.x_BL.tolist() == [[0, 0, 1, 1, 1, 1, 1, 1]]
    assert last.calls == 3


@pytest.mark.parametrize(("order", "budget"), list(product(ORDERS, GRIDS)), ids=lambda choice: choice.name)
@pytest.mark.parametrize("block_length", [None, 3])
def test_once_a_stop_is_written_nothing_new_is_written_after_it(
    order: Order, budget: Budget, block_length: int | None
) -> None:
    stop, canvas_BL = 1, torch.full((6, 9), 1)  # what is given holds stops too, and they stop nothing
    editable_BL = torch.rand(6, 9, generator=torch.Generator().manual_seed(3)) < 0.8
    states = run(canvas_BL, editable_BL, order, budget, block_length=block_length, stop_id=stop)
    for before, state in pairwise(states):
        after_BL = (((before.x_BL == stop) & editable_BL).cumsum(1) > 0) & state.changed_BL
        assert (state.x_BL[after_BL] == stop).all()
    final = states[-1]
    assert not (final.x_BL == MASK).any() and torch.equal(final.x_BL[~editable_BL], canvas_BL[~editable_BL])
    if order == LeftToRight() and budget == OneAtATime():
        after_BL = (((final.x_BL == stop) & editable_BL).cumsum(1) > 0) & editable_BL
        assert (final.x_BL[after_BL] == stop).all()
    written_BL = ((final.x_BL == stop) & editable_BL).any(1)
    assert written_BL.any()  # or the test is empty


def test_a_stop_that_was_given_stops_nothing() -> None:
    joint, editable = random_joint(4, K), torch.tensor([[False, True, True, True]])
    given = torch.tensor([[1, 0, 0, 0]])
    with_stop = run(given, editable, Random(), OneAtATime(), denoiser=joint, stop_id=1)
    assert with_stop[1].changed_BL.sum() == 1  # the first position is a stop, and still something is written


def test_masks_that_were_given_are_context_and_never_filled() -> None:
    given, editable = torch.tensor([[0, MASK, 0, 0, MASK]]), torch.tensor([[True, False, True, True, False]])
    for stop_id in (None, 0, 1, 2):
        last = run(given, editable, LeftToRight(), OneAtATime(), stop_id=stop_id)[-1]
        assert last.x_BL[0, 1] == last.x_BL[0, 4] == MASK and not (last.x_BL[editable] == MASK).any()


def test_a_stop_in_one_block_leaves_the_next_ones_nothing_to_write() -> None:
    @FunctionDenoiser
    def stop_first(inputs: NetworkInput) -> Tensor:
        select_BL = inputs.wanted_BL
        best = torch.where(select_BL.nonzero()[:, 1] == 2, 1, 0)  # the last of the first block is a stop
        return torch.where(torch.nn.functional.one_hot(best, K + 1).bool(), 0.0, -torch.inf).double()

    every = torch.ones(1, 12, dtype=torch.bool)
    states = run(
        torch.zeros(1, 12, dtype=torch.long),
        every,
        LeftToRight(),
        FixedSteps(3),
        denoiser=stop_first,
        block_length=3,
        stop_id=1,
    )
    assert states[-1].x_BL.tolist() == [[0, 0] + [1] * 10] and states[-1].calls == 3


@pytest.mark.parametrize("order", FIXED_ORDERS, ids=named)
@pytest.mark.parametrize("budget", [budget for budget in BUDGETS if budget.name != "ancestral"], ids=named)
def test_at_temperature_zero_with_an_order_that_is_not_drawn_nothing_is_random(order: Order, budget: Budget) -> None:
    every, blank = torch.ones(5, L, dtype=torch.bool), torch.zeros(5, L, dtype=torch.long)
    states = run(blank, every, order, budget, temperature=0.0)
    assert (states[-1].x_BL == states[-1].x_BL[0]).all()  # five streams, one text
    for before, state in pairwise(states):
        log_p = ask(Wrong(K, 16), before.x_BL, torch.zeros(5), state.changed_BL)
        assert torch.equal(state.x_BL[state.changed_BL], log_p.argmax(1))


def test_at_temperature_zero_left_to_right_is_greedy() -> None:
    joint = random_joint(4, K, seed=9)
    every = torch.ones(1, 4, dtype=torch.bool)
    last = run(torch.zeros(1, 4, dtype=torch.long), every, LeftToRight(), OneAtATime(), denoiser=joint, temperature=0.0)
    greedy: list[int] = []
    for _ in range(4):
        greedy.append(int(joint.table[tuple(greedy)].reshape(K, -1).sum(1).argmax()))
    assert last[-1].x_BL.tolist() == [greedy]


@pytest.mark.parametrize("bound", [0.0, math.inf])
def test_the_ends_of_the_entropy_bound_are_one_at_a_time_and_all_at_once(bound: float) -> None:
    every = torch.ones(1, L, dtype=torch.bool)
    last = run(torch.zeros(1, L, dtype=torch.long), every, Entropy(), EntropyBound(bound))[-1]
    assert last.calls == (L if bound == 0.0 else 1)
