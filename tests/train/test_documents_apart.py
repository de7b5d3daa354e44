"""`data.attend: document`: the documents of a packed row do not see each other, in training and in the bound."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dlm.config import Config, HeldOut
from dlm.diffusion.denoiser import AttendingDenoiser, FunctionDenoiser, X0Denoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.network import FunctionNetwork, NetworkInput
from dlm.errors import ConfigError
from dlm.evaluate.chain_rule import evaluate_chain_rule
from dlm.evaluate.likelihood import evaluate_likelihood
from dlm.lm import DiffusionLM
from dlm.model.attention import document_attention_mask, with_attention
from dlm.model.backbone import Backbone
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer
from tests.support.corpora import cut
from tests.support.fixtures import MakeLM, Refused
from tests.support.networks import ask
from tests.support.reporters import AsksToStop
from tests.support.tiny_models import LENGTH, SIZES, build
from tests.support.tiny_models import text as random_text
from tests.support.tiny_runs import altered, bounds, cut_after, describe, resume, same, start, train

APART = {"train": {"format": "text", "path": "none.txt"}, "length": 16, "attend": "document"}


@pytest.fixture(scope="module")
def apart(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    """A model whose documents do not see each other."""
    return make_lm(byte_tokenizer, 16, data=APART)


def described(folder: Path, **data: object) -> Config:
    """A run on many short documents."""
    draw = random.Random(0)
    text = "\n".join("".join(draw.choices("abcdefgh ", k=draw.randint(2, 12))) for _ in range(200))
    config = describe(folder, text)
    source = replace(config.data.train, documents="line")
    return altered(config, "data", train=source, held_out=HeldOut(share=0.2), attend="document", **data)


def test_a_token_sees_its_own_document_and_padding_sees_padding() -> None:
    open_BLL = document_attention_mask(torch.tensor([[4, 4, 5, -1, -1]]))
    assert open_BLL[0].int().tolist() == [[1, 1, 0, 0, 0]] * 2 + [[0, 0, 1, 0, 0]] + [[0, 0, 0, 1, 1]] * 2


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "eurobert"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_documents_of_a_row_are_predicted_as_if_alone(architecture: str, attention: str) -> None:
    """To rounding, where positions are relative."""
    denoiser = X0Denoiser(Backbone(build(architecture, attention=attention), 37), (39,))
    x_BL = random_text(1, LENGTH)
    x_BL[:, -3:] = 37  # padding
    document_BL = torch.tensor([[0] * 5 + [1] * 8 + [-1] * 3])
    together_NV = ask(AttendingDenoiser(denoiser, document_attention_mask(document_BL)), x_BL, None, document_BL >= 0)
    assert together_NV.isfinite()[:, 0].all()
    for part in (slice(0, 5), slice(5, 13)):
        alone_BL = x_BL[:, part]
        alone_NV = ask(denoiser, alone_BL, None, torch.ones_like(alone_BL, dtype=torch.bool))
        assert torch.allclose(together_NV[part], alone_NV, atol=1e-5)


@pytest.mark.parametrize("measure", ["bound", "chain rule"])
@pytest.mark.parametrize("attend", ["row", "document"])
def test_the_bound_of_a_document_is_its_own(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, attend: str, measure: str
) -> None:
    """Where no document sees another, what two of them cost is a sum: changing both is changing one and the other."""
    lm = make_lm(byte_tokenizer, 16, data={**APART, "attend": attend})

    def nats(*documents: str) -> float:
        sequences = cut(byte_tokenizer, documents, "pack", 16)
        if measure == "bound":
            report = evaluate_likelihood(lm, sequences, draws=4)
            assert (report.attend, report.sequences) == (attend, 1)
            return report.nats_per_token * report.tokens
        exact = evaluate_chain_rule(lm, sequences, count=1, batch_size=1, seed=0, draws=4)
        return exact.left_to_right_nats_per_token * exact.tokens

    both = nats("first", "second") + nats("other", "nobody")
    crossed = nats("first", "nobody") + nats("other", "second")
    assert (abs(both - crossed) < 1e-3) == (attend == "document")


def test_rows_of_one_document_need_no_mask(apart: DiffusionLM, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    assert evaluate_likelihood(apart, cut(byte_tokenizer, ["a", "b"], "pad"), draws=2).attend == "row"


def test_a_model_of_padded_rows_scores_rows_as_they_are(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Its texts end at their ends, but it knows no masks of documents."""
    padded = make_lm(byte_tokenizer, 16, data={**APART, "attend": "row", "packing": "pad"})
    assert padded.documents_apart
    for rows in (cut(byte_tokenizer, ["a" * 9, "b" * 9], "pad"), cut(byte_tokenizer, ["a" * 9, "b" * 9], "pack")):
        assert evaluate_likelihood(padded, rows, draws=2).attend == "row"


def test_a_text_is_one_document(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    end = int(byte_tokenizer.eos_token_id or 0)
    row_L = torch.tensor([*b"ab", end, *b"cd"])

    def sure(inputs: NetworkInput) -> Tensor:
        wanted_N = row_L.expand(inputs.ids_BL.shape)[inputs.wanted_BL]
        return torch.nn.functional.one_hot(wanted_N, len(byte_tokenizer)).float().log()

    for attend, text in (("row", (*b"ab", end, *b"cd")), ("document", tuple(b"ab"))):
        lm = make_lm(byte_tokenizer, 5, data={**APART, "length": 5, "attend": attend})
        lm.denoisers.sampling = FunctionDenoiser(sure)
        assert lm.generate()[0].ids == text


@pytest.mark.parametrize("streaming", [False, True])
def test_a_step_is_given_the_documents_of_its_rows(tmp_path: Path, streaming: bool) -> None:
    config = described(tmp_path, streaming=streaming, **({"buffer": 8} if streaming else {}))
    trainer = start(tmp_path, config)
    batch = trainer.batches.batch(1, range(4))
    inputs = trainer.prepare(batch, 1, range(4)).batch.inputs
    assert isinstance(inputs.attention, Tensor)
    assert torch.equal(inputs.attention, document_attention_mask(batch.document_BL))
    assert not inputs.attention.all() and inputs.attention.diagonal(dim1=1, dim2=2).all()
    trainer.step(1)


def test_a_run_resumes_to_the_same_weights_and_scores_as_it_was_trained(tmp_path: Path) -> None:
    config = described(tmp_path)
    whole = train(tmp_path / "whole", config)
    assert same(resume(cut_after(tmp_path / "cut", config, 4)), whole)
    trainer = Trainer(RunFolder.reopen(whole), AsksToStop(1))
    rows = torch.randperm(len(trainer.validation), generator=generator(config.seed, "validation"))[:4].tolist()
    again = evaluate_likelihood(
        DiffusionLM.from_pretrained(whole / "checkpoints/last"),
        trainer.validation,
        rows=rows,
        draws=4,
        seed=config.seed,
    )
    assert again.attend == "document" and again.nats_per_token == pytest.approx(bounds(whole)[-1], rel=1e-5)


def test_annealed_attention_stays_in_the_document() -> None:
    seen: list[Tensor] = []

    def network(inputs: NetworkInput) -> Tensor:
        assert isinstance(inputs.attention, Tensor)
        seen.append(inputs.attention)
        return torch.zeros(int(inputs.wanted_BL.sum()), 4)

    causal_LL = torch.ones(4, 4, dtype=torch.bool).tril()
    document_BLL = document_attention_mask(torch.tensor([[0, 0, 1, 1]]))
    x_BL = torch.zeros(1, 4, dtype=torch.long)
    inputs = NetworkInput(x_BL, x_BL == 0, torch.zeros(1), attention=document_BLL)
    with_attention(FunctionNetwork(network), causal_LL)(inputs)
    assert seen[0] is not None
    assert seen[0][0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("architecture", [name for name in SIZES if name != "modernbert"])
def test_masks_are_understood_by(architecture: str) -> None:
    Backbone(build(architecture), 37).check_masks(LENGTH, "data.attend to row")


def test_local_attention_is_refused(refused: Refused) -> None:
    """With a mask of our own its layers would see the whole document, and elsewhere their window."""
    with refused(ConfigError, "modernbert", "data.attend"):
        Backbone(build("modernbert"), 37).check_masks(LENGTH, "data.attend to row")
