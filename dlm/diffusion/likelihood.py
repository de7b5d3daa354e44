"""Bounds on, and exact values of, a text's negative log-likelihood under a masked diffusion model, in nats."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import largest, random_subset, uniforms
from dlm.diffusion.process import Absorbing
from dlm.diffusion.unmask import Order, Predictions


def exact_count_nelbo(
    denoiser: Denoiser,
    process: Absorbing,
    x0_BL: Tensor,
    draws: int,
    generators: Sequence[torch.Generator],
    where_BL: Tensor | None = None,
) -> Tensor:
    """The any-order bound, estimated with stratified counts and complements.

    NELBO = E_{l~U{1..L}} (L/l) E[sum of the cross-entropy over a uniform subset of l tokens]. The l = L term,
    all masks, is taken exactly. The others come in pairs: l on an even grid of {1..L-1} with one random
    shift, and for each l a subset together with its complement of size L - l.

    Args:
        denoiser: Predicts the clean tokens; must not depend on time.
        process: Gives the mask.
        x0_BL: Clean ids.
        draws: How many masked copies of each sequence are scored besides the fully masked one; even.
        generators: One stream a sequence.
        where_BL: The tokens that are scored; the others are context, or padding. All of them by default.

    Returns:
        Contributions of each token to each of R independent estimates, float64, shape (R, B, L), zero
        outside `where_BL`. R is 2 where there are at least 4 draws, so that their difference shows the
        Monte-Carlo error, else 1. The bound is the mean over R of the sum over L.

    Raises:
        ValueError: `draws` is not an even number of at least 2.
    """
    if draws < 2 or draws % 2:
        raise ValueError(f"draws must be even and at least 2, got {draws}")
    where_BL = torch.ones_like(x0_BL, dtype=torch.bool) if where_BL is None else where_BL
    length_B = where_BL.sum(1).double()
    replicates = 2 if draws >= 4 else 1
    pairs = draws // 2
    # Replicate r has every R-th pair of the grid, and a shift of its own.
    sizes = [len(range(r, pairs, replicates)) for r in range(replicates)]
    shift_RB = torch.stack(uniforms(generators, [replicates] * len(generators)), dim=1).to(x0_BL.device)

    everything_BL = _cross_entropy(denoiser, process, x0_BL, where_BL)
    total_RBL = (everything_BL / length_B.clamp(min=1.0)[:, None]).repeat(replicates, 1, 1)
    share_B = (length_B - 1.0).clamp(min=0.0) / length_B.clamp(min=1.0)
    for r, size in enumerate(sizes):
        for j in range(size):
            u_B = (j + shift_RB[r]) / size
            count_B = (u_B * (length_B - 1.0)).floor().clamp(min=0.0) + 1.0  # 1 .. L-1
            subset_BL = random_subset(generators, where_BL, count_B)
            for half_BL, size_B in ((subset_BL, count_B), (where_BL & ~subset_BL, length_B - count_B)):
                scale_B = 0.5 * share_B / size * length_B / size_B.clamp(min=1.0)
                total_RBL[r] += scale_B[:, None] * _cross_entropy(denoiser, process, x0_BL, half_BL)
    return total_RBL


def grid_nelbo(
    denoiser: Denoiser,
    process: Absorbing,
    x0_BL: Tensor,
    t_BD: Tensor,
    generators: Sequence[torch.Generator],
    symbols: int,
) -> Tensor:
    """The continuous-time bound, estimated at given times.

    NELBO = int_0^1 -alpha'(t)/(1 - alpha(t)) E[sum of the masked tokens' cross-entropy] dt (MDLM, 2406.07524,
    eq. 11), plus what the two ends of time cost; see `Absorbing.edge_nats`.

    Args:
        denoiser: Predicts the clean tokens.
        process: The forward process.
        x0_BL: Clean ids.
        t_BD: D times in (0, 1] for each sequence: independent, or stratified.
        generators: One stream a sequence.
        symbols: K, the number of ids that text is made of.

    Returns:
        One estimate a sequence and draw, in nats, float64, shape (B, D).
    """
    terms = []
    for t_B in t_BD.double().unbind(1):
        xt_BL = process.corrupt(x0_BL, t_B, generators)
        weight_B = -process.schedule.alpha_prime(t_B) / (1.0 - process.schedule.alpha(t_B))
        masked_BL = xt_BL == process.mask_id
        terms.append(weight_B.to(x0_BL.device) * _cross_entropy(denoiser, process, x0_BL, masked_BL, t_B).sum(1))
    return torch.stack(terms, dim=1) + process.edge_nats(symbols) * x0_BL.shape[1]


def chain_rule_nll(
    denoiser: Denoiser, process: Absorbing, x0_BL: Tensor, order: Order, where_BL: Tensor | None = None
) -> Tensor:
    """The exact negative log-likelihood of the sampler that reveals one token at a time in `order`.

    -log p(x) = sum_i -log p(x_i | the tokens revealed before). The position is a function of the tokens
    revealed so far, so the terms are a chain rule, whichever order the predictions ask for.

    Args:
        denoiser: Predicts the clean tokens.
        process: Gives the mask.
        x0_BL: Clean ids.
        order: A deterministic order, such as left to right or confidence.
        where_BL: The tokens that are scored, the others being context; all of them by default.

    Returns:
        Nats a sequence, float64, shape (B,), after as many denoiser calls as the longest has scored tokens.

    Raises:
        ValueError: The order is drawn at random.
    """
    if order.draws:
        raise ValueError("the chain rule needs an order that is not drawn at random")
    where_BL = torch.ones_like(x0_BL, dtype=torch.bool) if where_BL is None else where_BL
    x_BL = process.prior(x0_BL.shape).to(x0_BL.device).where(where_BL, x0_BL)
    masked_BL = where_BL.clone()
    nll_B = torch.zeros(len(x0_BL), dtype=torch.float64, device=x0_BL.device)
    while (rows := masked_BL.any(1).nonzero()[:, 0]).numel():
        t_B = masked_BL[rows].double().mean(1)
        predictions = Predictions(denoiser(x_BL[rows], t_B, masked_BL[rows]), masked_BL[rows])
        scores_BL = order.score(masked_BL[rows], predictions, ())
        first_BL = largest(scores_BL, torch.ones(len(rows), dtype=torch.long))
        position_B = first_BL.int().argmax(1)
        log_p_NV = predictions.at(first_BL)
        token_B = x0_BL[rows, position_B]
        nll_B[rows] -= log_p_NV.gather(-1, token_B[:, None])[:, 0].double()
        x_BL[rows, position_B] = token_B
        masked_BL[rows, position_B] = False
    return nll_B


def _cross_entropy(
    denoiser: Denoiser, process: Absorbing, x0_BL: Tensor, masked_BL: Tensor, t_B: Tensor | None = None
) -> Tensor:
    """-log p of every masked token given the rest, float64, zero elsewhere, shape (B, L)."""
    ce_BL = torch.zeros(x0_BL.shape, dtype=torch.float64, device=x0_BL.device)
    if masked_BL.any():
        t_B = masked_BL.double().mean(1) if t_B is None else t_B
        log_p_NV = denoiser(x0_BL.masked_fill(masked_BL, process.mask_id), t_B, masked_BL)
        ce_BL[masked_BL] = -log_p_NV.gather(-1, x0_BL[masked_BL][:, None])[:, 0].double()
    return ce_BL
