"""Runs of any noise, with a network that takes the time: they learn, and go on to the same bits."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dlm.config import Config, Model
from dlm.diffusion.noise import AnyNoise
from dlm.errors import ConfigError
from dlm.lm import DiffusionLM
from dlm.model.tensors import TIME_WEIGHTS
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer
from tests.support.choices import names
from tests.support.formulations import TIMED, chosen
from tests.support.reporters import Notes, PlugPulledError, PullsPlug
from tests.support.tiny_runs import (
    STEPS,
    bounds,
    describe,
    describe_alternating,
    lines,
    losses,
    resume,
    same,
    start,
    train,
    weights,
)


@pytest.fixture(scope="module", params=list(TIMED))
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A configuration with an average of the weights, and a run of it that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    config = chosen(describe(folder, ema=0.1), **TIMED[request.param])
    return config, train(folder / "run", config)


@pytest.mark.parametrize("moment", [("step", 5), ("saved", 4)])
def test_resumes_to_the_same_bits(whole: tuple[Config, Path], tmp_path: Path, moment: tuple[str, int]) -> None:
    config, undisturbed = whole
    with pytest.raises(PlugPulledError):
        train(tmp_path / "run", config, PullsPlug(*moment))
    resume(tmp_path / "run")
    assert TIME_WEIGHTS in weights(tmp_path / "run")
    assert same(tmp_path / "run", undisturbed)


def test_the_seed_decides(whole: tuple[Config, Path], tmp_path: Path) -> None:
    config, undisturbed = whole
    other = weights(train(tmp_path / "run", replace(config, seed=1)))
    assert all(other[name] != data for name, data in weights(undisturbed).items())


def test_the_time_embedding_learns_and_is_averaged_with_the_rest(whole: tuple[Config, Path]) -> None:
    _, run = whole
    folder = run / "checkpoints" / f"step-{STEPS:06d}"
    averaged, raw = load_file(folder / TIME_WEIGHTS), load_file(folder / "trainer/weights.safetensors")
    assert averaged["down.weight"].any() and averaged["down.bias"].any()
    for name, value in averaged.items():
        assert not torch.equal(value, raw[f"time_embedding.{name}"]) and torch.allclose(
            value, raw[f"time_embedding.{name}"], atol=0.1
        )


def test_the_best_checkpoint_writes_and_scores(whole: tuple[Config, Path]) -> None:
    config, run = whole
    lm = DiffusionLM.from_pretrained(run)
    assert lm.config == config and lm.time_embedding is not None
    assert len(lm.generate(num=2, length=6)) == 2 and lm.nelbo("abc", draws=4)[0] > 0


def test_every_step_reports_its_bound_but_where_levels_are_left_out(whole: tuple[Config, Path]) -> None:
    config, run = whole
    bounds = [line["nelbo"] for line in lines(run) if "loss" in line]
    assert len(bounds) == STEPS
    if config.objective.levels.complete:
        assert all(math.isfinite(bound) and bound > 0 for bound in bounds)
    else:
        assert bounds == [None] * STEPS
    assert all(math.isfinite(loss) for loss in losses(run).values())


def test_another_noise_is_another_run(whole: tuple[Config, Path], tmp_path: Path) -> None:
    config, _ = whole
    with pytest.raises(PlugPulledError):
        train(tmp_path / "run", config, PullsPlug("saved", 4))
    with pytest.raises(ConfigError, match="was begun with another configuration"):
        resume(
            tmp_path / "run",
            chosen(config, noise={"name": "absorbing"}, schedule={"name": "linear"}, parameterization="auto"),
        )


@pytest.mark.long
@pytest.mark.parametrize(
    "keys",
    [{"noise": {"name": name}, "model": {"time_conditioning": True}} for name in names(AnyNoise)],
    ids=names(AnyNoise),
)
def test_learns_a_text_that_alternates(tmp_path: Path, keys: dict[str, Any]) -> None:
    """The letter after an a is b for certain: the bound falls far below ln 2, what single letters cost."""
    config = chosen(describe_alternating(tmp_path), **keys)
    run = train(tmp_path / "run", config)
    (bound,) = bounds(run)
    assert bound < 0.2
    texts = [sample.text for sample in DiffusionLM.from_pretrained(run).generate(num=20, length=16)]
    right = [{a, b} == {"a", "b"} for text in texts for a, b in pairwise(text)]
    assert len(right) == 20 * 15 and sum(right) > 0.9 * len(right)


def test_the_first_weights_of_the_time_embedding_follow_from_the_seed(tmp_path: Path) -> None:
    config = chosen(describe(tmp_path), noise={"name": "uniform"})
    first = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        time_embedding = start(tmp_path / name, replace(config, seed=seed)).backbone.time_embedding
        assert time_embedding is not None
        first.append(time_embedding.up.weight.detach())
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_a_batch_with_nothing_to_predict_changes_nothing_and_stops_nothing(tmp_path: Path) -> None:
    config = chosen(
        describe(tmp_path, batch_size=1, sample_length=0),
        model={"time_conditioning": True},
        objective={"levels": {"name": "clip", "low": 0.0, "high": 1e-6}},
    )
    run = train(tmp_path / "run", config)
    assert set(losses(run).values()) == {0.0}
    assert [line["grad_norm"] for line in lines(run) if "loss" in line] == [0.0] * STEPS


def test_a_model_of_masks_has_no_time_embedding_unless_asked(tmp_path: Path) -> None:
    run = train(tmp_path / "run", describe(tmp_path, steps=2, save_every=None, validate_every=2, sample_length=0))
    assert TIME_WEIGHTS not in weights(run, 2) and Model().time_conditioning == "auto"


# Runs that start from such a network


def test_a_run_starts_from_what_a_network_has_learned_of_the_time(whole: tuple[Config, Path], tmp_path: Path) -> None:
    config, run = whole
    trainer = start(tmp_path, starting_from(run, config))
    before, known = trainer.lm(), DiffusionLM.from_pretrained(run, dtype="fp32")
    assert before.time_embedding is not None and known.time_embedding is not None
    assert before.time_embedding.down.weight.any()
    for name, value in known.time_embedding.state_dict().items():
        assert torch.equal(before.time_embedding.state_dict()[name].cpu(), value), name
    assert before.nelbo("abc def") == pytest.approx(known.nelbo("abc def"), rel=1e-5)


def test_what_a_run_trains_otherwise_than_its_start_is_said(tmp_path: Path) -> None:
    plain = describe(tmp_path, steps=2, save_every=None, validate_every=2, sample_length=0)
    uniform = chosen(plain, noise={"name": "uniform"})
    runs = {name: train(tmp_path / name, each) for name, each in (("masks", plain), ("uniform", uniform))}
    told = {
        (old, new): notes(tmp_path / f"{old}-{new}", starting_from(runs[old], config))
        for old in runs
        for new, config in (("masks", plain), ("uniform", uniform))
    }
    assert told["masks", "masks"] == told["uniform", "uniform"] == []
    forward, back = (" | ".join(told[pair]) for pair in (("masks", "uniform"), ("uniform", "masks")))
    assert "noise.name absorbing, and this run has uniform" in forward and "begins as zero" in forward
    assert "noise.name uniform, and this run has absorbing" in back and "model.time_conditioning true" in back


def starting_from(run: Path, config: Config) -> Config:
    """The same training, from the best checkpoint of a run, and with another seed."""
    begin = {"init": "pretrained", "path": str(run), "sizes": {}}
    return replace(chosen(config, model=begin, tokenizer={"name": "pretrained", "path": str(run)}), seed=7)


def notes(folder: Path, config: Config) -> list[str]:
    """What the user is told before a run begins."""
    reporter = Notes()
    Trainer(RunFolder.create(folder, config), reporter)
    return reporter.told
