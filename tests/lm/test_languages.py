"""Holes held to expressions and choices: what is written matches, wherever it stands and whatever the tokenizer."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from dlm.config import Bpe, Characters
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.remask import Cap, Planner
from dlm.diffusion.sample import State
from dlm.diffusion.unmask import Confidence, FixedSteps, Random, Threshold, TokenChoice
from dlm.errors import ConfigError, DataError
from dlm.lm import DiffusionLM, Sampler
from dlm.lm.search import LengthSearch
from dlm.model.tokenizer import _complete, build_tokenizer
from dlm.template import parse_template
from tests.support.commands import dlm, refusal
from tests.support.fixtures import MakeLM, Refused
from tests.support.tokenizers import like_bert, like_llama, like_roberta

TEXT = "the cat saw the mat in 1234 and 2025. h\u00e9l\u00e8ne\n"
QUICK = LengthSearch(effort=6)
SPANS = [
    (r"a[MASK:/[0-9]{4}/]b", ["[0-9]{4}"]),
    (r"[MASK:/[0-9]{2}/]b", ["[0-9]{2}"]),
    (r"a [MASK:/(yes|no| \w)?/]", [r"(yes|no| \w)?"]),
    (r"[MASK:/\w{2}/][MASK:/[0-9]+|x/]", [r"\w{2}", "[0-9]+|x"]),
    (r"[MASK:2][MASK:/[a-c]+/] [MASK:1-2]", ["(?s:.*)", "[a-c]+", "(?s:.*)"]),
    ("say [MASK:3:/[^a]*/]: [MASK:2-4:/(h\u00e9|l\u00e8)+/]", ["[^a]*", "(h\u00e9|l\u00e8)+"]),
    (r"one [MASK:/only this/] text", ["only this"]),
    (r"[MASK:/ a/]", [" a"]),
]


@pytest.fixture(scope="module", params=["bytes", "bpe", "characters", "roberta", "llama", "unigram"])
def lm(request: pytest.FixtureRequest, make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    alphabet = TEXT + "abcdefghijklmnopqrstuvwxyz0123456789 :\n"
    match request.param:
        case "bytes":
            tokenizer = byte_tokenizer
        case "bpe":
            tokenizer = build_tokenizer(Bpe(size=330), lambda: [TEXT] * 20)
        case "characters":
            tokenizer = build_tokenizer(Characters(), lambda: [alphabet])
        case "roberta":
            tokenizer = _complete(like_roberta())
        case other:
            tokenizer = _complete(like_llama(unigram=other == "unigram"))
    return make_lm(tokenizer, 48)


@pytest.mark.parametrize(("text", "expressions"), SPANS, ids=[text for text, _ in SPANS])
def test_what_is_written_matches(lm: DiffusionLM, text: str, expressions: list[str]) -> None:
    outside = [part for part in parse_template(text) if isinstance(part, str)]
    found = lm.infill(text, num=4, search=QUICK, draws=2)
    assert found
    for one in found:
        for span, expression in zip(one.spans, expressions, strict=True):
            assert re.fullmatch(expression, span), (span, one.text)
        following, rest = iter(one.spans), one.text
        for part in parse_template(text):
            piece = part if isinstance(part, str) else next(following)
            assert rest.startswith(piece)
            rest = rest.removeprefix(piece)
        assert rest == "" and outside == [part for part in parse_template(text) if isinstance(part, str)]


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(Random(), FixedSteps(1)),
        Sampler(Confidence(), FixedSteps(2), TokenChoice(temperature=0.0)),
        Sampler(budget=Threshold(0.3), token=TokenChoice(top_k=1)),
        Sampler(block_length=2),
        Sampler(budget=FixedSteps(4), remask=Cap(0.5)),
        Sampler(budget=FixedSteps(12), remask=Planner(0.5)),
        Sampler(budget=FixedSteps(12), remask=Planner(2.0)),
    ],
)
def test_it_matches_by_every_sampler(tiny_lm: DiffusionLM, sampler: Sampler) -> None:
    for seed in range(4):
        for one in tiny_lm.infill("a[MASK:6:/(ab|cde)+/]b[MASK:6]", num=4, sampler=sampler, seed=seed, draws=2):
            assert one.lengths == (6, 6) and one.spans[0] in ("ababab", "cdecde")


def test_the_only_text_of_a_language_is_what_is_written(tiny_lm: DiffusionLM) -> None:
    (one,) = tiny_lm.infill("a[MASK:/only this/]b", num=3, search=QUICK)[:1]
    assert one.spans == ("only this",) and one.lengths == (9,) and one.log_length == 0.0


def test_the_empty_text_is_written_where_it_matches(tiny_lm: DiffusionLM) -> None:
    assert {one.text for one in tiny_lm.infill("a[MASK:/x?/]b", num=9, search=LengthSearch(effort=9))} == {"ab", "axb"}
    assert [one.text for one in tiny_lm.infill("a[MASK://]b", search=QUICK)] == ["ab"]


def test_its_likelihood_is_that_without_the_language(tiny_lm: DiffusionLM) -> None:
    for one in tiny_lm.infill("ab[MASK:/[xyz]/]cd", num=3, search=QUICK):
        x_1L = torch.tensor([tiny_lm.layout.holes(parse_template("ab[MASK:1]cd")).ids])
        wanted_1L = x_1L == tiny_lm.process.mask_id
        log_p_1V = tiny_lm.denoisers.ranking(NetworkInput(x_1L, wanted_1L, torch.ones(1, dtype=torch.double)))
        assert one.log_likelihood == pytest.approx(float(log_p_1V[0, one.ids[0][0]]), abs=1e-4)
        assert one.log_likelihood < -1.0  # of three letters of 256 bytes


def test_a_text_does_not_depend_on_its_batch(tiny_lm: DiffusionLM) -> None:
    texts = ["a[MASK:3:/[a-f]+/]b", "cd[MASK:3]", "[MASK:3:/[0-9]+/][MASK:2]e"]
    asked = {number: parse_template(text) for number, text in enumerate(texts)}
    several = [*tiny_lm.infill_each(asked, num=2)]
    alone = [next(tiny_lm.infill_each({number: template}, num=2, batch_size=1)) for number, template in asked.items()]
    assert [[one.text for one in group] for group in several] == [[one.text for one in group] for group in alone]


def test_equal_texts_of_a_language_are_one(tiny_lm: DiffusionLM) -> None:
    """Of two texts eight draws give each once, the likelier first; spans of any text stay as they are drawn."""
    found = tiny_lm.infill("a [MASK:1:/[xy]/] b", num=8)
    assert sorted(one.spans for one in found) == [("x",), ("y",)]
    assert found[0].log_likelihood >= found[1].log_likelihood
    assert len(tiny_lm.infill("a [MASK:1] b", num=8, sampler=Sampler(token=TokenChoice(0.0)))) == 8


def test_a_text_has_the_rank_of_its_likeliest_tokens(make_lm: MakeLM) -> None:
    """A text may have several rows of as many tokens, such as th|e|h and t|h|eh."""
    lm = make_lm(build_tokenizer(Bpe(size=264), lambda: ["the he th hht eeth"] * 20), 48)
    found = lm.infill("a [MASK:3:/[the]{4}/] b", num=100, draws=2)
    ranks = [one.rank for one in found]
    assert len({one.text for one in found}) == len(found) < 100 and ranks == sorted(ranks, reverse=True)


def test_few_choices_are_all_scored(tiny_lm: DiffusionLM) -> None:
    """Each choice once, by the likelihood of its own tokens; the sum over all texts of one token would be one."""
    letters = "abcdefgh"
    found = tiny_lm.infill(parse_template("x[MASK]y", choices=[*letters]), num=20)
    assert sorted(one.spans[0] for one in found) == [*letters]
    known = {one.spans[0]: one for one in tiny_lm.infill("x[MASK:1]y", num=200, draws=2) if one.spans[0] in letters}
    assert known
    for one in found:
        assert one.calls == 0
        if one.spans[0] in known:
            assert one.log_likelihood == pytest.approx(known[one.spans[0]].log_likelihood, abs=1e-4)


def test_choices_of_several_lengths_are_weighed_by_them_too(tiny_lm: DiffusionLM) -> None:
    template = parse_template("x[MASK]y[MASK]z", choices=["a", "bcd", "ef"])
    found = tiny_lm.infill(template, num=20)
    assert len({one.spans for one in found}) == 9
    posterior = found[0].length_posterior
    assert len(posterior) == 9 and all(one.log_length == posterior[one.lengths] for one in found)
    assert [one.log_joint for one in found] == sorted((one.log_joint for one in found), reverse=True)
    assert [one.text for one in tiny_lm.infill(template, num=2)] == [one.text for one in found[:2]]


def test_choices_are_as_long_as_they_are(tiny_lm: DiffusionLM) -> None:
    """However they are found, all of them scored or drawn; `longest` is for holes that may have any text."""
    template = parse_template("x[MASK]y[MASK]z", longest=2, choices=["a", "bcd", "ef"])
    for effort in (8, 60):
        found = tiny_lm.infill(template, num=9, search=LengthSearch(effort=effort), draws=2)
        assert {span for one in found for span in one.spans} == {"a", "bcd", "ef"}
        assert all(bool(one.calls) == (effort == 8) for one in found)
    assert len({one.spans for one in found}) == 9
    (word,) = {one.spans for one in tiny_lm.infill(parse_template("x[MASK]", longest=1, choices=["éé"]), num=9)}
    assert word == ("éé",)


def test_choices_that_are_too_long_together_are_left_out(tiny_lm: DiffusionLM) -> None:
    """Each has room where the others are short; one that never has is refused before anything is written."""
    room = tiny_lm.context
    template = parse_template("[MASK]x[MASK]", choices=["a", "b" * (room // 2)])
    found = tiny_lm.infill(template, num=9, draws=2)
    lengths = {tuple(map(len, one.spans)) for one in found}
    assert lengths == {(1, 1), (1, room // 2), (room // 2, 1)}
    with pytest.raises(DataError, match="has room for"):
        tiny_lm.filling.check(parse_template("[MASK]x[MASK]", choices=["a", "b" * (room - 1)]))


def test_many_choices_are_drawn_and_so_are_those_beside_other_holes(tiny_lm: DiffusionLM) -> None:
    words = [f"{one}{other}" for one in "abcdef" for other in "ghijkl"]
    found = tiny_lm.infill(parse_template("x[MASK]y", choices=words), num=5, search=QUICK)
    assert all(one.spans[0] in words and one.calls > 0 for one in found)
    found = tiny_lm.infill(parse_template("x[MASK]y[MASK:2]", choices=["a.c", "(x"]), num=4, search=QUICK)
    assert found and all(one.spans[0] in ("a.c", "(x") and len(one.ids[1]) == 2 for one in found)


def test_a_choice_may_begin_another(tiny_lm: DiffusionLM) -> None:
    template = parse_template("x[MASK]y[MASK:1]", choices=["a", "ab", "abc"])
    found = tiny_lm.infill(template, num=40, search=LengthSearch(effort=60), draws=2)
    assert {one.spans[0] for one in found} == {"a", "ab", "abc"}


@pytest.mark.parametrize(("text", "choices"), [("a[MASK:/[0-9]{3}/]b", None), ("a[MASK]b", ["yes", "no"])])
def test_who_watches_sees_what_is_printed(tiny_lm: DiffusionLM, text: str, choices: list[str] | None) -> None:
    states: list[State] = []
    (one,) = tiny_lm.infill(parse_template(text, choices=choices), search=QUICK, watch=states.append)
    last = states[-1]
    assert tuple(last.x_BL[last.editable_BL].tolist()) == one.ids[0] and len(states) == one.lengths[0] + 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a[MASK:2:/[0-9]{3}/]b", "no text of 2 tokens matches /[0-9]{3}/, and the nearest that does has 3 tokens"),
        ("a[MASK:1-2:/[0-9]{3}/]b", "no text of 1 to 2 tokens matches"),
        ("a[MASK:/[0-9]{50}/]b", "which takes more than the 32 of the context"),
        ("a[MASK:/(/]b", "no regular expression"),
    ],
)
def test_what_cannot_be_written_is_refused(tiny_lm: DiffusionLM, text: str, told: str, refused: Refused) -> None:
    with refused(DataError, told):
        tiny_lm.infill(text)


def test_noise_that_is_not_masks_alone_is_refused(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, refused: Refused
) -> None:
    for noise in ({"name": "uniform"}, {"name": "hybrid", "share": 0.1}):
        with refused(ConfigError, str(noise["name"]), "[MASK:12]"):
            make_lm(byte_tokenizer, 32, noise=noise).infill("a[MASK:2:/ab/]b")


def test_tokens_without_blanks_are_refused(make_lm: MakeLM, refused: Refused) -> None:
    with refused(ConfigError, "no blanks in its tokens"):
        make_lm(_complete(like_bert()), 32).infill("i [MASK:/love/] you")


def test_a_timed_model_matches_too(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    lm = make_lm(byte_tokenizer, 32, model={"time_conditioning": True})
    for sampler in (Sampler(), Sampler(budget=FixedSteps(3))):
        for one in lm.infill("a[MASK:4:/(ab|cd)+/]b", num=4, sampler=sampler):
            assert re.fullmatch("(ab|cd)+", one.spans[0])


def test_a_choice_that_no_tokens_spell_is_refused(make_lm: MakeLM, refused: Refused) -> None:
    lm = make_lm(build_tokenizer(Characters(), lambda: ["abcd"]), 24)
    with refused(DataError, "choice '\u2603'", "leave it out"):
        lm.infill(parse_template("a[MASK]b", choices=["c", "\u2603", "d"]))


def test_the_command_holds_spans_to_expressions_and_choices(tiny_lm: DiffusionLM, tmp_path: Path) -> None:
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    tiny_lm.save_pretrained(model)
    out, _ = dlm("infill", model, r"a [MASK:/[0-9]{2}\/[0-9]{2}/] b")
    assert re.fullmatch("a [0-9]{2}/[0-9]{2} b\n", out)
    out, err = dlm("infill", model, "a [MASK] b", "--choices", r"yes,no,a\,b", "--num", "3")
    assert sorted(out.strip().split("\n---\n")) == ["a a,b b", "a no b", "a yes b"]
    assert "fillings tried" not in err
    rows.write_text(json.dumps({"text": "[MASK:/x|yy/] a"}) + "\n" + json.dumps({"text": "c[MASK:2:/z+/]"}) + "\n")
    out, _ = dlm("infill", model, "--file", rows, "--effort", "4")
    assert [json.loads(line)["spans"][0] in ("x", "yy", "zz") for line in out.splitlines()] == [True, True]
    film = tmp_path / "film.html"
    dlm("infill", model, "a [MASK:/[0-9]{2}/] b", "--export", film)
    assert film.stat().st_size > 1000
    rows.write_text('{"text": "[MASK:2]"}\n{"text": "[MASK:/(/]"}\n')
    assert "line 2: /(/ is no regular expression" in refusal("infill", model, "--file", rows)
