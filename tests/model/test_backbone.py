"""Any architecture sees the whole text from every position, and its rows are the rows of the whole model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    pipeline,
)

from dlm.diffusion.draws import generator
from dlm.diffusion.network import NetworkInput
from dlm.errors import CheckpointError, ConfigError
from dlm.model.attention import attention_implementation
from dlm.model.backbone import Backbone
from dlm.model.loading import build_model, load_model
from dlm.model.precision import in_precision
from tests.support.fixtures import Refused
from tests.support.networks import ask
from tests.support.tiny_models import ENCODERS, GROUPED, LENGTH, SIZES, SMALL, SPECIAL, VOCABULARY, build, text


def rows(model: PreTrainedModel, x_BL: Tensor, select_BL: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = ask(Backbone(model, SPECIAL["pad_token_id"]), x_BL, None, select_BL)
    return found


@pytest.fixture(params=list(SIZES), scope="module")
def architecture(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["eager", "sdpa"], scope="module")
def model(request: pytest.FixtureRequest, architecture: str) -> PreTrainedModel:
    built: PreTrainedModel = build(architecture, attention=request.param)
    return built


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_is_the_one_that_was_asked_for(architecture: str, attention: str) -> None:
    assert build(architecture, attention=attention).config._attn_implementation == attention


@pytest.mark.parametrize("length", [2, LENGTH])
def test_every_position_sees_every_other(model: PreTrainedModel, length: int) -> None:
    x_BL = text(1, length)
    only_L = torch.ones(1, length, dtype=torch.bool)
    before_LV = rows(model, x_BL, only_L)
    ends = ((0, length - 1), (length - 1, 0))
    for seen, changed in ends:
        other_BL = x_BL.clone()
        other_BL[0, changed] = (other_BL[0, changed] + 1) % 37
        assert (rows(model, other_BL, only_L)[seen] - before_LV[seen]).abs().max() > 1e-6


def test_rows_are_the_rows_of_the_whole_model(model: PreTrainedModel) -> None:
    x_BL = text(3, LENGTH)
    with torch.no_grad():
        whole_BLV = model(input_ids=x_BL, attention_mask=torch.ones_like(x_BL)).logits
    select_BL = torch.rand(3, LENGTH, generator=generator(1)) < 0.4
    assert 0 < int(select_BL.sum()) < select_BL.numel()
    for chosen_BL in (select_BL, ~select_BL, torch.ones_like(select_BL)):
        torch.testing.assert_close(rows(model, x_BL, chosen_BL), whole_BLV[chosen_BL], rtol=1e-4, atol=1e-5)
    assert rows(model, x_BL, torch.zeros_like(select_BL)).shape == (0, VOCABULARY)


def test_padding_changes_nothing_at_real_positions(model: PreTrainedModel) -> None:
    short_BL = text(2, LENGTH // 2)
    wide_BL = torch.full((3, LENGTH), SPECIAL["pad_token_id"])
    wide_BL[:2, : LENGTH // 2] = short_BL
    wide_BL[2] = text(LENGTH, key="neighbour")
    loss_mask_BL = torch.zeros(3, LENGTH, dtype=torch.bool)
    loss_mask_BL[:2, : LENGTH // 2] = True
    alone_NV = rows(model, short_BL, torch.ones_like(short_BL, dtype=torch.bool))
    torch.testing.assert_close(rows(model, wide_BL, loss_mask_BL), alone_NV, rtol=1e-4, atol=1e-5)
    assert rows(model, wide_BL, torch.ones_like(loss_mask_BL)).isfinite().all()


def test_the_whole_context_fits(architecture: str) -> None:
    x_BL = text(1, LENGTH)
    assert rows(build(architecture), x_BL, torch.ones_like(x_BL, dtype=torch.bool)).isfinite().all()


def test_the_weights_follow_from_the_seed_alone(architecture: str) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (build(architecture, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_plain_transformers_reads_the_same_bidirectional_model(architecture: str, tmp_path: Path) -> None:
    model = build(architecture)
    model.save_pretrained(tmp_path)
    factory = AutoModelForMaskedLM if architecture in ENCODERS else AutoModelForCausalLM
    plain = factory.from_pretrained(tmp_path, attn_implementation="eager").eval()
    x_BL = text(2, LENGTH)
    x_BL[1] = x_BL[0]
    x_BL[1, -1] = (x_BL[1, -1] + 1) % 37
    everywhere_BL = torch.ones_like(x_BL)
    with torch.no_grad():
        ours, theirs, bare = (
            model(input_ids=x_BL, attention_mask=everywhere_BL).logits,
            plain(input_ids=x_BL, attention_mask=everywhere_BL).logits,
            plain(input_ids=x_BL).logits,
        )
    assert torch.equal(ours, theirs)
    assert (theirs[0, 0] - theirs[1, 0]).abs().max() > 1e-6
    torch.testing.assert_close(bare, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_loading_gives_the_model_that_was_saved(architecture: str, attention: str, tmp_path: Path) -> None:
    model = build(architecture, attention=attention)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), attention)
    assert not loaded.training and loaded.dtype == torch.float32
    x_BL = text(2, LENGTH)
    everywhere_BL = torch.ones_like(x_BL, dtype=torch.bool)
    assert torch.equal(rows(loaded, x_BL, everywhere_BL), rows(model, x_BL, everywhere_BL))
    assert {p.name for p in tmp_path.iterdir()} <= {"config.json", "generation_config.json", "model.safetensors"}


def test_training_reaches_every_weight_from_the_rows(architecture: str) -> None:
    model = build(architecture)
    x_BL = text(2, LENGTH)
    select_BL = torch.ones_like(x_BL, dtype=torch.bool)
    ask(Backbone(model, None), x_BL, None, select_BL).square().sum().backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert idle == []


def test_dropout_is_as_it_was_after_the_check(architecture: str) -> None:
    for training in (True, False):
        model = build(architecture).train(training)
        Backbone(model, None)
        assert model.training is training


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "roberta"])
def test_the_fill_mask_pipeline_of_transformers_agrees_with_ours(
    architecture: str, byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    ids = {"pad_token_id": byte_tokenizer.pad_token_id, "eos_token_id": byte_tokenizer.eos_token_id}
    model = build_model(
        architecture,
        SIZES[architecture],
        vocabulary=len(byte_tokenizer),
        length=64,
        special_ids={name: int(value or 0) for name, value in ids.items()},
        attention="eager",
        seed=0,
    ).eval()
    model.save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    fill: Any = pipeline("fill-mask", model=str(tmp_path), tokenizer=AutoTokenizer.from_pretrained(tmp_path))
    found = fill("ab<|mask|>d", top_k=len(byte_tokenizer))
    x_BL = torch.tensor([[97, 98, byte_tokenizer.mask_token_id, 100]])
    p_V = rows_of(model, byte_tokenizer, x_BL).softmax(-1)[0]
    assert sorted(answer["token"] for answer in found) == list(range(len(byte_tokenizer)))
    for answer in found:
        assert answer["score"] == pytest.approx(float(p_V[answer["token"]]), rel=1e-4)


def rows_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, x_BL: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = ask(Backbone(model, tokenizer.pad_token_id), x_BL, None, x_BL == tokenizer.mask_token_id)
    return found


# What is refused


def test_mamba_is_refused_as_causal(refused: Refused) -> None:
    with refused(ConfigError, "model.architecture mamba"):
        Backbone(build("mamba", {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}), None)


def test_a_decoder_told_to_stay_causal_is_refused(refused: Refused) -> None:
    model = build("llama")
    model.config.is_causal = True
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = True
    with refused(ConfigError, "model.architecture llama", "stays causal"):
        Backbone(model, None)


def test_softcapped_logits_are_refused_until_they_are_not(refused: Refused) -> None:
    with refused(ConfigError, "gemma2", "model.sizes.final_logit_softcapping", "null"):
        Backbone(build("gemma2", GROUPED), None)
    open_ = build("gemma2", {**GROUPED, "final_logit_softcapping": None})
    x_BL = text(1, 6)
    everywhere_BL = torch.ones_like(x_BL, dtype=torch.bool)
    with torch.no_grad():
        whole_BLV = open_(input_ids=x_BL, attention_mask=everywhere_BL.long()).logits
    torch.testing.assert_close(rows(open_, x_BL, everywhere_BL), whole_BLV[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "near"), [("qwen33", "qwen3"), ("modernbrt", "modernbert"), ("BERT", "bert"), ("zzz", "qwen3")]
)
def test_an_unknown_architecture_names_the_nearest(refused: Refused, architecture: str, near: str) -> None:
    with refused(ConfigError, "model.architecture", repr(architecture), near):
        build(architecture, {})


def test_an_architecture_without_a_language_head_is_refused(refused: Refused) -> None:
    with refused(ConfigError, "vit", "neither a masked-LM nor a causal-LM head"):
        build("vit", {})


@pytest.mark.parametrize(("key", "near"), [("hiden_size", "hidden_size"), ("num_layers", "num_"), ("qqq", "no such")])
def test_an_unknown_size_names_the_nearest(refused: Refused, key: str, near: str) -> None:
    with refused(ConfigError, f"model.sizes.{key}", near):
        build("qwen3", {**GROUPED, key: 4})


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 33, "num_attention_heads": 2},
        {"num_attention_heads": 0},
        {"hidden_size": -4},
        {"hidden_size": "wide"},
        {"hidden_activation": "nothing"},
    ],
)
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_sizes_that_make_no_model_are_refused(refused: Refused, architecture: str, sizes: dict[str, Any]) -> None:
    with refused(ConfigError, "model", architecture):
        names = {"hidden_activation": "hidden_act"} if architecture == "bert" else {}
        build(architecture, {**SMALL, **{names.get(key, key): value for key, value in sizes.items()}})


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("qwen3", ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"]),
        ("bert", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]),
        ("gpt2", ["n_embd", "n_layer", "n_head", "n_inner"]),
    ],
)
def test_sizes_are_above_zero(refused: Refused, architecture: str, names: list[str]) -> None:
    for name in names:
        for value in (0, -2):
            with refused(ConfigError, f"model.sizes.{name} of {architecture} must be above zero, got {value}"):
                build(architecture, {**SIZES[architecture], name: value})


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "eurobert"])
@pytest.mark.parametrize(("heads", "key_heads"), [(3, 2), (2, 3), (2, 4)])
def test_heads_share_keys_and_values_evenly(refused: Refused, architecture: str, heads: int, key_heads: int) -> None:
    sizes = {**GROUPED, "hidden_size": 96, "num_attention_heads": heads, "num_key_value_heads": key_heads}
    with refused(
        ConfigError, "num_attention_heads must be a multiple of num_key_value_heads", f"{heads}", f"{key_heads}"
    ):
        build(architecture, sizes)


@pytest.mark.parametrize("architecture", ["llama", "bert", "modernbert", "gpt2"])
def test_heads_share_the_width_evenly(refused: Refused, architecture: str) -> None:
    name = "n_head" if architecture == "gpt2" else "num_attention_heads"
    sizes = {key: value for key, value in SIZES[architecture].items() if key not in ("head_dim", "num_key_value_heads")}
    with refused(ConfigError, "model.sizes", "32", "3"):
        build(architecture, {**sizes, name: 3})


def test_a_head_with_a_width_of_its_own_need_not_share_one() -> None:
    Backbone(build("qwen3", {**GROUPED, "num_attention_heads": 6}), SPECIAL["pad_token_id"])  # 6 heads of 16, width 32


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("qwen3", {"head_dim": 3}),
        ("qwen3", {"attention_dropout": 2.0}),
        ("llama", {"head_dim": 5}),
        ("llama", {"attention_dropout": -0.5}),
    ],
)
def test_sizes_that_no_network_computes_with_are_refused(
    refused: Refused, tmp_path: Path, architecture: str, sizes: dict[str, Any]
) -> None:
    """They make a model, which fails at its first step; so does a pretrained one with other dropout."""
    with refused(ConfigError, "model.sizes", architecture, "these sizes"):
        build(architecture, {**SIZES[architecture], **sizes})
    if "head_dim" not in sizes:
        build(architecture).save_pretrained(tmp_path)
        with refused(ConfigError, "model.sizes", architecture, "these sizes"):
            load_model(str(tmp_path), "eager", sizes)


def test_trying_the_sizes_leaves_no_trace() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    model = build("qwen3", {**SIZES["qwen3"], "attention_dropout": 0.5})
    assert torch.equal(torch.random.get_rng_state(), before) and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("architecture", "key"),
    [
        ("qwen3", "vocab_size"),
        ("xlm", "n_words"),
        ("qwen3", "pad_token_id"),
        ("qwen3", "eos_token_id"),
        ("modernbert", "cls_token_id"),
        ("bert", "is_decoder"),
        ("qwen3", "dtype"),
    ],
)
def test_what_follows_from_the_rest_is_no_size(refused: Refused, tmp_path: Path, architecture: str, key: str) -> None:
    with refused(ConfigError, f"model.sizes.{key} is no size", "the tokenizer"):
        build(architecture, {key: 1})
    if architecture in SIZES:
        build(architecture).save_pretrained(tmp_path)
        with refused(ConfigError, f"model.sizes.{key} is no size"):
            load_model(str(tmp_path), "eager", {key: 1})


def test_an_attention_that_cannot_be_here_is_not_blamed_on_the_sizes(refused: Refused) -> None:
    for attention in ("flash_attention_2", "lightning"):
        with refused(ConfigError, f"model.attention {attention}"):
            build("llama", attention=attention)


def test_an_unknown_attention_is_refused(refused: Refused) -> None:
    with refused(ConfigError, "llama"):
        build("llama", attention="lightning")


@pytest.mark.parametrize("architecture", ["roberta", "bert"])
def test_weights_that_are_missing_are_refused(refused: Refused, architecture: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    build(architecture).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "layer.1" in name)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with refused(CheckpointError, str(tmp_path), name, "not whole"):
        load_model(str(tmp_path), "eager")


def test_attention_by_device_and_length() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert attention_implementation("auto", cpu, 256) == "eager"
    assert attention_implementation("auto", cpu, 512, bf16=True, learns=True) == "eager"
    assert attention_implementation("auto", cpu, 512, bf16=True) == "sdpa"  # the forward alone
    assert attention_implementation("auto", cpu, 512, learns=True) == "sdpa"  # in float32
    assert attention_implementation("auto", cpu, 4096) == attention_implementation("auto", gpu, 64) == "sdpa"
    assert attention_implementation("flash_attention_2", cpu, 64) == "flash_attention_2"


@pytest.mark.parametrize("architecture", ["qwen3", "mistral"])
@torch.no_grad()
def test_padding_that_a_window_leaves_alone_is_no_nan_in_half_precision(architecture: str) -> None:
    """What hides a token is the least number of float32, which bf16 has not: all of such a row would be -inf."""
    windows = {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2} if architecture == "qwen3" else {}
    network = build(architecture, {**GROUPED, **windows, "sliding_window": 4}, attention="eager")
    x_BL = text(2, 16)
    x_BL[1, 4:] = 37
    half = in_precision(Backbone(network, 37, patterns=True), "bf16")
    assert half(NetworkInput(x_BL, x_BL != 37, torch.zeros(2))).isfinite().all()
