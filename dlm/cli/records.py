"""Batches: one record a line in, one a line out; one that cannot be used is named by its line."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import typer

from dlm.cli.console import caution, json_line, note, read_text
from dlm.data.chats import messages_of
from dlm.data.lines import MARK, bare_suffix, lines_of, split_lines
from dlm.data.records import parse_record
from dlm.errors import BatchError, ConfigError, DataError, InterruptedRunError
from dlm.plain import counted

Asked = TypeVar("Asked")

Resume = Annotated[
    bool, typer.Option("--resume", help="Keep the lines that --output has already, and write the others.")
]


@dataclass
class Record(Generic[Asked]):
    """A record of a batch.

    Attributes:
        place: Where it stands, such as `line 3`; empty for what does not come from a batch.
        given: What stands there; it is written out again, with what was made of it.
        asked: What it asks for; None where it cannot be used.
        error: Why it cannot be used, in a line that names its place; empty where it can.
    """

    place: str
    given: dict[str, Any]
    asked: Asked | None = None
    error: str = ""

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Keeps the first error in a block as the reason why this record cannot be used."""
        try:
            yield
        except DataError as error:
            self.asked, self.error = None, f"{self.place}: {error}" if self.place else str(error)


def is_batch(file: Path) -> bool:
    """Whether a file holds one record a line, by its name; it may be compressed."""
    return bare_suffix(file) in (".jsonl", ".ndjson")


def file_lines(file: Path) -> list[str]:
    """The lines of a file, which may be compressed.

    Args:
        file: Its path; - stands for stdin.

    Returns:
        The lines.

    Raises:
        DataError: It cannot be read, or is not UTF-8.
    """
    if str(file) == "-":
        return [*split_lines(read_text("-"))]
    try:
        return [*lines_of(str(file), keeps_mark=True)]
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error


def read_batch(
    lines: Iterable[str],
    ask: Callable[[Mapping[str, Any]], Asked],
    *,
    name: object,
    parse: Callable[[str], dict[str, Any]] = parse_record,
) -> list[Record[Asked]]:
    """Reads the records of a batch, also those that cannot be used.

    Args:
        lines: Its lines; those of blanks are left out.
        ask: What a record asks for; it raises `DataError` for one that cannot be used.
        name: Where they come from, for messages.
        parse: What stands on a line, by field; it raises `DataError` for one that cannot be read.

    Returns:
        The records.

    Raises:
        DataError: There is none.
    """
    records: list[Record[Asked]] = []
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(MARK) if number == 1 else line
        if not text.strip():
            continue
        record: Record[Asked] = Record(f"line {number}", {})
        with record.failing():
            record.given = parse(text)
            _check_numbers(record.given)
            record.asked = ask(record.given)
        records.append(record)
    if not records:
        raise DataError(f"{name} holds no line with a record")
    return records


def _check_numbers(fields: Mapping[str, Any]) -> None:
    """Refuses a record that cannot be written again as it is, as JSON."""
    try:
        json.dumps(fields, allow_nan=False)
    except ValueError as error:
        raise DataError("it has a number that JSON or a computer has none for, such as NaN or 1e400") from error


def usable(
    records: Sequence[Record[Asked]], check: Callable[[Asked], object], *, keep_going: bool
) -> dict[int, Record[Asked]]:
    """Checks records.

    Args:
        records: All of them.
        check: Raises `DataError` for one that cannot be used.
        keep_going: Whether those are left out.

    Returns:
        Those that can be used, by their numbers, which count the others too.

    Raises:
        DataError: One cannot be used, and is not left out.
    """
    for record in records:
        if record.asked is not None:
            with record.failing():
                check(record.asked)
        if record.error and not keep_going:
            raise DataError(f"{record.error}; --keep-going leaves out bad lines" if record.place else record.error)
    return {number: record for number, record in enumerate(records) if not record.error}


def chat_of(messages: Any) -> list[dict[str, Any]]:
    """The messages of a record.

    Args:
        messages: What stands there.

    Returns:
        At least one.

    Raises:
        DataError: It is no chat, or an empty one.
    """
    try:
        chat = [{key: part for key, part in message.items() if key != "weight"} for message in messages_of(messages)]
    except DataError as error:
        raise DataError(f"messages {error}") from error
    if not chat:
        raise DataError("messages is empty: there is nothing to answer")
    return chat


def free_of(names: Sequence[str], fields: Mapping[str, Any]) -> None:
    """Refuses a record that has a field where a result is to be written.

    Args:
        names: Fields that are written.
        fields: The record.

    Raises:
        DataError: It has one of them.
    """
    if taken := [name for name in names if name in fields]:
        raise DataError(f'the field "{taken[0]}" is where what is found is written: give it another name')


@dataclass(frozen=True)
class Kept:
    """The lines that an earlier run has written.

    Attributes:
        found: What was found of each record, by field, without the record's own.
        size: The bytes of these lines; what stands behind them is part of a line. None where nothing is gone on with.
    """

    found: Sequence[Mapping[str, Any]] = ()
    size: int | None = None


def read_kept(
    output: Path,
    records: Sequence[Record[Any]],
    written: Sequence[str],
    is_of: Callable[[Mapping[str, Any], Any], bool] | None = None,
) -> Kept:
    """Reads the lines that an earlier run has written, and checks that they are of the same records.

    Args:
        output: Where they are; there may be no such file.
        records: The records, in the order in which they are written.
        written: The fields that are written beside a record's own, or in the place of one.
        is_of: (what is written on a line, what a record asks for) -> whether it may be of this record; None where the
            record's own fields say that.

    Returns:
        The lines.

    Raises:
        ConfigError: A line is of another record, or of none.
    """
    remedy = "give the input that it was made of, another --output, or --overwrite"
    content = output.read_bytes() if output.exists() else b""
    *lines, part = content.split(b"\n")
    if len(lines) + bool(part) > len(records):
        raise ConfigError(
            f"--resume: {output} has {counted(len(lines) + bool(part), 'line')}, and the input has {len(records)} that "
            f"can be used: {remedy}"
        )
    found = []
    for number, (line, record) in enumerate(zip(lines, records, strict=False), start=1):
        try:
            fields = parse_record(line.decode())
        except (DataError, UnicodeDecodeError) as error:
            raise ConfigError(f"--resume: line {number} of {output} is no line of this command: {remedy}") from error
        own = {name: value for name, value in fields.items() if name not in written}
        given = {name: value for name, value in record.given.items() if name not in written}
        found.append({name: value for name, value in fields.items() if name in written})
        # NaN is not equal to itself
        if json.dumps(own) != json.dumps(given) or (is_of and not is_of(found[-1], record.asked)):
            raise ConfigError(f"--resume: line {number} of {output} is of another record than {record.place}: {remedy}")
    if part:  # of a line that was being written; else it is someone's text, and is left alone
        given = dict(takewhile(lambda item: item[0] not in written, records[len(lines)].given.items()))
        begun = json_line(given, output).removesuffix("}").encode()
        if part[: len(begun)] != begun[: len(part)]:
            raise ConfigError(f"--resume: line {len(lines) + 1} of {output} is no line of this command: {remedy}")
    return Kept(found, len(content) - len(part))


def check_single(batch: str, *, keep_going: bool, resume: bool) -> None:
    """Refuses options of a batch where there is none.

    Args:
        batch: What they are for, and how it is asked for.
        keep_going: The value of `--keep-going`.
        resume: The value of `--resume`.

    Raises:
        ConfigError: One of them is given.
    """
    for name, given in (("--keep-going", keep_going), ("--resume", resume)):
        if given:
            raise ConfigError(f"{name} is for {batch}")


def check_resume(resume: bool, output: Path | None, overwrite: bool) -> None:
    """Refuses `--resume` where there is nothing to go on with.

    Args:
        resume: The value of `--resume`.
        output: The value of `--output`.
        overwrite: The value of `--overwrite`.

    Raises:
        ConfigError: There is no file to go on with.
    """
    if resume and (output is None or overwrite):
        raise ConfigError("--resume goes on with the file of --output: give that, without --overwrite")


def unfinished(
    wanted: Mapping[int, Record[Asked]],
    begun: Path | None,
    written: Sequence[str],
    is_of: Callable[[Mapping[str, Any], Any], bool] | None = None,
) -> tuple[dict[int, Record[Asked]], Kept]:
    """The records of which an earlier run has not written the line.

    Args:
        wanted: Records by their numbers, in the order in which they are written.
        begun: What that run has written; None where nothing is gone on with.
        written: As for `read_kept`, as is `is_of`.
        is_of: Whether a line may be of a record; None where its own fields say that.

    Returns:
        The rest of the records, and the lines that are kept.

    Raises:
        ConfigError: A line is of another record, or of none.
    """
    if begun is None:
        return dict(wanted), Kept()
    kept = read_kept(begun, [*wanted.values()], written, is_of)
    if wanted and len(kept.found) == len(wanted):
        note(f"{begun} has all {counted(len(wanted), 'line')} already")
    return dict([*wanted.items()][len(kept.found) :]), kept


@contextmanager
def resumable(output: Path | None) -> Iterator[None]:
    """Says on Ctrl-C how to go on, where a file has some of the lines.

    Args:
        output: The value of `--output`.

    Raises:
        InterruptedRunError: There was a Ctrl-C, and the file has lines.
    """
    try:
        yield
    except KeyboardInterrupt:
        if output is None or not output.is_file() or not output.stat().st_size:
            raise
        raise InterruptedRunError(
            f"interrupted: {output} has the lines that are finished; for the others, give --resume, without --overwrite"
        ) from None


def report(records: Sequence[Record[Any]]) -> None:
    """Names the records that could not be used.

    Args:
        records: All of them.

    Raises:
        BatchError: There is one.
    """
    bad = [record for record in records if record.error]
    for record in bad:
        caution(record.error)
    if bad:
        what = f"{len(bad)} of {counted(len(records), 'record')} could not be used"
        raise BatchError(what if len(bad) == len(records) else f"{what}; the others are done")
