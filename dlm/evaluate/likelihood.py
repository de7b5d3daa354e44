"""The likelihood bound of a corpus, with its error bars."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate.utils import reduce
from numpy.typing import NDArray
from torch import Tensor

from dlm.config import Time
from dlm.data.batches import Batch, Sequences
from dlm.diffusion.denoiser import AttendingDenoiser, Denoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import Estimator, Likelihood
from dlm.distributed import process_state
from dlm.errors import ConfigError, DataError
from dlm.evaluate.bootstrap import Interval, Ratio
from dlm.evaluate.report import LikelihoodReport
from dlm.lm import DiffusionLM
from dlm.model.attention import document_attention_mask
from dlm.model.tokenizer import special_ids

FEWEST_DOCUMENTS = 30
"""With fewer documents than this the bootstrap resamples sequences, because so few documents say little."""


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
    words_D: NDArray[np.int64] | None = None,
    told: Callable[[int], None] | None = None,
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
        words_D: Words of each document, for the perplexity a word; None for none.
        told: Called with the number of sequences that are done, before every batch.

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
    scores = _score(lm, sequences, rows, estimator, batch_size, seed, told)
    return Measured(_report(lm, sequences, scores, estimator, reading, draws, seed, words_D), scores)


def _apart(lm: DiffusionLM, sequences: Sequences) -> bool:
    """Whether the documents of a row do not see each other."""
    trained_apart = lm.config is not None and lm.config.data.attend == "document"
    return trained_apart and sequences.packing == "pack"  # else a row has one document


def denoiser_of(lm: DiffusionLM, sequences: Sequences, batch: Batch) -> Denoiser:
    """The denoiser of a batch, in which a token sees what it saw in training.

    Args:
        lm: The model.
        sequences: The corpus.
        batch: Some of its sequences.

    Returns:
        The denoiser, for these sequences alone.
    """
    if not _apart(lm, sequences):
        return lm.denoisers.scoring
    return AttendingDenoiser(lm.denoisers.scoring, document_attention_mask(batch.document_BL.to(lm.arithmetic_device)))


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

    def shared_out(self, counts_D: Tensor) -> Tensor:
        """Bytes or words of what the bootstrap resamples, as they are counted by documents."""
        if self.by_documents:
            return counts_D[self.tokens_D > 0]
        return self.tokens_S * (counts_D.sum() / self.tokens_D.sum())


def _score(
    lm: DiffusionLM,
    sequences: Sequences,
    rows: Sequence[int],
    estimator: Likelihood,
    batch_size: int,
    seed: int,
    told: Callable[[int], None] | None,
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
        if told:
            told(min(number * batch_size, len(rows)))
        batch = sequences.batch(part)
        x0_BL, loss_mask_BL = (x_BL.to(lm.arithmetic_device) for x_BL in (batch.x0_BL, batch.loss_mask_BL))
        streams = [generator(seed, "evaluate", row) for row in part]
        terms_RBL = estimator(denoiser_of(lm, sequences, batch), lm.process, x0_BL, streams, loss_mask_BL).cpu()
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
    words_D: NDArray[np.int64] | None,
) -> LikelihoodReport:
    """The bound and its intervals from the sums over a corpus."""
    scored = scores.tokens_D > 0
    bytes_D = _scored_part(sequences.tokens.sizes, sequences, scores.tokens_D)
    tokens, documents = int(scores.tokens_D.sum()), int(scored.sum())
    nats_U, tokens_U = scores.units
    per_token = Ratio.of(nats_U, tokens_U, seed)
    per_byte = Ratio.of(nats_U, scores.shared_out(bytes_D), seed)
    words_U = None if words_D is None else scores.shared_out(_scored_part(words_D, sequences, scores.tokens_D))
    per_word = None if words_U is None else Ratio.of(nats_U, words_U, seed)
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
        packing=sequences.arrangement,
        context=sequences.context,
        words=None if words_U is None else round(float(words_U.sum())),
        word_perplexity_bound=None if per_word is None else _exp(per_word.value),
        word_perplexity_bound_ci95=None if per_word is None else _each(_exp, per_word.interval),
        byte_perplexity_bound=_exp(per_byte.value),
        byte_perplexity_bound_ci95=_each(_exp, per_byte.interval),
        given_tokens=int(sequences.tokens.given[scored.numpy()].sum()),
        attend="document" if _apart(lm, sequences) else "row",
        impossible_tokens={
            str(lm.tokenizer.convert_ids_to_tokens(id_)): int(scores.counts_V[id_])
            for id_ in lm.process.vocabulary.forbidden
            if scores.counts_V[id_]
        },
    )


def _scored_part(counts_D: NDArray[np.int64], sequences: Sequences, tokens_D: Tensor) -> Tensor:
    """Bytes or words of each document's scored part; if only a part was scored, in proportion to its tokens."""
    all_D = torch.from_numpy(np.diff(sequences.tokens.offsets) - sequences.tokens.given)
    return torch.from_numpy(counts_D.astype(np.float64)) * tokens_D / all_D


def _each(function: Callable[[float], float], interval: Interval | None) -> Interval | None:
    return None if interval is None else (function(interval[0]), function(interval[1]))


def _exp(nats: float) -> float:
    """The exponential; infinity instead of an overflow."""
    return math.exp(nats) if nats < 700.0 else math.inf
