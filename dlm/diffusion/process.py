"""Forward processes: how text is corrupted, and how one step of it is undone when the clean text is known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.diffusion.draws import random_scores, random_subset
from dlm.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class Absorbing:
    """Every token turns into the mask, once and for good (D3PM, 2107.03006, appendix A.2.2).

    Attributes:
        schedule: alpha(t), the probability that a token is still clean.
        mask_id: The id of the mask.
    """

    schedule: NoiseSchedule
    mask_id: int

    def corrupt(
        self, x0_BL: Tensor, t_B: Tensor, generators: Sequence[torch.Generator], where_BL: Tensor | None = None
    ) -> Tensor:
        """Draws xt from q(xt | x0): each token is masked on its own with probability 1 - alpha(t).

        Args:
            x0_BL: Clean ids.
            t_B: A time in [0, 1] for each sequence.
            generators: One stream a sequence.
            where_BL: The positions that may be corrupted; all of them by default.

        Returns:
            Noisy ids, shape (B, L).
        """
        where_BL = torch.ones_like(x0_BL, dtype=torch.bool) if where_BL is None else where_BL
        clean_B = self.schedule.alpha(t_B.double()).to(x0_BL.device)
        masked_BL = where_BL & (random_scores(generators, where_BL) >= clean_B[:, None])
        return x0_BL.masked_fill(masked_BL, self.mask_id)

    def corrupt_count(
        self, x0_BL: Tensor, count_B: Tensor, generators: Sequence[torch.Generator], where_BL: Tensor
    ) -> Tensor:
        """Masks exactly `count_B` of each sequence's positions in `where_BL`, all subsets being equally likely.

        This is q(xt | x0) given how many tokens are masked, which for absorbing noise is all that t can tell.

        Args:
            x0_BL: Clean ids.
            count_B: How many positions to mask.
            generators: One stream a sequence.
            where_BL: The positions that may be masked.

        Returns:
            Noisy ids, shape (B, L).
        """
        return x0_BL.masked_fill(random_subset(generators, where_BL, count_B), self.mask_id)

    def reveal_probability(self, s: Tensor, t: Tensor) -> Tensor:
        """The probability (alpha_s - alpha_t) / (1 - alpha_t) that a token masked at `t` is clean at `s` < `t`."""
        alpha_s, alpha_t = self.schedule.alpha(s), self.schedule.alpha(t)
        return (alpha_s - alpha_t) / (1.0 - alpha_t)

    def posterior(self, xt_BL: Tensor, p0_BLS: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """q(xs | xt, x0) averaged over a distribution of x0; for a one-hot p0 it is the posterior itself.

        A clean token stays. A masked one becomes x0 with `reveal_probability`, and else stays masked
        (MDLM, 2406.07524, eq. 6).

        Args:
            xt_BL: Noisy ids.
            p0_BLS: A distribution over the S states, the mask among them with probability zero.
            s: The earlier time, a scalar.
            t: The later time, a scalar.

        Returns:
            Probabilities over the S states, shape (B, L, S).
        """
        stays_BLS = torch.nn.functional.one_hot(xt_BL, p0_BLS.shape[-1]).to(p0_BLS)
        reveal = self.reveal_probability(s, t).to(p0_BLS)
        masked_BL1 = (xt_BL == self.mask_id)[..., None]
        return torch.where(masked_BL1, reveal * p0_BLS + (1.0 - reveal) * stays_BLS, stays_BLS)

    def edge_nats(self, symbols: int) -> float:
        """What the bound costs a token at the two ends of time: alpha(1) ln K + (1 - alpha(0)) ln K.

        At t = 1 a token that is still clean is not what the prior says, and at t = 0 one that is masked
        already must be guessed; for schedules from exactly 1 to exactly 0 both vanish.

        Args:
            symbols: K, the number of ids that text is made of.

        Returns:
            Nats a token.
        """
        alpha_0, alpha_1 = self.schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return float((alpha_1 + 1.0 - alpha_0) * math.log(symbols))

    def prior(self, shape: Sequence[int]) -> Tensor:
        """The state at t = 1, ids of the given shape: all masks."""
        return torch.full(tuple(shape), self.mask_id)

    def transition_matrix(self, s: float, t: float, states: int) -> Tensor:
        """Q from time `s` to time `t` as a matrix whose columns sum to 1, to check and to teach.

        Q = (alpha_t/alpha_s) I + (1 - alpha_t/alpha_s) e_m 1^T (2107.03006, section 3.1, columns for rows).

        Args:
            s: The earlier time.
            t: The later time.
            states: The number S of ids, the mask among them.

        Returns:
            A float64 matrix, shape (S, S): column j is q(xt | xs = j).
        """
        ends = torch.tensor([s, t], dtype=torch.float64)
        alpha_s, alpha_t = self.schedule.alpha(ends).tolist()
        keep = alpha_t / alpha_s
        matrix_SS = keep * torch.eye(states, dtype=torch.float64)
        matrix_SS[self.mask_id] += 1.0 - keep
        return matrix_SS
