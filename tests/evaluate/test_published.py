"""Corpora scored as papers score them: overlapping windows, full rows, words and bytes of the published text."""

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from dlm.data.corpus import corpus
from dlm.data.documents import Plain
from dlm.data.windows import Strided, Wrapped
from dlm.evaluate.likelihood import evaluate_likelihood
from dlm.evaluate.readings import evaluate_readings
from dlm.evaluate.requests import Continuations
from dlm.lm import DiffusionLM
from dlm.lm.layout import Encoded
from tests.support.commands import dlm
from tests.support.corpora import cut
from tests.support.fixtures import MakeLM

TEXTS = [
    "to be or not to be, that is the question: whether 'tis nobler",
    "short",
    "and by a sleep to say we end the heart",
]
PTB = ["the company 's profit was $ N million", "they do n't sell N \\/ N", "a <unk>"]


@pytest.fixture(scope="module")
def joint(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    return make_lm(byte_tokenizer, 16, readings={"name": "joint", "sizes": [4]})


def conditional(lm: DiffusionLM, given: list[int], ids: list[int], reading: str) -> float:
    (found,) = next(lm.score_each({0: Continuations([(Encoded(given), ids)])}, reading=reading))
    return -found.log_likelihood


@pytest.mark.parametrize("stride", [1, 5, 16])
def test_windows_of_an_exact_reading_are_the_chain_rule(joint: DiffusionLM, stride: int) -> None:
    sequences = Strided.of(cut(joint.tokenizer, TEXTS, "pack"), stride)
    total = 0.0
    for begin, end in zip(sequences.tokens.offsets, sequences.tokens.offsets[1:], strict=False):
        ids, done = sequences.tokens.ids[begin:end].tolist(), 0
        while done < len(ids):
            stop = min(done + (stride if done else 16), len(ids))
            total += conditional(joint, ids[max(stop - 16, 0) : done], ids[done:stop], "causal")
            done = stop
    report = evaluate_likelihood(joint, sequences, reading="causal")
    assert report.tokens == sum(len(text) + 1 for text in TEXTS) == len(sequences.tokens)
    assert report.nats_per_token * report.tokens == pytest.approx(total, rel=1e-6)


def test_windows_of_a_bidirectional_bound_of_one_token_are_exact(tiny_lm: DiffusionLM) -> None:
    """With stride 1 each later token is one mask at the end of a clean window, which a bound has no slack on."""
    sequences = Strided.of(cut(tiny_lm.tokenizer, TEXTS[:1], "pack", 32), 1)
    ids = sequences.tokens.ids.tolist()
    forbidden = torch.tensor(list(tiny_lm.process.vocabulary.forbidden))
    later = 0.0
    for place in range(32, len(ids)):
        row = torch.tensor([[*ids[place - 31 : place], tiny_lm.process.mask_id]])
        with torch.inference_mode():
            logits = tiny_lm.model(input_ids=row).logits[0, -1].index_fill(0, forbidden, -math.inf)
        later -= float(logits.log_softmax(0)[ids[place]])
    whole, first = (evaluate_likelihood(tiny_lm, sequences, rows=rows) for rows in (None, [0]))
    found = whole.nats_per_token * whole.tokens - first.nats_per_token * first.tokens
    assert found == pytest.approx(later, rel=1e-5)
    assert whole.monte_carlo_se * whole.tokens == pytest.approx(first.monte_carlo_se * first.tokens, rel=1e-3)


def test_more_context_never_changes_what_is_scored(joint: DiffusionLM) -> None:
    reports = [
        evaluate_likelihood(joint, Strided.of(cut(joint.tokenizer, TEXTS, packing), stride), draws=4)
        for packing in ("pack", "pad")
        for stride in (2, 16)
    ]
    assert {(report.tokens, report.bytes, report.documents, report.dropped_tokens) for report in reports} == {
        (sum(len(text) + 1 for text in TEXTS), sum(map(len, TEXTS)), 3, 0)
    }
    assert reports[0].nats_per_token == reports[2].nats_per_token != reports[1].nats_per_token


def test_a_perplexity_a_unit_is_of_all_nats(tiny_lm: DiffusionLM) -> None:
    documents = Plain(Dataset.from_dict({"text": TEXTS}))
    sequences = cut(tiny_lm.tokenizer, TEXTS, "pack", 32)
    report = evaluate_readings(tiny_lm, sequences, words_D=documents.words(), draws=4).first
    nats, words = report.nats_per_token * report.tokens, sum(len(text.split()) for text in TEXTS)
    assert report.words == words == 24
    assert report.word_perplexity_bound == pytest.approx(math.exp(nats / words), rel=1e-9)
    assert report.byte_perplexity_bound == pytest.approx(math.exp(nats / report.bytes), rel=1e-9)
    assert math.log2(report.byte_perplexity_bound) == pytest.approx(report.bits_per_byte)
    assert report.word_perplexity_bound is not None and report.word_perplexity_bound_ci95 is not None
    assert report.word_perplexity_bound_ci95[0] < report.word_perplexity_bound < report.word_perplexity_bound_ci95[1]
    assert evaluate_likelihood(tiny_lm, sequences, draws=4).words is None


def test_a_text_that_is_scored_in_part_counts_its_part(tiny_lm: DiffusionLM) -> None:
    """Cut after 32 of its 62 tokens, a document of twelve words has 32/62 of them."""
    documents = Plain(Dataset.from_dict({"text": TEXTS[:1]}))
    report = evaluate_readings(tiny_lm, cut(tiny_lm.tokenizer, TEXTS[:1], "pad", 32), words_D=documents.words()).first
    assert report.words == round(len(TEXTS[0].split()) * 32 / (len(TEXTS[0]) + 1))


def test_wrapped_rows_account_for_every_byte(tiny_lm: DiffusionLM) -> None:
    sequences = Wrapped.of(cut(tiny_lm.tokenizer, [*TEXTS, "x" * 40, "last"], "pad", 32))
    report = evaluate_likelihood(tiny_lm, sequences, draws=4)
    assert report.tokens % 32 == 0 and report.tokens + report.dropped_tokens == len(sequences.tokens)
    assert abs(report.bytes + report.dropped_bytes - int(sequences.tokens.sizes.sum())) <= 1
    assert (report.packing, report.dropped_documents, report.cut_documents) == ("wrap", 1, 1)


def test_the_command_scores_as_papers_do(tmp_path: Path, tiny_lm: DiffusionLM) -> None:
    model, file = tmp_path / "model", tmp_path / "ptb.jsonl"
    tiny_lm.save_pretrained(model)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in PTB))
    words = ["eval", model, "--data", file, "--draws", "4"]
    plain, found = (
        json.loads(dlm(*words, "--json", *more)[0]) for more in ([], ["--detokenize", "ptb", "--per", "word"])
    )
    written = ["the company's profit was $1 million", "they don't sell 1 / N", "a ?"]
    assert found["tokens"] == sum(len(text) + 1 for text in written) < plain["tokens"]
    assert found["bytes"] == plain["bytes"] == sum(map(len, PTB))  # of the text as it was published
    assert found["words"] == sum(len(text.split()) for text in PTB) and plain["words"] is None
    by_hand = evaluate_likelihood(tiny_lm, cut(tiny_lm.tokenizer, written, "pack", 32), draws=4)
    nats = by_hand.nats_per_token * by_hand.tokens
    assert found["nats_per_token"] == pytest.approx(by_hand.nats_per_token, rel=1e-6)
    assert found["word_perplexity_bound"] == pytest.approx(math.exp(nats / found["words"]), rel=1e-6)
    out, _ = dlm(*words, "--per", "word")
    assert out.splitlines()[1].startswith("ppl/word") and f"{found['words']} words, " in out
    out, _ = dlm(*words, "--per", "byte")
    first, *_, last = out.splitlines()[1:6]
    assert first.split()[:2] == ["ppl/byte", f"{plain['byte_perplexity_bound']:.4f}"] and last.startswith("perplexity")
    out, _ = dlm(*words, "--wrap")
    assert "(wrap)" in out and "dropped          " in out
    out, _ = dlm(*words, "--stride", "4")
    assert "(windows that move by 4)" in out
    assert "given            the 28 tokens or more before what each further window scores, clean" in out


def test_a_corpus_in_rows_of_its_own_is_what_it_was(tiny_lm: DiffusionLM) -> None:
    """A stride of a whole row over documents that fit one is packing `pad`."""
    documents = Plain(Dataset.from_dict({"text": ["one", "two words"]}))
    padded = corpus(tiny_lm.tokenizer, documents, 32, "pad")
    one, other = (evaluate_likelihood(tiny_lm, rows, draws=4) for rows in (padded, Strided.of(padded, 32)))
    assert one.nats_per_token == other.nats_per_token
