"""A model writes what it was asked to, changes nothing else, and says the same whatever it is batched with."""

import json
import math
import tracemalloc
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dlm.config import Bpe, Characters
from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import Estimator
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.sample import State
from dlm.diffusion.unmask import (
    Ancestral,
    Budget,
    Confidence,
    Entropy,
    FixedSteps,
    LeftToRight,
    Margin,
    OneAtATime,
    Order,
    Random,
    Threshold,
    TokenChoice,
)
from dlm.errors import CheckpointError, ConfigError, DataError
from dlm.lm import DiffusionLM, Infilling, Sampler
from dlm.model.text import decode, encode
from dlm.model.tokenizer import build_tokenizer
from dlm.template import Hole, Template, parse_template
from tests.support import commands
from tests.support.fixtures import MakeLM, Refused
from tests.support.networks import ask
from tests.support.tiny_models import TINY
from tests.support.tokenizers import like_roberta

PROSE = "the cat sat on the mat and the mat sat on the cat, then the theatre "
FIXED = Sampler(budget=FixedSteps(4))
ORDERS: list[Order] = [Random(), LeftToRight(), Confidence(), Margin(), Entropy()]
BUDGETS: list[Budget] = [OneAtATime(), FixedSteps(3), FixedSteps(40, "cosine"), Ancestral(4), Threshold(0.3)]


@pytest.fixture(scope="module")
def bpe_lm(make_lm: MakeLM) -> DiffusionLM:
    """A model whose tokens reach over the seams of words."""
    return make_lm(build_tokenizer(Bpe(size=330), lambda: [PROSE * 3]), 24)


@pytest.fixture(scope="module")
def character_lm(make_lm: MakeLM) -> DiffusionLM:
    return make_lm(build_tokenizer(Characters(), lambda: [PROSE + "\u00e9\U0001f600"]), 24)


def around(template: Template, found: Infilling) -> str:
    """The template with the spans put into its holes."""
    spans = iter(found.spans)
    return "".join(next(spans) if isinstance(part, Hole) else part for part in template)


# Infilling


@pytest.mark.parametrize(
    "text",
    [
        "[MASK:3]",
        "ab[MASK:2]",
        "[MASK:2]ab",
        "a[MASK:1]b[MASK:4]c",
        "[MASK:1][MASK:2]",
        "caf\u00e9[MASK:2]\u00e9\U0001f600 tail",
        "\U0001f600[MASK:3]\U0001f600",
        "line\r\n[MASK:2]\r\n\t end \x00\x1b",
        "<|mask|>[MASK:2]<|endoftext|>[MASK:1]<|pad|>",
        "\ufffd[MASK:2]\ufffd",
        "e[MASK:1]\u0301",  # a combining accent right after the hole
        "x" * 500 + "[MASK:4]" + "y" * 500,  # far longer than the context
        "[MASK:4]" + "\U0001f600" * 200,
        "\u00e9" * 200 + "[MASK:4]",
        "the c[MASK:2]t sat on the th[MASK:3]e mat",
        r"\[MASK:9] and [MASK:1]",
    ],
)
@pytest.mark.parametrize("kind", ["tiny_lm", "bpe_lm", "character_lm"])
@pytest.mark.filterwarnings("ignore:.*the model does not see what they are")
def test_nothing_changes_outside_the_holes(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    lm: DiffusionLM = request.getfixturevalue(kind)
    template = parse_template(text)
    holes = [part for part in template if isinstance(part, Hole)]
    for found in lm.infill(text, num=3, sampler=FIXED):
        assert found.text == around(template, found)
        assert [len(ids) for ids in found.ids] == [hole.tokens for hole in holes]
        assert not {lm.process.mask_id, lm.tokenizer.eos_token_id, lm.tokenizer.pad_token_id} & set(sum(found.ids, ()))
        assert found.log_likelihood < 0.0


@pytest.mark.filterwarnings("ignore:.*the model does not see what they are")
def test_a_span_is_what_its_tokens_say(character_lm: DiffusionLM) -> None:
    for found in character_lm.infill("the [MASK:3] and [MASK:2].", num=4):
        assert [decode(character_lm.tokenizer, ids) for ids in found.ids] == list(found.spans)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
@pytest.mark.parametrize("budget", BUDGETS, ids=repr)
def test_an_alternative_depends_on_the_seed_and_its_number_alone(
    tiny_lm: DiffusionLM, order: Order, budget: Budget
) -> None:
    sampler = Sampler(order, budget)
    text = "before [MASK:4] and [MASK:3] after"
    many = {found.text for found in tiny_lm.infill(text, num=5, sampler=sampler, draws=2)}
    assert many == {found.text for found in tiny_lm.infill(text, num=5, sampler=sampler, draws=2, batch_size=2)}
    fewer = {found.text for found in tiny_lm.infill(text, num=2, sampler=sampler, draws=2)}
    assert len(many) > 2 and fewer < many
    assert many != {found.text for found in tiny_lm.infill(text, num=5, sampler=sampler, draws=2, seed=1)}


def test_the_most_likely_comes_first(tiny_lm: DiffusionLM) -> None:
    values = [found.log_likelihood for found in tiny_lm.infill("a [MASK:5] b", num=12, sampler=FIXED)]
    assert values == sorted(values, reverse=True) and len(set(values)) > 1


def test_many_texts_side_by_side_are_each_as_alone(tiny_lm: DiffusionLM) -> None:
    templates = [parse_template(text) for text in ("a[MASK:3]b", "much longer text [MASK:5] here", "[MASK:1]")]
    together = [*tiny_lm.infill_each(dict(enumerate(templates)), num=3)]
    apart = [*tiny_lm.infill_each(dict(enumerate(templates)), num=3, batch_size=1)]
    for one, other, template in zip(together, apart, templates, strict=True):
        assert len(one) == 3 and all(found.text == around(template, found) for found in one)
        assert [found.text for found in one] == [found.text for found in other]
        assert [found.log_likelihood for found in one] == pytest.approx([found.log_likelihood for found in other])
    assert [*tiny_lm.infill_each({})] == []
    first = tiny_lm.infill(templates[0], num=3)
    assert [found.text for found in first] == [found.text for found in together[0]]


def test_one_token_is_scored_by_the_models_own_probability(tiny_lm: DiffusionLM) -> None:
    before, after = "some text", " and more"
    ids = [*before.encode(), tiny_lm.process.mask_id, *after.encode()]
    x_BL = torch.tensor([ids])
    with torch.inference_mode():
        log_p_V = ask(tiny_lm.denoisers.infilling, x_BL, torch.zeros(1), x_BL == tiny_lm.process.mask_id)[0]
    for found in tiny_lm.infill(f"{before}[MASK:1]{after}", num=5):
        assert found.log_likelihood == pytest.approx(float(log_p_V[found.ids[0][0]]), abs=1e-5)


def test_greedy_infilling_takes_the_most_probable_token(tiny_lm: DiffusionLM) -> None:
    x_BL = torch.tensor([[*b"abc", tiny_lm.process.mask_id, *b"def"]])
    with torch.inference_mode():
        log_p_V = ask(tiny_lm.denoisers.infilling, x_BL, torch.zeros(1), x_BL == tiny_lm.process.mask_id)[0]
    (found,) = tiny_lm.infill("abc[MASK:1]def", sampler=Sampler(token=TokenChoice(temperature=0.0)))
    assert found.ids == ((int(log_p_V.argmax()),),)


def test_a_window_reaches_as_far_as_the_context(tiny_lm: DiffusionLM) -> None:
    """Within the window a neighbour is seen, outside it is not."""

    def likelihoods(text: str) -> list[float]:
        return [found.log_likelihood for found in tiny_lm.infill(text, num=2)]

    text = "a" * 100 + "[MASK:2]" + "b" * 100
    assert likelihoods(text) != likelihoods("a" * 85 + "X" + "a" * 14 + "[MASK:2]" + "b" * 100)
    assert likelihoods(text) != likelihoods("a" * 100 + "[MASK:2]" + "b" * 14 + "X" + "b" * 85)
    assert likelihoods(text) == likelihoods("X" + "a" * 99 + "[MASK:2]" + "b" * 99 + "X")


@pytest.mark.parametrize(("text", "word"), [("[MASK:33]", "33"), ("[MASK:20]" + "x" * 10 + "[MASK:3]", "33")])
def test_spans_that_do_not_fit_are_refused(tiny_lm: DiffusionLM, refused: Refused, text: str, word: str) -> None:
    with refused(DataError, f"{word} tokens", "32"):
        tiny_lm.infill(text)
    assert tiny_lm.infill("long text " * 9 + "[MASK:20]" + "x" * 10 + "[MASK:2]", sampler=FIXED)


def test_a_span_of_any_number_is_refused_before_memory_is_taken(tiny_lm: DiffusionLM, refused: Refused) -> None:
    tracemalloc.start()
    with refused(DataError, "999999999"):
        tiny_lm.infill("[MASK:999999999]")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000_000


def test_a_text_without_a_hole_is_refused(tiny_lm: DiffusionLM, refused: Refused) -> None:
    with refused(DataError, "no span"):
        tiny_lm.infill("nothing to fill")


def test_no_hole_is_filled_with_an_unknown_character(make_lm: MakeLM) -> None:
    lm = make_lm(build_tokenizer(Characters(), lambda: ["ab"]), 12)
    found = lm.infill("a[MASK:4]b", num=40, sampler=FIXED, draws=2)
    assert {character for one in found for character in one.spans[0]} == {"a", "b"}


def test_scores_of_unknown_characters_warn(make_lm: MakeLM) -> None:
    lm = make_lm(build_tokenizer(Characters(), lambda: ["ab"]), 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.nelbo("abba")
        lm.score("x", "abba")  # what is given is not scored
    with pytest.warns(UserWarning, match="2 of the tokens stand for characters that the tokenizer does not know"):
        lm.nelbo(["axxa", "ab"])
    with pytest.warns(UserWarning, match="1 of the tokens"):
        lm.score("a", "bx")


# Sampling


@pytest.mark.parametrize("prompt", [None, "a prompt \U0001f600"])
@pytest.mark.parametrize("budget", BUDGETS, ids=repr)
def test_a_sample_depends_on_the_seed_and_its_number_alone(
    tiny_lm: DiffusionLM, prompt: str | None, budget: Budget
) -> None:
    sampler = Sampler(budget=budget)
    five = tiny_lm.generate(prompt, num=5, length=12, sampler=sampler)
    assert five == tiny_lm.generate(prompt, num=5, length=12, sampler=sampler, batch_size=2)
    assert five[:2] == tiny_lm.generate(prompt, num=2, length=12, sampler=sampler)
    assert five != tiny_lm.generate(prompt, num=5, length=12, sampler=sampler, seed=1)
    assert len({sample.ids for sample in five}) == 5


@pytest.mark.parametrize("prompt", ["hello", "\u00e9\U0001f600", "<|mask|>\r\n", "\ufffd", "the th"])
@pytest.mark.parametrize("kind", ["tiny_lm", "bpe_lm"])
def test_the_prompt_comes_back_as_it_was_given(kind: str, prompt: str, request: pytest.FixtureRequest) -> None:
    lm: DiffusionLM = request.getfixturevalue(kind)
    for sample in lm.generate(prompt, num=3, length=5, sampler=FIXED):
        assert sample.text == prompt + sample.continuation
        given = encode(lm.tokenizer, [prompt])[0]
        assert sample.text == decode(lm.tokenizer, [*given, *sample.ids])


def test_a_sample_fills_the_context_by_default(tiny_lm: DiffusionLM) -> None:
    assert len(tiny_lm.generate(sampler=FIXED)[0].ids) == 32
    states: list[State] = []
    tiny_lm.generate("abcd", sampler=FIXED, watch=states.append)
    assert states[0].x_BL.shape == (1, 32)
    assert bytes(states[-1].x_BL[0, :4].tolist()) == b"abcd"


class Fixed(Denoiser):
    """A denoiser that is sure of one text."""

    def __init__(self, ids: Sequence[int], vocabulary: int) -> None:
        self.ids, self.vocabulary = torch.tensor(ids), vocabulary

    def __call__(self, inputs: NetworkInput) -> Tensor:
        xt_BL, select_BL = inputs.ids_BL, inputs.wanted_BL
        wanted_BL = self.ids[: xt_BL.shape[1]].expand(xt_BL.shape)
        one_hot_NV = torch.nn.functional.one_hot(wanted_BL[select_BL], self.vocabulary)
        return one_hot_NV.float().log()


@pytest.fixture
def sure_lm(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    """Sure of `ab`, the end of text, and `cd` after it."""
    lm = make_lm(byte_tokenizer, 5)
    lm.denoisers.sampling = Fixed([*b"ab", int(byte_tokenizer.eos_token_id or 0), *b"cd"], len(byte_tokenizer))
    return lm


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
def test_the_end_of_text_ends_a_sample_after_a_prompt(sure_lm: DiffusionLM, order: Order) -> None:
    for sample in sure_lm.generate("a", num=3, sampler=Sampler(order)):
        assert (sample.text, sample.continuation, sample.ids) == ("ab", "b", (98,))
        assert 2 <= sample.calls <= 4


@pytest.mark.parametrize("data", [{"packing": "pad"}, {"attend": "document"}])
def test_a_text_ends_where_no_document_saw_another(sure_lm: DiffusionLM, data: dict[str, str]) -> None:
    """Also without a prompt: each document had a row of its own, or saw itself alone."""
    assert not sure_lm.documents_apart and sure_lm.config is not None
    config = replace(sure_lm.config, data=replace(sure_lm.config.data, **data))  # type: ignore[arg-type]
    sure_lm.sidecar = replace(sure_lm.sidecar, config=config)
    for prompt, ids in ((None, tuple(b"ab")), ("", tuple(b"ab")), ("a", tuple(b"b"))):
        (sample,) = sure_lm.generate(prompt)
        assert (sample.text, sample.ids) == ("ab", ids)


def test_without_a_prompt_the_end_of_text_parts_documents(sure_lm: DiffusionLM) -> None:
    (sample,) = sure_lm.generate()
    assert sample.ids == (97, 98, sure_lm.tokenizer.eos_token_id, 99, 100)
    assert sample.calls == 5


@pytest.mark.parametrize("length", [0, -1, 33])
def test_a_length_that_does_not_fit_is_refused(tiny_lm: DiffusionLM, refused: Refused, length: int) -> None:
    with refused(DataError, "from 1 to 32", str(length)):
        tiny_lm.generate(length=length)
    with refused(DataError, "from 1 to 30"):
        tiny_lm.generate("ab", length=31)


def test_a_prompt_that_fills_the_context_is_refused(tiny_lm: DiffusionLM, refused: Refused) -> None:
    with refused(DataError, "32 tokens", "shorten"):
        tiny_lm.generate("x" * 32)
    assert len(tiny_lm.generate("x" * 31)[0].ids) <= 1


@pytest.mark.parametrize("budget", BUDGETS, ids=repr)
@pytest.mark.parametrize("block_length", [None, 4])
def test_watch_sees_every_state(tiny_lm: DiffusionLM, budget: Budget, block_length: int | None) -> None:
    states: list[State] = []
    sampler = Sampler(budget=budget, block_length=block_length)
    samples = tiny_lm.generate(num=2, length=10, sampler=sampler, watch=states.append)
    assert (states[0].x_BL == tiny_lm.process.mask_id).all()
    assert [tuple(row) for row in states[-1].x_BL.tolist()] == [sample.ids for sample in samples]
    for before, after in pairwise(states):
        changed_BL = before.x_BL != after.x_BL
        assert torch.equal(changed_BL, after.changed_BL) and changed_BL.any()
        assert (before.x_BL[changed_BL] == tiny_lm.process.mask_id).all()
    assert states[-1].calls_B.tolist() == [sample.calls for sample in samples]
    assert len(states) == 1 + states[-1].calls


def test_writing_leaves_the_model_as_it_was(tiny_lm: DiffusionLM) -> None:
    before = {name: weight.clone() for name, weight in tiny_lm.model.state_dict().items()}
    state = torch.random.get_rng_state()
    tiny_lm.generate(sampler=FIXED)
    tiny_lm.infill("a[MASK:2]b")
    tiny_lm.nelbo("text")
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_lm.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


# Scoring


TEXTS = ["", "a", "a text \U0001f600", "longer than the context " * 5, "x" * 31, "y" * 32, "z" * 33]


def test_a_score_does_not_depend_on_the_batch(tiny_lm: DiffusionLM) -> None:
    expected = tiny_lm.nelbo(TEXTS)
    assert all(value > 0.0 for value in expected)
    for batch_size in (1, 3, 50):
        assert tiny_lm.nelbo(TEXTS, batch_size=batch_size) == pytest.approx(expected, rel=1e-4)
    assert tiny_lm.nelbo(TEXTS[:3]) == pytest.approx(expected[:3], rel=1e-4)
    assert tiny_lm.nelbo(TEXTS[0]) == pytest.approx(expected[:1], rel=1e-4)
    assert tiny_lm.nelbo([]) == []


def test_the_empty_text_costs_its_end_exactly(tiny_lm: DiffusionLM) -> None:
    x_BL = torch.tensor([[tiny_lm.process.mask_id]])
    with torch.inference_mode():
        log_p_V = ask(tiny_lm.denoisers.scoring, x_BL, torch.ones(1), torch.ones_like(x_BL, dtype=torch.bool))[0]
    expected = -float(log_p_V[tiny_lm.tokenizer.eos_token_id])
    assert tiny_lm.nelbo("", draws=2, seed=5) == pytest.approx([expected], rel=1e-5)


def test_a_long_text_is_the_sum_of_its_pieces(tiny_lm: DiffusionLM) -> None:
    text = bytes(range(97, 117)) * 4  # 80 bytes and the end: pieces of 32, 32 and 17
    ids = [*text, int(tiny_lm.tokenizer.eos_token_id or 0)]
    total = 0.0
    with torch.inference_mode():
        for index, start in enumerate(range(0, 81, 32)):
            x0_BL = torch.tensor([ids[start : start + 32]])
            streams = [generator(3, "nelbo", index)]
            terms_RBL = Estimator(8)(tiny_lm.denoisers.scoring, tiny_lm.process, x0_BL, streams)
            total += float(terms_RBL.mean(0).sum())
    assert tiny_lm.nelbo(text.decode(), draws=8, seed=3) == pytest.approx([total], rel=1e-4)


def test_draws_agree_within_their_spread(tiny_lm: DiffusionLM) -> None:
    text = "what the seed changes"
    values = torch.tensor([tiny_lm.nelbo(text, seed=seed, draws=4)[0] for seed in range(24)], dtype=torch.float64)
    (many,) = tiny_lm.nelbo(text, seed=99, draws=256)
    error = float(values.std()) / 24**0.5
    assert error > 0.0
    assert abs(float(values.mean()) - many) < 5.0 * error


# On the disk


def test_a_folder_in_the_home_folder(tiny_lm: DiffusionLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    tiny_lm.save_pretrained("~/m")
    assert not (tmp_path / "~").exists() and (tmp_path / "home/m/config.json").exists()
    DiffusionLM.from_pretrained("~/m")


def test_a_saved_model_says_the_same(tiny_lm: DiffusionLM, tmp_path: Path) -> None:
    tiny_lm.save_pretrained(tmp_path / "a")
    loaded = DiffusionLM.from_pretrained(tmp_path / "a", device="cpu", dtype="fp32")
    assert loaded.sidecar == tiny_lm.sidecar and loaded.config == tiny_lm.config
    assert loaded.context == tiny_lm.context
    assert loaded.nelbo(TEXTS) == pytest.approx(tiny_lm.nelbo(TEXTS), rel=1e-6)
    assert loaded.generate("a", num=2) == tiny_lm.generate("a", num=2)
    assert loaded.infill("a[MASK:3]b") == tiny_lm.infill("a[MASK:3]b")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_another_attention_says_nearly_the_same(tiny_lm: DiffusionLM, tmp_path: Path, attention: str) -> None:
    tiny_lm.save_pretrained(tmp_path / "a")
    loaded = DiffusionLM.from_pretrained(tmp_path / "a", device="cpu", attention=attention)
    assert loaded.model.config._attn_implementation == attention
    assert loaded.nelbo(TEXTS) == pytest.approx(tiny_lm.nelbo(TEXTS), rel=1e-4)


def test_half_precision_says_nearly_the_same(tiny_lm: DiffusionLM) -> None:
    half = DiffusionLM(tiny_lm.model, tiny_lm.tokenizer, sidecar=tiny_lm.sidecar, precision="bf16")
    assert half.nelbo(TEXTS) != tiny_lm.nelbo(TEXTS)
    assert half.nelbo(TEXTS) == pytest.approx(tiny_lm.nelbo(TEXTS), rel=0.03)


def test_a_model_too_small_for_its_tokenizer_is_refused(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, refused: Refused
) -> None:
    small = make_lm(build_tokenizer(Characters(), lambda: ["abc"]), 8)
    with refused(CheckpointError, "none for its tokenizer's mask"):
        DiffusionLM(small.model, byte_tokenizer)


@pytest.fixture
def padded_decoder(tmp_path: Path) -> Path:
    """A decoder that predicts the next token, with more rows than its tokenizer has tokens, as Qwen's have."""
    tokenizer = like_roberta()
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    bare.save_pretrained(tmp_path)
    sizes: dict[str, Any] = {**TINY, "max_position_embeddings": 24, "bos_token_id": None, "eos_token_id": 2}
    config = Qwen3Config(vocab_size=len(bare) + 50, **sizes)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_padded_vocabulary_is_no_mask(padded_decoder: Path, refused: Refused) -> None:
    with refused(CheckpointError, "no mask token", "--mask-token"):
        DiffusionLM.from_pretrained(padded_decoder, device="cpu")
    assert "--mask-token" in commands.refusal("sample", padded_decoder)
    assert "--mask-token" in commands.refusal("infill", padded_decoder, "a [MASK:1]")
    assert "--mask-token" in commands.refusal("merge", padded_decoder, padded_decoder / "merged")


@pytest.mark.parametrize("named", ["<mask>", "267"])
def test_a_mask_that_is_not_registered_can_be_named(padded_decoder: Path, named: str) -> None:
    asked = commands.answer("sample", padded_decoder, "--mask-token", named, "--length", "4")
    assert asked["tokens"] == 4
    lm = DiffusionLM.from_pretrained(padded_decoder, device="cpu", mask_token=int(named) if named == "267" else named)
    assert lm.process.mask_id == 267
    lm.save_pretrained(padded_decoder / "saved")
    again = DiffusionLM.from_pretrained(padded_decoder / "saved", device="cpu")
    assert again.process.mask_id == 267 and again.nelbo("you") == pytest.approx(lm.nelbo("you"), rel=1e-5)


def test_characters_that_the_model_does_not_see_are_told(make_lm: MakeLM) -> None:
    lm = make_lm(build_tokenizer(Characters(), lambda: ["abc "]), 16)
    with pytest.warns(UserWarning, match="2 of the tokens that are given stand for characters"):
        lm.generate("ab\u00e9\u4e2d", length=2, num=3, sampler=FIXED)
    with pytest.warns(UserWarning, match="1 of the tokens that are given stand for characters"):
        lm.infill("a\u4e2d[MASK:2]c", sampler=FIXED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.generate("abc", length=2, sampler=FIXED)


def test_a_causal_model_that_has_a_mask_for_unknown_reasons_is_told(padded_decoder: Path) -> None:
    config = json.loads((padded_decoder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["mask_token"] = "<mask>"
    (padded_decoder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.warns(UserWarning, match="nothing in it says that it was trained to fill masks"):
        DiffusionLM.from_pretrained(padded_decoder, device="cpu")


def test_weights_that_are_no_numbers_are_damaged(tiny_lm: DiffusionLM, tmp_path: Path, refused: Refused) -> None:
    tiny_lm.save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    next(w for name, w in weights.items() if name.endswith("norm.weight")).flatten()[0] = math.nan
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with refused(CheckpointError, "computes no numbers", "damaged"):
        DiffusionLM.from_pretrained(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("wrong", [{"order": "confidence"}, {"budget": 8}, {"remask": "cap"}])
def test_a_sampler_is_made_of_objects_and_not_of_names(wrong: Any, refused: Refused) -> None:
    with refused(ConfigError, *wrong, "object of dlm.diffusion"):
        Sampler(**wrong)


def test_a_list_of_prompts_is_no_chat(tiny_lm: DiffusionLM, refused: Refused) -> None:
    with refused(DataError, "a prompt is a text or a chat"):
        tiny_lm.generate(["a", "b"])  # type: ignore[list-item]


def test_a_model_that_knows_its_mask_is_not_given_another(
    tiny_lm: DiffusionLM, tmp_path: Path, refused: Refused
) -> None:
    tiny_lm.save_pretrained(tmp_path / "a")
    with refused(ConfigError, "--mask-token", "258", "65"):
        DiffusionLM.from_pretrained(tmp_path / "a", device="cpu", mask_token=65)


def test_a_tokenizer_that_is_not_the_runs_own_is_refused(tiny_lm: DiffusionLM, refused: Refused) -> None:
    assert tiny_lm.sidecar is not None
    with refused(CheckpointError, "mask", "257", "258"):
        DiffusionLM(tiny_lm.model, tiny_lm.tokenizer, sidecar=replace(tiny_lm.sidecar, mask_id=257))


def test_a_model_without_a_sidecar_has_the_context_of_its_network(tiny_lm: DiffusionLM) -> None:
    assert DiffusionLM(tiny_lm.model, tiny_lm.tokenizer).context == tiny_lm.model.config.max_position_embeddings


@pytest.mark.parametrize("architecture", ["roberta", "esm"])
def test_positions_that_are_numbered_from_the_models_padding_on_are_not_written_beyond(
    architecture: str, byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """RoBERTa's 514 rows are 512 positions, whatever the padding of the tokenizer is."""
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(byte_tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=34,
        pad_token_id=1,
        mask_token_id=byte_tokenizer.mask_token_id,
    )
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "model")
    byte_tokenizer.save_pretrained(tmp_path / "model")
    lm = DiffusionLM.from_pretrained(tmp_path / "model", device="cpu")
    assert byte_tokenizer.pad_token_id != 1 and lm.context == 32
    x_BL = torch.full((1, 32), 65)
    assert torch.isfinite(ask(lm.denoisers.scoring, x_BL, None, torch.ones_like(x_BL, dtype=torch.bool))[:, 65]).all()
    assert len(lm.generate(sampler=Sampler(budget=FixedSteps(2)))[0].ids) == 32
    with pytest.raises((IndexError, RuntimeError)):
        lm.model(input_ids=torch.full((1, 33), 65))
