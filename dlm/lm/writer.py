"""What writes the rows of a model: one loop for each way of reading it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Generator, Tensor

from dlm.diffusion.formulation import Formulation
from dlm.diffusion.remember import sample_remembering
from dlm.diffusion.sample import State, sample
from dlm.diffusion.verify import Verified, sample_verified
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
        remembers = not inside and blocks is not None and self.formulation.readings.remembers

        def states(task: Task, x_BL: Tensor, editable_BL: Tensor, streams: Sequence[Generator]) -> Iterator[State]:
            rule, stops = task.rule, task.stop_ids
            if not isinstance(rule, Verified) and not remembers:
                plain = denoiser
                if sampler.reuse is not None:
                    plain = self.denoisers.reusing(sampler.reuse, inside, (x_BL.shape[0], x_BL.shape[1]))
                return sample(rule, plain, x_BL, editable_BL, generators=streams, block_length=blocks, stop_ids=stops)
            width = rule.width if isinstance(rule, Verified) else 2 * (blocks or 0)
            remembering = self.denoisers.remembering if ends else self.denoisers.within
            row = remembering, RowCache(len(x_BL), x_BL.shape[1] + 1 + width), x_BL, editable_BL
            if isinstance(rule, Verified):
                assert self.before_id is not None
                return sample_verified(rule, *row, self.mask_id, self.before_id, generators=streams, stop_ids=stops)
            grid = self.formulation.grid(blocks or 1)
            grid = replace(grid, aligned=grid.aligned and self.aligned)
            ids = self.mask_id, self.before_id
            return sample_remembering(rule, *row, *ids, grid, generators=streams, stop_ids=stops)

        timed = self.formulation.timed
        return write_rows(tasks, states, pad_id=self.pad_id, timed=timed, batch_size=batch_size, watch=watch)
