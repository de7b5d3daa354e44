"""Files of documents: which ones a path means, what they hold line by line, and the documents that text files hold."""

import bz2
import gzip
import hashlib
import importlib
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from glob import glob
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Literal

from datasets import Dataset, Features, IterableDataset, Value
from datasets.exceptions import DatasetGenerationError

from dlm.config import Separator
from dlm.errors import DataError, one_line

TextUnit = Literal["file", "paragraph", "line"] | Separator
"""What one document of a text file is."""


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

DAMAGE = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
"""What the libraries of `OPENERS` raise where a file is no archive, or is cut off."""


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
    return DataError(f"{key}.{error.option}: {error}" if isinstance(error, ColumnError) else f"{key}: {error}")


def bare_suffix(path: str | Path) -> str:
    """The suffix of a name in lower case, without the one of its compression: `.jsonl` of `a.JSONL.gz`."""
    path = Path(str(path).lower())
    return (path.with_suffix("") if path.suffix in OPENERS else path).suffix


def expand(path: str) -> Path:
    """A path whose `~` stands for the home folder; a user that is not there leaves it as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - that of pathlib raises where there is no such user


def files_of(path: str, suffixes: Sequence[str], key: str) -> list[str]:
    """The files that a path means.

    Args:
        path: A file, a folder or a glob.
        suffixes: Which files of a folder are taken, such as `.txt`; any depth, compressed or not.
        key: The source's place in the configuration, for messages.

    Returns:
        Absolute paths, sorted by name.

    Raises:
        DataError: There is no such file.
    """
    found = expand(path)
    if found.is_dir():
        files = sorted(file for file in found.rglob("*") if bare_suffix(file) in suffixes and file.is_file())
        if not files:
            wanted = " or ".join(f"*{suffix}" for suffix in suffixes)
            raise DataError(f"{key}: the folder {found} holds no {wanted} file")
    elif found.exists():
        files = [found]
    else:
        files = sorted(Path(name) for name in glob(str(found), recursive=True) if Path(name).is_file())  # noqa: PTH207
        if not files:
            raise DataError(f"{key}: there is no file {path}")
    return [str(file.resolve()) for file in files]


def lines_of(file: str) -> Iterator[str]:
    r"""The lines of a text file, which may be compressed.

    Args:
        file: Its path.

    Yields:
        Each line with its end, which is `\n`, `\r\n` or `\r` and no other character.

    Raises:
        DataError: It is not UTF-8, or the compressed data is damaged.
    """
    read = 0
    with OPENERS.get(Path(file).suffix.lower(), _open)(file) as stream:
        try:
            for line in stream:
                text = line.decode("utf-8")
                read += len(line)
                if "\r" in text.removesuffix("\n").removesuffix("\r"):
                    yield from re.split(r"(?<=\r)(?!\n|\Z)", text)
                else:
                    yield text
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8 text: byte {read + error.start} cannot be read") from error
        except DAMAGE as error:
            raise DataError(f"{file} cannot be unpacked: {one_line(error, 160)}") from error
        except OSError as error:  # bz2 has no error of its own
            raise DataError(f"{file} cannot be read: {one_line(error, 160)}") from error


def texts_of(files: list[str], documents: TextUnit, stamp: str) -> Iterator[dict[str, str]]:
    """The documents of text files, one at a time, so that memory holds one document and not one file.

    Args:
        files: Which.
        documents: What one document is. Lines of blanks separate paragraphs.
        stamp: Not used here: `datasets` names its cache by the arguments, and a stamp makes new content a new cache.

    Yields:
        Rows with the column `text`, byte for byte as in the file.

    Raises:
        DataError: A file is not UTF-8.
    """
    for file in files:
        match documents:
            case "file":
                yield {"text": "".join(lines_of(file))}
            case "line":
                for line in lines_of(file):
                    yield {"text": line.rstrip("\r\n")}
            case "paragraph":
                yield from _parted(file, str.isspace)
            case Separator():
                yield from _parted(file, documents.parts)


def read_texts(files: Sequence[str], documents: TextUnit, key: str) -> Dataset:
    """Reads the documents of text files into a memory-mapped dataset; see `texts_of`."""
    return read_rows(texts_of, {"files": files, "documents": documents}, ["text"], key)


def stream_texts(files: Sequence[str], documents: TextUnit) -> IterableDataset:
    """Opens text files whose documents are read one at a time; processes share the files out."""
    return IterableDataset.from_generator(texts_of, gen_kwargs={"files": files, "documents": documents, "stamp": ""})


def check_separator(files: Sequence[str], documents: TextUnit, key: str) -> None:
    """Refuses a separator that is in none of the files, which would make each of them one document.

    Args:
        files: Which.
        documents: What one document is.
        key: The source's place in the configuration, for messages.

    Raises:
        DataError: No line of any file is the separator.
    """
    if isinstance(documents, Separator) and not any(
        map(documents.parts, (x for file in files for x in lines_of(file)))
    ):
        raise DataError(
            f"{key}.documents: no line is the separator {documents.separator!r} in {files[0]}"
            f"{f' and {len(files) - 1} more' if len(files) > 1 else ''}; it must stand on a line of its own"
        )


def read_rows(
    generate: Callable[..., Iterator[dict[str, Any]]], given: Mapping[str, Any], columns: Sequence[str], key: str
) -> Dataset:
    """Reads rows of text into a memory-mapped dataset, or finds them in the cache of `datasets`.

    Args:
        generate: Gives the rows. It is called with the arguments `given`, and a `stamp` of the content of the files.
        given: Its other arguments; `files` is one of them.
        columns: The columns of its rows.
        key: The source's place in the configuration, for messages.

    Returns:
        The rows; every column holds text.

    Raises:
        DataError: What the generator raises, with the key before it.
    """
    try:
        return Dataset.from_generator(
            generate,
            features=Features(dict.fromkeys(columns, Value("large_string"))),
            gen_kwargs={**given, "stamp": stamp_of(given["files"])},
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise with_key(error.__cause__, key) from error
        raise


def stamp_of(files: Sequence[str]) -> str:
    """A hash of the files' content and of how they are read, so that a cache never gives old text for new."""
    digest = hashlib.blake2b(b"2", digest_size=16)  # counts the changes of what the same files and arguments give
    for file in files:
        digest.update(repr((file, Path(file).stat().st_size)).encode())
        with Path(file).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def is_utf8(path: Path) -> bool:
    """Whether a file is UTF-8 text."""
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _open(file: str) -> IO[bytes]:
    return Path(file).open("rb")


def _parted(file: str, parts: Callable[[str], bool]) -> Iterator[dict[str, str]]:
    """The texts between the lines of a file that part them."""
    for between, lines in groupby(lines_of(file), parts):
        if not between:
            yield {"text": "".join(lines).strip("\r\n")}
