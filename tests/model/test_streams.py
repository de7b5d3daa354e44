"""Two streams in one forward: the logits are those of separate forwards, and what is hidden is hidden."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from dlm.diffusion.memory import causal_input, two_stream_input
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.streams import TwoStreams, block_numbers
from dlm.errors import ConfigError
from dlm.model.backbone import Backbone
from tests.support.tiny_models import GROUPED, LENGTH, SPECIAL, build, text

BEFORE, PAD, MASK = SPECIAL["eos_token_id"], SPECIAL["pad_token_id"], SPECIAL["mask_token_id"]
KINDS = [
    ("qwen3", {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
               "num_key_value_heads": 2, "head_dim": 16}, "eager"),
    ("qwen3", {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
               "num_key_value_heads": 1, "head_dim": 16}, "sdpa"),
    ("llama", None, "sdpa"),
]  # fmt: skip
BLOCKS = [(1, 0), (3, 0), (4, 2), (5, 4), (LENGTH, 0)]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]} {kind[2]}")
def network(request: pytest.FixtureRequest) -> Backbone:
    """Random weights, large enough that what is seen changes what is said."""
    architecture, sizes, attention = request.param
    model = build(architecture, sizes, attention, seed=1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(8.0)
    return Backbone(model, PAD, patterns=True).eval()


def streams(
    size: int, offset: int, rows: int = 3, memory: Literal["causal", "block-causal"] = "causal", padding: int = 0
) -> NetworkInput:
    """A text with masks in every block; the last row ends early."""
    x0_BL = text(rows, LENGTH)
    masked_BL = text(rows, LENGTH, key="masks") % 2 == 0
    if padding:
        x0_BL[-1, -padding:], masked_BL[-1, -padding:] = PAD, False
    pattern = TwoStreams(block_numbers(LENGTH, size, offset), memory == "causal", whole=size == LENGTH)
    inputs = two_stream_input(
        x0_BL, x0_BL.masked_fill(masked_BL, MASK), x0_BL != PAD, x0_BL != PAD, BEFORE, pattern
    )  # fmt: skip
    return replace(inputs, padded=bool(padding))


def halves(network: Backbone, inputs: NetworkInput) -> tuple[Tensor, Tensor]:
    """The logits of clean and of noisy tokens, row by row, zero where they are not wanted."""
    found = network(inputs)
    logits_BNV = found.new_zeros(*inputs.ids_BL.shape, found.shape[-1])
    logits_BNV[inputs.wanted_BL] = found
    return logits_BNV.chunk(2, 1)


def open_forward(network: Backbone, ids_1L: Tensor, seen_LL: Tensor, positions_L: Tensor) -> Tensor:
    """Every logit of a plain row of transformers, with what is added to each logit of attention."""
    added = torch.zeros(seen_LL.shape).masked_fill(~seen_LL, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        logits: Tensor = network.model(
            input_ids=ids_1L, attention_mask=added, position_ids=positions_L[None], use_cache=False
        ).logits[0]
    return logits


@pytest.mark.parametrize(("size", "offset"), BLOCKS)
@pytest.mark.parametrize("padding", [0, 5])
@torch.no_grad()
def test_clean_tokens_say_what_a_causal_forward_says(network: Backbone, size: int, offset: int, padding: int) -> None:
    inputs = streams(size, offset, padding=padding)
    clean_BLV, _ = halves(network, inputs)
    alone = network(causal_input(text(3, LENGTH), inputs.wanted_BL[:, :LENGTH], BEFORE))
    torch.testing.assert_close(clean_BLV[inputs.wanted_BL[:, :LENGTH]], alone, **CLOSE)


@pytest.mark.parametrize(("size", "offset"), BLOCKS)
@pytest.mark.parametrize("memory", ["causal", "block-causal"])
@pytest.mark.parametrize("padding", [0, 5])
def test_a_noisy_block_says_what_it_says_behind_its_clean_prefix_alone(
    network: Backbone, size: int, offset: int, memory: Literal["causal", "block-causal"], padding: int
) -> None:
    inputs = streams(size, offset, memory=memory, padding=padding)
    with torch.no_grad():
        _, noisy_BLV = halves(network, inputs)
    block_L = block_numbers(LENGTH, size, offset)[0]
    ids_BL, xt_BL = inputs.ids_BL.chunk(2, 1)
    for row in range(len(ids_BL)):
        real_L = xt_BL[row] != PAD
        for block in block_L[real_L].unique().tolist():
            own_L = (block_L == block) & real_L
            start = int((block_L < block).sum())
            # What is read alone: the token before the text and the clean ones before the block, then the block.
            before = start + 1 if start else 0
            ids = torch.cat([ids_BL[row, :before], xt_BL[row, own_L]])
            place = torch.cat([torch.arange(before), own_L.nonzero()[:, 0] + 1])
            of_block = torch.cat([block_L[:1], block_L[: max(before - 1, 0)]])[:before]
            past = torch.arange(before)[:, None] >= torch.arange(before)
            if memory == "block-causal":
                past |= of_block[:, None] >= of_block
            seen = torch.zeros(len(ids), len(ids), dtype=torch.bool)
            seen[:before, :before] = past
            seen[before:] = True
            alone = open_forward(network, ids[None], seen, place)[before:]
            torch.testing.assert_close(noisy_BLV[row, own_L], alone, **CLOSE)


def test_a_whole_text_says_what_plain_diffusion_says(network: Backbone) -> None:
    inputs = streams(LENGTH, 0, padding=5)
    xt_BL = inputs.ids_BL[:, LENGTH:]
    with torch.no_grad():
        _, noisy_BLV = halves(network, inputs)
        plain = network(NetworkInput(xt_BL, xt_BL != PAD, torch.zeros(3), padded=True))
    torch.testing.assert_close(noisy_BLV[xt_BL != PAD], plain, **CLOSE)


def test_clean_tokens_say_what_plain_transformers_says(network: Backbone, tmp_path: Path) -> None:
    network.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del config["is_causal"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    inputs = streams(4, 2)
    with torch.no_grad():
        clean_BLV, _ = halves(network, inputs)
        expected = plain(input_ids=inputs.ids_BL[:, :LENGTH]).logits
    torch.testing.assert_close(clean_BLV, expected, **CLOSE)


@pytest.mark.parametrize(("size", "offset"), BLOCKS)
@pytest.mark.parametrize("memory", ["causal", "block-causal"])
def test_what_is_hidden_changes_nothing_and_what_is_seen_does(
    network: Backbone, size: int, offset: int, memory: Literal["causal", "block-causal"]
) -> None:
    inputs = streams(size, offset, rows=1, memory=memory)
    width, layers = 2 * LENGTH, 2
    changed_NN = inputs.ids_BL.expand(width, -1).clone()
    changed_NN.diagonal().copy_(36 - changed_NN.diagonal().clamp(max=36))
    copies = replace(
        inputs,
        ids_BL=torch.cat([inputs.ids_BL, changed_NN]),
        wanted_BL=torch.ones(width + 1, width, dtype=torch.bool),
        time_B=torch.zeros(width + 1),
    )
    with torch.no_grad():
        whole_NV, *others = network(copies).view(width + 1, width, -1)
    differs_NN = torch.stack([(other_NV - whole_NV).abs().amax(1) > 1e-4 for other_NV in others]).T
    reach_NN = torch.from_numpy(seen_by_the_rules(size, offset, memory).numpy())
    through = reach_NN.float()
    for _ in range(layers - 1):  # what a token reads has read before
        through = through @ reach_NN.float()
    assert torch.equal(differs_NN & (through == 0), torch.zeros_like(differs_NN))
    assert differs_NN[reach_NN].float().mean() > 0.97  # of the same token twice, nothing changes


def seen_by_the_rules(size: int, offset: int, memory: str) -> Tensor:
    """The rules of two streams one pair at a time; clean token j is the text's token j - 1, and the first none."""
    block = [(i + offset) // size for i in range(LENGTH)]
    of_clean = [block[0], *block[:-1]]
    seen = torch.zeros(2 * LENGTH, 2 * LENGTH, dtype=torch.bool)
    for i in range(LENGTH):
        for j in range(LENGTH):
            seen[i, j] = j <= i or (memory == "block-causal" and of_clean[j] <= of_clean[i])
            seen[LENGTH + i, j] = of_clean[j] < block[i]
            seen[LENGTH + i, LENGTH + j] = block[i] == block[j]
    return seen


@pytest.mark.parametrize(("size", "offset"), BLOCKS)
@pytest.mark.parametrize("memory", ["causal", "block-causal"])
def test_a_pattern_as_a_mask_is_its_rules(size: int, offset: int, memory: str) -> None:
    pattern = TwoStreams(block_numbers(LENGTH, size, offset), memory == "causal")
    assert torch.equal(pattern.dense(2 * LENGTH)[0], seen_by_the_rules(size, offset, memory))


@pytest.mark.parametrize("size", [4, LENGTH])
def test_the_gradient_of_padded_rows_is_finite_and_padding_changes_none(network: Backbone, size: int) -> None:
    def gradient(inputs: NetworkInput) -> list[Tensor]:
        network.zero_grad()
        network(inputs).pow(2).sum().backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    plain = streams(size, 0, rows=2)
    padded = streams(size, 0, rows=2, padding=LENGTH)  # a row of padding alone
    found = gradient(padded)
    assert found and all(each.isfinite().all() for each in found)
    first: dict[str, Any] = {"ids_BL": plain.ids_BL[:1], "wanted_BL": plain.wanted_BL[:1], "time_B": plain.time_B[:1]}
    for one, other in zip(found, gradient(replace(plain, **first)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    network.zero_grad()


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("gpt2", "has a learned vector for each position"),
        ("bert", "is an encoder"),
        ("modernbert", "is an encoder"),
        ("eurobert", "is an encoder"),
    ],
)
def test_a_network_of_one_reading_is_refused(architecture: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"model.architecture {architecture} {why}.*readings to masked"):
        Backbone(build(architecture), PAD, patterns=True)


def test_attention_that_is_no_softmax_alone_is_refused() -> None:
    sizes = {**GROUPED, "attn_logit_softcapping": 30.0, "final_logit_softcapping": None}
    with pytest.raises(ConfigError, match=r"gemma2 has attention with softcap: set readings to masked"):
        Backbone(build("gemma2", sizes), PAD, patterns=True)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_longest_row_are_refused(kind: str) -> None:
    half = GROUPED["head_dim"] // 2
    factors = {"short_factor": [1.0] * half, "long_factor": [2.0] * half} if kind == "longrope" else {"factor": 2.0}
    rope = {"rope_type": kind, "rope_theta": 10000.0, "original_max_position_embeddings": LENGTH // 2, **factors}
    model = build("llama", {**GROUPED, "rope_parameters": rope})
    with pytest.raises(ConfigError, match=r"a text would depend on its batch: set readings to masked"):
        Backbone(model, PAD, patterns=True)
    Backbone(model, PAD)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_layers_that_see_a_window_are_refused_where_a_row_is_longer(attention: str) -> None:
    network = Backbone(build("mistral", {**GROUPED, "sliding_window": 4}, attention), PAD, patterns=True)
    with pytest.raises(ConfigError, match=r"has layers that see a part of the row.*set readings to masked"):
        network.check_masks(LENGTH, "readings to masked")
    wide = Backbone(build("mistral", {**GROUPED, "sliding_window": LENGTH + 1}, attention), PAD, patterns=True)
    wide.check_masks(LENGTH, "readings to masked")
