"""The special tokens that a model was trained with stand around every text, and a text comes back as it was given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, pipeline

from dlm.diffusion.formulation import Formulation
from dlm.lm import DiffusionLM
from dlm.lm.canvas import Canvas, fill, written_spans
from dlm.lm.layout import Layout
from dlm.model.checkpoint import Sidecar
from dlm.model.text import encode
from dlm.model.tokenizer import Affixes, affixes_of
from dlm.template import parse_template
from tests.support.encoders import encoder
from tests.support.tokenizers import like_bert, like_llama, like_roberta


@pytest.fixture(scope="module", params=["bert", "roberta"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def lm(folder: Path) -> DiffusionLM:
    return DiffusionLM.from_pretrained(folder, device="cpu", dtype="fp32")


@pytest.mark.parametrize(
    ("make", "prefix", "suffix"),
    [
        (like_bert, ["[CLS]"], ["[SEP]"]),
        (like_roberta, ["<s>"], ["</s>"]),
        (like_llama, ["<s>"], []),
    ],
)
def test_a_tokenizer_says_what_stands_around_a_text(
    make: Callable[[], PreTrainedTokenizerFast], prefix: list[str], suffix: list[str]
) -> None:
    tokenizer = make()
    found = affixes_of(tokenizer)
    assert tokenizer.convert_ids_to_tokens([*found.prefix]) == prefix
    assert tokenizer.convert_ids_to_tokens([*found.suffix]) == suffix


def test_our_own_tokenizers_put_nothing_around_a_text(tiny_lm: DiffusionLM) -> None:
    assert affixes_of(tiny_lm.tokenizer) == tiny_lm.sidecar.affixes == Affixes()


def test_a_row_looks_like_transformers_own(lm: DiffusionLM) -> None:
    mask = str(lm.tokenizer.mask_token)
    for text in ("i love [MASK:1] very much.", "[MASK:1] love you", "i love[MASK:1]", "i [MASK:1] you , (a cat)"):
        canvas = lm.layout.holes(parse_template(text))
        assert canvas.ids == lm.tokenizer(text.replace("[MASK:1]", mask))["input_ids"], text


@pytest.mark.parametrize("text", ["i love [MASK:1] very much.", "[MASK:1] love you", "we saw a [MASK:1]."])
def test_one_token_is_as_likely_as_transformers_finds_it(lm: DiffusionLM, folder: Path, text: str) -> None:
    guess = pipeline("fill-mask", model=str(folder), tokenizer=str(folder), top_k=len(lm.tokenizer), device="cpu")
    asked: Any = guess(text.replace("[MASK:1]", str(lm.tokenizer.mask_token)))
    scores = {each["token"]: each["score"] for each in asked}
    # No text holds a special token, so that the others have all the probability.
    allowed = 1.0 - sum(scores[id_] for id_ in lm.tokenizer.all_special_ids)
    for found in lm.infill(text, num=4):
        expected = torch.tensor(scores[found.ids[0][0]] / allowed).log().item()
        assert found.log_likelihood == pytest.approx(expected, abs=1e-4)


def test_special_tokens_stay_and_are_not_scored(lm: DiffusionLM) -> None:
    text = "i love you very much"
    (ids,) = encode(lm.tokenizer, [text])
    score = lm.score("", text)
    assert score.tokens == len(ids) + 1  # with its end, which is the suffix
    assert lm.nelbo(text, draws=16) == pytest.approx([-score.log_likelihood], rel=0.3)
    canvas = Canvas.after(ids, [lm.process.mask_id] * 2, lm.sidecar.affixes)
    assert [canvas.ids[i] for i, edit in enumerate(canvas.editable) if not edit] == [
        *lm.sidecar.affixes.prefix,
        *ids,
        *lm.sidecar.affixes.suffix,
    ]


def test_a_text_longer_than_the_context_keeps_its_special_tokens(lm: DiffusionLM) -> None:
    template = parse_template("we saw a cat " * 20 + "[MASK:2]" + " you love" * 20)
    canvas = lm.layout.holes(template)
    assert len(canvas.ids) == lm.context
    assert canvas.ids[0] == lm.sidecar.affixes.prefix[0] and canvas.ids[-1] == lm.sidecar.affixes.suffix[0]
    assert lm.nelbo("you love " * 20)[0] > 0.0


def test_a_prompt_leaves_room_for_the_special_tokens(lm: DiffusionLM) -> None:
    (sample,) = lm.generate("i love")
    (ids,) = encode(lm.tokenizer, ["i love"])
    assert len(sample.ids) <= lm.context - len(ids) - 2
    assert sample.text.startswith("i love") and "[CLS]" not in sample.text and "<s>" not in sample.text


def test_prompts_side_by_side_are_continued_as_each_alone(lm: DiffusionLM) -> None:
    prompts = ["we saw", "i love you very much", None]
    together = [*lm.generate_each(dict(enumerate(prompts)), length=4, seed=3)]
    assert together[0] == lm.generate("we saw", length=4, seed=3)
    for place, prompt in enumerate(prompts):
        assert [together[place]] == [*lm.generate_each({place: prompt}, length=4, seed=3)]
        assert together[place][0].text.startswith(prompt or "") and "[CLS]" not in together[place][0].text


def test_a_saved_model_keeps_its_special_tokens(lm: DiffusionLM, tmp_path: Path) -> None:
    lm.save_pretrained(tmp_path / "saved")
    again = DiffusionLM.from_pretrained(tmp_path / "saved", device="cpu", dtype="fp32")
    assert again.sidecar.affixes == lm.sidecar.affixes != Affixes()
    assert again.nelbo("i love you") == pytest.approx(lm.nelbo("i love you"), rel=1e-6)


# Texts


def filled(tokenizer: PreTrainedTokenizerFast, text: str, *tokens: str) -> str:
    """A text whose holes are filled with these tokens."""
    template = parse_template(text)
    mask_id = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else 0
    canvas = Layout(tokenizer, Sidecar(Formulation(), 64, mask_id, affixes=affixes_of(tokenizer))).holes(template)
    written = iter([tokenizer.get_vocab()[token] for token in tokens])
    row = canvas.written([[next(written) for _ in hole] for hole in canvas.holes])
    return fill(template, written_spans(template, tokenizer, row))


@pytest.mark.parametrize(
    ("text", "tokens", "whole"),
    [
        ("i love [MASK:1] very much.", ["you"], "i love you very much."),
        ("I  Love [MASK:1] VERY much.", ["you"], "I  Love you VERY much."),
        ("i love[MASK:1] very much.", ["you"], "i love you very much."),
        ("i love [MASK:1]very much.", ["you"], "i love you very much."),
        ("[MASK:1] love you", ["i"], "i love you"),
        ("[MASK:1]love you", ["i"], "i love you"),
        ("i love [MASK:1].", ["you"], "i love you."),
        ("we saw a cat[MASK:1] you", ["##s"], "we saw a cats you"),
        ("i [MASK:2] much", ["love", "you"], "i love you much"),
        ("i [MASK:1] [MASK:1]\n", ["love", "you"], "i love you\n"),
        ("i [MASK:1][MASK:1]", ["love", "you"], "i love you"),
        ("i love you[MASK:1]", ["."], "i love you."),
    ],
)
def test_words_that_have_no_blanks_get_just_one(text: str, tokens: list[str], whole: str) -> None:
    assert filled(like_bert(), text, *tokens) == whole


@pytest.mark.parametrize(
    ("text", "tokens", "whole"),
    [
        ("i love [MASK:1] very", ["\u0120you"], "i love you very"),
        ("i love[MASK:1] very", ["\u0120you"], "i love you very"),
        ("i love [MASK:1] very", ["you"], "i love you very"),
        ("i love\n[MASK:1] very", ["you"], "i love\nyou very"),
        ("i [MASK:1] [MASK:1].", ["\u0120love", "\u0120you"], "i love you."),
    ],
)
def test_a_mask_that_takes_the_blank_before_it_does_not_double_it(text: str, tokens: list[str], whole: str) -> None:
    assert filled(like_roberta(), text, *tokens) == whole


@pytest.mark.parametrize("unigram", [False, True])
def test_what_stands_within_a_text_gets_no_blank_of_a_beginning(unigram: bool) -> None:
    tokenizer = like_llama(unigram=unigram)
    before = encode(tokenizer, ["you"])
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, ["ou"], continues=True)[0]) == ["ou"]
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, [" you"], continues=True)[0]) == ["\u2581you"]
    assert encode(tokenizer, ["you"]) == before  # the tokenizer is as it was
    assert filled(tokenizer, "a [MASK:1]ou", "y") == "a you"
    assert filled(tokenizer, "a[MASK:1] b", "\u2581you") == "a you b"
    assert filled(tokenizer, "[MASK:1] b", "\u2581you") == "you b"
    face = [f"<0x{byte:02X}>" for byte in "\U0001f600".encode()]
    assert filled(tokenizer, "a[MASK:4]b", *face) == "a\U0001f600b"


def test_a_sample_goes_on_after_the_blank_of_its_prompt(tmp_path: Path) -> None:
    lm = DiffusionLM.from_pretrained(encoder("bert", tmp_path), device="cpu", dtype="fp32")
    for prompt in ("i love", "i love "):
        for sample in lm.generate(prompt, num=4, length=3):
            assert "  " not in sample.text and sample.text.startswith(prompt)
            assert encode(lm.tokenizer, [sample.text])[0][:2] == encode(lm.tokenizer, [prompt])[0]
    assert not any(sample.text.startswith(" ") for sample in lm.generate(num=4, length=3))
