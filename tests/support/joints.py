"""Small joint distributions with exact denoisers: what the mathematics is checked against."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser, with_own_token
from dlm.diffusion.likelihood import Estimator
from dlm.diffusion.matrices import transition_matrix
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.noise import Absorbing, Shares
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.schedule import NoiseSchedule
from dlm.selftest.joints import every_text
from tests.support.networks import ask


def absorbing(schedule: NoiseSchedule, symbols: int) -> Process:
    """Masks over the symbols 0 .. K-1; the mask has id K."""
    return Process(Absorbing(), schedule, Vocabulary.plain(symbols))


@dataclass(frozen=True)
class Lopsided:
    """Noise of masks and of symbols that are not equally likely: the first twice as often as the second, and so on."""

    name: str = "lopsided"
    masks: ClassVar[bool] = True
    randomises: ClassVar[bool] = True

    def shares(self, alpha: Tensor) -> Shares:
        """Half of the noise is masks."""
        return Shares(alpha, (1.0 - alpha) / 2, (1.0 - alpha) / 2)

    def symbols(self, count: int) -> Tensor:
        """Proportional to 1, 1/2, 1/4, .."""
        weights = 0.5 ** torch.arange(count, dtype=torch.float64)
        return weights / weights.sum()


@dataclass(frozen=True)
class Straight:
    """alpha(t) from `first` to `last`, so that neither end need be reached."""

    first: float
    last: float
    name: str = "straight"

    def alpha(self, t: Tensor) -> Tensor:
        return self.first + (self.last - self.first) * t

    def alpha_prime(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.last - self.first)

    def inverse(self, alpha: Tensor) -> Tensor:
        return (alpha - self.first) / (self.last - self.first)


def reveal_probability(process: Process, s: Tensor, t: Tensor) -> Tensor:
    """The probability (alpha_s - alpha_t) / (1 - alpha_t) that a token masked at `t` is clean at `s` < `t`."""
    alpha_s, alpha_t = process.schedule.alpha(s), process.schedule.alpha(t)
    return (alpha_s - alpha_t) / (1.0 - alpha_t)


def count_nelbo(
    denoiser: Denoiser,
    process: Process,
    x0_BL: Tensor,
    draws: int,
    generators: Sequence[torch.Generator],
    loss_mask_BL: Tensor | None = None,
) -> Tensor:
    """The bound by exact counts of masks, as `Estimator` gives it for absorbing noise."""
    return Estimator(draws)(denoiser, process, x0_BL, generators, loss_mask_BL)


@dataclass
class Joint(Denoiser):
    """Every text of L tokens over K symbols with its probability; the mask has id K."""

    table: Tensor  # K x K x ... x K, float64, sums to 1
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    known: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.table.ndim

    @property
    def symbols(self) -> int:
        return self.table.shape[0]

    def texts(self) -> Tensor:
        return every_text(self.symbols, self.length)

    def log_p(self, texts: Tensor) -> Tensor:
        return torch.stack([self.table[tuple(x.tolist())].log() for x in texts])

    def entropy(self) -> float:
        return float(torch.special.entr(self.table).sum())

    def __call__(self, inputs: NetworkInput) -> Tensor:
        """The exact conditional of each selected position given the visible tokens, over K + 1 ids."""
        xt_BL, select_BL = inputs.ids_BL, inputs.wanted_BL
        self.calls.append((xt_BL.clone(), select_BL.clone()))
        rows = [self._conditional(xt_BL[b].tolist(), i) for b, i in select_BL.nonzero().tolist()]
        return torch.stack(rows) if rows else torch.empty(0, self.symbols + 1, dtype=torch.float64)

    def _conditional(self, x: Sequence[int], i: int) -> Tensor:
        key = (i, *x)
        if key not in self.known:
            self.known[key] = self._sum_out(x, i)
        return self.known[key]

    def _sum_out(self, x: Sequence[int], i: int) -> Tensor:
        visible = tuple(slice(None) if v == self.symbols or j == i else v for j, v in enumerate(x))
        left = self.table[visible]
        axis = sum(isinstance(v, slice) for v in visible[:i])
        others = [a for a in range(left.ndim) if a != axis]
        p_K = left.sum(others) if others else left
        return torch.cat([(p_K / p_K.sum()).log(), torch.tensor([-math.inf], dtype=torch.float64)])


def random_joint(length: int, symbols: int, seed: int = 0) -> Joint:
    weights = torch.rand([symbols] * length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Joint(weights**3 / (weights**3).sum())


def twins(symbols: int = 2) -> Joint:
    """Two identical fair symbols."""
    return Joint(torch.eye(symbols, dtype=torch.float64) / symbols)


class Narrow(Denoiser):
    """A denoiser of the first columns only: what it is shown further to the right is padding."""

    def __init__(self, denoiser: Denoiser, length: int) -> None:
        self.denoiser, self.length = denoiser, length
        self.seen: list[Tensor] = []

    def __call__(self, inputs: NetworkInput) -> Tensor:
        xt_BL, t_B, select_BL = inputs.ids_BL, inputs.time_B, inputs.wanted_BL
        self.seen.append(xt_BL.clone())
        assert not select_BL[:, self.length :].any()
        return ask(self.denoiser, xt_BL[:, : self.length], t_B, select_BL[:, : self.length])


class Wrong(Denoiser):
    """A denoiser of no joint at all: its answers depend on the visible tokens and contradict each other."""

    def __init__(self, symbols: int, length: int, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(length, length, symbols + 1, symbols, generator=random, dtype=torch.float64)
        self.symbols = symbols

    def __call__(self, inputs: NetworkInput) -> Tensor:
        xt_BL, select_BL = inputs.ids_BL, inputs.wanted_BL
        length = xt_BL.shape[1]
        positions = torch.arange(length)
        logits_BLK = torch.stack(
            [self.weight[:length, positions, x_L].sum(1) for x_L in xt_BL]
        )  # position i sums what each position j says with the token it holds
        log_p_NK = logits_BLK[select_BL].log_softmax(-1)
        return torch.cat([log_p_NK, torch.full((len(log_p_NK), 1), -math.inf, dtype=torch.float64)], dim=1)


class ByCount(Denoiser):
    """A denoiser that says only this: with l of the L tokens masked, the 0 at each has cross-entropy cost[l - 1].

    No joint is behind it. The bound of a text of zeros is the sum of the costs, and nothing but the number of
    masks makes an estimate of it vary.
    """

    mask = 2

    def __init__(self, cost: Sequence[float]) -> None:
        self.cost = torch.tensor(cost, dtype=torch.float64)

    @property
    def bound(self) -> float:
        return float(self.cost.sum())

    def __call__(self, inputs: NetworkInput) -> Tensor:
        xt_BL, select_BL = inputs.ids_BL, inputs.wanted_BL
        count_B = (xt_BL == self.mask).sum(1)
        nats_N = self.cost[count_B[select_BL.nonzero()[:, 0]] - 1]
        return torch.stack([-nats_N, torch.log1p(-torch.exp(-nats_N)), torch.full_like(nats_N, -math.inf)], dim=1)


def urn(length: int) -> ByCount:
    """Polya's urn, started with one ball of either colour: the exact denoiser of a text in which every ball is 0.

    It draws colour 0 with probability (n + 1)/(n + 2) after n zeros, so p(0...0) = 1/(L + 1).
    """
    return ByCount([math.log((length - masked + 2) / (length - masked + 1)) for masked in range(1, length + 1)])


class Chain(Denoiser):
    """A stationary Markov chain of any length with exact conditionals given any visible tokens.

    A symbol stays with probability `stay`, and else becomes any other with equal chances. The mask has id K.
    """

    def __init__(self, stay: float = 0.9, symbols: int = 16) -> None:
        self.stay, self.mask = stay, symbols
        memory = ((symbols * stay - 1) / (symbols - 1)) ** torch.arange(513, dtype=torch.float64)[:, None, None]
        self.power = memory * torch.eye(symbols, dtype=torch.float64) + (1 - memory) / symbols

    def draw(self, rows: int, length: int, seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        moves = torch.randint(1, self.mask, (rows, length), generator=random)
        moves[torch.rand(rows, length, generator=random) < self.stay] = 0
        moves[:, 0] = torch.randint(self.mask, (rows,), generator=random)
        return moves.cumsum(1) % self.mask

    def __call__(self, inputs: NetworkInput) -> Tensor:
        """P(x_i | nearest visible neighbours), by powers of the transition matrix."""
        xt_BL, select_BL = inputs.ids_BL, inputs.wanted_BL
        length = xt_BL.shape[1]
        index_BL = torch.arange(length).expand(xt_BL.shape)
        seen_BL = xt_BL != self.mask
        left_BL = torch.where(seen_BL, index_BL, -1).cummax(1).values
        right_BL = torch.where(seen_BL, index_BL, length).flip(1).cummin(1).values.flip(1)
        row_N, at_N = select_BL.nonzero().unbind(1)
        left_N, right_N = left_BL[row_N, at_N], right_BL[row_N, at_N]
        p_NK = torch.full((len(at_N), self.mask), 1 / self.mask, dtype=torch.float64)
        for side_N, there in ((left_N, left_N >= 0), (right_N, right_N < length)):
            symbol = xt_BL[row_N[there], side_N[there]]
            p_NK[there] *= self.power[(at_N[there] - side_N[there]).abs(), symbol]
        log_p = (p_NK / p_NK.sum(1, keepdim=True)).log()
        return torch.cat([log_p, torch.full((len(at_N), 1), -math.inf, dtype=torch.float64)], dim=1)


def subsets(length: int, size: int | None = None) -> Iterator[Tensor]:
    """Every set of positions, or every set of one size, as boolean masks."""
    for bits in itertools.product([False, True], repeat=length):
        if size is None or sum(bits) == size:
            yield torch.tensor(bits)


def masked_cross_entropy(denoiser: Denoiser, x0_L: Tensor, masked_L: Tensor, mask_id: int) -> float:
    """The sum over the masked positions of -log p(x0_i | the others)."""
    if not masked_L.any():
        return 0.0
    xt_1L = x0_L.masked_fill(masked_L, mask_id)[None]
    log_p = ask(denoiser, xt_1L, masked_L.double().mean()[None], masked_L[None])
    return -float(log_p.gather(1, x0_L[masked_L][:, None]).sum())


def exact_nelbo(denoiser: Denoiser, x0_L: Tensor, mask_id: int) -> float:
    """E over l of (L/l) E over subsets of size l of the cross-entropy, by enumeration."""
    length = len(x0_L)
    total = 0.0
    for size in range(1, length + 1):
        terms = [masked_cross_entropy(denoiser, x0_L, s, mask_id) for s in subsets(length, size)]
        total += sum(terms) / len(terms) / size
    return total


def discrete_nelbo(denoiser: Denoiser, process: Process, x0_L: Tensor, steps: int) -> float:
    """The T-step bound sum_k (alpha_s - alpha_t)/(1 - alpha_t) E[cross-entropy], by enumerating every xt."""
    entropy = {tuple(s.tolist()): masked_cross_entropy(denoiser, x0_L, s, process.mask_id) for s in subsets(len(x0_L))}
    total = 0.0
    for k in range(1, steps + 1):
        s, t = torch.tensor([(k - 1) / steps, k / steps], dtype=torch.float64)
        alpha = float(process.schedule.alpha(t))
        weight = float(reveal_probability(process, s, t))
        total += weight * sum(
            alpha ** bits.count(False) * (1 - alpha) ** bits.count(True) * ce for bits, ce in entropy.items()
        )
    return total


def marginal(process: Process, t: float) -> Tensor:
    """q(xt | x0) as a matrix whose columns sum to 1."""
    return transition_matrix(process, 0.0, t)


def step_matrix(process: Process, s: float, t: float) -> Tensor:
    """q(xt | xs), worked out from the two marginals alone."""
    return torch.linalg.solve(marginal(process, s).T, marginal(process, t).T).T


class Clocked(Denoiser):
    """A denoiser of no joint that reads the time, the token at each position, and with `mix` its neighbours.

    What the token says of itself is multiplied in, so that its bound is finite in continuous time.
    """

    def __init__(self, process: Process, mix: float = 0.0, seed: int = 0) -> None:
        random, size = torch.Generator().manual_seed(seed), process.vocabulary.size
        self.own_SV, self.other_SV, self.late_V = (
            torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((size, size), (size, size), (size,))
        )
        self.process, self.forbidden, self.mix = process, torch.tensor(process.vocabulary.forbidden), mix
        self.told: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, inputs: NetworkInput) -> Tensor:
        xt_BL, t_B, select_BL = inputs.ids_BL, inputs.time_B, inputs.wanted_BL
        self.told.append((xt_BL.clone(), t_B.clone(), select_BL.clone()))
        other_BLV = self.other_SV[xt_BL].roll(1, dims=1) + 0.5 * self.other_SV[xt_BL].roll(-1, dims=1)
        logits_BLV = self.own_SV[xt_BL] + self.mix * other_BLV + 2.0 * t_B[:, None, None] * self.late_V
        log_p_NV = logits_BLV[select_BL].index_fill(-1, self.forbidden, -math.inf)
        return with_own_token(log_p_NV, xt_BL[select_BL], self.process, t_B[select_BL.nonzero()[:, 0]])


def every_noisy(process: Process, length: int) -> Tensor:
    """Every text of symbols and, where the noise has it, the mask."""
    states = process.vocabulary.symbols_K.tolist() + [process.mask_id] * process.noise.masks
    return torch.tensor(list(itertools.product(states, repeat=length)))


def chain_bound(denoiser: Denoiser, process: Process, x0_L: Tensor, steps: int) -> float:
    """D3PM's bound of one text, from matrices: every noisy text, every divergence between posteriors, both ends."""
    symbols_K, positions_L = process.vocabulary.symbols_K, torch.arange(len(x0_L))
    at_1, at_0 = marginal(process, 1.0)[:, symbols_K], marginal(process, 0.0)[:, symbols_K]
    where_K1 = torch.searchsorted(symbols_K, x0_L)
    total = -float(torch.xlogy(at_0, at_0 / at_0.sum(1, keepdim=True).clamp(min=1e-300)).sum(0)[where_K1].sum())
    total += float((torch.xlogy(at_1, at_1) - torch.xlogy(at_1, at_1.mean(1, keepdim=True))).sum(0)[where_K1].sum())
    xt_ML = every_noisy(process, len(x0_L))
    for k in range(1, steps + 1):
        s, t = (k - 1) / steps, k / steps
        to_s, step = marginal(process, s), step_matrix(process, s, t)
        weight_M = marginal(process, t)[xt_ML, x0_L].prod(-1)
        seen_ML, weight_M = xt_ML[weight_M > 0], weight_M[weight_M > 0]
        everything = torch.ones_like(seen_ML, dtype=torch.bool)
        if process.absorbing:
            everything = seen_ML == process.mask_id
        p_MLV = torch.zeros(*seen_ML.shape, process.vocabulary.size, dtype=torch.float64)
        if everything.any():
            t_M = torch.full((len(seen_ML),), t, dtype=torch.float64)
            p_MLV[everything] = ask(denoiser, seen_ML, t_M, everything).exp()
        p_MLV[~everything] = torch.nn.functional.one_hot(seen_ML, process.vocabulary.size)[~everything].double()
        joint_MLXS = step[seen_ML][:, :, None, :] * to_s.T
        back_MLXS = joint_MLXS / joint_MLXS.sum(-1, keepdim=True).clamp(min=1e-300)
        true_MLS = back_MLXS[torch.arange(len(seen_ML))[:, None], positions_L, x0_L]
        mixed_MLS = torch.einsum("mlx,mlxs->mls", p_MLV, back_MLXS)
        nats_MLS = torch.xlogy(true_MLS, true_MLS) - torch.xlogy(true_MLS, mixed_MLS)
        total += float(weight_M @ nats_MLS.sum((1, 2)))
    return total
