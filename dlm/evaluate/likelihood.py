"""A corpus in, its likelihood bound out, with honest error bars."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlm.data.batches import Sequences
from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import chain_rule_nll, exact_count_nelbo
from dlm.diffusion.unmask import Confidence, LeftToRight
from dlm.errors import DataError
from dlm.pipeline import DiffusionLM

RESAMPLES = 1000
FEWEST_DOCUMENTS = 30
"""With fewer documents than this, resampling documents says little, and sequences are resampled instead."""

Interval = tuple[float, float]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LikelihoodReport:
    """An upper bound of the negative log-likelihood of a corpus.

    Every interval is a 95% bootstrap interval and holds both kinds of error.

    Attributes:
        nats_per_token: The bound.
        nats_per_token_ci95: Its interval.
        bits_per_token: The bound in bits.
        bits_per_token_ci95: Its interval.
        bits_per_byte: The bound over the UTF-8 bytes of the scored text.
        bits_per_byte_ci95: Its interval.
        perplexity_bound: exp(nats_per_token), an upper bound of the perplexity a token.
        perplexity_bound_ci95: Its interval.
        monte_carlo_se: Standard error, in nats a token, from the random masks at this fixed text.
        sampling_se: Standard error, in nats a token, from which texts happened to be in the corpus.
        resampled: What the bootstrap resamples: documents, or sequences where there are few documents.
        tokens: Tokens scored, each document's end of text among them.
        bytes: Bytes of the text they stand for.
        documents: Documents scored.
        sequences: Sequences they were cut into.
        unknown_tokens: Scored tokens that stand for characters the tokenizer does not know: a bound with
            any is not one of the text.
        dropped_tokens: Tokens not scored because a document was longer than a row.
        dropped_bytes: Their bytes.
        draws: Masked copies of each sequence, besides the fully masked one.
        seed: What the masks and the bootstrap follow from.
        length: Tokens a sequence.
        packing: How documents became sequences.
    """

    nats_per_token: float
    nats_per_token_ci95: Interval
    bits_per_token: float
    bits_per_token_ci95: Interval
    bits_per_byte: float
    bits_per_byte_ci95: Interval
    perplexity_bound: float
    perplexity_bound_ci95: Interval
    monte_carlo_se: float
    sampling_se: float
    resampled: str
    tokens: int
    bytes: int
    documents: int
    sequences: int
    unknown_tokens: int
    dropped_tokens: int
    dropped_bytes: int
    draws: int
    seed: int
    length: int
    packing: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
