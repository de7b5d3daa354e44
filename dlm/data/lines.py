"""Text files line by line, compressed or not, and what their names tell; imports no library of data."""

import bz2
import gzip
import importlib
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from dlm.errors import DataError, one_line


def _open_zstandard(file: str) -> IO[bytes]:
    try:
        library: Any = importlib.import_module("zstandard")
    except ImportError as error:
        raise DataError(f"{file} needs the package zstandard: pip install zstandard, or unpack the file") from error
    return library.open(file, "rb")


OPENERS: Mapping[str, Callable[[str], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}
"""How a compressed file is opened, by its suffix."""

MARK = "\ufeff"
"""The byte-order mark."""

KINDS: Mapping[bytes, tuple[str, str]] = {
    b"PAR1": ("a Parquet file", "train and eval read it by the format parquet; elsewhere give its texts as .jsonl"),
    b"PK\x03\x04": ("a zip archive, or a document that is one, such as .docx", "unpack it, or save it as text"),
    b"%PDF": ("a PDF", "write its text into a file, as pdftotext does"),
    b"\x1f\x8b": ("packed by gzip", "let its name end in .gz"),
    b"BZh": ("packed by bzip2", "let its name end in .bz2"),
    b"\xfd7zXZ": ("packed by xz", "let its name end in .xz"),
    b"\x28\xb5\x2f\xfd": ("packed by Zstandard", "let its name end in .zst"),
    b"SQLite format 3": ("a database of SQLite", "write its texts into a .jsonl or .csv file"),
    b"ARROW1": ("an Arrow file", "write its texts into a .jsonl file"),
}
"""Files that are no text, by their first bytes: what each is, and how it can be read."""

BEGINNING = 64
"""Bytes of a file that tell whether it is UTF-16; the lines that begin there are looked at."""

DAMAGE = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
"""What the libraries of `OPENERS` raise where a file is no archive, or is cut off."""


def bare_suffix(path: str | Path) -> str:
    """The suffix of a name in lower case, without the one of its compression: `.jsonl` of `a.JSONL.gz`."""
    path = Path(str(path).lower())
    return (path.with_suffix("") if path.suffix in OPENERS else path).suffix


def split_lines(text: str) -> Iterator[str]:
    r"""The lines of a text.

    Args:
        text: The text.

    Yields:
        Each line with its end, which is `\n`, `\r\n` or `\r` and no other character.
    """
    body = text.removesuffix("\n").removesuffix("\r")
    if "\n" not in body and "\r" not in body:  # one line, as most often
        if text:
            yield text
    else:
        yield from (found.group() for found in re.finditer(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+\Z", text))


def lines_of(file: str, *, keeps_mark: bool = False) -> Iterator[str]:
    r"""The lines of a text file, which may be compressed.

    Args:
        file: Its path.
        keeps_mark: Whether a byte-order mark, which some programs write first, stays before the first line. It belongs
            to the file and not to its text.

    Yields:
        Each line, as `split_lines` does.

    Raises:
        DataError: It is not UTF-8, such as UTF-16, which is named, or the compressed data is damaged.
    """
    read = number = 0
    with OPENERS.get(Path(file).suffix.lower(), _open)(file) as stream:
        try:
            for line in _narrow(stream, file):
                number += 1
                text = line.decode("utf-8")
                if not read and not keeps_mark:
                    text = text.removeprefix(MARK)
                read += len(line)
                yield from split_lines(text)
        except UnicodeDecodeError as error:
            _check_text(_head(file), file)
            raise _not_utf8(file, read + error.start, number) from error
        except DAMAGE as error:
            raise DataError(f"{file} cannot be unpacked: {one_line(error, 160)}") from error
        except OSError as error:  # bz2 has no error of its own
            raise DataError(f"{file} cannot be read: {one_line(error, 160)}") from error


def text_of(content: bytes, name: str) -> str:
    """The text of what was read whole.

    Args:
        content: Bytes.
        name: Where they come from, for messages.

    Returns:
        The text.

    Raises:
        DataError: It is not UTF-8, such as UTF-16, which is named.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        _check_narrow(content[:BEGINNING], name)
        _check_text(content[:BEGINNING], name)
        raise _not_utf8(name, error.start, 1 + content[: error.start].count(b"\n")) from error
    _check_narrow(content[:BEGINNING], name)
    return text


def _not_utf8(name: str, byte: int, line: int) -> DataError:
    told = f"{name} is not UTF-8 text: byte {byte}, on line {line}, cannot be read"
    return DataError(f"{told}; if it is text in Latin-1, iconv -f LATIN1 -t UTF-8 converts it")


def _narrow(stream: Iterable[bytes], file: str) -> Iterator[bytes]:
    """The lines of a file, whose beginning is looked at before the first is given out."""
    lines, head = iter(stream), list[bytes]()
    while sum(map(len, head)) < BEGINNING and (line := next(lines, b"")):
        head.append(line)
    _check_narrow(b"".join(head), file)
    yield from head
    yield from lines


def _check_narrow(head: bytes, name: str) -> None:
    """Refuses a text whose characters have two bytes or four, by the name of its encoding."""
    if code := _wide_code(head):
        _check_text(head, name)
        raise DataError(f"{name} is {code}, not UTF-8 text; convert it: iconv -f {code} -t UTF-8 FILE")


def _wide_code(head: bytes) -> str:
    """What the beginning of a file is encoded in, if a character has two bytes or four: by its mark, or by zeros."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    pairs = len(head) // 2
    zeros = max(head[0::2].count(0), head[1::2].count(0))
    is_wide = head.startswith((b"\xff\xfe", b"\xfe\xff")) or (pairs > 1 and 2 * zeros > pairs)
    return "UTF-16" if is_wide else ""


def _head(file: str) -> bytes:
    """The beginning of a file, as it is on the disk or unpacked."""
    with OPENERS.get(Path(file).suffix.lower(), _open)(file) as stream:
        return bytes(stream.read(BEGINNING))


def _check_text(head: bytes, file: str) -> None:
    """Refuses a file that is no text by the name of what it is, where its first bytes tell that."""
    for mark, (name, remedy) in KINDS.items():
        if head.startswith(mark):
            raise DataError(f"{file} is {name} and no text: {remedy}")


def _open(file: str) -> IO[bytes]:
    return Path(file).open("rb")
