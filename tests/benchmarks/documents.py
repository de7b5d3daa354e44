"""What `data.attend: document` costs: CPU time and memory of a training step beside those of whole rows.

    python -m tests.benchmarks.documents [--steps 8]

Both runs take their steps in turns. The time is that of the processor, which other programs on the machine change less
than they change the clock on the wall.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from dlm.bench.machine import peak_tensor_bytes
from dlm.settings import default_config_path, load_config
from dlm.train.metrics import Silent
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer

SETTINGS = [
    "tokenizer=bytes",
    "optim.name=adamw",
    "model.sizes.num_hidden_layers=4",
    "model.sizes.hidden_size=256",
    "model.sizes.intermediate_size=1024",
    "model.sizes.head_dim=64",
    "data.train={format: text, path: 'dlm/**/*.py'}",
]
UNTIMED = 2


def trainer(length: int, rows: int, attention: str, attend: str) -> Trainer:
    """The trainer of a run that leaves nothing on disk."""
    shape = [f"data.length={length}", f"train.batch_size={rows}"]
    how = [f"model.attention={attention}", f"data.attend={attend}"]
    config = load_config(default_config_path(), [*SETTINGS, *shape, *how])
    with tempfile.TemporaryDirectory() as folder:
        return Trainer(RunFolder.create(Path(folder) / "run", config), Silent())


def main() -> None:
    """Prints a line for each shape and implementation of attention."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    for length, rows in ((256, 8), (1024, 2)):
        for attention in ("eager", "sdpa"):
            runs = {attend: trainer(length, rows, attention, attend) for attend in ("row", "document")}
            seconds: dict[str, list[float]] = {attend: [] for attend in runs}
            for step in range(1, UNTIMED + steps + 1):
                for attend, run in runs.items():
                    began = time.process_time()
                    run.step(step)
                    seconds[attend].append(time.process_time() - began)
            for attend, run in runs.items():
                held = peak_tensor_bytes(partial(run.step, UNTIMED + steps + 1), run.device)
                median = statistics.median(seconds[attend][UNTIMED:])
                print(f"{rows} x {length} {attention} {attend}: {median * 1e3:.0f} ms, {held / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
