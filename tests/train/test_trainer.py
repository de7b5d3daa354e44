"""The loop: what it learns, what it must not depend on, and where it stops."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dlm.diffusion.objective import Corrupted, Objective
from dlm.errors import TrainingError
from dlm.lm import DiffusionLM
from dlm.train.metrics import RunFacts, Silent, StepMetrics, Validation
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer
from tests.support.tiny_runs import (
    STEPS,
    altered,
    bounds,
    describe,
    describe_alternating,
    lines,
    losses,
    resized,
    start,
    train,
    weights,
)


def test_learns_a_text_that_alternates(tmp_path: Path) -> None:
    """Which letter comes first is one bit a sequence; all else is certain: the bound tends to ln 2 / 16 = 0.043."""
    run = train(tmp_path / "run", describe_alternating(tmp_path))
    (bound,) = bounds(run)
    assert bound < 0.1
    first = losses(run)[1]
    assert first == pytest.approx(math.log(257), rel=0.2)  # it knew nothing, of 256 bytes and the end of text
    for seed in range(3):
        text = DiffusionLM.from_pretrained(run).generate(length=16, seed=seed)[0].text
        assert text in ("ab" * 8, "ba" * 8)


@pytest.mark.parametrize("size", [1, 3, 4, 9])
def test_micro_batches_change_nothing_but_the_rounding(tmp_path: Path, size: int) -> None:
    """Without dropout, whose draws are made a forward at a time."""
    config = resized(describe(tmp_path, batch_size=8), attention_dropout=0.0)
    whole = train(tmp_path / "whole", config)
    parts = train(tmp_path / "parts", altered(config, "train", micro_batch_size=size))
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)
    assert losses(parts)[1] == pytest.approx(losses(whole)[1], rel=2e-6)
    norms = [next(line["grad_norm"] for line in lines(run) if "loss" in line) for run in (whole, parts)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


@pytest.mark.parametrize("ema", [0.0, 0.1])
def test_validation_does_not_disturb_training(tmp_path: Path, ema: float) -> None:
    config = describe(tmp_path, ema=ema, save_every=None)
    often = train(tmp_path / "often", altered(config, "train", validate_every=1, sample_length=8))
    once = train(tmp_path / "once", altered(config, "train", validate_every=STEPS, sample_length=0))
    assert weights(often) == weights(once) and losses(often) == losses(once)
    assert len(lines(often)) == 2 * STEPS and len(lines(once)) == STEPS + 1


class Poison(Silent):
    """Makes a weight infinite after a step."""

    trainer: Trainer

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, metrics: StepMetrics) -> None:
        if metrics.step == self.at:
            torch.nn.init.constant_(next(self.trainer.backbone.parameters()), math.inf)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    poison = Poison(3)
    poison.trainer = Trainer(RunFolder.create(tmp_path / "run", describe(tmp_path)), poison)
    with pytest.raises(TrainingError, match=r"not finite at step 4 .*last good checkpoint is .*step-000002;"):
        poison.trainer.train()
    assert max(losses(tmp_path / "run")) == 3
    DiffusionLM.from_pretrained(tmp_path / "run")


def test_a_model_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    """Step 4 is validated and saved; it must not become the last good checkpoint, nor the best."""
    poison = Poison(4)
    poison.trainer = Trainer(RunFolder.create(tmp_path / "run", describe(tmp_path)), poison)
    with pytest.raises(TrainingError, match=r"not finite .*step 4.*last good checkpoint is .*step-000002;"):
        poison.trainer.train()
    assert (tmp_path / "run/checkpoints/last").resolve().name == "step-000002"


@pytest.mark.parametrize("every", [1, STEPS])
def test_an_absurd_learning_rate_stops_the_run(tmp_path: Path, every: int) -> None:
    config = altered(describe(tmp_path, validate_every=every), "optim", name="adamw", lr=1e30, warmup=1)
    with pytest.raises(TrainingError, match=r"not finite .*step \d.*lower optim\.lr"):
        train(tmp_path / "run", config)


def test_a_reporter_hears_everything_in_order(tmp_path: Path) -> None:
    heard: list[tuple[str, int]] = []

    class Hears(Silent):
        def begin(self, facts: RunFacts) -> None:
            assert facts.parameters > 0 and (facts.train_tokens or 0) > facts.validation_tokens > 0
            assert (facts.steps, facts.precision, facts.vocabulary) == (4, "fp32", 259)
            heard.append(("begin", facts.first))

        def step(self, metrics: StepMetrics) -> None:
            heard.append(("step", metrics.step))

        def validation(self, step: int, validation: Validation, best: bool) -> None:
            assert list(validation.reports) == ["any-order"] and validation.judged.sequences == 4 and best
            heard.append(("validation", step))

        def sample(self, step: int, text: str) -> None:
            assert text
            heard.append(("sample", step))

        def saved(self, step: int, folder: Path) -> None:
            assert (folder / "model.safetensors").exists()
            heard.append(("saved", step))

    train(tmp_path / "run", describe(tmp_path, steps=4), Hears())
    steps = ["step 1", "step 2", "saved 2", "step 3", "step 4", "validation 4", "sample 4", "saved 4"]
    assert [f"{what} {step}" for what, step in heard] == ["begin 1", *steps]


def test_the_whole_batch_is_in_the_loss(tmp_path: Path) -> None:
    """Tokens seen are counted, and the bound's estimate is near ln 257 while nothing is learned."""
    config = altered(describe(tmp_path, batch_size=64), "optim", lr=0.0, muon_lr=0.0)
    run = train(tmp_path / "run", config)
    steps = [line for line in lines(run) if "loss" in line]
    assert steps[-1]["tokens"] == STEPS * 64 * 16
    assert sum(line["nelbo"] for line in steps) / STEPS == pytest.approx(math.log(257), rel=0.03)


def test_clean_context_is_seen_and_never_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a share of one every sequence keeps an end clean, but for cuts that fall on it; the bound is not touched."""
    config = altered(describe(tmp_path, batch_size=64, steps=1), "data", context=1.0)
    trainer = start(tmp_path, config)
    clean = torch.ones(64, 16, dtype=torch.bool)
    corrupt = type(trainer.objective).corrupt

    def watched(self: Objective, process: Any, x0_BL: Any, draws: Any, loss_mask_BL: Any = None) -> Corrupted:
        clean.copy_(~loss_mask_BL)
        return corrupt(self, process, x0_BL, draws, loss_mask_BL)

    monkeypatch.setattr(type(trainer.objective), "corrupt", watched)
    trainer.train()
    held_B = clean[:, 0] | clean[:, -1]
    assert held_B.double().mean() > 0.7 and not clean.all(1).any()
    step = lines(trainer.run.path)[0]
    assert step["nelbo"] is None and step["tokens"] == 64 * 16
    assert len(bounds(trainer.run.path)) == 1


def test_a_prepared_batch_says_whether_it_is_padded(tmp_path: Path) -> None:
    trainer = start(tmp_path, describe(tmp_path, batch_size=2))
    batch = trainer.batches.batch(1, range(2))
    assert trainer.prepare(batch, 1, range(2)).batch.inputs.padded is False
    batch.x0_BL[0, -1] = int(trainer.tokenizer.pad_token_id or 0)
    prepared = trainer.prepare(batch, 1, range(2)).batch
    assert prepared.inputs.padded is True
    assert torch.equal(prepared.inputs.index_N, prepared.inputs.wanted_BL.flatten().nonzero()[:, 0])


def test_no_token_is_clean_context_without_being_asked(tmp_path: Path) -> None:
    config = describe(tmp_path)
    first, second = (altered(config, "data", context=share) for share in (0.0, 1.0))
    assert train(tmp_path / "a", config) and losses(tmp_path / "a") == losses(train(tmp_path / "b", first))
    assert losses(tmp_path / "a") != losses(train(tmp_path / "c", second))
