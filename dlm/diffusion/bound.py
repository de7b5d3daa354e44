"""What the bound costs at one position and one time: the terms that objectives and estimators add up.

A model of the reverse chain puts a predicted x0 in the place of the true one. With l the leave-one-out
prediction p(x0_i | xt without i), q_t(. | l) = clean l + masked e_m + random pi is what it expects to see; every
term below is a comparison of that with q_t(. | x0), for any noise.
"""

from functools import lru_cache

import torch
from torch import Tensor

from dlm.diffusion.denoiser import leave_one_out
from dlm.diffusion.noise import Shares
from dlm.diffusion.process import Process
from dlm.diffusion.schedule import NoiseSchedule, noise_levels

LEVEL_POWER = 2.0
"""Times are drawn so that u is even and the noise level is u to this power.

Near level 0 a corrupted token is rare and costs in proportion to 1/level: even levels would have infinite variance.
Masks and uniform noise come in proportion to the level, which any power above 1 makes up for. The random symbols of
hybrid noise come in proportion to its square root: at power 2 the variance diverges with the logarithm of the draws,
and above 2 it is finite. A power of 3 costs more at high levels: on a trained model its error was 1.4 times as large.
"""


def cross_entropy(log_p0_NV: Tensor, x0_N: Tensor) -> Tensor:
    """-log p(x0 | xt) of the clean tokens in nats, shape (N,), differentiable."""
    return -log_p0_NV.gather(-1, x0_N[:, None])[:, 0]


def nats_per_level(process: Process, log_p0_NV: Tensor, x0_N: Tensor, z_N: Tensor, t_N: Tensor) -> Tensor:
    """The integrand of the continuous-time bound, by the noise level.

    NELBO = int E[sum_i of this] d(1 - alpha), with each position's
    (r(z)/q(z | x0)) (KL(q(. | x0) || q(. | l)) + IS(q(z | x0), q(z | l))), IS(a, b) = a/b - log(a/b) - 1
    (GIDD, 2503.04482, eq. 9; for uniform noise UDLM, 2412.10193, eq. 18), r being the rate at which noise
    arrives at z. At a mask of absorbing noise it is -log p(x0 | xt) / (1 - alpha).

    Args:
        process: The forward process.
        log_p0_NV: Predictions p(x0 | xt).
        x0_N: The clean tokens.
        z_N: The noisy ones.
        t_N: The time of each, inside (0, 1).

    Returns:
        Nats, float64, shape (N,), differentiable.
    """
    shares, rates = process.rates(t_N)
    log_l_NV = leave_one_out(log_p0_NV, z_N, process, t_N)
    arrives_N = process.noise_of(rates, z_N)
    true_N, log_seen_N = _seen(process, shares, log_l_NV, x0_N, z_N)
    log_ratio_N = true_N.log() - log_seen_N
    itakura_saito_N = log_ratio_N.exp() - log_ratio_N - 1.0
    return arrives_N / true_N * (_divergence(process, shares, log_l_NV, x0_N) + itakura_saito_N)


def step_nats(process: Process, log_p0_NV: Tensor, x0_N: Tensor, z_N: Tensor, s_N: Tensor, t_N: Tensor) -> Tensor:
    """One step's term of the bound of a chain of steps, KL(q(xs | xt, x0) || p(xs | xt)) (2107.03006, eq. 1).

    p(xs | xt) is the mixture form with p(x0 | xt), which is the plug-in form with l. Both posteriors share the
    factor q(xt | xs), so with n the noise of q(xt | xs) the divergence is
    (keep q_s(z | x0) log(q_s(z | x0)/q_s(z | l)) + n(z) KL(q_s(. | x0) || q_s(. | l))) / q_t(z | x0)
    - log(q_t(z | x0)/q_t(z | l)). At s = 0 it is -log p(x0 | xt), the reconstruction.

    Args:
        process: The forward process.
        log_p0_NV: Predictions p(x0 | xt).
        x0_N: The clean tokens.
        z_N: The noisy ones.
        s_N: The earlier time of each.
        t_N: The later time of each.

    Returns:
        Nats, float64, shape (N,), differentiable.
    """
    early, late, step = process.shares(s_N), process.shares(t_N), process.transition(s_N, t_N)
    log_l_NV = leave_one_out(log_p0_NV, z_N, process, t_N)
    before_N, log_before_N = _seen(process, early, log_l_NV, x0_N, z_N)
    true_N, log_seen_N = _seen(process, late, log_l_NV, x0_N, z_N)
    stays_N = step.clean * torch.where(before_N > 0, before_N * (before_N.log() - log_before_N), 0.0)
    moves_N = process.noise_of(step, z_N) * _divergence(process, early, log_l_NV, x0_N)
    return (stays_N + moves_N) / true_N - (true_N.log() - log_seen_N)


def prior_and_reconstruction_nats(process: Process, x0: Tensor) -> Tensor:
    """The prior and the reconstruction term of each token, in nats, float64; zero for most schedules."""
    return (process.prior_nats_S + process.reconstruction_nats_S).to(x0.device)[x0]


STEPS_A_PART = 8192
"""Steps of a chain that are added up at once: all together would take the memory of T times L numbers."""


@lru_cache(maxsize=256)
def count_weights(schedule: NoiseSchedule, length: int, steps: int | None) -> Tensor:
    """How much a number of masks counts in the bound of absorbing noise, relative to what it does in E[L/l ...].

    NELBO = sum over l of (w_l / l) E[cross-entropy of a uniform subset of l]. In continuous time
    w_l is the probability that Beta(l, L - l + 1) falls between the two ends of the noise level: 1 for a schedule
    from 1 to 0. In T steps w_l = l sum_k (alpha_s - alpha_t)/(1 - alpha_t) Binomial(l; L, 1 - alpha_t).
    Time is integrated out, which leaves the bound as it is and takes its variance away; it needs a denoiser
    that takes no time.

    Args:
        schedule: alpha(t).
        length: L.
        steps: T; None for continuous time.

    Returns:
        w_0 .. w_L, float64, shape (L + 1,).
    """
    if steps is None:
        start, end = noise_levels(schedule)
        if start == 0.0 and end == 1.0:
            return torch.ones(length + 1, dtype=torch.float64)
        # P(Beta(l, L - l + 1) < x) = P(Binomial(L, x) >= l).
        tails = [
            _binomial(length, torch.tensor([x], dtype=torch.float64))[0].flip(0).cumsum(0).flip(0) for x in (start, end)
        ]
        return tails[1] - tails[0]
    alpha_T = schedule.alpha(torch.arange(steps + 1, dtype=torch.float64) / steps)
    reveal_T = -alpha_T.diff() / (1.0 - alpha_T[1:])
    count = torch.arange(length + 1, dtype=torch.float64)
    parts = zip(reveal_T.split(STEPS_A_PART), (1.0 - alpha_T[1:]).split(STEPS_A_PART), strict=True)
    return count * sum(reveal @ _binomial(length, masked) for reveal, masked in parts)


def count_weights_of(schedule: NoiseSchedule, length: Tensor, count: Tensor, steps: int | None = None) -> Tensor:
    """The w_l of `count_weights` for many texts, or blocks of them, at once.

    Args:
        schedule: alpha(t).
        length: L of each, any shape.
        count: l of each, the same shape.
        steps: T; None for continuous time.

    Returns:
        Float64, the same shape.
    """
    start, end = noise_levels(schedule)
    if steps is None and start == 0.0 and end == 1.0:
        return torch.ones_like(length, dtype=torch.float64)
    lengths, which = length.long().unique(return_inverse=True)
    table = [count_weights(schedule, each, steps) for each in lengths.tolist()]
    wide = torch.nn.utils.rnn.pad_sequence(table, batch_first=True).to(length.device)
    return wide[which, count.long()]


def _binomial(length: int, p_T: Tensor) -> Tensor:
    """Binomial(l; L, p) for l = 0 .. L, shape (T, L + 1)."""
    count = torch.arange(length + 1, dtype=torch.float64)
    choose = torch.lgamma(count.new_tensor(length + 1.0)) - torch.lgamma(count + 1) - torch.lgamma(length - count + 1)
    p_T1 = p_T[:, None]
    return torch.exp(choose + torch.xlogy(count, p_T1) + torch.xlogy(length - count, 1.0 - p_T1))


def _seen(process: Process, shares: Shares, log_l_NV: Tensor, x0_N: Tensor, z_N: Tensor) -> tuple[Tensor, Tensor]:
    """q(z | x0), and log q(z | l), which is the same number where z is the mask."""
    masked_N = z_N == process.mask_id
    noise_N = process.noise_of(shares, z_N)
    true_N = noise_N + shares.clean * (z_N == x0_N)
    # Any column will do for a mask; its own is minus infinity, which has no gradient.
    log_l_N = log_l_NV.gather(-1, torch.where(masked_N, x0_N, z_N)[:, None])[:, 0].double()
    log_seen_N = torch.logaddexp(shares.clean.log() + log_l_N, noise_N.log())
    return true_N, torch.where(masked_N, noise_N.log(), log_seen_N)


def _divergence(process: Process, shares: Shares, log_l_NV: Tensor, x0_N: Tensor) -> Tensor:
    """KL(q(. | x0) || q(. | l)); the masks, being alike in both, drop out."""
    own_N = process.noise_of(shares, x0_N)
    there_N = shares.clean + own_N
    log_l_N = log_l_NV.gather(-1, x0_N[:, None])[:, 0].double()
    log_there_N = torch.logaddexp(shares.clean.log() + log_l_N, own_N.log())
    # q(. | x0) is noise everywhere, and more of it at x0.
    nats_N = torch.xlogy(there_N, there_N) - torch.xlogy(own_N, own_N) - shares.clean * log_there_N
    if process.absorbing:
        return nats_N
    _, pi_V = process.on(log_l_NV.device)
    entropy = torch.xlogy(pi_V, pi_V).sum()
    # Where there is no random noise its term is zero, and any number will do for it.
    random_N = torch.where(shares.random > 0, shares.random, 1.0)
    pi_32 = pi_V.to(log_l_NV)
    expected_NV = shares.clean.to(log_l_NV)[:, None] * log_l_NV.exp() + random_N.to(log_l_NV)[:, None] * pi_32
    # One instead of zero where no text has the id, so that its logarithm is zero.
    cross_N = ((expected_NV + (pi_32 == 0)).log() @ pi_32).double()
    return nats_N + shares.random * (random_N.log() + entropy - cross_N)
