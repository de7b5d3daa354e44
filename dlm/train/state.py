"""All that training changes in a network and beside it: as a checkpoint keeps it, and put back from one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from dlm.model.backbone import Backbone, load_model
from dlm.model.checkpoint import Sidecar, write_model
from dlm.model.time_embedding import load_time_embedding, present_name
from dlm.train.ema import Ema, copy_weights, trainable
from dlm.train.optim import optimizer_tensors, restore_optimizers
from dlm.train.run import TRAINER, load_tensors, save_tensors
from dlm.train.sharding import gathered, spread

if TYPE_CHECKING:
    from peft import PeftModel

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"


@dataclass(frozen=True)
class Learned:
    """What training changes.

    Attributes:
        backbone: The network; its parameters may be spread over processes.
        optimizers: Their states.
        ema: The averaged weights, where there are any.
        adapter: The adapters of a network that is frozen but for them.
    """

    backbone: Backbone
    optimizers: Sequence[Optimizer]
    ema: Ema | None
    adapter: "PeftModel | None"

    def snapshot(self, *, keep: bool) -> "Snapshot":
        """Gathers everything; all processes must call it.

        Args:
            keep: Whether this process wants it.

        Returns:
            The whole of it on the processes that want it.
        """
        state = self.backbone.state_dict(keep_vars=True)
        own = None
        if self.ema:
            learns = trainable(self.backbone)
            averaged = {id(p): self.ema.weights[name] for name, p in learns.items()}
            state = {name: averaged.get(id(p), p) for name, p in state.items()}
            own = gathered(learns, keep=keep)
        return Snapshot(
            self.backbone,
            self.adapter,
            gathered(state, keep=keep),
            own,
            gathered(optimizer_tensors(self.optimizers), keep=keep),
        )

    def restore(self, folder: Path) -> None:
        """Puts back what a snapshot wrote; adapters must have been put back already.

        Args:
            folder: The checkpoint.

        Raises:
            CheckpointError: It is damaged.
        """
        learns = trainable(self.backbone)
        if self.adapter is not None:
            weights = {name: p.detach().clone() for name, p in learns.items()}
        else:
            # Through transformers, which alone knows under which of their names it stored tied weights.
            model = load_model(str(folder), self.backbone.model.config._attn_implementation)
            time_embedding = load_time_embedding(str(folder), model) if self.backbone.time_embedding else None
            stored: dict[str, Tensor] = dict(Backbone(model, self.backbone.pad_id, time_embedding).named_parameters())
            weights = {name: spread(stored[name].detach(), p) for name, p in learns.items()}
        if self.ema:
            self.ema.weights = weights
            stored = {present_name(name): value for name, value in load_tensors(folder / TRAINER / WEIGHTS).items()}
            weights = {name: spread(stored[name].detach(), p) for name, p in learns.items()}
        copy_weights(weights, self.backbone)
        restore_optimizers(self.optimizers, load_tensors(folder / TRAINER / OPTIMIZER))


@dataclass(frozen=True)
class Snapshot:
    """What was learned, whole and in one place, to be written down.

    Attributes:
        backbone: The network that it is of.
        adapter: The adapters that it is of.
        model: Every tensor of the network by name, averaged where there is an average.
        own: The weights themselves where `model` has averages.
        optimizers: Every tensor of the optimizers.
    """

    backbone: Backbone
    adapter: "PeftModel | None"
    model: dict[str, Tensor]
    own: dict[str, Tensor] | None
    optimizers: dict[str, Tensor]

    def write(self, folder: Path, tokenizer: PreTrainedTokenizerBase, sidecar: Sidecar) -> None:
        """Writes the model into a folder, and what only a resumed run reads into `trainer/` in it."""
        write_model(
            folder,
            self.backbone.model,
            tokenizer,
            sidecar,
            self.backbone.time_embedding,
            self.adapter,
            weights=self.model,
        )
        if self.own is not None:
            save_tensors(self.own, folder / TRAINER / WEIGHTS)
        save_tensors(self.optimizers, folder / TRAINER / OPTIMIZER)
