"""Texts of several holes, each filled as in another of the texts that were written."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dlm.config import Bpe, Characters
from dlm.diffusion.sample import State
from dlm.diffusion.unmask import TokenChoice
from dlm.lm import DiffusionLM, Infilling, Sampler
from dlm.lm.candidates import Candidate
from dlm.lm.canvas import fill, written_spans
from dlm.lm.mixing import Descent
from dlm.lm.search import LengthSearch
from dlm.model.text import encode
from dlm.model.tokenizer import build_tokenizer
from dlm.template import Template, exact, parse_template
from tests.support.commands import dlm
from tests.support.fixtures import MakeLM

TEXTS = ("abc[MASK:3]d[MASK:2]ab", "a[MASK:2]b[MASK:2]c[MASK:2]d", "[MASK:2][MASK:1]ab[MASK:3]")
PLAIN = LengthSearch(reread=False)
"""Draws, ranked by their bounds."""

HOT = Sampler(token=TokenChoice(temperature=1e4))
"""All tokens are drawn alike."""

Ids = tuple[tuple[int, ...], ...]


@pytest.fixture(scope="module")
def joint(make_lm: MakeLM) -> DiffusionLM:
    return make_lm(build_tokenizer(Characters(), lambda: ["abcd"]), 24, readings={"name": "joint"})


@pytest.fixture(scope="module")
def nats_of(joint: DiffusionLM) -> Callable[[Template, Sequence[Ids]], dict[Ids, float]]:
    """Reads fillings of a text as a whole."""

    def nats(template: Template, fillings: Sequence[Ids]) -> dict[Ids, float]:
        return dict(zip(fillings, joint.filling.rereader().nats(template, fillings), strict=True))

    return nats


def drawn(joint: DiffusionLM, template: Template, count: int) -> list[Infilling]:
    return joint.infill(template, num=count, search=PLAIN, draws=2)


def changed(ids: Ids, number: int, span: tuple[int, ...]) -> Ids:
    return (*ids[:number], span, *ids[number + 1 :])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tries", [2, 8, 20])
def test_no_hole_is_filled_better_in_another_text(
    text: str, tries: int, joint: DiffusionLM, nats_of: Callable[[Template, Sequence[Ids]], dict[Ids, float]]
) -> None:
    """The likeliest is at least as likely as all draws, and as itself with any one hole as in any of them."""
    template = parse_template(text)
    (found,) = joint.infill(template, search=LengthSearch(tries=tries), draws=2)
    draws = [one.ids for one in drawn(joint, template, tries)]
    nats = nats_of(template, draws)
    start = max(nats, key=nats.__getitem__)
    assert all(span in {ids[number] for ids in draws} for number, span in enumerate(found.ids))
    options = [(number, ids[number]) for ids in draws for number in range(len(found.ids))]
    best = start
    for number in [*range(len(start))] * 2:  # by enumeration
        ways = nats_of(template, [changed(best, number, span) for place, span in options if place == number])
        best = max(ways, key=ways.__getitem__)
    others = nats_of(template, [changed(found.ids, number, span) for number, span in options])
    assert found.ids == best and found.log_whole == pytest.approx(max(others.values()), abs=1e-3)


def test_texts_are_better_than_the_best_that_was_written(joint: DiffusionLM) -> None:
    """And never worse; of alternatives each is a text of its own, with its own likelihoods."""
    better = 0
    for text in TEXTS:
        template = parse_template(text)
        found = joint.infill(template, num=12, draws=2)
        draws = drawn(joint, template, 12)
        whole = joint.filling.rereader().nats(template, [one.ids for one in draws])
        assert found[0].log_whole is not None and found[0].log_whole > max(whole) - 1e-3
        better += found[0].log_whole > max(whole) + 1e-3
        assert len(found) == 12 == len({one.text for one in found})
        assert [one.rank for one in found] == sorted((one.rank for one in found), reverse=True)
        read = joint.filling.rereader().nats(template, [one.ids for one in found])
        assert [one.log_whole for one in found] == pytest.approx(read, abs=1e-3)
    assert better


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Candidate]:
    """All texts that were put together and read since."""
    found: list[Candidate] = []
    take = Descent.take

    def noted(self: Descent, read: Sequence[Candidate]) -> None:
        found.extend(read)
        take(self, read)

    monkeypatch.setattr(Descent, "take", noted)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_no_text_that_was_read_is_lost(seed: int, joint: DiffusionLM, read: list[Candidate]) -> None:
    """Those of the first round are gone on from, and none is read twice."""
    template = parse_template("ab[MASK:0-2]d[MASK:0-2]c[MASK:1-2]a")
    search = LengthSearch(effort=16)
    found = joint.infill(template, num=16, search=search, sampler=HOT, seed=seed, draws=2)
    ids = [each.found.ids for each in read]
    assert len(ids) == len({*ids}) > 16
    best = max(each.found.rank for each in read)
    assert found[0].log_whole is not None and found[0].log_whole > best - 1e-3


@pytest.mark.parametrize("seed", range(6))
def test_mixtures_are_of_likely_lengths(seed: int, joint: DiffusionLM, read: list[Candidate]) -> None:
    """Each hole has two that are, and both long holes together are not."""
    template = parse_template("ab[MASK:1-4]d[MASK:1-4]ca")
    search = LengthSearch(effort=40, top_p=0.3)
    found = joint.infill(template, num=40, search=search, sampler=HOT, seed=seed)
    likely = search.likely(found[0].length_posterior)
    assert len(likely) < len(found[0].length_posterior) and {one.lengths for one in found} <= {*likely}
    assert read and {each.found.lengths for each in read} <= {*likely}


@pytest.mark.parametrize(
    "text",
    [
        "def main():\n    [MASK:0-2][MASK:0-2]\n    for x in [MASK:0-2]:\n",
        "self.x = [MASK:1-3]\n        self.y = [MASK:0-2]\n",
        "[MASK:0-1] if [MASK:0-2] not [MASK:0-2] x",
    ],
)
def test_mixtures_are_written_across_borders_as_any_text(text: str, make_lm: MakeLM, read: list[Candidate]) -> None:
    """Where a blank or a line break is written again with a hole, unless that is empty."""
    code = "def main():\n    for x in range(10):\n        self.x = x\n        self.y = x if x not in y else 0\n"
    lm = make_lm(build_tokenizer(Bpe(size=300), lambda: [code] * 20), 64, readings={"name": "joint"})
    template = parse_template(text)
    found = lm.infill(template, num=60, search=LengthSearch(effort=60, top_p=1.0), sampler=HOT, draws=2)
    assert any(lead for each in read for lead in each.row.leads)
    for each in read:
        known = exact(template, each.found.lengths)
        canvas = lm.layout.holes(known)
        assert (each.row.holes, each.row.leads) == (canvas.holes, canvas.leads)
        assert each.found.ids == tuple(tuple(each.row.ids[span.start : span.stop]) for span in canvas.spans)
        assert each.found.spans == written_spans(known, lm.tokenizer, each.row)
        assert each.found.spans == tuple(source.found.spans[at] for at, source in enumerate(each.sources))
    for one in found:
        assert one.text == fill(template, one.spans)


def descended(joint: DiffusionLM, drafts: dict[str, float], others: dict[str, float]) -> list[Candidate]:
    """What a descent reads from drafts of one letter a hole, where all but some others are very unlikely."""
    holes = len(next(iter(drafts)))
    template = parse_template("c".join(["[MASK:1]"] * holes))
    canvas, tokenizer = joint.layout.holes(template), joint.tokenizer
    found = []
    for number, (letters, rank) in enumerate(drafts.items()):
        row = canvas.written(encode(tokenizer, [*letters]))
        found.append(Candidate.of(template, row, (number,), 1, tokenizer).knowing(log_whole=rank))
    descent, read = Descent(template, joint.layout, found, None), list[Candidate]()
    while not descent.finished:
        new = [one.knowing(log_whole=others.get("".join(one.found.spans), -99.0)) for one in descent.asked()]
        descent.take(new)
        read += new
    return read


def test_a_hole_is_filled_anew_after_those_behind_it(joint: DiffusionLM) -> None:
    """Another first letter is worse until the second is another too."""
    read = descended(joint, {"aa": -1.0, "bd": -9.0, "cb": -9.0}, {"ab": -0.5, "bb": -0.25})
    assert ["".join(one.found.spans) for one in read] == ["ba", "ca", "ad", "ab", "bb"]


def test_where_no_hole_can_be_filled_better_nothing_more_is_read(joint: DiffusionLM) -> None:
    read = descended(joint, {"aa": -1.0, "bd": -9.0, "cb": -9.0}, {})
    assert ["".join(one.found.spans) for one in read] == ["ba", "ca", "ad", "ab"]


def test_a_text_is_made_of_as_few_others_as_may_be(joint: DiffusionLM) -> None:
    """The second letter is in two drafts, of which one is in the text already."""
    read = descended(joint, {"aaa": -1.0, "bbb": -9.0, "cbd": -9.0}, {"aab": -0.5, "abb": -0.25})
    (best,) = (one for one in read if one.found.spans == ("a", "b", "b"))
    assert [source.key for source in best.sources] == [(0,), (1,), (1,)] and best.found.calls == 2


@pytest.mark.parametrize("text", TEXTS)
def test_a_mixture_took_part_in_the_calls_of_all_that_it_is_made_of(
    text: str, joint: DiffusionLM, read: list[Candidate]
) -> None:
    """Each draw takes a call a token; a hole that the best has too is not counted as another's."""
    template = parse_template(text)
    texts = {one.text for one in drawn(joint, template, 8)}
    mixed = [one for one in joint.infill(template, num=8, draws=2) if one.text not in texts]
    calls = joint.infill(template, num=1, search=LengthSearch(tries=1))[0].calls
    assert mixed and all(2 <= one.fillings <= len(one.ids) and one.calls == calls * one.fillings for one in mixed)
    for each in read:
        assert each.found.calls == calls * each.found.fillings
        assert each.found.fillings == len({source.key for source in each.sources})


@pytest.mark.parametrize("text", TEXTS)
def test_who_watches_sees_a_mixture_written(text: str, joint: DiffusionLM) -> None:
    """Held to its tokens, one a step here; and it is what is given to who does not watch."""
    states: list[State] = []
    template = parse_template(text)
    search = LengthSearch(tries=20)
    (found,) = joint.infill(template, search=search, sampler=HOT, watch=states.append, draws=2)
    assert found == joint.infill(template, search=search, sampler=HOT, draws=2)[0]
    assert found.text not in {one.text for one in joint.infill(template, num=20, search=PLAIN, sampler=HOT, draws=2)}
    assert len(states) == 1 + sum(map(len, found.ids))
    assert states[-1].x_BL[states[-1].editable_BL].tolist() == [*itertools.chain(*found.ids)]


def test_holes_of_unknown_length_are_mixed_too(joint: DiffusionLM) -> None:
    """Of lengths that were weighed, each text with the probability of its own."""
    template = parse_template("abc[MASK:0-3]d[MASK:1-3]ab[MASK:2]ca")
    found = joint.infill(template, num=30, search=LengthSearch(effort=30), draws=2)
    posterior = found[0].length_posterior
    assert len({one.lengths for one in found}) > 1 and len(found) == 30
    for one in found:
        assert one.log_length == posterior[one.lengths] and one.lengths == tuple(map(len, one.ids))
        assert one.text == f"abc{one.spans[0]}d{one.spans[1]}ab{one.spans[2]}ca"
        known = exact(template, one.lengths)
        (nats,) = joint.filling.rereader().nats(known, [one.ids])
        assert one.log_whole == pytest.approx(nats, abs=1e-3)


def test_mixtures_are_of_the_languages_of_their_holes(joint: DiffusionLM) -> None:
    found = joint.infill("a[MASK:2:/[ab]+/]c[MASK:2:/[cd]+/]b", num=12, sampler=HOT, draws=2)
    assert len(found) == 12
    assert all({*one.spans[0]} <= {*"ab"} and {*one.spans[1]} <= {*"cd"} for one in found)


def test_mixtures_do_not_depend_on_the_texts_beside_them(joint: DiffusionLM) -> None:
    several = {number: parse_template(text) for number, text in enumerate(TEXTS)}
    together = [*joint.infill_each(several, num=3, batch_size=5, draws=2)]
    for number, template in several.items():
        alone = next(joint.infill_each({number: template}, num=3, batch_size=64, draws=2))
        assert [each.text for each in together[number]] == [each.text for each in alone]


@pytest.mark.parametrize(
    ("text", "more", "told"),
    [
        ("ab[MASK:1]d[MASK:2]a", [], True),
        ("ab[MASK:1]da", [], False),
        ("ab[MASK:1]d[MASK:2]a", ["--no-reread"], False),
        ("ab[MASK:1-2]d[MASK:2]a", [], True),
        ("ab[MASK:1-2]da", [], False),
        ("ab[MASK:1-2]d[MASK:2]a", ["--no-reread"], False),
        ("ab[MASK:1-2]d[MASK:2]a", ["--effort", "1"], False),
        ("ab[MASK:1]d[MASK:2]a", ["--num", "8"], True),
        ("ab[MASK:1]da", ["--num", "8"], False),
        ("ab[MASK:1-2]d[MASK:2]", [], False),  # nothing behind the last span tells where it ends
        ("ab[MASK:1-2]d[MASK:2]", ["--reread"], True),
    ],
)
def test_the_command_says_that_spans_are_put_together(
    text: str, more: Sequence[str], told: bool, joint: DiffusionLM, tmp_path: Path
) -> None:
    joint.save_pretrained(tmp_path / "model")
    _, err = dlm("infill", tmp_path / "model", text, *more)
    assert ("the best of each span put together (--effort)" in err) == told
    words = ("infill", tmp_path / "model", text, *more)
    (found, *_) = json.loads(dlm(*words, "--json")[0])["alternatives"]
    line = next(each for each in err.splitlines() if each.startswith("1. "))
    assert (f"; put together of {found['fillings']} fillings: " in line) == (found["fillings"] > 1)


def test_the_likeliest_lengths_of_many_are_written(joint: DiffusionLM, tmp_path: Path) -> None:
    """In order, with their own probabilities, which are not all that there is."""
    joint.save_pretrained(tmp_path / "model")
    words = ("--max-length", "7", "--effort", "8", "--dtype", "fp32", "--json")
    found = json.loads(dlm("infill", tmp_path / "model", "a[MASK]b[MASK]c[MASK]d", *words)[0])["length_posterior"]
    log_p = [each["log_probability"] for each in found]
    every = joint.infill(parse_template("a[MASK]b[MASK]c[MASK]d", "MASK", 7), search=LengthSearch(effort=8), draws=2)
    known = every[0].length_posterior
    assert len(found) == 256 < len(known) and log_p == sorted(log_p, reverse=True)
    assert log_p == pytest.approx([known[tuple(each["lengths"])] for each in found], abs=1e-4)
    assert sum(map(math.exp, known.values())) == pytest.approx(1.0)
    assert sum(map(math.exp, log_p)) < 0.999
