"""Training in float16: the loss is scaled, a step that overflows changes nothing, and a run resumes with its scale."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dlm.config import Config
from dlm.diffusion.network import NetworkInput, Reduced
from dlm.errors import TrainingError
from dlm.model import chunks
from dlm.model.backbone import Backbone
from dlm.model.precision import in_precision
from dlm.train.scaling import LEAST, PATIENCE, LossScale, scaled
from dlm.train.setup import run_precision
from tests.support.tiny_models import LENGTH, build, text
from tests.support.tiny_runs import STEPS, altered, back_to, describe, lines, losses, resume, same, start, train


def test_the_scale_is_halved_by_an_overflow_and_doubled_after_many_steps_without() -> None:
    scale = LossScale()
    assert scale.value == 2.0**16
    scale = scale.after(False).after(True)
    assert scale == LossScale(2.0**15, 1)
    for _ in range(PATIENCE - 1):
        assert scale.value == 2.0**15
        scale = scale.after(True)
    assert scale == LossScale(2.0**16, 0)


@pytest.mark.parametrize(("tokens", "divisor"), [(1, 1), (2, 2), (3, 4), (4, 4), (2048, 2048), (2049, 4096)])
def test_a_sum_is_scaled_like_its_mean(tokens: int, divisor: int) -> None:
    assert LossScale(2.0**10).of_sum(tokens) == 2.0**10 / divisor


def gradients(scale: Tensor | None, precision: str, loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The gradients of a tiny model, by a reducer that sees a few rows at a time."""
    model = build("qwen3")
    network = in_precision(Backbone(model), precision)  # type: ignore[arg-type]
    if scale is not None:
        network = scaled(network, scale)
    x_BL = text(2, LENGTH)
    found = network(
        NetworkInput(x_BL, torch.ones_like(x_BL, dtype=torch.bool), torch.zeros(2)),
        lambda logits_CV, rows: Reduced(loss(logits_CV.float()), logits_CV.detach().sum(-1)),
    )
    found.total.backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("chunk", [2**22, 40 * 5])
def test_a_scaled_loss_has_the_same_gradients_times_the_scale(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, as the scale is a power of two; also those that the chunks take on the way forward."""
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    plain = gradients(None, "fp32", lambda logits_CV: logits_CV.logsumexp(-1).sum())
    large = gradients(torch.tensor(2.0**12), "fp32", lambda logits_CV: logits_CV.logsumexp(-1).sum())
    assert len(plain) > 10
    for one, other in zip(plain, large, strict=True):
        assert torch.equal(one * 2.0**12, other)


@pytest.mark.parametrize("chunk", [2**22, 40 * 5])
def test_the_scale_saves_gradients_that_float16_would_lose(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", chunk)

    def faint(logits_CV: Tensor) -> Tensor:
        return 1e-9 * logits_CV.square().sum()

    exact = torch.cat([g.flatten() for g in gradients(None, "fp32", faint)])
    lost = torch.cat([g.flatten() for g in gradients(None, "fp16", faint)])
    kept = torch.cat([g.flatten() for g in gradients(torch.tensor(2.0**24), "fp16", faint)]) / 2.0**24
    assert exact.norm() > 0 and not lost.any()
    assert (kept - exact).norm() < 0.01 * exact.norm()


@pytest.fixture
def half(tmp_path: Path) -> Config:
    return describe(tmp_path, precision="fp16")


def test_a_run_in_float16_learns_what_one_in_float32_does(half: Config, tmp_path: Path) -> None:
    one = train(tmp_path / "half", half)
    other = train(tmp_path / "single", altered(half, "train", precision="fp32"))
    assert losses(one) == pytest.approx(losses(other), rel=3e-3) and losses(one) != losses(other)
    norms = [[line["grad_norm"] for line in lines(run) if "loss" in line] for run in (one, other)]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


@pytest.mark.parametrize("ema", [0.0, 0.1])
def test_a_step_that_overflows_is_skipped_and_is_no_divergence(half: Config, tmp_path: Path, ema: float) -> None:
    trainer = start(tmp_path, altered(half, "train", ema=ema))
    trainer.loss_scale = LossScale(2.0**40)
    before = {name: p.detach().clone() for name, p in trainer.backbone.named_parameters()}
    averaged = {name: p.clone() for name, p in trainer.ema.weights.items()} if trainer.ema else {}
    first = trainer.step(1)
    assert first.grad_norm is None and math.isfinite(first.loss) and trainer.loss_scale == LossScale(2.0**39)
    assert all(torch.equal(p, before[name]) for name, p in trainer.backbone.named_parameters())
    assert not any(state for optimizer in trainer.optimizers for state in optimizer.state.values())
    assert trainer.ema is None or all(torch.equal(p, averaged[name]) for name, p in trainer.ema.weights.items())
    steps = [trainer.step(step) for step in range(2, 40)]
    taken = [line.grad_norm is not None for line in steps]
    assert not any(taken[:5]) and sum(taken[-10:]) >= 8  # from some scale on hardly anything overflows
    assert any(not torch.equal(p, before[name]) for name, p in trainer.backbone.named_parameters())
    assert trainer.progress.step == 39 and trainer.progress.loss_scale == trainer.loss_scale


def test_gradients_that_overflow_at_every_scale_stop_the_run(half: Config, tmp_path: Path) -> None:
    trainer = start(tmp_path, half)
    trainer.loss_scale = LossScale(LEAST)
    torch.nn.Module.register_full_backward_hook(
        trainer.backbone.model.model.layers[0], lambda *_: (torch.full((4, 16, 16), math.inf),)
    )
    with pytest.raises(TrainingError, match=r"overflow in fp16 at every scale .* step 1; .* none yet; .*fp32"):
        trainer.step(1)


def test_a_resumed_run_ends_as_an_undisturbed_one_and_with_its_scale(half: Config, tmp_path: Path) -> None:
    run, other = train(tmp_path / "run", half), train(tmp_path / "other", half)
    back_to(other, 4)
    assert same(resume(other), run)
    kept = [path / f"checkpoints/step-{STEPS:06d}/trainer/progress.json" for path in (run, other)]
    assert f'"steps": {STEPS}' in kept[0].read_text() and kept[0].read_text() == kept[1].read_text()


def test_a_gpu_without_bfloat16_trains_in_float16(half: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = replace(half, train=replace(half.train, precision="auto"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has, precision in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert run_precision(auto) == precision
        assert run_precision(half) == "fp16"
