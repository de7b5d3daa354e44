"""Records of JSON lines and of CSV, one at a time: only the columns that are asked for, as the text that stands there.

No type is guessed, so a column that no one asked for may hold anything, and nothing becomes a date, a number or a null.
"""

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from dlm.data.chats import messages_of
from dlm.data.keys import option_of
from dlm.data.lines import lines_of
from dlm.data.text import TWICE, Twice, check_text
from dlm.errors import DataError, shortened
from dlm.plain import counted

Record = tuple[str, Mapping[str, Any]]
"""A place in a file, such as `line 7`, and what stands there, by column."""

JSON_FILE = "a file holds one object a line, or one array of objects"

Read = Callable[[str], Iterator[Record]]
"""Gives the records of a file."""


PARTED = {",": "commas", "\t": "tabs", ";": "semicolons"}
"""What stands between the columns of a file."""


class ColumnError(DataError):
    """A column of a record does not hold what it should.

    Attributes:
        option: The key of the source that names the column.
    """

    def __init__(self, message: str, option: str) -> None:
        """Keeps the message and the key.

        Args:
            message: What the column holds, and where.
            option: The key.
        """
        super().__init__(message)
        self.option = option


def with_key(error: DataError, key: str) -> DataError:
    """The error with the key of its source before it."""
    return DataError(f"{option_of(key, error.option) if isinstance(error, ColumnError) else key}: {error}")


def _marking(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, in which `TWICE` stands for what has the same name as another."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        found |= {name: TWICE for name, count in counts.items() if count > 1}
    return found


def _refusing(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, in which each name stands once."""
    found = _marking(pairs)
    if twice := [name for name, value in found.items() if value is TWICE]:
        raise DataError(f"{twice[0]!r} stands there twice: leave one of the two out")
    return found


MARKING = json.JSONDecoder(object_pairs_hook=_marking)
"""Reads JSON for what is wanted of it; see `TWICE`."""

REFUSING = json.JSONDecoder(object_pairs_hook=_refusing)
"""Reads JSON for all of it, and refuses names that stand twice."""


def parse_record(line: str, decoder: json.JSONDecoder = REFUSING) -> dict[str, Any]:
    """Reads a line of JSON lines.

    Args:
        line: The line.
        decoder: What becomes of a name that stands twice.

    Returns:
        The object that stands there.

    Raises:
        DataError: It is no object in JSON, or a name stands twice in it.
    """
    text = line.strip()
    try:
        record = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(_why(error, text)) from error
    if not isinstance(record, dict):
        raise DataError(f"no object in JSON: {shortened(line.strip(), 60)}")
    return record


def json_records(file: str) -> Iterator[Record]:
    r"""The records of a file of JSON lines, or of one array of objects.

    Args:
        file: Its path. Only `\n`, `\r\n` and `\r` end a line, and lines of blanks are left out.

    Yields:
        Each record and its place.

    Raises:
        DataError: It is not UTF-8, or a line is no object in JSON.
    """
    begun = False
    lines = lines_of(file)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if not begun and line.lstrip().startswith("["):
            yield from _array("".join([line, *lines]), file)
            return
        begun = True
        try:
            record = parse_record(line, MARKING)
        except DataError as error:
            raise DataError(f"line {number} of {file}: {error}; {JSON_FILE}") from error
        yield f"line {number}", record


def csv_records(file: str, delimiter: str) -> Iterator[Record]:
    """The records of a file of separated values, whose first row names the columns.

    Args:
        file: Its path.
        delimiter: Stands between two values. Values that hold it are in double quotes.

    Yields:
        Each record and its place.

    Raises:
        DataError: It is not UTF-8, or a row has more or fewer values than there are columns, or others than the
            delimiter part its columns.
    """
    lines, told = lines_of(file), 0
    first = next(lines, "")
    if named := re.fullmatch(r'"?sep=(\t|[^\w\s"])"?[\r\n]*', first):  # as Excel writes it, and reads it
        delimiter, told = named[1], 1
    else:
        lines = chain((first,), lines)
    csv.field_size_limit(2**31 - 1)  # 131,072 by default, and a text may be longer
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    twice: dict[str, Any] = {}
    last = told
    try:
        for row in rows:
            place, last = f"line {last + 1}", rows.line_num + told
            if not row:
                continue
            if names is None:
                names = row
                _check_parted(names, delimiter, file)
                twice = dict.fromkeys((name for name, count in Counter(names).items() if count > 1), Twice(place))
                continue
            if len(row) != len(names):
                raise DataError(
                    f"{place} of {file} has {counted(len(row), 'value')}, and there "
                    f"{'is' if len(names) == 1 else 'are'} {counted(len(names), 'column')}"
                )
            yield place, dict(zip(names, row, strict=True)) | twice
    except csv.Error as error:
        raise DataError(f"the row at line {last + 1} of {file} cannot be read: {error}") from error


def _check_parted(names: Sequence[str], delimiter: str, file: str) -> None:
    """Refuses a single name that holds what other files have between their columns, such as Excel's semicolon."""
    remedies = {
        ";": "write sep=; as its first line, or save it with commas",
        "\t": "name it .tsv, or give the format tsv",
        ",": "name it .csv, or give the format csv",
    }
    for other, remedy in remedies.items():
        if delimiter in PARTED and other != delimiter and len(names) == 1 and other in names[0]:
            raise DataError(
                f"{file} has {PARTED[other]} between its columns, where {PARTED[delimiter]} are read: {remedy}"
            )


def names_in(files: Iterable[str], read: Read, wanted: Iterable[str], most: int | None = None) -> list[str] | None:
    """The columns that files have: those of the first record with all that are wanted, or of all records.

    Args:
        files: Which.
        read: Gives the records of a file.
        wanted: The columns that are asked for; a record may leave some out.
        most: The most records to look at; None for all, until all columns are found.

    Returns:
        The names, in the order of the file; None where there is no record.

    Raises:
        DataError: A file cannot be read.
    """
    names: dict[str, None] = {}
    missing = set(wanted)
    count = 0
    for count, (_, record) in enumerate((found for file in files for found in read(file)), start=1):
        names |= dict.fromkeys(record)
        missing -= record.keys()
        if not missing or count == most:
            break
    return list(names) if count else None


def rows_of(
    files: list[str], read: Read, columns: Mapping[str, str], stamp: str, keeps_invalid: bool = False, version: int = 0
) -> Iterator[dict[str, str | None]]:
    """The wanted columns of files of records.

    Args:
        files: Which.
        read: Gives the records of a file.
        columns: The columns, and the key of the source that names each. Those of `messages` hold chats, others text.
        stamp: As for `texts_of`.
        keeps_invalid: Whether what is no chat is JSON of itself, for whoever leaves it out and counts it.
        version: Not used here: it goes into the name of the cache, as `stamp` does; that of chats is `CHATS`.

    Yields:
        Rows of text. A chat is JSON of its messages, and a record without a column has null in it.

    Raises:
        ColumnError: A record does not hold what its columns should; the message names its place.
        DataError: A file cannot be read.
    """
    for file in files:
        for place, record in read(file):
            row: dict[str, str | None] = {}
            for column, option in columns.items():
                value = record.get(column)
                try:
                    if value is not None and option == "messages":
                        value = _chat(value, keeps_invalid)
                    row[column] = None if value is None else check_text(value)
                except DataError as error:
                    where = value.place if isinstance(value, Twice) and value.place else place
                    raise ColumnError(f"{where} of {file}: {column!r} {error}", option) from error
            yield row


def _chat(value: Any, keeps_invalid: bool) -> str:
    """JSON of the messages of a chat; or of the value itself, where it is none and is to be kept."""
    try:
        return json.dumps(messages_of(value), ensure_ascii=False)
    except DataError:
        if not keeps_invalid:
            raise
        # Half of a character could not be kept, and becomes its escape, which JSON reads as the same half.
        return (
            value.encode("utf-8", "backslashreplace").decode()
            if isinstance(value, str)
            else json.dumps(value, default=_kept)
        )


def _kept(twice: object) -> dict[str, str]:
    """What JSON keeps of a name that stands twice; it is no chat and no part of one."""
    return {"invalid": repr(twice)}


def _array(text: str, file: str) -> Iterator[Record]:
    """The objects of one array in JSON, which fills a file."""
    try:
        records = MARKING.decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: {_why(error, text)}; {JSON_FILE}") from error
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise DataError(
                f"record {number} of {file}: no object in JSON: {shortened(json.dumps(record, default=repr), 60)}"
            )
        yield f"record {number}", record


def _why(error: ValueError | RecursionError, text: str) -> str:
    """Why a text cannot be read as JSON."""
    if isinstance(error, RecursionError):
        return "the JSON is nested too deeply to be read"
    if not isinstance(error, json.JSONDecodeError):  # Python refuses to convert long numbers
        return f"a number in the JSON is too long, of more than {sys.get_int_max_str_digits():,} digits"
    if error.msg != "Extra data" and error.pos >= len(text.rstrip()) - 1 and text.startswith("{"):
        return "not JSON: the line ends before its object does"
    where = f"line {error.lineno}, character {error.colno}" if "\n" in text.strip() else f"character {error.pos + 1}"
    return f"not JSON: {error.msg.removesuffix(' at')} at {where}"
