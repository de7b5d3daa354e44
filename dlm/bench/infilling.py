"""Infilling beside its alternatives: models and methods on the same holes of one text."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dlm.bench.methods import METHODS, How, Method
from dlm.bench.passages import NAMED, TOKENS, Kind, Passage, Texts
from dlm.errors import ConfigError, DataError
from dlm.evaluate.bootstrap import Interval, Ratio
from dlm.evaluate.matching import character_accuracy, chrf
from dlm.evaluate.readings import Told
from dlm.lm import DiffusionLM
from dlm.lm.search import NOT_REREAD

BIT = 0.6931471805599453
"""Nats of a bit."""


@dataclass(frozen=True)
class Figure:
    """A figure of one model and method, and how it differs from that of the first.

    Attributes:
        value: Its value.
        interval: Its 95% bootstrap interval, by passage; None of a single one.
        difference: It less that of the first model and method; None where that has none.
        difference_interval: The interval of that, both resampled together.
    """

    value: float
    interval: Interval | None
    difference: float | None
    difference_interval: Interval | None

    @classmethod
    def of(cls, above_U: torch.Tensor, below_U: torch.Tensor, first_U: torch.Tensor | None, seed: int) -> "Figure":
        """A ratio of two sums over passages.

        Args:
            above_U: What each passage adds above, and
            below_U: below.
            first_U: What it adds above for the first model and method; None where that has no such figure.
            seed: Decides the bootstrap.

        Returns:
            The figure.
        """
        own = Ratio.of(above_U, below_U, seed)
        if first_U is None:
            return cls(own.value, own.interval, None, None)
        apart = Ratio.of(above_U - first_U, below_U, seed)
        return cls(own.value, own.interval, apart.value, apart.interval)


@dataclass(frozen=True)
class Point:
    """One model and method on the passages of one kind.

    Attributes:
        kind: What the holes are; see `dlm.bench.passages.Kind`.
        holes: Holes of a passage.
        known: Whether the lengths of the holes are given.
        model: The model's name.
        method: The method's name.
        passages: How many passages.
        exact_match: The share of holes filled with exactly what stood there.
        accuracy: The mean share of characters in their places.
        chrf: The mean chrF2 of a hole, from 0 to 1.
        length_error: The mean of how many characters more or fewer were written.
        bits: Bits a character of what stood there, with the blanks before it that are written again; None of lengths
            that are not given, and of methods that re-rank.
        bits_exact: Whether they are there and exact, rather than an upper bound.
        calls: Rows that the network read for a hole, on average: those written, weighed and ranked.
        milliseconds: The time of a hole, on average, many passages side by side.
    """

    kind: str
    holes: int
    known: bool
    model: str
    method: str
    passages: int
    exact_match: Figure
    accuracy: Figure
    chrf: Figure
    length_error: Figure
    bits: Figure | None
    bits_exact: bool
    calls: float
    milliseconds: float


@dataclass(frozen=True)
class Infillings:
    """What was compared.

    Attributes:
        seed: The passages, the texts and the masks follow from it.
        num: Passages of each kind.
        temperature: Divides the log-probabilities.
        candidates: Fillings that are re-ranked.
        longest: The most tokens of a hole of unknown length.
        length_top_p: The likeliest lengths that together have this probability are filled.
        device: cpu, cuda or mps.
        contexts: The context of each model, in its tokens.
        skipped: Kinds of spans that do not fit.
        beyond: Kinds whose spans are longer than those of unknown length may be, and are not filled as such.
        finished: Whether it ran to its end.
        points: A point for each kind, known or not, model and method, in this order.
    """

    seed: int
    num: int
    temperature: float
    candidates: int
    longest: int
    length_top_p: float
    device: str
    contexts: dict[str, int]
    skipped: tuple[str, ...]
    beyond: tuple[str, ...]
    finished: bool
    points: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Measured:
    """What each passage adds, of one model and method."""

    matches_U: torch.Tensor
    accuracy_U: torch.Tensor
    chrf_U: torch.Tensor
    length_U: torch.Tensor
    nats_U: torch.Tensor | None
    calls: int
    seconds: float


Entry = tuple[str, DiffusionLM, Method]
"""A model by name, and a method that suits it."""


def entries_of(models: dict[str, DiffusionLM], methods: Sequence[Method] | None, how: How) -> list[Entry]:
    """The models and the methods that suit them.

    Args:
        models: The models by name.
        methods: Which are asked for; None for all that suit.
        how: How they fill holes.

    Returns:
        Each model with each of its methods, in the order of both.

    Raises:
        ConfigError: A method suits no model, a model has none of them, or candidates would all be the same.
    """
    found = [
        (name, lm, method)
        for name, lm in models.items()
        for method in methods or METHODS.values()
        if method.suits(lm.formulation.readings, middle=lm.sidecar.sentinels is not None)
        and not (method.draws and not how.temperature and methods is None)
    ]
    for method in methods or ():
        if method.draws and not how.temperature:
            raise ConfigError(
                f"--methods: {method.name} ranks candidates, which are all the same at temperature 0: raise "
                "--temperature, or leave it out"
            )
        if not any(each is method for _, _, each in found):
            raise ConfigError(f"--methods: {method.name} suits none of these models: leave it out")
    if how.reread:
        for name, lm, method in found:
            if method.name == "diffusion" and not lm.formulation.readings.causal:
                raise ConfigError(f"{name}: {NOT_REREAD}")
    for name in models:
        if not any(each == name for each, _, _ in found):
            raise ConfigError(
                f"{name} fills no holes by any of these methods: leave it out, or name others by --methods"
            )
    return found


def bench_infilling(
    entries: Sequence[Entry],
    texts: Sequence[str],
    *,
    kinds: Sequence[Kind],
    lengths: Sequence[bool],
    num: int,
    how: How,
    told: Told | None = None,
) -> Infillings:
    """Fills the same holes by each model and method. Ctrl-C ends it, and what is finished by then is reported.

    Args:
        entries: The models and methods; differences are taken from the first.
        texts: The documents that the holes are cut from; no model should have been trained on them.
        kinds: What the holes are.
        lengths: Whether lengths are given: one or both.
        num: Passages of each kind.
        how: How holes are filled.
        told: Called before every part.

    Returns:
        The points.

    Raises:
        DataError: No kind fits the text and the contexts, or what is to be filled.
    """
    models = {name: lm for name, lm, _ in entries}
    source = Texts(texts, [(lm.tokenizer, lm.context - len(lm.sidecar.affixes)) for lm in models.values()])
    context = source.context
    chosen = {kind: found for kind in kinds if (found := source.passages(kind, num, how.seed))}
    if not chosen:
        raise DataError(
            f"none of these spans fit: those of a passage take at most {context // 2} tokens, half of the context, and "
            f"it needs a document of {3 * context // 4 + 2} tokens; give other spans by --spans, or longer text"
        )
    beyond = [kind for kind in chosen if isinstance(kind.span, int) and kind.span > how.longest and False in lengths]
    parts = [(kind, known) for kind in chosen for known in lengths if known or kind not in beyond]
    if not parts:
        raise DataError(
            f"spans of unknown length have at most {how.longest} tokens, and these have more: raise --max-length, or "
            "ask for --lengths known"
        )
    points: list[Point] = []
    finished = False
    try:
        for place, (kind, known) in enumerate(parts):
            points += _points(entries, kind, known, chosen[kind], how, _within(told, place, len(parts), len(entries)))
        finished = True
    except KeyboardInterrupt:
        if not points:
            raise
    return Infillings(
        seed=how.seed,
        num=num,
        temperature=how.temperature,
        candidates=how.candidates,
        longest=how.longest,
        length_top_p=how.length_top_p,
        device=entries[0][1].device.type,
        contexts={name: lm.context for name, lm in models.items()},
        skipped=tuple(kind.name for kind in kinds if kind not in chosen),
        beyond=tuple(kind.name for kind in beyond),
        finished=finished,
        points=tuple(points),
    )


def all_kinds(spans: Sequence[int | str] = (*TOKENS, *NAMED), holes: Sequence[int] = (1, 3)) -> list[Kind]:
    """Every kind of spans, with every number of holes."""
    return [Kind(span, count) for count in holes for span in spans]


def _within(told: Told | None, place: int, parts: int, entries: int) -> Callable[[int, str], None]:
    """Tells of an entry within a part."""

    def tell(number: int, what: str) -> None:
        if told:
            told(place * entries + number, parts * entries, what)

    return tell


def _points(
    entries: Sequence[Entry],
    kind: Kind,
    known: bool,
    passages: Sequence[Passage],
    how: How,
    told: Callable[[int, str], None],
) -> list[Point]:
    """A point for each model and method."""
    measured: list[_Measured] = []
    for number, (name, lm, method) in enumerate(entries):
        told(number, f"{kind.name}, {'known' if known else 'unknown'} length: {name} {method.name}")
        same = (
            i for i, (other, _, one) in enumerate(entries[:number]) if other == name and method.searches_as(one, how)
        )
        found = None if known else next(same, None)
        measured.append(_measure(lm, method, passages, how, known=known) if found is None else measured[found])
    return [
        _point(entry, kind, known, passages, each, measured[0], how)
        for entry, each in zip(entries, measured, strict=True)
    ]


def _measure(lm: DiffusionLM, method: Method, passages: Sequence[Passage], how: How, *, known: bool) -> _Measured:
    """Fills the holes of passages by one method, and compares what it writes with what stood there."""
    templates = {
        number: passage.known(method.layout(lm)).template if known else passage.template(None, how.longest)
        for number, passage in enumerate(passages)
    }
    with _counting(lm) as calls:
        began = time.perf_counter()
        written = [*method.fill(lm, templates, how)]
        seconds = time.perf_counter() - began
    pairs = [[*zip(spans, passage.spans, strict=True)] for spans, passage in zip(written, passages, strict=True)]
    nats = method.nats(lm, passages, how) if known and method.nats else None

    def summed(of: Callable[[str, str], float]) -> torch.Tensor:
        return torch.tensor([sum(of(*pair) for pair in each) for each in pairs], dtype=torch.float64)

    return _Measured(
        summed(lambda a, b: float(a == b)),
        summed(character_accuracy),
        summed(chrf),
        summed(lambda a, b: float(abs(len(a) - len(b)))),
        None if nats is None else torch.tensor(nats, dtype=torch.float64),
        sum(calls),
        seconds,
    )


@contextmanager
def _counting(lm: DiffusionLM) -> Iterator[list[int]]:
    """A list that grows by the rows of every call of the network."""
    calls: list[int] = []

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        read = kwargs.get("input_ids")
        calls.append(len(kwargs["inputs_embeds"] if read is None else read))

    handle = lm.model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _point(
    entry: Entry,
    kind: Kind,
    known: bool,
    passages: Sequence[Passage],
    own: _Measured,
    first: _Measured,
    how: How,
) -> Point:
    """What is known of an entry, beside the first."""
    name, lm, method = entry
    holes_U = torch.full((len(passages),), float(kind.holes), dtype=torch.float64)
    bits = None
    if own.nats_U is not None:
        characters_U = torch.tensor([passage.known(lm.layout).characters for passage in passages], dtype=torch.float64)
        bits = Figure.of(own.nats_U / BIT, characters_U, None if first.nats_U is None else first.nats_U / BIT, how.seed)
    return Point(
        kind=kind.name,
        holes=kind.holes,
        known=known,
        model=name,
        method=method.name,
        passages=len(passages),
        exact_match=Figure.of(own.matches_U, holes_U, first.matches_U, how.seed),
        accuracy=Figure.of(own.accuracy_U, holes_U, first.accuracy_U, how.seed),
        chrf=Figure.of(own.chrf_U, holes_U, first.chrf_U, how.seed),
        length_error=Figure.of(own.length_U, holes_U, first.length_U, how.seed),
        bits=bits,
        bits_exact=bits is not None and (method.name != "diffusion" or how.chain_rule),
        calls=own.calls / float(holes_U.sum()),
        milliseconds=1000 * own.seconds / float(holes_U.sum()),
    )
