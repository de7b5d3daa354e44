"""Networks that read a token before the text, or predict one position early: the same rows, in whole and in chunks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dlm.diffusion.draws import generator
from dlm.diffusion.network import LedNetwork, Network, NetworkInput, Reduced, Reducer, ShiftedNetwork

B, L, V = 3, 7, 5


class Neighbours:
    """A network whose row says which id stands there and which are beside it; hands over two rows at a time."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, inputs: NetworkInput, reducer: Reducer | None = None) -> Tensor | Reduced:
        ids_BL = inputs.ids_BL.double()
        around_BLV = torch.stack(
            [ids_BL, ids_BL.roll(1, 1), ids_BL.roll(-1, 1), ids_BL.sum(1, True).expand_as(ids_BL)], -1
        )
        logits_NV = around_BLV[inputs.wanted_BL]
        self.rows = len(logits_NV)
        if reducer is None:
            return logits_NV
        parts = [reducer(logits_NV[i : i + 2], slice(i, i + 2)) for i in range(0, len(logits_NV), 2)]
        return Reduced(torch.stack([part.total for part in parts]).sum(), torch.cat([part.values_N for part in parts]))


def inputs(wanted_BL: Tensor) -> NetworkInput:
    ids_BL = torch.randint(0, V, (B, L), generator=generator("ids"))
    return NetworkInput(ids_BL, wanted_BL, torch.zeros(B))


def everywhere(network: Network, ids_BL: Tensor) -> Tensor:
    return network(NetworkInput(ids_BL, torch.ones_like(ids_BL, dtype=torch.bool), torch.zeros(B))).unflatten(
        0, ids_BL.shape
    )


def led(ids_BL: Tensor) -> Tensor:
    return torch.cat([torch.full((B, 1), 4), ids_BL], 1)


CASES: dict[str, tuple[Callable[[Neighbours], Network], Callable[[Tensor], Tensor]]] = {
    "led": (lambda n: LedNetwork(n, 4), lambda ids_BL: everywhere(Neighbours(), led(ids_BL))[:, 1:]),  # type: ignore[arg-type]
    "shifted": (lambda n: ShiftedNetwork(n, 4), lambda ids_BL: everywhere(Neighbours(), led(ids_BL))[:, :-1]),  # type: ignore[arg-type]
    "shifted, nothing first": (
        lambda n: ShiftedNetwork(n, None),  # type: ignore[arg-type]
        lambda ids_BL: everywhere(Neighbours(), ids_BL)[:, [0, *range(L - 1)]],  # type: ignore[arg-type]
    ),
}
WANTED = {
    "all": torch.ones(B, L, dtype=torch.bool),
    "some": torch.rand(B, L, generator=generator("wanted")) < 0.5,
    "the first two": torch.arange(L).expand(B, L) < 2,
    "the first": torch.arange(L).expand(B, L) < 1,
    "those of one row": (torch.arange(B)[:, None] == 1).expand(B, L),
    "none": torch.zeros(B, L, dtype=torch.bool),
}


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("case", CASES)
def test_each_position_is_predicted_by_its_own_row(case: str, wanted: str) -> None:
    make, expected = CASES[case]
    asked = inputs(WANTED[wanted])
    torch.testing.assert_close(make(Neighbours())(asked), expected(asked.ids_BL)[asked.wanted_BL])


@pytest.mark.parametrize("wanted", [name for name in WANTED if name != "none"])
@pytest.mark.parametrize("case", CASES)
def test_in_chunks_the_reducer_sees_the_same_rows_under_their_own_numbers(case: str, wanted: str) -> None:
    make, expected = CASES[case]
    asked = inputs(WANTED[wanted])
    rows_NV = expected(asked.ids_BL)[asked.wanted_BL]
    weight_N = torch.arange(1.0, len(rows_NV) + 1).double()

    def reducer(logits_CV: Tensor, rows: slice) -> Reduced:
        torch.testing.assert_close(logits_CV, rows_NV[rows])
        values_C = logits_CV.sum(1) * weight_N[rows]
        return Reduced(values_C.sum(), values_C)

    total, values_N = make(Neighbours())(asked, reducer)
    torch.testing.assert_close(values_N, rows_NV.sum(1) * weight_N)
    torch.testing.assert_close(total, values_N.sum())


def test_a_row_that_predicts_two_positions_is_computed_once() -> None:
    network = Neighbours()
    ShiftedNetwork(network, None)(inputs(WANTED["all"]))  # type: ignore[arg-type]
    assert network.rows == B * (L - 1)


def test_the_token_before_a_text_hides_attention_and_cache() -> None:
    asked = inputs(WANTED["all"])
    masked = NetworkInput(asked.ids_BL, asked.wanted_BL, asked.time_B, attention=torch.ones(L, L, dtype=torch.bool))
    for network in (LedNetwork(Neighbours(), 4), ShiftedNetwork(Neighbours(), 4)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="prepended"):
            network(masked)
