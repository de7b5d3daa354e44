"""The forward process: how text is corrupted, and how one step back is drawn when the clean text is known.

Everything here follows from three numbers a time, the shares of clean tokens, masks and random symbols: between
any two times a transition is of the same kind, q(xt | xs) = keep xs + masked e_m + random pi. `matrices.py` writes
it as matrices.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dlm.diffusion.draws import random_scores, random_subset
from dlm.diffusion.noise import Noise, Shares
from dlm.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class Vocabulary:
    """The states of a token.

    Attributes:
        size: S, the number of ids, the mask among them.
        mask_id: The id of the mask.
        forbidden: The ids that no text holds, the mask among them; the K others are the symbols.
    """

    size: int
    mask_id: int
    forbidden: tuple[int, ...]

    @classmethod
    def plain(cls, symbols: int) -> "Vocabulary":
        """K symbols 0 .. K-1, and the mask after them."""
        return cls(symbols + 1, symbols, (symbols,))

    @cached_property
    def symbols_K(self) -> Tensor:
        """The ids that text is made of, ascending."""
        forbidden = set(self.forbidden)
        return torch.tensor([i for i in range(self.size) if i not in forbidden])


@dataclass(frozen=True)
class Process:
    """A Markov chain from clean text at t = 0 to noise at t = 1, each token on its own.

    q(xt | x0) = clean(t) x0 + masked(t) e_m + random(t) pi (GIDD, 2503.04482, eq. 1; D3PM, 2107.03006, eq. 3).

    Attributes:
        noise: What a corrupted token becomes.
        schedule: alpha(t).
        vocabulary: The states.
    """

    noise: Noise
    schedule: NoiseSchedule
    vocabulary: Vocabulary

    @property
    def mask_id(self) -> int:
        """The id of the mask."""
        return self.vocabulary.mask_id

    @property
    def absorbing(self) -> bool:
        """Whether a token that is not masked is clean for certain."""
        return not self.noise.randomises

    @cached_property
    def pi_S(self) -> Tensor:
        """The distribution of a random symbol over all ids, zero where no text has them, float64."""
        symbols_K = self.vocabulary.symbols_K
        with torch.inference_mode(False):  # a tensor made in inference mode could not be used in a later loss
            pi_S = torch.zeros(self.vocabulary.size, dtype=torch.float64)
            return pi_S.index_copy(0, symbols_K, self.noise.symbols(len(symbols_K)))

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The symbols' ids and `pi_S` on a device, copied there once."""
        if device not in self._copies:
            with torch.inference_mode(False):
                self._copies[device] = self.vocabulary.symbols_K.to(device), self.pi_S.to(device)
        return self._copies[device]

    @cached_property
    def _copies(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def shares(self, t: Tensor) -> Shares:
        """The shares of q(xt | x0).

        Args:
            t: Times in [0, 1], any shape.

        Returns:
            Three float64 tensors of that shape.
        """
        return self.noise.shares(self.schedule.alpha(t.double()))

    def transition(self, s: Tensor, t: Tensor) -> Shares:
        """The shares of q(xt | xs): kept, masked and random, with xs for x0.

        keep = clean(t)/clean(s), and what is left of the noise at t when the noise at s has been kept as
        often: masked(t) - keep masked(s), and so for random (2503.04482, section 3.1).

        Args:
            s: The earlier times, below 1.
            t: The later times, of the same shape.

        Returns:
            Three float64 tensors of that shape.
        """
        early, late = self.shares(s), self.shares(t)
        keep = torch.where(early.clean > 0, late.clean / early.clean, 0.0)  # a schedule may round to 0 before t = 1
        masked, random = late.masked - keep * early.masked, late.random - keep * early.random
        return Shares(keep, masked.clamp(min=0.0), random.clamp(min=0.0))  # rounding may leave them below zero

    def rates(self, t: Tensor) -> tuple[Shares, Shares]:
        """The shares at `t`, and how fast each kind of noise arrives.

        r = n' - (clean'/clean) n for n masked or random: the limit of `transition` over its width. The derivative
        is by the noise level 1 - alpha, not by t, so that it does not depend on the schedule;
        times -alpha'(t) it is the rate in t.

        Args:
            t: Times in (0, 1).

        Returns:
            The shares, and the rates of clean (never positive), masked and random, float64.
        """
        with torch.inference_mode(False):  # within it torch 2.11 takes every forward derivative for zero
            alpha = self.schedule.alpha(t.double()).clone()
            values, slopes = torch.func.jvp(self.noise.shares, (alpha,), (-torch.ones_like(alpha),))[:2]
        now, slope = Shares(*values), Shares(*slopes)
        decay = slope.clean / now.clean
        return now, Shares(decay, slope.masked - decay * now.masked, slope.random - decay * now.random)

    def noise_of(self, shares: Shares, z: Tensor) -> Tensor:
        """The probability that noise alone puts `z` there: masked for the mask, random pi(z) for a symbol."""
        _, pi_S = self.on(z.device)
        return torch.where(z == self.mask_id, shares.masked, shares.random * pi_S[z])

    def to_predict(self, xt_BL: Tensor) -> Tensor:
        """Where something is left to predict: at masks, and everywhere if a token that is seen may be noise."""
        return xt_BL == self.mask_id if self.absorbing else torch.ones_like(xt_BL, dtype=torch.bool)

    def corrupt(
        self, x0_BL: Tensor, t_B: Tensor, generators: Sequence[torch.Generator], editable_BL: Tensor | None = None
    ) -> Tensor:
        """Draws xt from q(xt | x0).

        Args:
            x0_BL: Clean ids.
            t_B: A time in [0, 1] for each sequence.
            generators: One stream a sequence.
            editable_BL: The positions that may be corrupted; all of them by default.

        Returns:
            Noisy ids, shape (B, L).
        """
        return self._draw(x0_BL, self.shares(t_B), generators, editable_BL)

    def sample_transition(
        self,
        xs_BL: Tensor,
        s_B: Tensor,
        t_B: Tensor,
        generators: Sequence[torch.Generator],
        editable_BL: Tensor | None = None,
    ) -> Tensor:
        """Draws xt from q(xt | xs), the chain's way from `s_B` to `t_B`; see `corrupt`."""
        return self._draw(xs_BL, self.transition(s_B, t_B), generators, editable_BL)

    def corrupt_count(
        self, x0_BL: Tensor, count_B: Tensor, generators: Sequence[torch.Generator], editable_BL: Tensor
    ) -> Tensor:
        """Masks exactly `count_B` of each sequence's positions in `editable_BL`, all subsets being equally likely.

        This is q(xt | x0) given how many tokens are masked, which for absorbing noise is all that t can tell.

        Args:
            x0_BL: Clean ids.
            count_B: How many positions to mask.
            generators: One stream a sequence.
            editable_BL: The positions that may be masked.

        Returns:
            Noisy ids, shape (B, L).
        """
        return x0_BL.masked_fill(random_subset(generators, editable_BL, count_B), self.mask_id)

    def prior(self, generators: Sequence[torch.Generator], editable_BL: Tensor) -> Tensor:
        """Draws x1 from q(x1 | x0), with x0 uniform over the symbols.

        For a schedule that ends at 0 this is the noise: all masks, or random symbols.

        Args:
            generators: One stream a sequence.
            editable_BL: The positions to draw; the mask stands at the others.

        Returns:
            Ids, shape (B, L).
        """
        symbols_K, _ = self.on(editable_BL.device)
        u_BL = random_scores(generators, editable_BL).clamp(min=0.0)
        text_BL = symbols_K[(u_BL * len(symbols_K)).long()]
        end_B = torch.ones(len(editable_BL), dtype=torch.float64, device=editable_BL.device)
        noisy_BL = self._draw(text_BL, self.shares(end_B), generators, editable_BL)
        return noisy_BL.masked_fill(~editable_BL, self.mask_id)

    def sample_posterior(
        self,
        xt_BL: Tensor,
        x0_BL: Tensor,
        s_B: Tensor,
        t_B: Tensor,
        generators: Sequence[torch.Generator],
        editable_BL: Tensor,
    ) -> Tensor:
        """Draws xs from the posterior q(xs | xt, x0), one step back on the chain.

        With x0 drawn from p(x0 | xt), xs is a draw of the mixture form sum_x0 q(xs | xt, x0) p(x0 | xt) (D3PM,
        2107.03006, eq. 4). xs is xt, or x0, or the mask, or a symbol drawn from pi.

        Args:
            xt_BL: Noisy ids.
            x0_BL: Clean ids that xt may have come from.
            s_B: The earlier time of each sequence.
            t_B: The later time.
            generators: One stream a sequence.
            editable_BL: The positions to draw; xt stays at the others.

        Returns:
            Ids at time s, shape (B, L).
        """
        early, step = (
            Shares(*(x[:, None] for x in shares)) for shares in (self.shares(s_B), self.transition(s_B, t_B))
        )
        transition_BL = self.noise_of(step, xt_BL)
        keep_BL = step.clean * ((xt_BL == x0_BL) * early.clean + self.noise_of(early, xt_BL))
        reveal_BL, random_BL = transition_BL * early.clean, transition_BL * early.random
        total_BL = keep_BL + reveal_BL + random_BL + transition_BL * early.masked
        u_BL = random_scores(generators, editable_BL) * total_BL
        symbol_BL = self._symbol((u_BL - keep_BL - reveal_BL) / random_BL)
        xs_BL = torch.where(u_BL < keep_BL + reveal_BL + random_BL, symbol_BL, self.mask_id)
        xs_BL = torch.where(u_BL < keep_BL + reveal_BL, x0_BL, xs_BL)
        return torch.where(~editable_BL | (u_BL < keep_BL), xt_BL, xs_BL)

    @cached_property
    def prior_nats_S(self) -> Tensor:
        """KL(q(x1 | x0) || the prior) for each x0, in nats; alpha(1) ln K for absorbing noise.

        The prior is what `prior` draws: x1 of a text whose symbols are all equally likely.
        """
        clean, _, random = self.shares(torch.ones(()))
        noise_S = random * self.pi_S
        there_S = noise_S + clean / len(self.vocabulary.symbols_K)
        return _sum_over_symbols(self, noise_S, clean, lambda q_S: torch.xlogy(q_S, q_S) - torch.xlogy(q_S, there_S))

    @cached_property
    def reconstruction_nats_S(self) -> Tensor:
        """The mean of -log p(x0 | x at t = 0) for each x0, in nats; (1 - alpha(0)) ln K for absorbing noise.

        p(x0 | x) is what Bayes says where all symbols are equally likely; zero for a schedule that begins at 1.
        """
        clean, masked, random = self.shares(torch.zeros(()))
        noise_S, count = random * self.pi_S, len(self.vocabulary.symbols_K)
        whole_S = clean + count * noise_S
        seen_S = _sum_over_symbols(self, noise_S, clean, lambda q_S: torch.xlogy(q_S, whole_S) - torch.xlogy(q_S, q_S))
        return seen_S + masked * math.log(count)

    def _draw(
        self, x_BL: Tensor, shares: Shares, generators: Sequence[torch.Generator], editable_BL: Tensor | None
    ) -> Tensor:
        """Keeps, masks or randomises each token; one number a token, whose rest chooses the symbol."""
        editable_BL = torch.ones_like(x_BL, dtype=torch.bool) if editable_BL is None else editable_BL
        clean_B1, random_B1 = (share.to(x_BL.device)[:, None] for share in (shares.clean, shares.random))
        u_BL = random_scores(generators, editable_BL)
        noisy_BL = torch.full_like(x_BL, self.mask_id)
        if self.noise.randomises:
            symbol_BL = self._symbol((u_BL - clean_B1) / random_B1)
            noisy_BL = torch.where(u_BL < clean_B1 + random_B1, symbol_BL, noisy_BL)
        return torch.where(editable_BL & (u_BL >= clean_B1), noisy_BL, x_BL)

    def _symbol(self, u_BL: Tensor) -> Tensor:
        """The symbol at quantile u of pi; any symbol where u is not in [0, 1)."""
        symbols_K, pi_S = self.on(u_BL.device)
        cdf_K = pi_S[symbols_K].cumsum(0)
        index_BL = torch.searchsorted(cdf_K, u_BL.nan_to_num() * cdf_K[-1], right=True)
        return symbols_K[index_BL.clamp(max=len(symbols_K) - 1)]


def _sum_over_symbols(process: Process, noise_S: Tensor, clean: Tensor, term: Callable[[Tensor], Tensor]) -> Tensor:
    """For each x0 the sum over symbols z of term(q(z | x0)), q being `noise_S` and `clean` more at z = x0."""
    term_S = term(noise_S)
    is_symbol_S = noise_S.new_zeros(process.vocabulary.size).index_fill(0, process.vocabulary.symbols_K, 1.0)
    return (term_S * is_symbol_S).sum() - term_S + term(noise_S + clean)
