"""Truths with a known answer: exact denoisers against closed forms, to be checked on any machine.

Everything is seeded; what is drawn at random is compared within 4.5 standard errors.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dlm.diffusion.bound import edge_nats, step_nats
from dlm.diffusion.denoiser import Denoiser, PlugIn, Subs
from dlm.diffusion.draws import generator
from dlm.diffusion.generate import generate
from dlm.diffusion.likelihood import Estimator, chain_rule_nll, grid_nelbo
from dlm.diffusion.noise import Absorbing, Hybrid, Noise, Uniform
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.reverse import reverse
from dlm.diffusion.schedule import Cosine, Geometric, Linear, NoiseSchedule, Polynomial
from dlm.diffusion.unmask import Ancestral, Budget, LeftToRight, OneAtATime, Predictions, Random, TokenChoice
from dlm.selftest.joints import Joint, exact_bound

SIGMAS = 4.5
"""Standard errors that a random figure may be off: right code fails one in 150,000 seeds, and the seed is fixed."""

NOISES: tuple[Noise, ...] = (Absorbing(), Uniform(), Hybrid(0.3))


@dataclass(frozen=True)
class Check:
    """One figure beside its known value.

    Attributes:
        claim: What is claimed.
        exact: The known value.
        computed: What this machine computed.
        tolerance: How far apart the two may be.
    """

    claim: str
    exact: float
    computed: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the claim holds here."""
        return abs(self.exact - self.computed) <= self.tolerance


def truths() -> Iterator[Check]:
    """Checks every truth, one after the other; the slowest takes seconds."""
    for truth in TRUTHS:
        yield from truth()


def _process(noise: Noise, symbols: int, schedule: NoiseSchedule | None = None) -> Process:
    return Process(noise, schedule or Linear(), Vocabulary.plain(symbols))


def _quadrature(noise: Noise) -> float:
    """How far an integral over time may be off: the hybrid's integrand is steep at t = 1, where sqrt(alpha) is."""
    return 1e-5 if noise.masks and noise.randomises else 1e-9


def _joint(length: int, symbols: int) -> Joint:
    return Joint.random(length, symbols, generator("joint", length, symbols))


def _mean_bound(joint: Joint, denoiser: Denoiser, process: Process, steps: int | None) -> float:
    """The bound averaged over the joint."""
    pairs = zip(joint.texts(), joint.table.flatten().tolist(), strict=True)
    return sum(p * exact_bound(denoiser, process, x0_L, steps) for x0_L, p in pairs)


def _write(denoiser: Denoiser, process: Process, rows: int, length: int, budget: Budget) -> Tensor:
    """Texts by unmasking in random order."""
    canvas_BL = torch.zeros(rows, length, dtype=torch.long)
    *_, last = generate(
        denoiser,
        canvas_BL,
        torch.ones_like(canvas_BL, dtype=torch.bool),
        mask_id=process.mask_id,
        order=Random(),
        budget=budget,
        token=TokenChoice(),
        generators=[generator("write", row) for row in range(rows)],
    )
    return last.x_BL


def _reverse(denoiser: Denoiser, process: Process, rows: int, length: int, steps: int) -> Tensor:
    """Texts by the reverse chain."""
    canvas_BL = torch.zeros(rows, length, dtype=torch.long)
    *_, last = reverse(
        denoiser,
        process,
        canvas_BL,
        torch.ones_like(canvas_BL, dtype=torch.bool),
        steps=steps,
        token=TokenChoice(),
        generators=[generator("reverse", row) for row in range(rows)],
    )
    return last.x_BL


def _quick(joint: Joint) -> Denoiser:
    """The exact denoiser for masks, its answers looked up: each noisy text is worked out once."""
    process = _process(Absorbing(), joint.symbols)
    exact, known = joint.denoiser(process), {}
    half_1 = torch.full((1,), 0.5, dtype=torch.float64)

    def look_up(xt_BL: Tensor, t_B: Tensor, select_BL: Tensor) -> Tensor:
        rows = []
        for xt_L, select_L in zip(xt_BL, select_BL, strict=True):
            key = tuple(xt_L.tolist())
            if key not in known:
                known[key] = exact(xt_L[None], half_1, torch.ones_like(select_L)[None])
            rows.append(known[key][select_L])
        return torch.cat(rows)

    return look_up


def _share(claim: str, wrong: int, rows: int, p: float) -> Check:
    """A frequency beside its probability."""
    return Check(claim, p, wrong / rows, SIGMAS * math.sqrt(p * (1.0 - p) / rows))


def _chi_square(claim: str, texts_BL: Tensor, joint: Joint) -> Check:
    """Pearson's statistic of drawn texts, whose mean is its degrees of freedom, against a joint."""
    index_B = (texts_BL * joint.symbols ** torch.arange(joint.length - 1, -1, -1)).sum(1)
    found_M = torch.bincount(index_B, minlength=joint.symbols**joint.length).double()
    expected_M = joint.table.flatten() * len(texts_BL)
    free = len(expected_M) - 1
    statistic = float(((found_M - expected_M) ** 2 / expected_M).sum())
    return Check(claim, free, statistic, SIGMAS * math.sqrt(2.0 * free))


def _twins() -> Iterator[Check]:
    """Truth 1: two identical symbols."""
    joint, process = Joint.twins(2), _process(Absorbing(), 2)
    for steps in (1, 4, 16):
        bound = exact_bound(joint.denoiser(process), process, torch.tensor([1, 1]), steps)
        yield Check(
            f"two identical bits: NELBO_{steps} = ln 2 (1 + 1/{steps})", math.log(2) * (1 + 1 / steps), bound, 1e-10
        )
    streams, x0_BL = [generator("twins")], torch.tensor([[1, 1]])
    counted = float(Estimator(4, steps=4)(_quick(joint), process, x0_BL, streams).mean(0).sum())
    yield Check("the same by exact counts, time summed out: NELBO_4", math.log(2) * (1 + 1 / 4), counted, 1e-10)
    rows = 10_000
    for symbols, steps in ((2, 4), (3, 4)):
        joint, process = Joint.twins(symbols), _process(Absorbing(), symbols)
        p = (1 - 1 / symbols) / steps
        for name, texts_BL in (
            ("ancestral", _write(_quick(joint), process, rows, 2, Ancestral(steps))),
            ("the reverse chain", _reverse(_quick(joint), process, rows, 2, steps)),
        ):
            wrong = int((texts_BL[:, 0] != texts_BL[:, 1]).sum())
            yield _share(
                f"{symbols} symbols: {name} in {steps} steps disagrees (1 - 1/{symbols})/{steps}", wrong, rows, p
            )
    texts_BL = _write(_quick(joint), process, rows, 2, OneAtATime())
    yield Check("first-hitting never disagrees", 0.0, float((texts_BL[:, 0] != texts_BL[:, 1]).double().mean()), 0.0)


def _any_order() -> Iterator[Check]:
    """Truths 2 and 5: the bound of masks is the mean over all orders of the chain rule."""
    joint = _joint(4, 3)
    process, denoiser = _process(Absorbing(), 3), _quick(joint)
    x0_ML, log_p_M = joint.texts(), joint.table.flatten().log()
    pairs = list(zip(x0_ML, log_p_M.tolist(), strict=True))[::8]
    worst = max(abs(exact_bound(denoiser, process, x0_L, None) + log_p) for x0_L, log_p in pairs)
    yield Check("a random joint (L=4, K=3): the continuous bound is -log p(x), largest error", 0.0, worst, 1e-10)
    counts_M = _by_counts(denoiser, process, x0_ML)
    yield Check(
        "the exact-count bound is -log p(x), largest error", 0.0, float((counts_M + log_p_M).abs().max()), 1e-10
    )
    orders = [chain_rule_nll(denoiser, process, x0_ML, _Fixed(order)) for order in itertools.permutations(range(4))]
    spread = float(torch.stack(orders).std(0).max())
    yield Check("random order with the exact denoiser: the spread over all 24 orders", 0.0, spread, 1e-10)
    left = chain_rule_nll(denoiser, process, x0_ML, LeftToRight())
    yield Check(
        "left to right, the chain rule is -log p(x), largest error", 0.0, float((left + log_p_M).abs().max()), 1e-10
    )
    small = _joint(2, 3)
    for noise in (Absorbing(), Uniform()):
        process = _process(noise, 3)
        exact = small.denoiser(process)
        near, far = (_mean_bound(small, exact, process, steps) - small.entropy for steps in (64, 32))
        yield Check(
            f"{noise.name}: NELBO_T - H falls like 1/T: log2 of the ratio at T = 32 and 64",
            1.0,
            math.log2(far / near),
            0.1,
        )


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
            log_p_NV = denoiser(xt_ML, torch.full((len(x0_ML),), size / length), masked_ML)
            nats_N = -log_p_NV.gather(-1, x0_ML[masked_ML][:, None])[:, 0]
            total_M += nats_N.view(len(x0_ML), size).sum(1) / (size * len(subsets))
    return total_M


@dataclass(frozen=True)
class _Fixed:
    """The positions in a given order."""

    first: tuple[int, ...]
    informed: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    def score(self, where_BL: Tensor, predictions: Predictions | None, generators: Sequence[torch.Generator]) -> Tensor:
        rank_L = torch.tensor(self.first).argsort().double()
        return (-rank_L).expand(where_BL.shape).masked_fill(~where_BL, -torch.inf)


def _matrices() -> Iterator[Check]:
    """Truth 3: the chain, its closed form and its posteriors, as matrices."""
    times = torch.linspace(0, 1, 8, dtype=torch.float64)
    for noise in NOISES:
        process = _process(noise, 3, Cosine())
        whole, worst = torch.eye(4, dtype=torch.float64), 0.0
        sums = 0.0
        for s, t in itertools.pairwise(times):
            step = process.transition_matrix(s, t)
            whole = step @ whole
            sums = max(sums, float((step.sum(0) - 1).abs().max()))
            worst = max(worst, float((whole - process.transition_matrix(0.0, t)).abs().max()))
        yield Check(f"{noise.name}: the product of Q_t is the closed Q_1:t, largest error", 0.0, worst, 1e-12)
        yield Check(f"{noise.name}: the columns of Q_t sum to 1, largest error", 0.0, sums, 1e-12)
        yield Check(f"{noise.name}: posteriors are Bayes' rule, largest error", 0.0, _worst_posterior(process), 1e-12)
        yield _drawn_posterior(process, z=2 if noise.randomises else 3, x0=1)
    steps = 10
    grid = torch.arange(steps + 1, dtype=torch.float64) / steps
    beta_T = 1.0 - _process(Absorbing(), 2).between(grid[:-1], grid[1:]).clean
    worst = float((beta_T - 1.0 / torch.arange(steps, 0, -1).double()).abs().max())
    yield Check("the linear schedule is D3PM's beta_k = 1/(T-k+1), largest error", 0.0, worst, 1e-12)
    process = _process(Absorbing(), 3, Cosine())
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
    before, step = process.transition_matrix(0.0, s), process.transition_matrix(s, t)
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
            row = process.posterior(torch.tensor([[z]]), p0[None, None], s, t)[0, 0]
            worst = max(worst, float((row - bayes).abs().max()))
    return worst


def _drawn_posterior(process: Process, z: int, x0: int) -> Check:
    """Pearson's statistic of draws of `undo` against the posterior."""
    rows, s, t = 8000, 0.4, 0.7
    xt_BL, x0_BL = torch.full((rows, 1), z), torch.full((rows, 1), x0)
    s_B, t_B = (torch.full((rows,), x, dtype=torch.float64) for x in (s, t))
    streams = [generator("undo", row) for row in range(rows)]
    xs_BL = process.undo(xt_BL, x0_BL, s_B, t_B, streams, torch.ones_like(xt_BL, dtype=torch.bool))
    one_hot = torch.nn.functional.one_hot(x0_BL[:1], 4).double()
    expected_S = rows * process.posterior(xt_BL[:1], one_hot, s_B[0], t_B[0])[0, 0]
    found_S = torch.bincount(xs_BL[:, 0], minlength=4).double()
    likely = expected_S > 0
    free = int(likely.sum()) - 1
    statistic = float(((found_S - expected_S) ** 2)[likely].div(expected_S[likely]).sum())
    claim = f"{process.noise.name}: a drawn step back follows the posterior: chi-square, mean {free}"
    return Check(claim, free, statistic if found_S[~likely].sum() == 0 else math.inf, SIGMAS * math.sqrt(2.0 * free))


def _schedules() -> Iterator[Check]:
    """Truth 4: the continuous bound does not depend on the schedule."""
    x0_L = torch.tensor([2, 1])
    logits_LV = torch.randn(2, 4, 4, generator=generator("wrong"), dtype=torch.float64)

    def wrong(xt_BL: Tensor, t_B: Tensor, select_BL: Tensor) -> Tensor:
        """Some network: what stands elsewhere changes what it says."""
        said_BLV = logits_LV[torch.arange(2), xt_BL.flip(1)]
        return said_BLV[select_BL]

    for noise in NOISES:
        first = None
        for schedule in (Linear(), Cosine(), Polynomial(power=2.0)):
            process = _process(noise, 3, schedule)
            bound = exact_bound(Subs(wrong, [3]), process, x0_L, None)
            first = bound if first is None else first
            if schedule != Linear():
                yield Check(
                    f"{noise.name}: the {schedule.name} schedule gives the linear one's bound",
                    first,
                    bound,
                    _quadrature(noise),
                )
    rows, twins = 4000, Joint.twins(2)
    x0_BL = torch.tensor([1, 1]).expand(rows, 2)
    even_B1 = ((torch.arange(rows, dtype=torch.float64) + 0.5) / rows)[:, None]
    for schedule in (Linear(), Cosine(), Polynomial(power=2.0)):
        process = _process(Absorbing(), 2, schedule)
        streams = [generator("schedules", row) for row in range(rows)]
        bound_B = grid_nelbo(_quick(twins), process, x0_BL, even_B1, streams)
        error = SIGMAS * float(bound_B.std()) / math.sqrt(rows)
        yield Check(
            f"{schedule.name}: the bound estimated at even times is -log p(x)",
            math.log(2),
            float(bound_B.mean()),
            error,
        )


def _single_tokens() -> Iterator[Check]:
    """Truth 6: with one token the bound is tight, in either form, and in any number of steps."""
    joint = _joint(1, 4)
    never_1 = torch.tensor([-math.inf], dtype=torch.float64)
    log_p_V = torch.cat([joint.table.log(), never_1])

    def prior(xt_BL: Tensor, t_B: Tensor, select_BL: Tensor) -> Tensor:
        """The leave-one-out prediction: there is nothing else to see."""
        return log_p_V.expand(int(select_BL.sum()), 5)

    for noise in (Uniform(), Hybrid(0.3)):
        process = _process(noise, 4)
        plug_in, mixture = PlugIn(prior, [4], process), joint.denoiser(process)
        bound = _mean_bound(joint, plug_in, process, None)
        yield Check(f"{noise.name}, one token: the plug-in form's NELBO is H", joint.entropy, bound, _quadrature(noise))
        for steps in (1, 2, 7):
            bound = _mean_bound(joint, mixture, process, steps)
            yield Check(f"{noise.name}, one token: the mixture form's NELBO_{steps} is H", joint.entropy, bound, 1e-10)
        mixed = _mean_bound(joint, Subs(prior, [4]), process, 4)
        yield Check(
            f"{noise.name}: the two forms mixed up are no longer tight (gap above 0.05)",
            1.0,
            float(mixed - joint.entropy > 0.05),
            0.0,
        )


def _constants() -> Iterator[Check]:
    """Truth 8: a network that knows nothing costs ln K a token, and the ends of time what they should."""
    symbols, length = 5, 3

    def nothing(xt_BL: Tensor, t_B: Tensor, select_BL: Tensor) -> Tensor:
        return torch.zeros(int(select_BL.sum()), symbols + 1, dtype=torch.float64)

    x0_L = torch.tensor([3, 0, 4])
    edged = Geometric(sigma_min=0.05, sigma_max=3.0)
    for noise in NOISES:
        process = _process(noise, symbols)
        denoiser = PlugIn(nothing, [symbols], process) if noise.randomises else Subs(nothing, [symbols])
        for steps in (None, 4):
            bound = exact_bound(denoiser, process, x0_L[:1], steps)
            chain = "continuous time" if steps is None else f"{steps} steps"
            tolerance = _quadrature(noise)
            yield Check(
                f"{noise.name}, {chain}: constant logits cost ln K a token", math.log(symbols), bound, tolerance
            )
    process = _process(Absorbing(), symbols, edged)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alpha_0, alpha_1 = edged.alpha(ends).tolist()
    cost = float(edge_nats(process, x0_L)[0])
    yield Check("alpha(1) > 0 costs alpha(1) ln K", alpha_1 * math.log(symbols), float(process.prior_nats_S[0]), 1e-12)
    yield Check(
        "alpha(0) < 1 costs (1 - alpha(0)) ln K",
        (1 - alpha_0) * math.log(symbols),
        cost - float(process.prior_nats_S[0]),
        1e-12,
    )
    whole = exact_bound(Subs(nothing, [symbols]), process, x0_L[:1], None)
    yield Check(
        "both ends counted, constant logits cost ln K under the geometric schedule", math.log(symbols), whole, 1e-10
    )
    streams = [generator("constants", row) for row in range(4)]
    plain = _process(Absorbing(), symbols)
    bound_BL = Estimator(8)(Subs(nothing, [symbols]), plain, x0_L.expand(4, length), streams).mean(0)
    worst = float((bound_BL.sum(1) / length - math.log(symbols)).abs().max())
    yield Check("the estimator by exact counts: ln K whatever is drawn, largest error", 0.0, worst, 1e-10)


def _samples() -> Iterator[Check]:
    """Truth 9: samplers with the exact denoiser draw from the joint."""
    joint, rows = _joint(3, 3), 20_000
    texts_BL = _write(_quick(joint), _process(Absorbing(), 3), rows, 3, OneAtATime())
    yield _chi_square("first-hitting draws from the joint: chi-square, mean 26", texts_BL, joint)
    single = _joint(1, 4)
    for noise in NOISES:
        process = _process(noise, 4)
        texts_BL = _reverse(single.denoiser(process), process, 4000, 1, 3)
        yield _chi_square(
            f"{noise.name}, one token, 3 steps: the reverse chain draws from p: chi-square, mean 3", texts_BL, single
        )


TRUTHS: tuple[Callable[[], Iterator[Check]], ...] = (
    _twins,
    _any_order,
    _matrices,
    _schedules,
    _single_tokens,
    _constants,
    _samples,
)
