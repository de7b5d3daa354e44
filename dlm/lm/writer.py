"""What writes the rows of a model: one loop for each way of reading it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from dlm.diffusion.constrain import ConstrainedDenoiser
from dlm.diffusion.formulation import Formulation
from dlm.diffusion.guide import GuidedDenoiser
from dlm.diffusion.remember import sample_remembering
from dlm.diffusion.sample import State, sample
from dlm.diffusion.verify import Verified, sample_verified
from dlm.lm.canvas import stack
from dlm.lm.denoisers import Denoisers
from dlm.lm.rows import Task, Written, write_rows
from dlm.lm.sampler import Sampler, Watch
from dlm.model.cache import RowCache


@dataclass(frozen=True)
class Writer:
    """Writes rows side by side.

    Attributes:
        denoisers: Predict the tokens.
        formulation: How the model was trained.
        mask_id: The id of the mask.
        pad_id: The id that fills up the shorter rows of a batch.
        before_id: The id that stands before every text that is memory; None for nothing.
        aligned: Whether the blocks of a model with a memory of blocks begin with the text, and not behind the prompt.
    """

    denoisers: Denoisers
    formulation: Formulation
    mask_id: int
    pad_id: int
    before_id: int | None
    aligned: bool = True

    def remembers(self, sampler: Sampler) -> bool:
        """Whether what is written in blocks is memory for the blocks behind it.

        Args:
            sampler: What rules are made of.

        Returns:
            Whether it is, in texts that go on to their end.
        """
        return sampler.blocks(self.formulation) is not None and self.formulation.readings.remembers

    def write(
        self,
        tasks: Sequence[Task],
        sampler: Sampler,
        *,
        batch_size: int,
        watch: Watch | None,
        inside: bool = False,
        ends: bool = True,
    ) -> Iterator[Written]:
        """Writes rows in batches of one kind; see `write_rows`.

        Args:
            tasks: The rows.
            sampler: What their rules were made of.
            batch_size: Rows written side by side.
            watch: Called with every state.
            inside: Whether texts stand behind what is written. Where none does, what is written is memory for the
                rest, if the model has a memory.
            ends: Whether next tokens may end a text.

        Returns:
            Each batch as soon as it is finished.
        """
        denoiser = self.denoisers.infilling if inside else self.denoisers.sampling
        blocks = sampler.blocks(self.formulation)
        remembers = not inside and self.remembers(sampler)

        def states(
            batch: Sequence[Task], x_BL: Tensor, editable_BL: Tensor, streams: Sequence[Generator]
        ) -> Iterator[State]:
            rule, stops = batch[0].rule, batch[0].stop_ids
            if not isinstance(rule, Verified) and not remembers:
                plain = denoiser
                others = [task.other for task in batch if task.other is not None]
                other_BM, other_editable_BM = stack(others, self.pad_id) if others else (x_BL[:0], editable_BL[:0])
                if sampler.reuse is not None:
                    size = len(x_BL) + len(other_BM), max(x_BL.shape[1], other_BM.shape[1])
                    plain = self.denoisers.reusing(sampler.reuse, inside, size)
                if sampler.guidance is not None and others:
                    second = other_BM, other_editable_BM, self.mask_id, self.pad_id
                    plain = GuidedDenoiser(plain, sampler.guidance, editable_BL, *second)
                if any(task.held for task in batch):
                    plain = ConstrainedDenoiser(plain, [task.held for task in batch], self.mask_id)
                return sample(rule, plain, x_BL, editable_BL, generators=streams, block_length=blocks, stop_ids=stops)
            width = rule.width if isinstance(rule, Verified) else 2 * (blocks or 0)
            remembering = self.denoisers.remembering if ends else self.denoisers.within
            row = remembering, RowCache(len(x_BL), x_BL.shape[1] + 1 + width), x_BL, editable_BL
            if isinstance(rule, Verified):
                assert self.before_id is not None
                known = self.mask_id, self.before_id
                first_BV = _first_ids(batch)
                return sample_verified(rule, *row, *known, generators=streams, stop_ids=stops, first_BV=first_BV)
            grid = self.formulation.grid(blocks or 1)
            grid = replace(grid, aligned=grid.aligned and self.aligned)
            ids = self.mask_id, self.before_id
            return sample_remembering(rule, *row, *ids, grid, generators=streams, stop_ids=stops)

        timed = self.formulation.timed
        return write_rows(tasks, states, pad_id=self.pad_id, timed=timed, batch_size=batch_size, watch=watch)


def _first_ids(batch: Sequence[Task]) -> Tensor | None:
    """Which ids each row may begin with, boolean, shape (B, V): those that its span is held to; None for all."""
    spans = [task.held[0] if task.held else None for task in batch]
    held = [None if span is None else span.automaton.first_V(len(span.places)) for span in spans]
    known = next((first_V for first_V in held if first_V is not None), None)
    if known is None:
        return None
    return torch.stack([torch.ones_like(known) if first_V is None else first_V for first_V in held])
