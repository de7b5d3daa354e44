"""Batches of `dlm infill`: one record a line in, one a line out; one that cannot be filled is named by its line."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm.cli.console import errors
from dlm.data.lines import bare_suffix
from dlm.data.records import check_text, parse_record
from dlm.errors import BatchError, DataError
from dlm.template import Template, parse_template

if TYPE_CHECKING:
    from dlm.lm import Infilling


@dataclass
class Record:
    """A text to fill.

    Attributes:
        place: Where it stands, such as `line 3`; empty for a single text.
        given: What stands there; it is written out again, with the filled text in place of the text.
        template: The text and its spans.
        error: Why it cannot be filled, in a line that names its place; empty where it can.
    """

    place: str
    given: dict[str, Any]
    template: Template = ()
    error: str = ""

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Keeps the first error in a block as the reason why this record cannot be filled."""
        try:
            yield
        except DataError as error:
            self.error = f"{self.place}: {error}" if self.place else str(error)

    def filled(self, alternatives: "Sequence[Infilling]") -> dict[str, Any]:
        """What is written of it, in plain values."""
        plain = [
            {
                "text": found.text,
                "spans": list(found.spans),
                "log_likelihood": found.log_likelihood,
                "network_calls": found.calls,
            }
            for found in alternatives
        ]
        return {**self.given, **plain[0], "alternatives": plain}


def is_batch(file: Path) -> bool:
    """Whether a file holds one record a line, by its name; it may be compressed."""
    return bare_suffix(file) in (".jsonl", ".ndjson")


def read_batch(lines: Iterable[str], marker: str) -> Iterator[Record]:
    """Reads the records of a batch.

    Args:
        lines: Its lines; those of blanks are left out.
        marker: The word that marks a span.

    Yields:
        Each record, also one that cannot be filled.
    """
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix("\ufeff") if number == 1 else line
        if not text.strip():
            continue
        record = Record(f"line {number}", {})
        with record.failing():
            record.given = parse_record(text)
            if "text" not in record.given:
                raise DataError(f'no field "text" with a text in it: {text.strip():.60}')
            try:
                check_text(record.given["text"])
            except DataError as error:
                raise DataError(f'no field "text" with a text in it: {error}') from error
            record.template = parse_template(record.given["text"], marker)
        yield record


def report(records: Sequence[Record]) -> None:
    """Names the records that could not be filled.

    Args:
        records: All of them.

    Raises:
        BatchError: There is one.
    """
    bad = [record for record in records if record.error]
    for record in bad:
        errors.print(record.error, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if bad:
        raise BatchError(f"{len(bad)} of {len(records)} records could not be filled; the others are done")
