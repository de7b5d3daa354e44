"""A module on two processes, by torchrun or by Accelerate."""

import os
import subprocess
import sys

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    **{
        name: [
            *("accelerate.commands.launch", "--config_file", f"configs/accelerate/{name}.yaml"),
            *("--num_processes", "2", "--main_process_port", "0"),
        ]
        for name in ("ddp", "fsdp2")
    },
}


def command(*arguments: object, launcher: str = "torchrun", module: str = "dlm") -> list[str]:
    """The words of the command line."""
    return [sys.executable, "-m", *LAUNCHERS[launcher], "-m", module, *map(str, arguments)]


def launch(*arguments: object, launcher: str = "torchrun", module: str = "dlm") -> subprocess.CompletedProcess[str]:
    """Runs the module to its end, however it ends."""
    asked = command(*arguments, launcher=launcher, module=module)
    return subprocess.run(asked, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
