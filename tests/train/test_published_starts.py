"""Runs that start from published models: trained, written and read back as their publishers use them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from dlm.config import Config
from dlm.lm import DiffusionLM
from dlm.model.public import find
from dlm.train.metrics import Silent
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer
from tests.support import public
from tests.support.adapted_runs import describe
from tests.support.tiny_runs import cut_after, start, train

MAKERS = {"llada": public.llada, "dream": public.dream, "a2d": public.a2d, "diffugpt": public.diffugpt}
KEYS = {"steps": 2, "save_every": 1, "validate_every": 2, "validate_sequences": 4, "batch_size": 2}
TEXT = "the cat sat"
QUESTION = [{"role": "user", "content": "why?"}]


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_run_begins_and_goes_on_as_its_family(name: str, tmp_path: Path) -> None:
    """Its bound before the first step is that of the model, which no other first id, ends or padding would give."""
    base = made(tmp_path, MAKERS[name])
    family, known = find(str(base)), DiffusionLM.from_pretrained(base, dtype="fp32")
    config = describe(tmp_path, base, model={"shift": known.formulation.shift}, train=KEYS)
    first = start(tmp_path, config).lm()
    assert first.nelbo(TEXT) == pytest.approx(known.nelbo(TEXT), rel=1e-5)
    run = cut_after(tmp_path / "run", config, 1)
    for lm in (first, Trainer(RunFolder.reopen(run), Silent()).lm(), DiffusionLM.from_pretrained(run, dtype="fp32")):
        assert lm.sidecar.family is family and family is not None
        assert (lm.layout.first_id, lm.end_ids) == (known.layout.first_id, known.end_ids)
        assert set(lm.end_ids).isdisjoint(lm.process.vocabulary.forbidden)
        assert lm.layout.canvas(QUESTION, 4).ids == known.layout.canvas(QUESTION, 4).ids


def test_a_run_from_a_run_is_of_its_family(tmp_path: Path) -> None:
    base = made(tmp_path, public.llada)
    run = train(tmp_path / "run", describe(tmp_path, base, train=KEYS))
    known, again = DiffusionLM.from_pretrained(run, dtype="fp32"), start(tmp_path, describe(tmp_path, run)).lm()
    assert again.sidecar.family is find(str(base))
    assert again.nelbo(TEXT) == pytest.approx(known.nelbo(TEXT), rel=1e-5)


def test_adapters_of_a_published_model_are_of_its_family(tmp_path: Path) -> None:
    base = made(tmp_path, public.llada)
    trainer = start(tmp_path, describe(tmp_path, base, model={"lora": {"rank": 2}}, train=KEYS))
    trainer.train()
    lm = DiffusionLM.from_pretrained(tmp_path / "start", dtype="fp32")
    assert lm.layout.first_id == 256 and lm.nelbo(TEXT) == pytest.approx(trainer.lm().nelbo(TEXT), rel=1e-4)


def test_what_is_read_first_takes_a_position(tmp_path: Path) -> None:
    """LLaDA's begin of text is read with every row, which its 64 positions must hold too."""
    base = made(tmp_path, public.llada)
    with pytest.raises(Exception, match=r"data.length.*64 tokens.*65"):
        start(tmp_path, describe(tmp_path, base, data={"length": 64}, train=KEYS))


# Chats: one prompt in training and in sampling


@pytest.mark.parametrize("name", [*MAKERS, "decoder"])
def test_a_chat_is_given_in_training_as_in_sampling(name: str, tmp_path: Path) -> None:
    """The network reads the first id by itself; a template that writes it too would have it read twice."""
    base = made(tmp_path, MAKERS.get(name, decoder))
    shift = name in ("dream", "diffugpt", "decoder")
    trainer = start(tmp_path, chats(tmp_path, base, shift))
    rows, lm = trainer.validation.tokens, trainer.lm()
    trained = rows.ids[: rows.given[0]].tolist()
    assert trained == lm.layout.canvas(QUESTION, 4).ids[:-4]
    assert trained[0] != lm.layout.first_id


def made(folder: Path, make: Callable[[Path], Path]) -> Path:
    (folder / "base").mkdir()
    return make(folder / "base")


def decoder(folder: Path) -> Path:
    """A decoder whose template begins with the end of text, which is its begin of text too."""
    config = GPT2Config(vocab_size=260, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(folder)
    roles = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    public.tokenizer(public.CHATML, **roles).save_pretrained(folder)
    return folder


def chats(folder: Path, base: Path, shift: bool) -> Config:
    answer = {"role": "assistant", "content": "so"}
    file = folder / "chats.jsonl"
    file.write_text("".join(json.dumps({"m": [*QUESTION, {**answer, "content": f"so {i}"}]}) + "\n" for i in range(9)))
    source: dict[str, Any] = {"format": "jsonl", "path": str(file), "messages": "m"}
    data = {"train": source, "validation": source, "held_out": {}, "packing": "pad"}
    return describe(folder, base, model={"shift": shift}, data=data, train=KEYS)
