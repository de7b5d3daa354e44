"""A model on a device without float64, such as Apple's MPS, writes and scores as it does on the CPU."""

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from dlm.diffusion.network import has_float64
from dlm.diffusion.unmask import Confidence, EntropyBound, FixedSteps, Threshold, TokenChoice
from dlm.lm import DiffusionLM, Sampler
from dlm.model.time_embedding import TimeEmbedding
from tests.support.fake_device import FAKE, FakeDevice, FakeTensor, fake_device
from tests.support.fixtures import MakeLM

KINDS = {
    "absorbing": {},
    "shifted": {"model": {"shift": True, "init": "random"}},
    "timed": {"model": {"time_conditioning": True}},
    "uniform": {"noise": "uniform"},
    "hybrid": {"noise": {"name": "hybrid", "share": 0.1}},
    "chain": {"noise": "uniform", "time": {"steps": 8}},
}
SAMPLERS = [
    Sampler(),
    Sampler(token=TokenChoice(temperature=0.7, top_k=50, top_p=0.9)),
    Sampler(budget=FixedSteps(3), order=Confidence()),
    Sampler(budget=Threshold(0.05), block_length=3),
    Sampler(budget=EntropyBound(0.5), token=TokenChoice(temperature=0.0)),
]


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    has_float64.cache_clear()
    with fake_device() as made:
        yield made


def moved(lm: DiffusionLM) -> DiffusionLM:
    """The same model on the fake device; the one that was given stays where it is."""
    model = type(lm.model)(lm.model.config)
    model.load_state_dict(lm.model.state_dict())
    embedding = lm.time_embedding
    if embedding is not None:
        embedding = TimeEmbedding(lm.model.config.hidden_size)
        embedding.load_state_dict(lm.time_embedding.state_dict())  # type: ignore[union-attr]
        embedding.requires_grad_(False).to(FAKE)
    there = DiffusionLM(
        model.requires_grad_(False).to(FAKE).eval(),
        lm.tokenizer,
        sidecar=lm.sidecar,
        precision="fp32",
        time_embedding=embedding,
    )
    assert there.device == FAKE and all(isinstance(p, FakeTensor) for p in there.model.parameters())
    return there


def test_the_fake_device_refuses_float64_and_keeps_devices_apart(device: FakeDevice) -> None:
    x = torch.ones(2, device=FAKE)
    assert x.device == FAKE and (x + 1).device == FAKE and torch.equal((x + 1).cpu(), torch.full((2,), 2.0))
    with pytest.raises(TypeError, match="float64"):
        torch.ones(2, dtype=torch.float64, device=FAKE)
    with pytest.raises(TypeError, match="float64"):
        x.double()
    with pytest.raises(TypeError, match="float64"):
        torch.ones(2, dtype=torch.float64).to(FAKE)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(2)
    assert not has_float64(FAKE) and has_float64(torch.device("cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_texts_and_bounds_are_those_of_the_cpu(
    kind: str, make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, device: FakeDevice
) -> None:
    here = make_lm(byte_tokenizer, 16, **KINDS[kind])
    there = moved(here)
    before = device.operations
    plain = here.formulation.counts
    for sampler in SAMPLERS if plain else SAMPLERS[:2]:
        texts = [lm.generate("a", num=2, length=6, sampler=sampler) for lm in (here, there)]
        assert texts[0] == texts[1]
    filled = [lm.infill("a[MASK:2]b[MASK:1]", num=2, draws=4) for lm in (here, there)]
    assert filled[0] == filled[1]
    assert here.nelbo(["some text"], draws=4) == there.nelbo(["some text"], draws=4)
    assert here.score("ab", "cd", draws=4) == there.score("ab", "cd", draws=4)
    assert device.operations > before + 100  # the network was computed there
