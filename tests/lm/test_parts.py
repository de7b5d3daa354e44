"""Holes at the borders of words and lines: what is written there has the tokens that a whole text has."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dlm.config import Bpe, Bytes, Characters
from dlm.diffusion.denoiser import FunctionDenoiser
from dlm.diffusion.guide import Guidance
from dlm.diffusion.network import NetworkInput
from dlm.lm import DiffusionLM, Sampler
from dlm.lm.evidence import Inquiry
from dlm.lm.layout import Encoded
from dlm.lm.lengths import Weigher
from dlm.lm.parts import Lead, joined
from dlm.lm.rows import Task, Written
from dlm.lm.scores import Row
from dlm.lm.search import LengthSearch
from dlm.model.sentinels import add_sentinels
from dlm.model.spans import LengthPrior
from dlm.model.text import decode, encode
from dlm.model.tokenizer import _complete, build_tokenizer
from dlm.template import Hole, Template, exact, parse_template
from tests.support.fixtures import MakeLM
from tests.support.tokenizers import like_llama, like_qwen, like_roberta

CODE = """class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y
        if not (x or y):
            print('at 0')

    def swapped(self):
        return Point(self.y, self.x)

def main():
    for x in range(10):
        print(Point(x, x + 1).swapped())
"""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer(Bpe(size=420), lambda: [CODE] * 20)


@pytest.fixture(scope="module", params=["masked", "joint"])
def lm(request: pytest.FixtureRequest, make_lm: MakeLM, tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    return make_lm(tokenizer, 64, readings={"name": request.param})


@pytest.fixture(scope="module")
def joint(make_lm: MakeLM, tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    return make_lm(tokenizer, 64, readings={"name": "joint"})


def middle_lm(make_lm: MakeLM) -> DiffusionLM:
    """A model that fills in the middle."""
    tokenizer = build_tokenizer(Bpe(size=420), lambda: [CODE] * 20)
    sentinels = add_sentinels(tokenizer, "psm")
    lm = make_lm(tokenizer, 64, readings={"name": "autoregressive"})
    return DiffusionLM(lm.model, tokenizer, sidecar=replace(lm.sidecar, sentinels=sentinels), precision="fp32")


def borders() -> Iterator[tuple[str, str, str]]:
    """Every word and every line of the code, with what stands before it and behind."""
    for found in [*re.finditer(r"(?<=[ \n])[^\s]+(?=\s)", CODE), *re.finditer(r"(?<=\n)[^\n]+(?=\n)", CODE)]:
        yield CODE[: found.start()], found[0], CODE[found.end() :]


@pytest.mark.parametrize(("kind", "least"), [("gpt2", 40), ("qwen", 20)])
def test_words_and_lines_that_are_cut_out_leave_the_tokens_of_the_whole_text(
    kind: str, least: int, make_lm: MakeLM, joint: DiffusionLM
) -> None:
    """Also where a line break is a token with what stands before it, and not with the indentation behind it."""
    lm = joint if kind == "gpt2" else make_lm(like_qwen(CODE), 64)
    (whole,) = encode(lm.tokenizer, [CODE])
    crossed = 0
    for before, span, behind in borders():
        if joined(encode(lm.tokenizer, [before + span, behind])) != whole:
            continue  # a token holds the end of the hole and what stands behind it
        template = before, Hole(1), behind
        ids, (written,) = [*lm.layout.parts(template).ids], lm.layout.filled(template, [span])
        crossed += joined(encode(lm.tokenizer, [before, span, behind])) != whole
        assert joined([ids[0], written, ids[2]]) == whole, (before[-9:], span)
    assert crossed > least  # or the tokens would be those of the whole text by themselves


@pytest.mark.parametrize("spec", [Bytes(), Characters()], ids=lambda spec: spec.name)
def test_where_no_token_has_two_characters_every_text_keeps_its_own(spec: Bytes | Characters, make_lm: MakeLM) -> None:
    lm = make_lm(build_tokenizer(spec, lambda: [CODE]), 64)
    for before, _, behind in borders():
        parts = lm.layout.parts((before, Hole(1), behind))
        assert parts.leads == [None] * 3 and [parts.ids[0], parts.ids[2]] == encode(lm.tokenizer, [before, behind])


def test_an_empty_hole_joins_the_texts_beside_it(joint: DiffusionLM) -> None:
    for text in (
        "f([MASK:0-2])",
        "x = [MASK:0-2] y",
        "[MASK:0-2]class Point",
        "a [MASK:0-1][MASK:0-3]:",
        "x [MASK:0-1]",
    ):
        template: Template = tuple(
            part if isinstance(part, str) else replace(part, most=None) for part in parse_template(text)
        )
        (whole,) = encode(joint.tokenizer, [re.sub(r"\[MASK:[^]]*\]", "", text)])
        assert joined(joint.layout.parts(template).ids) == joint.layout.holes(template).ids == whole
        assert not any(joint.layout.holes(template).editable)


TEXTS = [
    "def [MASK:2](self):\n        return [MASK:3]\n",
    "class Point:\n    def main():\n[MASK:4]\n\n    def swapped",
    "for [MASK:1] in [MASK:2]:\n    [MASK:3]\n    [MASK:1]",
    "x =  [MASK:1] [MASK:2][MASK:1]  y",
    "class Point:\n\n[MASK:2-4]\n\n",
    "if not [MASK:0-2] x [MASK:0-2]:\n[MASK:0-1]\n",
    "x is [MASK:/[0-9]{2}/] or\n[MASK:/x+/] = y",
    " [MASK:2]",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_is_what_its_tokens_say(text: str, lm: DiffusionLM) -> None:
    """Untrained, a model takes any token: what is not held to the text before it would go wrong soon."""
    template = parse_template(text)
    for seed in range(3):
        for found in lm.infill(template, num=3, seed=seed, search=LengthSearch(effort=8, tries=3), draws=2):
            rest, spans = found.text, iter(found.spans)
            for part in template:
                written = part if isinstance(part, str) else next(spans)
                assert rest.startswith(written)
                rest = rest.removeprefix(written)
            known = exact(template, found.lengths)
            ids, ids_of_span = [*lm.layout.parts(known).ids], iter(found.ids)
            for place, part in enumerate(known):
                ids[place] = ids[place] if isinstance(part, str) else [*next(ids_of_span)]
            assert not rest and decode(lm.tokenizer, joined(ids)) == found.text


@pytest.mark.parametrize(
    "text", ["def [MASK:2](self):\n        [MASK:3]\n", "x:\n[MASK:3]\n", "x = [MASK:1-4]\n", "x [MASK]"]
)
def test_next_tokens_begin_with_the_end_of_the_text_too(text: str, make_lm: MakeLM) -> None:
    lm, template = middle_lm(make_lm), parse_template(text)
    for found in lm.infill(template, num=12, seed=1):
        lengths, spans = iter(found.lengths), iter(found.spans)
        assert found.text == "".join(part if isinstance(part, str) else next(spans) for part in template)
        assert all(next(lengths) in part.lengths for part in template if isinstance(part, Hole))
        ids, written = [*lm.layout.parts(template).ids], iter(found.ids)
        for place, part in enumerate(template):
            ids[place] = ids[place] if isinstance(part, str) else [*next(written)]
        assert decode(lm.tokenizer, joined(ids)) == found.text


@pytest.mark.parametrize("text", ["x\n[MASK:40]", CODE + "[MASK:2-30]" + CODE, CODE + "x = [MASK:1]", "x\n[MASK]"])
def test_next_tokens_have_room_and_are_held_once(text: str, make_lm: MakeLM) -> None:
    lm, template = middle_lm(make_lm), parse_template(text)
    filler, tasks = lm.filling.by_next_tokens(None, lm.sidecar.sentinels), list[Task]()

    def write(asked: Sequence[Task], ends: bool) -> Iterator[Written]:
        tasks.extend(asked)
        return filler.write(asked, ends)

    for found in next(replace(filler, write=write).fill({0: template}, 30)):
        assert found.spans[0]
    for task in tasks:
        assert len(task.canvas.ids) < lm.context  # the end of a middle has room too
        assert bool(task.held) == (task.key[-1] == "first")


def test_blocks_behind_a_memory_keep_the_tokens_of_a_prompt(joint: DiffusionLM) -> None:
    for sample in joint.generate("x = ", num=8, length=8, sampler=Sampler(block_length=4)):
        assert decode(joint.tokenizer, [*encode(joint.tokenizer, ["x = "])[0], *sample.ids]) == sample.text


@pytest.mark.parametrize("prompt", ["def ", "def main():\n", "x =  ", "x\n\n", " ", "x"])
def test_what_follows_a_prompt_begins_with_its_end(prompt: str, lm: DiffusionLM) -> None:
    """By masks and by next tokens, and for texts of one token."""
    for length in (1, 6):
        for sample in lm.generate(prompt, num=8, length=length, seed=2):
            canvas = lm.layout.canvas(prompt, length, led=True)
            (span,) = canvas.spans
            assert sample.text == prompt + sample.continuation and sample.continuation
            assert decode(lm.tokenizer, [*canvas.ids[: span.start], *sample.ids]) == sample.text


def test_a_prompt_that_ends_in_a_word_keeps_its_tokens(lm: DiffusionLM) -> None:
    for prompt in ("def", "f(", None, ""):
        assert lm.layout.canvas(prompt, 3, led=True) == lm.layout.canvas(prompt, 3)


def test_a_negative_prompt_has_room_beside_the_end_of_a_prompt(
    make_lm: MakeLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    lm, guided = make_lm(tokenizer, 24), Sampler(guidance=Guidance(1.0, negative="x = y + 1 and x " * 2))
    room = lm.layout.room("def main():\n", guided.negative)
    for length in (None, room):
        (sample,) = lm.generate("def main():\n", length=length, sampler=guided)
        assert sample.text.startswith("def main():\n") and sample.tokens <= room


@pytest.mark.parametrize("kind", ["roberta", "llama", "unigram"])
def test_tokenizers_of_others_join_blanks_too(kind: str, make_lm: MakeLM) -> None:
    made = _complete(like_roberta() if kind == "roberta" else like_llama(unigram=kind == "unigram"))
    lm = make_lm(made, 32)
    for seed in range(4):
        for found in lm.infill("love [MASK:2] love[MASK:1]", num=4, seed=seed, draws=2):
            assert lm.layout.spelling is not None and lm.layout.spelling.bytes_of[found.ids[0][0]].startswith(b" ")
            first = decode(made, [*encode(made, ["love"])[0], *found.ids[0]])
            assert first == f"love {found.spans[0]}" and found.text.startswith(first)


def test_choices_are_written_with_the_blank_before_them(joint: DiffusionLM) -> None:
    template = parse_template("return [MASK]\n", choices=["x", "self", "Point(x)"])
    for found in joint.infill(template, num=3):
        (ids,) = encode(joint.tokenizer, [" " + found.spans[0]])
        assert found.ids == (tuple(ids),)


class Two:
    """A model of two texts in ids, that are as likely as each other, exactly: masks are summed over."""

    def __init__(self, texts: Sequence[Sequence[int]], vocabulary: int, unseen: Sequence[int]) -> None:
        self.texts, self.vocabulary, self.unseen = texts, vocabulary, unseen

    def __call__(self, inputs: NetworkInput) -> Tensor:
        found = []
        for row, place in inputs.wanted_BL.nonzero().tolist():
            seen = inputs.ids_BL[row].tolist()
            fit = [
                text
                for text in self.texts
                if all(id_ in (*self.unseen, own) for id_, own in zip(seen, text, strict=False))
            ]
            p_V = torch.zeros(self.vocabulary, dtype=torch.float64)
            for text in fit:
                p_V[text[place]] += 1 / len(fit)
            found.append(p_V.log())
        return torch.stack(found)


@pytest.mark.parametrize(
    ("texts", "asked"),
    [
        (("print()  ", "print(x)  "), "print([MASK:0-1])"),
        (("not  x:", "not self x:"), "not [MASK:0-1] x:"),
        (("):\n        if not", "):\n    if not"), "):\n[MASK:0-1]if not"),
    ],
)
def test_an_empty_hole_is_as_likely_as_its_text(
    texts: Sequence[str], asked: str, joint: DiffusionLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Of two texts that are equally likely, of which one has nothing in the hole, so are the lengths."""
    ids = [row + [0] * 8 for row in encode(tokenizer, texts)]
    known = FunctionDenoiser(Two(ids, len(tokenizer), (joint.process.mask_id, joint.pad_id)))
    weigher = Weigher(joint.layout, known, joint.process, joint.pad_id, 4)
    found = weigher.posterior(parse_template(asked), LengthSearch(LengthPrior()))
    assert found[(0,)] == pytest.approx(math.log(0.5)) and found[(1,)] == pytest.approx(math.log(0.5))


@pytest.mark.parametrize(
    "text", ["print([MASK:0-2])\n", "x = [MASK:0-2] + [MASK:0-1] y\n", "def main():\n[MASK:0-3]\n"]
)
def test_whole_texts_are_read_with_the_tokens_that_they_have(text: str, joint: DiffusionLM) -> None:
    """The causal reading of a filled text is that of its ids behind those that all fillings leave as they are."""
    template = parse_template(text)
    holes = sum(isinstance(part, Hole) for part in template)
    unmoved = joint.layout.unmoved(template)
    scorer = joint.scorer(joint.denoisers.scoring, joint.estimator("causal"))
    found = [each.ids for seed in range(4) for each in joint.infill(template, num=4, seed=seed, draws=2)]
    for filling in {*found, ((),) * holes}:
        spans = iter(filling)
        parts = joint.layout.parts(
            tuple(p if isinstance(p, str) else Hole(int(len(next(spans)) > 0)) for p in template)
        )
        spans = iter(filling)
        whole = joined(
            ids if isinstance(part, str) else next(spans) for part, ids in zip(template, parts.ids, strict=True)
        )
        assert whole[: len(unmoved)] == unmoved
        row = joint.layout.continued(Encoded(unmoved), whole[len(unmoved) :])
        (score,) = scorer.of_rows([Row.alone(row, ("reread",))], 1)
        assert joint.filling.rereader().nats(template, [filling]) == pytest.approx([score.log_likelihood], rel=1e-5)


@pytest.mark.parametrize(
    ("texts", "asked", "expected"),
    [
        (("not  x:", "not self x:", "not( y:"), "not [MASK:0-1] x:", {(0,): 1, (1,): 1}),
        (("x = y", "x = x", "x self = y"), "x[MASK:0-1] = [MASK:1]", {(0, 1): 2, (1, 1): 1}),
        (("x print()", "x print(x)"), "x[MASK:0-1] print([MASK:0-1])", {(0, 0): 1, (0, 1): 1, (1, 0): 0, (1, 1): 0}),
        (("def main():\n    x", "def main():\n\nx"), "def main():\n[MASK:1-2]x", {(1,): 1, (2,): 0}),
    ],
)
def test_lengths_of_texts_that_are_known_are_as_likely_as_these(
    texts: Sequence[str],
    asked: str,
    expected: Mapping[tuple[int, ...], int],
    joint: DiffusionLM,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Equally likely texts: so many of them have holes of these lengths, or one of them in so many ways."""
    ids = [row + [0] * 8 for row in encode(tokenizer, texts)]
    known = FunctionDenoiser(Two(ids, len(tokenizer), (joint.process.mask_id, joint.pad_id)))
    found = Weigher(joint.layout, known, joint.process, joint.pad_id, 4).posterior(
        parse_template(asked), LengthSearch(LengthPrior())
    )
    total = sum(expected.values())
    assert {each: math.exp(nats) for each, nats in found.items()} == pytest.approx(
        {each: count / total for each, count in expected.items()}
    )


def test_what_is_asked_of_all_holes_together_is_asked_once(joint: DiffusionLM) -> None:
    """Of every choice of lengths: the text behind the first hole, with its end and those of the texts between."""
    mask_id = joint.process.mask_id
    for text in ("x [MASK:0-1][MASK:0-1] y", "x[MASK:0-1] print([MASK:0-1]) y", "x[MASK:0-2] = [MASK:1-2] + y"):
        template = parse_template(text)
        holes = [part for part in template if isinstance(part, Hole)]
        said = set()
        for lengths in itertools.product(*(hole.lengths for hole in holes)):
            told = ""
            for number in range(len(holes)):
                (one,) = Inquiry(joint.layout, template, number).questions([lengths[: number + 1]])
                lead = joint.layout.leads(exact(template, (*lengths[: number + 1], *[1] * (len(holes) - number - 1))))[
                    number
                ]
                begun = lead.text if lead is not None and one.ids[one.asked[-1]] == mask_id else ""
                told += begun + decode(joint.tokenizer, [one.ids[at] for at in one.asked if one.ids[at] != mask_id])
            said.add(told)
        assert len(said) == 1, said


@pytest.mark.parametrize("text", ["[MASK:1]x[MASK:0-1]", "[MASK:0-1]x[MASK:1]", "[MASK:0-1] x[MASK:0-1]"])
@pytest.mark.parametrize("side", ["before", "behind", "both"])
def test_an_empty_hole_beside_a_long_text_is_filled(text: str, side: str, joint: DiffusionLM) -> None:
    before, behind = CODE * (side != "behind"), CODE * (side != "before")
    for found in joint.infill(before + text + behind, num=3, draws=2, search=LengthSearch(effort=8)):
        assert found.text.startswith(before) and found.text.endswith(behind)


@pytest.mark.parametrize("text", ["def f():\n   ", "x\n", "x ", "\n", "  ", "x\u3000", "x\u00a0"])
def test_rows_are_never_longer_than_the_context(text: str, lm: DiffusionLM) -> None:
    room = lm.layout.room(text)
    for length in (None, room - 1, 1):
        canvas = lm.layout.canvas(text, length, led=True)
        assert len(canvas.ids) <= lm.context
        assert length is None or len(canvas.holes[0]) == length
    assert lm.generate(text, num=1)[0].text.startswith(text)
    assert len(lm.layout.holes(parse_template(text + f"[MASK:{lm.context}]")).ids) == lm.context


def test_filled_texts_are_read_within_the_context(joint: DiffusionLM) -> None:
    before, read = "def main(): " * 40, joint.filling.rereader()
    for text in ("x = [MASK:0-1] x x x", "x = [MASK:0-1] x ( [MASK:0-2]", "x\n[MASK:0-40]\n\n" + CODE):
        template = parse_template(before + text)
        for lengths in itertools.product(*(hole.lengths for hole in template if isinstance(hole, Hole))):
            known = exact(template, lengths)
            spans = [[5] * len(span) for span in joint.layout.holes(known).spans]
            (row,) = read.rows(template, [spans], 2)
            assert len(row.ids) <= joint.context, lengths


@pytest.mark.parametrize("drafts", [0, 2])
def test_next_tokens_hold_what_they_are_held_to(drafts: int, joint: DiffusionLM) -> None:
    for prompt in ("x\u3000", "x\u00a0", "x ", "x\n", "def f():\n   "):
        for sample in joint.generate(prompt, num=24, length=6, seed=3, sampler=Sampler(drafts=drafts)):
            (span,) = joint.layout.canvas(prompt, 6, led=True).spans
            given = joint.layout.canvas(prompt, 6, led=True).ids[: span.start]
            assert decode(joint.tokenizer, [*given, *sample.ids]) == sample.text


@pytest.mark.parametrize("drafts", [0, 2])
def test_next_tokens_hold_characters_of_several_bytes(drafts: int, make_lm: MakeLM) -> None:
    """Other tokens share the first of them."""
    lm = make_lm(like_qwen("one\u3000two x\u3000xy \u3001\u3002\n", 300), 32, readings={"name": "joint"})
    assert lm.layout.spelling is not None and lm.layout.spelling.joins("\u3000")
    for sample in lm.generate("x\u3000", num=40, length=4, seed=3, sampler=Sampler(drafts=drafts)):
        (span,) = lm.layout.canvas("x\u3000", 4, led=True).spans
        given = lm.layout.canvas("x\u3000", 4, led=True).ids[: span.start]
        assert decode(lm.tokenizer, [*given, *sample.ids]) == sample.text


def test_a_lead_is_for_tokens_that_stay_as_they_are(make_lm: MakeLM) -> None:
    """A tokenizer without words joins any characters: where it joins others too, no end is written again."""
    lm = make_lm(like_qwen(CODE, 500, pattern=r"[\s\S]+"), 64)
    kept = 0
    for before, _, behind in borders():
        template = before, Hole(1), behind
        given, (lead,) = lm.layout.parts(template).ids[0], lm.layout.leads(template)
        kept += lead is None
        assert lead is None or encode(lm.tokenizer, [before + "a"])[0][: len(given)] == given
    assert kept


def test_a_text_has_one_token_at_least_beside_those_of_its_lead(joint: DiffusionLM) -> None:
    for before in ("class Point:\n\n", "main():\n", "x = "):
        template = before, Hole(1), "\n"
        (lead,) = joint.layout.leads(template)
        assert lead is not None
        for span in ("x", "    x", "    ", " ", "\n", "self", "    def main():"):
            (ids,) = joint.layout.filled(template, [span])
            assert len(ids) > lead.own and decode(joint.tokenizer, ids) == lead.text + span


def test_a_hole_that_may_be_empty_leaves_the_text_before_it_to_both(joint: DiffusionLM) -> None:
    for text in ("x [MASK:0-2] y", "x\n[MASK:0-2]", "x [MASK:0-2:/a*/]"):
        template = parse_template(text)
        assert joint.layout.leads(template) == [None]
        assert joint.layout.leads(exact(template, [1])) != [None] or ":/" in text


def test_an_expression_that_matches_nothing_too_is_no_blank_alone(joint: DiffusionLM) -> None:
    """Else nothing would be written in two ways: by no token, and by the blank before the hole."""
    template = joint.languages.resolved(parse_template("x [MASK:/y?/] z"))
    ((blank,),) = encode(joint.tokenizer, [" "])
    for length in (1, 2):
        known = exact(template, [length])
        held = joint.languages.held(known, joint.layout.holes(known))
        assert held is not None and not held[0].automaton.accepts([blank] * length)
    assert isinstance(template[1], Hole) and {*template[1].lengths} == {0, 1, 2}
    assert {one.spans for one in joint.infill("x [MASK:1-2:/y?/] z", num=9, draws=2)} == {("y",)}


def test_a_blank_is_a_prompt_that_may_be_led_towards(joint: DiffusionLM) -> None:
    (sample,) = joint.generate(" ", length=4, sampler=Sampler(verify=False, guidance=Guidance(1.0)))
    assert sample.text.startswith(" ")


@pytest.mark.parametrize("kind", ["llama", "unigram"])
def test_where_a_decoder_takes_the_first_blank_it_is_not_written_again(kind: str, make_lm: MakeLM) -> None:
    made = _complete(like_llama(unigram=kind == "unigram"))
    assert make_lm(made, 32).layout.leads(parse_template(" [MASK:2]")) == [None]


def test_a_mask_that_takes_blanks_is_led_by_one_alone(make_lm: MakeLM) -> None:
    lm = make_lm(_complete(like_roberta()), 32)
    led = [
        lm.layout.leads(parse_template(text)) for text in ("x [MASK:2]", "x\n[MASK:2]", "x\t[MASK:2]", "x  [MASK:2]")
    ]
    assert led == [[Lead(" ", 0)], [None], [None], [None]]


@pytest.mark.parametrize("text", ["[MASK:0-50]", "[MASK:0-20] x [MASK:0-20]", "x = [MASK:1-30]\n[MASK:0-10]"])
def test_questions_fit_the_context(text: str, joint: DiffusionLM) -> None:
    template = parse_template(CODE + text + "\n" + CODE)
    holes = [part for part in template if isinstance(part, Hole)]
    for number in range(len(holes)):
        every = [*itertools.product(*(sorted({hole.lengths[0], 3, hole.lengths[-1]}) for hole in holes[: number + 1]))]
        for one in Inquiry(joint.layout, template, number).questions(every):
            assert len(one.ids) <= joint.context and one.asked


def test_all_lengths_are_asked_about_the_same_text(joint: DiffusionLM) -> None:
    for text in ("print([MASK:0-3])\n", "x = [MASK:0-3] + y\n", "def main():\n[MASK:0-3]\nx"):
        template, mask_id = parse_template(text), joint.process.mask_id
        asked = Inquiry(joint.layout, template, 0).questions([(n,) for n in range(4)])
        said = [decode(joint.tokenizer, [id_ for at in one.asked if (id_ := one.ids[at]) != mask_id]) for one in asked]
        lead = joint.layout.leads(exact(template, [1]))[0]
        led = [lead.text if lead and any(one.ids[at] == mask_id for at in one.asked) else "" for one in asked]
        assert len({"".join(sorted(a + b)) for a, b in zip(said, led, strict=True)}) == 1, said
