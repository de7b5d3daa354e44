"""Guided texts: weight 0 is no guidance bit for bit, and what cannot be guided is refused."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from dlm.config import Characters
from dlm.diffusion.guide import Guidance
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.remask import Cap
from dlm.diffusion.reuse import Reuse
from dlm.diffusion.sample import State
from dlm.diffusion.unmask import Confidence, FixedSteps, TokenChoice
from dlm.errors import ConfigError, DataError
from dlm.lm import DiffusionLM, Sampler
from dlm.model.tokenizer import _complete, build_tokenizer
from dlm.template import parse_template
from tests.support.commands import dlm, refusal
from tests.support.fixtures import MakeLM, Refused
from tests.support.tokenizers import like_roberta

STEPS = FixedSteps(4)


def sampler(weight: float, *, late: bool = False, negative: str | None = None) -> Sampler:
    return Sampler(Confidence(), STEPS, guidance=Guidance(weight, late, negative))


def test_weight_0_is_no_guidance_bit_for_bit(tiny_lm: DiffusionLM) -> None:
    plain = Sampler(Confidence(), STEPS)
    for prompt in ("abc", None):
        found, expected = (tiny_lm.generate(prompt, num=4, length=9, sampler=how) for how in (sampler(0.0), plain))
        assert found == expected
    one, other = (tiny_lm.infill("a[MASK:4]b", num=3, sampler=how) for how in (sampler(0.0), plain))
    assert one == other


def test_each_kind_of_guidance_writes_another_text(tiny_lm: DiffusionLM) -> None:
    hows = [
        sampler(0.0),
        sampler(2.0),
        sampler(2.0, late=True),
        sampler(2.0, negative="xyz"),
        sampler(2.0, negative=""),
    ]
    found = [tiny_lm.generate("abc", length=12, sampler=how)[0] for how in hows]
    assert len({one.ids for one in found}) == len(found) and all(one.calls == found[0].calls for one in found)


def test_the_first_token_follows_the_formula(tiny_lm: DiffusionLM) -> None:
    """The likeliest of (1 + w) l - w l', of the network's own predictions."""
    mask, w = tiny_lm.process.mask_id, 3.0
    x_BL = torch.tensor([[*tiny_lm.layout.canvas("abc", 1).ids], [mask] * 4])
    wanted_BL = torch.tensor([[False, False, False, True]] * 2)
    with torch.inference_mode():
        given_V, none_V = tiny_lm.denoisers.sampling(NetworkInput(x_BL, wanted_BL, torch.ones(2, dtype=torch.double)))
    expected = int(((1 + w) * given_V - w * none_V.clamp(min=-1e9)).where(given_V > -torch.inf, -torch.inf).argmax())
    how = Sampler(token=TokenChoice(0.0), guidance=Guidance(w))
    (found,) = tiny_lm.generate("abc", length=1, sampler=how)
    assert found.ids == (expected,) or (found.ids == () and expected in tiny_lm.end_ids)


def test_a_text_does_not_depend_on_its_batch(tiny_lm: DiffusionLM) -> None:
    prompts = {0: "a", 1: "bcdef", 2: "gh"}
    for how in (sampler(1.5), sampler(1.5, negative="a longer one")):
        several = [*tiny_lm.generate_each(prompts, num=2, length=6, sampler=how)]
        alone = [*tiny_lm.generate_each(prompts, num=2, length=6, sampler=how, batch_size=1)]
        assert several == alone


def test_a_cache_that_is_always_renewed_changes_nothing(tiny_lm: DiffusionLM) -> None:
    for how in (sampler(1.5), sampler(1.5, negative="another")):
        exact = tiny_lm.generate("abc", num=3, length=8, sampler=how)
        renewed, kept = (replace(how, reuse=Reuse(refresh=calls)) for calls in (1, 8))
        same, near = (tiny_lm.generate("abc", num=3, length=8, sampler=each) for each in (renewed, kept))
        assert [one.ids for one in same] == [one.ids for one in exact]
        assert [one.calls for one in near] == [one.calls for one in exact]


def test_guidance_goes_with_remasking_and_with_languages(tiny_lm: DiffusionLM) -> None:
    tiny_lm.generate("abc", length=8, sampler=Sampler(budget=STEPS, remask=Cap(), guidance=Guidance(1.0)))
    for one in tiny_lm.infill("ab[MASK:4:/(xy|zw)+/]c", num=4, sampler=sampler(2.0)):
        assert one.spans[0] in ("xyxy", "xyzw", "zwxy", "zwzw")


def test_infilling_is_guided_by_what_stands_around(tiny_lm: DiffusionLM) -> None:
    plain, far = (tiny_lm.infill("abc[MASK:6]def", num=2, sampler=sampler(w)) for w in (0.0, 4.0))
    assert [one.text for one in plain] != [one.text for one in far]
    states: list[State] = []
    tiny_lm.infill("abc[MASK:6]def", sampler=sampler(4.0), watch=states.append)
    assert len(states) > 2 and states[0].x_BL.shape[0] == 1


def test_a_negative_prompt_takes_the_place_of_the_last_message(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    lm = make_lm(byte_tokenizer, 48)
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}/{% endfor %}"
    try:
        chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
        canvas = lm.layout.canvas(chat, 5)
        other = lm.layout.unguided(chat, canvas, "no")
        assert bytes(other.ids[: other.holes[0].start]) == b"s:s/u:no/" and sum(other.editable) == 5
        hidden = lm.layout.unguided(chat, canvas, None)
        assert set(hidden.ids) == {lm.process.mask_id} and len(hidden.ids) == len(canvas.ids)
    finally:
        lm.tokenizer.chat_template = None


def test_without_a_length_both_prompts_have_room(tiny_lm: DiffusionLM) -> None:
    states: list[State] = []
    tiny_lm.generate("a", sampler=sampler(1.0, negative="twenty longer tokens"), watch=states.append)
    assert int(states[0].editable_BL.sum()) == 32 - 20


def test_special_tokens_around_a_text_are_not_hidden(make_lm: MakeLM) -> None:
    plain = make_lm(_complete(like_roberta()), 32)
    lm = DiffusionLM(plain.model, plain.tokenizer, precision="fp32")
    mask, (first,), (last,) = lm.process.mask_id, lm.sidecar.affixes.prefix, lm.sidecar.affixes.suffix
    for canvas in (lm.layout.canvas("ab", 3), lm.layout.holes(parse_template("ab[MASK:2]c"))):
        assert canvas.ids[0] == first and canvas.ids[-1] == last
        assert lm.layout.hidden(canvas).ids == [first, *[mask] * 5, last]


def test_what_cannot_be_guided_is_refused(
    tiny_lm: DiffusionLM, make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, refused: Refused
) -> None:
    with refused(ConfigError, "--guidance leads towards a prompt, and there is none"):
        tiny_lm.generate(None, length=4, sampler=sampler(1.0))
    with refused(ConfigError, "--guidance leads towards a prompt, and there is none"):
        tiny_lm.generate("", length=4, sampler=sampler(1.0))
    with refused(DataError, "--negative-prompt: the"):
        tiny_lm.generate("a", length=10, sampler=sampler(1.0, negative="x" * 30))
    with refused(ConfigError, "--guidance leads towards the text around spans"):
        tiny_lm.infill("[MASK:3]", sampler=sampler(1.0))
    with refused(ConfigError, "--negative-prompt is for what continues a prompt"):
        tiny_lm.infill(parse_template("a[MASK:3]"), sampler=sampler(1.0, negative="b"))
    with refused(ConfigError, "hides the prompt by masks", "uniform"):
        make_lm(byte_tokenizer, 32, noise={"name": "uniform"}).generate(
            "a", length=4, sampler=Sampler(guidance=Guidance(1))
        )
    with refused(ConfigError, "takes the time"):
        make_lm(byte_tokenizer, 32, model={"time_conditioning": True}).generate("a", length=4, sampler=sampler(1.0))


def test_readings_that_write_next_tokens_are_refused_and_masks_are_guided(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, refused: Refused
) -> None:
    how = Sampler(guidance=Guidance(1.0))
    joint = make_lm(byte_tokenizer, 32, readings={"name": "joint"})
    (found,) = joint.generate("abc", length=6, sampler=how)
    assert found.calls <= 6
    with refused(ConfigError, "--guidance"):
        joint.generate("abc", length=6, sampler=Sampler(verify=True, guidance=Guidance(1.0)))
    with refused(ConfigError, "--guidance reads the prompt twice"):
        joint.generate("abc", length=6, sampler=Sampler(block_length=2, guidance=Guidance(1.0)))
    causal = make_lm(byte_tokenizer, 32, readings={"name": "autoregressive"})
    with refused(ConfigError, "--guidance", "from left to right alone"):
        causal.generate("abc", length=6, sampler=how)


def test_the_commands_guide(tiny_lm: DiffusionLM, tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny_lm.save_pretrained(model)
    words = ["sample", model, "--prompt", "abc", "--length", "8", "--steps", "4", "--dtype", "fp32"]
    plain, none = dlm(*words)[0], dlm(*words, "--guidance", "0")[0]
    assert plain == none
    texts = {dlm(*words, "--guidance", w)[0] for w in ("2", "2:late")}
    texts.add(dlm(*words, "--guidance", "2", "--negative-prompt", "xyz")[0])
    assert len(texts | {plain}) == 4
    film = tmp_path / "film.svg"
    dlm(*words, "--guidance", "2", "--export", film)
    assert film.stat().st_size > 1000
    dlm("infill", model, "abc[MASK:3]d", "--guidance", "1.5:late")
    for wrong in ("-1", "x", "2:early", "nan", ":late", "inf", "2:"):
        assert "--guidance is a number from 0 on" in refusal(*words, f"--guidance={wrong}")
    assert "give --guidance W too" in refusal(*words, "--negative-prompt", "x")


def test_characters_of_a_negative_prompt_that_are_not_known_are_told(make_lm: MakeLM) -> None:
    lm = make_lm(build_tokenizer(Characters(), lambda: ["ab"]), 12)
    with pytest.warns(UserWarning, match="2 of the tokens that are given by the negative prompt stand for characters"):
        lm.generate("a", length=4, sampler=sampler(1.0, negative="axx"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.generate("a", length=4, sampler=sampler(1.0, negative="ab"))
