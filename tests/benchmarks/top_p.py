"""What a step's draw of tokens takes: without top-p, with it, and with it by sorting the whole vocabulary.

Run: python -m tests.benchmarks.top_p
"""

import argparse
import statistics
import time
from unittest.mock import patch

import torch

from dlm.diffusion import unmask
from dlm.diffusion.draws import generator
from dlm.diffusion.nucleus import keep_nucleus_
from dlm.diffusion.unmask import TokenChoice
from tests.support.nucleus import nucleus_by_sorting


def by_sorting(weights_NV: torch.Tensor, p: float) -> torch.Tensor:
    """The definition, in place."""
    return weights_NV.copy_(nucleus_by_sorting(weights_NV, p))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32_768)
    parser.add_argument("--rows", type=int, default=128, help="positions revealed a step")
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"vocabulary {options.vocabulary}, {options.rows} rows, top-p {options.top_p}, {options.threads} threads; "
        "median ms a step (least)"
    )
    plain, top_p = TokenChoice(), TokenChoice(top_p=options.top_p)
    u_N = torch.rand(options.rows, generator=generator("u"), dtype=torch.float64)
    print(f"{'logits':<24} {'no top-p':>16} {'top-p':>16} {'by sorting':>16}")
    for spread in (0.0, 0.1, 1.0, 3.0, 10.0):
        logits_NV = torch.randn(options.rows, options.vocabulary, generator=generator("logits"))
        log_p_NV = (spread * logits_NV).log_softmax(-1)
        times: dict[str, list[float]] = {"plain": [], "bins": [], "sorting": []}
        for repeat in range(1 + options.repeats):
            for name, choice in (("plain", plain), ("bins", top_p), ("sorting", top_p)):  # in turns: the load varies
                with patch.object(unmask, "keep_nucleus_", by_sorting if name == "sorting" else keep_nucleus_):
                    began = time.perf_counter()
                    choice.draw(log_p_NV, u_N)
                    if repeat > 0:
                        times[name].append(1000 * (time.perf_counter() - began))
        told = [f"{statistics.median(taken):8.1f} ({min(taken):5.1f})" for taken in times.values()]
        print(f"{'equal' if spread == 0 else f'normal, deviation {spread:g}':<24}", *told, flush=True)


if __name__ == "__main__":
    main()
