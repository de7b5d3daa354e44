"""How far estimates of one text's bound scatter at equal cost.

The text is drawn from a Markov chain and the denoiser is exact, so all scatter comes from the estimator.
Run: python -m tests.benchmarks.estimator
"""

import argparse

import torch

from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import exact_count_nelbo, grid_nelbo
from dlm.diffusion.process import Absorbing
from dlm.diffusion.schedule import Linear
from tests.diffusion.joints import Chain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--forwards", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=500)
    options = parser.parse_args()

    chain = Chain()
    process = Absorbing(Linear(), chain.mask)
    shape = (options.repeats, options.forwards)
    x0_BL = chain.draw(1, options.length, seed=0).expand(options.repeats, options.length)
    streams = [generator("benchmark", b) for b in range(options.repeats)]
    iid = 1 - torch.rand(shape, generator=generator("iid"), dtype=torch.float64)
    shift = torch.rand(options.repeats, 1, generator=generator("shift"), dtype=torch.float64)
    even = 1 - (torch.arange(options.forwards) + shift) / options.forwards
    estimates = {
        "independent t": grid_nelbo(chain, process, x0_BL, iid, streams, symbols=2).mean(1),
        "stratified t": grid_nelbo(chain, process, x0_BL, even, streams, symbols=2).mean(1),
        "stratified count, complements": exact_count_nelbo(chain, process, x0_BL, options.forwards, streams)
        .mean(0)
        .sum(1),
    }
    worst = float(estimates["independent t"].std())
    print(f"{options.forwards} forwards, length {options.length}, {options.repeats} repeats; nats a text")
    for name, values in estimates.items():
        mean, scatter = float(values.mean()), float(values.std())
        print(f"{name:<32} mean {mean:8.3f}   sd {scatter:7.3f}   ratio {scatter / worst:.2f}")


if __name__ == "__main__":
    main()
