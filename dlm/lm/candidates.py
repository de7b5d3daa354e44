"""Fillings that are chosen from: those that were written, and those that are put together of others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from transformers import PreTrainedTokenizerBase

from dlm.lm.canvas import Canvas
from dlm.lm.infillings import Infilling
from dlm.template import Template


@dataclass(frozen=True)
class Candidate:
    """A filling.

    Attributes:
        found: The text; its log-likelihood is 0 until it is scored.
        row: Its row, the holes written.
        template: The text with its holes, whose lengths are known.
        key: What its random numbers follow from; with the template it is written again.
        sources: For each hole, the filling that it is filled as in; empty for one that was written itself.
    """

    found: Infilling
    row: Canvas
    template: Template
    key: tuple[int | str, ...]
    sources: "Sources" = ()

    @classmethod
    def of(
        cls,
        template: Template,
        row: Canvas,
        key: tuple[int | str, ...],
        calls: int,
        tokenizer: PreTrainedTokenizerBase,
    ) -> Self:
        """The candidate of a row.

        Args:
            template: As for the class, as `row` and `key`.
            row: Its holes are written.
            key: What its random numbers follow from.
            calls: Network calls that it took part in.
            tokenizer: The model's.

        Returns:
            The candidate.
        """
        return cls(Infilling.of(template, row, calls, tokenizer), row, template, key)

    @classmethod
    def mixture(
        cls, template: Template, canvas: Canvas, sources: "Sources", tokenizer: PreTrainedTokenizerBase
    ) -> Self:
        """A filling that is put together of others of the same text, whose lengths were weighed together.

        Args:
            template: The text with holes of these lengths.
            canvas: Its row.
            sources: For each hole, the filling that it is filled as in, which was written.
            tokenizer: The model's.

        Returns:
            The filling; its network calls are those of all that it is made of.
        """
        ids = [source.found.ids[number] for number, source in enumerate(sources)]
        others = {id(source): source.found for source in sources}.values()
        calls = sum(each.calls for each in others)
        made = cls.of(template, canvas.written(ids), sources[0].key, calls, tokenizer)
        posterior = sources[0].found.length_posterior
        log_length = posterior[made.found.lengths] if posterior else 0.0
        return replace(made, sources=sources).knowing(
            fillings=len(others), log_length=log_length, length_posterior=posterior
        )

    def knowing(self, **found: Any) -> Self:
        """The same with what was found of it: attributes of `Infilling`."""
        return replace(self, found=replace(self.found, **found))


Sources = tuple[Candidate, ...]
"""For each hole of a text, the filling that it is filled as in."""


def by_text(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """The candidates of each text, one for each way in which tokens spell it."""
    ways: dict[str, dict[tuple[tuple[int, ...], ...], Candidate]] = {}
    for each in candidates:
        ways.setdefault(each.found.text, {}).setdefault(each.found.ids, each)
    return [[*spelled.values()] for spelled in ways.values()]


def united(ways: Sequence[Candidate]) -> Infilling:
    """One text of several ways to spell it: the likeliest way, with the probability of all."""
    best = max((way.found for way in ways), key=lambda one: one.rank)
    log_joint = _log_sum([way.found.log_joint for way in ways])
    log_whole = [way.found.log_whole for way in ways if way.found.log_whole is not None]
    return replace(
        best, log_likelihood=log_joint - best.log_length, log_whole=_log_sum(log_whole) if log_whole else None
    )


def _log_sum(log_p: Sequence[float]) -> float:
    """The logarithm of a sum of probabilities."""
    return log_p[0] if len(log_p) == 1 else torch.tensor(log_p, dtype=torch.float64).logsumexp(0).item()
