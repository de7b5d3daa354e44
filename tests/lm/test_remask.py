"""Remasking by a whole model: continuing, filling, in blocks and behind a memory, and what it does not go with."""

from itertools import pairwise

import pytest
from transformers import PreTrainedTokenizerBase

from dlm.diffusion.remask import AnyRemasker, Cap, LeastConfident, Loop, Planner, Psi, Rescale
from dlm.diffusion.sample import State
from dlm.diffusion.unmask import Ancestral, Budget, Factor, FixedSteps, OneAtATime, Random, Threshold
from dlm.errors import ConfigError
from dlm.lm import DiffusionLM, Sampler
from tests.support.fixtures import MakeLM, Refused

REMASKERS: list[AnyRemasker] = [Cap(0.3), Rescale(0.8), LeastConfident(0.9), Loop(0.1), Psi(0.5), Planner(2.0)]
LENGTH = 14


@pytest.fixture(scope="module")
def joint(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    return make_lm(byte_tokenizer, 32, readings={"name": "joint", "sizes": [2, 4]})


@pytest.fixture(scope="module")
def blocks(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    return make_lm(byte_tokenizer, 32, readings={"name": "blocks", "size": 4})


@pytest.mark.parametrize("remask", REMASKERS, ids=repr)
@pytest.mark.parametrize("block_length", [None, 5])
def test_a_text_after_a_prompt_is_its_own_in_every_batch(
    tiny_lm: DiffusionLM, remask: AnyRemasker, block_length: int | None
) -> None:
    sampler = Sampler(budget=FixedSteps(8), remask=remask, block_length=block_length)
    states: list[State] = []
    many = tiny_lm.generate("abc", num=3, length=LENGTH, sampler=sampler, seed=1, watch=states.append)
    assert all(text.text.startswith("abc") and len(text.ids) <= LENGTH for text in many)
    alone = tiny_lm.generate("abc", num=3, length=LENGTH, sampler=sampler, seed=1, batch_size=1)
    assert [text.ids for text in many] == [text.ids for text in alone]
    mask = tiny_lm.process.mask_id
    assert any(((a.x_BL != mask) & (b.x_BL == mask)).any() for a, b in pairwise(states))


@pytest.mark.parametrize("remask", REMASKERS, ids=repr)
def test_holes_are_filled_and_the_rest_stays(tiny_lm: DiffusionLM, remask: AnyRemasker) -> None:
    sampler = Sampler(budget=FixedSteps(6), remask=remask)
    for found in tiny_lm.infill("ab[MASK:4]cd[MASK:3]ef", num=2, sampler=sampler):
        first, second = found.spans
        assert found.text == f"ab{first}cd{second}ef" and found.calls <= 6


@pytest.mark.parametrize("remask", REMASKERS, ids=repr)
@pytest.mark.parametrize("name", ["joint", "blocks"])
def test_blocks_behind_a_memory(request: pytest.FixtureRequest, name: str, remask: AnyRemasker) -> None:
    lm: DiffusionLM = request.getfixturevalue(name)
    sampler, prompts = Sampler(budget=FixedSteps(5), remask=remask, block_length=4), {0: "", 1: "a", 2: "bcdefgh"}
    together = list(lm.generate_each(prompts, length=LENGTH, sampler=sampler, seed=2))
    for number, (found,) in enumerate(together):
        ((alone,),) = lm.generate_each({number: prompts[number]}, length=LENGTH, sampler=sampler, seed=2)
        assert found.ids == alone.ids and len(found.ids) <= LENGTH


def test_psi_is_for_noise_of_symbols_too_and_needs_no_steps_there(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, refused: Refused
) -> None:
    lm = make_lm(byte_tokenizer, 32, noise={"name": "uniform"})
    for budget in (None, FixedSteps(5), Ancestral(5)):
        plain, anew = (
            lm.generate(length=6, sampler=Sampler(budget=budget, remask=remask))[0] for remask in (None, Psi(0.5))
        )
        assert plain.calls == anew.calls and plain.ids != anew.ids
    for remask in REMASKERS:
        if not isinstance(remask, Psi):
            with refused(ConfigError, f"--remask {remask.name}", "uniform", "--remask psi"):
                lm.generate(length=6, sampler=Sampler(budget=FixedSteps(5), remask=remask))


def test_a_models_own_steps_are_taken(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    lm = make_lm(byte_tokenizer, 32, time={"steps": 3})
    for remask in REMASKERS:
        assert lm.generate(length=9, sampler=Sampler(remask=remask))[0].calls <= 3


def test_a_model_that_takes_the_time_is_told_it_and_writes_no_blocks(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, refused: Refused
) -> None:
    lm = make_lm(byte_tokenizer, 32, model={"time_conditioning": True})
    for remask in REMASKERS:
        assert len(lm.generate(length=5, sampler=Sampler(budget=FixedSteps(4), remask=remask))[0].ids) == 5
    with refused(ConfigError, "--remask and --block-length", "time"):
        lm.generate(length=4, sampler=Sampler(budget=FixedSteps(4), remask=Cap(), block_length=2))


@pytest.mark.parametrize("remask", REMASKERS, ids=repr)
@pytest.mark.parametrize("budget", [None, OneAtATime(), Threshold(0.5), Factor(1.0)], ids=repr)
def test_a_number_of_steps_is_needed(
    tiny_lm: DiffusionLM, refused: Refused, remask: AnyRemasker, budget: Budget | None
) -> None:
    with refused(ConfigError, f"--remask {remask.name}", "--steps N"):
        tiny_lm.generate(length=4, sampler=Sampler(budget=budget, remask=remask))


def test_what_does_not_go_together_is_refused(
    tiny_lm: DiffusionLM,
    joint: DiffusionLM,
    make_lm: MakeLM,
    byte_tokenizer: PreTrainedTokenizerBase,
    refused: Refused,
) -> None:
    steps = FixedSteps(4)
    with refused(ConfigError, "--remask cap", "leave --order random out"):
        tiny_lm.generate(length=4, sampler=Sampler(Random(), steps, remask=Cap()))
    with refused(ConfigError, "--remask cap", "leave --grid cosine out"):
        tiny_lm.generate(length=4, sampler=Sampler(budget=FixedSteps(4, "cosine"), remask=Cap()))
    with refused(ConfigError, "--remask planner", "leave --grid binomial out"):
        tiny_lm.generate(length=4, sampler=Sampler(budget=Ancestral(4), remask=Planner()))
    for asked in (Sampler(verify=True, remask=Cap()), Sampler(drafts=2, budget=steps, remask=Cap())):
        with refused(ConfigError, "--verify", "--remask"):
            joint.generate(length=4, sampler=asked)
    with refused(ConfigError, "--remask cap", "--steps N"):  # not verified sampling in silence
        joint.generate(length=4, sampler=Sampler(remask=Cap()))
    causal = make_lm(byte_tokenizer, 32, readings={"name": "autoregressive"})
    with refused(ConfigError, "left to right alone", "--remask"):
        causal.generate(length=4, sampler=Sampler(remask=Cap()))
