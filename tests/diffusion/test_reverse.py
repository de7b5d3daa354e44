"""The reverse chain: what it draws is the chain of posteriors, and what it may not touch it does not."""

import itertools
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.noise import Absorbing, AnyNoise, Hybrid, Noise, Uniform
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.sample import State
from dlm.diffusion.schedule import Cosine, Linear, NoiseSchedule
from dlm.diffusion.unmask import Ancestral, Random, TokenChoice
from dlm.selftest.joints import Joint
from tests.support.chains import ancestral, chain, every, follows
from tests.support.choices import defaults
from tests.support.joints import Clocked, Lopsided, Straight, every_noisy
from tests.support.networks import ask, reverse, unmask

VOCABULARY = Vocabulary(7, 2, (0, 2, 5))
SYMBOLS = VOCABULARY.symbols_K.tolist()
NOISES: list[Noise] = [*defaults(AnyNoise), Lopsided()]


@pytest.fixture(params=NOISES, ids=lambda noise: noise.name)
def noise(request: pytest.FixtureRequest) -> Noise:
    found: Noise = request.param
    return found


@pytest.fixture
def process(noise: Noise) -> Process:
    return Process(noise, Cosine(), VOCABULARY)


def written(
    denoiser: Denoiser,
    process: Process,
    editable_BL: Tensor,
    steps: int,
    *,
    canvas_BL: Tensor | None = None,
    keys: list[int] | None = None,
    token: TokenChoice | None = None,
) -> list[State]:
    """Every state of the chain; a row's stream follows from its key."""
    canvas_BL = torch.zeros_like(editable_BL, dtype=torch.long) if canvas_BL is None else canvas_BL
    return list(
        reverse(
            denoiser,
            process,
            canvas_BL,
            editable_BL,
            steps=steps,
            token=token or TokenChoice(),
            generators=[generator("reverse", key) for key in keys or range(len(editable_BL))],
        )
    )


def chain_end(denoiser: Denoiser, process: Process, length: int, steps: int) -> tuple[Tensor, Tensor]:
    """Every noisy text and its probability at the end of the chain."""
    texts_ML, found = chain(denoiser, process, length, steps, ancestral(process, steps))
    return texts_ML, found[-1]


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("schedule", [Cosine(), Straight(0.9, 0.2)], ids=lambda schedule: schedule.name)
def test_what_it_writes_is_the_chain_of_posteriors(noise: Noise, schedule: NoiseSchedule, steps: int) -> None:
    """Of a denoiser of no joint, that reads the time."""
    process = Process(noise, schedule, VOCABULARY)
    denoiser, rows = Clocked(process, mix=1.0), 6000
    texts_ML, p_M = chain_end(denoiser, process, 2, steps)
    assert float(p_M.sum()) == pytest.approx(1.0, abs=1e-12)
    clean_M = (texts_ML != VOCABULARY.mask_id).all(1)
    assert float(p_M[clean_M].sum()) == pytest.approx(1.0, abs=1e-12)
    x_BL = written(denoiser, process, every(rows, 2), steps)[-1].x_BL
    assert follows(x_BL, texts_ML, p_M)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("noise", [*defaults(AnyNoise), Hybrid(0.3)], ids=repr)
def test_of_one_token_an_exact_denoiser_writes_the_distribution_in_any_number_of_steps(
    noise: Noise, steps: int
) -> None:
    joint = Joint.random(1, 4, generator("one token"))
    process = Process(noise, Linear(), Vocabulary.plain(4))
    denoiser = joint.denoiser(process)
    texts_ML, p_M = chain_end(denoiser, process, 1, steps)
    torch.testing.assert_close(p_M[:4], joint.table, atol=1e-12, rtol=0)
    assert texts_ML[:4, 0].tolist() == [0, 1, 2, 3]
    assert follows(written(denoiser, process, every(1500, 1), steps)[-1].x_BL, texts_ML, p_M)


@pytest.mark.parametrize(("noise", "order"), [(Absorbing(), 1.0), (Uniform(), 0.9), (Hybrid(0.3), 0.5)], ids=repr)
def test_with_ever_more_steps_an_exact_denoiser_writes_the_joint(noise: Noise, order: float) -> None:
    """The error falls like 1/T, for uniform noise but for a logarithm, and for the hybrid like 1/sqrt(T).

    The hybrid's shares are square roots of the time at its ends.
    """
    joint = Joint.random(2, 3, generator("more steps"))
    process = Process(noise, Linear(), Vocabulary.plain(3))
    denoiser = joint.denoiser(process)

    def distance(steps: int) -> float:
        texts_ML, p_M = chain_end(denoiser, process, 2, steps)
        clean_M = (texts_ML < 3).all(1)
        return 0.5 * float((p_M[clean_M] - joint.table.flatten()).abs().sum())

    independent = torch.outer(joint.table.sum(1), joint.table.sum(0))
    assert distance(1) == pytest.approx(0.5 * float((independent - joint.table).abs().sum()), abs=1e-12)
    far, near, nearest = (distance(steps) for steps in (8, 16, 32))
    assert all(math.log2(a / b) == pytest.approx(order, abs=0.1) for a, b in pairwise([far, near, nearest]))


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_for_absorbing_noise_it_is_ancestral_unmasking(steps: int) -> None:
    process = Process(Absorbing(), Cosine(), VOCABULARY)
    denoiser, rows = Clocked(process, mix=1.0), 6000
    denoiser.late_V.zero_()  # unmasking tells the share of masks, not the time
    *_, last = unmask(
        denoiser,
        torch.zeros(rows, 2, dtype=torch.long),
        every(rows, 2),
        mask_id=VOCABULARY.mask_id,
        order=Random(),
        budget=Ancestral(steps),
        schedule=Cosine(),
        token=TokenChoice(),
        generators=[generator("unmask", b) for b in range(rows)],
    )
    texts_ML, p_M = chain_end(denoiser, process, 2, steps)
    assert follows(last.x_BL, texts_ML, p_M)
    assert follows(written(denoiser, process, every(rows, 2), steps)[-1].x_BL, texts_ML, p_M)


def test_in_one_step_it_is_one_draw_from_the_noise(process: Process) -> None:
    denoiser = Clocked(process, mix=1.0)
    first, last = written(denoiser, process, every(50, 6), 1)
    ((xt_BL, t_B, select_BL),) = denoiser.told
    assert torch.equal(xt_BL, first.x_BL) and (t_B == 1.0).all() and select_BL.all()
    assert last.calls == 1 and last.calls_B.tolist() == [1] * 50 and not torch.equal(first.x_BL, last.x_BL)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_context_never_changes(process: Process, steps: int) -> None:
    canvas_BL = torch.tensor([[0, 1, 3, 4, 6, 2, 5, 1]]).repeat(20, 1)  # ids that no text holds among it
    editable_BL = torch.rand(20, 8, generator=generator("editable")) < 0.5
    denoiser = Clocked(process, mix=1.0)
    states = written(denoiser, process, editable_BL, steps, canvas_BL=canvas_BL)
    for state in states:
        assert torch.equal(state.x_BL[~editable_BL], canvas_BL[~editable_BL])
        assert torch.equal(state.editable_BL, editable_BL) and not (state.changed_BL & ~editable_BL).any()
    for xt_BL, _, select_BL in denoiser.told:
        assert torch.equal(xt_BL[~editable_BL], canvas_BL[~editable_BL]) and not (select_BL & ~editable_BL).any()
    assert set(states[-1].x_BL[editable_BL].tolist()) <= set(SYMBOLS)
    assert torch.equal(canvas_BL, torch.tensor([[0, 1, 3, 4, 6, 2, 5, 1]]).repeat(20, 1))


def test_the_states_are_the_chain_as_it_goes(process: Process) -> None:
    denoiser, steps = Clocked(process, mix=1.0), 6
    states = written(denoiser, process, every(8, 10), steps)
    assert not states[0].changed_BL.any() and states[0].calls == 0
    for before, after in pairwise(states):
        assert torch.equal(after.changed_BL, after.x_BL != before.x_BL)
        assert before.calls < after.calls <= steps and (before.calls_B <= after.calls_B).all()
    told = [float(t_B.unique()) for _, t_B, _ in denoiser.told]
    assert told == pytest.approx([k / steps for k in range(steps, 0, -1)][: len(told)])
    assert states[-1].calls == len(denoiser.told) and (len(told) == steps or process.absorbing)
    assert set(states[-1].x_BL.flatten().tolist()) <= set(SYMBOLS)


def test_absorbing_tokens_stay_once_revealed_and_uniform_ones_do_not() -> None:
    moved = {}
    for noise in (Absorbing(), Uniform(), Hybrid(0.3)):
        process = Process(noise, Linear(), VOCABULARY)
        states = written(Clocked(process, mix=1.0), process, every(20, 10), 8)
        shown = [(a.x_BL != VOCABULARY.mask_id) & (b.x_BL != a.x_BL) for a, b in pairwise(states)]
        moved[noise.name] = sum(int(change.sum()) for change in shown)
        if noise.masks:
            assert (states[0].x_BL == VOCABULARY.mask_id).all()
    assert moved["absorbing"] == 0 < moved["hybrid"] < moved["uniform"]


def test_rows_that_are_finished_take_part_in_no_more_calls() -> None:
    process = Process(Absorbing(), Linear(), VOCABULARY)
    editable_BL = torch.tensor([[True] + [False] * 39, [True] * 40, [False] * 40])
    last = written(Clocked(process), process, editable_BL, 30)[-1]
    assert int(last.calls_B[2]) == 0 < int(last.calls_B[0]) < int(last.calls_B[1]) <= last.calls <= 30


def test_a_rows_text_is_its_own(process: Process) -> None:
    editable_BL = torch.tensor([[True] * 6, [True, False, True, False, True, True], [False] * 6, [True] * 6])
    together = written(Clocked(process, mix=1.0), process, editable_BL, 5, keys=[1, 2, 3, 4])[-1]
    for row in range(4):
        alone = written(Clocked(process, mix=1.0), process, editable_BL[row : row + 1], 5, keys=[row + 1])[-1]
        assert torch.equal(alone.x_BL[0], together.x_BL[row]) and int(alone.calls_B[0]) == int(together.calls_B[row])
    again = written(Clocked(process, mix=1.0), process, editable_BL, 5, keys=[5, 6, 7, 8])[-1]
    assert not torch.equal(again.x_BL[[0, 3]], together.x_BL[[0, 3]])


def test_at_temperature_zero_the_last_step_takes_the_most_probable_token(process: Process) -> None:
    denoiser = Clocked(process, mix=1.0)
    before, last = written(denoiser, process, every(20, 5), 4, token=TokenChoice(temperature=0.0))[-2:]
    xt_BL, t_B, select_BL = denoiser.told[-1]
    assert torch.equal(xt_BL, before.x_BL)
    best_N = ask(denoiser, xt_BL, t_B, select_BL).argmax(-1)
    assert torch.equal(last.x_BL[select_BL], best_N)


def test_nothing_to_write_is_written(process: Process) -> None:
    canvas_BL, none_BL = torch.tensor([[1, 3, 4]]), torch.zeros(1, 3, dtype=torch.bool)
    (only,) = written(Clocked(process), process, none_BL, 3, canvas_BL=canvas_BL)
    assert torch.equal(only.x_BL, canvas_BL) and only.calls == 0


@pytest.mark.parametrize("steps", [0, -1])
def test_there_is_at_least_one_step(process: Process, steps: int) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        written(Clocked(process), process, every(1, 2), steps)


def test_every_noisy_text_is_enumerated_once() -> None:
    for noise in NOISES:
        texts = every_noisy(Process(noise, Linear(), VOCABULARY), 2)
        states = len(SYMBOLS) + noise.masks
        assert len(texts) == states**2 == len({tuple(x) for x in texts.tolist()})
        assert texts.tolist() == sorted(texts.tolist(), key=lambda x: [[*SYMBOLS, 2].index(i) for i in x])
    assert (
        list(itertools.chain.from_iterable(every_noisy(Process(Uniform(), Linear(), VOCABULARY), 1).tolist()))
        == SYMBOLS
    )
