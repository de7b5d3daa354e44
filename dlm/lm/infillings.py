"""Texts with their holes filled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from transformers import PreTrainedTokenizerBase

from dlm.lm.canvas import fill, written_spans
from dlm.lm.rows import Task
from dlm.template import Template


@dataclass(frozen=True)
class Infilling:
    """One way of filling the holes of a text.

    Attributes:
        text: The whole text; outside the holes it is byte for byte what was given.
        spans: What was written into each hole.
        ids: The ids that were written into each hole.
        log_likelihood: A lower bound, in nats, of the log-probability of the spans given the rest (exact for
            a single token).
        calls: Network calls that this text took part in.
    """

    text: str
    spans: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    log_likelihood: float
    calls: int

    @classmethod
    def of(
        cls,
        template: Template,
        task: Task,
        ids: Sequence[int],
        log_likelihood: float,
        calls: int,
        tokenizer: PreTrainedTokenizerBase,
    ) -> Self:
        """The text of a row.

        Args:
            template: The text with its holes.
            task: What was asked for.
            ids: The row as it was written.
            log_likelihood: As for the class, as `calls`.
            calls: Network calls that the row took part in.
            tokenizer: The model's.

        Returns:
            The text.
        """
        spans = written_spans(template, tokenizer, task.canvas, ids)
        written = tuple(tuple(ids[hole.start : hole.stop]) for hole in task.canvas.holes)
        return cls(fill(template, spans), spans, written, log_likelihood, calls)
