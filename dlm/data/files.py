"""Files of documents: which ones a path means, and the documents that text files hold."""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from glob import glob
from itertools import groupby
from pathlib import Path
from typing import Literal

from datasets import Dataset, Features, IterableDataset, Value

from dlm.errors import DataError

COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip"}

TextUnit = Literal["file", "paragraph", "line"]
"""What one document of a text file is."""


def files_of(path: str, suffix: str, key: str) -> list[str]:
    """The files that a path means.

    Args:
        path: A file, a folder or a glob.
        suffix: Which files of a folder are taken, such as `.txt`; any depth.
        key: The source's place in the configuration, for messages.

    Returns:
        Absolute paths, sorted by name.

    Raises:
        DataError: There is no such file.
    """
    found = Path(path).expanduser()
    if found.is_dir():
        files = sorted(found.rglob(f"*{suffix}"))
        if not files:
            raise DataError(f"{key}: the folder {found} holds no *{suffix} file")
    elif found.exists():
        files = [found]
    else:
        files = sorted(Path(name) for name in glob(str(found), recursive=True) if Path(name).is_file())  # noqa: PTH207
        if not files:
            raise DataError(f"{key}: there is no file {path}")
    return [str(file.resolve()) for file in files]


def texts_of(files: list[str], documents: TextUnit, stamp: str) -> Iterator[dict[str, str]]:
    """The documents of text files, one at a time, so that memory holds one document and not one file.

    Args:
        files: Which.
        documents: What one document is. Empty lines separate paragraphs.
        stamp: Not used here: `datasets` names its cache by the arguments, and a stamp makes new content a new cache.

    Yields:
        Rows with the column `text`, byte for byte as in the file.

    Raises:
        DataError: A file is not UTF-8.
    """
    for file in files:
        match documents:
            case "file":
                yield {"text": "".join(_lines(file))}
            case "line":
                for line in _lines(file):
                    parts = line.removesuffix("\n").removesuffix("\r").split("\r")
                    yield from ({"text": part} for part in parts)
            case "paragraph":
                for empty, lines in groupby(_lines(file), lambda line: line in ("\n", "\r\n")):
                    if not empty:
                        yield {"text": "".join(lines).strip("\r\n")}


def read_texts(files: Sequence[str], documents: TextUnit) -> Dataset:
    """Reads the documents of text files into a memory-mapped dataset; see `texts_of`."""
    return Dataset.from_generator(
        texts_of,
        features=Features({"text": Value("large_string")}),
        gen_kwargs={"files": files, "documents": documents, "stamp": stamp_of(files)},
    )


def stream_texts(files: Sequence[str], documents: TextUnit) -> IterableDataset:
    """Opens text files whose documents are read one at a time; processes share the files out."""
    return IterableDataset.from_generator(texts_of, gen_kwargs={"files": files, "documents": documents, "stamp": ""})


def stamp_of(files: Sequence[str]) -> str:
    """A hash of the files' content, so that a cache never gives old text for new."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(repr((file, Path(file).stat().st_size)).encode())
        with Path(file).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def check_utf8(files: Sequence[str], key: str) -> None:
    """Refuses the first file that is not UTF-8; compressed files are skipped, since their bytes are not text."""
    for file in files:
        try:
            deque(() if Path(file).suffix in COMPRESSED else _lines(file), maxlen=0)
        except DataError as error:
            raise DataError(f"{key}: {error}") from error


def is_utf8(path: Path) -> bool:
    """Whether a file is UTF-8 text."""
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _lines(file: str) -> Iterator[str]:
    """The lines of a text file, each with its end."""
    read = 0
    with Path(file).open("rb") as stream:
        for line in stream:
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{file} is not UTF-8 text: byte {read + error.start} cannot be read") from error
            read += len(line)
