"""Answers scored many side by side, those to one prompt under common random masks."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import Aligned
from dlm.diffusion.likelihood import Likelihood
from dlm.diffusion.process import Process
from dlm.diffusion.unmask import LeftToRight
from dlm.errors import ConfigError
from dlm.lm.canvas import Canvas, stack
from dlm.lm.layout import Layout, Prompt
from dlm.lm.rows import in_batches
from dlm.lm.scoring import Greedy, Score, score_rows

if TYPE_CHECKING:
    from dlm.lm.model import DiffusionLM

REPLICATES = 8
"""The estimates that the error of a single text comes from: that of fewer is too often far too small."""


class Rows(Protocol):
    """What becomes rows that are scored under common random masks."""

    def canvases(self, layout: Layout) -> list[Canvas]:
        """The rows of a model.

        Args:
            layout: How texts become rows.

        Returns:
            One or several.
        """


@dataclass(frozen=True)
class Answers:
    """Responses to one prompt, which are compared.

    Attributes:
        prompt: What they are given: a text, a chat, or nothing.
        responses: One or several.
    """

    prompt: Prompt
    responses: Sequence[str]

    def canvases(self, layout: Layout) -> list[Canvas]:
        """A row for each response.

        Args:
            layout: How texts become rows.

        Returns:
            The rows.

        Raises:
            DataError: A response, its end and the prompt do not fit the context.
        """
        return [layout.answered(self.prompt, response) for response in self.responses]


@dataclass(frozen=True)
class Row:
    """A row that is to be scored.

    Attributes:
        canvas: What is scored, and what is given.
        key: What its noise follows from.
        places: Which of the random numbers each scored token takes; see `Aligned`.
        width: How many numbers are drawn for the tokens.
    """

    canvas: Canvas
    key: tuple[int | str, ...]
    places: Sequence[int]
    width: int

    @classmethod
    def alone(cls, canvas: Canvas, key: tuple[int | str, ...]) -> Self:
        """A row that is compared with no other."""
        count = sum(canvas.editable)
        return cls(canvas, key, range(count), count)

    def stream(self) -> Aligned:
        """The random numbers of its masks."""
        return Aligned.of(self.key, self.places, self.width)


def compared(canvases: Sequence[Canvas], key: tuple[int | str, ...]) -> list[Row]:
    """Rows that are scored under common random masks: a token that all of them have gets the same random numbers.

    What all rows begin with is aligned from the front, and what all end with from the back, so that rows which differ
    in a word have the same masks outside of it, whatever the word's length. The numbers of masked tokens are at the
    same quantiles of the rows' lengths. Of rows of one length all masks are the same.

    Args:
        canvases: The rows.
        key: What their noise follows from.

    Returns:
        The rows with their streams.
    """
    texts = [[id_ for id_, scored in zip(c.ids, c.editable, strict=True) if scored] for c in canvases]
    width, shortest = max(map(len, texts)), min(map(len, texts))
    front = _common(texts, shortest)
    back = _common([text[::-1] for text in texts], shortest - front)
    rows = []
    for canvas, text in zip(canvases, texts, strict=True):
        places = [*range(len(text) - back), *range(width - back, width)]
        rows.append(Row(canvas, key, places, width))
    return rows


def _common(texts: Sequence[Sequence[int]], most: int) -> int:
    """How many ids all texts begin with, at most so many."""
    return next((i for i in range(most) if len({text[i] for text in texts}) > 1), most)


@dataclass(frozen=True)
class Scorer:
    """Scores rows by one reading of a model.

    Attributes:
        denoiser: Predicts the clean tokens.
        process: The forward process.
        pad_id: What fills up the shorter rows of a batch.
        device: Where sums are computed.
        estimator: The likelihood of the reading.
        greedy: How it is found whether greedy decoding writes a row; None where that is not asked.
    """

    denoiser: Denoiser
    process: Process
    pad_id: int
    device: torch.device
    estimator: Likelihood
    greedy: Greedy | None = None

    def of_batch(self, x0_BL: Tensor, editable_BL: Tensor, streams: Sequence[torch.Generator]) -> list[Score]:
        """Scores rows that were made on the CPU; see `score_rows`."""
        rows = x0_BL.to(self.device), editable_BL.to(self.device)
        return score_rows(self.denoiser, self.process, self.estimator, *rows, streams, self.greedy)

    def of_rows(self, rows: Sequence[Row], batch_size: int, begin: int = 0) -> Iterator[Score]:
        """Scores rows side by side.

        Args:
            rows: The rows.
            batch_size: Rows a forward.
            begin: The first row that is wanted. The batches are the same as if all were, so that its score is too.

        Yields:
            Each score from that row on, as soon as its batch is finished.
        """
        for number, batch in enumerate(in_batches(rows, batch_size)):
            first = number * batch_size
            if first + len(batch) > begin:
                canvases, streams = [row.canvas for row in batch], [row.stream() for row in batch]
                yield from self.of_batch(*stack(canvases, self.pad_id), streams)[max(begin - first, 0) :]

    def of_answers(
        self, asked: Mapping[int, Sequence[Canvas]], key: tuple[int | str, ...], batch_size: int, begin: int = 0
    ) -> Iterator[list[Score]]:
        """Scores groups of rows, each under common masks.

        Args:
            asked: The rows of each group, under the number that its noise follows from; that of 0 from the key alone.
            key: What all noise follows from.
            batch_size: Rows a forward.
            begin: How many groups are left out; see `of_rows`.

        Returns:
            An iterator over the scores of each group, as soon as they are found.
        """
        groups = [compared(rows, (*key, number) if number else key) for number, rows in asked.items()]
        rows = [row for group in groups for row in group]
        found = self.of_rows(rows, batch_size, sum(map(len, groups[:begin])))
        return (list(islice(found, len(group))) for group in groups[begin:])


@dataclass(frozen=True)
class Comparison:
    """Which of several answers a model finds the likeliest.

    Attributes:
        best: The number of that of the highest log-likelihood; the first of equals, and None where a log-likelihood is
            no number.
        best_per_byte: The same of log-likelihoods divided by the responses' bytes in UTF-8.
        differences: How much less likely than the best each answer is, in nats and never above zero, and the standard
            error of that; see `Score.less`.
    """

    best: int | None
    best_per_byte: int | None
    differences: Sequence[tuple[float, float]]

    @classmethod
    def of(cls, scores: Sequence[Score], responses: Sequence[str]) -> Self:
        """Compares answers to one prompt.

        Args:
            scores: What `DiffusionLM.score_each` gives of them.
            responses: Their texts, none of them empty.

        Returns:
            The comparison.
        """
        nats = [score.log_likelihood for score in scores]
        if any(map(math.isnan, nats)):
            return cls(None, None, [(math.nan, math.nan)] * len(nats))
        per_byte = [each / len(text.encode()) for each, text in zip(nats, responses, strict=True)]
        best, best_per_byte = (max(range(len(scores)), key=values.__getitem__) for values in (nats, per_byte))
        return cls(best, best_per_byte, [score.less(scores[best]) for score in scores])


def greedy_by(lm: "DiffusionLM", reading: str | None) -> Greedy:
    """What tells whether greedy decoding by a reading writes a response.

    Args:
        lm: The model.
        reading: Which; by default as its runs are judged.

    Returns:
        The likelihood that predicts each token once, and the ids that are never written.

    Raises:
        ConfigError: The reading decodes nothing one token at a time.
    """
    reading = reading or lm.formulation.readings.all[0]
    if reading != "causal" and (reading.startswith("blocks") or not lm.formulation.counts):
        raise ConfigError(
            "greedy decoding one token at a time is of next tokens, or of masks from left to right by a network "
            f"that takes no time; this model is read as {reading}, with {lm.process.noise.name} noise: leave "
            "--greedy out, or choose another --reading"
        )
    return Greedy(lm.estimator(reading if reading == "causal" else LeftToRight().name), lm.unknown)
