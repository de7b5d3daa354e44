"""`dlm bench infill`."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dlm.cli import options
from dlm.cli.bench import check_once, lines_of, names, table_of
from dlm.cli.console import quiet_libraries, write_data
from dlm.cli.documents import named_documents, own_documents
from dlm.cli.progress import progress
from dlm.cli.searching import LengthTopP, Reread, check_length_top_p
from dlm.errors import ConfigError
from dlm.plain import counted, plain_json
from dlm.template import LONGEST

if TYPE_CHECKING:
    from dlm.bench.infilling import Entry, Figure, Infillings, Point

Documents = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="A file, folder, glob or dataset that no model was trained on.",
        show_default="the validation text of the first model's run",
    ),
]
Spans = Annotated[
    str | None,
    typer.Option(
        metavar="N|words|lines,...",
        help="What is cut out: so many tokens of the first model, whole words, whole lines.",
        show_default="4,8,16,32,64,words,lines",
    ),
]
Format = Annotated[str | None, typer.Option(help="The data's format.", show_default="the one that its name tells")]
Lengths = Annotated[
    str, typer.Option(metavar="known|unknown,...", help="Whether the models are told how long a span is.")
]
Methods = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="diffusion, diffusion+rerank, fim, fim+rerank, left, left+rerank.",
        show_default="those that suit each model",
    ),
]


def infill(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Run folders, checkpoint folders or Hub names.", show_default=False),
    ],
    data: Documents = None,
    format: Format = None,
    split: Annotated[str | None, typer.Option(help="Which split of the data.", show_default=False)] = None,
    field: Annotated[str | None, typer.Option(help="The column that holds the text.", show_default=False)] = None,
    spans: Spans = None,
    holes: Annotated[str, typer.Option(metavar="N,...", help="Spans that are cut out of a passage.")] = "1,3",
    lengths: Lengths = "known,unknown",
    methods: Methods = None,
    num: Annotated[int, typer.Option(min=1, help="Passages of each kind.")] = 1000,
    candidates: Annotated[int, typer.Option(min=2, help="Fillings that +rerank takes the likeliest of.")] = 8,
    max_length: Annotated[int, typer.Option(min=1, help="The most tokens of a span of unknown length.")] = LONGEST,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Divides the log-probabilities; 0 takes the likeliest token.")
    ] = 1.0,
    length_top_p: LengthTopP = None,
    reread: Reread = None,
    draws: Annotated[int, typer.Option(min=2, help="Masked copies that a bound is estimated from; even.")] = 16,
    chain_rule: Annotated[
        bool, typer.Option("--chain-rule", help="Exact likelihoods of diffusion, one token a call, instead of bounds.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=options.MOST_ROWS, help="Passages filled side by side.")] = 32,
    seed: Annotated[int, typer.Option(help="Passages, texts and masks follow from it.")] = 0,
    *,
    dtype: options.HeldIn = "fp32",
    quantised: options.Load = None,
    device: options.Device = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare how models fill holes: all at once, in the middle, or from the left alone.

    Example:  dlm bench infill runs/masked runs/fim --num 200
    """
    check_once("MODEL", models)
    asked_spans = _spans(spans)
    asked_holes = [_whole("--holes", each) for each in names("--holes", holes)]
    known = _lengths(lengths)
    check_once("--holes", asked_holes)
    if draws % 2:
        raise ConfigError(f"--draws must be even, got {draws}")
    _check_use(context, known, methods, chain_rule=chain_rule)
    check_length_top_p(length_top_p)
    weights = options.check_weights(dtype, quantised)
    quiet_libraries()
    from dlm.bench.infilling import all_kinds, bench_infilling, entries_of
    from dlm.bench.methods import How, method
    from dlm.lm import DiffusionLM
    from dlm.lm.search import LengthSearch

    asked = [method(name) for name in names("--methods", methods)] if methods is not None else None
    check_once("--methods", [each.name for each in asked or ()])
    options.check_device(device)
    opened = {name: DiffusionLM.from_pretrained(name, device=device, **weights) for name in models}
    top_p = LengthSearch.top_p if length_top_p is None else length_top_p
    how = How(temperature, candidates, max_length, top_p, draws, reread, chain_rule, seed, batch_size)
    entries = entries_of(opened, asked, how)
    _check_searched(context, entries)
    first = opened[models[0]]
    named = format, split, None, field
    documents = own_documents(first, models[0], *named) if data is None else named_documents(first, data, *named)
    with progress("pass", shown=not as_json) as told:
        found = bench_infilling(
            entries,
            [*documents.texts()],
            kinds=all_kinds(asked_spans, asked_holes),
            lengths=known,
            num=num,
            how=how,
            told=told,
        )
    write_data(plain_json(found.to_dict()) if as_json else _report(found), None)
    if not found.finished:
        raise KeyboardInterrupt


def _check_use(context: typer.Context, known: list[bool], methods: str | None, *, chain_rule: bool) -> None:
    """Refuses options that change nothing in what is asked for."""
    given = options.given_names(context)
    if "max_length" in given and False not in known:
        raise ConfigError("--max-length is for spans of unknown length: leave it out, or ask for --lengths unknown")
    if "candidates" in given and methods is not None and "+rerank" not in methods:
        raise ConfigError("--candidates is for methods with +rerank, and --methods names none: leave it out")
    if "length_top_p" in given and False not in known:
        raise ConfigError("--length-top-p is for spans of unknown length: leave it out, or ask for --lengths unknown")
    if "reread" in given and False not in known:
        raise ConfigError("--reread and --no-reread are for spans of unknown length: leave them out")
    if "draws" in given and chain_rule and False not in known:
        raise ConfigError("--draws is for bounds, and --chain-rule has none: leave one of them out")


def _check_searched(context: typer.Context, entries: "Sequence[Entry]") -> None:
    """Refuses options of a search where no method has one."""
    if any(method.at_once for _, _, method in entries):
        return
    for name, option in (("length_top_p", "--length-top-p"), ("reread", "--reread")):
        if name in options.given_names(context):
            raise ConfigError(f"{option} is for a search of lengths, and none of these methods has one: leave it out")


def _spans(text: str | None) -> list[int | str]:
    """The spans that are asked for."""
    from dlm.bench.passages import NAMED, TOKENS

    if text is None:
        return [*TOKENS, *NAMED]
    found: list[int | str] = [
        each if each in NAMED else _whole("--spans", each, f", or {' or '.join(NAMED)}")
        for each in names("--spans", text)
    ]
    check_once("--spans", found)
    return found


def _whole(option: str, text: str, more: str = "") -> int:
    """A whole number from 1 on."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**6):
        raise ConfigError(f"{option} takes whole numbers from 1 on{more}, with commas between them, got {text!r}")
    return int(text)


def _lengths(text: str) -> list[bool]:
    """Whether lengths are given, not, or both."""
    found = names("--lengths", text)
    for each in found:
        if each not in ("known", "unknown"):
            raise ConfigError(f"--lengths is known, unknown, or both with a comma between them, got {each!r}")
    check_once("--lengths", found)
    return [each == "known" for each in found]


def _report(found: "Infillings") -> str:
    """A table for each kind of passages, and what is to be known of the figures."""
    columns: list[tuple[str, Callable[[Point], str]]] = [
        ("method", lambda p: p.method),
        ("exact match", lambda p: _figure(p.exact_match, 100, 1)),
        ("chrF", lambda p: _figure(p.chrf, 100, 1)),
        ("characters", lambda p: _figure(p.accuracy, 100, 1)),
        ("length error", lambda p: f"{p.length_error.value:.2f}"),
        ("bits/character", lambda p: _bits(p)),
        ("rows/hole", lambda p: f"{p.calls:,.0f}"),
        ("ms/hole", lambda p: f"{p.milliseconds:,.1f}"),
    ]
    parts: list[str | Table] = []
    for (kind, known), group in groupby(found.points, lambda p: (p.kind, p.known)):
        parts += [f"{kind}, {'known' if known else 'unknown'} length", table_of(group, columns), ""]
    return "\n".join([*lines_of(*parts), *_notes(found)])


def _notes(found: "Infillings") -> Iterator[str]:
    """What was done, and what is to be known of the figures."""
    unknown = any(not p.known for p in found.points)
    yield (
        f"{counted(found.num, 'passage')} of each kind, temperature {found.temperature:g}, seed {found.seed}, "
        f"{found.device}" + (f"; spans of unknown length have at most {found.longest} tokens" if unknown else "")
    )
    if unknown and any(p.method.startswith("diffusion") for p in found.points):
        yield f"diffusion fills the likeliest lengths that together have the probability {found.length_top_p:g}"
    yield (
        "in brackets: the difference from the first line of a table, with its 95% interval over passages; exact match, "
        "chrF and characters in their places are in %, the length error is in characters; rows/hole are those that the "
        "network read, to write, to weigh and to rank"
    )
    if any(p.method.endswith("+rerank") for p in found.points):
        yield f"+rerank takes the likeliest of {found.candidates} candidates, read as a whole with what stands behind"
    if any(p.method == "diffusion+rerank" and not p.known for p in found.points):
        yield (
            "where lengths are unknown, the candidates of diffusion+rerank are those that the search of lengths tries, "
            "and diffusion ranks them too: where both are asked for, one is measured"
        )
    if any(p.bits is not None and not p.bits_exact for p in found.points):
        yield "bits/character of diffusion are an upper bound, of the others exact; --chain-rule makes all exact"
    if len({*found.contexts.values()}) > 1:
        contexts = ", ".join(f"{name} {context:,}" for name, context in found.contexts.items())
        yield f"the contexts differ, and a longer one sees more of the text beside a hole: {contexts}"
    if found.beyond:
        yield f"left out at unknown length, as they are longer than --max-length: {', '.join(found.beyond)}"
    if found.skipped:
        yield f"left out, as the text or half of the shortest context has no room: {', '.join(found.skipped)}"


def _figure(figure: "Figure", scale: float, digits: int) -> str:
    shown = f"{scale * figure.value:.{digits}f}"
    if figure.difference is None or figure.difference_interval in (None, (0.0, 0.0)):
        return shown
    low, high = figure.difference_interval
    return f"{shown} ({scale * figure.difference:+.{digits}f}: {scale * low:+.{digits}f} to {scale * high:+.{digits}f})"


def _bits(point: "Point") -> str:
    if point.bits is None:
        return "-"
    return ("" if point.bits_exact else "\u2264 ") + _figure(point.bits, 1, 3)
