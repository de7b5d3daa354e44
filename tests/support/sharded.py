"""`dlm` on processors with its weights spread by FSDP2: Accelerate knows how, and asks for GPUs first.

Run: accelerate launch --config_file configs/accelerate/fsdp2.yaml --num_processes 2 -m tests.support.sharded train ...
"""

import sys
from typing import Any

from accelerate import Accelerator, DistributedType
from torch.distributed.tensor import DTensor

from dlm.cli.app import main
from dlm.model import chunks
from dlm.train import setup


class Sharding(Accelerator):
    """An Accelerator that takes its FSDP2 path, whatever the processes run on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.state.distributed_type = DistributedType.FSDP
        self.state.fsdp_plugin = options["fsdp_plugin"]

    def prepare(self, *args: Any, **options: Any) -> Any:
        network, *optimizers = super().prepare(*args, **options)
        learned = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        tensors = [*network.parameters(), *learned]
        here = sum(p.to_local().numel() for p in tensors if isinstance(p, DTensor))
        print(f"sharded: {here} of {sum(p.numel() for p in tensors)}", file=sys.stderr)
        return network, *optimizers


if __name__ == "__main__":
    setup.Accelerator = Sharding  # type: ignore[attr-defined]
    chunks.CHUNK = 2000  # tiny vocabularies are projected in chunks too
    main()
