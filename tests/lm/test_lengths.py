"""Holes of unknown length: posteriors by enumeration, and fillings that are what a hole of known length would get."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dlm.config import Characters
from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.sample import State
from dlm.diffusion.unmask import TokenChoice
from dlm.errors import ConfigError, DataError
from dlm.lm import DiffusionLM, Sampler
from dlm.lm.canvas import Canvas
from dlm.lm.lengths import Weigher
from dlm.lm.rereading import Rereader
from dlm.lm.rows import Task, Written
from dlm.lm.search import Lengths, LengthSearch
from dlm.model.spans import MOST_CHARACTERS, MOST_UNITS, MOST_WORDS, LengthPrior
from dlm.model.text import encode
from dlm.model.tokenizer import _complete, build_tokenizer
from dlm.template import Hole, Template, exact, parse_template
from tests.support.commands import dlm, refusal
from tests.support.fixtures import MakeLM, Refused
from tests.support.joints import Chain
from tests.support.tiny_runs import describe, train
from tests.support.tokenizers import like_llama

SYMBOLS = "abcd"


class Translated(Denoiser):
    """The exact denoiser of a Markov chain, for a vocabulary that has other ids behind its symbols."""

    def __init__(self, vocabulary: int) -> None:
        self.chain, self.vocabulary = Chain(0.7, len(SYMBOLS)), vocabulary

    def __call__(self, inputs: NetworkInput) -> Tensor:
        ids_BL = inputs.ids_BL.clamp(max=len(SYMBOLS))  # what is behind the symbols is the mask, or padding
        log_p_NK = self.chain(replace(inputs, ids_BL=ids_BL))[:, : len(SYMBOLS)]
        room = self.vocabulary - len(SYMBOLS)
        return torch.nn.functional.pad(log_p_NK, (0, room), value=-torch.inf)


@pytest.fixture(scope="module")
def lm(make_lm: MakeLM) -> DiffusionLM:
    return make_lm(build_tokenizer(Characters(), lambda: [SYMBOLS]), 24)


@pytest.fixture(scope="module")
def joint(make_lm: MakeLM) -> DiffusionLM:
    return make_lm(build_tokenizer(Characters(), lambda: [SYMBOLS]), 24, readings={"name": "joint"})


@pytest.fixture(scope="module")
def weigher(lm: DiffusionLM) -> Weigher:
    assert lm.tokenizer.convert_tokens_to_ids(list(SYMBOLS)) == [0, 1, 2, 3]
    return Weigher(lm.layout, Translated(len(lm.tokenizer)), lm.process, lm.layout.tokenizer.pad_token_id, 7)


def probability(text: str) -> float:
    """Of a text of the chain, by its steps."""
    moves = math.prod(0.7 if one == other else 0.1 for one, other in itertools.pairwise(text))
    return moves / len(SYMBOLS) if text else 1.0


def enumerated(template: Template, prior: LengthPrior, whole_lines: bool = False) -> Mapping[tuple[int, ...], float]:
    """The posterior of the lengths, by summing over every text that fits."""
    holes = [part for part in template if isinstance(part, Hole)]
    found: dict[tuple[int, ...], float] = {}
    for lengths in itertools.product(*(hole.lengths for hole in holes)):
        log_prior = sum(
            prior.log_p(hole.lengths, whole_lines=whole_lines)[length - hole.tokens]
            for hole, length in zip(holes, lengths, strict=True)
        )
        total = 0.0
        for spans in itertools.product(*(itertools.product(SYMBOLS, repeat=length) for length in lengths)):
            following = iter(spans)
            total += probability("".join("".join(next(following)) if isinstance(p, Hole) else p for p in template))
        found[lengths] = math.exp(log_prior) * total
    return {lengths: p / sum(found.values()) for lengths, p in found.items()}


@pytest.mark.parametrize(
    "text",
    [
        "ab[MASK:1-4]bc",
        "a[MASK:0-4]a",
        "[MASK:0-3]dd",
        "aa[MASK:0-3]",
        "ab[MASK:0-2]c[MASK:1-3]d",
        "a[MASK:0-2][MASK:1-2]d",
        "a[MASK:0-2]b[MASK:2]c[MASK:0-2]",
        "[MASK:1-3]",
    ],
)
@pytest.mark.parametrize("prior", [LengthPrior(), LengthPrior(inside={1: 5, 2: 30, 3: 2})], ids=["uniform", "counted"])
def test_the_posterior_is_that_of_enumeration(text: str, prior: LengthPrior, weigher: Weigher) -> None:
    template = parse_template(text)
    if isinstance(template[0], Hole) and isinstance(template[-1], Hole):
        prior = LengthPrior(lines=prior.inside)  # it is all of a line
    found = weigher.posterior(template, LengthSearch(prior))
    expected = enumerated(template, prior, whole_lines=len(template) == 1)
    assert {lengths: math.exp(nats) for lengths, nats in found.items()} == pytest.approx(expected, rel=1e-6)
    assert [*found.values()] == sorted(found.values(), reverse=True)


def test_holes_that_say_nothing_of_each_other_are_weighed_exactly_at_little_effort(weigher: Weigher) -> None:
    """The chain forgets all behind a symbol that is known: 27 ways of lengths, by 3 for each hole."""
    template = parse_template("ab[MASK:0-2]c[MASK:0-2]d[MASK:0-2]a")
    expected = enumerated(template, LengthPrior())
    found = weigher.posterior(template, LengthSearch(effort=3))
    assert {lengths: math.exp(nats) for lengths, nats in found.items()} == pytest.approx(expected, rel=1e-6)


def test_holes_that_touch_are_weighed_behind_the_likeliest_lengths_of_those_before(weigher: Weigher) -> None:
    """Nothing is known behind the first hole, so that its prior is all; the second is asked behind a single token."""
    template, prior = parse_template("a[MASK:1-2][MASK:1-2]d"), LengthPrior(inside={1: 30, 2: 10})
    whole, found = enumerated(template, prior), weigher.posterior(template, LengthSearch(prior, effort=2))
    p_first = dict(zip((1, 2), map(math.exp, prior.log_p((1, 2), whole_lines=False)), strict=True))
    expected = {
        (first, second): p_first[first] * whole[1, second] / (whole[1, 1] + whole[1, 2])
        for first, second in itertools.product((1, 2), repeat=2)
    }
    assert {lengths: math.exp(nats) for lengths, nats in found.items()} == pytest.approx(expected, rel=1e-6)


def test_each_hole_costs_the_same_however_many_stand_before_it(weigher: Weigher) -> None:
    """As many lengths are weighed of each as the effort says, by as many rows as tokens are asked."""
    read: list[int] = []

    class Counting(Translated):
        def __call__(self, inputs: NetworkInput) -> Tensor:
            read.append(len(inputs.ids_BL))
            return super().__call__(inputs)

    counting = replace(weigher, denoiser=Counting(len(weigher.layout.tokenizer)))
    counting.posterior(parse_template("ab[MASK:0-3]c[MASK:0-3]d[MASK:0-3]a[MASK:0-3]b"), LengthSearch(effort=2))
    assert sum(read) == 4 * 2  # one token behind each; two lengths a hole
    read.clear()
    counting.posterior(parse_template("b".join(["a[MASK:0-1]"] * 7) + "c"), LengthSearch(effort=2))
    assert sum(read) == 6 * 2 * 2 + 2  # two tokens, and one behind the last


def test_where_the_effort_is_enough_no_lengths_are_left_out(weigher: Weigher, monkeypatch: pytest.MonkeyPatch) -> None:
    template = parse_template("a[MASK:0-2][MASK:0-2]d[MASK:0-2]a")
    expected = enumerated(template, LengthPrior())
    monkeypatch.setattr("dlm.lm.lengths.KEPT", 2)
    found = weigher.posterior(template, LengthSearch(effort=27))
    assert {lengths: math.exp(nats) for lengths, nats in found.items()} == pytest.approx(expected, rel=1e-6)
    assert len(weigher.posterior(template, LengthSearch(effort=3))) == 3 * 3


def test_behind_a_hole_that_takes_all_room_the_shortest_is_weighed(weigher: Weigher) -> None:
    """The middle of all lengths is the only one that is considered, and leaves no room for another such."""
    found = weigher.posterior(parse_template("a[MASK:1-22]b[MASK:1-22]c"), LengthSearch(effort=1))
    assert found == {(11, 1): 0.0}


def test_of_more_lengths_than_the_effort_the_likeliest_are_weighed(weigher: Weigher) -> None:
    """By the prior; of lengths that are all alike, some at even steps."""
    words = LengthPrior(inside={2: 5, 3: 9, 11: 6, 12: 2})
    text = parse_template("a[MASK:1-17]b")
    assert sorted(weigher.posterior(text, LengthSearch(words, effort=3))) == [(2,), (3,), (11,)]
    assert sorted(weigher.posterior(text, LengthSearch(effort=1))) == [(9,)]
    found = weigher.posterior(parse_template("a[MASK:1-17]b"), LengthSearch(effort=5))
    assert sorted(found) == [(2,), (6,), (9,), (12,), (16,)]


def test_lengths_that_do_not_fit_the_context_are_not_weighed(
    lm: DiffusionLM, weigher: Weigher, refused: Refused
) -> None:
    found = weigher.posterior(parse_template("abcd[MASK:1-30]abcdab[MASK:2-30]cd"), LengthSearch(effort=40))
    assert {one + other for one, other in found} == set(range(3, 24 - 12 + 1))
    with refused(DataError, "does not fit the context"):
        lm.infill("a[MASK:25-30]b")


def test_the_likeliest_filling_is_that_of_enumeration(lm: DiffusionLM, weigher: Weigher) -> None:
    """With enough fillings tried, the best is the likeliest of all lengths and spans together."""
    exact_lm = DiffusionLM(lm.model, lm.tokenizer, sidecar=lm.sidecar, precision="fp32")
    own = weigher.denoiser
    vars(exact_lm)["denoisers"] = replace(lm.denoisers, infilling=own, ranking=own, scoring=own, weighing=own)
    vars(exact_lm)["writer"] = replace(lm.writer, denoisers=exact_lm.denoisers)
    text, search = "ab[MASK:0-2]bc", LengthSearch(effort=200, top_p=1.0)
    found = exact_lm.infill(text, num=10, search=search, draws=64, sampler=Sampler())
    template = parse_template(text)
    posterior = enumerated(template, LengthPrior())
    expected: dict[str, float] = {}
    for (length,), p_length in posterior.items():
        spans = ["".join(span) for span in itertools.product(SYMBOLS, repeat=length)]
        whole = {span: probability(f"ab{span}bc") for span in spans}
        expected |= {f"ab{span}bc": math.log(p_length * p / sum(whole.values())) for span, p in whole.items()}
    best = sorted(expected, key=lambda one: -expected[one])[:3]
    assert [one.text for one in found][:3] == best
    for one in found:
        assert one.log_joint == pytest.approx(expected[one.text], abs=0.05)
    assert len({one.text for one in found}) == len(found)


# The lengths that are filled


ALL: Mapping[Lengths, float] = {(n,): -math.log(32) for n in range(1, 33)}
"""Lengths of which nothing is known."""


@pytest.mark.parametrize("seed", range(20))
def test_no_fewer_lengths_have_as_much_probability(seed: int) -> None:
    """By enumeration of all sets of lengths."""
    draws = torch.rand(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p_N, top_p = (draws[1:] / draws[1:].sum()).tolist(), float(draws[0].clamp(0.01, 0.99))
    found = LengthSearch(top_p=top_p).likely({(n,): math.log(p) - 5.0 for n, p in enumerate(p_N)})
    every = (each for size in range(1, 8) for each in itertools.combinations(range(7), size))
    enough = [each for each in every if sum(p_N[n] for n in each) >= top_p]
    fewest = min(map(len, enough))
    best = max((each for each in enough if len(each) == fewest), key=lambda each: sum(p_N[n] for n in each))
    total = sum(p_N[n] for n in best)
    assert [*found] == sorted(found, key=lambda lengths: -p_N[lengths[0]])
    assert {n: math.exp(nats) for (n,), nats in found.items()} == pytest.approx({n: p_N[n] / total for n in best})


def test_lengths_that_are_alike_are_all_filled_or_none() -> None:
    assert LengthSearch(top_p=0.1).likely(ALL) == pytest.approx(ALL)
    some: Mapping[Lengths, float] = {(1,): math.log(0.4), (2,): math.log(0.2), (3,): math.log(0.2), (4,): math.log(0.2)}
    assert [*LengthSearch(top_p=0.3).likely(some)] == [(1,)]
    assert {*LengthSearch(top_p=0.5).likely(some)} == {*some} == {*LengthSearch(top_p=1.0).likely(some)}


def test_fillings_are_shared_out_among_likely_lengths_alone() -> None:
    some: Mapping[Lengths, float] = {(n,): math.log(p) for n, p in enumerate((0.35, 0.35, *[0.01] * 30))}
    search = LengthSearch(effort=20, top_p=0.7)
    assert search.shared_out(search.likely(some), 1) == {(0,): 10, (1,): 10}


def test_a_share_that_rounding_misses_is_reached() -> None:
    """In floating point, the three are a little less than 0.7 together."""
    some: Mapping[Lengths, float] = {(n,): math.log(p) for n, p in enumerate((0.28, 0.24, 0.18, 0.1, 0.1, 0.1))}
    assert len(LengthSearch(top_p=0.7).likely(some)) == 3


@pytest.mark.parametrize("reread", [True, False])
def test_only_likely_lengths_are_filled(reread: bool, joint: DiffusionLM) -> None:
    """All lengths are weighed, and told; by the prior, long holes are likely here, and short texts by the model."""
    template = parse_template(f"{'abcd' * 3}[MASK:0-9]{'cdab' * 3}")
    prior = LengthPrior(inside={8: 10**6, 9: 10**6})
    search = LengthSearch(prior, effort=60, top_p=0.5, reread=reread)
    found = joint.infill(template, num=60, search=search, draws=2)
    likely = search.likely(found[0].length_posterior)
    assert len(found[0].length_posterior) == 10 and {*likely} <= {(8,), (9,)}
    assert {one.lengths for one in found} <= {*likely}
    every = joint.infill(template, num=60, search=replace(search, prior=LengthPrior(), top_p=1.0), draws=2)
    assert every[0].lengths not in likely and len({one.lengths for one in every}) > 3


def test_choices_of_unlikely_lengths_are_tried(joint: DiffusionLM) -> None:
    """They are more than are enumerated, and by the prior the longest alone is likely."""
    template = parse_template("ab[MASK]cd", choices=["a", "bb", "ccc", "abcda"])
    search = LengthSearch(LengthPrior(inside={5: 10**9}), effort=3, top_p=0.1)
    assert len({one.lengths for one in joint.infill(template, num=3, search=search, draws=2)}) > 1


def test_a_search_takes_a_share_of_the_lengths() -> None:
    for wrong in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="top_p must be above 0 and at most 1"):
            LengthSearch(top_p=wrong)


# Two rounds


def test_the_first_round_costs_the_same_in_all_lengths_that_are_alike() -> None:
    """Each of n tokens, at n calls, gets 1 / n of the fillings; no share is off by one or more."""
    for effort in (1, 2, 7, 32, 301, 20_000):
        shares = LengthSearch(effort=effort).first_round(ALL, 1)
        half = (effort + 1) // 2
        whole = half / sum(1 / n for n in range(1, 33))
        assert sum(shares.values()) == half and min(shares.values()) > 0
        assert all(abs(shares.get((n,), 0) - whole / n) < 1 for n in range(1, 33))


def test_the_first_round_follows_what_is_known_of_lengths() -> None:
    known: Mapping[Lengths, float] = {(3,): math.log(0.9), (6,): math.log(0.1), (9,): -math.inf}
    assert LengthSearch(effort=200).first_round(known, 1) == {(3,): 95, (6,): 5}


def test_of_few_fillings_the_first_are_of_the_likeliest_lengths() -> None:
    known: Mapping[Lengths, float] = {(1,): math.log(0.2), (5,): math.log(0.3), (8,): math.log(0.5)}
    assert LengthSearch(effort=1).first_round(known, 1) == LengthSearch(effort=2).first_round(known, 2) == {(8,): 1}
    assert LengthSearch(effort=4).first_round(known, 1) == {(8,): 1, (5,): 1}


def test_more_alternatives_than_the_effort_are_tried() -> None:
    search, found = LengthSearch(effort=4), [((1,), -1.0)] * 50
    assert sum(search.first_round(ALL, 100).values()) == sum(search.second_round(ALL, found, 50).values()) == 50


def test_a_hole_of_nothing_is_filled_once() -> None:
    search = LengthSearch(effort=10)
    lengths: Mapping[Lengths, float] = {(0, 0): math.log(0.8), (1, 0): math.log(0.1), (0, 1): math.log(0.1)}
    assert search.first_round(lengths, 1) == {(0, 0): 1, (0, 1): 2, (1, 0): 2}
    assert search.second_round(lengths, [((0, 0), -1.0), ((1, 0), -90.0), ((0, 1), -90.0)], 7) == {(0, 1): 4, (1, 0): 3}
    assert search.second_round(lengths, [((1, 0), -1.0), ((0, 1), -1.0)], 8) == {(0, 0): 1, (0, 1): 4, (1, 0): 3}
    assert (
        search.first_round({(0,): 0.0}, 9) == {(0,): 1} and search.second_round({(0,): 0.0}, [((0,), -1.0)], 18) == {}
    )


def test_the_second_round_follows_the_best_texts_of_the_first() -> None:
    search = LengthSearch(effort=4_004)
    told = [((2,), -12.0), ((2,), -50.0), ((4,), -20.0), ((32,), -900.0)]
    shares = search.second_round({(n,): 0.0 for n in (2, 3, 4, 32)}, told, 4_000)
    assert sum(shares.values()) == 4_000 and (32,) not in shares
    assert shares[3,] == shares[4,] == pytest.approx(shares[2,] * math.exp(-2.0), abs=1)  # 8 nats; 3 is nearer to 4
    twice = search.second_round({(2,): math.log(2), (4,): 0.0}, [((2,), -5.0)] * 4, 4_000)
    assert twice == {(2,): 2_667, (4,): 1_333}


def test_where_no_text_of_the_first_round_is_possible_the_second_is_as_before_it() -> None:
    search = LengthSearch(effort=8)
    lengths: Mapping[Lengths, float] = {(1, 2): math.log(3), (2, 1): 0.0}
    for found in ([], [((1, 2), -math.inf)] * 4):
        assert search.second_round(lengths, found, 8 - len(found)) == {
            (1, 2): (8 - len(found)) * 3 // 4,
            (2, 1): (8 - len(found)) // 4,
        }


@pytest.mark.parametrize("text", ["ab[MASK:0-2]bc", "a[MASK:0-1]b[MASK:1-2]cd", "a[MASK:1-2:/[ab]+/]cc"])
def test_with_enough_fillings_two_rounds_find_the_likeliest_of_all(text: str, joint: DiffusionLM) -> None:
    """Among all spans of all lengths, the best by the causal reading; at this temperature all are drawn alike."""
    template = parse_template(text)
    holes = [part for part in template if isinstance(part, Hole)]
    letters = range(2 if holes[-1].expression else len(SYMBOLS))
    fillings = [
        spans
        for lengths in itertools.product(*(hole.lengths for hole in holes))
        for spans in itertools.product(*(itertools.product(letters, repeat=length) for length in lengths))
    ]
    nats = joint.filling.rereader().nats(template, fillings)
    hot = Sampler(token=TokenChoice(temperature=1e4))
    found = joint.infill(text, num=3, search=LengthSearch(effort=400, top_p=1.0), sampler=hot)
    best = sorted(zip(nats, fillings, strict=True), reverse=True)[:3]
    assert [one.ids for one in found] == [spans for _, spans in best]
    assert [one.log_whole for one in found] == pytest.approx([each for each, _ in best], abs=1e-3)


def test_where_lengths_differ_the_nearest_is_so_by_the_sum_of_all_holes() -> None:
    """(1, 1) is nearer to (3, 1), at log 2, than to (2, 2), at 2 log 1.5, though not as the crow flies."""
    found = [((3, 1), -8.0), ((2, 2), -80.0)]
    shares = LengthSearch(effort=12).second_round({(1, 1): 0.0, (2, 2): 0.0, (3, 1): -90.0}, found, 10)
    assert shares == {(1, 1): 10}


def test_fillings_of_both_rounds_are_read_once_and_beside_the_same_text(
    joint: DiffusionLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a context of 24, of which the longest of the lengths, 12, leaves 12: no round's own longest decides."""
    seen: list[list[Canvas]] = []
    read = Rereader.read

    def spy(self: Rereader, rows: Sequence[Canvas]) -> Iterator[float]:
        seen.append([*rows])
        return read(self, rows)

    monkeypatch.setattr(Rereader, "read", spy)
    joint.infill(f"{'abcd' * 3}[MASK:1-20]{'cdab' * 8}", search=LengthSearch(effort=12))
    first, second = ([tuple(row.ids) for row in rows] for rows in seen if rows)
    assert first and second and not set(first) & set(second)
    behind = tuple(encode(joint.tokenizer, ["cdabcd"])[0])
    before = tuple(encode(joint.tokenizer, ["cdabcd"])[0])
    for row in (*first, *second):
        assert row[: -len(behind)][:6] == before and row[-len(behind) :] == behind
    assert max(map(len, first)) < 24


@pytest.mark.parametrize("effort", [1, 2, 8, 32])
@pytest.mark.parametrize("readings", ["masked", "joint"])
def test_lengths_that_leave_a_language_no_text_are_not_tried(effort: int, readings: str, make_lm: MakeLM) -> None:
    """Behind another token, the one that spells a choice has its blank; only an empty first hole leaves it a place."""
    lm = make_lm(_complete(like_llama()), 48, readings={"name": readings})
    template = "[MASK:0-2][MASK:1:/you/] b, you"
    for counts, fits in (({1: 1, 0: 1}, True), ({1: 200, 0: 10}, effort > 1)):  # a token is likelier than none
        search = LengthSearch(LengthPrior(inside=counts), effort=effort)
        if fits:
            assert lm.infill(template, search=search)[0].spans == ("", "you")
        else:
            with pytest.raises(DataError, match="raise --effort"):
                lm.infill(template, search=search)


def test_a_second_round_draws_others_than_the_first(joint: DiffusionLM) -> None:
    asked: list[tuple[int | str, ...]] = []
    filler = joint.filling.by_masks({}, None, 2, 0, 8, None)

    def noted(tasks: Iterable[Task], watched: bool) -> Iterator[Written]:
        tasks = [*tasks]
        asked.extend(task.key for task in tasks)
        return filler.write(tasks, watched)

    (found,) = replace(filler, write=noted).fill({0: parse_template("ab[MASK:1-2]bc")}, 1, LengthSearch(effort=20))
    assert len(found) == 1 and len(asked) == len({*asked}) == 20
    assert {key[3:] for key in asked} == {
        (n, i) for n, count in Counter(k[3] for k in asked).items() for i in range(count)
    }


# On a network


def test_a_range_of_one_length_is_a_known_length(tiny_lm: DiffusionLM) -> None:
    assert tiny_lm.infill("a[MASK:3-3]b", num=2) == tiny_lm.infill("a[MASK:3]b", num=2)


@pytest.mark.parametrize(
    "text", ["[MASK]", "[MASK:0-3]x", "x[MASK:0-3]", "a[MASK:0-1][MASK:0-2]b", "a[MASK]b[MASK:2]c", "x[MASK:1-64]"]
)
def test_every_filling_parses_back_to_its_template(tiny_lm: DiffusionLM, text: str) -> None:
    template = parse_template(text)
    holes = [part for part in template if isinstance(part, Hole)]
    found = tiny_lm.infill(text, num=5, search=LengthSearch(effort=6), draws=2)
    assert 1 <= len(found) <= 5
    for one in found:
        assert all(length in hole.lengths for length, hole in zip(one.lengths, holes, strict=True))
        following = iter(one.spans)
        assert one.text == "".join(next(following) if isinstance(part, Hole) else part for part in template)
        assert one.log_length == pytest.approx(one.length_posterior[one.lengths])
        assert exact(template, one.lengths).count(Hole(0)) == one.spans.count("")
    assert [one.log_joint for one in found] == sorted((one.log_joint for one in found), reverse=True)


def test_a_search_does_not_depend_on_its_batch(tiny_lm: DiffusionLM) -> None:
    texts = {0: parse_template("a[MASK:0-4]b"), 1: parse_template("c[MASK:2]d"), 2: parse_template("e[MASK:1-3]")}
    search = LengthSearch(effort=5)
    several = [*tiny_lm.infill_each(texts, num=2, search=search)]
    one_by_one = [next(tiny_lm.infill_each({n: texts[n]}, num=2, search=search, batch_size=3)) for n in texts]
    for group, alone in zip(several, one_by_one, strict=True):
        assert [one.text for one in group] == [one.text for one in alone]
        for one, other in zip(group, alone, strict=True):
            assert one.log_joint == pytest.approx(other.log_joint, rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*the model does not see what they are")
def test_what_no_model_predicts_behind_a_hole_weighs_nothing(make_lm: MakeLM) -> None:
    """A character that the tokenizer does not know."""
    lm = make_lm(build_tokenizer(Characters(), lambda: ["abcd"]), 24)
    (one,) = lm.infill("a[MASK:1-3]xb")
    assert all(math.isfinite(nats) for nats in one.length_posterior.values())


def test_the_longest_hole_leaves_text_to_read(lm: DiffusionLM, weigher: Weigher) -> None:
    """Of a context of 24: room for all of the text, or half of the room that the shortest leaves."""
    found = weigher.posterior(parse_template("abcd[MASK:1-24]abcd"), LengthSearch(effort=30))
    assert sorted(found) == [(length,) for length in range(1, 24 - 4 - 4 + 1)]
    assert len({round(nats, 6) for nats in found.values()}) > 3
    for least, fitting in ((23, [23]), (20, [20, 21, 22]), (1, range(1, 13))):
        found = weigher.posterior(parse_template(f"{'abcd' * 4}[MASK:{least}-24]{'cd' * 8}"), LengthSearch(effort=30))
        assert sorted(found) == [(length,) for length in fitting]


@pytest.mark.parametrize("timed", [False, True])
def test_a_posterior_does_not_depend_on_the_rows_beside_it(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, timed: bool
) -> None:
    lm = make_lm(byte_tokenizer, 32, model={"time_conditioning": timed})
    expected, *others = (
        lm.infill("abcd[MASK:0-9]efgh", search=LengthSearch(effort=10), batch_size=size)[0].length_posterior
        for size in (1, 5, 500)
    )
    for other in others:
        assert other == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_text_that_may_be_all_empty(tiny_lm: DiffusionLM, batch_size: int) -> None:
    states: list[State] = []
    found = tiny_lm.infill("[MASK:0-2]", num=9, batch_size=batch_size, watch=states.append)
    assert "" in {one.text for one in found}


def test_noise_without_masks_has_no_holes_of_unknown_length(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, refused: Refused
) -> None:
    with refused(ConfigError, "uniform", "[MASK:12]"):
        make_lm(byte_tokenizer, 32, noise={"name": "uniform"}).infill("a[MASK:1-2]b")
    make_lm(byte_tokenizer, 32, noise={"name": "hybrid", "share": 0.1}).infill("a[MASK:1-2]b")


def test_equal_texts_of_other_tokens_are_likelier_together(tiny_lm: DiffusionLM) -> None:
    """Bytes that are no character are one replacement character each, so many spans read alike."""
    search = LengthSearch(effort=300)
    found = tiny_lm.infill("a[MASK:1-2]b", num=300, search=search, draws=2)
    assert len({one.text for one in found}) == len(found)
    assert all(one.log_length == pytest.approx(one.length_posterior[one.lengths]) for one in found)


def test_who_watches_a_search_sees_the_filling_that_is_printed(tiny_lm: DiffusionLM) -> None:
    states: list[State] = []
    search = LengthSearch(effort=9)
    (found,) = tiny_lm.infill("a[MASK:1-4]b", search=search, watch=states.append)
    assert found == tiny_lm.infill("a[MASK:1-4]b", search=search)[0]
    (ids,) = states[-1].x_BL[states[-1].editable_BL].split(found.lengths[0])
    assert tuple(ids.tolist()) == found.ids[0] and len(states) == found.lengths[0] + 1


def test_an_empty_hole_costs_no_call_and_is_certain(tiny_lm: DiffusionLM) -> None:
    found = tiny_lm.infill("a[MASK:0-1]b", num=40, search=LengthSearch(effort=40), draws=2)
    (empty,) = [one for one in found if one.lengths == (0,)]
    assert empty.text == "ab" and empty.log_likelihood == 0.0 and empty.calls == 0


def test_a_prior_counts_words_rests_of_lines_lines_and_paragraphs(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    prior = LengthPrior.of_texts(["ab cde\nf\n\n", "ghij\n"], byte_tokenizer)
    assert prior.inside == {1: 1, 2: 1, 3: 2, 4: 1}  # f, ab, cde as a word and as a rest, ghij
    assert prior.lines == {1: 1, 4: 2, 6: 1, 8: 1}  # f; ghij as a line and a paragraph; ab cde; both lines of the first
    assert prior.log_p([3, 4], whole_lines=False) == pytest.approx([math.log(3 / 5), math.log(2 / 5)])


def test_rests_of_lines_are_as_long_as_they_are_by_themselves(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    words = ["a", "\u00e9t\u00e9", "longer", "\U0001f600", "b", "end"]
    prior = LengthPrior.of_texts([" \t".join(words)], byte_tokenizer)
    rests = [" ".join(words[i:]) for i in range(1, len(words))]
    assert prior.inside == Counter(len(part.encode()) for part in [*words, *rests])


def test_a_prior_is_of_the_beginning_of_a_large_text(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    begins = " " * MOST_CHARACTERS
    counted = [
        LengthPrior.of_texts(texts, byte_tokenizer) for texts in (["ab", begins, "cde"], ["ab"], [begins + "cde"])
    ]
    assert counted[0] == counted[1] and not counted[2].inside


def test_a_book_in_one_line_takes_no_time_and_no_room(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    words = ["ab"] * 50_000
    prior = LengthPrior.of_texts([" ".join(words)], byte_tokenizer)
    assert prior.inside == {2: MOST_UNITS + 1, **{3 * n - 1: 1 for n in range(2, MOST_WORDS + 1)}}
    assert prior.lines == {3 * len(words) - 1: 2}


def test_a_run_counts_the_spans_of_its_text_and_its_model_weighs_by_them(tmp_path: Path) -> None:
    text = "ab cde\n" * 200
    run = train(tmp_path / "run", describe(tmp_path, text))
    lm = DiffusionLM.from_pretrained(run, device="cpu", dtype="fp32")
    counted = lm.sidecar.lengths
    assert counted == LengthPrior.of_texts([text[: int(0.8 * len(text))]], lm.tokenizer)
    (own,), (uniform,) = (lm.infill("x [MASK:1-5]", search=LengthSearch(prior)) for prior in (None, LengthPrior()))
    gained = {each: nats - uniform.length_posterior[each] for each, nats in own.length_posterior.items()}
    weights = [counted.inside.get(length, 0) + 1 for length in range(1, 6)]
    assert gained[2,] - gained[1,] == pytest.approx(math.log(weights[1] / weights[0]))
    lm.save_pretrained(tmp_path / "saved")
    assert DiffusionLM.from_pretrained(tmp_path / "saved").sidecar.lengths == counted


def test_a_hole_on_lines_of_its_own_has_the_lengths_of_lines(tiny_lm: DiffusionLM) -> None:
    search = LengthSearch(LengthPrior(inside={1: 10**9}, lines={2: 10**9}))
    for text, expected in (
        ("a\n[MASK:1-2]\nb", 2),
        ("[MASK:1-2]\nb", 2),
        ("a[MASK:1-2]\nb", 1),
        ("a\n[MASK:1-2] b", 1),
    ):
        (one,) = tiny_lm.infill(text, search=search)
        assert one.lengths == (expected,)


def test_the_command_searches(tiny_lm: DiffusionLM, tmp_path: Path) -> None:
    model, prior = tmp_path / "model", tmp_path / "prior.txt"
    tiny_lm.save_pretrained(model)
    prior.write_text("some words\nand lines\n")
    words = ["infill", model, "a[MASK]b", "--effort", "4", "--max-length", "6", "--num", "2"]
    out, err = dlm(*words)
    assert out.startswith("a") and "at most 4 lengths are weighed" in err and " for the length " in err
    found = json.loads(dlm(*words, "--json")[0])
    assert len(found["length_posterior"]) == 4 and found["lengths"] in [
        one["lengths"] for one in found["length_posterior"]
    ]
    assert sum(math.exp(one["log_probability"]) for one in found["length_posterior"]) == pytest.approx(1.0)
    assert found["alternatives"][0]["log_joint"] == found["log_joint"]
    dlm(*words, "--length-prior", prior)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a[MASK:0-2]b", "n": 1}\n{"text": "c[MASK:2]d"}\n{"text": "[MASK:1-2]"}\n')
    out, err = dlm("infill", model, "--file", rows, "--effort", "3")
    assert [("length_posterior" in json.loads(line)) for line in out.splitlines()] == [True, False, True]
    assert "for each of the 2 texts with a span of unknown length, at most 3 lengths are weighed" in err
    assert "--length-prior is run, uniform or a text" in refusal(*words, "--length-prior", tmp_path / "none.txt")
    assert "nothing was counted" in refusal(*words, "--length-prior", "run")
    for wrong in ("[MASK:0-0]", "[MASK:-3]", "[MASK:3-]"):
        assert "a range, as in [MASK:3-12]" in refusal("infill", model, wrong)


def test_a_model_with_a_causal_reading_ranks_by_the_whole_text(joint: DiffusionLM) -> None:
    """By log p(span, what stands behind | what stands before), so that the lengths compete on the same text."""
    template = parse_template("abc[MASK:1-3]dab")
    found = joint.infill(template, num=12, search=LengthSearch(effort=24))
    assert len(found) > 4 and len({one.lengths for one in found}) > 1
    ends = {text: joint.score(text, "").log_likelihood for text in ("abc", *(one.text for one in found))}
    whole = dict(zip(ends, joint.nelbo([*ends]), strict=True))
    for one in found:
        nats = ends["abc"] + whole["abc"] - ends[one.text] - whole[one.text]
        assert one.log_whole == pytest.approx(nats, abs=1e-3) and one.rank == one.log_whole
    assert [one.rank for one in found] == sorted((one.rank for one in found), reverse=True)
    assert [one.log_joint for one in found] != sorted((one.log_joint for one in found), reverse=True)

    other = joint.infill(template, num=12, search=LengthSearch(effort=24, reread=False))
    assert all(one.log_whole is None and one.rank == one.log_joint for one in other)
    assert [one.rank for one in other] == sorted((one.rank for one in other), reverse=True)


PLAIN = LengthSearch(reread=False)
"""Draws, ranked by their bounds."""


@pytest.mark.parametrize("text", ["abc[MASK:3]dab", "[MASK:3]c", "ab[MASK:2]"])
@pytest.mark.parametrize(("num", "tries"), [(1, 8), (3, 8), (12, 8), (4, 1), (1, 30)])
def test_of_several_fillings_of_known_length_the_likeliest_are_taken(
    text: str, num: int, tries: int, joint: DiffusionLM
) -> None:
    """Those of as many draws that the causal reading finds likeliest as whole texts, each text once."""
    template = parse_template(text)
    found = joint.infill(template, num=num, search=LengthSearch(tries=tries))
    drawn = {one.text: one for one in joint.infill(template, num=max(num, tries), search=PLAIN)}
    rereader = joint.filling.rereader()
    nats = {one.text: rereader.nats(template, [one.ids])[0] for one in drawn.values()}
    best = sorted(nats, key=lambda each: -nats[each])[:num]
    assert [one.text for one in found] == best
    for one in found:
        assert one.log_whole == pytest.approx(nats[one.text], abs=1e-3) == one.rank
        assert one.log_likelihood == pytest.approx(drawn[one.text].log_likelihood, abs=1e-3)
        assert (one.ids, one.spans, one.calls) == (drawn[one.text].ids, drawn[one.text].spans, drawn[one.text].calls)


def test_plain_draws_are_all_kept_and_ranked_by_their_bounds(joint: DiffusionLM) -> None:
    template = parse_template("abc[MASK:1]ab")
    plain = joint.infill(template, num=12, search=PLAIN)
    assert len(plain) == 12 > len({one.text for one in plain}) and all(one.log_whole is None for one in plain)
    bounds = [one.log_likelihood for one in plain]
    assert bounds == sorted(bounds, reverse=True)
    once = LengthSearch(tries=1)
    (alone,), (asked,) = joint.infill(template, search=once), joint.infill(template, search=replace(once, reread=True))
    (first,) = joint.infill(template, search=PLAIN)
    assert alone.log_whole is None and asked.log_whole is not None and alone.text == asked.text == first.text


def test_the_best_filling_of_a_text_is_what_it_is_alone(joint: DiffusionLM) -> None:
    several = {n: parse_template(text) for n, text in enumerate(("ab[MASK:2]", "[MASK:3]c", "a[MASK:1]b"))}
    together = [*joint.infill_each(several, num=3, batch_size=5)]
    for n, (group, template) in enumerate(zip(together, several.values(), strict=True)):
        alone = next(joint.infill_each({n: template}, num=3, batch_size=64))
        assert [each.text for each in group] == [each.text for each in alone]
        assert [each.log_whole for each in group] == pytest.approx([each.log_whole for each in alone], abs=1e-3)


def test_probabilities_of_one_text_by_several_tokens_add_up(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Bytes that are no character are one replacement character each, so many spans read alike."""
    joint = make_lm(byte_tokenizer, 12, readings={"name": "joint", "sizes": [4]})
    template = parse_template("a[MASK:1]b")
    found = joint.infill(template, num=400, search=LengthSearch(tries=400), draws=2)
    drawn = {one.ids: one for one in joint.infill(template, num=400, search=PLAIN, draws=2)}
    nats = dict(zip(drawn, joint.filling.rereader().nats(template, [*drawn]), strict=True))
    together = 0
    for one in found:
        ways = [ids for ids, each in drawn.items() if each.text == one.text]
        assert one.log_whole == pytest.approx(_log_sum(nats[ids] for ids in ways), abs=1e-3)
        assert one.log_likelihood == pytest.approx(_log_sum(drawn[ids].log_likelihood for ids in ways), abs=1e-3)
        together += len(ways) > 1
    assert together


def _log_sum(log_p: Iterable[float]) -> float:
    return math.log(sum(map(math.exp, log_p)))


def test_texts_are_given_as_soon_as_they_are_filled(joint: DiffusionLM) -> None:
    """A batch of texts at a time: the first costs a part of what all of them cost."""
    calls: list[int] = []
    handle = joint.model.register_forward_pre_hook(lambda *_: calls.append(1))
    texts = {n: parse_template("ab[MASK:2]d") for n in range(9)}
    found = joint.infill_each(texts, batch_size=3, draws=2)
    next(found)
    first = len(calls)
    rest = [*found]
    handle.remove()
    assert len(rest) == 8 and len(calls) == 3 * first


def test_a_span_of_nothing_is_certain(joint: DiffusionLM) -> None:
    """Also where nothing else is to be read."""
    (one,) = joint.infill("[MASK:/()/]", search=LengthSearch(tries=4))
    assert one.text == "" and one.log_likelihood == 0.0 and one.log_whole == 0.0


def test_fillings_as_long_as_the_context_are_read_after_what_stands_before(joint: DiffusionLM) -> None:
    """Half of what they leave is for the text before them, so that it says something."""
    spans = [[[i % 4 for i in range(16)]]]
    one, other = (
        joint.filling.rereader().nats(parse_template(f"{before}[MASK:16]{'abcd' * 5}"), spans)
        for before in ("a" * 20, "dcb" * 6)
    )
    assert one[0] != pytest.approx(other[0], abs=1e-3)


def test_the_command_says_how_many_fillings_the_likeliest_is_taken_of(joint: DiffusionLM, tmp_path: Path) -> None:
    model, empty = tmp_path / "model", tmp_path / "empty.txt"
    joint.save_pretrained(model)
    words = ["infill", model, "abc[MASK:4]d", "--dtype", "fp32"]
    for more, note in (
        ([], "the likeliest is taken of 8 fillings (--effort)"),
        (["--effort", "3", "--num", "2"], "the 2 likeliest are taken of 3 fillings (--effort)"),
        (["--num", "9"], "the 9 likeliest are taken of 9 fillings (--effort)"),
    ):
        _, err = dlm(*words, *more)
        assert err.splitlines()[0] == note
    for more, tries in ((["--effort", "30"], 30), (["--effort", "1"], 1), (["--no-reread"], 1)):
        out, err = dlm(*words, *more)
        (best,) = joint.infill("abc[MASK:4]d", search=LengthSearch(tries=tries))
        assert out == f"{best.text}\n" and ("taken of" in err) == (tries > 1)
    empty.write_text(" \n")
    assert "there is no text in it" in refusal("infill", model, "a[MASK]b", "--length-prior", empty)


def test_who_watches_sees_the_best_filling_of_known_length(joint: DiffusionLM) -> None:
    states: list[State] = []
    (found,) = joint.infill("abc[MASK:6]ab", watch=states.append)
    (unseen,) = joint.infill("abc[MASK:6]ab")
    assert found == unseen and len(states) == 7 and all(len(state.x_BL) == 1 for state in states)
    assert tuple(states[-1].x_BL[states[-1].editable_BL].tolist()) == found.ids[0]
    assert joint.infill("abc[MASK:6]ab", search=PLAIN)[0].text != found.text  # another than would be drawn alone


@pytest.mark.parametrize("text", ["abc[MASK:0-3]", "[MASK:0-2]", "abc[MASK:1]d[MASK:0-2]"])
def test_where_nothing_stands_behind_the_last_hole_length_and_span_are_ranked(text: str, joint: DiffusionLM) -> None:
    assert all(one.log_whole is None for one in joint.infill(text, num=4))
    asked = joint.infill(text, num=4, search=LengthSearch(reread=True))
    assert all(one.log_whole is not None for one in asked)


def test_without_a_causal_reading_there_is_no_rereading(lm: DiffusionLM, refused: Refused) -> None:
    assert all(one.log_whole is None for one in lm.infill("ab[MASK:0-2]c", num=3))
    with refused(ConfigError, "--reread", "causal reading", "leave it out"):
        lm.infill("ab[MASK:0-2]c", search=LengthSearch(reread=True))
