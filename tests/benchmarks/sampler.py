"""What a step of the sampler costs besides the network.

The network is free: it hands out rows of log-probabilities that were made beforehand.
Run: python -m tests.benchmarks.sampler
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from dlm.diffusion.denoiser import FunctionDenoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.unmask import Confidence, Entropy, FixedSteps, Order, Random, TokenChoice
from tests.support.networks import unmask


def milliseconds(order: Order, token: TokenChoice, options: argparse.Namespace) -> float:
    """The median time of a step over whole runs, after one that only warms up."""
    shape = (options.batch, options.length)
    rows = torch.randn(options.batch * options.length, options.vocabulary).log_softmax(-1)

    @FunctionDenoiser
    def free(inputs: NetworkInput) -> Tensor:
        select_BL = inputs.wanted_BL
        return rows[: int(select_BL.sum())]

    steps = options.length // options.reveal
    times = []
    for repeat in range(1 + options.repeats):
        states = unmask(
            free,
            torch.zeros(shape, dtype=torch.long),
            torch.ones(shape, dtype=torch.bool),
            mask_id=options.vocabulary,
            order=order,
            budget=FixedSteps(steps),
            token=token,
            generators=[generator(repeat, row) for row in range(options.batch)],
        )
        next(states)
        for _ in range(steps):
            began = time.perf_counter()
            next(states)
            if repeat > 0:
                times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32_768)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--reveal", type=int, default=16, help="positions a row and step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"vocabulary {options.vocabulary}, batch {options.batch}, length {options.length}, "
        f"{options.reveal} positions a row and step, {options.threads} threads; median ms a step"
    )
    for name, order, token in (
        ("random", Random(), TokenChoice()),
        ("random, top-p 0.9", Random(), TokenChoice(top_p=0.9)),
        ("random, top-k 50", Random(), TokenChoice(top_k=50)),
        ("confidence", Confidence(), TokenChoice()),
        ("confidence, top-p 0.9", Confidence(), TokenChoice(top_p=0.9)),
        ("entropy", Entropy(), TokenChoice()),
    ):
        print(f"{name:<22} {milliseconds(order, token, options):8.1f}", flush=True)


if __name__ == "__main__":
    main()
