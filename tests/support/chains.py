"""Chains of noisy texts by enumeration, and whether texts are draws of what they give."""

from collections.abc import Callable

import torch
from scipy import stats
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.matrices import posterior
from dlm.diffusion.process import Process
from tests.support.joints import every_noisy, marginal
from tests.support.networks import ask

Move = Callable[[int, Tensor, Tensor], Tensor]
"""(k, every noisy text at k/T, p(x0 | xt) at each position) -> the distribution of each of its tokens at (k-1)/T."""


def every(rows: int, length: int) -> Tensor:
    """Every position may be written."""
    return torch.ones(rows, length, dtype=torch.bool)


def follows(x_BL: Tensor, texts_ML: Tensor, p_M: Tensor) -> bool:
    """Whether texts are draws of a distribution over `texts_ML`, by the chi-square test."""
    found_M = (x_BL[:, None] == texts_ML).all(-1).sum(0)
    likely = p_M > 1e-12
    assert int(found_M.sum()) == len(x_BL) and not found_M[~likely].any()
    if int(likely.sum()) == 1:
        return True
    expected = p_M[likely] / p_M[likely].sum() * len(x_BL)
    return float(stats.chisquare(found_M[likely].numpy(), expected.numpy()).pvalue) > 1e-4


def ancestral(process: Process, steps: int) -> Move:
    """The mixture of posteriors, sum_x0 q(xs | xt, x0) p(x0 | xt)."""

    def move(k: int, texts_ML: Tensor, p_MLS: Tensor) -> Tensor:
        s, t = torch.tensor([(k - 1) / steps, k / steps], dtype=torch.float64)
        return posterior(process, texts_ML, p_MLS, s, t)

    return move


def chain(denoiser: Denoiser, process: Process, length: int, steps: int, move: Move) -> tuple[Tensor, list[Tensor]]:
    """Every noisy text, and its probability at first and after each step; the last step keeps x0."""
    texts_ML = every_noisy(process, length)
    p_M = marginal(process, 1.0)[:, process.vocabulary.symbols_K].mean(1)[texts_ML].prod(-1)
    found = [p_M]
    for k in range(steps, 0, -1):
        select_ML = process.to_predict(texts_ML)
        p_MLS = torch.nn.functional.one_hot(texts_ML, process.vocabulary.size).double()
        t_M = torch.full((len(texts_ML),), k / steps, dtype=torch.float64)
        p_MLS[select_ML] = ask(denoiser, texts_ML, t_M, select_ML).exp().double()
        xs_MLS = p_MLS if k == 1 else move(k, texts_ML, p_MLS)
        after_M = torch.zeros_like(p_M)
        for p, xs_LS in zip(p_M, xs_MLS, strict=True):
            if p > 0:  # of a text that cannot be, the posterior is not defined
                after_M += p * torch.stack([xs_LS[i, texts_ML[:, i]] for i in range(length)]).prod(0)
        found.append(p_M := after_M)
    return texts_ML, found
