"""`dlm infill`."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlm.cli import options
from dlm.cli.console import caution, check_given, json_line, line_writer, note, quiet_libraries, read_text, write_text
from dlm.cli.records import (
    Record,
    Resume,
    check_single,
    file_lines,
    free_of,
    is_batch,
    read_batch,
    report,
    resumable,
    unfinished,
    usable,
)
from dlm.cli.searching import Effort, LengthTopP, Prior, Reread, SearchOptions, tell_cost
from dlm.cli.writing import check_outputs, is_apart, load, recording
from dlm.data.lines import split_lines
from dlm.data.text import check_text
from dlm.errors import ConfigError, DataError, shortened
from dlm.plain import counted
from dlm.template import LONGEST, Template, holes_of, mistaken, parse_template

if TYPE_CHECKING:
    from dlm.lm import Infilling

WRITTEN = (
    "spans",
    "log_likelihood",
    "network_calls",
    "fillings",
    "alternatives",
    "lengths",
    "log_joint",
    "length_posterior",
    "log_whole",
)
"""Fields that are written beside those of a record; its text is replaced by the filled one."""
MOST_LENGTHS = 256
"""Lengths of several spans that are written, the likeliest: three spans of any length have 32,768."""
FEW = 3
"""Records of a batch that are named one by one where many have the same."""
LONGEST_PATH = 255
"""Characters of a text that may be the name of a file; systems refuse to look for much longer ones."""


Choices = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...",
        help=r"The texts that each span such as [MASK] may have; \, is a comma within one.",
        show_default=False,
    ),
]
Marker = Annotated[str, typer.Option(help="The word that marks a span.")]


def infill(
    context: typer.Context,
    model: options.Model,
    text: Annotated[
        str | None,
        typer.Argument(help="Text with spans such as [MASK:12] or [MASK]; - reads stdin.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Read the text from a file; .jsonl and .ndjson are a batch.", show_default=False)
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help='A batch: a {"text": ...} a line in, an object a line out.')
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Fill what can be filled of a batch, and name the rest at the end.")
    ] = False,
    resume: Resume = False,
    num: Annotated[int, typer.Option(min=1, max=options.MOST_ROWS, help="Alternatives, the likeliest first.")] = 1,
    marker: Marker = "MASK",
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="The most tokens of a span such as [MASK], of any length.", show_default=str(LONGEST)),
    ] = None,
    choices: Choices = None,
    length_prior: Prior = None,
    length_top_p: LengthTopP = None,
    effort: Effort = None,
    reread: Reread = None,
    batch_size: Annotated[int, typer.Option(min=1, max=options.MOST_ROWS, help="Texts written side by side.")] = 16,
    *,
    seed: options.Seed = 0,
    mask_token: options.MaskToken = None,
    dtype: options.HeldIn = "auto",
    quantised: options.Load = None,
    device: options.Device = None,
    output: options.TextOutput = None,
    export: options.Export = None,
    watch: options.Watching = False,
    as_json: options.Json = False,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,
) -> None:
    r"""Fill masked spans anywhere in a text and leave the rest as it is.

    [MASK:12] is twelve tokens, [MASK:3-12] three to twelve, and [MASK] any number that fits. [MASK:/[0-9]{4}/] is
    what the expression matches. A backslash makes a marker literal: \\[MASK:3] stands for the text [MASK:3].

    Example:  dlm infill runs/tiny "def add(a, b): return [MASK:8]"
    """
    reads = {"--file": file, "the text -": Path("-") if text == "-" else None}
    batch = _is_batch(file, jsonl, keep_going=keep_going, resume=resume)
    check_outputs(output, export, overwrite, reads, resume=resume if batch else None)
    asked = SearchOptions.read(length_prior, length_top_p, effort, reread, max_length)
    ask = partial(_template_of, marker=marker, longest=max_length or LONGEST, choices=_choices(choices))
    records = _records(text, file, ask, batch=batch, keep_going=keep_going)
    parsed = _checked(records, max_length, ask, marker)
    quiet_libraries()

    how = options.build_sampler(context.obj)
    lm = load(model, device, dtype, quantised, mask_token)
    wanted = usable(records, lm.filling.check, keep_going=keep_going)
    wanted, keeps = _unfilled(wanted, output if resume else None, num)
    templates = {number: record.asked for number, record in wanted.items() if record.asked is not None}
    search = asked.of(lm, num, templates, parsed)
    lines, film = batch or as_json, export if wanted else None
    with recording(
        lm, f"dlm infill {model}", watch and bool(wanted), film, apart=is_apart(output) or not lines
    ) as seen:
        found = lm.infill_each(
            templates, num=num, sampler=how, seed=seed, batch_size=batch_size, search=search, watch=seen.take
        )  # what cannot work is refused by now
        tell_cost(lm, [*templates.values()], search, num)
        found = seen.each(found, len(templates))
        if lines:
            _write_lines([*wanted.values()], found, output, overwrite, keeps)
        else:
            (alternatives,) = found
    if not lines:
        _show(alternatives, num, asked.higher(templates.values()), output, overwrite)
    report(records)


def _is_batch(file: Path | None, jsonl: bool, *, keep_going: bool, resume: bool) -> bool:
    """Whether the input is a batch; options of one are refused where it is none."""
    if not (batch := jsonl or (file is not None and is_batch(file))):
        check_single("a batch of records: give a .jsonl file, or --jsonl", keep_going=keep_going, resume=resume)
    return batch


def _content(text: str | None, file: Path | None) -> list[str]:
    """The lines of what was given."""
    if text is not None and file is not None:
        raise ConfigError(f"a text and --file {file} are both given: leave one of them out")
    if text is None and file is None:
        raise ConfigError('give the text, or --file FILE, or - for stdin; for example dlm infill MODEL "a [MASK:3] b"')
    return [*split_lines(read_text(text))] if text is not None else file_lines(file or Path("-"))


def _records(
    text: str | None, file: Path | None, ask: Callable[[Mapping[str, Any]], Template], *, batch: bool, keep_going: bool
) -> list[Record[Template]]:
    """The records of a batch, or the only one; refused where one has no text with spans, unless it is left out."""
    lines = _content(text, file)
    records = read_batch(lines, ask, name=file or "stdin") if batch else [_single("".join(lines), text, ask)]
    usable(records, lambda template: None, keep_going=keep_going)
    return records


def _single(content: str, given: str | None, ask: Callable[[Mapping[str, Any]], Template]) -> Record[Template]:
    """The only record of a text that is no batch."""
    single = {"text": content}
    try:
        return Record("", single, ask(single))
    except DataError as error:
        if given is None or len(given) > LONGEST_PATH or not Path(given).is_file():
            raise
        raise DataError(f"{error}; it is the name of a file: --file {given} reads that") from error


def _checked(
    records: Sequence[Record[Template]], max_length: int | None, ask: Callable[..., Template], marker: str
) -> dict[int, Template]:
    """The templates of records, by number; what only looks like a span is named.

    `--max-length` is refused where no span of any record has any length.
    """
    parsed = {number: record.asked for number, record in enumerate(records) if record.asked is not None}
    given = [records[number].given for number in parsed]
    if max_length is not None and given and all(ask(each, longest=1) == ask(each, longest=2) for each in given):
        raise ConfigError(
            f"--max-length is for spans such as [{marker}] that may be any text, and every span here has its own "
            "lengths or choices: leave it out"
        )
    found = ((records[number], mistaken(records[number].given["text"], marker)) for number in parsed)
    looking = [(record.place, near) for record, near in found if near]
    for place, near in looking[:FEW]:
        place, named = f"{place}: " if place else "", shortened(", ".join(map(repr, near)), 120)
        what = "is no span and stays as it is" if len(near) == 1 else "are no spans and stay as they are"
        caution(f"{place}{named} {what}; a span is written [{marker}:12], [{marker}:3-12] or [{marker}]")
    if len(looking) > FEW:
        caution(f"{counted(len(looking) - FEW, 'other record', 'have')} such words too")
    return parsed


def _choices(given: str | None) -> Sequence[str] | None:
    """The texts of `--choices`, which commas part."""
    if given is None:
        return None
    found = [part.replace(r"\,", ",") for part in re.split(r"(?<!\\),", check_given(given, "--choices"))]
    if twice := next((choice for choice in found if found.count(choice) > 1), None):
        raise ConfigError(f"--choices has {shortened(repr(twice), 60)} twice: leave one of them out")
    return found


def _template_of(fields: Mapping[str, Any], marker: str, longest: int, choices: Sequence[str] | None) -> Template:
    """The text and the spans of a record."""
    free_of(WRITTEN, fields)
    if "text" not in fields:
        raise DataError(f'no field "text" with a text in it: {shortened(json.dumps(fields), 60)}')
    try:
        text = check_text(fields["text"])
    except DataError as error:
        raise DataError(f'no field "text" with a text in it: {error}') from error
    return parse_template(text, marker, longest, choices)


def _write_lines(
    records: Sequence[Record[Template]],
    found: "Iterable[Sequence[Infilling]]",
    output: Path | None,
    overwrite: bool,
    keeps: int | None,
) -> None:
    """Writes what is found of each record on a line, as soon as it is finished, behind the bytes that are kept."""
    if not records:
        return
    with resumable(output), line_writer(output, overwrite=overwrite, keeps=keeps) as write:
        for record, alternatives in zip(records, found, strict=True):
            write(json_line({**record.given, **_filled(alternatives)}, output))


def _is_filled(fields: Mapping[str, Any], template: Template) -> bool:
    """Whether what is written on a line is a text with its spans filled."""
    from dlm.lm.canvas import fill

    spans = fields.get("spans")
    if not isinstance(spans, list) or not all(isinstance(span, str) for span in spans):
        return False
    return len(spans) == len(holes_of(template)) and fields.get("text") == fill(template, spans)


def _unfilled(
    wanted: Mapping[int, Record[Template]], begun: Path | None, num: int
) -> tuple[dict[int, Record[Template]], int | None]:
    """The records that are still to be filled, and the bytes that are kept; see `unfinished`.

    Lines of a higher `--num` are refused; of those that may be of a lower one it is told.
    """
    rest, kept = unfinished(wanted, begun, ("text", *WRITTEN), _is_filled)
    counts = [len(found) if isinstance(found := line.get("alternatives"), list) else 0 for line in kept.found]
    for number, count in enumerate(counts, start=1):
        if count > num:
            raise ConfigError(
                f"--resume: line {number} of --output has {counted(count, 'alternative')}, and --num is {num}: give "
                "the same --num"
            )
    if fewer := sum(count < num for count in counts):
        caution(
            f"{counted(fewer, 'line')} of --output that {'is' if fewer == 1 else 'are'} kept "
            f"{'has' if fewer == 1 else 'have'} fewer alternatives than the {num} of --num"
        )
    return rest, kept.size


def _filled(alternatives: "Sequence[Infilling]") -> dict[str, Any]:
    """What is written of a record that was filled, in plain values."""
    plain = [
        {
            "text": found.text,
            "spans": list(found.spans),
            "log_likelihood": found.log_likelihood,
            "network_calls": found.calls,
            "fillings": found.fillings,
            "lengths": list(found.lengths),
            "log_joint": found.log_joint,
            **({} if found.log_whole is None else {"log_whole": found.log_whole}),
        }
        for found in alternatives
    ]
    several = len(alternatives[0].lengths) > 1
    weighed = islice(alternatives[0].length_posterior.items(), MOST_LENGTHS if several else None)
    posterior = [{"lengths": list(lengths), "log_probability": log_p} for lengths, log_p in weighed]
    return {**plain[0], **({"length_posterior": posterior} if posterior else {}), "alternatives": plain}


def _show(alternatives: "Sequence[Infilling]", num: int, higher: str, output: Path | None, overwrite: bool) -> None:
    """Writes the alternatives of a single text, and their likelihoods to stderr."""
    write_text("\n---\n".join(each.text for each in alternatives), output, overwrite=overwrite)
    for rank, each in enumerate(alternatives, start=1):
        note(f"{rank}. {_told(each)}: {shortened(repr(each.spans), 100)}")
    if same := len(alternatives) - len({each.text for each in alternatives}):
        note(f"{counted(same, 'alternative', 'are')} the text of another: they are draws of the model as it is")
    if len(alternatives) < num:
        is_drawn = any(each.calls for each in alternatives)  # else all choices were scored
        more = f"; more are tried by a higher {higher}" if alternatives[0].length_posterior and is_drawn else ""
        texts = "text was" if len(alternatives) == 1 else "texts were"
        note(f"only {len(alternatives):,} different {texts} found, of the {num:,} that --num asks for{more}")


def _told(found: "Infilling") -> str:
    """How likely an alternative is, by what ranks it first, and what it was made of."""
    told = [] if found.log_whole is None else [f"read as a whole, {found.log_whole:.2f} nats"]
    if found.length_posterior:
        what = "length" if len(found.lengths) == 1 else "lengths"
        lengths = ", ".join(map(str, found.lengths))
        told.append(f"log-probability {found.log_joint:.2f} nats ({found.log_length:.2f} for the {what} {lengths})")
    else:
        calls = f", {counted(found.calls, 'network call')}" if found.calls else ""  # choices are scored, not written
        told.append(f"log-likelihood {found.log_likelihood:.2f} nats{calls}")
    if found.fillings > 1:
        told.append(f"put together of {found.fillings} fillings")
    return "; ".join(told)
