"""How far estimates of one text's bound scatter at equal cost.

The texts are drawn from a Markov chain and the denoiser is exact, so all scatter comes from the estimator.
An estimate at times t has no finite variance: with one token masked, which happens with probability near L t, it
is of order 1/t, and the integral of L t / t^2 diverges at 0. Its standard deviation grows with the number of
repeats, so the half width of the middle 68% of the estimates is shown beside it.
Run: python -m tests.benchmarks.estimator
"""

import argparse

import torch
from torch import Tensor

from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import grid_nelbo
from dlm.diffusion.schedule import Linear
from tests.support.joints import Chain, absorbing, count_nelbo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--draws", type=int, default=16, help="masked copies besides the fully masked one; even")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=100, help="estimates of each text")
    parser.add_argument("--symbols", type=int, default=16)
    parser.add_argument("--stay", type=float, default=0.9, help="how likely a symbol is followed by itself")
    options = parser.parse_args()

    chain = Chain(options.stay, options.symbols)
    process = absorbing(Linear(), chain.mask)
    rows, forwards = options.texts * options.repeats, options.draws + 1
    x0_BL = chain.draw(options.texts, options.length, seed=0).repeat_interleave(options.repeats, 0)
    streams = [generator("benchmark", b) for b in range(rows)]
    iid = 1 - torch.rand(rows, forwards, generator=generator("iid"), dtype=torch.float64)
    shift = torch.rand(rows, 1, generator=generator("shift"), dtype=torch.float64)
    even = 1 - (torch.arange(forwards) + shift) / forwards

    def over(t_BD: Tensor) -> Tensor:
        return grid_nelbo(chain, process, x0_BL, t_BD, streams).mean(1)

    estimates = {
        "independent t": over(iid),
        "stratified t": over(even),
        "stratified count, complements": count_nelbo(chain, process, x0_BL, options.draws, streams).mean(0).sum(1),
    }
    print(
        f"{forwards} forwards a text; {options.texts} texts of length {options.length}, "
        f"{options.repeats} estimates of each; nats a text"
    )
    first: list[float] = []
    for name, values in estimates.items():
        apart = values.view(options.texts, options.repeats)
        apart = apart - apart.mean(1, keepdim=True)
        low, high = apart.flatten().quantile(torch.tensor([0.16, 0.84], dtype=torch.float64)).tolist()
        scatter = [float(apart.var(1).mean().sqrt()), (high - low) / 2]
        first = first or scatter
        columns = [f"{value:7.3f} ({value / one:.2f})" for value, one in zip(scatter, first, strict=True)]
        print(f"{name:<32} mean {float(values.mean()):8.3f}   sd {columns[0]}   middle 68% {columns[1]}")


if __name__ == "__main__":
    main()
