"""What weights are held in: the type that was asked for, or the one they are stored in; and what is refused."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dlm.diffusion.unmask import FixedSteps
from dlm.errors import ConfigError, RangeError
from dlm.lm import DiffusionLM, Sampler
from dlm.model.precision import DTYPES, Precision, fastest_precision, in_precision, native_precision, working_precisions
from dlm.model.weights import Dtype, Held
from tests.support import commands
from tests.support.fixtures import MakeLM, Refused
from tests.support.networks import ask
from tests.support.tiny_models import build

CPU = torch.device("cpu")
TEXTS = ["a text", "another text, and a longer one"]


def stored(lm: DiffusionLM, folder: Path, dtype: torch.dtype) -> Path:
    """The model in a folder, as weights of a type; the one that was given is as before."""
    lm.save_pretrained(folder)
    if dtype != torch.float32:
        loaded = DiffusionLM.from_pretrained(folder, device="cpu")
        loaded.model.to(dtype)  # type: ignore[arg-type]  # transformers' types say that it takes a model
        loaded.model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kept", DTYPES)
@pytest.mark.parametrize("asked", ["auto", *DTYPES])
@pytest.mark.parametrize("keys", [{}, {"model": {"time_conditioning": True}}], ids=["plain", "timed"])
def test_weights_are_held_in_what_was_asked_for(
    kept: Precision, asked: Dtype, keys: dict[str, object], make_lm: MakeLM, tmp_path: Path, tiny_lm: DiffusionLM
) -> None:
    exact = make_lm(tiny_lm.tokenizer, 32, **keys)
    lm = DiffusionLM.from_pretrained(stored(exact, tmp_path / "m", DTYPES[kept]), device="cpu", dtype=asked)
    held = kept if asked == "auto" else asked
    assert {p.dtype for p in lm.model.parameters()} == {DTYPES[held]}
    assert lm.precision == (native_precision(CPU) if (asked, kept) == ("auto", "fp32") else held)
    assert lm.nelbo(TEXTS) == pytest.approx(exact.nelbo(TEXTS), rel=1e-6 if held == kept == "fp32" else 0.03)
    assert len(lm.generate(length=4, sampler=Sampler(budget=FixedSteps(2)))[0].ids) == 4
    assert lm.infill("a[MASK:2]b", sampler=Sampler(budget=FixedSteps(2)), draws=2)[0].log_likelihood < 0.0


def test_an_earlier_name_of_the_type_is_still_taken(tiny_lm: DiffusionLM, tmp_path: Path) -> None:
    tiny_lm.save_pretrained(tmp_path / "m")
    assert DiffusionLM.from_pretrained(tmp_path / "m", device="cpu", dtype="bf16").model.dtype == torch.bfloat16
    words = ("sample", tmp_path / "m", "--length", "4", "--device", "cpu")
    texts = [commands.answer(*words, flag, "fp32")["samples"] for flag in ("--precision", "--dtype")]
    assert texts[0] == texts[1]
    assert "--dtype is auto, bf16, fp16, fp32, got int8" in commands.refusal(*words, "--precision", "int8")


@pytest.mark.parametrize(
    ("asked", "held", "expected"),
    [
        ("fp32", torch.float32, ("fp32", "fp32")),
        ("bf16", torch.float32, ("bf16", "bf16")),
        ("auto", torch.float16, ("fp16", "fp16")),
        ("auto", torch.bfloat16, ("bf16", "bf16")),
        ("auto", torch.float32, (native_precision(CPU), "fp32")),
        ("auto", torch.float64, (native_precision(CPU), "fp32")),
    ],
)
def test_a_network_computes_in_what_its_weights_are(
    asked: Precision, held: torch.dtype, expected: tuple[Precision, Precision]
) -> None:
    assert working_precisions(asked, held, CPU) == expected


def test_types_that_no_network_computes_in_are_loaded_as_float32() -> None:
    config = build("qwen3").config
    for kept, held in ((torch.float64, torch.float32), (torch.bfloat16, "auto"), (None, "auto")):
        config.dtype = kept
        assert Held("auto").arguments(config) == {"dtype": held}


def test_weights_go_to_their_device_when_they_are_read() -> None:
    config = build("qwen3").config
    cuda = torch.device("cuda:1")
    assert Held("bf16", None, cuda).arguments(config) == {"dtype": torch.bfloat16, "device_map": {"": "cuda:1"}}


@pytest.mark.parametrize("has_bf16", [False, True])
def test_quantised_weights_compute_in_the_fastest_type(has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, config = torch.device("cuda"), build("qwen3").config
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    fastest = fastest_precision(cuda)
    assert fastest == ("bf16" if has_bf16 else "fp16")
    four, eight = (Held("auto", load, cuda).arguments(config) for load in ("4bit", "8bit"))
    for asked in (four, eight):
        assert asked["dtype"] == DTYPES[fastest] and asked["device_map"] == {"": "cuda"}
    quantised = four["quantization_config"]
    assert (quantised.load_in_4bit, quantised.bnb_4bit_quant_type) == (True, "nf4")
    assert quantised.bnb_4bit_compute_dtype == DTYPES[fastest]
    assert eight["quantization_config"].load_in_8bit


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_quantisation_without_its_package_is_refused(
    command: str, tiny_lm: DiffusionLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_lm.save_pretrained(tmp_path / "m")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    said = commands.refusal(command, tmp_path / "m", "--load", "4bit", "--device", "cpu")
    assert "load 4bit needs the package bitsandbytes: pip install" in said and said.count("\n") == 1
    assert "--load is 4bit or 8bit, got 3bit" in commands.refusal(command, tmp_path / "m", "--load", "3bit")


def test_quantisation_on_a_device_that_it_does_not_know_is_refused(
    monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    package = ModuleType("bitsandbytes")
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    with refused(ConfigError, "load 8bit", "on cuda and not on cpu"):
        Held("auto", "8bit").check()
    package.supported_torch_devices = {"cuda", "cpu"}  # type: ignore[attr-defined]
    Held("auto", "8bit").check()
    with refused(ConfigError, "on cpu, cuda and not on mps"):
        Held("auto", "8bit", torch.device("mps")).check()


def test_a_prediction_beyond_the_range_of_float16_is_no_prediction(tiny_lm: DiffusionLM, refused: Refused) -> None:
    """It would be drawn from, or scored, as if it were one."""

    class Wide(torch.nn.Module):
        def forward(self, inputs: object, reducer: object) -> torch.Tensor:
            return torch.full((1, 3), 300.0) @ torch.full((3, 3), 300.0)

    x_BL = torch.zeros(1, 1, dtype=torch.long)
    wanted_BL = torch.ones_like(x_BL, dtype=torch.bool)
    with torch.inference_mode():
        for precision in ("bf16", "fp32"):
            ask(in_precision(Wide(), precision), x_BL, None, wanted_BL)
        with refused(RangeError, "not finite in fp16", "bf16 or fp32"):
            ask(in_precision(Wide(), "fp16"), x_BL, None, wanted_BL)
