"""What a wrapper tells a network by its input: which tokens are cached, and what each one sees."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from dlm.diffusion.network import FunctionNetwork, NetworkInput, ShiftedNetwork
from dlm.model.backbone import Backbone
from tests.support.tiny_models import LENGTH, SPECIAL, build, text

DECODERS = ["qwen3", "llama"]
CLEAN = 5
"""How many tokens stand before the noisy ones."""


def inputs(ids_BL: Tensor, attention: Tensor | None = None, cache: DynamicCache | None = None) -> NetworkInput:
    wanted_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    return NetworkInput(ids_BL, wanted_BL, torch.zeros(len(ids_BL)), attention=attention, cache=cache)


def block_causal(length: int) -> Tensor:
    """The clean tokens see each other; the others see all."""
    seen_LL = torch.ones(length, length, dtype=torch.bool)
    seen_LL[:CLEAN, CLEAN:] = False
    return seen_LL


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("architecture", DECODERS)
@torch.no_grad()
def test_cached_tokens_are_the_clean_part_of_a_block_causal_text(architecture: str, padded: bool) -> None:
    network = Backbone(build(architecture), SPECIAL["pad_token_id"])
    ids_BL = text(2, LENGTH)
    if padded:
        ids_BL[0, -3:] = SPECIAL["pad_token_id"]
    whole_NV = network(inputs(ids_BL, block_causal(LENGTH)))
    cache = DynamicCache(config=network.model.config)
    network.model.base_model(input_ids=ids_BL[:, :CLEAN], past_key_values=cache, use_cache=True)
    for _ in range(2):  # a call leaves the cache as it was
        noisy_NV = network(inputs(ids_BL[:, CLEAN:], cache=cache))
        assert cache.get_seq_length() == CLEAN
    V = whole_NV.shape[-1]
    real_BL = ids_BL[:, CLEAN:] != SPECIAL["pad_token_id"]
    torch.testing.assert_close(
        noisy_NV.view(2, -1, V)[real_BL], whole_NV.view(2, LENGTH, V)[:, CLEAN:][real_BL], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("architecture", [*DECODERS, "bert"])
@torch.no_grad()
def test_a_token_that_is_not_seen_changes_nothing(architecture: str) -> None:
    network = Backbone(build(architecture))
    ids_BL = text(2, LENGTH)
    other_BL = ids_BL.clone()
    other_BL[:, CLEAN:] = text(2, LENGTH).flip(1)[:, CLEAN:]
    assert not torch.equal(other_BL, ids_BL)
    one, other = (network(inputs(x_BL, block_causal(LENGTH))).view(2, LENGTH, -1) for x_BL in (ids_BL, other_BL))
    torch.testing.assert_close(one[:, :CLEAN], other[:, :CLEAN])
    assert not torch.allclose(one[:, CLEAN:], other[:, CLEAN:])


@pytest.mark.parametrize("architecture", [*DECODERS, "bert"])
@torch.no_grad()
def test_each_row_may_see_its_own(architecture: str) -> None:
    network = Backbone(build(architecture))
    ids_BL = text(2, LENGTH)
    open_LL = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    both = network(inputs(ids_BL, torch.stack([open_LL, block_causal(LENGTH)]))).view(2, LENGTH, -1)
    for row, attention in enumerate((open_LL, block_causal(LENGTH))):
        alone = network(inputs(ids_BL[row : row + 1], attention))
        torch.testing.assert_close(both[row], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_seeing_everything_is_the_default() -> None:
    network = Backbone(build("qwen3"))
    ids_BL = text(2, LENGTH)
    everything = network(inputs(ids_BL, torch.ones(LENGTH, LENGTH, dtype=torch.bool)))
    torch.testing.assert_close(everything, network(inputs(ids_BL)))


@torch.no_grad()
def test_padded_decides_whether_padding_is_masked() -> None:
    network = Backbone(build("qwen3"), SPECIAL["pad_token_id"])
    ids_BL = text(2, LENGTH)
    full = inputs(ids_BL)
    assert torch.equal(network(replace(full, padded=False)), network(full))
    ids_BL[0, -3:] = SPECIAL["pad_token_id"]
    padded = inputs(ids_BL)
    assert torch.equal(network(replace(padded, padded=True)), network(padded))
    assert not torch.equal(network(replace(padded, padded=False)), network(padded))


def test_a_shift_knows_where_the_wanted_positions_go() -> None:
    seen: list[NetworkInput] = []

    def watch(given: NetworkInput) -> Tensor:
        seen.append(given)
        return torch.zeros(len(given.index_N), 3)

    draws_BL = torch.rand(4, 7, generator=torch.Generator().manual_seed(0))
    ShiftedNetwork(FunctionNetwork(watch), 0)(NetworkInput(text(4, 7), draws_BL < 0.4, torch.zeros(4)))
    assert torch.equal(seen[0].index_N, seen[0].wanted_BL.flatten().nonzero()[:, 0])


def test_all_of_an_input_moves_but_its_cache() -> None:
    here = NetworkInput(
        text(2, 5),
        torch.ones(2, 5, dtype=torch.bool),
        torch.zeros(2),
        rows_B=torch.arange(2),
        attention=torch.ones(5, 5, dtype=torch.bool),
        padded=False,
    )
    there = here.to(torch.device("meta"))
    tensors = {name: value for name, value in vars(there).items() if isinstance(value, Tensor)}
    assert tensors.keys() == {"ids_BL", "wanted_BL", "time_B", "rows_B", "attention", "index_N"}
    assert {value.device.type for value in tensors.values()} == {"meta"} and there.padded is False
    assert {name: value.shape for name, value in tensors.items()} == {
        name: value.shape for name, value in vars(here).items() if isinstance(value, Tensor)
    }
