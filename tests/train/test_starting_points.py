"""Runs that begin from a pretrained model: what it knows is there at step 0, and what is new to it is the mean."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dlm.config import Config
from dlm.data.corpus import corpus
from dlm.diffusion.draws import generator
from dlm.errors import CheckpointError, ConfigError
from dlm.evaluate.likelihood import evaluate_likelihood
from dlm.lm import DiffusionLM
from dlm.model.attention import attention_annealing_mask, with_attention
from dlm.model.loading import build_model
from dlm.train.metrics import Silent
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer
from tests.support import pretrained
from tests.support.adapted_runs import describe, initial_bound
from tests.support.fixtures import Refused
from tests.support.networks import ask
from tests.support.pretrained import LENGTH, LETTERS, Kind
from tests.support.tiny_runs import bounds, cut_after, losses, resume, start, train, weights

LN_K = torch.tensor(float(len(LETTERS)), dtype=torch.float64).log().item()


def test_a_pretrained_encoder_begins_far_below_ignorance(encoder: Path, tmp_path: Path) -> None:
    trainer = start(tmp_path, describe(tmp_path, encoder))
    assert initial_bound(trainer) < LN_K - 0.8


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "eurobert"])
def test_an_encoder_keeps_every_weight_and_its_mask(architecture: str, tmp_path: Path) -> None:
    spell = pretrained.tokenizer("encoder")
    special: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 2, "mask_token_id": 3}
    model = build_model(
        architecture,
        {key: value for key, value in pretrained.SIZES.items() if key != "max_position_embeddings"},
        vocabulary=len(spell),
        length=LENGTH,
        special_ids=special,
        attention="eager",
        seed=1,
    )
    model.save_pretrained(tmp_path / "model")
    spell.save_pretrained(tmp_path / "model")
    trainer = start(tmp_path, describe(tmp_path, tmp_path / "model"))
    mine = {name: weight.cpu() for name, weight in trainer.backbone.model.state_dict().items()}
    for name, weight in load_file(tmp_path / "model" / "model.safetensors").items():
        assert torch.equal(mine[name], weight), name
    assert trainer.process.mask_id == spell.mask_token_id


def test_a_decoders_mask_begins_at_the_mean_of_its_rows(decoder: Path, tmp_path: Path) -> None:
    trainer = start(tmp_path, describe(tmp_path, decoder, model={"shift": True}))
    known = load_file(decoder / "model.safetensors")
    size = len(known["model.embed_tokens.weight"])
    mine = {name: weight.cpu() for name, weight in trainer.backbone.model.state_dict().items()}
    assert trainer.process.mask_id >= size
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(mine[name][:size], known[name])
        new_rows = mine[name][size:]
        assert len(new_rows) == 2  # the mask and the padding
        torch.testing.assert_close(new_rows, known[name].mean(0).expand(2, -1))
    assert trainer.backbone.model.config.is_causal is False


def test_the_shift_puts_a_decoders_predictions_in_their_places(decoder: Path, tmp_path: Path) -> None:
    """With everything after a position masked it predicts better than chance; unshifted it would predict the next."""
    bounds = [
        initial_bound(start(tmp_path / str(shift), describe_in(tmp_path / str(shift), decoder, shift)))
        for shift in (False, True)
    ]
    assert bounds[1] < bounds[0] - 0.3


def describe_in(folder: Path, model: Path, shift: bool) -> Config:
    folder.mkdir()
    return describe(folder, model, model={"shift": shift})


def test_an_adapted_decoder_reaches_a_bound_in_fewer_steps_than_a_fresh_one(decoder: Path, tmp_path: Path) -> None:
    found = {}
    for name, model, keys in (
        ("adapted", decoder, {"shift": True, "annealing": 10}),
        ("fresh", None, {}),
    ):
        (tmp_path / name).mkdir()
        run = train(tmp_path / name / "run", describe(tmp_path / name, model, model=keys))
        found[name] = bounds(run)
    adapted, fresh = found["adapted"], found["fresh"]
    assert adapted[0] < fresh[-1]  # 20 steps against 60
    assert adapted[-1] < adapted[0]


def test_an_adapted_run_resumes_without_the_model_it_began_from(decoder: Path, tmp_path: Path) -> None:
    away = pretrained.save("decoder", tmp_path / "away")
    config = describe(
        tmp_path,
        away,
        model={"shift": True, "annealing": 6},
        train={"steps": 6, "save_every": 2, "validate_every": 6, "validate_sequences": 4, "ema": 0.1},
    )
    whole = train(tmp_path / "whole", config)
    short = cut_after(tmp_path / "short", config, 2)
    for file in away.iterdir():
        file.unlink()
    resume(short, config)
    assert weights(short, 6) == weights(whole, 6)
    assert losses(short) == losses(whole)


def test_a_checkpoint_of_an_adapted_decoder_scores_as_its_trainer_did(decoder: Path, tmp_path: Path) -> None:
    config = describe(tmp_path, decoder, model={"shift": True}, train={"steps": 2, "validate_sequences": 8})
    run = train(tmp_path / "run", config)
    said = bounds(run)[0]
    lm = DiffusionLM.from_pretrained(run)
    trainer = Trainer(RunFolder.reopen(run), Silent())
    rows = torch.randperm(len(trainer.validation), generator=generator(config.seed, "validation"))[:8].tolist()
    sequences = corpus(lm.tokenizer, _documents(config), LENGTH, "pack")
    report = evaluate_likelihood(lm, sequences, rows=rows, draws=config.train.validate_draws, seed=config.seed)
    assert report.nats_per_token == pytest.approx(said, rel=1e-5)
    assert len(lm.generate("the ", length=8)[0].ids) <= 8


def _documents(config: Config) -> Any:
    from dlm.data.reading import read_splits

    return read_splits(config.data).validation


# Attention that opens


def test_visible_goes_from_causal_to_full() -> None:
    past_LL = torch.ones(64, 64, dtype=torch.bool).tril()
    assert torch.equal(attention_annealing_mask(64, 0.0, generator(0)), past_LL)
    assert attention_annealing_mask(64, 1.0, generator(0)).all()
    half_LL = attention_annealing_mask(64, 0.5, generator(0))
    assert half_LL[past_LL].all()
    ahead = half_LL[~past_LL].double().mean().item()
    assert abs(ahead - 0.5) < 5 * (0.25 / (64 * 63 / 2)) ** 0.5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_token_sees_what_is_visible_and_nothing_else(decoder: Path, tmp_path: Path, attention: str) -> None:
    backbone = start(tmp_path, describe(tmp_path, decoder, model={"attention": attention})).backbone.train().cpu()
    open_LL = attention_annealing_mask(8, 0.3, generator(1))
    network = with_attention(backbone, open_LL)
    x_BL = torch.arange(1, 9)[None]
    every_BL = torch.ones_like(x_BL, dtype=torch.bool)
    body: Any = backbone.model.base_model
    body.layers = body.layers[:1]  # through two layers a token sees further
    with torch.no_grad():
        before = ask(network, x_BL, None, every_BL)
        for changed in range(8):
            other_BL = x_BL.clone()
            other_BL[0, changed] = 9
            moved_L = (ask(network, other_BL, None, every_BL) - before).abs().amax(-1) > 1e-6
            assert torch.equal(moved_L, open_LL[:, changed]), changed
        other_BL = x_BL.clone()
        other_BL[0, 7] = 9
        assert not torch.equal(ask(backbone, other_BL, None, every_BL)[0], ask(backbone, x_BL, None, every_BL)[0])


def test_padding_stays_unseen_while_attention_opens(decoder: Path, tmp_path: Path) -> None:
    backbone = start(tmp_path, describe(tmp_path, decoder)).backbone.train().cpu()
    open_LL = attention_annealing_mask(6, 0.5, generator(2))
    assert backbone.pad_id is not None
    x_BL = torch.tensor([[1, 2, 3, 4, backbone.pad_id, backbone.pad_id]])
    text_BL = x_BL != backbone.pad_id
    with torch.no_grad():
        padded = ask(with_attention(backbone, open_LL), x_BL, None, text_BL)
        alone = ask(with_attention(backbone, open_LL[:4, :4]), x_BL[:, :4], None, text_BL[:, :4])
        opened = ask(with_attention(backbone, torch.ones_like(open_LL)), x_BL, None, text_BL)
    torch.testing.assert_close(padded, alone)
    assert not torch.allclose(padded, opened)


# What is refused


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("encoder", {"model": {"annealing": 5}}, ("model.annealing", "encoder")),
        ("decoder", {"data": {"length": 41}}, ("data.length", "40", "41")),
        ("decoder", {"data": {"length": 40}, "model": {"shift": True}}, ("data.length", "40", "41")),
        ("decoder", {"model": {"sizes": {"atention_dropout": 0.1}}}, ("atention_dropout", "attention_dropout")),
    ],
)
def test_what_a_pretrained_model_cannot_do(
    refused: Refused,
    kind: Kind,
    changes: dict[str, Any],
    words: tuple[str, ...],
    encoder: Path,
    decoder: Path,
    tmp_path: Path,
) -> None:
    with refused(ConfigError, *words):
        start(tmp_path, describe(tmp_path, encoder if kind == "encoder" else decoder, **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"init": "random"}}, ("model.path", "pretrained")),
        ({"model": {"path": None}}, ("model.path",)),
        ({"tokenizer": {"name": "bytes"}}, ("tokenizer",)),
    ],
)
def test_half_a_starting_point_is_refused(
    refused: Refused, changes: dict[str, Any], words: tuple[str, ...], decoder: Path, tmp_path: Path
) -> None:
    with refused(ConfigError, *words):
        describe(tmp_path, decoder, **changes)


def test_the_tokenizer_of_another_model_is_refused(
    refused: Refused, encoder: Path, decoder: Path, tmp_path: Path
) -> None:
    config = describe(tmp_path, decoder, tokenizer={"name": "pretrained", "path": str(encoder)})
    with refused(ConfigError, "tokenizer.path", "is not the tokenizer of", str(decoder)):
        start(tmp_path, config)


def test_a_run_is_a_starting_point_and_its_adapters_are_none(refused: Refused, decoder: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", describe(tmp_path, decoder, train={"steps": 2}))
    again = start(tmp_path, describe(tmp_path, run))
    best = DiffusionLM.from_pretrained(run).model.state_dict()
    assert all(torch.equal(weight, best[name]) for name, weight in again.backbone.model.state_dict().items())
    tuned = train(tmp_path / "lora", describe(tmp_path, decoder, model={"lora": {}}, train={"steps": 2}))
    with refused(ConfigError, "holds adapters", "dlm merge"):
        start(tmp_path / "next", describe(tmp_path, tuned))


def test_a_model_that_is_not_there_is_one_line(refused: Refused, decoder: Path, tmp_path: Path) -> None:
    config = describe(tmp_path, decoder, model={"path": str(tmp_path / "nowhere")})
    with refused(CheckpointError, str(tmp_path / "nowhere"), "there is no such folder"):
        start(tmp_path, config)
