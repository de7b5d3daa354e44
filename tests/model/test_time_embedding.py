"""A network that takes the time: it begins as one that does not, comes back from the disk, and is no plain model."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerBase

from dlm.config import Optim
from dlm.diffusion.draws import generator
from dlm.errors import CheckpointError
from dlm.lm import DiffusionLM
from dlm.model.backbone import Backbone
from dlm.model.checkpoint import Sidecar
from dlm.model.loading import load_model
from dlm.model.locate import SIDECAR
from dlm.model.tensors import TIME_WEIGHTS
from dlm.model.time_embedding import (
    FEATURES,
    TimeEmbedding,
    build_time_embedding,
    load_time_embedding,
    present_name,
    write_time_embedding,
)
from dlm.settings import parse_config
from dlm.train.optim import build_optimizers
from tests.support.fixtures import MakeLM, Refused
from tests.support.networks import ask
from tests.support.tiny_models import ENCODERS, LENGTH, SIZES, SPECIAL, build, text

EVERY = torch.ones(3, LENGTH, dtype=torch.bool)


@pytest.fixture(params=list(SIZES))
def architecture(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def uniform_lm(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    return make_lm(byte_tokenizer, 32, noise={"name": "uniform"})


@pytest.fixture
def saved(uniform_lm: DiffusionLM, tmp_path: Path) -> Path:
    uniform_lm.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def awake(time_embedding: TimeEmbedding) -> TimeEmbedding:
    """A time embedding that has learned something."""
    torch.nn.init.normal_(time_embedding.down.weight, generator=generator("awake"))
    return time_embedding


@torch.no_grad()
def logits(backbone: Backbone, t_B: Tensor | None, padded: bool = False) -> Tensor:
    x_BL = text(3, LENGTH)
    if padded:
        x_BL[1, 10:] = SPECIAL["pad_token_id"]
    found: Tensor = ask(backbone, x_BL, t_B, EVERY & (x_BL != SPECIAL["pad_token_id"]))
    return found


def times(*t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


@pytest.mark.parametrize("padded", [False, True])
def test_a_fresh_time_embedding_leaves_the_network_as_it_was(architecture: str, padded: bool) -> None:
    model = build(architecture)
    plain = Backbone(model, SPECIAL["pad_token_id"])
    timed = Backbone(model, SPECIAL["pad_token_id"], build_time_embedding(model, 0))
    expected = logits(plain, None, padded)
    assert torch.equal(logits(timed, times(0.1, 0.5, 0.9), padded), expected)
    assert torch.equal(logits(plain, times(0.1, 0.5, 0.9), padded), expected)


def test_each_row_is_told_its_own_time(architecture: str) -> None:
    model = build(architecture)
    backbone = Backbone(model, SPECIAL["pad_token_id"], awake(build_time_embedding(model, 0)))
    one, other = (logits(backbone, t).view(3, LENGTH, -1) for t in (times(0.1, 0.5, 0.9), times(0.1, 0.4, 0.9)))
    assert torch.equal(one[[0, 2]], other[[0, 2]]) and not torch.allclose(one[1], other[1])
    assert not torch.allclose(one, logits(backbone, None).view(3, LENGTH, -1))


def test_close_times_are_told_apart_and_the_vector_is_zero_at_first() -> None:
    time_embedding = TimeEmbedding(16)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert (
        not time_embedding(t).any()
        and time_embedding(t).shape == (1001, 16)
        and time_embedding.frequencies.shape == (FEATURES // 2,)
    )
    vectors = awake(time_embedding)(t).detach()
    assert vectors.dtype == torch.float32 and vectors.isfinite().all()
    steps = (vectors[1:] - vectors[:-1]).norm(dim=1)
    assert float(steps.min()) > 1e-3


def test_the_weights_follow_from_the_seed_alone(architecture: str) -> None:
    model = build(architecture)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two, three = (build_time_embedding(model, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.up.weight, three.up.weight)


def test_a_fresh_time_embedding_can_learn(architecture: str) -> None:
    """It begins as zero, and not at a point that it cannot leave."""
    model = build(architecture)
    backbone = Backbone(model, SPECIAL["pad_token_id"], build_time_embedding(model, 0))
    ask(backbone, text(3, LENGTH), times(0.1, 0.5, 0.9), EVERY).logsumexp(-1).sum().backward()
    assert backbone.time_embedding is not None and backbone.time_embedding.down.weight.grad is not None
    assert backbone.time_embedding.down.weight.grad.any() and backbone.time_embedding.down.bias.grad is not None


def test_every_parameter_of_the_time_embedding_has_one_optimizer() -> None:
    model = build("qwen3")
    backbone = Backbone(model, SPECIAL["pad_token_id"], build_time_embedding(model, 0))
    groups = [group for optimizer in build_optimizers(backbone, Optim()) for group in optimizer.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in backbone.parameters())


def test_it_comes_back_from_the_disk(architecture: str, tmp_path: Path) -> None:
    model = build(architecture)
    time_embedding = awake(build_time_embedding(model, 0))
    model.save_pretrained(tmp_path)
    write_time_embedding(tmp_path, time_embedding.state_dict())
    stored = load_model(str(tmp_path), "eager")
    again = Backbone(stored, SPECIAL["pad_token_id"], load_time_embedding(str(tmp_path), stored))
    t_B = times(0.1, 0.5, 0.9)
    assert torch.equal(logits(again, t_B), logits(Backbone(model, SPECIAL["pad_token_id"], time_embedding), t_B))
    assert again.time_embedding is not None and not again.time_embedding.training


def test_plain_transformers_refuses_the_folder(architecture: str, tmp_path: Path) -> None:
    model = build(architecture)
    model.save_pretrained(tmp_path)
    factory = AutoModelForMaskedLM if architecture in ENCODERS else AutoModelForCausalLM
    factory.from_pretrained(tmp_path)
    write_time_embedding(tmp_path, build_time_embedding(model, 0).state_dict())
    with pytest.raises(ValueError, match="dlm-time-conditioned"):
        factory.from_pretrained(tmp_path)


def test_a_saved_model_is_the_same_model(uniform_lm: DiffusionLM, saved: Path) -> None:
    again = DiffusionLM.from_pretrained(saved, attention="eager", device="cpu")
    assert (
        again.time_embedding is not None
        and again.formulation == uniform_lm.formulation
        and again.process == uniform_lm.process
    )
    x_BL = torch.randint(256, (2, 12), generator=generator("again"))
    select_BL, t_B = torch.ones_like(x_BL, dtype=torch.bool), times(0.3, 0.8)
    with torch.inference_mode():
        one, other = (ask(lm.denoisers.scoring, x_BL, t_B, select_BL) for lm in (uniform_lm, again))
        assert torch.equal(one, other)
        assert not torch.equal(one, ask(again.denoisers.scoring, x_BL, times(0.3, 0.5), select_BL))
    again.save_pretrained(saved.parent / "twice")
    for name in (TIME_WEIGHTS, "model.safetensors", SIDECAR, "config.json"):
        assert (saved.parent / "twice" / name).read_bytes() == (saved / name).read_bytes()


def test_a_time_embedding_by_its_earlier_names_is_read(uniform_lm: DiffusionLM, saved: Path) -> None:
    present = load_file(saved / TIME_WEIGHTS)
    earlier = {name.replace("up.", "rise.").replace("down.", "fall."): value for name, value in present.items()}
    assert earlier.keys().isdisjoint(present)
    save_file(earlier, saved / TIME_WEIGHTS)
    found = DiffusionLM.from_pretrained(saved, device="cpu").time_embedding
    assert found is not None and uniform_lm.time_embedding is not None
    for name, value in uniform_lm.time_embedding.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
        assert present_name(f"clock.{name}".replace("up.", "rise.").replace("down.", "fall.")) == (
            f"time_embedding.{name}"
        )
    assert present_name("model.clock.rise.weight") == "model.clock.rise.weight"


def test_the_sidecar_says_why(saved: Path, tmp_path: Path) -> None:
    assert "takes the time" in yaml.safe_load((saved / SIDECAR).read_text())["needs"]
    plain = parse_config({"data": {"train": {"format": "text", "path": "x"}}})
    assert "needs" not in yaml.safe_load(Sidecar.of_run(plain, 1, 0).dump())
    config = json.loads((saved / "config.json").read_text())
    assert (config["model_type"], config["dlm_model_type"]) == ("dlm-time-conditioned", "qwen3")


@pytest.mark.parametrize("damage", ["gone", "cut", "other sizes", "no tensors"])
def test_a_time_embedding_that_cannot_be_read_is_said_in_a_line(saved: Path, refused: Refused, damage: str) -> None:
    file = saved / TIME_WEIGHTS
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "no tensors":
        file.write_bytes(b"")
    else:
        save_file(TimeEmbedding(8).state_dict(), file)
    with refused(CheckpointError, "this model takes the time", TIME_WEIGHTS):
        DiffusionLM.from_pretrained(saved)


def test_a_sidecar_of_before_there_was_a_choice_of_noise(
    tiny_lm: DiffusionLM, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    tiny_lm.save_pretrained(tmp_path / "old")
    file = tmp_path / "old" / SIDECAR
    tree = yaml.safe_load(file.read_text())
    for key in ("noise", "schedule", "time", "parameterization"):
        del tree["config"][key]
    del tree["config"]["model"]["time_conditioning"]
    file.write_text(yaml.safe_dump(tree))
    old = DiffusionLM.from_pretrained(tmp_path / "old", attention="eager")
    assert old.config == tiny_lm.config and old.time_embedding is None and old.formulation == tiny_lm.formulation
    assert old.generate(num=1, length=8) == tiny_lm.generate(num=1, length=8)
