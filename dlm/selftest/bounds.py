"""Checks of the bound: exact and useless denoisers, in continuous time and in T steps, under every kind of noise."""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dlm.diffusion.bound import prior_and_reconstruction_nats
from dlm.diffusion.denoiser import Denoiser, LeaveOneOutDenoiser, X0Denoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import Estimator, grid_nelbo
from dlm.diffusion.network import FunctionNetwork, NetworkInput
from dlm.diffusion.noise import Absorbing, Hybrid, Noise, Uniform
from dlm.diffusion.process import Process
from dlm.diffusion.schedule import Cosine, Geometric, Linear, Polynomial
from dlm.selftest.check import SIGMAS, Check
from dlm.selftest.joints import NOISES, Joint, exact_bound, mean_bound, random_joint, small_process


def two_identical_symbols() -> Iterator[Check]:
    """The bound of two identical fair bits in T steps."""
    joint, process = Joint.twins(2), small_process(Absorbing(), 2)
    for steps in (1, 4, 16):
        bound = exact_bound(joint.denoiser(process), process, torch.tensor([1, 1]), steps)
        yield Check(
            f"two identical bits: NELBO_{steps} = ln 2 (1 + 1/{steps})", math.log(2) * (1 + 1 / steps), bound, 1e-10
        )
    streams, x0_BL = [generator("twins")], torch.tensor([[1, 1]])
    counted = float(Estimator(4, steps=4)(joint.mask_denoiser(), process, x0_BL, streams).mean(0).sum())
    yield Check("the same by exact counts, time summed out: NELBO_4", math.log(2) * (1 + 1 / 4), counted, 1e-10)


def any_joint() -> Iterator[Check]:
    """The bound of an exact denoiser is -log p(x) in continuous time, and approaches it with the number of steps."""
    joint = random_joint(4, 3)
    process, denoiser = small_process(Absorbing(), 3), joint.mask_denoiser()
    x0_ML, log_p_M = joint.texts(), joint.table.flatten().log()
    pairs = list(zip(x0_ML, log_p_M.tolist(), strict=True))[::8]
    worst = max(abs(exact_bound(denoiser, process, x0_L, None) + log_p) for x0_L, log_p in pairs)
    yield Check("a random joint (L=4, K=3): the continuous bound is -log p(x), largest error", 0.0, worst, 1e-10)
    counts_M = _by_counts(denoiser, process, x0_ML)
    yield Check(
        "the exact-count bound is -log p(x), largest error", 0.0, float((counts_M + log_p_M).abs().max()), 1e-10
    )
    small = random_joint(2, 3)
    for noise in (Absorbing(), Uniform()):
        process = small_process(noise, 3)
        exact = small.denoiser(process)
        near, far = (mean_bound(small, exact, process, steps) - small.entropy for steps in (64, 32))
        yield Check(
            f"{noise.name}: NELBO_T - H falls like 1/T: log2 of the ratio at T = 32 and 64",
            1.0,
            math.log2(far / near),
            0.1,
        )


def schedules() -> Iterator[Check]:
    """The continuous bound does not depend on the schedule."""
    x0_L = torch.tensor([2, 1])
    logits_LV = torch.randn(2, 4, 4, generator=generator("wrong"), dtype=torch.float64)

    def wrong(inputs: NetworkInput) -> Tensor:
        """Logits for a position that depend on the token at the other one."""
        return logits_LV[torch.arange(2), inputs.ids_BL.flip(1)][inputs.wanted_BL]

    denoiser = X0Denoiser(FunctionNetwork(wrong), [3])

    for noise in NOISES:
        first = None
        for schedule in (Linear(), Cosine(), Polynomial(power=2.0)):
            process = small_process(noise, 3, schedule)
            bound = exact_bound(denoiser, process, x0_L, None)
            first = bound if first is None else first
            if schedule != Linear():
                yield Check(
                    f"{noise.name}: the {schedule.name} schedule gives the linear one's bound",
                    first,
                    bound,
                    _quadrature_error(noise),
                )
    rows, twins = 4000, Joint.twins(2)
    x0_BL = torch.tensor([1, 1]).expand(rows, 2)
    even_B1 = ((torch.arange(rows, dtype=torch.float64) + 0.5) / rows)[:, None]
    for schedule in (Linear(), Cosine(), Polynomial(power=2.0)):
        process = small_process(Absorbing(), 2, schedule)
        streams = [generator("schedules", row) for row in range(rows)]
        bound_B = grid_nelbo(twins.mask_denoiser(), process, x0_BL, even_B1, streams)
        error = SIGMAS * float(bound_B.std()) / math.sqrt(rows)
        yield Check(
            f"{schedule.name}: the bound estimated at even times is -log p(x)",
            math.log(2),
            float(bound_B.mean()),
            error,
        )


def one_token() -> Iterator[Check]:
    """With one token the bound is tight in either form, the mixture form in any number of steps."""
    joint = random_joint(1, 4)
    log_p_V = torch.cat([joint.table.log(), torch.tensor([-math.inf], dtype=torch.float64)])

    def leave_one_out(inputs: NetworkInput) -> Tensor:
        """The leave-one-out prediction, which is p itself: there is no other token."""
        return log_p_V.expand(int(inputs.wanted_BL.sum()), 5)

    network = FunctionNetwork(leave_one_out)

    for noise in (Uniform(), Hybrid(0.3)):
        process = small_process(noise, 4)
        plug_in, mixture = LeaveOneOutDenoiser(network, [4], process), joint.denoiser(process)
        bound = mean_bound(joint, plug_in, process, None)
        yield Check(
            f"{noise.name}, one token: the plug-in form's NELBO is H", joint.entropy, bound, _quadrature_error(noise)
        )
        for steps in (1, 2, 7):
            bound = mean_bound(joint, mixture, process, steps)
            yield Check(f"{noise.name}, one token: the mixture form's NELBO_{steps} is H", joint.entropy, bound, 1e-10)
        mixed = mean_bound(joint, X0Denoiser(network, [4]), process, 4)
        yield Check(
            f"{noise.name}: the two forms mixed up are no longer tight (gap above 0.05)",
            1.0,
            float(mixed - joint.entropy > 0.05),
            0.0,
        )


def constant_logits() -> Iterator[Check]:
    """Constant logits cost ln K a token, the prior and reconstruction terms of the bound included."""
    symbols, length = 5, 3

    def constant(inputs: NetworkInput) -> Tensor:
        return torch.zeros(int(inputs.wanted_BL.sum()), symbols + 1, dtype=torch.float64)

    network = FunctionNetwork(constant)
    plain = X0Denoiser(network, [symbols])
    x0_L = torch.tensor([3, 0, 4])
    edged = Geometric(sigma_min=0.05, sigma_max=3.0)
    for noise in NOISES:
        process = small_process(noise, symbols)
        denoiser = LeaveOneOutDenoiser(network, [symbols], process) if noise.randomises else plain
        for steps in (None, 4):
            bound = exact_bound(denoiser, process, x0_L[:1], steps)
            chain = "continuous time" if steps is None else f"{steps} steps"
            tolerance = _quadrature_error(noise)
            yield Check(
                f"{noise.name}, {chain}: constant logits cost ln K a token", math.log(symbols), bound, tolerance
            )
    process = small_process(Absorbing(), symbols, edged)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alpha_0, alpha_1 = edged.alpha(ends).tolist()
    cost = float(prior_and_reconstruction_nats(process, x0_L)[0])
    yield Check("alpha(1) > 0 costs alpha(1) ln K", alpha_1 * math.log(symbols), float(process.prior_nats_S[0]), 1e-12)
    yield Check(
        "alpha(0) < 1 costs (1 - alpha(0)) ln K",
        (1 - alpha_0) * math.log(symbols),
        cost - float(process.prior_nats_S[0]),
        1e-12,
    )
    bound = exact_bound(plain, process, x0_L[:1], None)
    yield Check(
        "both ends counted, constant logits cost ln K under the geometric schedule", math.log(symbols), bound, 1e-10
    )
    streams = [generator("constants", row) for row in range(4)]
    process = small_process(Absorbing(), symbols)
    bound_BL = Estimator(8)(plain, process, x0_L.expand(4, length), streams).mean(0)
    worst = float((bound_BL.sum(1) / length - math.log(symbols)).abs().max())
    yield Check("the estimator by exact counts: ln K whatever is drawn, largest error", 0.0, worst, 1e-10)


def _by_counts(denoiser: Denoiser, process: Process, x0_ML: Tensor) -> Tensor:
    """The sum over l of the mean cross-entropy of subsets of l, over l: every subset is enumerated."""
    length = x0_ML.shape[1]
    total_M = torch.zeros(len(x0_ML), dtype=torch.float64)
    for size in range(1, length + 1):
        subsets = list(itertools.combinations(range(length), size))
        for subset in subsets:
            masked_ML = torch.zeros_like(x0_ML, dtype=torch.bool)
            masked_ML[:, list(subset)] = True
            xt_ML = x0_ML.masked_fill(masked_ML, process.mask_id)
            log_p_NV = denoiser(NetworkInput(xt_ML, masked_ML, torch.full((len(x0_ML),), size / length)))
            nats_N = -log_p_NV.gather(-1, x0_ML[masked_ML][:, None])[:, 0]
            total_M += nats_N.view(len(x0_ML), size).sum(1) / (size * len(subsets))
    return total_M


def _quadrature_error(noise: Noise) -> float:
    """How far an integral over time may be off: the hybrid's integrand is steep at t = 1, where sqrt(alpha) is."""
    return 1e-5 if noise.masks and noise.randomises else 1e-9
