"""Runs of every choice of readings: they train, validate, resume, and leave what plain transformers reads."""

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from dlm.cli.console import TrainingDisplay
from dlm.config import Config
from dlm.diffusion.formulation import Formulation
from dlm.diffusion.memory import causal_input
from dlm.diffusion.readings import AnyReadings, Autoregressive, Blocks, Joint, Masked
from dlm.errors import CheckpointError, ConfigError
from dlm.evaluate.likelihood import evaluate_likelihood
from dlm.lm import DiffusionLM
from dlm.model import checkpoint
from dlm.model.checkpoint import Sidecar
from dlm.model.public import FAMILIES
from dlm.model.tokenizer import Affixes, before_id
from dlm.settings import dump_config, parse_config
from dlm.train.metrics import Validation
from dlm.train.run import RunFolder
from dlm.train.start import Origin, check_goes_on
from dlm.train.trainer import Trainer
from tests.support import adapted_runs, pretrained
from tests.support.processes import together
from tests.support.reporters import Notes
from tests.support.tiny_runs import (
    altered,
    back_to,
    bounds,
    describe,
    lines,
    losses,
    resized,
    resume,
    same,
    start,
    train,
    write,
)

CHOICES: dict[str, AnyReadings] = {
    "autoregressive": Autoregressive(),
    "blocks": Blocks(4),
    "block-causal": Blocks(4, "block-causal"),
    "joint": Joint((2, 4)),
}


def read(config: Config, name: str) -> Config:
    """The configuration with other readings; a sample would be written by another reading."""
    return altered(replace(config, readings=CHOICES[name]), "train", sample_length=0)


@pytest.fixture(params=CHOICES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_run_resumes_bit_for_bit_whatever_its_readings(name: str, tmp_path: Path) -> None:
    config = read(describe(tmp_path, micro_batch_size=2, ema=0.1), name)
    run = train(tmp_path / "run", config)
    other = train(tmp_path / "other", config)
    back_to(other, 2)
    resume(other)
    assert same(run, other) and len(losses(run)) == 8


@pytest.mark.parametrize("name", ["autoregressive", "joint"])
def test_micro_batches_and_activations_computed_twice_change_nothing(name: str, tmp_path: Path) -> None:
    config = resized(read(describe(tmp_path), name), attention_dropout=0.0)
    whole = train(tmp_path / "whole", config)
    for changes in ({"micro_batch_size": 1}, {"gradient_checkpointing": True}):
        other = train(tmp_path / next(iter(changes)), altered(config, "train", **changes))
        assert losses(other) == pytest.approx(losses(whole), abs=2e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["joint"])
def test_a_run_in_half_precision_computes_near_what_one_in_whole_does(
    attention: str, name: str, tmp_path: Path
) -> None:
    config = resized(altered(read(describe(tmp_path), name), "model", attention=attention), attention_dropout=0.0)
    whole = train(tmp_path / "whole", config)
    AcceleratorState._reset_state()  # which has one precision a process
    half = train(tmp_path / "half", altered(config, "train", precision="bf16"))
    AcceleratorState._reset_state()
    assert losses(half) == pytest.approx(losses(whole), rel=0.05)
    assert losses(half) != losses(whole)


@pytest.mark.long
@pytest.mark.parametrize("name", ["autoregressive", "joint"])
def test_two_processes_are_the_run_of_one(name: str, tmp_path: Path) -> None:
    config = read(describe(tmp_path, micro_batch_size=2), name)
    config = altered(config, "optim", name="adamw")
    alone = train(tmp_path / "alone", config)
    done = together("train", write(config, tmp_path / "c.yaml"), "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=1e-5)
    assert bounds(tmp_path / "run") == pytest.approx(bounds(alone), abs=1e-5)
    assert [line.get("next_token") for line in lines(tmp_path / "run")] == pytest.approx(
        [line.get("next_token") for line in lines(alone)], abs=1e-5
    )


def test_every_validation_measures_every_reading_and_the_first_decides(name: str, tmp_path: Path) -> None:
    config = read(describe(tmp_path), name)
    run = train(tmp_path / "run", config)
    found = [line for line in lines(run) if "validation" in line]
    assert len(found) == 2
    for line in found:
        assert line["validation"]["reading"] == config.readings.all[0]
        if len(config.readings.all) == 1:
            assert "readings" not in line
        else:
            assert list(line["readings"]) == list(config.readings.all)
            assert line["readings"][config.readings.all[0]] == line["validation"]
            assert all(report["reading"] == key for key, report in line["readings"].items())
    assert (run / "checkpoints/best").resolve().name == f"step-{[4, 8][bounds(run).index(min(bounds(run)))]:06d}"
    steps = [line for line in lines(run) if "loss" in line]
    assert all(("next_token" in line) == (name == "joint") for line in steps)


def test_the_loss_of_a_joint_run_shows_its_next_tokens(tmp_path: Path) -> None:
    config = read(describe(tmp_path), "joint")
    assert config.objective.loss.weighted
    for line in lines(train(tmp_path / "run", config)):
        if "loss" in line:
            assert 0.0 < line["next_token"] < line["loss"]


@pytest.mark.parametrize("kind", ["pad", "streaming", "supervised", "chats", "context"])
@pytest.mark.parametrize("name", ["autoregressive", "joint"])
def test_a_run_reads_what_any_run_reads(kind: str, name: str, tmp_path: Path) -> None:
    config = read(describe(tmp_path), name)
    tree = dump_config(config)
    documents = [{"prompt": "ab" * (i % 5), "response": "ba" * (i % 7 + 1)} for i in range(60)]
    if kind in ("supervised", "chats"):
        path = tmp_path / "rows.jsonl"
        rows: list[dict[str, Any]] = [*documents]
        source: dict[str, Any] = {"format": "jsonl", "path": str(path), "prompt": "prompt", "response": "response"}
        if kind == "chats":
            pytest.importorskip("jinja2")
            rows = [
                {
                    "messages": [
                        {"role": "user", "content": d["prompt"]},
                        {"role": "assistant", "content": d["response"]},
                    ]
                }
                for d in documents
            ]
            source = {"format": "jsonl", "path": str(path), "messages": "messages"}
            spell = pretrained.tokenizer("decoder")
            spell.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
            spell.save_pretrained(tmp_path / "tokenizer")
            tree["tokenizer"] = {"name": "pretrained", "path": str(tmp_path / "tokenizer")}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        held_out = {"by": "documents", "share": 0.3}
        tree["data"] |= {"train": source, "packing": "pad", "length": 24, "held_out": held_out}
    elif kind == "context":
        if name == "autoregressive":
            pytest.skip("it is refused")
        tree["data"]["context"] = 0.5
    else:
        path = tmp_path / "many.txt"
        path.write_text("\n".join("ab" * (i % 9 + 1) for i in range(80)), encoding="utf-8")
        tree["data"]["train"] = {"format": "text", "path": str(path), "documents": "line"}
        tree["data"]["held_out"] = {"by": "documents", "share": 0.3}
        tree["data"] |= {"packing": "pad"} if kind == "pad" else {"streaming": True, "buffer": 4}
    run = train(tmp_path / "run", parse_config(tree))
    assert len(losses(run)) == 8 and all(torch.tensor([*losses(run).values()]).isfinite())
    assert len(bounds(run)) == 2


@pytest.mark.long
@pytest.mark.parametrize("name", ["autoregressive", "joint"])
def test_a_causal_decoder_begins_with_what_it_knows_of_next_tokens(name: str, tmp_path: Path) -> None:
    source = pretrained.save("decoder", tmp_path / "decoder")
    config = adapted_runs.describe(tmp_path, source, train={"sample_length": 0})
    trainer = start(tmp_path, replace(config, readings=CHOICES[name]))
    found = evaluate_likelihood(trainer.lm(), trainer.validation, rows=range(32)).nats_per_token
    ids = trainer.validation.batch(list(range(32))).x0_BL
    plain = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        loss = plain(input_ids=ids, labels=ids).loss
    assert found == pytest.approx(float(loss), abs=0.2)  # which has no prediction of the first token
    assert found < 1.2  # a network that knows nothing takes 3


@pytest.mark.long
@pytest.mark.parametrize("name", ["autoregressive", "joint"])
def test_adapters_of_a_decoder_learn_and_merge_into_a_plain_model(name: str, tmp_path: Path) -> None:
    source = pretrained.save("decoder", tmp_path / "decoder")
    short = {"steps": 8, "validate_every": 4, "sample_length": 0}
    config = adapted_runs.describe(tmp_path, source, model={"lora": adapted_runs.LORA}, train=short)
    run = train(tmp_path / "run", replace(config, readings=CHOICES[name]))
    lm = DiffusionLM.from_pretrained(run, device="cpu")
    lm.save_pretrained(tmp_path / "merged")
    assert_plain(tmp_path / "merged", lm)


@pytest.mark.parametrize("name", ["autoregressive", "joint"])
def test_a_checkpoint_is_a_plain_causal_model(name: str, tmp_path: Path) -> None:
    run = train(tmp_path / "run", read(describe(tmp_path), name))
    folder = run / "checkpoints/last"
    lm = DiffusionLM.from_pretrained(folder, device="cpu")
    assert_plain(folder, lm)
    lm.save_pretrained(tmp_path / "saved")
    assert_plain(tmp_path / "saved", DiffusionLM.from_pretrained(tmp_path / "saved", device="cpu"))
    assert lm.formulation.readings == CHOICES[name]


def assert_plain(folder: Path, lm: DiffusionLM) -> None:
    """Plain transformers reads the folder as the causal reading, and writes from its beginning no id but of text."""
    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    spell = AutoTokenizer.from_pretrained(folder)
    for config in (plain.config, plain.generation_config):
        assert config.bos_token_id == lm.layout.before_id == spell.eos_token_id
        assert (config.eos_token_id, config.pad_token_id) == (spell.eos_token_id, spell.pad_token_id)
    assert lm.layout.before_id is not None
    x0_BL = torch.tensor([spell("abab", add_special_tokens=False)["input_ids"]])
    inputs = causal_input(x0_BL, torch.ones_like(x0_BL, dtype=torch.bool), lm.layout.before_id)
    with torch.no_grad():
        ours = lm.denoisers.scoring(inputs)
        logits = plain(input_ids=inputs.ids_BL).logits[0]
        logits[:, plain.generation_config.suppress_tokens] = -torch.inf
    torch.testing.assert_close(logits.log_softmax(-1), ours, rtol=1e-4, atol=1e-5)
    set_seed(0)
    written = plain.generate(do_sample=True, max_new_tokens=24, num_return_sequences=32, top_k=0)
    first = (written[:, 1:] != spell.eos_token_id).long().cumprod(1).bool()
    assert (written[:, 0] == plain.config.bos_token_id).all()
    assert not torch.isin(written[:, 1:][first], torch.tensor(lm.process.vocabulary.forbidden)).any()


def test_an_earlier_reader_refuses_what_it_would_misread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for readings, version in ((Masked(), 3), *((choice, 5) for choice in CHOICES.values())):
        sidecar = Sidecar(Formulation(readings=readings), 16, 258)
        tree = yaml.safe_load(sidecar.dump())
        assert tree["format"] == version
        assert Sidecar.parse(tree) == sidecar
    (tmp_path / "dlm.yaml").write_text(sidecar.dump(), encoding="utf-8")
    monkeypatch.setattr(checkpoint, "FORMAT", 4)
    with pytest.raises(CheckpointError, match="has format 5, this dlm reads up to 4: install a newer dlm"):
        checkpoint.read_sidecar(str(tmp_path))


def test_a_checkpoint_that_does_not_name_its_readings_is_masked() -> None:
    tree = yaml.safe_load(Sidecar(Formulation(), 16, 258).dump())
    del tree["formulation"]["readings"]
    assert Sidecar.parse(tree).formulation.readings == Masked()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"data": {"attend": "document"}}, "data.attend: .*set data.attend to row"),
        ({"data": {"context": 0.5}}, "data.context: .*set it to 0"),
        ({"data": {"length": 3}}, "a block of 4 tokens is longer than data.length 3"),
        ({"model": {"shift": True}}, "readings: blocks goes with .*predictions in place"),
        ({"model": {"time_conditioning": True}}, "readings: blocks goes with .*takes no time"),
        ({"model": {"attention": "flex_attention"}}, "needs model.attention auto, eager or sdpa, got flex_attention"),
        ({"noise": "uniform"}, "readings: blocks goes with absorbing noise"),
        ({"time": {"steps": 8}}, "readings: blocks goes with .*continuous time"),
    ],
)
def test_choices_that_cannot_work_are_refused(changes: Mapping[str, Any], why: str, tmp_path: Path) -> None:
    tree = dump_config(read(describe(tmp_path), "blocks"))
    for part, keys in changes.items():
        tree[part] = {**tree[part], **keys} if isinstance(keys, Mapping) else keys
    with pytest.raises(ConfigError, match=why) as caught:
        parse_config(tree)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("readings", "why"),
    [
        ({"name": "blocks", "size": 0}, "at least one token, got 0"),
        ({"name": "joint", "sizes": [2, 2]}, "name each once"),
        ({"name": "joint", "next_token": 0}, "next_token must be above zero"),
        ({"name": "blocks", "memory": "none"}, "readings.memory"),
        ("causal", "readings.name: unknown choice 'causal'; valid: masked, autoregressive, blocks, joint"),
    ],
)
def test_readings_that_are_none_are_refused(readings: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_config({**dump_config(describe(tmp_path)), "readings": readings})


def test_an_encoder_and_learned_positions_are_refused_before_the_first_step(tmp_path: Path) -> None:
    config = read(describe(tmp_path), "joint")
    for architecture, sizes, why in (
        ("bert", {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}, "is an encoder"),
        ("gpt2", {"n_layer": 1, "n_embd": 16, "n_head": 2}, "has a learned vector for each position"),
    ):
        changed = altered(config, "model", architecture=architecture, sizes=sizes)
        with pytest.raises(ConfigError, match=why):
            start(tmp_path / architecture, changed)


def test_other_readings_may_go_on_from_masked_diffusion_and_it_is_said(tmp_path: Path) -> None:
    masked = train(tmp_path / "masked", describe(tmp_path))
    tree = dump_config(read(describe(tmp_path), "joint"))
    tree["model"] = {**tree["model"], "init": "pretrained", "path": str(masked), "sizes": {}}
    tree["tokenizer"] = {"name": "pretrained", "path": str(masked)}
    notes = Notes()
    Trainer(RunFolder.create(tmp_path / "run", parse_config(tree)), notes)
    assert any("readings.name masked, and this run has joint" in told for told in notes.told)


def test_a_model_that_is_read_one_position_earlier_takes_no_memory(tmp_path: Path) -> None:
    config = read(describe(tmp_path), "joint")
    led = next(family for family in FAMILIES if family.first is not None)
    shifted = next(family for family in FAMILIES if family.shift)
    plain = next(family for family in FAMILIES if not (family.shift or family.first or family.blocks))
    check_goes_on(config, Origin("plain", plain.formulation("plain"), family=plain))
    for family, why in ((led, "need a token before every text|are read one position earlier"), (shifted, "earlier")):
        with pytest.raises(ConfigError, match=f"readings: .*({why}).*set it to masked, got joint"):
            check_goes_on(config, Origin("published", family.formulation("published"), family=family))


def test_a_row_that_has_a_begin_of_text_already_stands_behind_an_end() -> None:
    spell = pretrained.tokenizer("decoder")
    spell.add_special_tokens({"bos_token": "<begin>", "pad_token": "<pad>", "mask_token": "<mask>"})
    begin, end = spell.bos_token_id, spell.eos_token_id
    assert before_id(spell) == before_id(spell, Affixes()) == begin
    assert before_id(spell, Affixes(prefix=(begin,))) == end
    spell.bos_token = None
    assert before_id(spell) == end


def test_trackers_and_the_screen_hear_of_every_reading(tmp_path: Path) -> None:
    screens: dict[str, str] = {}
    told: dict[str, Validation] = {}

    class Listens(TrainingDisplay):
        def validation(self, step: int, validation: Validation, best: bool) -> None:
            told[kind] = validation
            super().validation(step, validation, best)

    for kind in ("autoregressive", "joint"):
        shown = io.StringIO()
        train(tmp_path / kind, read(describe(tmp_path, steps=4), kind), Listens(Console(file=shown, width=300), 2))
        screens[kind] = shown.getvalue()
    alone, several = told["autoregressive"], told["joint"]
    assert list(alone.tracked()) == ["validation_nelbo"]
    names = ["causal", "any-order", "blocks-2", "blocks-4"]
    assert list(several.tracked()) == ["validation_nelbo", *(f"validation_nelbo/{each}" for each in names)]
    assert several.tracked()["validation_nelbo"] == several.reports["causal"].nats_per_token
    assert "validation loss" in screens["autoregressive"] and "above" not in screens["autoregressive"]
    assert "next token" in screens["joint"] and "next token" not in screens["autoregressive"]
    others = [*several.reports][1:]
    assert all(f"{name} {several.reports[name].nats_per_token:.4f}" in screens["joint"] for name in others)
