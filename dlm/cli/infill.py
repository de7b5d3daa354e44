"""`dlm infill`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlm.cli import options
from dlm.cli.console import errors, quiet_libraries, read_text, write_data
from dlm.cli.writing import check_outputs, load, recording
from dlm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dlm.lm import Infilling


def infill(
    context: typer.Context,
    model: options.Model,
    text: Annotated[
        str | None, typer.Argument(help="Text with spans such as [MASK:12]; - reads stdin.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Read the text from a file; .jsonl is a batch.", show_default=False)
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help='A batch: a {"text": ...} a line in, an object a line out.')
    ] = False,
    num: Annotated[int, typer.Option(min=1, help="Alternatives, the likeliest first.")] = 1,
    marker: Annotated[str, typer.Option(help="The word that marks a span.")] = "MASK",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts written side by side.")] = 16,
    *,
    seed: options.Seed = 0,
    dtype: options.HeldIn = "auto",
    quantised: options.Load = None,
    device: options.Device = None,
    output: options.Output = None,
    export: options.Export = None,
    watch: options.Watching = False,
    as_json: options.Json = False,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,
) -> None:
    r"""Fill masked spans anywhere in a text and leave the rest as it is.

    A backslash makes a marker literal: \[MASK:3] stands for the text [MASK:3].

    Example:  dlm infill runs/tiny "def add(a, b):\n    return [MASK:8]\n"
    """
    check_outputs(output, export, overwrite)
    records = list(_records(text, file, jsonl))
    quiet_libraries()
    from dlm.template import parse_template

    how = options.build_sampler(context.obj)
    templates = [_named(where, parse_template, record["text"], marker) for where, record in records]
    lm = load(model, device, dtype, quantised)
    with recording(lm, f"dlm infill {model}", watch, export) as take:
        results = lm.infill_many(templates, num=num, sampler=how, seed=seed, batch_size=batch_size, watch=take)
    if as_json or records[0][0]:
        lines = [
            json.dumps({**record, **_plain(found[0]), "alternatives": [*map(_plain, found)]}, ensure_ascii=False)
            for (_, record), found in zip(records, results, strict=True)
        ]
        write_data("\n".join(lines), output, overwrite=overwrite)
        return
    (alternatives,) = results
    write_data("\n---\n".join(found.text for found in alternatives), output, overwrite=overwrite)
    for rank, found in enumerate(alternatives, start=1):
        score = f"log-likelihood {found.log_likelihood:.2f} nats, {found.calls} network calls"
        errors.print(
            f"{rank}. {score}: {found.spans!r:.100}",
            style="dim",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _plain(found: "Infilling") -> dict[str, Any]:
    """An alternative as plain values."""
    return {
        "text": found.text,
        "spans": list(found.spans),
        "log_likelihood": found.log_likelihood,
        "network_calls": found.calls,
    }


def _records(text: str | None, file: Path | None, jsonl: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """What to fill: each with the line it stands in, for messages, or nothing for a single text."""
    if (text is None) == (file is None):
        raise ConfigError('give the text, or --file FILE, or - for stdin; for example dlm infill MODEL "a [MASK:3] b"')
    if file is not None:
        content = _read(file)
    else:
        assert text is not None
        content = read_text(text)
    if not jsonl and (file is None or file.suffix != ".jsonl"):
        yield "", {"text": content}
        return
    empty = True
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        empty = False
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"line {number} is not JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise DataError(f'line {number} has no field "text" with a text in it: {line:.60}')
        yield f"line {number}: ", record
    if empty:
        raise DataError(f"{file or 'stdin'} holds no line to fill")


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: byte {error.start} cannot be read") from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error


def _named(where: str, parse: Any, text: str, marker: str) -> Any:
    try:
        return parse(text, marker)
    except DataError as error:
        raise DataError(f"{where}{error}") from error
