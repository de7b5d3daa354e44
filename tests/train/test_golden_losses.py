"""The first twenty losses of each formulation are what they have always been.

A change of the data order, of a random stream, of a loss or of an optimizer shows here at once. The golden losses in
`golden_losses.json` change only where such a change is meant.
"""

import json
import random
from pathlib import Path
from typing import Any, get_args

import pytest

from dlm.diffusion.levels import AnyLevels
from dlm.diffusion.noise import AnyNoise
from dlm.diffusion.weighting import AnyWeighting
from dlm.settings import parse_config
from dlm.train.metrics import Silent
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer

GOLDEN: dict[str, list[float]] = json.loads(Path(__file__).with_name("golden_losses.json").read_text(encoding="utf-8"))

FORMULATIONS: dict[str, dict[str, Any]] = {
    "elbo": {"objective": {"loss": "elbo", "levels": "even"}},
    "ce": {"objective": {"loss": "ce", "levels": "even"}},
    "hybrid-ce": {"objective": {"loss": "hybrid-ce", "levels": "even"}},
    "bell": {"objective": {"loss": "ce", "levels": "bell"}},
    "clip": {"objective": {"loss": "ce", "levels": "clip"}},
    "64 steps": {"schedule": "cosine", "time": {"steps": 64}, "objective": {"loss": "elbo", "levels": "even"}},
    "timed masks": {
        "schedule": "geometric",
        "model": {"time_conditioning": True},
        "objective": {"loss": "elbo", "levels": "even"},
    },
    "uniform": {"noise": "uniform", "objective": {"loss": "elbo", "levels": "even"}},
    "uniform clip": {"noise": "uniform", "objective": {"loss": "ce", "levels": "clip"}},
    "hybrid": {
        "noise": {"name": "hybrid", "share": 0.2},
        "schedule": "cosine",
        "objective": {"loss": "hybrid-ce", "levels": "even"},
    },
    "mixture, 10 steps": {
        "noise": "uniform",
        "parameterization": "mixture",
        "time": {"steps": 10},
        "objective": {"loss": "elbo", "levels": "even"},
    },
    "context": {"data": {"context": 0.5}, "objective": {"loss": "ce", "levels": "clip"}},
}


@pytest.mark.parametrize("name", FORMULATIONS)
def test_the_first_twenty_losses(name: str, tmp_path: Path) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh ", k=draw.randint(2, 7))) for _ in range(400)]
    (tmp_path / "text.txt").write_text(" ".join(words), encoding="utf-8")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32, "head_dim": 8}
    tree: dict[str, Any] = {
        "data": {
            "train": {"format": "text", "path": str(tmp_path / "text.txt")},
            "held_out": {"by": "tail", "share": 0.2},
            "length": 16,
        },
        "model": {"sizes": {**sizes, "num_attention_heads": 2, "num_key_value_heads": 2}},
        "optim": {"warmup": 2},
        "train": {"steps": 20, "batch_size": 8, "precision": "fp32", "sample_length": 0},
    }
    for key, value in FORMULATIONS[name].items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    trainer = Trainer(RunFolder.create(tmp_path / "run", parse_config(tree)), Silent())
    losses = [trainer.step(number).loss for number in range(1, 21)]
    # Other processors round otherwise; another order of the data moves a loss by far more.
    assert losses == pytest.approx(GOLDEN[name], rel=1e-3)


def test_every_noise_loss_and_distribution_of_levels_is_among_them() -> None:
    assert FORMULATIONS.keys() == GOLDEN.keys()
    for key, union in (("noise", AnyNoise), ("loss", AnyWeighting), ("levels", AnyLevels)):
        for choice in get_args(union):
            said = f"'{key}': '{choice.name}'", f"'{key}': {{'name': '{choice.name}'"
            assert choice.name == "absorbing" or any(each in str(FORMULATIONS) for each in said)
