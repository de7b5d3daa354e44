"""Texts that continue prompts."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Self

from transformers import PreTrainedTokenizerBase

from dlm.lm.canvas import written_text
from dlm.lm.layout import Prompt
from dlm.lm.parts import Lead, own_of
from dlm.lm.rows import Task


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote.

    Attributes:
        text: The prompt, exactly as it was given, and what was written after it; after a chat that alone.
        continuation: What was written alone.
        ids: The ids that were written, up to the end of text and without it; those for the end of the prompt with them
            where that was written again.
        calls: Network calls that this text took part in.
        tokens: How many tokens were written, without a position that was added for the end of the prompt.
    """

    text: str
    continuation: str
    ids: tuple[int, ...]
    calls: int
    tokens: int

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        given: Sequence[int],
        written: Sequence[int],
        ends: Container[int],
        calls: int,
        tokenizer: PreTrainedTokenizerBase,
        lead: Lead | None = None,
    ) -> Self:
        """The text of what was written, up to its first end.

        Args:
            prompt: What it begins with.
            given: The ids of the prompt.
            written: The ids after it.
            ends: The ids that end a text.
            calls: Network calls that it took part in.
            tokenizer: The model's.
            lead: The end of the prompt that was written again.

        Returns:
            The text.
        """
        kept = tuple(written[: next((i for i, id_ in enumerate(written) if id_ in ends), None)])
        whole = [*given, *kept]
        before = prompt if isinstance(prompt, str) else ""
        text = written_text(tokenizer, whole, range(len(given), len(whole)), before, lead=lead)
        return cls(before + text, text, kept, calls, len(kept) - own_of(lead))

    @classmethod
    def of_row(
        cls, prompt: Prompt, task: Task, ids: Sequence[int], calls: int, tokenizer: PreTrainedTokenizerBase
    ) -> Self:
        """The text of a row.

        Args:
            prompt: What it begins with.
            task: What was asked for.
            ids: The row as it was written.
            calls: Network calls that the row took part in.
            tokenizer: The model's.

        Returns:
            The text.
        """
        (span,), (lead,) = task.canvas.spans, task.canvas.leads
        given = ids[task.canvas.start : span.start]  # without special tokens around it
        return cls.of(prompt, given, ids[span.start : span.stop], task.stop_ids, calls, tokenizer, lead)
