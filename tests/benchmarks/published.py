"""How far the estimator of MDLM (2406.07524) is from the bound that it estimates.

That estimator draws t evenly between 0.001 and 1, masks a token with probability 0.999 t, and weighs its cross-entropy
by 1/t. With c_l the mean cross-entropy of a token where l of L are masked, the bound a token is the mean of c_l over
l = 1..L. The expectation of the estimator is the sum over l of

    c_l (I(0.999; l, L - l + 1) - I(0.000999; l, L - l + 1)) / (0.999 L),

where I is the regularised incomplete beta function: the integral of Binomial(l - 1; L - 1, u) over u below x is
I(x; l, L - l + 1) / L. So it leaves out the ends, where all tokens or none are masked, and divides by what is left.
Run: python -m tests.benchmarks.published MODEL --text FILE
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.special import betainc
from torch import Tensor

from dlm.diffusion.draws import generator, random_subset
from dlm.lm import DiffusionLM
from dlm.model.text import encode
from tests.support.networks import ask

LEAST = 1e-3
"""Both the least t, and how likely a token stays clean at t = 1."""


def expected(c_L: Tensor) -> float:
    """What the estimator gives on average, from the mean cross-entropy of a token with 1..L masked."""
    length = len(c_L)
    counts = np.arange(1, length + 1)
    inside = betainc(counts, length - counts + 1, 1 - LEAST) - betainc(counts, length - counts + 1, (1 - LEAST) * LEAST)
    return float((c_L.numpy() * inside).sum() / (length * (1 - LEAST)))


@torch.inference_mode()
def cross_entropies(lm: DiffusionLM, x0_BL: Tensor) -> Tensor:
    """The mean cross-entropy of a masked token, for each number of masks; each row has one subset of each size."""
    rows, length = x0_BL.shape
    found = torch.zeros(length, dtype=torch.float64)
    streams = [generator("published", row) for row in range(rows)]
    for count in range(1, length + 1):
        masked_BL = random_subset(streams, torch.ones_like(x0_BL, dtype=torch.bool), torch.full((rows,), count))
        xt_BL = x0_BL.masked_fill(masked_BL, lm.process.mask_id)
        log_p0_NV = ask(lm.denoisers.scoring, xt_BL, masked_BL.double().mean(1), masked_BL)
        found[count - 1] = -float(log_p0_NV.gather(-1, x0_BL[masked_BL][:, None]).double().mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", required=True, help="a file, of which the last tenth is scored")
    parser.add_argument("--rows", type=int, default=256, help="rows of the model's context")
    options = parser.parse_args()

    lm = DiffusionLM.from_pretrained(options.model, device="cpu", dtype="fp32")
    text = Path(options.text).read_text(encoding="utf-8")
    (ids,) = encode(lm.tokenizer, [text[-len(text) // 10 :]])
    rows = min(options.rows, len(ids) // lm.context)
    c_L = cross_entropies(lm, torch.tensor(ids[: rows * lm.context]).view(rows, lm.context))
    bound, estimate = float(c_L.mean()), expected(c_L)
    print(f"{rows} rows of {lm.context}: cross-entropy {c_L[0]:.4f} with one mask, {c_L[-1]:.4f} with all")
    print(f"bound {bound:.4f} nats/token; estimator {estimate:.4f}, {estimate - bound:+.4f}")
    for name, nats in (("as they are", 0.0), ("with two special tokens a row that cost nothing", 2.0)):
        free = estimate * (1 - nats / lm.context)
        print(f"perplexity {np.exp(bound):.3f} and {np.exp(free):.3f}, rows {name}")


if __name__ == "__main__":
    main()
