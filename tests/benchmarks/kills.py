"""A run of several processes, killed by `kill -9` at random moments again and again, and resumed each time.

After every kill what was saved must be whole and the run must go on from it, and in the end its weights must be
those of a run that nobody disturbed, bit for bit. The exit code says whether it is so.
Run: python -m tests.benchmarks.kills --kills 20
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dlm.model.checkpoint import read_sidecar
from tests.support.tiny_runs import describe, weights, write

STEPS = 10000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--wait", type=float, nargs=2, default=(4.0, 12.0), help="seconds before a kill, from and to")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="dlm-kills-") as name:
        folder = Path(name)
        plan = describe(folder, steps=STEPS, save_every=50, validate_every=1000, keep=2)
        config = write(plan, folder / "run.yaml")
        calm, killed = folder / "calm", folder / "killed"
        began = time.monotonic()
        start(config, calm, options.processes).wait()
        print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)

        at, kills, lost = -1, 0, 0
        while at < STEPS:
            run = start(config, killed, options.processes)
            wait = draw.uniform(*options.wait) if kills < options.kills else None
            try:
                code = run.wait(wait)
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)  # the launcher and every process, at once
                code, kills = run.wait(), kills + 1
            before, at = at, last(killed)
            lost += at < before or (at >= 0 and read_sidecar(str(killed / "checkpoints" / "last")) is None)
            print(f"start {kills}: exit {code} after {wait or 0.0:.1f} s, saved up to step {at}", flush=True)
            if wait is None and at < STEPS:
                sys.exit("a run that nobody killed did not come to its end")
        same = weights(calm, STEPS) == weights(killed, STEPS)
        print(f"{kills} kills; something saved was lost {lost} times; bit-identical in the end: {same}")
        sys.exit(0 if same and not lost and kills == options.kills else 1)


def start(config: Path, run: Path, processes: int) -> subprocess.Popen[bytes]:
    """Begins a run, or goes on with it, in a process group of its own."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "dlm"]
    resume = ["--resume"] if (run / "config.yaml").exists() else []
    command = [sys.executable, "-m", *launcher, "train", str(config), "--run-dir", str(run), *resume]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)


def last(run: Path) -> int:
    """The step of the newest checkpoint; -1 before the first."""
    return max((int(path.name[5:]) for path in run.glob("checkpoints/step-*")), default=-1)


if __name__ == "__main__":
    main()
