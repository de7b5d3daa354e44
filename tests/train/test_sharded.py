"""A run whose weights are spread over two processes is the run of one, and goes on as one, and back."""

import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load
from transformers import AutoModelForCausalLM

from dlm.config import Config
from dlm.diffusion.readings import Joint
from tests.support import adapted_runs, pretrained
from tests.support.formulations import TIMED, chosen
from tests.support.launchers import launch
from tests.support.processes import together
from tests.support.tiny_models import SIZES
from tests.support.tiny_runs import altered, back_to, bounds, describe, lines, losses, resume, train, weights, write

pytestmark = pytest.mark.long

Done = subprocess.CompletedProcess[str]


def shard(*arguments: object, start: Callable[..., Done] = together) -> Done:
    """`dlm` on two processes, each of which holds half of the weights."""
    done = start(*arguments, launcher="fsdp2", module="tests.support.sharded")
    if done.returncode == 0:
        found = [(int(here), int(all_)) for here, all_ in re.findall(r"sharded: (\d+) of (\d+)", done.stderr)]
        assert len(found) == 2 and sum(here for here, _ in found) == found[0][1], done.stderr
        assert all(0.4 * all_ < here < 0.6 * all_ for here, all_ in found)
    return done


OF_MUON = 1e-3
"""How far apart float rounding may bring weights that Muon trained: it makes whole matrices out of next to nothing. A
matrix that is not taken whole is further away."""


def same(run: Path, other: Path, step: int, atol: float = 1e-5) -> bool:
    """Whether two runs lost the same, validated the same, and left the same weights, to float rounding."""
    assert len(bounds(run)) == 2
    mine, theirs = (tensors(weights(folder, step)) for folder in (run, other))
    assert mine.keys() == theirs.keys()
    return (
        bounds(run) == pytest.approx(bounds(other), abs=1e-5)
        and losses(run) == pytest.approx(losses(other), abs=1e-5)
        and all(torch.allclose(mine[name], theirs[name], atol=atol, rtol=1e-4) for name in mine)
    )


def tensors(files: Mapping[str, bytes]) -> dict[str, torch.Tensor]:
    return {f"{file}: {name}": t for file, data in files.items() for name, t in load(data).items()}


def timed(folder: Path) -> Config:
    return chosen(altered(describe(folder, micro_batch_size=2, ema=0.1), "optim", **ROUNDED), **TIMED["hybrid"])


def adapters(folder: Path) -> Config:
    decoder = pretrained.save("decoder", folder)
    return adapted_runs.with_lora(folder, decoder, optim=dict(ROUNDED), train={"ema": 0.1, **SHORT})


def decoder(folder: Path) -> Config:
    """From causal to full attention, and activations computed twice."""
    model = {"shift": True, "annealing": 6}
    short = {**SHORT, "gradient_checkpointing": True}
    return adapted_runs.describe(folder, pretrained.save("decoder", folder), model=model, train=short)


def encoder(folder: Path) -> Config:
    """Its embeddings, which no shard may cut apart from what stands around them, are its head too."""
    source = pretrained.save("encoder", folder)
    return adapted_runs.describe(folder, source, train=SHORT)


def timed_encoder(folder: Path) -> Config:
    """The time is added to its embeddings, outside of what is sharded layer by layer."""
    sizes = {key: SIZES["modernbert"][key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    config = altered(
        describe(folder, micro_batch_size=2),
        "model",
        architecture="modernbert",
        sizes={**sizes, "intermediate_size": 48},
    )
    return chosen(altered(config, "optim", **ROUNDED), **TIMED["uniform"])


def joint(folder: Path) -> Config:
    """A causal memory beside open blocks of two sizes."""
    config = describe(folder, micro_batch_size=2, ema=0.1, sample_length=0)
    return replace(altered(config, "optim", **ROUNDED), readings=Joint((2, 4)))


def nothing_to_predict(folder: Path) -> Config:
    """One sequence at a time, told the time: many of its copies have no mask, and a network is run by all or none."""
    config = describe(folder, micro_batch_size=1, validate_sequences=24)
    return altered(altered(config, "optim", **ROUNDED), "model", time_conditioning=True)


ROUNDED: dict[str, Any] = {"name": "adamw"}
"""Muon makes whole matrices out of next to nothing, such as a zero at the beginning, and of its rounding."""

SHORT: dict[str, Any] = {"steps": 8, "validate_every": 4, "save_every": 4, "micro_batch_size": 4, "precision": "fp32"}


@pytest.mark.parametrize("kind", [timed, adapters, decoder, encoder, timed_encoder, nothing_to_predict, joint])
def test_any_kind_of_run_is_the_run_of_one_process(kind: Any, tmp_path: Path) -> None:
    config = kind(tmp_path)
    alone = train(tmp_path / "alone", config)
    done = shard("train", write(config, tmp_path / "c.yaml"), "--run-dir", tmp_path / "sharded")
    assert done.returncode == 0, done.stderr
    assert same(tmp_path / "sharded", alone, config.train.steps)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A run of one process that takes half a batch at a time, with dropout, Muon and an average of the weights."""
    folder = tmp_path_factory.mktemp("alone")
    config = describe(folder, micro_batch_size=2, ema=0.1)
    assert config.optim.name == "muon"
    return config, train(folder / "run", config)


@pytest.fixture(scope="module")
def sharded(alone: tuple[Config, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, sharded over two processes by the launcher itself."""
    folder = tmp_path_factory.mktemp("sharded")
    done = shard("train", write(alone[0], folder / "c.yaml"), "--run-dir", folder / "run", start=launch)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_run_goes_on_sharded_and_whole_again(alone: tuple[Config, Path], sharded: Path, tmp_path: Path) -> None:
    _, undisturbed = alone
    run = copytree(sharded, tmp_path / "run", symlinks=True)
    assert same(run, undisturbed, 8, OF_MUON)
    whole = weights(run), lines(run)

    back_to(run, 4)
    assert (done := shard("train", "--resume", "--run-dir", run)).returncode == 0, done.stderr
    assert (weights(run), lines(run)) == whole  # bit for bit
    back_to(run, 4)
    resume(run)
    assert same(run, undisturbed, 8, OF_MUON)
    back_to(run, 4)
    assert (done := shard("train", "--resume", "--run-dir", run)).returncode == 0, done.stderr
    assert same(run, undisturbed, 8, OF_MUON)


def test_what_a_sharded_run_saves_is_a_plain_model(alone: tuple[Config, Path], sharded: Path) -> None:
    mine, theirs = (
        AutoModelForCausalLM.from_pretrained(run / "checkpoints/last").state_dict() for run in (sharded, alone[1])
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], atol=OF_MUON) for name in mine)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(alone: tuple[Config, Path], tmp_path: Path) -> None:
    config, _ = alone
    file = write(config, tmp_path / "c.yaml")
    done = shard("train", file, "--run-dir", tmp_path / "run", "--set", "train.batch_size=5")
    assert done.returncode != 0 and "train.batch_size 5 is no multiple of the 2 processes" in done.stderr


@pytest.mark.skipif(torch.accelerator.is_available(), reason="with GPUs it works")
def test_without_gpus_nothing_is_left_whole_in_silence(alone: tuple[Config, Path], tmp_path: Path) -> None:
    config, _ = alone
    done = together("train", write(config, tmp_path / "c.yaml"), "--run-dir", tmp_path / "run", launcher="fsdp2")
    assert done.returncode != 0 and "over several GPUs alone, and here it has 2 x cpu" in done.stderr


def test_the_first_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dlm.errors import ConfigError
    from dlm.train.sharding import sharding

    assert sharding() is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="fsdp_version: 2"):
        sharding()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert sharding() is not None
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")
    with pytest.raises(ConfigError, match=r"train\.gradient_checkpointing"):
        sharding()
