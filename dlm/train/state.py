"""The state of training (weights, their averages, optimizers): gathered for a checkpoint, and restored from one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from dlm.model.backbone import Backbone
from dlm.model.checkpoint import Sidecar, write_model
from dlm.model.loading import load_model
from dlm.model.tensors import OPTIMIZER_STATE, RAW_WEIGHTS, read_tensors, write_tensors
from dlm.model.time_embedding import load_time_embedding, present_name
from dlm.train.ema import Ema, copy_weights, trainable
from dlm.train.optim import optimizer_tensors, restore_optimizers
from dlm.train.run import TRAINER
from dlm.train.sharding import gathered, shard_like

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class TrainingState:
    """Everything that training changes.

    Attributes:
        backbone: The network; its parameters may be sharded.
        optimizers: The optimizers with their states.
        ema: The averaged weights; None without averaging.
        adapter: The adapters, where only they are trained.
    """

    backbone: Backbone
    optimizers: Sequence[Optimizer]
    ema: Ema | None
    adapter: "PeftModel | None"

    def snapshot(self, *, keep: bool) -> "Snapshot":
        """Gathers full tensors; all processes must call it.

        Args:
            keep: Whether this process needs the result.

        Returns:
            The full tensors; none of them on a process that does not need them.
        """
        state = self.backbone.state_dict(keep_vars=True)
        raw = None
        if self.ema:
            learns = trainable(self.backbone)
            averaged = {id(p): self.ema.weights[name] for name, p in learns.items()}
            state = {name: averaged.get(id(p), p) for name, p in state.items()}
            raw = gathered(learns, keep=keep)
        return Snapshot(
            self.backbone,
            self.adapter,
            gathered(state, keep=keep),
            raw,
            gathered(optimizer_tensors(self.optimizers), keep=keep),
        )

    def restore(self, folder: Path) -> None:
        """Restores what a snapshot wrote; adapters must have been restored already.

        Args:
            folder: The checkpoint.

        Raises:
            CheckpointError: It is damaged.
        """
        learns = trainable(self.backbone)
        if self.adapter is not None:
            weights = {name: p.detach().clone() for name, p in learns.items()}
        else:
            # Loaded by transformers: only it knows under which of their names it stored tied weights.
            model = load_model(str(folder), self.backbone.model.config._attn_implementation)
            time_embedding = load_time_embedding(str(folder), model) if self.backbone.time_embedding else None
            stored: dict[str, Tensor] = dict(Backbone(model, self.backbone.pad_id, time_embedding).named_parameters())
            weights = {name: shard_like(stored[name].detach(), p) for name, p in learns.items()}
        if self.ema:
            self.ema.weights = weights
            stored = {present_name(name): value for name, value in read_tensors(folder / TRAINER / RAW_WEIGHTS).items()}
            weights = {name: shard_like(stored[name].detach(), p) for name, p in learns.items()}
        copy_weights(weights, self.backbone)
        restore_optimizers(self.optimizers, read_tensors(folder / TRAINER / OPTIMIZER_STATE))


@dataclass(frozen=True)
class Snapshot:
    """The state of training in full tensors, ready to be written.

    Attributes:
        backbone: The network it was taken from.
        adapter: The adapters, where only they are trained.
        model: Every tensor of the network by name, averaged where there is an average.
        raw: The trained weights, where `model` has their averages.
        optimizers: Every tensor of the optimizers.
    """

    backbone: Backbone
    adapter: "PeftModel | None"
    model: dict[str, Tensor]
    raw: dict[str, Tensor] | None
    optimizers: dict[str, Tensor]

    def write(self, folder: Path, tokenizer: PreTrainedTokenizerBase, sidecar: Sidecar) -> None:
        """Writes the model into a folder, and what only a resumed run reads into its `trainer/`."""
        write_model(
            folder,
            self.backbone.model,
            tokenizer,
            sidecar,
            self.backbone.time_embedding,
            self.adapter,
            weights=self.model,
        )
        if self.raw is not None:
            write_tensors(self.raw, folder / TRAINER / RAW_WEIGHTS)
        write_tensors(self.optimizers, folder / TRAINER / OPTIMIZER_STATE)
