"""What an evaluation of a corpus reports."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dlm.evaluate.bootstrap import Interval
from dlm.plain import counted

FEWEST_SEQUENCES = 4
"""Sequences from which on a bootstrap is not cautioned about."""


@dataclass(frozen=True)
class LikelihoodReport:
    """An upper bound of the negative log-likelihood of a corpus.

    Every interval is a 95% bootstrap interval and covers both kinds of error. It is None where there is one sequence
    alone, which says nothing about the choice of the texts.

    Attributes:
        process: The noise of the chain whose bound this is.
        schedule: The schedule of that chain.
        steps: T of that chain; None for continuous time.
        nats_per_token: The bound, including the next two terms.
        prior_nats_per_token: The term at t = 1; not zero where a schedule ends above zero.
        reconstruction_nats_per_token: The term at t = 0; not zero where a schedule begins below one.
        nats_per_token_ci95: Its interval.
        bits_per_token: The bound in bits.
        bits_per_token_ci95: Its interval.
        bits_per_byte: The bound over the UTF-8 bytes of the scored text.
        bits_per_byte_ci95: Its interval.
        perplexity_bound: exp(nats_per_token), an upper bound of the perplexity a token.
        perplexity_bound_ci95: Its interval.
        byte_perplexity_bound: exp(nats a byte), an upper bound of the perplexity a byte.
        byte_perplexity_bound_ci95: Its interval.
        monte_carlo_se: Standard error, in nats a token, from the random masks at this fixed text.
        sampling_se: Standard error, in nats a token, from the choice of the texts in the corpus; None for one sequence.
        resampled: What the bootstrap resamples: documents, or sequences if there are few documents.
        tokens: Tokens scored, including each document's end of text.
        bytes: Bytes of the scored text.
        documents: Documents scored.
        sequences: Sequences that the documents were cut into.
        unknown_tokens: Scored tokens that stand for characters that the tokenizer does not know, some for a whole word
            or run of them; with any of them, the bound is not one of the text.
        dropped_tokens: Tokens not scored because a document was longer than a row.
        dropped_bytes: Their bytes.
        dropped_documents: Documents not scored at all because their prompts fill a row.
        cut_documents: Documents whose ends are not scored.
        draws: Noisy copies of each sequence.
        estimator: How their noise was drawn: exact counts of masks and also the full mask, or times; `exact` of a
            reading without noise, whose bound is the likelihood itself.
        reading: How the model was read: `any-order`, `causal` or `blocks:S`.
        seed: Decides the masks and the bootstrap.
        length: Tokens a sequence.
        packing: How documents became sequences: `pack`, `pad`, `wrap`, or windows that move by a stride.
        given_tokens: Tokens of prompts; the bound is conditional on them, and they are not scored.
        attend: What a token sees: its `row`, or its `document` alone. The bound of a document that stands alone is
            conditional on where it ends, as it is with packing `pad`.
        impossible_tokens: The scored tokens that the model never predicts, each once, with how often it is there; with
            any of them, the bound is infinite.
        context: Of windows that overlap, how many tokens at least are given before what each further one scores.
        words: Words of the scored text, split at white space; None where they were not counted.
        word_perplexity_bound: exp(nats a word), an upper bound of the perplexity a word; None as for `words`.
        word_perplexity_bound_ci95: Its interval.
    """

    process: str
    schedule: str
    steps: int | None
    nats_per_token: float
    prior_nats_per_token: float
    reconstruction_nats_per_token: float
    nats_per_token_ci95: Interval | None
    bits_per_token: float
    bits_per_token_ci95: Interval | None
    bits_per_byte: float
    bits_per_byte_ci95: Interval | None
    perplexity_bound: float
    perplexity_bound_ci95: Interval | None
    byte_perplexity_bound: float
    byte_perplexity_bound_ci95: Interval | None
    monte_carlo_se: float
    sampling_se: float | None
    resampled: str
    tokens: int
    bytes: int
    documents: int
    sequences: int
    unknown_tokens: int
    dropped_tokens: int
    dropped_bytes: int
    dropped_documents: int
    cut_documents: int
    draws: int
    estimator: str
    reading: str
    seed: int
    length: int
    packing: str
    given_tokens: int = 0
    attend: str = "row"
    impossible_tokens: Mapping[str, int] = field(default_factory=dict)
    context: int = 0
    words: int | None = None
    word_perplexity_bound: float | None = None
    word_perplexity_bound_ci95: Interval | None = None

    def cautions(self) -> Iterator[str]:
        """What is to be known of a bound that is not one of the text itself, or not a number.

        Yields:
            A line each.
        """
        if self.sampling_se is None:
            yield (
                "the text is one sequence: the error from the choice of the texts is unknown, and so is every "
                "interval; score more text for one"
            )
        if self.unknown_tokens:
            yield (
                f"{counted(self.unknown_tokens, 'token', 'stand')} for characters that the tokenizer does not know: "
                "the bound is not one of this very text"
            )
        if self.impossible_tokens:
            named = [f"{token!r} ({count:,} times)" for token, count in self.impossible_tokens.items()]
            more = f" and {len(named) - 5} more" if len(named) > 5 else ""
            yield (
                "the bound is infinite: the text holds tokens that the model never predicts: "
                f"{', '.join(named[:5])}{more}; is the mask (--mask-token) the right one?"
            )
        elif math.isinf(self.nats_per_token):
            yield "the bound is infinite: the model gives a token of this text the probability zero"
        elif math.isnan(self.nats_per_token):
            yield "the bound is not a number: the network computes none from this text; are its weights damaged?"
        elif 1 < self.sequences < FEWEST_SEQUENCES:
            yield f"intervals from {self.sequences} sequences are too narrow; score more text for wider, truer ones"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ChainRuleReport:
    """Exact negative log-likelihoods of samplers that reveal one token at a time, on a few sequences.

    Attributes:
        left_to_right_nats_per_token: With the leftmost token first.
        confidence_nats_per_token: With the most confident position first.
        bound_nats_per_token: The bound of random order on the same sequences.
        sequences: Number of sequences.
        tokens: Number of tokens.
    """

    left_to_right_nats_per_token: float
    confidence_nats_per_token: float
    bound_nats_per_token: float
    sequences: int
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
