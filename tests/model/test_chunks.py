"""Logits taken a chunk at a time are the logits taken at once: in value, in gradient, and never all in memory."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dlm.diffusion.denoiser import Denoiser, LeaveOneOutDenoiser, X0Denoiser
from dlm.diffusion.draws import generator, stratified_draws
from dlm.diffusion.levels import Bell, Even
from dlm.diffusion.likelihood import Estimator
from dlm.diffusion.network import NetworkInput, Reduced
from dlm.diffusion.noise import Absorbing, Hybrid
from dlm.diffusion.objective import MaskedObjective, Objective, TimedObjective
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.schedule import Linear
from dlm.diffusion.weighting import CrossEntropy, Elbo, HybridCrossEntropy
from dlm.model import chunks
from dlm.model.backbone import Backbone
from tests.support.tiny_models import LENGTH, VOCABULARY, build, text

NEVER = (37, 39)
ROWS_A_CHUNK = 3


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    def choose(small: bool) -> None:
        monkeypatch.setattr(chunks, "CHUNK", ROWS_A_CHUNK * VOCABULARY if small else 2**22)

    yield choose


@pytest.fixture(params=["qwen3", "bert", "modernbert"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A projection of its own, and two that share the embeddings' weights and have a transform or a bias besides."""
    built: PreTrainedModel = build(request.param)
    return built


def every(x_BL: Tensor) -> NetworkInput:
    return NetworkInput(x_BL, torch.ones_like(x_BL, dtype=torch.bool), torch.zeros(len(x_BL)))


def gradients(network: Backbone, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def wrapped(network: Backbone, plug_in: bool) -> tuple[Denoiser, Process]:
    process = Process(Hybrid(0.3) if plug_in else Absorbing(), Linear(), Vocabulary(VOCABULARY, 39, NEVER))
    if plug_in:
        return LeaveOneOutDenoiser(network, NEVER, process), process
    return X0Denoiser(network, NEVER), process


OBJECTIVES: dict[str, tuple[Objective, bool]] = {
    "masks": (MaskedObjective(Elbo(), Even()), False),
    "masks, cross-entropy": (MaskedObjective(CrossEntropy(), Bell()), False),
    "chain": (MaskedObjective(HybridCrossEntropy(), Even(), 8), False),
    "times": (TimedObjective(Elbo(), Even()), True),
    "times, cross-entropy": (TimedObjective(CrossEntropy(), Bell()), True),
    "times, chain": (TimedObjective(HybridCrossEntropy(), Even(), 8), True),
}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_training_in_chunks_is_training_at_once(
    name: str, model: PreTrainedModel, small_chunks: Callable[[bool], None]
) -> None:
    objective, plug_in = OBJECTIVES[name]
    network = Backbone(model)
    denoiser, process = wrapped(network, plug_in)
    x0_BL = text(4, LENGTH)
    found: list[Any] = []
    for small in (False, True):
        small_chunks(small)
        terms = objective(denoiser, process, x0_BL, stratified_draws((1,), range(4), 4))
        found.append((terms, gradients(network, terms.loss)))
    (whole, whole_gradients), (parts, part_gradients) = found
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.nelbo, whole.nelbo, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert part_gradients.keys() == whole_gradients.keys() == {name for name, _ in network.named_parameters()}
    for key, gradient in whole_gradients.items():
        torch.testing.assert_close(part_gradients[key], gradient, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("plug_in", [False, True])
def test_a_bound_in_chunks_is_the_bound(
    plug_in: bool, model: PreTrainedModel, small_chunks: Callable[[bool], None]
) -> None:
    denoiser, process = wrapped(Backbone(model), plug_in)
    x0_BL = text(2, LENGTH)
    found = []
    for small in (False, True):
        small_chunks(small)
        with torch.no_grad():
            streams = [generator(0, "bound", row) for row in range(2)]
            found.append(Estimator(4)(denoiser, process, x0_BL, streams, torch.ones_like(x0_BL, dtype=torch.bool)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_no_two_chunks_of_logits_are_alive_at_once(small_chunks: Callable[[bool], None]) -> None:
    small_chunks(True)
    network = Backbone(build("qwen3"))
    alive: list[weakref.ref[Tensor]] = []
    sizes = []

    def reducer(logits_CV: Tensor, rows: slice) -> Reduced:
        assert [ref for ref in alive if ref() is not None] == []
        log_p_CV = logits_CV.log_softmax(-1)
        alive.extend(weakref.ref(tensor) for tensor in (logits_CV, log_p_CV))
        sizes.append(len(logits_CV))
        nll_C = -log_p_CV[:, 0]
        return Reduced(nll_C.sum(), nll_C)

    x_BL = text(2, LENGTH)
    select_BL = torch.ones_like(x_BL, dtype=torch.bool)
    total, values_N = network(NetworkInput(x_BL, select_BL, torch.zeros(len(x_BL))), reducer)
    total.backward()
    assert sum(sizes) == len(values_N) == x_BL.numel() and max(sizes) == ROWS_A_CHUNK
    torch.testing.assert_close(values_N.sum(), total.detach())
    with torch.no_grad():
        network(NetworkInput(x_BL, select_BL, torch.zeros(len(x_BL))), reducer)


def test_chunks_compute_in_the_precision_of_autocast(small_chunks: Callable[[bool], None]) -> None:
    """The weights and their gradients stay float32; a chunk's logits are bfloat16."""
    network = Backbone(build("qwen3"))
    x_BL = text(2, LENGTH)
    kinds = set()

    def reducer(logits_CV: Tensor, rows: slice) -> Reduced:
        kinds.add(logits_CV.dtype)
        nll_C = -logits_CV.float().log_softmax(-1)[:, 0]
        return Reduced(nll_C.sum(), nll_C)

    found = []
    for small in (False, True):
        small_chunks(small)
        with torch.autocast("cpu", torch.bfloat16):
            total, _ = network(
                NetworkInput(x_BL, torch.ones_like(x_BL, dtype=torch.bool), torch.zeros(len(x_BL))), reducer
            )
        found.append(gradients(network, total))
    assert kinds == {torch.bfloat16}
    for key, gradient in found[0].items():
        assert gradient.dtype == found[1][key].dtype == torch.float32
        torch.testing.assert_close(found[1][key], gradient, rtol=0.05, atol=0.05)


def test_a_scaled_sum_scales_the_gradients(small_chunks: Callable[[bool], None]) -> None:
    small_chunks(True)
    network = Backbone(build("bert"))
    denoiser, process = wrapped(network, False)
    found = []
    for scale in (1.0, 4.0):  # a power of two, which rounds nothing
        terms = MaskedObjective(Elbo(), Even())(denoiser, process, text(4, LENGTH), stratified_draws((1,), range(4), 4))
        found.append(gradients(network, terms.loss * scale))
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], 4.0 * gradient, rtol=0, atol=0)
