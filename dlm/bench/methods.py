"""The methods of infilling that are compared, by name. A new one is one function here, and its row in `METHODS`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dlm.bench.passages import Passage
from dlm.diffusion.draws import generator
from dlm.diffusion.readings import AnyReadings
from dlm.diffusion.unmask import LeftToRight, TokenChoice
from dlm.errors import ConfigError
from dlm.lm import DiffusionLM, Infilling, Sampler
from dlm.lm.canvas import stack, written_text
from dlm.lm.layout import Layout
from dlm.lm.parts import own_of
from dlm.lm.rows import in_batches
from dlm.lm.scoring import score_rows
from dlm.lm.search import LengthSearch
from dlm.model.sentinels import Sentinels
from dlm.template import Hole, Template, holes_of, is_open

FEWEST = 2
"""The fewest masked copies that a bound is estimated from: two that complement each other."""


@dataclass(frozen=True)
class How:
    """How a method fills holes.

    Attributes:
        temperature: Divides the log-probabilities; 0 takes the likeliest token.
        candidates: The fillings of a passage that are re-ranked.
        longest: The most tokens of a hole of unknown length.
        length_top_p: The likeliest lengths that together have this probability are filled; see `LengthSearch`.
        draws: Masked copies of a passage that a bound is estimated from.
        reread: Whether `diffusion` ranks fillings of unknown length by the causal reading; see `LengthSearch`.
        chain_rule: Whether the likelihood of masks is exact, by the chain rule from left to right.
        seed: Texts and masks follow from it.
        batch_size: Passages filled side by side.
    """

    temperature: float = 1.0
    candidates: int = 8
    longest: int = 32
    length_top_p: float = LengthSearch.top_p
    draws: int = 16
    reread: bool | None = None
    chain_rule: bool = False
    seed: int = 0
    batch_size: int = 16

    @property
    def sampler(self) -> Sampler:
        """The default sampler of a model, at this temperature."""
        return Sampler(token=TokenChoice(self.temperature))


Fill = Callable[[DiffusionLM, Mapping[int, Template], How], Iterator[tuple[str, ...]]]
"""(model, passages with holes by number, how) -> what is written into the holes of each."""

Nats = Callable[[DiffusionLM, Sequence[Passage], How], list[float]]
"""(model, passages, how) -> -log p of the spans that stood there, their lengths known."""


@dataclass(frozen=True)
class Method:
    """A way of filling holes.

    Attributes:
        name: As it is asked for.
        fill: Fills the holes of passages.
        nats: How likely what stood there is; None for a method that has no likelihood of its own.
        draws: Whether it needs several candidates that differ.
    """

    name: str
    fill: Fill
    nats: Nats | None
    draws: bool = False

    def suits(self, readings: AnyReadings, *, middle: bool) -> bool:
        """Whether a model can fill by it.

        Args:
            readings: The model's.
            middle: Whether it was trained for fill-in-the-middle.

        Returns:
            Whether it can.
        """
        if self.at_once:
            return readings.any_order and (readings.causal or not self.draws)
        return middle if self.name.startswith("fim") else readings.causal

    def layout(self, lm: DiffusionLM) -> Layout:
        """How it makes rows of texts."""
        return lm.layout if self.at_once else lm.layout.one_by_one

    @property
    def at_once(self) -> bool:
        """Whether it fills all holes at once, rather than by next tokens."""
        return self.name.startswith("diffusion")

    def searches_as(self, other: "Method", how: How) -> bool:
        """Whether a method fills holes of unknown length by the same search as another.

        Args:
            other: The other method, of the same model.
            how: How both fill holes.

        Returns:
            Whether it does: a search ranks what it tries, as much of it as candidates are asked for.
        """
        searches = self.at_once and other.at_once
        return searches and how.reread is not False and how.candidates <= LengthSearch.effort


def _diffusion(*, ranked: bool) -> Fill:
    """All holes at once, by the default of `dlm infill`: the likeliest of several candidates, or a single draw.

    Where lengths are searched, as many fillings are tried as a search does by itself, or more if more are asked for.
    """

    def written(lm: DiffusionLM, templates: Mapping[int, Template], how: How) -> Iterator[tuple[str, ...]]:
        one = not ranked and not any(map(is_open, templates.values()))
        found = lm.infill_each(
            templates,
            sampler=how.sampler,
            seed=how.seed,
            batch_size=how.batch_size,
            draws=FEWEST if one else how.draws,  # a single draw is ranked with no other
            search=LengthSearch(
                effort=max(LengthSearch.effort, how.candidates) if ranked else LengthSearch.effort,
                tries=how.candidates if ranked else 1,
                reread=True if ranked else how.reread,
                top_p=how.length_top_p,
            ),
        )
        return (alternatives[0].spans for alternatives in found)

    return written


def _diffusion_nats(lm: DiffusionLM, passages: Sequence[Passage], how: How) -> list[float]:
    estimator = lm.estimator(LeftToRight().name if how.chain_rule else "any-order", how.draws)
    nats: list[float] = []
    for batch in in_batches([*enumerate(passages)], how.batch_size):
        canvases = []
        for _, passage in batch:
            known = passage.known(lm.layout)
            canvases.append(lm.layout.holes(known.template).written(known.ids))
        x0_BL, editable_BL = (x_BL.to(lm.arithmetic_device) for x_BL in stack(canvases, lm.pad_id))
        streams = [generator(how.seed, "infilling", number) for number, _ in batch]
        scores = score_rows(lm.denoisers.ranking, lm.process, estimator, x0_BL, editable_BL, streams)
        nats += [-score.log_likelihood for score in scores]
    return nats


def _by_next_tokens(*, middle: bool, ranked: bool) -> Fill:
    """Hole after hole, behind both sides or the left one; the likeliest of several candidates, or the only one."""

    def written(lm: DiffusionLM, templates: Mapping[int, Template], how: How) -> Iterator[tuple[str, ...]]:
        filler = lm.filling.by_next_tokens(how.sampler, sentinels_of(lm, middle=middle), how.seed, how.batch_size)
        num = how.candidates if ranked else 1
        parts = {number: [*template] for number, template in templates.items()}
        spans: dict[int, list[str]] = {number: [] for number in templates}
        while asked := {number: one for number, each in parts.items() if (one := _next_hole(each)) is not None}:
            # Only what stands behind says where a continuation ends: it is written as long as may be, and cut.
            filled = asked if middle else {number: _longest(filler.fitting(each)) for number, each in asked.items()}
            for (number, template), found in zip(asked.items(), filler.fill(filled, num), strict=True):
                cut = is_open(template) and not middle
                span = _likeliest(lm, template, found, how, cut=cut) if ranked or cut else found[0].spans[0]
                spans[number].append(span)
                place = min(holes_of(parts[number]))
                parts[number][place] = span
            filler = replace(filler, seed=generator(filler.seed, "next hole").initial_seed())
        return (tuple(each) for each in spans.values())

    return written


def _nats_of_next_tokens(*, middle: bool) -> Nats:
    """The exact likelihood of each hole, after those before it."""

    def nats(lm: DiffusionLM, passages: Sequence[Passage], how: How) -> list[float]:
        filler = lm.filling.by_next_tokens(None, sentinels_of(lm, middle=middle), how.seed, how.batch_size)
        filler = replace(filler, layout=lm.layout)  # nothing is written, so that all methods have the same leads
        known = [passage.known(filler.layout) for passage in passages]
        return [-each for each in filler.nats([each.template for each in known], [each.ids for each in known])]

    return nats


METHODS = {
    method.name: method
    for method in (
        Method("diffusion", _diffusion(ranked=False), _diffusion_nats),
        Method("diffusion+rerank", _diffusion(ranked=True), None, draws=True),
        Method("fim", _by_next_tokens(middle=True, ranked=False), _nats_of_next_tokens(middle=True)),
        Method("fim+rerank", _by_next_tokens(middle=True, ranked=True), None, draws=True),
        Method("left", _by_next_tokens(middle=False, ranked=False), _nats_of_next_tokens(middle=False)),
        Method("left+rerank", _by_next_tokens(middle=False, ranked=True), None, draws=True),
    )
}
"""Every method: all holes at once by diffusion, by fill-in-the-middle, or from the left alone."""


def method(name: str) -> Method:
    """The method of a name.

    Args:
        name: As in `METHODS`.

    Returns:
        The method.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in METHODS:
        raise ConfigError(f"--methods: there is no method {name!r}; valid: {', '.join(METHODS)}")
    return METHODS[name]


def sentinels_of(lm: DiffusionLM, *, middle: bool) -> Sentinels | None:
    """The sentinels of a model, where it is to read what stands behind a hole."""
    return lm.sidecar.sentinels if middle else None


def _next_hole(parts: Sequence[str | Hole]) -> Template | None:
    """The first hole, with what stands before it and what stands behind it up to the next; None where none is left."""
    place = min(holes_of(parts), default=None)
    if place is None:
        return None
    before = "".join(part for part in parts[:place] if isinstance(part, str))
    return tuple(part for part in (before, *parts[place : place + 2]) if part)


def _longest(template: Template) -> Template:
    """A template whose holes of unknown length have the most tokens that they may have."""
    return tuple(Hole(part.lengths[-1]) if isinstance(part, Hole) else part for part in template)


def _likeliest(lm: DiffusionLM, template: Template, found: Sequence[Infilling], how: How, *, cut: bool) -> str:
    """The candidate that the causal reading finds likeliest together with what stands behind it.

    Where candidates may be cut, each of their beginnings is one.
    """
    whole = {each.ids[0]: None for each in found}
    layout = lm.layout.one_by_one
    parts = layout.parts(template)
    fewest = 1 + own_of(parts.leads[1])
    ids = [*{each[:n]: None for each in whole for n in range(fewest, len(each) + 1)}] if cut else [*whole]
    nats = lm.filling.rereader(4 * how.batch_size, layout).nats(template, [[each] for each in ids])
    best = ids[max(range(len(ids)), key=nats.__getitem__)]
    before, behind = (template[0], template[-1])
    assert isinstance(before, str) and isinstance(behind, str)
    place = range(len(parts.ids[0]), len(parts.ids[0]) + len(best))
    return written_text(lm.tokenizer, [*parts.ids[0], *best], place, before, behind, parts.leads[1])
