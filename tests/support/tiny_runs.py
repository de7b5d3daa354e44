"""Runs that take a second: how to describe one, train it, and compare what two of them left on disk."""

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import yaml

from dlm.config import Config
from dlm.errors import InterruptedRunError
from dlm.settings import dump_config, parse_config
from dlm.train.metrics import Reporter, Silent
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer
from tests.support.reporters import AsksToStop
from tests.support.tiny_models import SMALLEST

STEPS = 8


def describe(folder: Path, text: str | None = None, **train: Any) -> Config:
    """A run of one layer with dropout, so that a random number drawn out of turn shows."""
    path = folder / "text.txt"
    if not path.exists():
        draw = random.Random(0)
        words = ["".join(draw.choices("abcdefgh ", k=draw.randint(2, 7))) for _ in range(400)]
        path.write_text(text or " ".join(words), encoding="utf-8")
    tree: dict[str, Any] = {
        "data": {
            "train": {"format": "text", "path": str(path)},
            "held_out": {"by": "tail", "share": 0.2},
            "length": 16,
        },
        "model": {"sizes": {**SMALLEST, "attention_dropout": 0.1}},
        "objective": {"loss": "elbo", "levels": "even"},
        "optim": {"warmup": 2},
        "train": {
            "steps": STEPS,
            "batch_size": 4,
            "precision": "fp32",
            "validate_every": 4,
            "validate_sequences": 4,
            "save_every": 2,
            "sample_length": 4,
            "keep": 100,
            **train,
        },
    }
    return parse_config(tree)


def describe_alternating(folder: Path) -> Config:
    """A run of two layers that learns a text of alternating letters, and is validated once, at its end."""
    config = describe(
        folder,
        text="ab" * 2000,
        steps=600,
        batch_size=16,
        validate_every=600,
        validate_sequences=32,
        validate_draws=16,
        save_every=None,
    )
    return altered(resized(config, hidden_size=32, num_hidden_layers=2, attention_dropout=0.0), "optim", warmup=10)


def altered(config: Config, part: str, **changes: Any) -> Config:
    """The configuration with changes in one of its parts."""
    return replace(config, **{part: replace(getattr(config, part), **changes)})


def resized(config: Config, **sizes: Any) -> Config:
    """The configuration with other sizes of its model."""
    return altered(config, "model", sizes={**config.model.sizes, **sizes})


def write(config: Config, path: Path) -> Path:
    """The configuration as a file."""
    path.write_text(yaml.safe_dump(dump_config(config)), encoding="utf-8")
    return path


def start(folder: Path, config: Config) -> Trainer:
    """The trainer of a run in `folder / "start"`, before its first step."""
    return Trainer(RunFolder.create(folder / "start", config), Silent())


def train(path: Path, config: Config, reporter: Reporter | None = None) -> Path:
    """Trains from the beginning to the end."""
    Trainer(RunFolder.create(path, config), reporter or Silent()).train()
    return path


def cut_after(path: Path, config: Config, step: int) -> Path:
    """Begins a run, and leaves it after a step, saved."""
    with pytest.raises(InterruptedRunError):
        train(path, config, AsksToStop(step))
    return path


def resume(path: Path, config: Config | None = None, reporter: Reporter | None = None) -> Path:
    """Goes on to the end."""
    Trainer(RunFolder.reopen(path, config), reporter or Silent()).train()
    return path


def back_to(run: Path, step: int) -> None:
    """Takes a run back to a checkpoint."""
    for folder in (run / "checkpoints").glob("step-*"):
        if int(folder.name[5:]) > step:
            rmtree(folder)


def weights(run: Path, step: int = STEPS) -> dict[str, bytes]:
    """The bytes of every tensor file of a checkpoint, by name."""
    folder = run / "checkpoints" / f"step-{step:06d}"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def lines(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, without the speed, which is nobody's to repeat."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in found]


def losses(run: Path) -> Mapping[int, float]:
    """The loss of every step; a step that is written twice fails."""
    steps = [line for line in lines(run) if "loss" in line]
    found = {line["step"]: line["loss"] for line in steps}
    assert len(found) == len(steps)
    return found


def bounds(run: Path) -> list[float]:
    """The validation bounds, in nats a token."""
    return [line["validation"]["nats_per_token"] for line in lines(run) if "validation" in line]


def same(run: Path, other: Path, step: int = STEPS) -> bool:
    """Whether two runs wrote the same lines and left the same checkpoint, to the last bit."""
    kept = weights(run, step)
    assert {"model.safetensors", "trainer/optimizer.safetensors"} <= set(kept)
    return kept == weights(other, step) and lines(run) == lines(other)
