"""The training step of this tree beside that of another, in turns on one machine.

Each tree trains in a process of its own; they take their rounds alternately, so that what slows the machine slows
both. With --against a checkout of an earlier commit (git worktree add ../before COMMIT) it answers whether a
change has made training slower, and whether the losses of a fixed seed are still the same.
Run: python -m tests.benchmarks.training --against ../before
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WORKER = """
import json, sys, time
from pathlib import Path
from dlm.settings import load_config
from dlm.train.metrics import Silent
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer

config, folder, *settings = sys.argv[1:]
run = RunFolder.create(Path(folder), load_config(config, settings))
trainer = Trainer(run, Silent())
print(json.dumps("ready"), flush=True)
step = 0
for line in sys.stdin:
    began = time.perf_counter()
    losses = []
    for _ in range(int(line)):
        step += 1
        losses.append((getattr(trainer, "step", None) or trainer._step)(step).loss)
    print(json.dumps([time.perf_counter() - began, losses]), flush=True)
"""


class Tree:
    """A source tree with a training run under way."""

    def __init__(self, path: Path, folder: Path, settings: list[str]) -> None:
        command = [sys.executable, "-c", WORKER, str(path / "configs/tiny.yaml"), str(folder), *settings]
        environment = {**os.environ, "PYTHONPATH": str(path), "GOMP_SPINCOUNT": "30000"}
        self.worker = subprocess.Popen(
            command, cwd=path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.seconds: list[float] = []
        self.losses: list[float] = []
        assert self._answer() == "ready"

    def round(self, steps: int) -> None:
        assert self.worker.stdin
        self.worker.stdin.write(f"{steps}\n")
        self.worker.stdin.flush()
        seconds, losses = self._answer()
        self.seconds.append(seconds / steps)
        self.losses += losses

    def _answer(self) -> Any:
        assert self.worker.stdout
        return json.loads(self.worker.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout; this one once more by default")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10, help="steps a round")
    parser.add_argument("--set", action="append", default=["tokenizer=bytes"], help="override a key, in both trees")
    options = parser.parse_args()

    here = Path(__file__).resolve().parents[2]
    paths = {"here": here, "there": (options.against or here).resolve()}
    with tempfile.TemporaryDirectory() as folder:
        trees = {name: Tree(path, Path(folder) / name, options.set) for name, path in paths.items()}
        for _ in range(options.rounds + 1):
            for tree in trees.values():
                tree.round(options.steps)
        for tree in trees.values():
            tree.worker.kill()
            tree.worker.wait()
    times = {name: [1000 * s for s in tree.seconds[1:]] for name, tree in trees.items()}  # the first one warms up
    for name, values in times.items():
        middle, fastest = statistics.median(values), min(values)
        print(f"{name:<6} median {middle:7.1f} ms a step, fastest round {fastest:7.1f}  {paths[name]}")
    ratios = [a / b for a, b in zip(times["here"], times["there"], strict=True)]
    print(f"here/there, round by round: median {statistics.median(ratios):.3f}")
    same = trees["here"].losses == trees["there"].losses
    print(f"losses of {len(trees['here'].losses)} steps: {'identical' if same else 'different'}")


if __name__ == "__main__":
    main()
