"""Next tokens, blocks and any order: the readings of one network, against enumeration and against each other."""

import dataclasses
import math
from typing import Literal

import pytest
import torch
from scipy import stats
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser, FunctionDenoiser
from dlm.diffusion.draws import Draws, generator, random_subset, stratified_draws
from dlm.diffusion.formulation import Formulation
from dlm.diffusion.levels import AnyLevels, Bell, Clip, Even, Levels
from dlm.diffusion.likelihood import Estimator
from dlm.diffusion.memory import BlocksObjective, CausalObjective
from dlm.diffusion.memory_likelihood import BlocksEstimator, CausalEstimator
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.objective import MaskedObjective
from dlm.diffusion.readings import AnyReadings, Autoregressive, Blocks, Joint, Masked
from dlm.diffusion.schedule import Linear, Schedule
from dlm.diffusion.streams import TwoStreams, block_lengths, block_numbers, random_block_subset
from dlm.diffusion.weighting import AnyWeighting, CrossEntropy, Elbo, Weighting
from tests.support.choices import defaults, named
from tests.support.joints import Narrow, Straight, Wrong, absorbing, masked_cross_entropy, random_joint, subsets
from tests.support.streams import Shown

K, L = 3, 5
BEFORE = 1
PROCESS = absorbing(Linear(), K)
WEIGHTINGS: list[Weighting] = defaults(AnyWeighting)
LEVELS: list[Levels] = defaults(AnyLevels)
PAIRS: list[tuple[Weighting, Levels]] = [(weighting, Even()) for weighting in WEIGHTINGS]
PAIRS += [(CrossEntropy(), levels) for levels in LEVELS if levels != Even()] + [(Elbo(), Bell(4))]


def wrong() -> Shown:
    """A denoiser of no joint, whose answers depend on every token that it sees."""
    return Shown(Wrong(K, L), K)


def draws(rows: int, key: str = "blocks", total: int | None = None) -> Draws:
    return stratified_draws((key,), range(rows), total or rows)


def text(rows: int, length: int = L) -> Tensor:
    return torch.randint(K, (rows, length), generator=generator("text"))


def blocks_nelbo(denoiser: Denoiser, x0_L: Tensor, size: int) -> float:
    """The bound of blocks, by enumeration: of each block every subset of masks, behind it masks alone."""
    total = 0.0
    for start in range(0, len(x0_L), size):
        block_L = torch.zeros(len(x0_L), dtype=torch.bool)
        block_L[start : start + size] = True
        behind_L = torch.arange(len(x0_L)) >= start + size
        for count in range(1, int(block_L.sum()) + 1):
            found = []
            for chosen in subsets(int(block_L.sum()), count):
                masked_L = block_L.clone()
                masked_L[block_L] = chosen
                seen_L = x0_L.masked_fill(behind_L, K)
                found.append(masked_cross_entropy(Hiding(denoiser, x0_L, seen_L), x0_L, masked_L, K))
            total += sum(found) / len(found) / count
    return total


class Hiding(Denoiser):
    """A denoiser that is shown a text with the end hidden."""

    def __init__(self, denoiser: Denoiser, x0_L: Tensor, seen_L: Tensor) -> None:
        self.denoiser, self.hidden_L = denoiser, x0_L != seen_L

    def __call__(self, inputs: NetworkInput) -> Tensor:
        return self.denoiser(dataclasses.replace(inputs, ids_BL=inputs.ids_BL.masked_fill(self.hidden_L, K)))


@pytest.mark.parametrize(("weighting", "levels"), PAIRS, ids=repr)
@pytest.mark.parametrize("schedule", [Linear(), Straight(0.9, 0.2)], ids=named)
def test_one_block_without_next_tokens_is_masked_diffusion(
    weighting: Weighting, levels: Levels, schedule: Schedule
) -> None:
    process, x0_BL = absorbing(schedule, K), text(9)
    loss_mask_BL = torch.rand(9, L, generator=generator("mask")) < 0.8
    plain = MaskedObjective(weighting, levels).corrupt(process, x0_BL, draws(9), loss_mask_BL)
    objective = BlocksObjective(weighting, levels, BEFORE, (None,))
    blocks = objective.corrupt(process, x0_BL, draws(9), loss_mask_BL)
    assert torch.equal(blocks.inputs.ids_BL[:, L:], plain.inputs.ids_BL)
    assert torch.equal(blocks.inputs.wanted_BL[:, L:], plain.inputs.wanted_BL)
    assert not blocks.inputs.wanted_BL[:, :L].any()
    expected = MaskedObjective(weighting, levels).loss(Wrong(K, L), process, plain)
    found = objective.loss(wrong(), process, blocks)
    for one, other in zip(dataclasses.astuple(found)[:5], dataclasses.astuple(expected)[:5], strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12, equal_nan=True, check_dtype=False)


@pytest.mark.parametrize("size", range(1, L + 1))
@pytest.mark.parametrize(("weighting", "levels"), [(Elbo(), Even()), (CrossEntropy(), Bell(2))], ids=repr)
def test_the_bound_of_a_step_is_that_of_its_blocks(size: int, weighting: Weighting, levels: Levels) -> None:
    rows, x0_L = 800, torch.tensor([0, 2, 1, 1, 0])
    objective = BlocksObjective(weighting, levels, BEFORE, (size,), moves=False)
    nelbo, enough = [], 4
    for part in range(enough):
        terms = objective(wrong(), PROCESS, x0_L.expand(rows, L), draws(rows, f"bound {part}"))
        nelbo.append(float(terms.nelbo) / rows)
    assert sum(nelbo) / enough == pytest.approx(blocks_nelbo(Wrong(K, L), x0_L, size), rel=0.025)


@pytest.mark.parametrize("size", range(1, L + 1))
def test_the_estimate_of_blocks_is_unbiased_even_for_a_denoiser_of_no_joint(size: int) -> None:
    rows, x0_L = 600, torch.tensor([0, 2, 1, 1, 0])
    streams = [generator("unbiased", b) for b in range(rows)]
    found = BlocksEstimator(size, BEFORE, 4)(wrong(), PROCESS, x0_L.expand(rows, L), streams).sum(2).mean(0)
    expected = blocks_nelbo(Wrong(K, L), x0_L, size)
    assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / math.sqrt(rows) + 1e-9
    assert (float(found.std()) < 1e-9) == (size <= 2)  # a pair of masks and its complement is all there is of two


@pytest.mark.parametrize("size", range(1, L + 1))
def test_the_bound_of_small_blocks_is_enumerated(size: int) -> None:
    x0_L = torch.tensor([0, 2, 1, 1, 0])
    enough = max(2, 2**size - 2)
    found_R = BlocksEstimator(size, BEFORE, enough)(wrong(), PROCESS, x0_L[None], [generator("few")]).sum((1, 2))
    assert found_R.tolist() == pytest.approx([blocks_nelbo(Wrong(K, L), x0_L, size)] * len(found_R), abs=1e-9)


@pytest.mark.parametrize("size", range(1, L))
def test_blocks_of_an_exact_denoiser_bound_exactly(size: int) -> None:
    joint = random_joint(L - 1, K)
    x0_L, rows = torch.tensor([2, 0, 1, 1]), 600
    streams = [generator("exact", b) for b in range(rows)]
    found = BlocksEstimator(size, BEFORE, 4)(Shown(joint, K), PROCESS, x0_L.expand(rows, -1), streams).sum(2).mean(0)
    error = float(found.std()) / math.sqrt(rows)
    assert abs(float(found.mean()) + float(joint.log_p(x0_L[None]))) < 4 * error + 1e-9


def test_blocks_of_one_token_are_the_chain_rule_without_variance() -> None:
    joint = random_joint(4, K)
    texts = joint.texts()
    streams = [generator("one", b) for b in range(len(texts))]
    shown = Shown(joint, K)
    causal = CausalEstimator(BEFORE)(shown, PROCESS, texts, streams)
    ones = BlocksEstimator(1, BEFORE, 4)(shown, PROCESS, texts, streams)
    torch.testing.assert_close(causal[0].sum(1), -joint.log_p(texts), atol=1e-10, rtol=0)
    torch.testing.assert_close(ones, causal.expand(2, -1, -1), atol=1e-10, rtol=0)
    assert BlocksEstimator(1, BEFORE).method(PROCESS) == CausalEstimator(BEFORE).method(PROCESS) == "exact"


@pytest.mark.parametrize("schedule", [Linear(), Straight(0.9, 0.2)], ids=named)
@pytest.mark.parametrize("count", [2, 4, 6])
def test_a_block_of_the_whole_text_is_the_estimator_of_any_order(schedule: Schedule, count: int) -> None:
    process, x0_BL = absorbing(schedule, K), text(7)
    scored_BL = torch.rand(7, L, generator=generator("scored")) < 0.8

    def streams() -> list[torch.Generator]:
        return [generator("whole", b) for b in range(7)]

    for size in (L, L + 3, None):
        whole = BlocksEstimator(size, BEFORE, count)(wrong(), process, x0_BL, streams(), scored_BL)
        plain = Estimator(count)(Wrong(K, L), process, x0_BL, streams(), scored_BL)
        torch.testing.assert_close(whole, plain, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_schedule_with_ends_adds_to_each_block_what_it_adds_to_a_text(size: int) -> None:
    process, rows = absorbing(Straight(0.9, 0.2), K), 2000

    @FunctionDenoiser
    def flat(inputs: NetworkInput) -> Tensor:
        return torch.full((int(inputs.wanted_BL.sum()), K), -math.log(K), dtype=torch.float64)

    x0_BL = torch.zeros(rows, 4, dtype=torch.long)
    streams = [generator("ends", b) for b in range(rows)]
    expected = Estimator(16)(flat, process, x0_BL[:1], streams[:1]).sum(2).mean()
    found = BlocksEstimator(size, BEFORE, 4)(flat, process, x0_BL, streams).sum(2).mean(0)
    objective = BlocksObjective(Elbo(), Even(), BEFORE, (size,), moves=False)
    step = objective(flat, process, x0_BL, draws(rows, "ends"))
    assert float(found.mean()) == pytest.approx(float(expected), rel=0.02)
    assert float(step.nelbo) / rows == pytest.approx(float(expected), rel=0.02)


def test_the_loss_is_that_of_masks_and_a_share_of_that_of_next_tokens() -> None:
    x0_BL, weight = text(9), 0.7
    for weighting, levels in PAIRS:
        apart = BlocksObjective(weighting, levels, BEFORE, (2,), moves=False)
        both = dataclasses.replace(apart, next_token=weight)
        masks, together = (each(wrong(), PROCESS, x0_BL, draws(9)) for each in (apart, both))
        next_nats = CausalObjective(BEFORE)(wrong(), PROCESS, x0_BL, draws(9)).nelbo
        # Where a step divides by its masks, of which there is a share, next tokens count as if it divided by all.
        share = 1.0 if weighting.weighted else float(levels.level(torch.linspace(0, 1, 20001).double()).mean())
        expected = float(masks.loss) + weight * share * float(next_nats)
        assert float(together.loss) == pytest.approx(expected, rel=1e-3)
        assert masks.next_token is None and together.next_token is not None
        assert float(together.next_token) == pytest.approx(float(next_nats))
        for name in ("count", "nelbo", "tokens", "predicted"):
            torch.testing.assert_close(getattr(together, name), getattr(masks, name), equal_nan=True)


@pytest.mark.parametrize("size", [1, 2, 3, None])
def test_a_step_has_one_size_and_blocks_at_any_place(size: int | None) -> None:
    objective, offsets = BlocksObjective(Elbo(), Even(), BEFORE, (size,)), set()
    for step in range(40):
        drawn = Draws(torch.rand(2).double(), [generator(step, b) for b in range(2)], generator("shared", step))
        pattern = objective.corrupt(PROCESS, text(2), drawn).inputs.attention
        assert isinstance(pattern, TwoStreams) and pattern.whole == (size is None)
        lengths = pattern.block_BL[0].unique_consecutive(return_counts=True)[1].tolist()
        assert all(each == size for each in lengths[1:-1]) and max(lengths) <= (size or L)
        offsets.add(lengths[0])
    assert offsets == ({L} if size is None else set(range(1, size + 1)))


@pytest.mark.parametrize("objective", [CausalObjective(BEFORE), BlocksObjective(Elbo(), Even(), BEFORE, (2,), 1.0)])
def test_a_step_is_the_same_whatever_is_computed_together(objective: CausalObjective | BlocksObjective) -> None:
    x0_BL = text(6)
    whole = objective(wrong(), PROCESS, x0_BL, draws(6))
    parts = [
        objective(wrong(), PROCESS, x0_BL[part], stratified_draws(("blocks",), range(6)[part], 6))
        for part in (slice(0, 2), slice(2, 6))
    ]
    for name in ("loss", "count", "nelbo", "tokens"):
        total = sum(getattr(part, name) for part in parts)
        torch.testing.assert_close(total, getattr(whole, name), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("length", [6, 7])
def test_a_subset_has_as_many_of_each_block_as_are_asked_for(length: int) -> None:
    rows = 200
    for size in (1, 2, 3, length):
        for offset in range(size):
            block_BL = block_numbers(length, size, offset).expand(rows, -1)
            candidates_BL = torch.rand(rows, length, generator=generator("candidates", size, offset)) < 0.7
            room_BK = block_lengths(block_BL, candidates_BL)
            count_BK = (torch.rand(room_BK.shape, generator=generator("counts", size)) * (room_BK + 1)).floor()
            streams = [generator("subset", row) for row in range(rows)]
            chosen_BL = random_block_subset(streams, block_BL, candidates_BL, count_BK)
            assert not (chosen_BL & ~candidates_BL).any()
            assert torch.equal(block_lengths(block_BL, chosen_BL), count_BK.double())


def test_of_one_block_a_subset_is_that_of_a_whole_text() -> None:
    candidates_BL = torch.rand(50, 9, generator=generator("candidates")) < 0.7
    count_B = (torch.rand(50, generator=generator("counts")) * (candidates_BL.sum(1) + 1)).floor()
    by_block_BL = random_block_subset(
        [generator("one", b) for b in range(50)], torch.zeros(50, 9, dtype=torch.long), candidates_BL, count_B[:, None]
    )
    assert torch.equal(by_block_BL, random_subset([generator("one", b) for b in range(50)], candidates_BL, count_B))


def test_every_subset_of_every_block_is_as_likely_as_any_other() -> None:
    rows, block_1L = 12000, torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    candidates_BL = torch.tensor([[True, True, True, True, True, False, True]]).expand(rows, -1)
    streams = [generator("uniform", b) for b in range(rows)]
    count_BK = torch.tensor([[2.0, 1.0]]).expand(rows, 2)
    chosen_BL = random_block_subset(streams, block_1L.expand(rows, -1), candidates_BL, count_BK)
    found = chosen_BL.unique(dim=0, return_counts=True)[1].numpy()
    assert len(found) == 9 and stats.chisquare(found).pvalue > 1e-3


@pytest.mark.parametrize("size", [1, 2, 3])
def test_padding_changes_nothing(size: int) -> None:
    x0_BL, mask_BL = text(6), (torch.arange(L + 4) < L).expand(6, -1)
    wide_BL = torch.nn.functional.pad(x0_BL, (0, 4), value=K)
    narrow = Shown(Narrow(Wrong(K, L), L), K)
    for objective in (CausalObjective(BEFORE), BlocksObjective(Elbo(), Even(), BEFORE, (size,), 1.0, moves=False)):
        plain, padded = (
            objective(wrong(), PROCESS, x0_BL, draws(6)),
            objective(narrow, PROCESS, wide_BL, draws(6), mask_BL),
        )
        for one, other in zip(dataclasses.astuple(padded), dataclasses.astuple(plain), strict=True):
            if one is None:
                continue
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    for estimator in (CausalEstimator(BEFORE), BlocksEstimator(size, BEFORE, 4)):
        streams = [[generator("pad", b) for b in range(6)] for _ in range(2)]
        wide = estimator(narrow, PROCESS, wide_BL, streams[0], mask_BL)
        assert not wide[:, :, L:].any()
        torch.testing.assert_close(wide[:, :, :L], estimator(wrong(), PROCESS, x0_BL, streams[1]), atol=1e-12, rtol=0)


def test_a_row_without_a_token_to_predict_adds_nothing() -> None:
    x0_BL, mask_BL = text(3), torch.ones(3, L, dtype=torch.bool)
    mask_BL[1] = False
    for objective in (CausalObjective(BEFORE), BlocksObjective(Elbo(), Even(), BEFORE, (2,), 1.0, moves=False)):
        found = objective(wrong(), PROCESS, x0_BL, draws(3), mask_BL)
        assert math.isfinite(float(found.loss)) and int(found.tokens) == 2 * L
    for estimator in (CausalEstimator(BEFORE), BlocksEstimator(2, BEFORE, 4)):
        nats = estimator(wrong(), PROCESS, x0_BL, [generator(b) for b in range(3)], mask_BL)
        assert nats.isfinite().all() and not nats[:, 1].any()


READINGS: dict[str, tuple[AnyReadings, tuple[str, ...]]] = {
    "masked": (Masked(), ("any-order",)),
    "autoregressive": (Autoregressive(), ("causal",)),
    "blocks": (Blocks(4), ("blocks:4",)),
    "joint": (Joint((2, 4)), ("causal", "any-order", "blocks:2", "blocks:4")),
}


@pytest.mark.parametrize("name", READINGS)
def test_a_model_has_the_readings_that_it_was_trained_for_and_no_other(name: str) -> None:
    readings, known = READINGS[name]
    formulation = Formulation(readings=readings)
    assert readings.name == name and readings.all == known
    for reading in known:
        formulation.reading(reading, 4, BEFORE)
    for other in {"causal", "any-order", "blocks:0", "blocks", "blocks:x", "any-order:2", ""} - set(known):
        with pytest.raises(ValueError, match="this model has no reading"):
            formulation.reading(other, 4, BEFORE)


@pytest.mark.parametrize(("memory", "free"), [("causal", True), ("block-causal", False)])
def test_a_causal_memory_is_that_of_blocks_of_any_size(memory: Literal["causal", "block-causal"], free: bool) -> None:
    formulation = Formulation(readings=Blocks(4, memory))
    assert formulation.reading("blocks:4", 4, BEFORE) == BlocksEstimator(4, BEFORE, 4, causal=free)
    if free:
        assert formulation.reading("blocks:3", 4, BEFORE) == BlocksEstimator(3, BEFORE, 4)
    else:
        with pytest.raises(ValueError, match="no reading 'blocks:3'"):
            formulation.reading("blocks:3", 4, BEFORE)


def test_levels_that_leave_some_out_report_no_bound() -> None:
    terms = BlocksObjective(CrossEntropy(), Clip(), BEFORE, (2,), 1.0)(wrong(), PROCESS, text(4), draws(4))
    assert math.isnan(float(terms.nelbo)) and math.isfinite(float(terms.loss))
