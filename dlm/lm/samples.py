"""Texts that continue prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from transformers import PreTrainedTokenizerBase

from dlm.lm.canvas import written_text
from dlm.lm.layout import Prompt
from dlm.lm.rows import Task


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote.

    Attributes:
        text: The prompt, exactly as it was given, and what was written after it; after a chat that alone.
        continuation: What was written alone.
        ids: The ids that were written, up to the end of text and without it.
        calls: Network calls that this text took part in.
    """

    text: str
    continuation: str
    ids: tuple[int, ...]
    calls: int

    @classmethod
    def of(cls, prompt: Prompt, task: Task, ids: Sequence[int], calls: int, tokenizer: PreTrainedTokenizerBase) -> Self:
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
        (hole,), start = task.canvas.holes, task.canvas.start
        written = tuple(ids[hole.start : hole.stop])
        written = written[: next((i for i, id_ in enumerate(written) if id_ in task.stop_ids), None)]
        whole = [*ids[start : hole.start], *written]  # without special tokens around it
        before = prompt if isinstance(prompt, str) else ""
        text = written_text(tokenizer, whole, range(hole.start - start, len(whole)), before)
        return cls(before + text, text, written, calls)
