"""Small distributions over texts, their exact denoisers and their exact bounds, by enumeration of every text."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dlm.diffusion.bound import prior_and_reconstruction_nats
from dlm.diffusion.denoiser import Denoiser, FunctionDenoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import position_nats
from dlm.diffusion.matrices import transition_matrix
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.noise import Absorbing, Hybrid, Noise, Uniform
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.schedule import Linear, NoiseSchedule, noise_levels, time_at

NOISES: tuple[Noise, ...] = (Absorbing(), Uniform(), Hybrid(0.3))
"""One of each kind of noise."""

NODES = 80
"""Nodes of the quadrature in time: what is smooth or logarithmic it integrates to 1e-12."""


class Joint:
    """Every text of L tokens over K symbols with its probability; the symbols are 0 .. K-1.

    Attributes:
        table: Probabilities, float64, shape (K, K, .. K) with L axes.
    """

    def __init__(self, table: Tensor) -> None:
        """Takes a table of probabilities that sums to 1."""
        self.table = table

    @classmethod
    def random(cls, length: int, symbols: int, generator: torch.Generator) -> "Joint":
        """Uneven probabilities without any structure."""
        weights = torch.rand([symbols] * length, generator=generator, dtype=torch.float64) ** 3
        return cls(weights / weights.sum())

    @classmethod
    def twins(cls, symbols: int) -> "Joint":
        """Two identical symbols, each as likely as any other."""
        return cls(torch.eye(symbols, dtype=torch.float64) / symbols)

    @property
    def length(self) -> int:
        """L."""
        return self.table.ndim

    @property
    def symbols(self) -> int:
        """K."""
        return self.table.shape[0]

    @property
    def entropy(self) -> float:
        """H in nats."""
        return float(torch.special.entr(self.table).sum())

    def texts(self) -> Tensor:
        """Every text, shape (K^L, L), in the order of the flattened table."""
        return every_text(self.symbols, self.length)

    def denoiser(self, process: Process) -> Denoiser:
        """The exact p(x0_i | xt) under a process over these symbols, by Bayes over every text."""
        texts_ML, log_p_M = self.texts(), self.table.flatten().log()

        def exact(inputs: NetworkInput) -> Tensor:
            xt_BL = inputs.ids_BL
            nats_BM = log_p_M.repeat(len(xt_BL), 1)
            for row, (xt_L, t) in enumerate(zip(xt_BL, inputs.time_B.tolist(), strict=True)):
                log_q_SS = transition_matrix(process, 0.0, t).log()
                nats_BM[row] += log_q_SS[xt_L, texts_ML].sum(-1)
            p_BM = nats_BM.softmax(-1)
            shape = (*xt_BL.shape, process.vocabulary.size)
            p_BLS = torch.zeros(shape, dtype=torch.float64)
            index_BLM = texts_ML.T.expand(len(xt_BL), -1, -1)
            p_BLS.scatter_add_(2, index_BLM, p_BM[:, None].expand(index_BLM.shape))
            return p_BLS[inputs.wanted_BL].log()

        return FunctionDenoiser(exact)

    def mask_denoiser(self) -> Denoiser:
        """The exact p(x0_i | xt) where noise is masks, whatever the time; each noisy text is worked out once."""
        exact, known = self.denoiser(small_process(Absorbing(), self.symbols)), {}
        half_1 = torch.full((1,), 0.5, dtype=torch.float64)

        def look_up(inputs: NetworkInput) -> Tensor:
            rows = []
            for xt_L, wanted_L in zip(inputs.ids_BL, inputs.wanted_BL, strict=True):
                key = tuple(xt_L.tolist())
                if key not in known:
                    known[key] = exact(NetworkInput(xt_L[None], torch.ones_like(wanted_L)[None], half_1))
                rows.append(known[key][wanted_L])
            return torch.cat(rows)

        return FunctionDenoiser(look_up)


def random_joint(length: int, symbols: int) -> Joint:
    """A random joint that is the same everywhere."""
    return Joint.random(length, symbols, generator("joint", length, symbols))


def small_process(noise: Noise, symbols: int, schedule: NoiseSchedule | None = None) -> Process:
    """A process over the symbols of a joint; by default with the linear schedule."""
    return Process(noise, schedule or Linear(), Vocabulary.plain(symbols))


def every_text(states: int, length: int) -> Tensor:
    """Every text of `length` tokens over `states` ids, shape (states^length, length)."""
    return torch.tensor(list(itertools.product(range(states), repeat=length)))


def exact_bound(denoiser: Denoiser, process: Process, x0_L: Tensor, steps: int | None) -> float:
    """The bound of one text, with its prior and reconstruction terms.

    Every noisy text is enumerated, and time is summed or integrated.

    Args:
        denoiser: Predicts the clean tokens.
        process: The forward process.
        x0_L: The text.
        steps: T; None for continuous time, which is integrated by the tanh-sinh rule.

    Returns:
        Nats.
    """
    xt_ML = every_text(process.vocabulary.size, len(x0_L))

    def mean(t: float, s: float | None) -> float:
        """The bound's term at one time, over all noisy texts."""
        weight_M = transition_matrix(process, 0.0, t)[xt_ML, x0_L].prod(-1)
        seen_ML, weight_M = xt_ML[weight_M > 0], weight_M[weight_M > 0]
        t_M = torch.full_like(weight_M, t)
        s_M = None if s is None else torch.full_like(weight_M, s)
        nats_ML = position_nats(denoiser, process, x0_L.expand(seen_ML.shape), seen_ML, t_M, s_M)
        return float(weight_M @ nats_ML.sum(1))

    if steps is not None:
        inner = sum(mean(k / steps, (k - 1) / steps) for k in range(1, steps + 1))
    else:
        start, end = noise_levels(process.schedule)
        levels, weights = quadrature()
        t = time_at(process.schedule, torch.tensor(levels, dtype=torch.float64))
        inner = (end - start) * sum(w * mean(when, None) for w, when in zip(weights, t.tolist(), strict=True))
    return inner + float(prior_and_reconstruction_nats(process, x0_L).sum())


def mean_bound(joint: Joint, denoiser: Denoiser, process: Process, steps: int | None) -> float:
    """The expectation of `exact_bound` over a joint."""
    pairs = zip(joint.texts(), joint.table.flatten().tolist(), strict=True)
    return sum(p * exact_bound(denoiser, process, x0_L, steps) for x0_L, p in pairs)


def quadrature() -> tuple[Sequence[float], Sequence[float]]:
    """Nodes and weights of the tanh-sinh rule on (0, 1), which takes the logarithm that the bound has at 0."""
    h = 6.0 / NODES
    nodes, weights = [], []
    for k in range(-NODES // 2, NODES // 2 + 1):
        bend = math.pi / 2 * math.sinh(k * h)
        nodes.append(1.0 / (1.0 + math.exp(-2.0 * bend)))
        weights.append(h * math.pi / 4 * math.cosh(k * h) / math.cosh(bend) ** 2)
    return nodes, weights
