"""`dlm quality`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlm.cli import options
from dlm.cli.console import caution, check_apart, check_free, errors, quiet_libraries, write_data
from dlm.errors import CheckpointError, ConfigError, DataError
from dlm.model.locate import CHECKPOINTS, resolve
from dlm.paths import expand
from dlm.plain import counted, plain_json

if TYPE_CHECKING:
    from dlm.bench.models import Model
    from dlm.evaluate.bootstrap import Ratio
    from dlm.evaluate.quality import QualityReport, Texts

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

Given = Annotated[
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
Count = Annotated[
    int | None, typer.Option(min=1, max=options.MOST_TEXTS, help="With MODEL: texts to write.", show_default="64")
]
Length = Annotated[
    int | None, typer.Option(min=1, help="With MODEL: tokens a text.", show_default="what the context has room for")
]
Side = Annotated[
    int | None,
    typer.Option(min=1, max=options.MOST_ROWS, help="With MODEL: texts written side by side.", show_default="16"),
]
Format = Annotated[str | None, typer.Option(help="The format of FILE.", show_default="the one that its name tells")]
Column = Annotated[str | None, typer.Option(help="The column of FILE that holds the text.", show_default=False)]


def quality(
    source: Given,
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
    from dlm.evaluate.figures import PARSERS
    from dlm.evaluate.mauve import check_installed
    from dlm.evaluate.memorised import LEAST, KnownText
    from dlm.evaluate.quality import evaluate_quality

    options.check_device(device)
    if features is not None:
        check_installed()
    held: dict[str, Any] = {"device": device, **weights}
    known = KnownText(_documents(memorised, "--memorised")) if memorised is not None else None
    real = _documents(reference, "--reference") if reference is not None else []
    judging = _opened(judge, held)
    own = _write(source, held, told, seed) if is_model else _texts_of(source, format, field)
    comparing = _opened(features, held)
    found = evaluate_quality(
        own,
        judge=judging.judge(seed) if judging else None,
        reference=real,
        features=comparing.judge(seed) if comparing else None,
        parser=PARSERS[parses] if parses else None,
        known=known,
        least=least or LEAST,
        seed=seed,
    )
    names = {"judge": judge, "features": features or judge if "mauve" in found.texts.figures else None}
    line = plain_json({**found.to_dict(), **names}) if as_json else _table(found, names)
    write_data(line, output, overwrite=overwrite)
    for note in found.notes:
        caution(note)


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
        caution(line)
    documents = read(source, key)
    if documents.empty:
        are = "is" if documents.empty == 1 else "are"
        caution(f"{key}: {counted(documents.empty, 'row')} without text {are} left out: no figure counts them")
    return [*documents.texts()]


def _texts_of(source: str, format: str | None, field: str | None) -> "Texts":
    """The texts of a file: what `dlm sample` wrote there, or its documents."""
    from dlm.evaluate.quality import Texts, samples_in

    path = expand(source)
    if format is None and field is None and path.is_file() and (samples := samples_in(path)) is not None:
        if not samples:
            raise DataError(f"{source} holds no sample")
        return Texts(samples)
    return Texts(_documents(source, "FILE", format, field))


def _opened(name: str | None, held: Mapping[str, Any]) -> "Model | None":
    """A model that reads texts."""
    if name is None:
        return None
    from dlm.bench.models import open_model

    return open_model(name, **held)


def _write(model: str, held: Mapping[str, Any], told: Mapping[str, int | None], seed: int) -> "Texts":
    """Texts that a model writes by its default sampler."""
    from dlm.evaluate.quality import texts_of_model
    from dlm.lm import DiffusionLM

    lm = DiffusionLM.from_pretrained(model, **held)
    num, batch_size = told["num"] or 64, told["batch_size"] or 16
    lm.layout.canvas(None, told["length"])  # refuses a length before anything is said of it
    errors.print(f"writing {counted(num, 'text')}", highlight=False)
    return texts_of_model(lm, num=num, length=told["length"], batch_size=batch_size, seed=seed)


def _table(report: "QualityReport", names: Mapping[str, str | None]) -> str:
    """A row a figure, and beside the texts the reference."""
    found = {"texts": report.texts} | ({"reference": report.reference} if report.reference else {})
    heads = [f"{name} ({each.texts:,})" for name, each in found.items()]
    lines = [f"{'':<16}" + "".join(f"{head:<36}" for head in heads).rstrip()]
    least = "\u2264 " if report.judge_exact is False else ""
    for name, shown in ROWS.items():
        if name in found["texts"].figures:
            bound = least if name in ("nats_per_token", "nats_per_character", "perplexity") else ""
            cells = [_cell(name, each.figures.get(name), bound) for each in found.values()]
            lines.append(f"{shown:<16}" + "".join(f"{cell:<36}" for cell in cells).rstrip())
    longest = [each.longest_memorised for each in found.values()]
    if longest[0] is not None:
        lines.append(f"{'longest of all':<16}" + "".join(f"{value:>10,}{'':<26}" for value in longest).rstrip())
    lines += ["", "95% intervals, texts resampled (distinct-n: the jackknife); entropy in nats, of a text"]
    tokens = "the judge's" if report.token == "judge" else "words and signs"
    lines.append(f"tokens: {tokens}; repeated: 4-grams that came before in their text")
    if names["judge"]:
        exact = "exact" if report.judge_exact else "an upper bound"
        lines.append(f"judge: {names['judge']}, {report.judge_reading} reading, {exact}")
    if names["features"]:
        lines.append(f"MAUVE: hidden states of {names['features']}")
    if report.least:
        lines.append(
            f"memorised: characters of a text's longest substring in the known text; in memorised: characters in "
            f"substrings of {report.least} and more"
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
