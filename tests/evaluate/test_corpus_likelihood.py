"""A report is a bound of the corpus: it counts right, owns its error, and does not depend on how it was batched."""

import io
import math
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dlm.cli.console import TrainingDisplay
from dlm.config import Characters
from dlm.diffusion.denoiser import X0Denoiser
from dlm.diffusion.network import FunctionNetwork, NetworkInput
from dlm.errors import DataError
from dlm.evaluate.chain_rule import evaluate_chain_rule
from dlm.evaluate.likelihood import evaluate_likelihood
from dlm.evaluate.report import ChainRuleReport
from dlm.lm import DiffusionLM
from dlm.model.tokenizer import build_tokenizer, forbidden_ids
from dlm.train.metrics import RunFacts, StepMetrics, Validation
from tests.support.corpora import DOCUMENTS, LENGTH, Packing, assert_close, cut
from tests.support.fixtures import MakeLM, Refused

SIZES = [len(text.encode()) for text in DOCUMENTS]


FACTS = RunFacts(Path("run"), 1, 1, 1, 1, "cpu", "fp32", "eager", 9, 1)


class Table:
    """A network that knows one distribution for every position, whatever stands around it."""

    def __init__(self, logits_V: Tensor) -> None:
        self.logits_V = logits_V

    def __call__(self, inputs: NetworkInput) -> Tensor:
        select_BL = inputs.wanted_BL
        return self.logits_V.expand(int(select_BL.sum()), -1)


@pytest.fixture
def knows(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> "Knows":
    return Knows(make_lm(byte_tokenizer, LENGTH))


class Knows:
    """A model that gives each byte and the end of text a probability of its own, and looks at nothing."""

    def __init__(self, lm: DiffusionLM) -> None:
        self.lm = lm
        self.never = forbidden_ids(lm.tokenizer, len(lm.tokenizer))

    def of(self, logits_V: Tensor) -> DiffusionLM:
        self.lm.denoisers.scoring = X0Denoiser(FunctionNetwork(Table(logits_V)), self.never)
        return self.lm


# Known answers


@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_constant_logits_cost_the_logarithm_of_the_symbols(knows: Knows, packing: Packing) -> None:
    lm = knows.of(torch.full((len(knows.lm.tokenizer),), 3.0))
    symbols = 257  # the bytes and the end of text; neither the mask nor the padding
    assert len(knows.never) == len(lm.tokenizer) - symbols
    report = evaluate_likelihood(lm, cut(lm.tokenizer, DOCUMENTS, packing), draws=4)
    assert report.nats_per_token == pytest.approx(math.log(symbols), abs=1e-6)
    assert report.bits_per_token == pytest.approx(math.log2(symbols), abs=1e-6)
    assert report.perplexity_bound == pytest.approx(symbols, rel=1e-5)
    assert report.nats_per_token_ci95 == pytest.approx((math.log(symbols),) * 2, abs=1e-6)


@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_independent_tokens_cost_their_own_logarithms_whatever_is_masked(knows: Knows, packing: Packing) -> None:
    """Exactly in expectation; the draws weight the tokens unevenly, and the errors own up to it."""
    logits_V = torch.randn(len(knows.lm.tokenizer), generator=torch.Generator().manual_seed(0))
    lm = knows.of(logits_V)
    sequences = cut(lm.tokenizer, DOCUMENTS, packing)
    report = evaluate_likelihood(lm, sequences, draws=64)
    batch = sequences.batch(range(len(sequences)))
    log_p_V = logits_V.index_fill(0, torch.tensor(knows.never), -torch.inf).log_softmax(0)
    exact = -float(log_p_V[batch.x0_BL[batch.loss_mask_BL]].double().mean())
    assert report.monte_carlo_se > 0.0
    assert abs(report.nats_per_token - exact) < 5.0 * report.monte_carlo_se
    chain = evaluate_chain_rule(lm, sequences, count=len(sequences), batch_size=4, seed=0)
    assert chain.left_to_right_nats_per_token == pytest.approx(exact, rel=1e-6)
    assert chain.confidence_nats_per_token == pytest.approx(exact, rel=1e-6)
    assert chain.tokens == report.tokens and chain.sequences == len(sequences)


def test_one_token_a_row_is_exact(knows: Knows) -> None:
    logits_V = torch.randn(len(knows.lm.tokenizer), generator=torch.Generator().manual_seed(1))
    lm = knows.of(logits_V)
    report = evaluate_likelihood(lm, cut(lm.tokenizer, ["abc", "d"], "pack", 1), draws=4)
    log_p_V = logits_V.index_fill(0, torch.tensor(knows.never), -torch.inf).log_softmax(0)
    ids = [*b"abc", int(lm.tokenizer.eos_token_id or 0), *b"d", int(lm.tokenizer.eos_token_id or 0)]
    assert report.nats_per_token == pytest.approx(-float(log_p_V[ids].double().mean()), rel=1e-6)
    assert report.monte_carlo_se == 0.0 and report.sequences == 6


# Counting


def test_packed_documents_are_scored_whole(tiny_lm: DiffusionLM) -> None:
    report = evaluate_likelihood(tiny_lm, cut(tiny_lm.tokenizer, DOCUMENTS, "pack"), draws=4)
    assert report.tokens == sum(SIZES) + len(SIZES)  # each document's end too
    assert report.bytes == sum(SIZES)
    assert (report.dropped_tokens, report.dropped_bytes, report.unknown_tokens) == (0, 0, 0)
    assert report.documents == len(DOCUMENTS)
    assert report.sequences == math.ceil(report.tokens / LENGTH)
    assert (report.length, report.packing, report.draws) == (LENGTH, "pack", 4)


def test_padded_documents_are_cut_at_the_row_and_the_rest_is_counted(tiny_lm: DiffusionLM) -> None:
    report = evaluate_likelihood(tiny_lm, cut(tiny_lm.tokenizer, DOCUMENTS, "pad"), draws=4)
    assert report.tokens == sum(min(size + 1, LENGTH) for size in SIZES)
    assert report.dropped_tokens == sum(max(size + 1 - LENGTH, 0) for size in SIZES)
    assert report.tokens + report.dropped_tokens == sum(SIZES) + len(SIZES)
    assert report.bytes + report.dropped_bytes == sum(SIZES)
    short = sum(size for size in SIZES if size < LENGTH)
    long_scored = sum(size * LENGTH / (size + 1) for size in SIZES if size >= LENGTH)
    assert report.bytes == pytest.approx(short + long_scored, abs=1)
    assert report.sequences == report.documents == len(DOCUMENTS)


@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_bits_a_byte_are_the_bits_a_token_times_tokens_over_bytes(tiny_lm: DiffusionLM, packing: Packing) -> None:
    report = evaluate_likelihood(tiny_lm, cut(tiny_lm.tokenizer, DOCUMENTS, packing), draws=4)
    assert report.bits_per_byte * report.bytes == pytest.approx(report.bits_per_token * report.tokens, rel=0.01)
    assert report.nats_per_token == pytest.approx(report.bits_per_token * math.log(2))
    assert report.perplexity_bound == pytest.approx(math.exp(report.nats_per_token))
    assert report.nats_per_token_ci95 is not None
    low, high = report.nats_per_token_ci95
    assert low < report.nats_per_token < high


def test_characters_never_seen_are_counted_as_unknown_and_cost_something_finite(make_lm: MakeLM) -> None:
    lm = make_lm(build_tokenizer(Characters(), lambda: ["abc"]), LENGTH)
    report = evaluate_likelihood(lm, cut(lm.tokenizer, ["abxc", "yz", "abc"], "pack"), draws=4)
    assert report.unknown_tokens == 3
    assert math.isfinite(report.nats_per_token) and math.isfinite(report.monte_carlo_se)


def test_a_run_of_unknown_characters_in_one_token_is_one_unknown_token(make_lm: MakeLM) -> None:
    tokenizer = build_tokenizer(Characters(), lambda: ["abc"])
    tokenizer.backend_tokenizer.pre_tokenizer = Split(Regex(r"[a-c]|[^a-c]+"), "isolated")
    lm = make_lm(tokenizer, LENGTH)
    report = evaluate_likelihood(lm, cut(lm.tokenizer, ["abxyzc", "yz"], "pack"), draws=4)
    assert report.unknown_tokens == 2


@pytest.mark.parametrize("times", [1, 60])  # sequences are resampled, and documents
@pytest.mark.filterwarnings("error")
def test_a_token_that_is_never_predicted_makes_every_number_infinite_and_is_named(make_lm: MakeLM, times: int) -> None:
    tokenizer = build_tokenizer(Characters(), lambda: ["abc"])
    tokenizer.add_special_tokens({"mask_token": "b"})
    lm = make_lm(tokenizer, LENGTH)
    report = evaluate_likelihood(lm, cut(lm.tokenizer, ["aabbc", "ac"] * times, "pack"), draws=4)
    assert report.impossible_tokens == {"b": 2 * times}
    assert report.nats_per_token == report.monte_carlo_se == report.sampling_se == math.inf
    assert report.nats_per_token_ci95 == report.bits_per_byte_ci95 == report.perplexity_bound_ci95 == (math.inf,) * 2


def test_some_rows_alone(tiny_lm: DiffusionLM) -> None:
    sequences = cut(tiny_lm.tokenizer, DOCUMENTS, "pack")
    halves = [evaluate_likelihood(tiny_lm, sequences, rows=rows, draws=4) for rows in ([0, 2, 4], [1, 3, 5])]
    whole = evaluate_likelihood(tiny_lm, sequences, rows=range(6), draws=4)
    assert sum(half.tokens for half in halves) == whole.tokens
    total = sum(half.nats_per_token * half.tokens for half in halves)
    assert total == pytest.approx(whole.nats_per_token * whole.tokens, rel=1e-5)


def test_a_report_is_the_pipelines_own_score(tiny_lm: DiffusionLM) -> None:
    """The same bound by two ways: with many draws the two agree within their errors."""
    documents = ["a document", "and another one"]
    report = evaluate_likelihood(tiny_lm, cut(tiny_lm.tokenizer, documents, "pad", 32), draws=256)
    nats = sum(tiny_lm.nelbo(documents, draws=256, seed=7))
    assert abs(nats / report.tokens - report.nats_per_token) < 6.0 * report.monte_carlo_se


# Invariance


@pytest.mark.parametrize("packing", ["pack", "pad"])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_size_changes_nothing(tiny_lm: DiffusionLM, packing: Packing, batch_size: int) -> None:
    sequences = cut(tiny_lm.tokenizer, DOCUMENTS, packing)
    expected = evaluate_likelihood(tiny_lm, sequences, draws=6)
    assert_close(evaluate_likelihood(tiny_lm, sequences, draws=6, batch_size=batch_size), expected)
    chain = evaluate_chain_rule(tiny_lm, sequences, count=3, batch_size=100, seed=0)
    again = evaluate_chain_rule(tiny_lm, sequences, count=3, batch_size=batch_size, seed=0)
    assert asdict(again) == pytest.approx(asdict(chain), rel=1e-4)


def test_the_seed_decides_and_nothing_else_does(tiny_lm: DiffusionLM) -> None:
    sequences = cut(tiny_lm.tokenizer, DOCUMENTS, "pack")
    first = evaluate_likelihood(tiny_lm, sequences, draws=4, seed=1)
    torch.manual_seed(5)
    np.random.seed(5)
    tiny_lm.model.train()
    assert evaluate_likelihood(tiny_lm, sequences, draws=4, seed=1) == first
    assert not tiny_lm.model.training
    other = evaluate_likelihood(tiny_lm, sequences, draws=4, seed=2)
    assert other.nats_per_token != first.nats_per_token
    assert (other.tokens, other.bytes) == (first.tokens, first.bytes)


def test_padding_beyond_the_longest_document_changes_nothing(tiny_lm: DiffusionLM) -> None:
    documents = ["short", "also short"]
    narrow, wide = (
        evaluate_likelihood(tiny_lm, cut(tiny_lm.tokenizer, documents, "pad", length), draws=4) for length in (11, 24)
    )
    assert_close(replace(narrow, length=24), wide)


# Error bars


def test_the_monte_carlo_error_is_the_spread_over_seeds(tiny_lm: DiffusionLM) -> None:
    documents = [f"document number {i} of the corpus" for i in range(24)]
    sequences = cut(tiny_lm.tokenizer, documents, "pack", 32)
    reports = [evaluate_likelihood(tiny_lm, sequences, draws=4, seed=seed) for seed in range(12)]
    spread = float(np.std([report.nats_per_token for report in reports], ddof=1))
    told = math.sqrt(float(np.mean([report.monte_carlo_se**2 for report in reports])))
    assert 0.4 < told / spread < 2.5  # 12 seeds: the spread is known to a factor of 1.7 or so


def test_more_draws_make_less_error(tiny_lm: DiffusionLM) -> None:
    sequences = cut(tiny_lm.tokenizer, [f"document number {i}" for i in range(24)], "pack", 32)
    few, many = (evaluate_likelihood(tiny_lm, sequences, draws=draws).monte_carlo_se for draws in (4, 64))
    assert many < few / 2


def test_documents_are_resampled_where_there_are_enough(knows: Knows) -> None:
    lm = knows.of(torch.randn(len(knows.lm.tokenizer), generator=torch.Generator().manual_seed(2)))
    for count, what in ((29, "sequences"), (30, "documents")):
        report = evaluate_likelihood(lm, cut(lm.tokenizer, [f"{i} text" for i in range(count)], "pack"), draws=4)
        assert (report.resampled, report.documents) == (what, count)


@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_one_sequence_says_nothing_of_the_choice_of_texts(knows: Knows, packing: Packing) -> None:
    """Resampled, it would always be itself, and its interval a point."""
    lm = knows.of(torch.randn(len(knows.lm.tokenizer), generator=torch.Generator().manual_seed(2)))
    report = evaluate_likelihood(lm, cut(lm.tokenizer, ["one text"], packing), draws=4)
    assert report.monte_carlo_se > 0.0 and math.isfinite(report.bits_per_byte)
    assert report.sampling_se is None and report.nats_per_token_ci95 is None and report.bits_per_token_ci95 is None
    assert report.bits_per_byte_ci95 is None and report.perplexity_bound_ci95 is None
    two = evaluate_likelihood(lm, cut(lm.tokenizer, ["one text" * LENGTH], packing, 4 * LENGTH), draws=4)
    assert (two.nats_per_token_ci95 is None) == (packing == "pad")  # a document of three sequences, or of one row


@pytest.mark.parametrize(("text", "has_error"), [("one", False), ("a text of two sequences", True)])
def test_a_run_shows_the_error_that_a_validation_has(tiny_lm: DiffusionLM, text: str, has_error: bool) -> None:
    report, shown = evaluate_likelihood(tiny_lm, cut(tiny_lm.tokenizer, [text], "pack"), draws=4), io.StringIO()
    display = TrainingDisplay(Console(file=shown, width=200), 1)
    display.begin(FACTS)
    shown.truncate(shown.seek(0))
    display.validation(3, Validation({"any-order": report}), best=False)
    error = r" ± \d\.\d{4}" if has_error else ""
    assert re.fullmatch(rf"step 3  validation bound \d\.\d{{4}}{error} nats/token\n", shown.getvalue())


def test_a_run_shows_the_learning_rate_as_a_share_of_its_peak() -> None:
    shown = io.StringIO()
    display = TrainingDisplay(Console(file=shown, width=200), 1)
    display.begin(FACTS)
    display.step(StepMetrics(1, 2.0, None, 0.5, 1.0, 10, 100.0))
    assert "step 1  loss 2.0000  lr 50.0% of its peak  100 tokens/s" in shown.getvalue()


def test_equal_documents_have_no_sampling_error(knows: Knows) -> None:
    lm = knows.of(torch.full((len(knows.lm.tokenizer),), 0.0))
    report = evaluate_likelihood(lm, cut(lm.tokenizer, ["the same text"] * 40, "pad"), draws=4)
    assert report.sampling_se == pytest.approx(0.0, abs=1e-6)


def test_the_sampling_error_is_that_of_a_mean_of_documents(knows: Knows) -> None:
    """Documents of one byte each: the bound is a mean of 100 independent values, and its error is known."""
    logits_V = torch.zeros(len(knows.lm.tokenizer))
    logits_V[ord("a")] = 4.0
    lm = knows.of(logits_V)
    documents = [("a" if i % 2 else "b") + " " * 7 for i in range(100)]
    report = evaluate_likelihood(lm, cut(lm.tokenizer, documents, "pad", 16), draws=64)
    expected = 2.0 / 9.0 / 10.0  # half of the documents cost 4 nats more, over 9 tokens; 100 documents
    assert report.sampling_se == pytest.approx(expected, rel=0.15)


# The chain rule, and what is refused


@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_the_chain_rule_of_a_blind_model_is_the_bound(knows: Knows, packing: Packing) -> None:
    lm = knows.of(torch.full((len(knows.lm.tokenizer),), 1.0))
    report = evaluate_chain_rule(lm, cut(lm.tokenizer, DOCUMENTS, packing), count=4, batch_size=3, seed=0)
    assert isinstance(report, ChainRuleReport) and report.sequences == 4
    for value in (
        report.left_to_right_nats_per_token,
        report.confidence_nats_per_token,
        report.bound_nats_per_token,
    ):
        assert value == pytest.approx(math.log(257), abs=1e-5)


def test_the_chain_rule_orders_differ_for_a_model_that_sees(tiny_lm: DiffusionLM) -> None:
    sequences = cut(tiny_lm.tokenizer, DOCUMENTS, "pad")
    report = evaluate_chain_rule(tiny_lm, sequences, count=100, batch_size=3, seed=0)
    assert report.sequences == len(DOCUMENTS)
    assert report.left_to_right_nats_per_token != report.confidence_nats_per_token
    assert report.to_dict() == asdict(report)


@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_nothing_is_an_error(tiny_lm: DiffusionLM, refused: Refused, packing: Packing) -> None:
    sequences = cut(tiny_lm.tokenizer, ["a"], packing)
    with refused(DataError, "nothing to evaluate"):
        evaluate_likelihood(tiny_lm, sequences, rows=[])
