"""Published models that are causal from block to block: what their publishers' own loops write, and its likelihood."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm.diffusion.denoiser import FunctionDenoiser
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.readings import Blocks, Joint
from dlm.diffusion.unmask import TokenChoice
from dlm.errors import CheckpointError, ConfigError
from dlm.lm import DiffusionLM, Sampler
from dlm.model.text import encode
from tests.support import public
from tests.support.adapted_runs import describe
from tests.support.fixtures import Refused
from tests.support.tiny_runs import altered, train

GREEDY = Sampler(token=TokenChoice(temperature=0.0))
PROMPTS = ["a", "ab", "abcd", "abcdefg", "the cat sat on a mat and ran far away, and the dog"]


@pytest.fixture(scope="module", params=["bd3lm", "sdar"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DiffusionLM:
    shelf = tmp_path_factory.mktemp("blocks")
    made = {"bd3lm": shelf / "Qwen3-0.6B-diffusion-bd3lm-v0.1", "sdar": shelf / "SDAR-1.7B-Chat"}[request.param]
    made.mkdir()
    (public.a2d if request.param == "bd3lm" else public.sdar)(made)
    return DiffusionLM.from_pretrained(made, dtype="fp32", device="cpu")


def dense(lm: DiffusionLM, ids: list[int], block_L: Tensor) -> Tensor:
    """Log-probabilities of a row whose tokens see their own block and those before it, by plain transformers."""
    added_LL = torch.zeros(len(ids), len(ids)).masked_fill(block_L[:, None] < block_L, torch.finfo(torch.float32).min)
    with torch.no_grad():
        logits_LV = lm.model(input_ids=torch.tensor([ids]), attention_mask=added_LL[None, None]).logits[0]
    return logits_LV.index_fill(1, torch.tensor(sorted(lm.process.vocabulary.forbidden)), -torch.inf).log_softmax(-1)


def written(lm: DiffusionLM, given: list[int], length: int, size: int, aligned: bool) -> list[int]:
    """The publishers' loop at its simplest: in each block the most confident mask first, with nothing cached.

    Behind nothing all masks would look alike, and rounding would decide.
    """
    ids, first = [*given], (len(given) // size * size if aligned else len(given))
    while len(ids) < len(given) + length:
        stop = min(first + size * ((len(ids) - first) // size + 1), len(given) + length)
        ids += [lm.sidecar.mask_id] * (stop - len(ids))
        block_L = (torch.arange(len(ids)) - first).div(size, rounding_mode="floor")
        while lm.sidecar.mask_id in ids:
            log_p_LV = dense(lm, ids, block_L)
            places = [i for i, id_ in enumerate(ids) if id_ == lm.sidecar.mask_id]
            best = max(places, key=lambda i: float(log_p_LV[i].max()))
            ids[best] = int(log_p_LV[best].argmax())
    return ids[len(given) :]


def test_it_writes_what_its_publishers_loop_writes(lm: DiffusionLM) -> None:
    size, aligned = lm.formulation.readings.blocks[0], lm.sidecar.family is not None and lm.sidecar.family.aligned
    assert (size, aligned) in ((32, False), (4, True))
    prompts: dict[int, Any] = dict(enumerate(PROMPTS[:-1] if size == 4 else PROMPTS))
    together = lm.generate_each(prompts, length=10, sampler=GREEDY)
    for prompt, (found,) in zip(prompts.values(), together, strict=True):
        expected = written(lm, encode(lm.tokenizer, [prompt])[0], 10, size, aligned)
        stops = [i for i, id_ in enumerate(expected) if id_ in lm.end_ids]
        upto = stops[0] + 1 if stops else len(expected)
        assert list(found.ids[:upto]) == expected[:upto], prompt


def test_its_bound_is_of_blocks_behind_the_clean_text_alone(lm: DiffusionLM) -> None:
    """Of blocks of masks alone: each noisy token predicts as in a row of the clean blocks before it and its own."""
    size = lm.formulation.readings.blocks[0]
    ids = encode(lm.tokenizer, ["the cat sat on a mat and ran far away from them"])[0]
    x0_BL, told = torch.tensor([ids]), []
    estimator = lm.estimator(draws=2)

    def spy(inputs: NetworkInput) -> Tensor:
        found: Tensor = lm.denoisers.scoring(inputs)
        told.append((inputs, found))
        return found

    streams = [torch.Generator().manual_seed(1)]
    with torch.inference_mode():
        estimator(FunctionDenoiser(spy), lm.process, x0_BL, streams, torch.ones_like(x0_BL, dtype=torch.bool))
    inputs, found_NV = told[0]
    assert torch.equal(inputs.ids_BL[0, : len(ids)], x0_BL[0])
    assert bool((inputs.ids_BL[0, len(ids) :] == lm.sidecar.mask_id).all())
    for start in range(0, len(ids), size):
        row = [*ids[:start], *[lm.sidecar.mask_id] * len(ids[start : start + size])]
        expected_NV = dense(lm, row, torch.arange(len(row)) // size)[start:]
        torch.testing.assert_close(found_NV[start : start + size], expected_NV, rtol=1e-4, atol=1e-4)


def test_what_it_does_not_do_is_refused(lm: DiffusionLM, refused: Refused) -> None:
    with refused(ConfigError, "behind a hole"):
        lm.infill("a[MASK:2]b")
    with refused(ConfigError, "--block-length", f"blocks of {lm.formulation.readings.blocks[0]}", "got 2"):
        lm.generate("ab", length=4, sampler=Sampler(block_length=2))
    with refused(ConfigError, "no reading 'any-order'"):
        lm.nelbo("text", reading="any-order")


def test_saved_it_writes_the_same(lm: DiffusionLM, tmp_path: Path) -> None:
    lm.save_pretrained(tmp_path / "saved")
    again = DiffusionLM.from_pretrained(tmp_path / "saved", dtype="fp32", device="cpu")
    assert again.sidecar == lm.sidecar and again.layout.before_id is None
    assert again.generate("abc", length=6, sampler=GREEDY) == lm.generate("abc", length=6, sampler=GREEDY)
    assert again.nelbo("some text", draws=4) == pytest.approx(lm.nelbo("some text", draws=4))


def test_a_checkpoint_that_does_not_say_how_long_its_blocks_are_is_refused(tmp_path: Path, refused: Refused) -> None:
    for size in (None, 0, "four"):
        with refused(CheckpointError, "config.json", "block_size", str(size)):
            DiffusionLM.from_pretrained(public.sdar(tmp_path, block_size=size))


def test_a_run_from_it_keeps_its_memory_and_takes_no_next_tokens(tmp_path: Path) -> None:
    base = tmp_path / "SDAR"
    base.mkdir()
    config = describe(tmp_path, public.sdar(base), train={"steps": 2, "validate_every": 2, "save_every": None})
    config = altered(config, "data", length=16)
    run = train(tmp_path / "run", replace(config, readings=Blocks(4, "block-causal")))
    again = DiffusionLM.from_pretrained(run)
    assert again.sidecar.family == DiffusionLM.from_pretrained(base).sidecar.family
    assert again.layout.before_id is None and again.formulation.readings == Blocks(4, "block-causal")
    with pytest.raises(ConfigError, match=r"readings: .* predicts no next tokens; set it to {name: blocks, size: 4"):
        train(tmp_path / "joint", replace(config, readings=Joint((4,))))
    masked = train(tmp_path / "masked", config)
    onward = describe(tmp_path, masked, train={"steps": 2, "validate_every": 2, "save_every": None})
    onward = altered(onward, "data", length=16)
    with pytest.raises(ConfigError, match=r"readings: .* predicts no next tokens; set it to masked, got joint"):
        train(tmp_path / "onward", replace(onward, readings=Joint((4,))))
