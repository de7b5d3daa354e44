"""Adapters learn and nothing else does; what they learned is a small file, and merges into a plain model."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from dlm.config import Config, Lora
from dlm.errors import CheckpointError, ConfigError
from dlm.lm import DiffusionLM
from dlm.model.loading import load_model
from dlm.model.lora import add_adapter
from dlm.train.metrics import Silent
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer
from tests.support import pretrained
from tests.support.adapted_runs import LORA, describe, initial_bound, with_lora
from tests.support.commands import dlm, refusal
from tests.support.fixtures import MakeLM, Refused
from tests.support.tiny_runs import bounds, cut_after, resume, start, train, weights


@pytest.fixture(scope="module")
def adapted(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps."""
    folder = tmp_path_factory.mktemp("adapted")
    config = with_lora(folder, decoder, train={"steps": 40, "save_every": 10, "ema": 0.1})
    return train(folder / "run", config)


def test_only_the_adapters_and_the_new_rows_learn(decoder: Path, tmp_path: Path) -> None:
    trainer = start(tmp_path, with_lora(tmp_path, decoder, optim={"name": "muon"}))
    before = {name: p.detach().clone() for name, p in trainer.backbone.named_parameters()}
    for step in (1, 2, 3):
        trainer.step(step)
    moved = {name for name, p in trainer.backbone.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name or "trainable_tokens" in name}
    assert len(moved) == 2 * 2 * 7 + 1  # two matrices for each of seven projections in two layers, and the rows
    assert sum(before[name].numel() for name in moved) < 0.5 * sum(p.numel() for p in before.values())


def test_adapters_begin_as_the_model_they_belong_to(decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = start(tmp_path / "plain", describe(tmp_path, decoder, model={"shift": True}))
    assert initial_bound(start(tmp_path, with_lora(tmp_path, decoder))) == pytest.approx(initial_bound(plain), rel=1e-6)


def test_adapters_learn(adapted: Path) -> None:
    found = bounds(adapted)
    assert found[-1] < found[0] - 0.05


def test_a_checkpoint_holds_the_adapters_alone(adapted: Path) -> None:
    folder = adapted / "checkpoints" / "last"
    names = {path.name for path in folder.iterdir()}
    assert "adapter_model.safetensors" in names and "model.safetensors" not in names and "README.md" not in names
    assert all("lora_" in name or "token" in name for name in load_file(folder / "adapter_model.safetensors"))


def test_a_merged_model_is_plain_and_says_the_same(adapted: Path, tmp_path: Path) -> None:
    dlm("merge", adapted, tmp_path / "merged")
    whole, merged = (DiffusionLM.from_pretrained(path) for path in (adapted, tmp_path / "merged"))
    texts = ["the cat sat on a mat", "dog ran far"]
    assert merged.nelbo(texts) == pytest.approx(whole.nelbo(texts), rel=1e-6)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not [name for name, _ in plain.named_parameters() if "lora" in name]
    assert "exists already" in " ".join(refusal("merge", adapted, tmp_path / "merged").split())


def test_a_checkpoint_scores_as_its_trainer_did(adapted: Path) -> None:
    """In the trainer the adapters stand beside the weights, in a loaded model they are merged."""
    lm = DiffusionLM.from_pretrained(adapted / "checkpoints" / "last")
    trainer = Trainer(RunFolder.reopen(adapted), Silent())
    assert trainer.ema
    with trainer.ema.applied(trainer.backbone):
        inside = trainer.lm()
        texts = ["the cat sat on a mat", "dog ran far"]
        assert lm.nelbo(texts) == pytest.approx(inside.nelbo(texts), rel=1e-4)


@pytest.mark.parametrize("ema", [0.0, 0.1])
def test_a_run_of_adapters_resumes_bit_for_bit(ema: float, decoder: Path, tmp_path: Path) -> None:
    config = with_lora(
        tmp_path,
        decoder,
        {**LORA, "dropout": 0.2},
        train={"steps": 6, "save_every": 2, "validate_every": 6, "ema": ema},
    )
    whole = train(tmp_path / "whole", config)
    assert weights(resume(cut_after(tmp_path / "cut", config, 2)), 6) == weights(whole, 6)


@pytest.mark.parametrize("more_rows", [1, 0])
def test_a_mask_named_by_its_id_is_read_as_it_was_trained(more_rows: int, tmp_path: Path) -> None:
    """A row that the model has already is its trained mask; beyond its rows it is new, and learned."""
    spell = pretrained.tokenizer("decoder")
    mask = len(spell)
    torch.manual_seed(0)
    sizes = {**pretrained.SIZES, "num_key_value_heads": 2, "initializer_range": 0.5}
    base: Any = LlamaForCausalLM(LlamaConfig(vocab_size=mask + more_rows, **sizes))
    base.save_pretrained(tmp_path / "base")
    spell.save_pretrained(tmp_path / "base")
    named = {"name": "pretrained", "path": str(tmp_path / "base"), "mask_token": mask}
    keys = {"steps": 2, "validate_every": 2, "validate_sequences": 4}
    run = train(tmp_path / "run", with_lora(tmp_path, tmp_path / "base", tokenizer=named, train=keys))
    inside, outside = Trainer(RunFolder.reopen(run), Silent()).lm(), DiffusionLM.from_pretrained(run, dtype="fp32")
    rows: Any = outside.model.get_input_embeddings().weight
    assert torch.equal(rows[mask], base.get_input_embeddings().weight[mask]) if more_rows else rows[mask].any()
    ids_BL = torch.tensor([[1, 2, mask, 3, mask]])
    with torch.inference_mode():
        found, expected = (lm.model.cpu().eval()(ids_BL).logits for lm in (outside, inside))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    learned = json.loads((run / "checkpoints/last/adapter_config.json").read_text())["trainable_token_indices"]
    assert (mask in learned["embed_tokens"]) is not bool(more_rows)


# What is refused


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder, model: with_lora(folder, model, {"targets": ["nothing"]}), ("model.lora", "nothing")),
        (lambda folder, model: describe(folder, None, model={"lora": LORA}), ("model.lora", "pretrained")),
        (lambda folder, model: timed(folder, model), ("model.lora", "time")),
    ],
)
def test_what_adapters_cannot_do(
    refused: Refused, make: Callable[[Path, Path], Config], words: tuple[str, ...], decoder: Path, tmp_path: Path
) -> None:
    with refused(ConfigError, *words):
        start(tmp_path, make(tmp_path, decoder))


def timed(folder: Path, model: Path) -> Config:
    return describe(folder, model, model={"lora": LORA, "time_conditioning": True})


def test_damaged_adapters_are_named(refused: Refused, decoder: Path, tmp_path: Path) -> None:
    run = cut_after(tmp_path / "run", with_lora(tmp_path, decoder), 2)
    (run / "checkpoints/step-000002/adapter_model.safetensors").write_bytes(b"junk")
    with refused(CheckpointError, "step-000002", "is damaged, remove its checkpoint"):
        resume(run)


def test_adapters_whose_model_is_gone_are_one_line(refused: Refused, tmp_path: Path) -> None:
    model = pretrained.save("encoder", tmp_path / "model")
    keys = {"steps": 2, "validate_every": 2, "validate_sequences": 4}
    run = train(tmp_path / "run", describe(tmp_path, model, model={"lora": LORA}, train=keys))
    model.rename(tmp_path / "elsewhere")
    with refused(CheckpointError, "adapters", str(model)):
        DiffusionLM.from_pretrained(run)


def test_adapters_as_peft_writes_them_take_the_rest_from_their_model(
    refused: Refused, make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Two files: no tokenizer, and nothing that says how the model was trained."""
    base, plain = tmp_path / "base", tmp_path / "plain"
    make_lm(byte_tokenizer, 32).save_pretrained(base)
    adapter: Any = add_adapter(load_model(str(base), "eager"), Lora(rank=2), str(base), [], 0)
    adapter.save_pretrained(str(plain))
    (plain / "README.md").unlink()
    assert {file.name for file in plain.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    lm, whole = DiffusionLM.from_pretrained(plain), DiffusionLM.from_pretrained(base)
    assert lm.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    assert (lm.context, lm.formulation) == (32, whole.formulation)
    assert lm.nelbo(["abc"]) == whole.nelbo(["abc"])  # fresh adapters change nothing
    dlm("merge", plain, tmp_path / "merged")
    assert DiffusionLM.from_pretrained(tmp_path / "merged").context == 32
    for file in base.glob("tokenizer*"):
        file.unlink()
    with refused(CheckpointError, str(base), "tokenizer"):
        DiffusionLM.from_pretrained(plain)


def test_adapters_of_a_model_that_was_trained_again_are_refused(refused: Refused, tmp_path: Path) -> None:
    """Also where they go on; those that know no checksum, as earlier ones do, load."""
    keys = {"steps": 2, "save_every": 1, "validate_every": 2, "validate_sequences": 4}
    plain = describe(tmp_path, pretrained.save("decoder", tmp_path / "model"), model={"shift": True}, train=keys)
    base = train(tmp_path / "base", plain)
    run = cut_after(tmp_path / "run", with_lora(tmp_path, base, train=keys), 1)
    assert DiffusionLM.from_pretrained(run).sidecar.base_checksum is None  # merged, it needs no other model
    shutil.rmtree(base)
    train(base, plain)
    before = DiffusionLM.from_pretrained(run).nelbo("the cat sat")  # the same weights again
    shutil.rmtree(base)
    train(base, replace(plain, seed=7))
    with refused(CheckpointError, "adapters of", str(base.resolve()), "have changed since"):
        DiffusionLM.from_pretrained(run)
    with refused(CheckpointError, "adapters of", str(base), "have changed since"):
        resume(run)
    for sidecar in run.glob("checkpoints/step-*/dlm.yaml"):
        sidecar.write_text(re.sub("base_checksum: .*\n", "", sidecar.read_text()))
    assert DiffusionLM.from_pretrained(run).nelbo("the cat sat") != before
