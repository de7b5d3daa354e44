"""Where the CPU waits for the GPU, in a training step and in a sampler's call; and what a step's time goes to.

Each wait lets the GPU run out of work. torch reports them where `torch.cuda.set_sync_debug_mode` asks it to.
Run on a machine with a GPU: python -m tests.benchmarks.syncs configs/shakespeare-gpu.yaml --set data.train.path=FILE
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from dlm.diffusion.unmask import FixedSteps, Threshold
from dlm.lm import Sampler
from dlm.settings import load_config
from dlm.train.metrics import Silent
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], help="override a key")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--top", type=int, default=25, help="lines of the profile")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this needs a GPU")
    config = load_config(options.config, options.set)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(RunFolder.create(Path(folder) / "run", config), Silent())
    for step in range(1, 6):
        trainer.step(step)
    print(f"a training step on {torch.cuda.get_device_name()}")
    report(waits(lambda: trainer.step(6)), 1)
    kernels, passed = kernel_seconds(lambda step: trainer.step(7 + step), options.steps, options.top)
    print(f"{1e3 * passed:.2f} ms a step, of which the GPU computes {1e3 * kernels:.2f}")

    trainer.network.eval()
    lm = trainer.lm()
    samplers = {
        "first-hitting": Sampler(),
        "32 steps": Sampler(budget=FixedSteps(32)),
        "threshold": Sampler(budget=Threshold(0.9)),
    }
    for name, sampler in samplers.items():
        write = partial(lm.generate, num=8, length=lm.context, sampler=sampler, batch_size=8)
        calls = max(text.calls for text in write())
        print(f"\nsampling 8 texts by {name}, {calls} network calls")
        report(waits(write), calls)
        kernels, passed = kernel_seconds(lambda seed: write(seed=seed), 1, 0)  # noqa: B023  # called at once
        print(f"{1e3 * passed / calls:.2f} ms a call, of which the GPU computes {1e3 * kernels / calls:.2f}")


def waits(work: Callable[[], object]) -> Counter[str]:
    """The lines that waited for the GPU, and how often."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))


def report(lines: Counter[str], over: int) -> None:
    """Prints them, a line each."""
    print(f"{lines.total() / over:.1f} waits each")
    for line, count in lines.most_common():
        print(f"  {count / over:5.2f}  {line}")


def kernel_seconds(work: Callable[[int], object], repeats: int, top: int) -> tuple[float, float]:
    """Seconds that the GPU computes, and that pass, for each call; prints where the time of the CPU goes."""
    work(0)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for index in range(repeats):
        work(1 + index)
    torch.cuda.synchronize()
    passed = (time.perf_counter() - began) / repeats
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for index in range(repeats):
            work(1 + repeats + index)
        torch.cuda.synchronize()
    averages = profiler.key_averages()
    if top:
        print(averages.table(sort_by="self_cpu_time_total", row_limit=top, max_name_column_width=60))
        print(averages.table(sort_by="self_cuda_time_total", row_limit=top, max_name_column_width=60))
    kernels = [event for event in averages if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    return sum(event.self_device_time_total for event in kernels) / 1e6 / repeats, passed


if __name__ == "__main__":
    main()
