"""Guidance: one step's distribution is the formula's by enumeration, and no guidance is what equal predictions give."""

import itertools

import pytest
import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser, FunctionDenoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.guide import Guidance, GuidedDenoiser
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.unmask import Confidence, FixedSteps, TokenChoice
from tests.support.joints import Joint, Wrong, random_joint
from tests.support.networks import unmask

K, L, GIVEN = 3, 5, 2
MASK, PAD = K, K + 1


def rows(*texts: list[int]) -> Tensor:
    return torch.tensor(texts)


def editable(ids_BL: Tensor, given: int = GIVEN) -> Tensor:
    return (torch.arange(ids_BL.shape[1]) >= given).expand(ids_BL.shape)


def guided(
    denoiser: Denoiser, guidance: Guidance, x_BL: Tensor, other_BM: Tensor, given: int = GIVEN
) -> GuidedDenoiser:
    return GuidedDenoiser(denoiser, guidance, editable(x_BL), other_BM, editable(other_BM, given), MASK, PAD)


def ask(denoiser: Denoiser, x_BL: Tensor, wanted_BL: Tensor, rows_B: Tensor | None = None) -> Tensor:
    return denoiser(NetworkInput(x_BL, wanted_BL, torch.zeros(len(x_BL)), rows_B))


def conditional(joint: Joint, given: dict[int, int], place: int) -> Tensor:
    """p(symbol at a place | given symbols), by summing over every text."""
    p_K = torch.zeros(K, dtype=torch.float64)
    for word in itertools.product(range(K), repeat=L):
        if all(word[at] == symbol for at, symbol in given.items()):
            p_K[word[place]] += joint.table[word]
    return p_K / p_K.sum()


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("late", [False, True])
def test_one_step_is_the_formula_by_enumeration(weight: float, *, late: bool) -> None:
    joint = random_joint(L, K)
    x_BL = rows([0, 2, MASK, MASK, MASK], [1, 1, MASK, 0, MASK])
    hidden_BL = torch.where(editable(x_BL), x_BL, MASK)
    found = ask(guided(joint, Guidance(weight, late), x_BL, hidden_BL), x_BL, x_BL == MASK).exp()
    expected = []
    for row, revealed in zip(x_BL.tolist(), (0.0, 1 / 3), strict=True):
        w = weight * revealed if late else weight
        seen = {i: symbol for i, symbol in enumerate(row) if symbol != MASK}
        written = {i: symbol for i, symbol in seen.items() if i >= GIVEN}
        for place in (i for i, symbol in enumerate(row) if symbol == MASK):
            p_K = conditional(joint, seen, place) ** (1 + w) / conditional(joint, written, place) ** w
            expected.append(p_K / p_K.sum())
    assert found[:, :K].numpy() == pytest.approx(torch.stack(expected).numpy(), abs=1e-6)
    assert (found[:, K] == 0).all()


def test_away_from_another_prompt_of_another_length() -> None:
    """The k-th written token of the one row is the k-th of the other."""
    denoiser = FunctionDenoiser(unpadded)
    x_1L, other_1M = rows([0, 1, MASK, 2, MASK]), rows([1, 1, 0, 2, 2, MASK, MASK, MASK])
    found = ask(guided(denoiser, Guidance(2.0), x_1L, other_1M, 5), x_1L, x_1L == MASK)
    filled_1M = rows([1, 1, 0, 2, 2, MASK, 2, MASK])
    one, two = ask(Wrong(K, 8), x_1L, x_1L == MASK), ask(Wrong(K, 8), filled_1M, filled_1M == MASK)
    expected = (3.0 * one - 2.0 * two)[:, :K].log_softmax(-1)
    assert found[:, :K].numpy() == pytest.approx(expected.numpy(), abs=1e-9)


def unpadded(inputs: NetworkInput) -> Tensor:
    """What a denoiser says of each row without its padding."""
    pairs = zip(inputs.ids_BL, inputs.wanted_BL, strict=True)
    rows = ((ids_L[ids_L != PAD], wanted_L[ids_L != PAD]) for ids_L, wanted_L in pairs)
    return torch.cat([ask(Wrong(K, 8), ids_L[None], wanted_L[None]) for ids_L, wanted_L in rows])


def test_some_rows_of_a_canvas_are_guided_as_all_of_them() -> None:
    denoiser, x_BL = Wrong(K, L), rows([0, 1, MASK, MASK, 1], [2, 2, MASK, 1, MASK], [1, 0, 0, MASK, MASK])
    other_BM = rows([2, 0, 0, 0, 0], [MASK, MASK, 0, 0, 0], [0, 0, 0, 0, 0])
    whole = guided(denoiser, Guidance(1.5), x_BL, other_BM)
    wanted_BL, some = x_BL == MASK, torch.tensor([2, 0])
    all_NV = ask(whole, x_BL, wanted_BL)
    some_NV = ask(whole, x_BL[some], wanted_BL[some], some)
    assert torch.equal(some_NV, torch.cat([all_NV[4:], all_NV[:2]]))


@pytest.mark.parametrize("weight", [0.0, 1.0, 7.0])
def test_equal_predictions_change_nothing(weight: float) -> None:
    """Where the second row is the first, or the network does not look at what is given."""
    x_BL = rows([0, 1, MASK, MASK, 1])
    plain = ask(Wrong(K, L), x_BL, x_BL == MASK)[:, :K]
    assert ask(guided(Wrong(K, L), Guidance(weight), x_BL, x_BL), x_BL, x_BL == MASK)[:, :K].numpy() == pytest.approx(
        plain.numpy(), abs=1e-9
    )
    blind = FunctionDenoiser(lambda inputs: Wrong(K, L)(hide(inputs)))
    found = ask(guided(blind, Guidance(weight), x_BL, rows([2, 2, 0, 0, 0])), x_BL, x_BL == MASK)
    assert found[:, :K].numpy() == pytest.approx(ask(blind, x_BL, x_BL == MASK)[:, :K].numpy(), abs=1e-9)


def hide(inputs: NetworkInput) -> NetworkInput:
    ids_BL = torch.where(editable(inputs.ids_BL), inputs.ids_BL, MASK)
    return NetworkInput(ids_BL, inputs.wanted_BL, inputs.time_B)


def test_a_step_is_one_call_of_twice_the_rows_and_counts_once() -> None:
    seen: list[NetworkInput] = []

    def note(inputs: NetworkInput) -> Tensor:
        seen.append(inputs)
        return Wrong(K, L)(inputs)

    x_BL = rows([0, 1, MASK, MASK, MASK], [2, 2, MASK, MASK, MASK])
    denoiser = guided(FunctionDenoiser(note), Guidance(1.0), x_BL, torch.full_like(x_BL, MASK))
    *_, last = unmask(
        denoiser,
        x_BL,
        editable(x_BL),
        mask_id=MASK,
        order=Confidence(),
        budget=FixedSteps(2),
        token=TokenChoice(),
        generators=[generator("guided", row) for row in range(2)],
    )
    assert last.calls_B.tolist() == [2, 2] and len(seen) == 2
    for inputs in seen:
        assert inputs.ids_BL.shape == (4, L) and inputs.rows_B is not None and inputs.rows_B.tolist() == [0, 1, 2, 3]
        assert (inputs.ids_BL[2:, :GIVEN] == MASK).all() and torch.equal(
            inputs.ids_BL[:2, GIVEN:], inputs.ids_BL[2:, GIVEN:]
        )


def test_what_is_impossible_stays_so() -> None:
    """A token that the first prediction rules out, and one that the second does."""
    table = {0: torch.tensor([0.5, 0.5, 0.0, 0.0]), MASK: torch.tensor([0.0, 0.5, 0.5, 0.0])}
    denoiser = FunctionDenoiser(lambda inputs: torch.stack([table[int(row[0])] for row in inputs.ids_BL]).log())
    x_1L = rows([0, 0, MASK])
    found = ask(guided(denoiser, Guidance(1.0), x_1L, torch.full_like(x_1L, MASK)), x_1L, x_1L == MASK).exp()
    assert found[0].tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_is_a_number_from_0_on(weight: float) -> None:
    with pytest.raises(ValueError, match="guidance must be a number from 0 on"):
        Guidance(weight)
