"""Quality against speed: models and samplers side by side, in one process."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from dlm.bench.kinds import Family, Kind, suitable, suits
from dlm.bench.models import Model, Texts, open_model, place_of, write_texts
from dlm.bench.stopwatch import Stopwatch
from dlm.diffusion.unmask import TokenChoice
from dlm.errors import ConfigError
from dlm.evaluate.readings import Told
from dlm.evaluate.samples import (
    Judge,
    Judged,
    distinct_share,
    judge_texts,
    ratio_with_error,
    repeated_share,
    same_tokens,
    unigram_entropy,
)
from dlm.model.weights import Dtype, Quantization
from dlm.plain import finite


@dataclass(frozen=True)
class Point:
    """One model and sampler, at one temperature and batch size.

    Attributes:
        model: The model's name.
        sampler: The sampler's name; see `dlm.bench.kinds`.
        family: What the sampler is one of.
        temperature: Divides the log-probabilities.
        batch_size: Texts written side by side.
        tokens: Tokens of all texts, up to the end of each.
        seconds: The median time of writing all texts.
        fastest: The shortest time.
        slowest: The longest time.
        tokens_per_second: Tokens over the median time.
        calls: Network calls for all texts, each for those written side by side.
        calls_per_text: Network calls that a text takes part in, on average.
        tokens_per_call: Tokens of one text that a call adds, on average.
        nats_per_token: -log p by the judge, or its bound, a token of the judge.
        nats_per_token_se: Its standard error, by text; nan for one text.
        nats_per_byte: The same a byte.
        nats_per_byte_se: Its standard error.
        judged_tokens: Tokens of the judge.
        entropy: Unigram entropy of a text in nats, the mean of all texts; tokens are the model's own.
        entropy_se: Its standard error.
        repeated: The share of 4-grams that came before in their text.
        distinct: Different 4-grams of all texts over all 4-grams.
        encoded_anew: Whether the judge's tokenizer is another than the model's, or than that of another model.
        unknown: Tokens that stand for characters that the judge does not know.
        cut: Texts longer than the judge's context, which were judged in pieces.
    """

    model: str
    sampler: str
    family: Family
    temperature: float
    batch_size: int
    tokens: int
    seconds: float
    fastest: float
    slowest: float
    tokens_per_second: float
    calls: int
    calls_per_text: float
    tokens_per_call: float
    nats_per_token: float
    nats_per_token_se: float
    nats_per_byte: float
    nats_per_byte_se: float
    judged_tokens: int
    entropy: float
    entropy_se: float
    repeated: float
    distinct: float
    encoded_anew: bool
    unknown: int
    cut: int


@dataclass(frozen=True)
class Frontier:
    """What was compared.

    Attributes:
        judge: The judge's name.
        judge_reading: How it reads a text.
        judge_exact: Whether its nats are exactly -log p, or an upper bound.
        judge_is_compared: Whether it is one of the models compared, whose own texts it may favour.
        encoded_anew: Whether texts were decoded and encoded by the judge's tokenizer, as it is not that of all models.
        device: cpu, cuda or mps.
        threads: Number of CPU threads that torch uses.
        num: Texts of each point.
        length: Tokens asked for a text.
        repeats: Timed passes of each point.
        seed: The texts follow from it.
        points: A point for each model, temperature, batch size and sampler, in this order.
    """

    judge: str
    judge_reading: str
    judge_exact: bool
    judge_is_compared: bool
    encoded_anew: bool
    device: str
    threads: int
    num: int
    length: int
    repeats: int
    seed: int
    points: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for strict JSON: None for what is not a number, such as the error of one text."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain


@dataclass(frozen=True)
class _Entry:
    """What is timed."""

    model: Model
    kind: Kind
    temperature: float
    batch_size: int

    def write(self, num: int, length: int, seed: int) -> Texts:
        """Writes all texts."""
        if self.kind.sampler is None:
            assert self.model.plain is not None
            return self.model.plain.write(
                num=num, length=length, temperature=self.temperature, batch_size=self.batch_size, seed=seed
            )
        assert self.model.lm is not None
        sampler = replace(self.kind.sampler, token=TokenChoice(self.temperature))
        return write_texts(
            self.model.lm, num=num, length=length, sampler=sampler, batch_size=self.batch_size, seed=seed
        )


def chosen(models: Sequence[Model], asked: Sequence[Kind] | None) -> list[tuple[Model, Kind]]:
    """The samplers of each model.

    Args:
        models: The models.
        asked: The samplers to choose from; None for those that suit each model.

    Returns:
        Pairs of a model and a sampler, in the order of both.

    Raises:
        ConfigError: A model has none of the samplers, or a sampler suits no model.
    """
    pairs: list[tuple[Model, Kind]] = []
    for model in models:
        formulation = model.lm.formulation if model.lm else None
        kinds = suitable(formulation) if asked is None else asked
        own = [each for each in kinds if suits(each, formulation, plain=model.plain is not None)]
        if not own:
            readings = formulation.readings.name if formulation else "autoregressive"
            raise ConfigError(
                f"no sampler of --samplers suits {model.name}, whose readings are {readings}: leave it out"
            )
        pairs += [(model, each) for each in own]
    used = {each.name for _, each in pairs}
    for each in asked or ():
        if each.name not in used:
            raise ConfigError(f"--samplers: {each.name} suits none of the models: leave it out")
    return pairs


def default_judge(models: Sequence[Model]) -> Model:
    """The first autoregressive model, or else the first with a causal reading.

    Args:
        models: The models that are compared.

    Returns:
        One of them.

    Raises:
        ConfigError: None of them reads from left to right.
    """
    by_preference = [*(m for m in models if m.autoregressive), *(m for m in models if m.causal)]
    if not by_preference:
        raise ConfigError(
            "none of these models reads from left to right, and so none judges the texts: name a model that does by "
            f"--judge, or have a masked one judge by its bound, as in --judge {models[0].name}"
        )
    return by_preference[0]


def open_models(
    names: Sequence[str],
    judge: str | None = None,
    *,
    samplers: Sequence[Kind] | None = None,
    device: str | None = None,
    dtype: Dtype = "auto",
    load: Quantization | None = None,
) -> tuple[list[Model], Model]:
    """Loads the models that are compared, and what judges them, each once.

    Args:
        names: Run folders, checkpoint folders or Hub names.
        judge: Another, or one of them; by default `default_judge`.
        samplers: The samplers to choose from; by default those that suit each model.
        device: Where to put them; a GPU where there is one by default.
        dtype: What the weights are held in and the networks compute in.
        load: Quantise the weights to 4 or 8 bits.

    Returns:
        The models, and the judge.

    Raises:
        CheckpointError: There is no such model, or it is damaged.
        ConfigError: A model is given twice, a sampler does not suit, or no model judges.
    """
    places = [place_of(name) for name in names]
    for name, place in zip(names, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"MODEL: {name} is given twice")
    judges_from = place_of(judge) if judge else None
    plain: Literal["always", "if autoregressive", "never"] = "if autoregressive"
    if samplers is not None:
        plain = "always" if any(each.needs == "plain" for each in samplers) else "never"
    models = [open_model(name, device=device, dtype=dtype, load=load, plain=plain) for name in names]
    chosen(models, samplers)  # before a judge is loaded
    if judge is None:
        return models, default_judge(models)
    if judges_from in places:
        return models, models[places.index(judges_from)]
    return models, open_model(judge, device=device, dtype=dtype, load=load)


def bench_frontier(
    models: Sequence[Model],
    judge: Model | None = None,
    *,
    samplers: Sequence[Kind] | None = None,
    temperatures: Sequence[float] = (1.0,),
    batch_sizes: Sequence[int] = (8,),
    num: int = 16,
    length: int | None = None,
    repeats: int = 5,
    seed: int = 0,
    told: Told | None = None,
) -> Frontier:
    """Writes the same number of texts by every model and sampler, times them, and has a judge read them.

    Every point is written once first, untimed; these texts are judged and counted. Timed passes write the same texts
    again, one pass of each point in turn, so that a noisy machine hits all points alike.

    Args:
        models: The models.
        judge: What judges; by default `default_judge`.
        samplers: The samplers to choose from; by default those that suit each model.
        temperatures: Temperatures; each gives points of its own.
        batch_sizes: Numbers of texts written side by side; each gives points of its own.
        num: Texts of each point.
        length: Tokens a text; by default the shortest context of the models.
        repeats: Timed passes; at least 1.
        seed: The texts follow from it.
        told: Called before every pass.

    Returns:
        The points.

    Raises:
        ConfigError: A sampler does not suit, or no model judges.
        DataError: The length does not fit the context of a model.
    """
    pairs = chosen(models, samplers)
    judge = judge or default_judge(models)
    length = _length(models, length)
    entries = [
        _Entry(model, each, temperature, batch_size)
        for model in models
        for temperature in temperatures
        for batch_size in batch_sizes
        for owner, each in pairs
        if owner is model
    ]
    watches = [Stopwatch(models[0].device) for _ in entries]
    written = _timed(entries, watches, num, length, repeats, seed, told)
    reader = judge.judge(seed)
    anew = not all(same_tokens(model.tokenizer, reader.tokenizer) for model in models)
    return Frontier(
        judge=judge.name,
        judge_reading=reader.reading,
        judge_exact=reader.exact,
        judge_is_compared=any(model is judge for model in models),
        encoded_anew=anew,
        device=models[0].device.type,
        threads=torch.get_num_threads(),
        num=num,
        length=length,
        repeats=repeats,
        seed=seed,
        points=tuple(
            _point(entry, texts, watch, _judged(reader, entry, texts, anew))
            for entry, texts, watch in zip(entries, written, watches, strict=True)
        ),
    )


def _length(models: Sequence[Model], asked: int | None) -> int:
    """Tokens a text."""
    rooms = {model.name: model.room for model in models if model.room is not None}
    if asked is None and not rooms:
        raise ConfigError("none of these models says how long a text may be: give --length")
    shortest = min(rooms, key=lambda name: rooms[name] or 0) if rooms else ""
    if asked is None:
        return rooms[shortest] or 1
    if rooms and asked > (rooms[shortest] or asked):
        raise ConfigError(f"--length: {shortest} has room for {rooms[shortest]} tokens, got {asked}")
    return asked


def _timed(
    entries: Sequence[_Entry],
    watches: Sequence[Stopwatch],
    num: int,
    length: int,
    repeats: int,
    seed: int,
    told: Told | None,
) -> list[Texts]:
    """The texts of each entry; its passes are timed, in turns with those of the others."""

    def passes(number: int) -> Iterator[tuple[int, _Entry]]:
        for place, entry in enumerate(entries):
            if told:
                told(
                    number * len(entries) + place, (repeats + 1) * len(entries), f"{entry.model.name} {entry.kind.name}"
                )
            yield place, entry

    texts = [entry.write(num, length, seed) for _, entry in passes(0)]
    for number in range(1, repeats + 1):
        for place, entry in passes(number):
            with watches[place]:
                entry.write(num, length, seed)
    return texts


def _judged(judge: Judge, entry: _Entry, texts: Texts, anew: bool) -> Judged:
    return judge_texts(judge, texts.ids, entry.model.tokenizer, entry.model.end_ids, anew=anew)


def _point(entry: _Entry, texts: Texts, watch: Stopwatch, judged: Judged) -> Point:
    """What is known of an entry."""
    tokens, seconds = sum(map(len, texts.ids)), watch.median()
    entropies = [unigram_entropy(ids) for ids in texts.ids]
    entropy, entropy_se = ratio_with_error(entropies, [1.0] * len(entropies))
    return Point(
        model=entry.model.name,
        sampler=entry.kind.name,
        family=entry.kind.family,
        temperature=entry.temperature,
        batch_size=entry.batch_size,
        tokens=tokens,
        seconds=seconds,
        fastest=min(watch.seconds),
        slowest=max(watch.seconds),
        tokens_per_second=tokens / seconds,
        calls=texts.calls,
        calls_per_text=texts.text_calls / len(texts.ids),
        tokens_per_call=tokens / texts.text_calls,
        nats_per_token=judged.per_token[0],
        nats_per_token_se=judged.per_token[1],
        nats_per_byte=judged.per_byte[0],
        nats_per_byte_se=judged.per_byte[1],
        judged_tokens=sum(judged.tokens),
        entropy=entropy,
        entropy_se=entropy_se,
        repeated=repeated_share(texts.ids),
        distinct=distinct_share(texts.ids),
        encoded_anew=judged.encoded_anew,
        unknown=judged.unknown,
        cut=judged.cut,
    )
