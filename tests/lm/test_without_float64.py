"""A model on a device without float64, such as Apple's MPS, writes and scores as it does on the CPU."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from dlm.diffusion import network
from dlm.diffusion.devices import has_float64
from dlm.diffusion.reuse import Reuse
from dlm.diffusion.unmask import Confidence, EntropyBound, FixedSteps, Threshold, TokenChoice
from dlm.lm import DiffusionLM, Sampler
from dlm.lm.search import LengthSearch
from dlm.model.loading import load_model
from dlm.model.time_embedding import TimeEmbedding
from dlm.model.weights import Held
from tests.support import commands
from tests.support.fake_device import FAKE, FakeDevice, FakeTensor, fake_device
from tests.support.fixtures import MakeLM

KINDS: dict[str, dict[str, Any]] = {
    "absorbing": {},
    "shifted": {"model": {"shift": True}},
    "timed": {"model": {"time_conditioning": True}},
    "hybrid": {"noise": {"name": "hybrid", "share": 0.1}},
    "chain": {"noise": "uniform", "time": {"steps": 4}},
}
STEPS = Sampler(budget=FixedSteps(3), token=TokenChoice(temperature=0.7, top_k=50, top_p=0.9))
OF_MASKS = [
    Sampler(),
    Sampler(budget=FixedSteps(3), order=Confidence()),
    Sampler(budget=Threshold(0.05), block_length=3),
    Sampler(budget=EntropyBound(0.5), token=TokenChoice(temperature=0.0)),
]


pytestmark = pytest.mark.skipif(
    torch.__version__ < torch.torch_version.TorchVersion("2.12"),
    reason="torch 2.11 makes no views of a tensor subclass in inference mode",
)


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    yield from made(float64=False)


@pytest.fixture
def with_float64() -> Iterator[FakeDevice]:
    yield from made(float64=True)


def made(*, float64: bool) -> Iterator[FakeDevice]:
    has_float64.cache_clear()
    with fake_device(float64=float64) as device:
        yield device
    has_float64.cache_clear()


def moved(lm: DiffusionLM) -> DiffusionLM:
    """The same model on the fake device; the one that was given stays where it is."""
    model: Any = type(lm.model)(lm.model.config)
    model.load_state_dict(lm.model.state_dict())
    embedding = None
    if lm.time_embedding is not None:
        embedding = TimeEmbedding(lm.model.config.hidden_size)
        embedding.load_state_dict(lm.time_embedding.state_dict())
        embedding.to(FAKE)
    model.to(FAKE).eval()
    there = DiffusionLM(model, lm.tokenizer, sidecar=lm.sidecar, precision="fp32", time_embedding=embedding)
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
    here = make_lm(byte_tokenizer, 12, **KINDS[kind])
    there = moved(here)
    before = device.operations
    for sampler in [STEPS, *OF_MASKS] if kind == "absorbing" else [STEPS]:
        texts = [lm.generate("a", num=2, length=4, sampler=sampler) for lm in (here, there)]
        assert texts[0] == texts[1]
    filled = [lm.infill("a[MASK:2]b[MASK:1]", num=2, draws=2, sampler=STEPS) for lm in (here, there)]
    assert filled[0] == filled[1]
    if here.process.noise.masks:
        search = LengthSearch(effort=3)
        searched = [lm.infill("a[MASK:0-2]b", draws=2, search=search, sampler=STEPS) for lm in (here, there)]
        assert searched[0] == searched[1]
    if kind == "absorbing":
        again = [lm.generate("a", num=2, length=4, sampler=Sampler(reuse=Reuse("dual", 2))) for lm in (here, there)]
        assert again[0] == again[1]
    assert here.nelbo(["some text"], draws=2) == there.nelbo(["some text"], draws=2)
    assert device.operations > before + 100  # the network was computed there


READINGS: dict[str, dict[str, Any]] = {
    "autoregressive": {"readings": {"name": "autoregressive"}},
    "joint": {"readings": {"name": "joint", "sizes": [4]}},
    "blocks": {"readings": {"name": "blocks", "size": 4}},
}


@pytest.mark.parametrize("kind", READINGS)
def test_every_reading_is_that_of_the_cpu(
    kind: str, make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, device: FakeDevice
) -> None:
    """Next tokens, blocks behind a cache, and rereading."""
    here = make_lm(byte_tokenizer, 12, **READINGS[kind])
    there = moved(here)
    before = device.operations
    texts = [lm.generate("a", length=6) for lm in (here, there)]
    assert texts[0] == texts[1]
    for reading in here.formulation.readings.all:
        nats = [lm.nelbo(["some text"], draws=2, reading=reading) for lm in (here, there)]
        assert nats[0] == nats[1]
    assert here.score("a", "bc") == there.score("a", "bc")
    if here.formulation.readings.any_order:
        filled = [lm.infill("a[MASK:2]b[MASK:0-2]c", num=2, draws=2) for lm in (here, there)]
        assert filled[0] == filled[1]
    assert device.operations > before + 100


@pytest.mark.parametrize(("kind", "drafts"), [("autoregressive", 0), ("joint", 0), ("joint", 3)])
def test_next_tokens_are_drawn_where_the_network_is(
    kind: str, drafts: int, make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, with_float64: FakeDevice
) -> None:
    """A device with float64, such as any of CUDA, draws by itself: nothing there may meet what is on the CPU."""
    here = make_lm(byte_tokenizer, 12, **READINGS[kind])
    there = moved(here)
    texts = [lm.generate("a", num=3, length=6, sampler=Sampler(drafts=drafts)) for lm in (here, there)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", ["absorbing", "chain"])
def test_without_the_cpus_help_float64_is_refused(
    kind: str,
    make_lm: MakeLM,
    byte_tokenizer: PreTrainedTokenizerBase,
    device: FakeDevice,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device is strict enough to notice."""
    lm = moved(make_lm(byte_tokenizer, 12, **KINDS[kind]))
    monkeypatch.setattr(network, "has_float64", lambda device: True)
    monkeypatch.setattr("dlm.lm.denoisers.has_float64", lambda device: True)
    for work in (lambda: lm.generate(length=4, sampler=STEPS), lambda: lm.nelbo("text", draws=2)):
        with pytest.raises(TypeError, match="float64"):
            work()


@pytest.mark.long
def test_the_commands_take_it(
    tmp_path: Path,
    make_lm: MakeLM,
    byte_tokenizer: PreTrainedTokenizerBase,
    device: FakeDevice,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights are read on the CPU here: that transformers reads them to a device needs a real one."""

    def load(path: str, attention: str, held: Held) -> Any:
        model: Any = load_model(path, attention, held=replace(held, device=torch.device("cpu")))
        return model.to(held.device)

    monkeypatch.setattr("dlm.lm.loading.load_model", load)
    model = tmp_path / "model"
    make_lm(byte_tokenizer, 8).save_pretrained(model)
    (tmp_path / "text.txt").write_text("some words to score. " * 2)
    (tmp_path / "holes.jsonl").write_text('{"text": "a[MASK:2]b"}\n')
    for words, texts, numbers in (
        (("sample", model, "--steps", "3", "--dtype", "fp32"), ["samples"], []),
        (("infill", model, "--file", tmp_path / "holes.jsonl", "--dtype", "fp32"), ["text"], ["log_likelihood"]),
        (("eval", model, "--data", tmp_path / "text.txt", "--draws", "4"), ["tokens"], ["nats_per_token"]),
    ):
        before = device.operations
        here, there = (commands.answer(*words, "--device", name) for name in ("cpu", "mps"))
        assert [here[key] for key in texts] == [there[key] for key in texts]
        assert [here[key] for key in numbers] == pytest.approx([there[key] for key in numbers])
        assert device.operations > before + 100
