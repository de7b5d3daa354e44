"""The forward process as matrices over the states of a token, to check and to teach; samplers and bounds need none."""

import torch
from torch import Tensor

from dlm.diffusion.noise import Shares
from dlm.diffusion.process import Process


def transition_matrix(process: Process, s: float | Tensor, t: float | Tensor) -> Tensor:
    """Q from time `s` to time `t` as a matrix whose columns sum to 1.

    From s = 0 it is q(xt | x0) itself, noise that is there from the start (alpha(0) < 1) included.

    Args:
        process: The process.
        s: The earlier time.
        t: The later time.

    Returns:
        A float64 matrix, shape (S, S): column j is q(xt | xs = j).
    """
    s, t = torch.as_tensor(s, dtype=torch.float64), torch.as_tensor(t, dtype=torch.float64)
    return _matrix(process, process.shares(t) if s == 0 else process.transition(s, t))


def posterior(process: Process, xt_BL: Tensor, p0_BLS: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The mixture form sum_x0 q(xs | xt, x0) p0(x0); for a one-hot p0 the posterior itself, by Bayes.

    q(xs | xt, x0) is proportional to q(xt | xs) q(xs | x0) (D3PM, 2107.03006, eq. 3). `Process.sample_posterior` draws
    from it without the table.

    Args:
        process: The process.
        xt_BL: Noisy ids.
        p0_BLS: A distribution over the S states, the mask among them with probability zero. Where xt cannot
            have come from any of it, as for other visible tokens under absorbing noise, xt stays.
        s: The earlier time, a scalar.
        t: The later time, a scalar.

    Returns:
        Probabilities over the S states, shape (B, L, S).
    """
    q_s, q_ts = _matrix(process, process.shares(s)), _matrix(process, process.transition(s, t))
    # q(xt | x0) by x0, in the order of p0's last axis.
    came_BLS = (q_ts @ q_s).to(p0_BLS)[xt_BL]
    seen_BLS = torch.nn.functional.one_hot(xt_BL, process.vocabulary.size).to(p0_BLS)
    possible_BL1 = ((came_BLS > 0) & (p0_BLS > 0)).any(-1, keepdim=True)
    share_BLS = torch.where(came_BLS > 0, p0_BLS / came_BLS, 0.0)
    xs_BLS = q_ts.to(p0_BLS)[xt_BL] * (share_BLS @ q_s.T.to(p0_BLS))
    return torch.where(possible_BL1, xs_BLS / xs_BLS.sum(-1, keepdim=True), seen_BLS)


def _matrix(process: Process, shares: Shares) -> Tensor:
    """The matrix of one pair of times, from its shares."""
    clean, masked, random = shares
    eye_SS = torch.eye(process.vocabulary.size, dtype=torch.float64)
    return clean * eye_SS + (masked * eye_SS[process.mask_id] + random * process.pi_S)[:, None]
