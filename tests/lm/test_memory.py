"""Texts written behind a cache are those that would be written without one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.remember import Grid, sample_remembering
from dlm.diffusion.rules import Unmasking
from dlm.diffusion.unmask import Confidence, FixedSteps, OneAtATime, Random, TokenChoice
from dlm.diffusion.verify import Verified, sample_verified
from dlm.errors import ConfigError
from dlm.lm import DiffusionLM, Sampler
from dlm.model.cache import RowCache
from tests.support.fixtures import MakeLM, Refused
from tests.support.networks import seen_behind_cache

LENGTH = 14
PROMPTS = ["", "a", "bcd", "efghijkl", "mnopqrstuvwxyz"]


@pytest.fixture(scope="module")
def joint(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    return make_lm(byte_tokenizer, 32, readings={"name": "joint", "sizes": [2, 4]})


class Remembered(RowCache):
    """A cache that knows the ids too whose keys and values it keeps."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows, 4)  # too small, so that room is made
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.last: list[list[int]] = []

    def keep(self, counts: Sequence[int]) -> None:
        super().keep(counts)
        self.ids = [[*ids, *new[:count]] for ids, new, count in zip(self.ids, self.last, counts, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        self.ids = [self.ids[row] for row in rows]


class Compared(Denoiser):
    """Compares each call behind a cache with one that reads the memory anew, row by row."""

    def __init__(self, denoiser: Denoiser, block: int | None = None) -> None:
        self.denoiser, self.block, self.compared = denoiser, block, 0

    def __call__(self, inputs: NetworkInput) -> Tensor:
        memory = inputs.cache
        assert isinstance(memory, Remembered) and inputs.positions is not None
        memory.last = inputs.ids_BL.tolist()
        found_NV = self.denoiser(inputs)
        expected = []
        for row, ids in enumerate(memory.ids):
            wanted_L = inputs.wanted_BL[row]
            if not wanted_L.any():
                continue
            kept, new = len(ids), inputs.ids_BL.shape[1]
            text_M = torch.arange(-1, kept - 1).clamp(min=0) // (self.block or 1)  # the block of what is kept
            past_MM = torch.ones(kept, kept, dtype=torch.bool).tril()
            if self.block:
                past_MM |= text_M[:, None] == text_M
            seen = torch.zeros(kept + new, kept + new, dtype=torch.bool)
            seen[:kept, :kept], seen[kept:] = past_MM, seen_behind_cache(inputs)[row, :, : kept + new]
            expected.append(
                self.denoiser(
                    NetworkInput(
                        torch.tensor([[*ids, *memory.last[row]]]),
                        torch.cat([torch.zeros(kept, dtype=torch.bool), wanted_L])[None],
                        torch.zeros(1, dtype=torch.double),
                        attention=seen[None],
                        positions=torch.cat([torch.arange(kept), inputs.positions[row]])[None],
                        padded=False,
                    )
                )
            )
        if expected:
            torch.testing.assert_close(found_NV, torch.cat(expected), atol=2e-4, rtol=1e-4)
            self.compared += len(found_NV)
        return found_NV


def canvases(lm: DiffusionLM, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Rows that continue the prompts, as long as the longest of them and `LENGTH` tokens more."""
    mask = lm.sidecar.mask_id
    rows = [lm.layout.canvas(prompt or None, LENGTH).ids for prompt in prompts]
    width = max(map(len, rows))
    x_BL = torch.tensor([row + [mask] * (width - len(row)) for row in rows])
    return x_BL, torch.tensor([[len(p) <= i < len(p) + LENGTH for i in range(width)] for p in prompts])


@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_verified_calls_are_those_without_a_cache(joint: DiffusionLM, drafts: int) -> None:
    compared = Compared(joint.denoisers.sampling)
    x_BL, editable_BL = canvases(joint, PROMPTS)
    assert joint.layout.before_id is not None
    ids = joint.sidecar.mask_id, joint.layout.before_id
    streams = [generator(row) for row in range(len(PROMPTS))]
    *_, last = sample_verified(
        Verified(drafts), compared, Remembered(len(PROMPTS)), x_BL, editable_BL, *ids, generators=streams
    )
    assert compared.compared >= len(PROMPTS) * LENGTH // (drafts + 1)
    assert torch.equal(last.x_BL[~editable_BL], x_BL[~editable_BL]) and not (last.x_BL == ids[0])[editable_BL].any()


@pytest.mark.parametrize(
    "grid", [Grid(1), Grid(3), Grid(4, aligned=True), Grid(4, aligned=True, causal=False), Grid(LENGTH), Grid(50)]
)
def test_blocks_are_those_without_a_cache(joint: DiffusionLM, grid: Grid) -> None:
    compared = Compared(joint.denoisers.sampling, None if grid.causal else grid.size)
    x_BL, editable_BL = canvases(joint, PROMPTS)
    ids = joint.sidecar.mask_id, joint.layout.before_id
    rule = Unmasking(joint.process, Random(), OneAtATime(), TokenChoice())
    cache, streams = Remembered(len(PROMPTS)), [generator(row) for row in range(len(PROMPTS))]
    *_, last = sample_remembering(rule, compared, cache, x_BL, editable_BL, *ids, grid, generators=streams)
    assert compared.compared >= len(PROMPTS) * LENGTH
    assert torch.equal(last.x_BL[~editable_BL], x_BL[~editable_BL]) and not (last.x_BL == ids[0])[editable_BL].any()


@pytest.mark.parametrize("sampler", [Sampler(drafts=2), Sampler(drafts=0), Sampler(block_length=4)])
def test_a_text_does_not_depend_on_its_batch(joint: DiffusionLM, sampler: Sampler) -> None:
    asked = dict(enumerate(PROMPTS))
    how = {"num": 2, "length": LENGTH, "sampler": sampler}
    alone = [text.ids for texts in joint.generate_each(asked, batch_size=1, **how) for text in texts]  # type: ignore[arg-type]
    together = [text.ids for texts in joint.generate_each(asked, batch_size=10, **how) for text in texts]  # type: ignore[arg-type]
    assert alone == together and len(set(alone)) > 5


def test_the_likeliest_text_is_the_one_that_plain_transformers_writes(joint: DiffusionLM, tmp_path: Path) -> None:
    joint.save_pretrained(tmp_path / "model")
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    sure = TokenChoice(temperature=0.0)
    forbidden = [*joint.process.vocabulary.forbidden]
    for prompt in PROMPTS:
        given = [joint.layout.before_id, *joint.layout.canvas(prompt or None, LENGTH).ids[:-LENGTH]]
        written = plain.generate(
            torch.tensor([given]), max_new_tokens=LENGTH, do_sample=False, suppress_tokens=forbidden, eos_token_id=None
        )[0, len(given) :].tolist()
        for drafts in (0, 2):
            (text,) = joint.generate(prompt or None, length=LENGTH, sampler=Sampler(drafts=drafts, token=sure))
            end = next((i for i, id_ in enumerate(written) if id_ in joint.end_ids), LENGTH) if prompt else LENGTH
            assert [*text.ids] == written[:end]


def test_a_joint_model_writes_by_its_causal_reading_unless_it_is_asked_otherwise(joint: DiffusionLM) -> None:
    watched: list[int] = []
    joint.generate(length=LENGTH, watch=lambda state: watched.append(int(state.changed_BL.sum())))
    assert watched[0] == 0 and sum(watched) == LENGTH
    for any_order in (Sampler(verify=False), Sampler(order=Random()), Sampler(budget=FixedSteps(LENGTH))):
        (text,) = joint.generate(length=LENGTH, sampler=any_order)
        assert text.calls == LENGTH


def test_no_more_is_drafted_than_there_is_room_for(joint: DiffusionLM) -> None:
    for tokens, drafts in ((1, 0), (2, 1), (3, 2), (9, 3)):
        rule = Sampler(drafts=3).rule(joint.formulation, joint.process, Random(), tokens)
        assert isinstance(rule, Verified) and rule.drafts == drafts
    prompts = {number: "a" * (31 - room) for number, room in enumerate((9, 2, 1, 9))}
    for number, (found,) in enumerate(joint.generate_each(prompts, sampler=Sampler(drafts=3), seed=4)):
        ((alone,),) = joint.generate_each({number: prompts[number]}, sampler=Sampler(drafts=3), seed=4)
        assert found == alone


def test_a_hole_is_filled_by_what_stands_on_both_sides(joint: DiffusionLM) -> None:
    for sampler in (None, Sampler(block_length=2)):
        fillings = [joint.infill(f"ab[MASK:4]{behind}", sampler=sampler)[0].spans for behind in ("cd", "xyz")]
        assert fillings[0] != fillings[1]
    with pytest.raises(ConfigError, match="a hole has a text behind it"):
        joint.infill("ab[MASK:4]cd", sampler=Sampler(drafts=2))


@pytest.mark.parametrize(
    ("readings", "sampler", "words"),
    [
        ("masked", Sampler(drafts=1), "readings are masked"),
        ("masked", Sampler(accept=0.5), "readings are masked"),
        ("masked", Sampler(verify=True), "readings are masked"),
        ("joint", Sampler(drafts=1, order=Confidence()), "write from left to right"),
        ("joint", Sampler(accept=0.5, verify=False), "write from left to right"),
        ("autoregressive", Sampler(drafts=1), "masks draft"),
        ("autoregressive", Sampler(order=Confidence()), "from left to right alone"),
        ("autoregressive", Sampler(verify=False), "from left to right alone"),
        ({"name": "blocks", "size": 4, "memory": "block-causal"}, Sampler(block_length=8), "blocks of 4"),
    ],
)
def test_what_a_model_cannot_do_is_refused(
    make_lm: MakeLM,
    byte_tokenizer: PreTrainedTokenizerBase,
    refused: Refused,
    readings: object,
    sampler: Sampler,
    words: str,
) -> None:
    lm = make_lm(byte_tokenizer, 32, readings=readings)
    with refused(ConfigError, words):
        lm.generate(length=4, sampler=sampler)
