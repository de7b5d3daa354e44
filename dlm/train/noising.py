"""The noisy half of a micro-batch's loss, which takes no network and is made ahead of its step."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from dlm.config import Config
from dlm.data.batches import Batch
from dlm.diffusion.context import editable_part
from dlm.diffusion.draws import generator, stratified_draws
from dlm.diffusion.objective import Corrupted, Objective
from dlm.diffusion.process import Process
from dlm.model.attention import document_attention_mask


class Prepared(NamedTuple):
    """A micro-batch that waits for its step.

    Attributes:
        batch: The noisy text.
        seen: The number of tokens in it.
    """

    batch: Corrupted
    seen: Tensor


@dataclass(frozen=True)
class Noising:
    """Makes micro-batches noisy, on the CPU; what it makes follows from the step and the positions alone.

    Attributes:
        config: The run's configuration.
        process: The forward process.
        objective: The training loss.
        pad_id: The id of the padding.
    """

    config: Config
    process: Process
    objective: Objective
    pad_id: int

    def __call__(self, batch: Batch, step: int, positions: range) -> Prepared:
        """Draws the noise of a micro-batch.

        Args:
            batch: Its text.
            step: Its step.
            positions: Its positions in the global batch.

        Returns:
            The noisy text, and how much of it there is.
        """
        draws = stratified_draws((self.config.seed, "train", step), positions, self.config.train.batch_size)
        loss_mask_BL = batch.loss_mask_BL
        if share := self.config.data.context:
            streams = [generator(self.config.seed, "context", step, position) for position in positions]
            loss_mask_BL = editable_part(loss_mask_BL, share, streams)
        corrupted = self.objective.corrupt(self.process, batch.x0_BL, draws, loss_mask_BL)
        if self.config.data.attend == "document":  # padding is no part of any document
            changes = {"attention": document_attention_mask(batch.document_BL), "padded": False}
        else:
            changes = {"padded": bool((batch.x0_BL == self.pad_id).any())}
        inputs = corrupted.inputs.with_index(corrupted.inputs.index_N, **changes)
        return Prepared(replace(corrupted, inputs=inputs), (batch.document_BL >= 0).sum())
