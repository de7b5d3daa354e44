"""Texts that continue prompts, written side by side."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.rules import Rule
from dlm.lm.canvas import Canvas, stack, written_text
from dlm.lm.sampler import Sampler, Watch
from dlm.model.tokenizer import special_ids

Item = TypeVar("Item")

Prompt = str | Sequence[Mapping[str, str]] | None
"""A text, or a chat of messages `{role, content}` that the tokenizer's template writes down, or nothing."""


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


@dataclass(frozen=True)
class Task:
    """A text to be written.

    Attributes:
        prompt: What it begins with.
        canvas: The prompt, and the masks after it.
        rule: How a step is taken.
        stop_ids: The ids that end the text; none for a text that fills its canvas.
        key: What its random numbers follow from.
    """

    prompt: Prompt
    canvas: Canvas
    rule: Rule
    stop_ids: tuple[int, ...]
    key: tuple[int | str, ...]

    def sample(self, ids: Sequence[int], calls: int, tokenizer: PreTrainedTokenizerBase) -> Sample:
        """The text, from the ids of its row."""
        (hole,), start = self.canvas.holes, self.canvas.start
        written = tuple(ids[hole.start : hole.stop])
        written = written[: next((i for i, id_ in enumerate(written) if id_ in self.stop_ids), None)]
        whole = [*ids[start : hole.start], *written]  # without special tokens around it
        before = self.prompt if isinstance(self.prompt, str) else ""
        text = written_text(tokenizer, whole, range(hole.start - start, len(whole)), before)
        return Sample(before + text, text, written, calls)


def write_samples(
    tasks: Sequence[Task],
    sampler: Sampler,
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerBase,
    *,
    timed: bool,
    batch_size: int,
    watch: Watch | None,
) -> Iterator[Sample]:
    """Writes texts side by side.

    Args:
        tasks: The texts, in order; each has its own stream of random numbers.
        sampler: How.
        denoiser: Predicts clean tokens.
        tokenizer: The model's.
        timed: Whether the network takes the time.
        batch_size: Texts written side by side.
        watch: Called with every state.

    Yields:
        The text of each task, as soon as its batch is finished.
    """
    for batch in alike(tasks, lambda task: (kind(task.rule, task.canvas, timed), task.stop_ids), batch_size):
        canvas_BL, editable_BL = stack([task.canvas for task in batch], special_ids(tokenizer).pad)
        final = sampler.write(
            batch[0].rule,
            denoiser,
            canvas_BL,
            editable_BL,
            [generator(*task.key) for task in batch],
            stop_ids=batch[0].stop_ids,
            watch=watch,
        )
        for task, ids, calls in zip(batch, final.x_BL.tolist(), final.calls_B.tolist(), strict=True):
            yield task.sample(ids, calls, tokenizer)


def kind(rule: Rule, canvas: Canvas, timed: bool) -> Hashable:
    """What texts must have in common to be written side by side, so that none changes what another becomes."""
    # A network that takes the time is told the share of masks in a row, to which padding would add.
    return rule.steps, len(canvas.ids) if timed else None


def alike(items: Sequence[Item], kind_of: Callable[[Item], Hashable], size: int) -> Iterator[Sequence[Item]]:
    """The items in order, in batches of one kind."""
    return (batch for _, group in groupby(items, kind_of) for batch in in_batches(list(group), size))


def in_batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items, a batch at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
