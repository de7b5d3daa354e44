"""Compiled steps and checkpointed gradients cost less and learn the same."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dlm.train.trainer import Trainer
from tests.support.tiny_runs import altered, describe, losses, resized, start, train


def saved_bytes(trainer: Trainer) -> int:
    """Bytes of activations that a step keeps for its way back, each storage counted once."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in trainer.backbone.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.step(1)
    return sum(kept.values())


def test_checkpointed_gradients_are_the_gradients_and_keep_less(tmp_path: Path) -> None:
    found = {}
    for name, on in (("whole", False), ("checkpointed", True)):
        config = resized(describe(tmp_path, gradient_checkpointing=on), num_hidden_layers=6)
        found[name] = saved_bytes(start(tmp_path / name, config))
        train(tmp_path / f"{name}-run", config)
    assert found["checkpointed"] < found["whole"] / 3
    whole, checkpointed = (losses(tmp_path / f"{name}-run") for name in found)
    assert whole == pytest.approx(checkpointed, rel=1e-6)  # with dropout: the same numbers are drawn again


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
def test_compiled_steps_learn_the_same(tmp_path: Path) -> None:
    config = resized(describe(tmp_path), attention_dropout=0.0)
    plain = losses(train(tmp_path / "plain", config))
    torch._dynamo.utils.counters.clear()
    compiled = losses(train(tmp_path / "compiled", altered(config, "train", compile=True)))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # all steps and validations, one graph
    assert plain.keys() == compiled.keys()
    assert plain == pytest.approx(compiled, rel=1e-3)
