"""The likelihood bound of a corpus, with its error bars."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce
from numpy.typing import NDArray
from torch import Tensor

from dlm.config import Time
from dlm.data.batches import Batch, Sequences
from dlm.diffusion.denoiser import AttendingDenoiser, Denoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import Estimator, Likelihood, chain_rule_nll
from dlm.diffusion.unmask import Confidence, LeftToRight
from dlm.distributed import process_state
from dlm.errors import ConfigError, DataError
from dlm.lm import DiffusionLM
from dlm.model.attention import document_attention_mask
from dlm.model.tokenizer import special_ids

RESAMPLES = 1000
FEWEST_DOCUMENTS = 30
"""With fewer documents than this the bootstrap resamples sequences, because so few documents say little."""

Interval = tuple[float, float]
Floats = NDArray[np.float64]


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
        packing: How documents became sequences.
        given_tokens: Tokens of prompts; the bound is conditional on them, and they are not scored.
        attend: What a token sees: its `row`, or its `document` alone. The bound of a document that stands alone is
            conditional on where it ends, as it is with packing `pad`.
        impossible_tokens: The scored tokens that the model never predicts, each once, with how often it is there; with
            any of them, the bound is infinite.
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


@torch.inference_mode()
def evaluate_likelihood(
    lm: DiffusionLM,
    sequences: Sequences,
    *,
    rows: Sequence[int] | None = None,
    draws: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    time: Time | None = None,
    reading: str | None = None,
) -> LikelihoodReport:
    """Bounds the negative log-likelihood of a corpus by the model's stratified estimator.

    With several processes, all of them must call it; each scores its part, and all get the full report.

    Args:
        lm: The model.
        sequences: The corpus.
        rows: Which of its sequences; all by default.
        draws: Noisy copies of each sequence, even and at least 4; exact counts add the fully masked one.
        batch_size: Sequences a forward; it changes the result only by float rounding.
        seed: Decides the noise and the bootstrap.
        time: The chain whose bound is estimated; by default the one that the model was trained for.
        reading: How the model is read: `any-order`, `causal` or `blocks:S`; by default as its runs are judged.

    Returns:
        The report.

    Raises:
        DataError: There is no sequence.
        ConfigError: The bound asked for is that of continuous time, and the model predicts the mixture form; or the
            model has no such reading.
    """
    reading = reading or lm.formulation.readings.all[0]
    return measure(
        lm, sequences, rows=rows, draws=draws, batch_size=batch_size, seed=seed, time=time, reading=reading
    ).report


@dataclass(frozen=True)
class Measured:
    """A report, and the sums that it was made of.

    Attributes:
        report: The report.
        scores: The sums.
    """

    report: LikelihoodReport
    scores: "Scores"


@torch.inference_mode()
def measure(
    lm: DiffusionLM,
    sequences: Sequences,
    *,
    rows: Sequence[int] | None,
    draws: int,
    batch_size: int,
    seed: int,
    time: Time | None,
    reading: str,
) -> Measured:
    """What `evaluate_likelihood` reports, and the sums behind it, so that two readings can be compared text by text.

    Args:
        lm: The model.
        sequences: The corpus.
        rows: Which of its sequences; None for all.
        draws: Noisy copies of each sequence.
        batch_size: Sequences a forward.
        seed: Decides the noise and the bootstrap.
        time: The chain whose bound is estimated; None for the model's own.
        reading: How the model is read.

    Returns:
        Both.

    Raises:
        DataError: There is no sequence.
    """
    rows = range(len(sequences)) if rows is None else rows
    if not len(rows):
        filled = len(sequences.dropped_whole)
        why = f"all {filled} prompts fill the context of {sequences.length}" if filled else "the text holds no token"
        raise DataError(f"nothing to evaluate: {why}")
    lm.model.eval()
    estimator = estimator_of(lm, draws, time, reading)
    scores = _score(lm, sequences, rows, estimator, batch_size, seed)
    return Measured(_report(lm, sequences, scores, estimator, reading, draws, seed), scores)


@torch.inference_mode()
def evaluate_chain_rule(
    lm: DiffusionLM,
    sequences: Sequences,
    *,
    count: int,
    batch_size: int,
    seed: int,
    draws: int = 16,
    time: Time | None = None,
) -> ChainRuleReport:
    """Compares the bound with exact likelihoods, which take as many network calls as a sequence has tokens.

    Args:
        lm: The model.
        sequences: The corpus.
        count: How many of its sequences, drawn at random.
        batch_size: Sequences a forward.
        seed: Decides the sequences, and the masks of the bound.
        draws: Noisy copies of each sequence for the bound; even, at least 4.
        time: The chain whose bound is estimated; by default the one that the model was trained for.

    Returns:
        The report.

    Raises:
        ConfigError: The model's process does not reveal one token at a time, its network takes the time, or it was not
            trained to be read in any order.
    """
    if not lm.formulation.readings.any_order:
        raise ConfigError(
            "the chain rule is that of the any-order reading, and this model has "
            f"{', '.join(lm.formulation.readings.all)} alone: leave --chain-rule out"
        )
    if not lm.formulation.counts:
        raise ConfigError(
            "the chain rule is that of samplers that reveal one token at a time, from a network that takes no time; "
            f"this model's noise is {lm.process.noise.name}: leave --chain-rule out"
        )
    lm.model.eval()
    estimator = estimator_of(lm, draws, time, "any-order")
    rows = torch.randperm(len(sequences), generator=generator(seed, "chain rule"))[:count].tolist()
    totals = dict.fromkeys(("left", "confidence", "bound", "tokens"), 0.0)
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = sequences.batch(part)
        x0_BL, loss_mask_BL = (x_BL.to(lm.arithmetic_device) for x_BL in (batch.x0_BL, batch.loss_mask_BL))
        denoiser = _denoiser(lm, sequences, batch)
        streams = [generator(seed, "evaluate", row) for row in part]
        totals["left"] += float(chain_rule_nll(denoiser, lm.process, x0_BL, LeftToRight(), loss_mask_BL).sum())
        totals["confidence"] += float(chain_rule_nll(denoiser, lm.process, x0_BL, Confidence(), loss_mask_BL).sum())
        bound_RBL = estimator(denoiser, lm.process, x0_BL, streams, loss_mask_BL)
        totals["bound"] += float(bound_RBL.mean(0).sum())
        totals["tokens"] += float(loss_mask_BL.sum())
    return ChainRuleReport(
        left_to_right_nats_per_token=totals["left"] / totals["tokens"],
        confidence_nats_per_token=totals["confidence"] / totals["tokens"],
        bound_nats_per_token=totals["bound"] / totals["tokens"],
        sequences=len(rows),
        tokens=int(totals["tokens"]),
    )


def _apart(lm: DiffusionLM, sequences: Sequences) -> bool:
    """Whether the documents of a row do not see each other."""
    trained_apart = lm.config is not None and lm.config.data.attend == "document"
    return trained_apart and sequences.packing == "pack"  # else a row has one document


def _denoiser(lm: DiffusionLM, sequences: Sequences, batch: Batch) -> Denoiser:
    """The denoiser of a batch, in which a token sees what it saw in training."""
    if not _apart(lm, sequences):
        return lm.denoiser
    return AttendingDenoiser(lm.denoiser, document_attention_mask(batch.document_BL.to(lm.arithmetic_device)))


def estimator_of(lm: DiffusionLM, draws: int, time: Time | None, reading: str) -> Likelihood:
    """The likelihood of a reading; for any order the bound of the model's own chain, or of the one asked for.

    Args:
        lm: The model.
        draws: Noisy copies of each sequence.
        time: The chain; None for the model's own.
        reading: How the model is read.

    Returns:
        What computes or bounds it.

    Raises:
        ConfigError: The model has no such reading, or the reading no such chain.
    """
    estimator = lm.estimator(reading, draws)
    if time is None:
        return estimator
    if not isinstance(estimator, Estimator):
        raise ConfigError(f"the reading {reading} has no chain of steps: leave --time out, or read any-order alone")
    if time.steps is None and lm.formulation.parameterization == "mixture":
        raise ConfigError("the mixture form has no finite bound in continuous time: give a number of steps")
    return replace(estimator, steps=time.steps)


@dataclass(frozen=True)
class Scores:
    """Sums over a corpus; D documents, S sequences, and two halves of the draws (the first dimension of `nats_RD`)."""

    nats_RD: Tensor
    tokens_D: Tensor
    nats_S: Tensor
    tokens_S: Tensor
    squares_S: Tensor
    """Squared Monte Carlo errors, from the difference of the halves."""
    counts_V: Tensor
    """How often each id is scored."""
    prior: float
    reconstruction: float

    @property
    def by_documents(self) -> bool:
        """Whether the bootstrap resamples documents, because there are enough of them."""
        return int((self.tokens_D > 0).sum()) >= FEWEST_DOCUMENTS

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        """Nats and tokens of what the bootstrap resamples: documents, or sequences."""
        if not self.by_documents:
            return self.nats_S, self.tokens_S
        scored = self.tokens_D > 0
        return self.nats_RD.mean(0)[scored], self.tokens_D[scored]


def _score(
    lm: DiffusionLM, sequences: Sequences, rows: Sequence[int], estimator: Likelihood, batch_size: int, seed: int
) -> Scores:
    """Scores sequences, each process its part, and adds up the parts."""
    nats_RD = torch.zeros(2, len(sequences.tokens.sizes), dtype=torch.float64)
    tokens_D = torch.zeros(len(sequences.tokens.sizes), dtype=torch.float64)
    nats_S, tokens_S, squares_S = torch.zeros(3, len(rows), dtype=torch.float64)
    terms = torch.zeros(2, dtype=torch.float64)  # prior, reconstruction
    counts_V = torch.zeros(lm.process.vocabulary.size, dtype=torch.float64)
    team = process_state()
    batches = [slice(start, start + batch_size) for start in range(0, len(rows), batch_size)]
    rounds = math.ceil(len(batches) / team.num_processes)
    for number in range(team.process_index, rounds * team.num_processes, team.num_processes):
        here = batches[number % len(batches)]
        part = rows[here]
        batch = sequences.batch(part)
        x0_BL, loss_mask_BL = (x_BL.to(lm.arithmetic_device) for x_BL in (batch.x0_BL, batch.loss_mask_BL))
        streams = [generator(seed, "evaluate", row) for row in part]
        terms_RBL = estimator(_denoiser(lm, sequences, batch), lm.process, x0_BL, streams, loss_mask_BL).cpu()
        if number >= len(batches):
            break  # a batch that another process scores too: a sharded network needs all processes in each forward
        scored_N = batch.x0_BL[batch.loss_mask_BL]
        terms[0] += lm.process.prior_nats_S[scored_N].sum().cpu()
        terms[1] += lm.process.reconstruction_nats_S[scored_N].sum().cpu()
        counts_V += torch.bincount(scored_N, minlength=len(counts_V))
        document_N = batch.document_BL[batch.loss_mask_BL]
        nats_RD.index_add_(1, document_N, terms_RBL[:, batch.loss_mask_BL].expand(2, -1))
        tokens_D.index_add_(0, document_N, torch.ones_like(document_N).double())
        first_B, second_B = terms_RBL.sum(2).expand(2, -1)
        nats_S[here] = (first_B + second_B) / 2
        # Two infinite halves have an infinite error, and no difference.
        squares_S[here] = torch.where(nats_S[here].isinf(), math.inf, (first_B - second_B) ** 2 / 4)
        tokens_S[here] = batch.loss_mask_BL.sum(1).double()
    sums = (nats_RD, tokens_D, nats_S, tokens_S, squares_S, counts_V, terms)
    if team.num_processes > 1:  # each process has zeros for the rows of the others
        sums = tuple(reduce(part.to(team.device), "sum").cpu() for part in sums)
    *tensors, terms = sums
    return Scores(*tensors, *terms.tolist())


def _report(
    lm: DiffusionLM,
    sequences: Sequences,
    scores: Scores,
    estimator: Likelihood,
    reading: str,
    draws: int,
    seed: int,
) -> LikelihoodReport:
    """The bound and its intervals from the sums over a corpus."""
    scored = scores.tokens_D > 0
    bytes_D = _scored_bytes(sequences, scores.tokens_D)
    tokens, documents = int(scores.tokens_D.sum()), int(scored.sum())
    nats_U, tokens_U = scores.units
    bytes_U = bytes_D[scored] if scores.by_documents else tokens_U * (bytes_D.sum() / scores.tokens_D.sum())
    per_token = Ratio.of(nats_U, tokens_U, seed)
    per_byte = Ratio.of(nats_U, bytes_U, seed)
    monte_carlo = math.sqrt(float(scores.squares_S.sum())) / tokens
    bit, unknown_id = math.log(2.0), special_ids(lm.tokenizer).unknown
    return LikelihoodReport(
        process=lm.process.noise.name,
        schedule=lm.process.schedule.name,
        steps=estimator.steps,
        nats_per_token=per_token.value,
        prior_nats_per_token=scores.prior / tokens,
        reconstruction_nats_per_token=scores.reconstruction / tokens,
        nats_per_token_ci95=per_token.interval,
        bits_per_token=per_token.value / bit,
        bits_per_token_ci95=_each(lambda x: x / bit, per_token.interval),
        bits_per_byte=per_byte.value / bit,
        bits_per_byte_ci95=_each(lambda x: x / bit, per_byte.interval),
        perplexity_bound=_exp(per_token.value),
        perplexity_bound_ci95=_each(_exp, per_token.interval),
        monte_carlo_se=monte_carlo,
        sampling_se=per_token.se_besides(monte_carlo),
        resampled="documents" if scores.by_documents else "sequences",
        tokens=tokens,
        bytes=round(float(bytes_D.sum())),
        documents=documents,
        sequences=len(scores.nats_S),
        unknown_tokens=0 if unknown_id is None else int(scores.counts_V[unknown_id]),
        dropped_tokens=sequences.dropped_tokens,
        dropped_bytes=round(
            float(sequences.tokens.sizes[scored.numpy()].sum() - bytes_D.sum())
            + int(sequences.tokens.sizes[sequences.dropped_whole].sum())
        ),
        dropped_documents=len(sequences.dropped_whole),
        cut_documents=sequences.cut_documents,
        draws=draws,
        estimator=estimator.method(lm.process),
        reading=reading,
        seed=seed,
        length=sequences.length,
        packing=sequences.packing,
        given_tokens=int(sequences.tokens.given[scored.numpy()].sum()),
        attend="document" if _apart(lm, sequences) else "row",
        impossible_tokens={
            str(lm.tokenizer.convert_ids_to_tokens(id_)): int(scores.counts_V[id_])
            for id_ in lm.process.vocabulary.forbidden
            if scores.counts_V[id_]
        },
    )


@dataclass(frozen=True)
class Ratio:
    """A ratio of two sums over units, with its bootstrap standard error and 95% interval; None for a single unit."""

    value: float
    se: float | None
    interval: Interval | None

    @classmethod
    def of(cls, above_U: Tensor, below_U: Tensor, seed: int) -> "Ratio":
        """The ratio of two sums.

        Args:
            above_U: What each unit adds above, and
            below_U: below.
            seed: Decides the bootstrap; two ratios of the same units resample the same ones.

        Returns:
            The ratio.
        """
        above: Floats = above_U.double().numpy()
        below: Floats = below_U.double().numpy()
        if not np.isfinite(above).all():
            value = float(above.sum())  # infinite, or of two infinite bounds not a number
            return cls(value, math.inf, (value, value))
        value = float(above.sum() / below.sum())
        if len(above) == 1:  # resampled, it is always itself: an error of zero would be a false one
            return cls(value, None, None)
        random = np.random.default_rng(abs(seed))
        even = np.full(len(above), 1.0 / len(above))
        resampled = np.empty(RESAMPLES)
        for i in range(RESAMPLES):  # one at a time: all together would take the memory of a thousand corpora
            weights = random.multinomial(len(above), even)
            resampled[i] = (weights @ above) / (weights @ below)
        low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
        return cls(value, float(resampled.std(ddof=1)), (low, high))

    def se_besides(self, monte_carlo: float) -> float | None:
        """The standard error without that of the masks: the bootstrap sees both at once."""
        if self.se is None or not math.isfinite(monte_carlo):
            return None if self.se is None else math.inf
        return math.sqrt(max(self.se**2 - monte_carlo**2, 0.0))


def _scored_bytes(sequences: Sequences, tokens_D: Tensor) -> Tensor:
    """Bytes of each document's scored part; if only a part was scored, in proportion to its tokens."""
    all_D = torch.from_numpy(np.diff(sequences.tokens.offsets) - sequences.tokens.given)
    return torch.from_numpy(sequences.tokens.sizes.astype(np.float64)) * tokens_D / all_D


def _each(function: Callable[[float], float], interval: Interval | None) -> Interval | None:
    return None if interval is None else (function(interval[0]), function(interval[1]))


def _exp(nats: float) -> float:
    """The exponential; infinity instead of an overflow."""
    return math.exp(nats) if nats < 700.0 else math.inf
