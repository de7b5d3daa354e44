"""Operations without their modules: the same bits, for any number of rows and ids, of whatever weights there are."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm.diffusion.network import NetworkInput, behind_cache
from dlm.model import unrolled
from dlm.model.backbone import Backbone
from dlm.model.cache import RowCache
from dlm.model.unrolled import ShortCall, traced
from tests.support.tiny_models import GROUPED, SPECIAL, build, text

KINDS = [
    ("qwen3", {**GROUPED, "num_attention_heads": 4}, "eager"),
    ("qwen3", {**GROUPED, "num_key_value_heads": 1}, "sdpa"),
    ("llama", GROUPED, "sdpa"),
    ("mistral", {**GROUPED, "sliding_window": None}, "eager"),
    ("qwen2", {key: size for key, size in GROUPED.items() if key != "head_dim"}, "eager"),
    ("gemma", GROUPED, "eager"),
]
CALLS = [([0], 3), ([3], 1), ([4], 5), ([1, 6, 2], 4), ([0, 9, 0], 1)]
"""The tokens that each row has in its cache, and the ids of a call."""


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]} {kind[2]}")
def network(request: pytest.FixtureRequest) -> Backbone:
    return Backbone(build(*request.param), SPECIAL["pad_token_id"], patterns=True).eval()


def filled(network: Backbone, lengths: Sequence[int]) -> RowCache:
    """A cache whose rows have read some ids each."""
    cache, most = RowCache(len(lengths), 32), max(lengths)
    if most:
        network(behind(cache, most))
        cache.keep(lengths)
    return cache


def behind(cache: RowCache, count: int) -> NetworkInput:
    """A call of some ids in which each sees those before it."""
    ids_BN = text(len(cache.lengths), count, key=f"call {cache.lengths} {count}")
    seen_BNN = torch.ones(len(ids_BN), count, count, dtype=torch.bool).tril()
    position_BN = torch.tensor(cache.lengths)[:, None] + torch.arange(count)
    return behind_cache(cache, ids_BN, torch.ones_like(ids_BN, dtype=torch.bool), seen_BNN, position_BN)


def by_operations(network: Backbone, inputs: NetworkInput, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """A call's logits without the modules of the layers, which are broken."""
    with monkeypatch.context() as patch:
        patch.setattr(network.model.base_model, "forward", broken)
        return network(inputs)


def last_layer(network: Backbone) -> Any:
    layers: Any = network.model.base_model.layers
    return layers[-1]


def broken(*_: Any, **__: Any) -> None:
    raise AssertionError("a module was run")


@torch.inference_mode()
def test_operations_give_the_bits_of_their_modules(network: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unrolled, "ENOUGH", len(CALLS) + sum(1 for lengths, _ in CALLS if max(lengths)))
    whole = [network(behind(filled(network, lengths), count)) for lengths, count in CALLS]  # the last is traced
    for (lengths, count), expected_NV in zip(CALLS, whole, strict=True):
        assert torch.equal(by_operations(network, behind(filled(network, lengths), count), monkeypatch), expected_NV)


@torch.inference_mode()
def test_weights_that_change_are_seen_and_weights_of_another_type_are_traced_anew(
    network: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unrolled, "ENOUGH", 1)
    before_NV = network(behind(RowCache(2, 8), 3))
    for parameter in network.model.parameters():
        parameter.mul_(1.5)
    found_NV = by_operations(network, behind(RowCache(2, 8), 3), monkeypatch)
    assert not torch.equal(found_NV, before_NV)
    monkeypatch.setattr(unrolled, "ENOUGH", 10)
    network.model.bfloat16()
    assert torch.equal(network(behind(RowCache(2, 8), 3)).float(), network(behind(RowCache(2, 8), 3)).float())
    with pytest.raises(AssertionError, match="a module was run"):
        by_operations(network, behind(RowCache(2, 8), 3), monkeypatch)


@torch.inference_mode()
def test_what_cannot_be_traced_or_gives_other_bits_is_run_by_its_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unrolled, "ENOUGH", 1)
    plain = Backbone(build("qwen3"), None, patterns=True).eval()
    expected_NV = plain(behind(RowCache(2, 8), 3))
    looks, counts = (Backbone(build("qwen3"), None, patterns=True).eval() for _ in range(2))
    (first, forward), (other, second) = ((layer, layer.forward) for layer in map(last_layer, (looks, counts)))

    def depends_on_values(hidden_BND: Tensor, *args: Any, **options: Any) -> Any:
        return forward(hidden_BND if hidden_BND.sum() < torch.inf else -hidden_BND, *args, **options)

    monkeypatch.setattr(first, "forward", depends_on_values)
    assert traced(looks.model) is None
    calls: list[int] = []

    def depends_on_calls(hidden_BND: Tensor, *args: Any, **options: Any) -> Any:
        calls.append(1)
        return second(hidden_BND * (2.0 if len(calls) == 2 else 1.0), *args, **options)

    monkeypatch.setattr(other, "forward", depends_on_calls)
    for network in (looks, counts):
        for _ in range(3):
            assert torch.equal(network(behind(RowCache(2, 8), 3)), expected_NV)


def test_with_gradients_in_training_or_by_autocast_modules_are_run(
    network: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unrolled, "ENOUGH", 1)
    monkeypatch.setattr(ShortCall, "of", broken)
    network(behind(RowCache(2, 8), 3))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(behind(RowCache(2, 8), 3))
    network.train()
    with torch.no_grad():
        network(behind(RowCache(2, 8), 3))
