"""Texts with their holes filled."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from transformers import PreTrainedTokenizerBase

from dlm.lm.canvas import Canvas, fill, written_spans
from dlm.template import Template


@dataclass(frozen=True)
class Infilling:
    """One way of filling the holes of a text.

    Attributes:
        text: The whole text; outside the holes it is byte for byte what was given.
        spans: What was written into each hole.
        ids: The ids that were written into each hole, and for the end of the text before it where it takes that in.
        lengths: The tokens of each hole.
        log_likelihood: A lower bound, in nats, of the log-probability of the spans given the rest (exact for
            a single token).
        calls: Network calls that this text took part in, or all that it was put together of; without those of a search.
        fillings: How many fillings it was put together of; 1 where it was written itself.
        log_length: The log-probability of the holes' lengths given the rest; 0 where they were given.
        length_posterior: The log-probability of all lengths that were weighed, the likeliest first; empty where they
            were given.
        log_whole: Log p(the spans and what stands between and behind them | what stands before), in nats, by the
            causal reading; None where fillings were not read by it. See `dlm.lm.rereading`.
    """

    text: str
    spans: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    log_likelihood: float
    calls: int
    fillings: int = 1
    log_length: float = 0.0
    length_posterior: Mapping[tuple[int, ...], float] = field(default_factory=dict)
    log_whole: float | None = None

    @property
    def log_joint(self) -> float:
        """The log-probability of lengths and spans together, given the rest."""
        return self.log_length + self.log_likelihood

    @property
    def rank(self) -> float:
        """What alternatives are ranked by: `log_whole` where there is one, else `log_joint`."""
        return self.log_joint if self.log_whole is None else self.log_whole

    @classmethod
    def of(cls, template: Template, row: Canvas, calls: int, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The text of a row.

        Args:
            template: The text with its holes.
            row: The row, its holes written.
            calls: Network calls that it took part in.
            tokenizer: The model's.

        Returns:
            The text, its log-likelihood 0.
        """
        spans = written_spans(template, tokenizer, row)
        written = tuple(tuple(row.ids[span.start : span.stop]) for span in row.spans)
        return cls(fill(template, spans), spans, written, tuple(map(len, row.holes)), 0.0, calls)
