"""`dlm quality`."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlm.cli import options
from dlm.cli.console import check_apart, check_free, errors, quiet_libraries, write_data
from dlm.data.lines import lines_of
from dlm.errors import CheckpointError, ConfigError, DataError
from dlm.model.locate import CHECKPOINTS, resolve
from dlm.paths import expand

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dlm.bench.models import Model
    from dlm.evaluate.bootstrap import Ratio
    from dlm.evaluate.memorised import KnownText
    from dlm.evaluate.quality import Parser, Quality, Written
    from dlm.evaluate.samples import Judge, Rows

FEWEST_FOR_MAUVE = 1000
"""Texts from which on MAUVE is not cautioned about; its authors advise some thousands."""

ROWS = {
    "nats_per_token": "nats/token",
    "nats_per_character": "nats/character",
    "perplexity": "perplexity",
    "entropy": "entropy",
    "mauve": "MAUVE",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "distinct_4": "distinct-4",
    "repeated": "repeated",
    "tokens": "tokens",
    "characters": "characters",
    "parses": "parses",
    "memorised_characters": "memorised",
    "memorised_share": "in memorised",
}
"""What the rows of the table are called; the entropy stands right below what a judge says."""

SHARES = {"repeated", "parses", "memorised_share", *(f"distinct_{n}" for n in range(1, 5))}
"""Figures that are shown in percent."""

Texts = Annotated[
    str,
    typer.Argument(
        metavar="FILE|MODEL",
        help="Texts: the JSON of `dlm sample --json`, or documents; or a model, whose default sampler writes some.",
        show_default=False,
    ),
]
Judging = Annotated[
    str | None,
    typer.Option(help="The model that says how likely the texts are: autoregressive, or of dlm.", show_default=False),
]
Real = Annotated[
    str | None, typer.Option(help="Real text to compare with, by the same figures and by MAUVE.", show_default=False)
]
States = Annotated[
    str | None, typer.Option(help="The model whose hidden states MAUVE compares.", show_default="the judge")
]
Language = Annotated[
    str | None, typer.Option(metavar="python", help="Also count the texts that parse.", show_default=False)
]
Known = Annotated[
    str | None,
    typer.Option(
        help="Also look for substrings that stand in this text, such as that of training.", show_default=False
    ),
]
Least = Annotated[
    int | None, typer.Option(min=1, help="Characters from which on a substring is memorised.", show_default="32")
]
Count = Annotated[int | None, typer.Option(min=1, help="With MODEL: texts to write.", show_default="64")]
Length = Annotated[
    int | None, typer.Option(min=1, help="With MODEL: tokens a text.", show_default="what the context has room for")
]
Side = Annotated[int | None, typer.Option(min=1, help="With MODEL: texts written side by side.", show_default="16")]
Format = Annotated[str | None, typer.Option(help="The format of FILE.", show_default="the one that its name tells")]
Column = Annotated[str | None, typer.Option(help="The column of FILE that holds the text.", show_default=False)]


def quality(
    source: Texts,
    judge: Judging = None,
    reference: Real = None,
    features: States = None,
    parses: Language = None,
    memorised: Known = None,
    least: Least = None,
    num: Count = None,
    length: Length = None,
    batch_size: Side = None,
    format: Format = None,
    field: Column = None,
    *,
    seed: Annotated[int, typer.Option(help="Texts that are written, masks and intervals follow from it.")] = 0,
    dtype: options.HeldIn = "fp32",
    quantised: options.Load = None,
    device: options.Device = None,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure texts: how likely and how varied they are, how like real text, and what of them is memorised.

    Example:  dlm quality runs/tiny --judge runs/autoregressive --reference book.txt
    """
    is_model = _names_model(source, format, field)
    told = {"num": num, "length": length, "batch_size": batch_size}
    _check_options(is_model, told)
    _check_figures(judge, reference, features, parses, memorised, least)
    read = {"FILE": None if is_model else source, "--reference": reference, "--memorised": memorised}
    check_apart({name: Path(each) for name, each in read.items() if each is not None}, {"--output": output})
    check_free(output, overwrite)
    weights = options.check_weights(dtype, quantised)
    quiet_libraries()
    from dlm.evaluate.mauve import check_installed
    from dlm.evaluate.memorised import LEAST, KnownText
    from dlm.evaluate.quality import PARSERS

    options.check_device(device)
    if features is not None:
        check_installed()
    held: dict[str, Any] = {"device": device, **weights}
    known = KnownText(_documents(memorised, "--memorised")) if memorised is not None else None
    real = _documents(reference, "--reference") if reference is not None else []
    judging = _opened(judge, held)
    own = _write(source, held, told, seed) if is_model else _Source(_texts_of(source, format, field))
    comparing = _opened(features, held) or judging
    reader = _Reader(judging.judge(seed) if judging else None, comparing.judge(seed) if comparing else None, seed)
    asked = _Asked(PARSERS[parses] if parses else None, known, least or LEAST)
    found, notes = _measured(reader, own, real, asked)
    facts = _facts(reader, judge, features, found["texts"], asked)
    if as_json:
        beside = found["reference"].to_dict() if real else None
        line = json.dumps({**found["texts"].to_dict(), "reference": beside, **facts}, allow_nan=False)
    else:
        line = _table(found, facts)
    write_data(line, output, overwrite=overwrite)
    for note in notes:
        errors.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class _Source:
    """Texts; and of those that a model has just written its own tokens, with their ends of text."""

    texts: Sequence[str]
    ids: "Rows | None" = None
    tokenizer: "PreTrainedTokenizerBase | None" = None
    end_ids: Sequence[int] = ()


@dataclass(frozen=True)
class _Asked:
    """The figures that not every command line asks for; see `measure_quality`."""

    parser: "Parser | None"
    known: "KnownText | None"
    least: int


def _measured(
    reader: "_Reader", own: _Source, real: Sequence[str], asked: _Asked
) -> "tuple[dict[str, Quality], list[str]]":
    """The figures of the texts and of as much real text, and what is to be known of them."""
    from dlm.evaluate.quality import measure_quality, pieces_like

    measure = partial(measure_quality, parser=asked.parser, known=asked.known, least=asked.least, seed=reader.seed)
    written = reader.read(own)
    found, notes = {"texts": measure(written)}, [*_notes(written)]
    if real:
        others = pieces_like(own.texts, real, reader.seed)
        found["reference"] = measure(reader.read(_Source(others)))
        mauve, why = reader.mauve(own.texts, others)
        if mauve:
            found["texts"] = replace(found["texts"], figures={**found["texts"].figures, "mauve": mauve})
        notes += [why] * bool(why)
    return found, notes


def _facts(
    reader: "_Reader", judge: str | None, features: str | None, found: "Quality", asked: _Asked
) -> dict[str, Any]:
    """How the figures were found."""
    return {
        "judge": judge,
        "judge_reading": reader.judge.reading if reader.judge else None,
        "judge_exact": reader.judge.exact if reader.judge else None,
        "features": features or judge if "mauve" in found.figures else None,
        "token": "judge" if reader.judge else "word",
        "least": asked.least if asked.known else None,
        "seed": reader.seed,
    }


def _names_model(source: str, format: str | None, field: str | None) -> bool:
    """Whether the argument names a model, and not texts."""
    path = expand(source)
    if path.is_file() or format is not None or field is not None or any(sign in source for sign in "*?["):
        return False
    if not path.is_dir() and path.suffix in (".jsonl", ".json", ".txt"):
        raise DataError(f"there is no file {source}")
    try:
        resolve(source)
    except CheckpointError:
        if not path.is_dir() or (path / CHECKPOINTS).is_dir():
            raise
        return False
    return True


def _check_options(is_model: bool, told: Mapping[str, int | None]) -> None:
    """Refuses options that say how a model writes where none does."""
    given = [name for name, value in told.items() if value is not None]
    if not is_model and given:
        option = given[0].replace("_", "-")
        raise ConfigError(f"--{option} says how a model writes, and FILE holds texts already: leave it out")


def _check_figures(
    judge: str | None,
    reference: str | None,
    features: str | None,
    parses: str | None,
    memorised: str | None,
    least: int | None,
) -> None:
    """Refuses options that say nothing by themselves."""
    if parses not in (None, "python"):
        raise ConfigError(f"--parses knows python, got {parses!r}")
    if features is not None and reference is None:
        raise ConfigError("--features is for MAUVE, which compares with real text: give that by --reference FILE too")
    if least is not None and memorised is None:
        raise ConfigError("--least says what counts as memorised: give the text by --memorised FILE too")


def _documents(name: str, key: str, format: str | None = None, field: str | None = None) -> list[str]:
    """The texts of documents."""
    from dlm.data.choosing import source_of, unread
    from dlm.data.reading import read

    source = source_of(name, field, format=format, key=key)
    for line in unread(source, key):
        errors.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return [*read(source, key).texts()]


def _texts_of(source: str, format: str | None, field: str | None) -> list[str]:
    """The texts of a file: what `dlm sample` wrote there, or its documents."""
    path = expand(source)
    if format is None and field is None and path.is_file() and (samples := _samples(path)) is not None:
        if not samples:
            raise DataError(f"{source} holds no sample")
        return samples
    return _documents(source, "FILE", format, field)


def _samples(path: Path) -> list[str] | None:
    """What was written, of each sample of a file by `dlm sample`; None of another file."""
    found: list[str] = []
    try:
        lines = [line for line in lines_of(str(path)) if line.strip()]
    except (OSError, DataError):
        return None
    for number, line in enumerate(lines, start=1):
        try:
            samples = json.loads(line)["samples"]
            found += [sample["continuation"] for sample in samples]
            if not all(isinstance(text, str) for text in found[-len(samples) :]):
                raise TypeError("a continuation is no text")
        except (ValueError, KeyError, TypeError) as error:
            if number == 1:
                return None
            raise DataError(f"{path}: line {number} is no line of dlm sample, as line 1 is: {error!r:.80}") from error
    return found if lines else None


def _opened(name: str | None, held: Mapping[str, Any]) -> "Model | None":
    """A model that reads texts."""
    if name is None:
        return None
    from dlm.bench.models import open_model

    return open_model(name, **held)


def _write(model: str, held: Mapping[str, Any], told: Mapping[str, int | None], seed: int) -> _Source:
    """Texts that a model writes by its default sampler, without ends of text."""
    from dlm.lm import DiffusionLM
    from dlm.model.text import decode

    lm = DiffusionLM.from_pretrained(model, **held)
    num, batch_size = told["num"] or 64, told["batch_size"] or 16
    lm.layout.canvas(None, told["length"])  # refuses a length before anything is said of it
    errors.print(f"writing {num} texts", highlight=False)
    ids = [each.ids for each in lm.generate(num=num, length=told["length"], batch_size=batch_size, seed=seed)]
    texts = [decode(lm.tokenizer, [id_ for id_ in row if id_ not in lm.end_ids]) for row in ids]
    return _Source(texts, ids, lm.tokenizer, lm.end_ids)


@dataclass(frozen=True)
class _Reader:
    """What makes tokens, nats and states of texts.

    Attributes:
        judge: Says how likely they are.
        comparing: Has the states.
        seed: The masks of a bound, the clusters and the bootstrap follow from it.
    """

    judge: "Judge | None"
    comparing: "Judge | None"
    seed: int

    def read(self, source: _Source) -> "Written":
        """Texts with their tokens: the judge's, or without one words and signs."""
        from dlm.evaluate.quality import Written
        from dlm.evaluate.samples import judge_texts, words
        from dlm.model.text import encode

        if self.judge is None:
            return Written(source.texts, words(source.texts))
        ids = encode(self.judge.tokenizer, source.texts)
        written, tokenizer = source.ids or ids, source.tokenizer or self.judge.tokenizer
        return Written(source.texts, ids, judge_texts(self.judge, written, tokenizer, source.end_ids))

    def mauve(self, texts: Sequence[str], others: Sequence[str]) -> "tuple[Ratio | None, str]":
        """MAUVE, or why there is none, or a caution about it."""
        from dlm.evaluate.mauve import FEWEST, check_installed, mauve_score
        from dlm.evaluate.quality import features_of
        from dlm.model.text import encode

        if self.comparing is None:
            return None, "no MAUVE: it compares states of a model, so name one by --features, or a --judge"
        try:
            check_installed()
        except ConfigError as error:
            return None, f"no MAUVE: {error}"
        one, other = (features_of(self.comparing, encode(self.comparing.tokenizer, [*t])) for t in (texts, others))
        if (fewest := min(len(one), len(other))) < FEWEST:
            return None, f"no MAUVE: it needs at least {FEWEST} texts on either side, got {fewest}"
        score = mauve_score(one, other, self.seed)
        if fewest >= FEWEST_FOR_MAUVE:
            return score, ""
        return score, (
            f"MAUVE of {fewest} texts says little, and is to be compared with that of as many texts alone; "
            f"{FEWEST_FOR_MAUVE:,} and more make it steadier"
        )


def _notes(written: "Written") -> Iterator[str]:
    """What is to be known of the figures."""
    if len(written.texts) == 1:
        yield "one text alone has no interval: it says nothing of others"
    if not (judged := written.judged):
        return
    if judged.unknown:
        yield (
            f"{judged.unknown:,} tokens stand for characters that the judge does not know: "
            "its nats are not of these very texts"
        )
    if judged.cut:
        yield (
            f"{judged.cut:,} texts are longer than the judge's context: "
            "it read them in pieces that do not see each other"
        )


def _table(found: "Mapping[str, Quality]", facts: Mapping[str, Any]) -> str:
    """A row a figure, and beside the texts the reference."""
    heads = [f"{name} ({each.texts:,})" for name, each in found.items()]
    lines = [f"{'':<16}" + "".join(f"{head:<36}" for head in heads).rstrip()]
    least = "\u2264 " if facts["judge_exact"] is False else ""
    for name, shown in ROWS.items():
        if name in found["texts"].figures:
            bound = least if name in ("nats_per_token", "nats_per_character", "perplexity") else ""
            cells = [_cell(name, each.figures.get(name), bound) for each in found.values()]
            lines.append(f"{shown:<16}" + "".join(f"{cell:<36}" for cell in cells).rstrip())
    longest = [each.longest_memorised for each in found.values()]
    if longest[0] is not None:
        lines.append(f"{'longest of all':<16}" + "".join(f"{value:>10,}{'':<26}" for value in longest).rstrip())
    lines += ["", "95% intervals, texts resampled (distinct-n: the jackknife); entropy in nats, of a text"]
    tokens = "the judge's" if facts["judge"] else "words and signs"
    lines.append(f"tokens: {tokens}; repeated: 4-grams that came before in their text")
    if facts["judge"]:
        exact = "exact" if facts["judge_exact"] else "an upper bound"
        lines.append(f"judge: {facts['judge']}, {facts['judge_reading']} reading, {exact}")
    if facts["features"]:
        lines.append(f"MAUVE: hidden states of {facts['features']}")
    if facts["least"]:
        lines.append(
            f"memorised: characters of a text's longest substring in the known text; in memorised: characters in "
            f"substrings of {facts['least']} and more"
        )
    return "\n".join(lines)


def _cell(name: str, figure: "Ratio | None", bound: str) -> str:
    """A value and its interval."""
    if figure is None:
        return ""
    if math.isnan(figure.value):
        return f"{'-':>10}"
    scale, digits, unit = (100.0, 1, "%") if name in SHARES else (1.0, 1 if name in _LENGTHS else 4, "")
    value = f"{bound}{figure.value * scale:,.{digits}f}{unit}"
    if figure.interval is None:
        return f"{value:>10}"
    low, high = (f"{end * scale:,.{digits}f}" for end in figure.interval)
    return f"{value:>10}  {low} to {high}{unit}"


_LENGTHS = {"tokens", "characters", "memorised_characters"}
"""Figures that are numbers of something."""
