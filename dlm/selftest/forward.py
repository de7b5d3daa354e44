"""Checks of the forward process: its transition matrices, its posteriors, and its schedule."""

import itertools
import math
from collections.abc import Iterator

import torch

from dlm.diffusion.bound import step_nats
from dlm.diffusion.draws import generator
from dlm.diffusion.matrices import posterior, transition_matrix
from dlm.diffusion.noise import Absorbing
from dlm.diffusion.process import Process
from dlm.diffusion.schedule import Cosine
from dlm.selftest.check import Check, chi_square
from dlm.selftest.joints import NOISES, small_process


def matrices() -> Iterator[Check]:
    """The chain, its closed form and its posteriors, as matrices."""
    times = torch.linspace(0, 1, 8, dtype=torch.float64)
    for noise in NOISES:
        process = small_process(noise, 3, Cosine())
        product, worst = torch.eye(4, dtype=torch.float64), 0.0
        sums = 0.0
        for s, t in itertools.pairwise(times):
            step = transition_matrix(process, s, t)
            product = step @ product
            sums = max(sums, float((step.sum(0) - 1).abs().max()))
            worst = max(worst, float((product - transition_matrix(process, 0.0, t)).abs().max()))
        yield Check(f"{noise.name}: the product of Q_t is the closed Q_1:t, largest error", 0.0, worst, 1e-12)
        yield Check(f"{noise.name}: the columns of Q_t sum to 1, largest error", 0.0, sums, 1e-12)
        yield Check(f"{noise.name}: posteriors are Bayes' rule, largest error", 0.0, _worst_posterior(process), 1e-12)
        yield _drawn_posterior(process, z=2 if noise.randomises else 3, x0=1)
    yield from _linear_schedule()
    yield from _absorbing_step()


def _linear_schedule() -> Iterator[Check]:
    """The rates of the linear schedule on a grid of T steps."""
    steps = 10
    grid = torch.arange(steps + 1, dtype=torch.float64) / steps
    beta_T = 1.0 - small_process(Absorbing(), 2).transition(grid[:-1], grid[1:]).clean
    worst = float((beta_T - 1.0 / torch.arange(steps, 0, -1).double()).abs().max())
    yield Check("the linear schedule is D3PM's beta_k = 1/(T-k+1), largest error", 0.0, worst, 1e-12)


def _absorbing_step() -> Iterator[Check]:
    """One step's divergence for absorbing noise."""
    process = small_process(Absorbing(), 3, Cosine())
    log_p_1V = torch.tensor([[0.2, 0.5, 0.3, 0.0]], dtype=torch.float64).log()
    s, t = (torch.tensor([x], dtype=torch.float64) for x in (0.4, 0.7))
    alpha_s, alpha_t = process.schedule.alpha(s), process.schedule.alpha(t)
    found = step_nats(process, log_p_1V, torch.tensor([1]), torch.tensor([3]), s, t)
    known = float((alpha_s - alpha_t) / (1 - alpha_t)) * -math.log(0.5)
    yield Check(
        "absorbing: the KL of a step is (alpha_s - alpha_t)/(1 - alpha_t) times the cross-entropy",
        known,
        float(found),
        1e-10,
    )


def _worst_posterior(process: Process) -> float:
    """The largest error of q(xs | xt, x0), for each x0 and averaged over a prediction, against Bayes' rule."""
    s, t = (torch.tensor(x, dtype=torch.float64) for x in (0.4, 0.7))
    before, step = transition_matrix(process, 0.0, s), transition_matrix(process, s, t)
    p0_S = torch.tensor([0.2, 0.5, 0.3, 0.0], dtype=torch.float64)
    worst = 0.0
    for z in range(4):
        joint_SX = step[z][:, None] * before[:, :3]  # q(xt = z, xs | x0), by xs and x0
        possible = joint_SX.sum(0) > 0
        bayes_SX = joint_SX[:, possible] / joint_SX[:, possible].sum(0)
        rows = [torch.eye(4, dtype=torch.float64)[x0] for x0 in range(3) if possible[x0]]
        known = [*bayes_SX.T]
        if possible.all():
            rows.append(p0_S)
            known.append(bayes_SX @ p0_S[:3])
        for p0, bayes in zip(rows, known, strict=True):
            row = posterior(process, torch.tensor([[z]]), p0[None, None], s, t)[0, 0]
            worst = max(worst, float((row - bayes).abs().max()))
    return worst


def _drawn_posterior(process: Process, z: int, x0: int) -> Check:
    """Draws of `Process.sample_posterior` against the posterior."""
    rows, s, t = 8000, 0.4, 0.7
    xt_BL, x0_BL = torch.full((rows, 1), z), torch.full((rows, 1), x0)
    s_B, t_B = (torch.full((rows,), x, dtype=torch.float64) for x in (s, t))
    streams = [generator("undo", row) for row in range(rows)]
    xs_BL = process.sample_posterior(xt_BL, x0_BL, s_B, t_B, streams, torch.ones_like(xt_BL, dtype=torch.bool))
    one_hot = torch.nn.functional.one_hot(x0_BL[:1], 4).double()
    expected_S = rows * posterior(process, xt_BL[:1], one_hot, s_B[0], t_B[0])[0, 0]
    found_S = torch.bincount(xs_BL[:, 0], minlength=4)
    return chi_square(f"{process.noise.name}: a drawn step back follows the posterior", found_S, expected_S)
