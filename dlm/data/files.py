"""Files of documents: which ones a path means, and the documents that text files hold."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from glob import glob
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, Features, IterableDataset, Value
from datasets.exceptions import DatasetGenerationError

from dlm.config import Separator
from dlm.data.keys import option_of, shown
from dlm.data.lines import bare_suffix, lines_of
from dlm.data.pace import paced
from dlm.data.records import with_key
from dlm.errors import DataError
from dlm.paths import expand

TextUnit = Literal["file", "paragraph", "line"] | Separator
"""What one document of a text file is."""

HIDDEN = (".", "~$")
"""How the names of hidden files begin: those of the system, and the locks of office programs."""


def files_of(path: str, suffixes: Sequence[str], key: str, others: Sequence[str] = ()) -> list[str]:
    """The files that a path means.

    Args:
        path: A file, a folder or a glob.
        suffixes: Which files of a folder are taken, such as `.txt`; see `files_in`. Compressed ones are taken too.
        key: The source's place in the configuration, for messages.
        others: Which are taken where a folder holds none of those.

    Returns:
        Absolute paths, sorted by name; each file once, though it may have several names.

    Raises:
        DataError: There is no such file.
    """
    found = expand(path)
    if found.is_dir():
        held = files_in(found, key)
        files = [file for file in held if bare_suffix(file) in suffixes]
        files = files or [file for file in held if bare_suffix(file) in others]
        if not files:
            wanted = " or ".join(f"*{suffix}" for suffix in suffixes)
            raise DataError(f"{key}: the folder {found} holds no {wanted} file; it holds {summary(held)}")
    elif found.is_file():
        files = [found]
    elif found.exists():
        raise DataError(f"{key}: {found} is no file that can be read twice, as its text is; write it into a file")
    else:
        files = matching(found, key)
        if not files:
            raise DataError(f"{key}: there is no file {shown(path)}")
    return [
        str(file.absolute()) for file in _once(files)
    ]  # not resolved: the suffix of a link says how its file is read


def files_in(folder: Path, key: str) -> list[Path]:
    """The files of a folder, at any depth.

    Args:
        folder: The folder. Folders in it may be symbolic links. Hidden files and folders in it, such as `.git`,
            `._a.txt` and `~$a.txt`, are left out.
        key: The source's place in the configuration, for messages.

    Returns:
        Their paths, sorted by name; a file may have several.

    Raises:
        DataError: A folder cannot be read.
    """
    return sorted(file for file in _walk(folder, key, hidden=False) if file.is_file())


def matching(pattern: Path, key: str) -> list[Path]:
    """The files that a glob means.

    Args:
        pattern: The glob, in which `**` stands for any number of folders. Signs for any character mean hidden files
            and folders only where their names begin in the pattern, as in `.*`.
        key: The source's place in the configuration, for messages.

    Returns:
        Their paths, sorted by name; a file may have several.

    Raises:
        DataError: A folder cannot be read.
    """
    parts = pattern.parts
    fixed = parts.index("**") if "**" in parts else len(parts)
    bases = [Path(name) for name in glob(str(Path(*parts[:fixed])))]  # noqa: PTH207 - a pattern may be absolute
    if fixed == len(parts):
        return sorted(base for base in bases if _names(parts[-1], base.name) and base.is_file())
    rest = parts[fixed:]
    hidden = any(part.startswith(HIDDEN) for part in rest)
    walks = ((base, _walk(base, key, hidden=hidden)) for base in bases if base.is_dir())
    found = (file for base, files in walks for file in files if _fits(file.relative_to(base).parts, rest))
    return sorted(file for file in found if file.is_file())


def _walk(folder: Path, key: str, *, hidden: bool) -> Iterator[Path]:
    """All files below a folder; no link leads back into a folder that it stands in."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{key}: the folder {error.filename} cannot be read: {error.strerror}") from error

    above = {str(folder): frozenset({os.path.realpath(folder)})}
    for here, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        folders[:] = [name for name in folders if hidden or not name.startswith(HIDDEN)]
        for name in [*folders]:
            inner = os.path.join(here, name)  # noqa: PTH118 - as `walk` writes it
            if (real := os.path.realpath(inner)) in above[here]:
                folders.remove(name)
            above[inner] = above[here] | {real}
        yield from (Path(here, name) for name in files if hidden or not name.startswith(HIDDEN))


def _names(pattern: str, name: str) -> bool:
    """Whether a part of a glob means a name; a hidden one has to begin in the pattern."""
    signs = [sign for sign in HIDDEN if name.startswith(sign)]
    return fnmatchcase(name, pattern) and all(pattern.startswith(sign) for sign in signs)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path are those of a glob."""
    if not pattern:
        return not parts
    if pattern[0] != "**":
        return bool(parts) and _names(pattern[0], parts[0]) and _fits(parts[1:], pattern[1:])
    if _fits(parts, pattern[1:]) or (len(pattern) == 1 and len(parts) == 1):
        return True
    return bool(parts) and not parts[0].startswith(HIDDEN) and _fits(parts[1:], pattern)


def summary(files: Sequence[Path]) -> str:
    """How many files of each suffix there are, in words."""
    counts = Counter(bare_suffix(file) for file in files).most_common()
    named = [f"{count} {f'*{suffix}' if suffix else 'without a suffix'}" for suffix, count in counts]
    more = f" and {len(named) - 5} other kinds" if len(named) > 5 else ""
    return f"{', '.join(named[:5])}{more}" if named else "no file, or hidden ones alone"


def _once(files: Iterable[Path]) -> list[Path]:
    """Files, each once, sorted by name: by the first of its names, if it can be one that says how it is read."""
    found: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: (not bare_suffix(file), file)):
        found.setdefault(os.path.realpath(file), file)
    return sorted(found.values())


def texts_of(files: list[str], documents: TextUnit, stamp: str) -> Iterator[dict[str, str]]:
    """The documents of text files, one at a time, so that memory holds one document and not one file.

    Args:
        files: Which.
        documents: What one document is. Lines of blanks separate paragraphs.
        stamp: Not used here: `datasets` names its cache by the arguments, and a stamp makes new content a new cache.

    Yields:
        Rows with the column `text`, byte for byte as in the file, but for a byte-order mark at its beginning.

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
            f"{option_of(key, 'documents')}: no line is the separator {documents.separator!r} in {files[0]}"
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
            partial(_paced, generate),
            features=Features(dict.fromkeys(columns, Value("large_string"))),
            gen_kwargs={**given, "stamp": stamp_of(given["files"])},
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise with_key(error.__cause__, key) from error
        raise


def _paced(generate: Callable[..., Iterator[dict[str, Any]]], **given: Any) -> Iterator[dict[str, Any]]:
    """The rows of a generator, with their count in a terminal."""
    return paced(generate(**given), "reading", "rows")


def stamp_of(files: Sequence[str]) -> str:
    """A hash of the files' content and of how they are read, so that a cache never gives old text for new."""
    digest = hashlib.blake2b(b"3", digest_size=16)  # counts the changes of what the same files and arguments give
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


def _parted(file: str, parts: Callable[[str], bool]) -> Iterator[dict[str, str]]:
    """The texts between the lines of a file that part them."""
    for between, lines in groupby(lines_of(file), parts):
        if not between:
            yield {"text": "".join(lines).strip("\r\n")}
