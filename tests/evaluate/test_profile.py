"""Where a bound comes from adds up to the bound: over levels, over positions and over tokens."""

import math

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dlm.data.batches import Sequences
from dlm.diffusion.denoiser import X0Denoiser
from dlm.diffusion.network import FunctionNetwork, NetworkInput
from dlm.evaluate.bootstrap import ratio_of
from dlm.evaluate.likelihood import evaluate_likelihood
from dlm.evaluate.profile import by_level, by_position, by_token
from dlm.lm import DiffusionLM
from dlm.model.tokenizer import forbidden_ids
from tests.support.corpora import DOCUMENTS, LENGTH, Packing, cut
from tests.support.fixtures import MakeLM

TEXTS = [f"text {number} of some words; {number * number}" for number in range(30)]


def rows(sequences: Sequences) -> list[int]:
    return [*range(len(sequences))]


def constant(lm: DiffusionLM) -> DiffusionLM:
    """It predicts every symbol alike."""
    never = forbidden_ids(lm.tokenizer, len(lm.tokenizer))

    def logits(inputs: NetworkInput) -> Tensor:
        return torch.zeros(int(inputs.wanted_BL.sum()), len(lm.tokenizer))

    lm.denoisers.scoring = X0Denoiser(FunctionNetwork(logits), never)
    return lm


@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_constant_predictions_cost_the_same_everywhere(
    packing: Packing, make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    lm, sequences = constant(make_lm(byte_tokenizer, LENGTH)), cut(byte_tokenizer, DOCUMENTS, packing)
    levels = by_level(lm, sequences, rows(sequences), levels=8)
    assert [term.level for term in levels] == pytest.approx([(k + 0.5) / 8 for k in range(8)])
    assert [term.nats.value for term in levels] == pytest.approx([math.log(257)] * 8, abs=1e-6)
    for term in by_token(lm, sequences, [0], reading="any-order", draws=256):
        assert term.nats == pytest.approx(math.log(257), rel=0.6)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"schedule": {"name": "cosine"}},
        {"noise": {"name": "uniform"}},
        {"model": {"time_conditioning": True}},
    ],
    ids=["linear", "cosine", "uniform", "timed"],
)
def test_the_area_under_the_levels_is_the_bound(
    keys: dict[str, object], make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    lm, sequences = make_lm(byte_tokenizer, 32, **keys), cut(byte_tokenizer, TEXTS, "pad", 32)
    report = evaluate_likelihood(lm, sequences, draws=32)
    inner = report.nats_per_token - report.prior_nats_per_token - report.reconstruction_nats_per_token
    levels = by_level(lm, sequences, rows(sequences), levels=48)
    start, end = 0.0, 1.0
    area = sum(term.nats.value for term in levels) / len(levels) * (end - start)
    assert area == pytest.approx(inner, rel=0.04)
    assert all(term.nats.interval and term.nats.interval[0] <= term.nats.value for term in levels)


def test_the_noise_of_a_level_is_the_same_in_any_batch(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    lm, sequences = make_lm(byte_tokenizer, LENGTH), cut(byte_tokenizer, TEXTS, "pack")
    one, other = (by_level(lm, sequences, rows(sequences), levels=4, batch_size=size) for size in (1, 7))
    assert [a.nats.value for a in one] == pytest.approx([b.nats.value for b in other], rel=1e-5)
    assert [a.nats.value for a in one] != pytest.approx(
        [b.nats.value for b in by_level(lm, sequences, rows(sequences), levels=4, seed=1)], rel=1e-5
    )


@pytest.mark.parametrize("readings", ["masked", "joint"])
@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_positions_and_tokens_add_up_to_the_bound(
    readings: str, packing: Packing, make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    lm = make_lm(byte_tokenizer, 40, readings={"name": readings})
    reading, sequences = lm.formulation.readings.all[0], cut(byte_tokenizer, TEXTS, packing, 40)
    report = evaluate_likelihood(lm, sequences, draws=4)
    terms = by_position(lm, sequences, rows(sequences), reading=reading, draws=4, batch_size=3)
    places = [place for term in terms for place in range(term.first, term.last + 1)]
    assert places == [*range(len(places))]
    scored_BL = sequences.batch(rows(sequences)).loss_mask_BL
    count = [int(scored_BL[:, term.first : term.last + 1].sum()) for term in terms]
    assert sum(count) == report.tokens
    mean = sum(n * term.nats.value for n, term in zip(count, terms, strict=True)) / report.tokens
    assert mean == pytest.approx(report.nats_per_token, rel=1e-6)
    tokens = by_token(lm, sequences, rows(sequences), reading=reading, draws=4)
    assert len(tokens) == report.tokens
    assert sum(term.nats for term in tokens) / report.tokens == pytest.approx(report.nats_per_token, rel=1e-6)
    assert "".join(term.text for term in tokens).startswith(TEXTS[0])


def test_a_model_that_reads_from_left_to_right_alone_has_no_levels(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    lm = make_lm(byte_tokenizer, LENGTH, readings={"name": "autoregressive"})
    assert by_level(lm, cut(byte_tokenizer, DOCUMENTS, "pack"), [0]) == ()


def test_a_ratio_over_units_some_of_which_are_empty() -> None:
    found = ratio_of([3.0, 0.0, 1.0], [1.0, 0.0, 3.0], 0)
    assert found.value == 1.0 and found.interval is not None and found == ratio_of([3.0, 1.0], [1.0, 3.0], 0)
    assert math.isnan(ratio_of([0.0], [0.0], 0).value)
