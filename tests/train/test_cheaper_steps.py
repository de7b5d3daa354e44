"""Compiled steps and checkpointed gradients cost less and learn the same."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm.train.metrics import Silent
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer
from tests.train.tiny_runs import altered, describe, losses, train


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
        trainer.network.train()
        trainer._terms(trainer.denoiser, 1, 0)
    return sum(kept.values())


def deep(folder: Path, **keys: Any) -> Any:
    config = describe(folder, **keys)
    sizes = {**config.model.sizes, "num_hidden_layers": 6}
    return altered(config, "model", sizes=sizes)


def test_checkpointed_gradients_are_the_gradients_and_keep_less(tmp_path: Path) -> None:
    found = {}
    for name, on in (("whole", False), ("checkpointed", True)):
        config = deep(tmp_path, gradient_checkpointing=on)
        trainer = Trainer(RunFolder.create(tmp_path / name, config), Silent())
        found[name] = saved_bytes(trainer)
        train(tmp_path / f"{name}-run", config)
    assert found["checkpointed"] < found["whole"] / 3
    whole, checkpointed = (losses(tmp_path / f"{name}-run") for name in found)
    assert whole == pytest.approx(checkpointed, rel=1e-6)  # with dropout: the same numbers are drawn again


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
def test_compiled_steps_learn_the_same(tmp_path: Path) -> None:
    config = describe(tmp_path)
    config = altered(config, "model", sizes={**config.model.sizes, "attention_dropout": 0.0})
    plain = losses(train(tmp_path / "plain", config))
    torch._dynamo.utils.counters.clear()
    compiled = losses(train(tmp_path / "compiled", altered(config, "train", compile=True)))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # all steps and validations, one graph
    assert plain.keys() == compiled.keys()
    assert plain == pytest.approx(compiled, rel=1e-3)
