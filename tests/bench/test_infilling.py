"""Infilling compared: the same holes for every model, a known best filling, and intervals that are paired."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dlm.bench.infilling import Figure, Point, _counting, all_kinds, bench_infilling, entries_of
from dlm.bench.methods import METHODS, How, Method, method
from dlm.bench.passages import Kind, Passage, Texts
from dlm.config import Bpe, Bytes, Characters
from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.network import NetworkInput
from dlm.errors import ConfigError, DataError
from dlm.lm import DiffusionLM
from dlm.lm.canvas import Canvas
from dlm.lm.layout import REACH
from dlm.lm.rereading import Rereader
from dlm.lm.scoring import Score
from dlm.lm.search import LengthSearch
from dlm.model.sentinels import add_sentinels
from dlm.model.text import decode, encode, token_ends
from dlm.model.tokenizer import build_tokenizer
from dlm.template import Hole, parse_template
from tests.support.fixtures import MakeLM, Refused

CYCLE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"
PROSE = "\n".join(f"{'the rain in spain'[: 5 + i % 12]} falls {'mainly ' * (i % 3)}on it" for i in range(60)) + "\n"
QUICK = How(candidates=2, longest=6, draws=2, batch_size=8)


class Cycle(Denoiser):
    """The exact denoiser of a text that repeats `CYCLE`: each symbol follows from the nearest before it."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def __call__(self, inputs: NetworkInput) -> Tensor:
        rows = []
        for place in inputs.index_N.tolist():
            row, at = divmod(place, inputs.ids_BL.shape[1])
            ids = inputs.ids_BL[row].tolist()
            seen = next(i for i in range(at - 1, -1, -1) if ids[i] < len(CYCLE))
            log_p = torch.full((self.vocabulary,), -50.0, dtype=torch.float64)
            log_p[(ids[seen] + at - seen) % len(CYCLE)] = 0.0
            rows.append(log_p.log_softmax(0))
        return torch.stack(rows)


@pytest.fixture(scope="module")
def knowing(make_lm: MakeLM) -> DiffusionLM:
    """A masked model that knows the cycle."""
    lm = make_lm(build_tokenizer(Characters(), lambda: [CYCLE]), 32)
    assert lm.tokenizer.convert_tokens_to_ids(sorted(CYCLE)) == list(range(len(CYCLE)))
    for name in ("scoring", "weighing", "infilling", "ranking"):
        setattr(lm.denoisers, name, Cycle(len(lm.tokenizer)))
    return lm


@pytest.fixture(scope="module")
def models(make_lm: MakeLM) -> dict[str, DiffusionLM]:
    """Random models of every kind, with one tokenizer but for the last."""
    found = {}
    for name in ("masked", "joint", "autoregressive"):
        found[name] = make_lm(build_tokenizer(Bytes(), lambda: ()), 32, readings={"name": name})
    tokenizer = build_tokenizer(Bytes(), lambda: ())
    sentinels = add_sentinels(tokenizer, "psm")
    lm = make_lm(tokenizer, 32, readings={"name": "autoregressive"})
    found["fim"] = DiffusionLM(lm.model, tokenizer, sidecar=replace(lm.sidecar, sentinels=sentinels), precision="fp32")
    return found


def cycle_text() -> str:
    """The symbols in the order of their ids, again and again."""
    return "".join(sorted(CYCLE)) * 8


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", [Kind(4), Kind(4, 2)], ids=lambda kind: kind.name)
def test_a_known_best_filling_is_always_found(kind: Kind, known: bool, knowing: DiffusionLM) -> None:
    """Each hole has fewer tokens than the text's period, so that what stands beside it tells its one filling."""
    entries = entries_of({"exact": knowing}, None, QUICK)
    found = bench_infilling(entries, [cycle_text()], kinds=[kind], lengths=[known], num=6, how=QUICK)
    (point,) = found.points
    assert point.method == "diffusion" and found.finished
    assert point.exact_match.value == point.chrf.value == point.accuracy.value == 1.0
    assert point.length_error.value == 0.0
    assert (point.bits is None) == (not known) and (point.bits is None or abs(point.bits.value) < 1e-9)


@pytest.mark.parametrize("kind", all_kinds((4, 8, "words", "lines"), (1, 3)), ids=lambda kind: kind.name)
def test_passages_are_parts_of_the_text_and_their_spans_what_is_asked_for(kind: Kind) -> None:
    tokenizer = build_tokenizer(Bytes(), lambda: ())
    passages = Texts([PROSE], [(tokenizer, 200)]).passages(kind, 25, 0)
    assert len(passages) == 25
    words, lines = Counter(PROSE.split()), PROSE.splitlines()
    for passage in passages:
        assert "".join(passage.parts) in PROSE and len(passage.spans) == kind.holes and all(passage.parts)
        assert sum(map(len, encode(tokenizer, passage.spans, continues=True))) <= 100
        for before, span, behind in zip(passage.parts[:-1:2], passage.spans, passage.parts[2::2], strict=True):
            if kind.span == "words":
                assert span in words and before[-1].isspace() and behind[0].isspace()
            elif kind.span == "lines":
                assert span in lines and before[-1] == behind[0] == "\n"
            else:
                assert len(span) == kind.span


def test_every_place_is_as_likely() -> None:
    """Chi-square against the uniform distribution, away from the ends, which a window may not reach as often."""
    text, context, count = "abcdefghij" * 20, 16, 1000
    tokenizer = build_tokenizer(Characters(), lambda: [text])
    places: Counter[str] = Counter()
    for passage in Texts([text], [(tokenizer, context)]).passages(Kind(4), count, 3):
        places[passage.spans[0]] += 1
    assert sum((seen - count / 10) ** 2 / (count / 10) for seen in places.values()) < 33.7  # 9 degrees, p = 1e-4
    assert len(places) == 10


def test_documents_are_chosen_by_their_length() -> None:
    tokenizer = build_tokenizer(Bytes(), lambda: ())
    passages = Texts(["a" * 300, "b" * 100, "c"], [(tokenizer, 16)]).passages(Kind(4), 400, 0)
    share = sum(passage.spans == ("aaaa",) for passage in passages) / 400
    assert share == pytest.approx(0.75, abs=0.09)


def test_the_same_spans_for_every_model_and_run_and_others_for_another_seed() -> None:
    tokenizer = build_tokenizer(Bytes(), lambda: ())
    first, again, longer, other = (
        Texts([PROSE], [(tokenizer, 64)]).passages(Kind("words"), count, seed)
        for count, seed in ((20, 0), (20, 0), (30, 0), (20, 1))
    )
    assert first == again == longer[:20] and first != other


@pytest.mark.parametrize("kind", [Kind(4), Kind(2, 3), Kind("words", 3)], ids=lambda kind: kind.name)
def test_what_is_cut_out_fits_every_model_in_its_own_tokens(kind: Kind) -> None:
    long, short = build_tokenizer(Bpe(size=400), lambda: [PROSE * 9]), build_tokenizer(Bytes(), lambda: ())
    for passage in Texts([PROSE], [(long, 48), (short, 64)]).passages(kind, 40, 0):
        for tokenizer, context in ((long, 48), (short, 64)):
            assert sum(map(len, encode(tokenizer, passage.spans, continues=True))) <= context // 2
            assert len(encode(tokenizer, ["".join(passage.parts[1:-1])])[0]) <= 3 * context // 4


def test_spans_that_a_model_does_not_know_are_not_cut_out() -> None:
    some = build_tokenizer(Characters(), lambda: [PROSE.replace("a", "")])
    all_ = build_tokenizer(Characters(), lambda: [PROSE])
    for readers in ([(all_, 64), (some, 64)], [(some, 64), (all_, 64)]):
        passages = Texts([PROSE], readers).passages(Kind(2), 40, 0)
        assert len(passages) == 40 and not any("a" in span for passage in passages for span in passage.spans)


@pytest.mark.parametrize("spec", [Bytes(), Bpe(size=300), Characters()], ids=lambda spec: spec.name)
def test_the_ends_of_tokens_cut_a_text_into_the_text_of_each(spec: Bytes | Bpe | Characters) -> None:
    text = "Für the rain,\n in  Spain — 雨.\n"
    tokenizer = build_tokenizer(spec, lambda: [PROSE, text])
    ends = token_ends(tokenizer, text)
    assert ends == sorted(ends) and ends[-1] == len(text)
    assert "".join(text[a:b] for a, b in pairwise([0, *ends])) == text


def test_every_model_is_asked_by_every_method_that_suits_it(models: dict[str, DiffusionLM]) -> None:
    found = [(name, each.name) for name, _, each in entries_of(models, None, QUICK)]
    assert found == [
        ("masked", "diffusion"),
        *(("joint", name) for name in ("diffusion", "diffusion+rerank", "left", "left+rerank")),
        *(("autoregressive", name) for name in ("left", "left+rerank")),
        *(("fim", name) for name in ("fim", "fim+rerank", "left", "left+rerank")),
    ]


def test_points_of_every_method(models: dict[str, DiffusionLM]) -> None:
    entries = entries_of({name: models[name] for name in ("joint", "fim")}, None, QUICK)
    told: list[tuple[int, int, str]] = []
    found = bench_infilling(
        entries,
        [PROSE],
        kinds=[Kind(2), Kind(64)],
        lengths=[True, False],
        num=2,
        how=QUICK,
        told=lambda *what: told.append(what),
    )
    assert found.skipped == ("64 tokens",) and found.finished and len(found.points) == 2 * len(entries)
    assert [done for done, _, _ in told] == list(range(16)) and {total for _, total, _ in told} == {16}
    for point in found.points:
        assert 0 <= point.exact_match.value <= point.chrf.value <= 1 and point.calls > 0
        assert (point.bits is not None) == (point.known and "rerank" not in point.method)
        assert point.bits_exact == (point.bits is not None and point.method != "diffusion")
    reranked = {point.known: point for point in found.points if point.method == "diffusion+rerank"}
    plain = {point.known: point for point in found.points if (point.model, point.method) == ("joint", "diffusion")}
    # The search of lengths ranks so already.
    assert reranked[False].exact_match == plain[False].exact_match and reranked[False].chrf == plain[False].chrf


def test_a_model_beside_itself_differs_by_exactly_zero(models: dict[str, DiffusionLM]) -> None:
    entries = entries_of({"one": models["fim"], "other": models["fim"]}, [METHODS["fim"]], QUICK)
    found = bench_infilling(entries, [PROSE], kinds=[Kind(3)], lengths=[True, False], num=5, how=QUICK)
    for point in found.points:
        figures = [
            point.exact_match,
            point.chrf,
            point.accuracy,
            point.length_error,
            *([point.bits] if point.bits else []),
        ]
        assert all((figure.difference, figure.difference_interval) == (0.0, (0.0, 0.0)) for figure in figures)


def test_a_paired_difference_has_less_error_than_two_figures() -> None:
    hard_U = torch.rand(400, dtype=torch.float64)
    figure = Figure.of(hard_U + 0.01, torch.ones_like(hard_U), hard_U, 0)
    assert figure.interval is not None and figure.difference_interval is not None
    assert figure.difference == pytest.approx(0.01)
    assert figure.interval[1] - figure.interval[0] > 0.03
    assert figure.difference_interval[1] - figure.difference_interval[0] < 1e-9


def test_spans_that_may_be_longer_than_the_context_are_as_long_as_fits(models: dict[str, DiffusionLM]) -> None:
    entries = entries_of({name: models[name] for name in ("joint", "fim")}, None, QUICK)
    how = replace(QUICK, longest=400)
    found = bench_infilling(entries, [PROSE], kinds=[Kind(2)], lengths=[False], num=2, how=how)
    assert len(found.points) == len(entries) and found.beyond == ()


def test_spans_longer_than_those_of_unknown_length_may_be_are_named(
    models: dict[str, DiffusionLM], refused: Refused
) -> None:
    entries = entries_of({"fim": models["fim"]}, [METHODS["fim"]], QUICK)
    ask = partial(bench_infilling, entries, [PROSE], num=1, how=replace(QUICK, longest=3))
    found = ask(kinds=[Kind(2), Kind(4)], lengths=[True, False])
    assert found.beyond == ("4 tokens",) and found.skipped == () and len(found.points) == 3
    assert ask(kinds=[Kind(2), Kind(4)], lengths=[True]).beyond == ()
    with refused(DataError, "at most 3 tokens", "raise --max-length"):
        ask(kinds=[Kind(4)], lengths=[False])


def test_a_single_draw_is_not_ranked_and_of_unknown_lengths_the_best_is(models: dict[str, DiffusionLM]) -> None:
    entries = entries_of({"masked": models["masked"]}, None, QUICK)
    few, many = (
        bench_infilling(
            entries, [PROSE], kinds=[Kind(2)], lengths=[True, False], num=2, how=replace(QUICK, draws=draws)
        )
        for draws in (2, 16)
    )
    assert few.points[0].calls == many.points[0].calls and few.points[1].calls < many.points[1].calls


def test_a_search_that_two_methods_do_is_measured_once(models: dict[str, DiffusionLM]) -> None:
    """And is what each of them finds alone."""
    joint, methods = {"joint": models["joint"]}, [METHODS["diffusion"], METHODS["diffusion+rerank"]]

    def points(which: Sequence[Method], how: How) -> Sequence[Point]:
        entries = entries_of(joint, which, how)
        return bench_infilling(entries, [PROSE], kinds=[Kind(4)], lengths=[False], num=3, how=how).points

    how = How(longest=5, draws=2)
    one, other = points(methods, how)
    (alone,) = points(methods[1:], how)
    assert one.milliseconds == other.milliseconds
    assert (other.chrf.value, other.calls) == (alone.chrf.value, alone.calls)
    for apart in (replace(how, reread=False), replace(how, candidates=LengthSearch.effort + 1)):
        one, other = points(methods, apart)
        assert one.milliseconds != other.milliseconds


def test_the_chain_rule_is_no_more_than_the_bound(models: dict[str, DiffusionLM]) -> None:
    passages = Texts([PROSE], [(models["masked"].tokenizer, 32)]).passages(Kind(3), 24, 0)
    bound, exact = (
        sum(METHODS["diffusion"].nats(models["masked"], passages, replace(QUICK, draws=64, chain_rule=exact)))  # type: ignore[misc]
        for exact in (False, True)
    )
    # A random network's bound is of all orders together, the exact one of one order: they agree but for some percent.
    assert exact == pytest.approx(bound, rel=0.1) and exact != bound


def test_a_whole_text_is_read_from_its_first_hole_on(models: dict[str, DiffusionLM]) -> None:
    """Fillings are compared by p(span, what is behind | before), which is the text's own less that of its beginning."""
    lm = models["autoregressive"]
    template = parse_template("the [MASK:4] in [MASK:2] falls")
    fillings = [[list(b"rain"), list(b"it")], [list(b"r"), list(b"bombay")]]
    found = lm.filling.rereader().nats(template, fillings)
    assert isinstance(lm.filling.rereader(), Rereader)
    for nats, one, other in zip(found, ("rain", "r"), ("it", "bombay"), strict=True):
        whole, begun = lm.nelbo([f"the {one} in {other} falls", "the "])
        end = [lm.score(text, "").log_likelihood for text in (f"the {one} in {other} falls", "the ")]
        assert nats == pytest.approx(-(whole + end[0]) + (begun + end[1]), abs=1e-3)


def test_fillings_of_different_lengths_are_compared_by_the_same_text_behind(models: dict[str, DiffusionLM]) -> None:
    """`REACH` tokens of it, or half of what the longest leaves room for, where what stands before needs the rest."""
    lm = models["autoregressive"]
    read: list[list[int]] = []

    def noted(canvases: Sequence[Canvas]) -> Iterator[Score]:
        read.clear()
        read.extend([*canvas.ids] for canvas in canvases)
        for canvas in canvases:
            scored = [id_ for id_, editable in zip(canvas.ids, canvas.editable, strict=True) if editable]
            yield Score(float(len(scored)), 0.0, len(scored))

    rereader = replace(lm.filling.rereader(), score=noted)
    room, before, behind = lm.context, b"what is before ", b" behind " * 9
    template = parse_template(f"{before.decode()}[MASK:0-9]{behind.decode()}")
    for longest in (9, room - REACH, room - 3):
        fillings = [[[120] * size] for size in (0, 1, longest)]
        nats = rereader.nats(template, fillings)
        reach = min(REACH, max((room - longest) // 2, room - longest - len(before)))
        given = before[len(before) - min(len(before), room - reach - longest) :]
        assert read == [[*given, *filling[0], *behind[:reach]] for filling in fillings]
        assert nats == [len(filling[0]) + reach for filling in fillings] and max(map(len, read)) <= room


def test_calls_are_counted_by_their_rows_and_no_longer_than_asked(knowing: DiffusionLM) -> None:
    ids_BL = torch.zeros(3, 5, dtype=torch.long)
    embedded_BLD = knowing.model.get_input_embeddings()(ids_BL[:2])
    with _counting(knowing) as calls, torch.inference_mode():
        knowing.model(input_ids=ids_BL)
        knowing.model(inputs_embeds=embedded_BLD)
        assert calls == [3, 2]
    knowing.model(input_ids=ids_BL)
    assert calls == [3, 2] and not knowing.model.base_model._forward_pre_hooks


def test_reranking_takes_the_likeliest_candidate(models: dict[str, DiffusionLM]) -> None:
    lm, template = models["autoregressive"], parse_template("the ra[MASK:2] in")
    how = replace(QUICK, candidates=8)
    ((span,),) = METHODS["left+rerank"].fill(lm, {0: template}, how)
    tried = next(lm.filling.by_next_tokens(how.sampler, None, 0, 8).fill({0: template}, 8))
    best = max(tried, key=lambda one: lm.filling.rereader().nats(template, [one.ids])[0])
    assert span == best.spans[0] and len({one.spans for one in tried}) > 1


@pytest.mark.parametrize("text", ["the ra[MASK:2] in", "the ra[MASK:2] in sp[MASK:3] falls"])
def test_reranked_diffusion_takes_the_candidate_that_the_causal_reading_finds_likeliest(
    text: str, models: dict[str, DiffusionLM]
) -> None:
    """Of all holes together, each candidate being what it is alone."""
    lm, template = models["joint"], parse_template(text)
    how = replace(QUICK, candidates=8)
    (spans,) = METHODS["diffusion+rerank"].fill(lm, {5: template}, how)
    search = LengthSearch(reread=False)
    tried = next(lm.infill_each({5: template}, num=8, sampler=how.sampler, search=search, draws=2))
    nats = lm.filling.rereader().nats(template, [one.ids for one in tried])
    best = tried[nats.index(max(nats))]
    if len(best.spans) == 1:
        assert spans == best.spans
    else:  # holes of different candidates come together
        ids_of = [{one.spans[hole]: one.ids[hole] for one in tried} for hole in range(len(spans))]
        ids = [known[span] for known, span in zip(ids_of, spans, strict=True)]
        (mixed,) = lm.filling.rereader().nats(template, [ids])
        assert mixed >= max(nats) - 1e-3
        others = [[*ids[:hole], span, *ids[hole + 1 :]] for hole, known in enumerate(ids_of) for span in known.values()]
        assert mixed >= max(lm.filling.rereader().nats(template, others)) - 1e-3  # no hole is better in another
    assert len({one.spans for one in tried}) > 4
    likeliest = tried[0].spans  # by the bound of the spans given the rest
    (first,) = METHODS["diffusion"].fill(lm, {5: template}, how)
    assert first in [one.spans for one in tried] and len({spans, likeliest, first}) > 1
    ((drawn,),) = lm.infill_each({5: template}, sampler=how.sampler, search=search, draws=2)
    assert first == drawn.spans
    # --no-reread is for what `diffusion` does.
    assert [*METHODS["diffusion+rerank"].fill(lm, {5: template}, replace(how, reread=False))] == [spans]


def test_a_continuation_of_unknown_length_is_cut_where_what_stands_behind_is_likeliest(
    models: dict[str, DiffusionLM],
) -> None:
    lm, template = models["autoregressive"], parse_template("the [MASK:1-6] in")
    ((span,),) = METHODS["left"].fill(lm, {0: template}, QUICK)
    (whole,) = next(
        lm.filling.by_next_tokens(QUICK.sampler, None, 0, 8).fill({0: parse_template("the [MASK:6] in")}, 1)
    )
    cuts = [whole.ids[0][:n] for n in range(1, 7)]
    nats = lm.filling.rereader().nats(template, [[cut] for cut in cuts])
    assert whole.spans[0].startswith(span) and len(cuts[nats.index(max(nats))]) == len(span.encode())


def test_rereading_is_refused_where_there_is_no_causal_reading(
    models: dict[str, DiffusionLM], refused: Refused
) -> None:
    template = {0: parse_template("the [MASK] in")}
    how = replace(QUICK, reread=True)
    assert [*METHODS["diffusion"].fill(models["joint"], template, how)]
    with refused(ConfigError, "--reread"):
        METHODS["diffusion"].fill(models["masked"], template, how)
    with refused(ConfigError, "masked: --reread"):  # before anything is measured
        entries_of({each: models[each] for each in ("joint", "masked")}, None, how)


def test_what_was_measured_before_an_interrupt_is_kept(
    models: dict[str, DiffusionLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = entries_of({"fim": models["fim"]}, [METHODS["fim"]], QUICK)

    def told(done: int, total: int, what: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    found = bench_infilling(entries, [PROSE], kinds=[Kind(2)], lengths=[True, False], num=2, how=QUICK, told=told)
    assert not found.finished and [point.known for point in found.points] == [True]


def test_what_cannot_be_compared_is_refused(models: dict[str, DiffusionLM], refused: Refused) -> None:
    with refused(ConfigError, "middle", "diffusion", "left+rerank"):
        method("middle")
    with refused(ConfigError, "fim", "none of these models"):
        entries_of({"masked": models["masked"]}, [METHODS["diffusion"], METHODS["fim"]], QUICK)
    with refused(ConfigError, "masked", "--methods"):
        entries_of({name: models[name] for name in ("masked", "fim")}, [METHODS["fim"]], QUICK)
    with refused(ConfigError, "temperature 0"):
        entries_of(models, [METHODS["left+rerank"]], replace(QUICK, temperature=0.0))
    greedy = {each.name for _, _, each in entries_of(models, None, replace(QUICK, temperature=0.0))}
    assert greedy == {"diffusion", "fim", "left"}
    with refused(DataError, "26 tokens", "--spans"):
        entries = entries_of({"masked": models["masked"]}, None, QUICK)
        bench_infilling(entries, ["short"], kinds=[Kind(2)], lengths=[True], num=2, how=QUICK)


def test_the_words_of_kinds() -> None:
    assert [kind.name for kind in all_kinds((4, "words"), (1, 3))] == ["4 tokens", "words", "3 x 4 tokens", "3 x words"]
    assert re.fullmatch(r"\w+( tokens)?", Kind(16).name) and math.isfinite(len(all_kinds()))


CODE = """class Point:
    def __init__(self, x):
        self.x = x

    def moved(self):

        return Point(self.x + 1)

def main():
    print(Point(3).moved())
"""


@pytest.fixture(scope="module")
def coder(make_lm: MakeLM) -> DiffusionLM:
    """A model whose tokens join blanks to words, and line breaks to indentations."""
    return make_lm(build_tokenizer(Bpe(size=420), lambda: [CODE] * 20), 48, readings={"name": "joint"})


@pytest.mark.parametrize("kind", [Kind("words"), Kind("lines"), Kind(2), Kind("words", 2)], ids=lambda kind: kind.name)
def test_what_is_known_of_a_passage_is_what_its_tokens_spell(kind: Kind, coder: DiffusionLM) -> None:
    led = 0
    for passage in Texts([CODE], [(coder.tokenizer, 40)]).passages(kind, 25, 0):
        for layout in (coder.layout, coder.layout.one_by_one):
            known = passage.known(layout)
            spelled = "".join(decode(coder.tokenizer, ids) for ids in known.ids)
            leads = layout.leads(known.template)
            assert known.characters == len(spelled) and all(map(str.endswith, [spelled], [passage.spans[-1]]))
            assert spelled == "".join(
                (lead.text if lead else "") + span for lead, span in zip(leads, passage.spans, strict=True)
            )
            holes = [part for part in known.template if isinstance(part, Hole)]
            counts = [len(ids) - (lead.own if lead else 0) for ids, lead in zip(known.ids, leads, strict=True)]
            assert [hole.lengths for hole in holes] == [range(count, count + 1) for count in counts]
            led += any(leads)
    assert led or kind.span == 2


@pytest.mark.parametrize("name", ["left", "left+rerank", "diffusion"])
def test_no_method_writes_the_end_of_the_text_alone(name: str, coder: DiffusionLM) -> None:
    one, how = method(name), How(candidates=3, draws=2, longest=4)
    before = "class Point:\n    def moved(self):\n"
    for text in (before, before + "\n", before + "        self.x ="):
        passage = Passage((text, "        return x", "\n\ndef main():\n    print(Point(3).moved())"))
        known = passage.known(one.layout(coder)).template
        for template in (known, passage.template(None, 4)):
            for number in range(4):
                ((span,),) = one.fill(coder, {number: template}, replace(how, seed=number))
                assert span
