"""Which parameter goes where, the learning rate of every step, and states that survive the disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon

from dlm.config import Optim
from dlm.model.backbone import Backbone
from dlm.model.loading import build_model
from dlm.model.tensors import read_tensors, write_tensors
from dlm.train.optim import (
    FullMatrixMuon,
    build_optimizers,
    clip_gradients,
    learning_rate_factor,
    optimizer_tensors,
    orthogonalised,
    restore_optimizers,
    set_learning_rate,
)

QWEN3 = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
BERT = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
GPT2 = {"n_layer": 2, "n_embd": 16, "n_head": 2}

# What is a matrix inside a layer, by the names of each architecture's own code, and how many a layer has.
HIDDEN = {"qwen3": ("_proj.weight", 7), "bert": ("dense.weight|query.weight|key.weight|value.weight", 6)}
HIDDEN["gpt2"] = ("c_attn.weight|c_proj.weight|c_fc.weight", 4)


def network(architecture: str, sizes: dict[str, Any]) -> Backbone:
    ids = {"pad_token_id": 0, "eos_token_id": 1}
    return Backbone(
        build_model(architecture, sizes, vocabulary=40, length=16, special_ids=ids, attention="eager", seed=0), 0
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("architecture", "sizes"), [("qwen3", QWEN3), ("bert", BERT), ("gpt2", GPT2)])
def test_every_parameter_has_one_optimizer_and_muon_has_no_table(
    architecture: str, sizes: dict[str, Any], tied: bool
) -> None:
    model = network(architecture, {**sizes, "tie_word_embeddings": tied})
    adamw, muon = build_optimizers(model, Optim())
    assert isinstance(adamw, AdamW) and isinstance(muon, Muon)
    held = [id(p) for optimizer in (adamw, muon) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())

    ours = {id(p) for group in muon.param_groups for p in group["params"]}
    named = {name for name, p in model.named_parameters() if id(p) in ours}
    ends, each = HIDDEN[architecture]
    layers = {
        name
        for name, _ in model.named_parameters()
        if name.endswith(tuple(ends.split("|"))) and (".layers." in name or ".layer." in name or ".h." in name)
    }
    assert len(layers) == 2 * each
    # BERT's head has a map of its own before the vocabulary; no other matrix is outside the layers.
    assert named - layers == {n for n in named if n.endswith("transform.dense.weight")}
    assert layers <= named and len(named - layers) == (architecture == "bert")

    words = model.model.get_input_embeddings().weight
    head = model.model.get_output_embeddings().weight
    assert (words is head) == tied
    assert id(words) not in ours and id(head) not in ours


def test_adamw_alone_holds_everything() -> None:
    model = network("qwen3", QWEN3)
    (adamw,) = build_optimizers(model, Optim(name="adamw", weight_decay=0.1))
    assert isinstance(adamw, AdamW)
    assert sum(len(group["params"]) for group in adamw.param_groups) == len(list(model.parameters()))
    for group in adamw.param_groups:  # norms and biases do not decay, matrices and tables do
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.1}


def test_what_is_frozen_is_left_out() -> None:
    model = network("qwen3", QWEN3)
    frozen = next(model.parameters()).requires_grad_(False)
    held = [p for o in build_optimizers(model, Optim()) for group in o.param_groups for p in group["params"]]
    assert all(p is not frozen for p in held) and len(held) == len(list(model.parameters())) - 1


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("linear", [1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("constant", [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 1, 1]),
        ("cosine", [1 / 4, 2 / 4, 3 / 4, 1, 1, (1 + 0.75**0.5) / 2, 3 / 4, 1 / 2, 1 / 4, (1 - 0.75**0.5) / 2]),
    ],
)
def test_the_rate_of_ten_steps_by_hand(decay: Any, expected: list[float]) -> None:
    config = Optim(warmup=4, decay=decay)
    assert [learning_rate_factor(step, 10, config) for step in range(1, 11)] == pytest.approx(expected, abs=1e-12)


def test_the_edges_of_the_schedule() -> None:
    assert learning_rate_factor(1, 5, Optim(warmup=0)) == 1.0
    assert learning_rate_factor(6, 5, Optim(warmup=0)) == pytest.approx(0.0)
    assert [learning_rate_factor(step, 2, Optim(warmup=4)) for step in (1, 2)] == [0.25, 0.5]
    assert learning_rate_factor(4, 4, Optim(warmup=4)) == 1.0


def test_a_rate_is_a_share_of_each_optimizers_own_peak() -> None:
    optimizers = build_optimizers(network("qwen3", QWEN3), Optim(lr=0.004, muon_lr=0.02))
    for factor in (0.5, 0.25):  # of the peak, not of what was set before
        set_learning_rate(optimizers, factor)
        assert [{g["lr"] for g in o.param_groups} for o in optimizers] == [{0.004 * factor}, {0.02 * factor}]


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_optimizers_go_on_from_the_disk(tmp_path: Path, name: Any) -> None:
    def built() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
        return model, build_optimizers(model, Optim(name=name))

    def step(model: nn.Module, optimizers: Any) -> None:
        model(torch.arange(5)).pow(3).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    model, optimizers = built()
    for _ in range(3):
        step(model, optimizers)
    write_tensors(optimizer_tensors(optimizers), tmp_path / "o.safetensors")
    other, restored = built()
    other.load_state_dict(model.state_dict())
    fresh_model, fresh = built()
    fresh_model.load_state_dict(model.state_dict())
    restore_optimizers(restored, read_tensors(tmp_path / "o.safetensors"))
    for each in ((model, optimizers), (other, restored), (fresh_model, fresh)):
        step(*each)
    pairs = list(zip(model.parameters(), other.parameters(), fresh_model.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q, _ in pairs)
    assert not all(torch.equal(p, q) for p, _, q in pairs)  # the state is what made them equal


def test_matrices_together_take_the_step_that_each_takes_alone() -> None:
    """Both round to bfloat16 in their own way, so that they agree to its precision."""
    torch.manual_seed(0)
    shapes = [(16, 8), (8, 16), (16, 8), (12, 12)]
    alone, together = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9}
    one, other = Muon(alone, **settings), FullMatrixMuon(together, **settings)
    for _ in range(3):
        for p, q in zip(alone, together, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        one.step()
        other.step_together(other.param_groups[0])
    for p, q in zip(alone, together, strict=True):
        assert torch.allclose(p, q, atol=3e-3) and not torch.allclose(p, torch.ones(p.shape), atol=0.05)
        assert torch.equal(one.state[p]["momentum_buffer"], other.state[q]["momentum_buffer"])


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((2, 12, 30), (2, 30, 12)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape), (3.4445, -4.775, 2.0315), 5).float())
        assert float(values.min()) > 0.5 and float(values.max()) < 1.3


def test_clipping_bounds_the_global_norm() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    for limit, scale in ((6.5, 0.5), (100.0, 1.0), (None, 1.0)):
        a.grad, b.grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
        assert clip_gradients([a, b], limit).item() == pytest.approx(13.0)
        assert torch.cat([a.grad, b.grad]).tolist() == pytest.approx([3 * scale, 4 * scale, 12 * scale], rel=1e-5)
