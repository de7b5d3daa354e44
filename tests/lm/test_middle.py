"""Holes filled by next tokens: every text parses back to its template, and a known best filling is found."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from dlm.config import Characters
from dlm.diffusion.unmask import Confidence, TokenChoice
from dlm.errors import ConfigError, DataError
from dlm.lm import DiffusionLM, Sampler
from dlm.lm.canvas import Canvas
from dlm.lm.middle import MiddleFiller
from dlm.lm.rows import Task, Written
from dlm.lm.scoring import Score
from dlm.lm.search import LengthSearch
from dlm.model.sentinels import add_sentinels
from dlm.model.text import encode
from dlm.model.tokenizer import build_tokenizer
from dlm.template import Hole, parse_template
from tests.support.fixtures import MakeLM, Refused

CYCLE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"
"""The synthetic text repeats these, so that what stands beside a hole of fewer tells its one filling."""

LETTERS = CYCLE * 3


def middle_lm(make_lm: MakeLM, length: int, order: str = "psm", letters: str = CYCLE) -> DiffusionLM:
    """A random model that knows sentinels."""
    tokenizer = build_tokenizer(Characters(), lambda: [letters])
    sentinels = add_sentinels(tokenizer, order)  # type: ignore[arg-type]
    lm = make_lm(tokenizer, length, readings={"name": "autoregressive"})
    return DiffusionLM(lm.model, tokenizer, sidecar=replace(lm.sidecar, sentinels=sentinels), precision="fp32")


@pytest.fixture(scope="module", params=["psm", "spm"])
def lm(make_lm: MakeLM, request: pytest.FixtureRequest) -> DiffusionLM:
    return middle_lm(make_lm, 48, request.param)


def knowing(lm: DiffusionLM, seen: list[tuple[str, str]]) -> MiddleFiller:
    """The filler of a model that knows the cycle, and notes what it was shown before and behind each hole."""
    sentinels = lm.sidecar.sentinels
    assert sentinels is not None
    ids_of = {letter: id_ for letter, id_ in lm.tokenizer.get_vocab().items() if letter in CYCLE}
    letter_of = {id_: letter for letter, id_ in ids_of.items()}

    def parted(row: Sequence[int]) -> tuple[str, str, str]:
        """What a row shows before and behind a hole, and what is written of it already."""
        suffix, middle = row.index(sentinels.suffix), row.index(sentinels.middle)
        inside = "".join(letter_of[id_] for id_ in row[middle + 1 :])
        behind = "".join(letter_of[id_] for id_ in row[suffix + 1 : middle])
        if sentinels.order == "psm":
            return "".join(letter_of[id_] for id_ in row[1:suffix]), behind, inside
        return inside, behind, ""

    def write(tasks: Sequence[Task], ends: bool) -> Iterator[Written]:
        for task in tasks:
            (hole,) = task.canvas.holes
            assert task.stop_ids == (lm.end_ids if ends else ())
            before, behind, inside = parted(task.canvas.ids[: hole.start])
            seen.append((before, behind))
            last = (before + inside)[-1]
            new: list[int] = []
            for _ in hole:
                following = CYCLE[(CYCLE.index(last) + 1) % len(CYCLE)]
                if ends and following == behind[0]:
                    new += [lm.end_ids[0]] * (len(hole) - len(new))
                    break
                new.append(ids_of[following])
                last = following
            row = torch.tensor([[*task.canvas.ids[: hole.start], *new]])
            yield Written([task], row, torch.ones_like(row, dtype=torch.bool), [len(hole)])

    def score(canvases: Sequence[Canvas], ends: bool) -> Iterator[Score]:
        return (Score(0.0, 0.0, sum(canvas.editable)) for canvas in canvases)

    return replace(lm.filling.by_next_tokens(None, sentinels), write=write, score=score)


@pytest.mark.parametrize(
    "text",
    [
        "abc[MASK:4]hijk",
        "abc[MASK]hijk",
        "abc[MASK:2-9]hijk",
        "abc[MASK]hijk[MASK]stu",
        "abc[MASK:4]hijk[MASK]stu[MASK:1]w",
        LETTERS[:50] + "[MASK]" + LETTERS[60:110],
    ],
)
def test_the_only_filling_of_a_known_text_is_found(text: str, lm: DiffusionLM) -> None:
    template = parse_template(text)
    seen: list[tuple[str, str]] = []
    (found,) = next(knowing(lm, seen).fill({0: template}, 1))
    assert found.text in LETTERS and found.text.startswith(text.split("[")[0])
    assert all(len(before) + len(behind) < 48 for before, behind in seen)
    parts = iter(template)
    rebuilt = "".join(
        next(iter_spans) if isinstance(part, Hole) else part for iter_spans in [iter(found.spans)] for part in parts
    )
    assert rebuilt == found.text


def test_a_hole_is_shown_what_stands_behind_it_up_to_the_next_and_what_was_written_before(lm: DiffusionLM) -> None:
    seen: list[tuple[str, str]] = []
    next(knowing(lm, seen).fill({0: parse_template("abc[MASK:4]hijk[MASK:2]nop")}, 1))
    assert seen == [("abc", "hijk"), ("abcdefghijk", "nop")]
    seen.clear()
    next(knowing(lm, seen).fill({0: parse_template("abc[MASK:2][MASK:3]ijk")}, 1))
    assert seen == [("abc", ""), ("abcde", "ijk")]


def test_a_long_text_is_seen_through_a_window_that_leaves_room_for_the_middle(lm: DiffusionLM) -> None:
    seen: list[tuple[str, str]] = []
    next(knowing(lm, seen).fill({0: parse_template(LETTERS[:60] + "[MASK:8]" + LETTERS[68:])}, 1))
    ((before, behind),) = seen
    assert len(before) + len(behind) + 8 + 4 == 48 and before == LETTERS[42:60] and behind == LETTERS[68:86]
    for text, sides in (
        (LETTERS[:60] + "[MASK:8]" + LETTERS[68:72], (LETTERS[28:60], LETTERS[68:72])),  # a short side leaves room
        (LETTERS[56:60] + "[MASK:8]" + LETTERS[68:], (LETTERS[56:60], LETTERS[68:100])),
    ):
        seen.clear()
        next(knowing(lm, seen).fill({0: parse_template(text)}, 1))
        assert seen == [sides]


@pytest.mark.parametrize("text", ["ab[MASK:3]cd", "[MASK:2-5]cd", "ab[MASK:1]c[MASK]", "[MASK][MASK:2]"])
def test_every_filling_parses_back_to_its_template(text: str, lm: DiffusionLM) -> None:
    template = parse_template(text)
    for found in lm.infill(template, num=5, seed=3):
        rest = found.text
        spans = iter(zip(found.spans, found.lengths, strict=True))
        for part in template:
            if isinstance(part, Hole):
                span, length = next(spans)
                assert length in part.lengths and len(encode(lm.tokenizer, [span])[0]) == length
                assert rest.startswith(span)
                rest = rest[len(span) :]
            else:
                assert rest.startswith(part)
                rest = rest[len(part) :]
        assert rest == "" and found.calls >= sum(found.lengths)
        assert not any(token in found.text for token in ("<|endoftext|>", "<|fim", "<|mask|>"))


def test_alternatives_come_the_likeliest_first_and_depend_on_no_batch(lm: DiffusionLM) -> None:
    templates = {0: parse_template("ab[MASK]cd"), 7: parse_template("x[MASK:3]y[MASK:1-4]z")}
    together = [*lm.infill_each(templates, num=4, seed=1)]
    for found, (number, template) in zip(together, templates.items(), strict=True):
        assert [one.log_likelihood for one in found] == sorted((one.log_likelihood for one in found), reverse=True)
        alone = next(lm.infill_each({number: template}, num=4, seed=1, batch_size=1))
        assert [one.text for one in alone] == [one.text for one in found]
        assert [one.log_likelihood for one in alone] == pytest.approx([one.log_likelihood for one in found], abs=1e-4)


def test_the_likelihoods_of_all_middles_sum_to_one(make_lm: MakeLM) -> None:
    """Of one token, known or followed by the end; and of one or two of unknown length, with what is longer."""
    lm = middle_lm(make_lm, 16, letters="ab")
    template = parse_template("a[MASK:1]b")
    filler = lm.filling.by_next_tokens(None, lm.sidecar.sentinels)
    letters = [encode(lm.tokenizer, [letter])[0] for letter in "ab"]
    nats = filler.nats([template] * 2, [[ids] for ids in letters])
    assert sum(map(math.exp, nats)) == pytest.approx(1.0, abs=1e-5)
    for open_ended, texts in (("[MASK:1-2]", 6), ("[MASK:0-1]", 3), ("[MASK:0-2]", 7)):
        drawn = lm.infill(f"a{open_ended}b", num=600, batch_size=600)
        found = {one.spans: math.exp(one.log_likelihood) for one in drawn}
        assert len(found) == texts and sum(found.values()) == pytest.approx(1.0, abs=1e-4)
        for spans, p in found.items():
            share = sum(one.spans == spans for one in drawn) / 600
            assert share == pytest.approx(p, abs=4.5 * (p * (1 - p) / 600) ** 0.5)


def test_what_is_drawn_has_the_frequency_of_its_likelihood(make_lm: MakeLM) -> None:
    lm = middle_lm(make_lm, 16, letters="ab")
    found = lm.infill("a[MASK:1]b", num=400, batch_size=400)
    share = sum(one.spans == ("a",) for one in found) / 400
    p = math.exp(next(one.log_likelihood for one in found if one.spans == ("a",)))
    assert 0.02 < p < 0.98 and share == pytest.approx(p, abs=4 * (p * (1 - p) / 400) ** 0.5)


def test_from_the_left_alone_what_stands_behind_changes_nothing(lm: DiffusionLM) -> None:
    filler = lm.filling.by_next_tokens(None, None)
    (one,), (other,) = (next(filler.fill({0: parse_template(f"abc[MASK:5]{behind}")}, 1)) for behind in ("d", "XYZ"))
    assert one.spans == other.spans and one.log_likelihood == pytest.approx(other.log_likelihood)
    (seen,) = next(lm.filling.by_next_tokens(None, lm.sidecar.sentinels).fill({0: parse_template("abc[MASK:5]XYZ")}, 1))
    assert seen.log_likelihood != pytest.approx(one.log_likelihood)


def test_what_cannot_be_is_refused(lm: DiffusionLM, make_lm: MakeLM, refused: Refused) -> None:
    with refused(DataError, "45 tokens", "room for 44"):
        lm.filling.check((Hole(45), "a"))
    lm.filling.check((Hole(44), "a"))
    with refused(ConfigError, "left to right alone"):
        next(lm.infill_each({0: parse_template("a[MASK:2]b")}, sampler=Sampler(order=Confidence())))
    with refused(ConfigError, "--watch"):
        lm.infill("a[MASK:2]b", watch=lambda state: None)
    plain = make_lm(lm.tokenizer, 16, readings={"name": "autoregressive"})
    with refused(ConfigError, "data.fim"):
        plain.infill("a[MASK:2]b")


def test_temperature_zero_takes_the_likeliest_token(lm: DiffusionLM) -> None:
    (greedy,) = lm.infill("abc[MASK:1]da", sampler=Sampler(token=TokenChoice(0.0)))
    drawn = lm.infill("abc[MASK:1]da", num=60)
    assert greedy.log_likelihood >= max(one.log_likelihood for one in drawn) - 1e-5


def test_characters_that_the_tokenizer_does_not_know_are_told(lm: DiffusionLM) -> None:
    with pytest.warns(UserWarning, match="2 of the tokens that are given stand for characters"):
        lm.infill("abc[MASK:1]XY")


@pytest.mark.parametrize("text", ["a[MASK:/[a-c]+/]b", "a[MASK:2:/[a-c]+/]b"])
def test_a_span_that_is_held_to_an_expression_is_refused(text: str, lm: DiffusionLM, refused: Refused) -> None:
    with refused(DataError, "expression", "leave them out"):
        lm.infill(text)
    with refused(DataError, "expression"):
        lm.infill(parse_template("a[MASK]b", choices=["c", "d"]))


def test_a_search_of_lengths_is_refused(lm: DiffusionLM, refused: Refused) -> None:
    """A middle ends by itself, so that a prior or an effort would be ignored."""
    with refused(ConfigError, "search", "ends a span by itself", "leave it out"):
        lm.infill("abc[MASK:1-3]g", search=LengthSearch())
    assert lm.infill("abc[MASK:1-3]g")
