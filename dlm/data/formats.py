"""The formats of documents: each declares its suffixes, how it is read and how it is streamed.

To add a format, write a class here and put its name in `AnyFormat`. All of them go through HuggingFace `datasets`.
"""

import difflib
import hashlib
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from glob import escape
from pathlib import Path
from typing import Any, ClassVar, get_args

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from typing_extensions import override

from dlm import hub
from dlm.config import Source
from dlm.data.files import TextUnit, check_utf8, files_of, is_utf8, read_texts, stamp_of, stream_texts
from dlm.errors import ConfigError, DataError, one_line

STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

SHARDS = 64
"""Parts of a dataset saved to disk, which processes share."""


class Format(ABC):
    """One format of documents, and where they are.

    Each format is a frozen dataclass. Its fields are the keys of `Source` that its reader needs: a format with a field
    `path` needs a path, and only one with a field `split` has splits to choose from.

    Attributes:
        name: What `format` in the configuration calls it.
        suffixes: The suffixes of its files. A folder is searched for files with the first one, and a file that the
            command line names is read in the format that declares its suffix.
        marks: Files by which a folder is known to be one dataset in this format.
        tabular: Whether documents are rows with named columns, of which the source names those to read. Otherwise
            each document is one text, in the column `text`.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    marks: ClassVar[tuple[str, ...]] = ()
    tabular: ClassVar[bool] = True

    @abstractmethod
    def read(self, key: str) -> Dataset:
        """Reads all documents before training begins.

        Args:
            key: The source's place in the configuration, for messages, such as `data.train`.

        Returns:
            A memory-mapped dataset. Its fingerprint changes with the content, as caches are named by it.

        Raises:
            ConfigError: There is no such split.
            DataError: The documents are missing, damaged or empty.
        """

    @abstractmethod
    def stream(self, key: str) -> IterableDataset:
        """Opens the documents, to be read while training goes on.

        Args:
            key: As for `read`.

        Returns:
            A dataset with a cursor, `state_dict`. `open_stream` turns errors that are not ours into one line.

        Raises:
            ConfigError: There is no such split, or the documents cannot be read in parts.
            DataError: The documents are missing.
        """


@dataclass(frozen=True)
class Text(Format):
    """UTF-8 text, byte for byte: one document a file, a paragraph (separated by empty lines) or a line."""

    path: str
    documents: TextUnit
    name = "text"
    suffixes = (".txt",)
    tabular = False

    @override
    def read(self, key: str) -> Dataset:
        return read_texts(files_of(self.path, self.suffixes[0], key), self.documents)

    @override
    def stream(self, key: str) -> IterableDataset:
        files = files_of(self.path, self.suffixes[0], key)
        if self.documents == "file" and len(files) == 1:
            raise ConfigError(
                f"{key}.documents: one file is one document, which is never read in parts; set line or paragraph"
            )
        return stream_texts(files, self.documents)


@dataclass(frozen=True)
class Table(Format):
    """Rows with named columns, in a file format that `datasets` reads itself.

    Attributes:
        path: A file, a folder or a glob.
        builder: What `datasets` calls the format.
        binary: Whether the files hold no UTF-8 text.
    """

    path: str
    builder: ClassVar[str]
    binary: ClassVar[bool] = False

    def options(self) -> dict[str, Any]:
        """What the reader in `datasets` is told."""
        return {}

    @override
    def read(self, key: str) -> Dataset:
        files = files_of(self.path, self.suffixes[0], key)
        if all(Path(file).stat().st_size == 0 for file in files):
            raise DataError(f"{key}: {self.path} is empty")
        if not self.binary:
            check_utf8(files, key)  # pyarrow's JSON reader takes any bytes, and fails where they are used
        # The cache knows a file by its path and time; the content goes into the name of the build instead.
        build = hashlib.blake2b(stamp_of(files).encode(), digest_size=8).hexdigest()
        try:
            return load_dataset(self.builder, build, data_files=_escaped(files), split="train", **self.options())
        except Exception as error:  # pyarrow, pandas and datasets each raise their own
            reason = one_line(error.__cause__ or error, 160)
            raise DataError(f"{key}: {self.path} cannot be read as {self.name}: {reason}") from error

    @override
    def stream(self, key: str) -> IterableDataset:
        files = files_of(self.path, self.suffixes[0], key)
        return load_dataset(self.builder, data_files=_escaped(files), split="train", streaming=True, **self.options())


@dataclass(frozen=True)
class Jsonl(Table):
    """One JSON object a line."""

    name = "jsonl"
    suffixes = (".jsonl", ".json")
    builder = "json"


@dataclass(frozen=True)
class Csv(Table):
    """Comma-separated values, with the columns' names in the first row."""

    field: str
    prompt: str | None
    response: str | None
    name = "csv"
    suffixes = (".csv",)
    builder = "csv"

    @override
    def options(self) -> dict[str, Any]:
        return as_text(self.field, self.prompt, self.response)


@dataclass(frozen=True)
class Parquet(Table):
    """Apache Parquet."""

    name = "parquet"
    suffixes = (".parquet",)
    builder = "parquet"
    binary = True


@dataclass(frozen=True)
class Saved(Format):
    """A folder that `save_to_disk` of `datasets` wrote."""

    path: str
    split: str | None
    name = "saved"
    marks = ("state.json", "dataset_dict.json")

    @override
    def read(self, key: str) -> Dataset:
        try:
            found = load_from_disk(self.path)
        except Exception as error:  # datasets and pyarrow each raise their own
            raise DataError(f"{key}: {self.path} is no dataset saved to disk: {one_line(error, 160)}") from error
        documents = self._split_of(found, key)
        # The fingerprint on disk says how it was made, not what it holds: other text could come under the same one.
        documents._fingerprint = stamp_of([file["filename"] for file in documents.cache_files])
        return documents

    @override
    def stream(self, key: str) -> IterableDataset:
        documents = self._split_of(load_from_disk(self.path), key)
        return documents.to_iterable_dataset(num_shards=min(SHARDS, max(len(documents), 1)))

    def _split_of(self, found: Dataset | DatasetDict, key: str) -> Dataset:
        """The split that is asked for; a dataset without splits has at most the one that it came from."""
        if isinstance(found, Dataset):
            if self.split in (None, str(found.split)):
                return found
            raise ConfigError(f"{key}.split: {self.path} has no splits, got {self.split!r}; leave {key}.split out")
        name = self.split or "train"
        if name not in found:
            raise ConfigError(f"{key}.split: {self.path} has no split {name!r}; it has {', '.join(map(str, found))}")
        return found[name]


@dataclass(frozen=True)
class Hub(Format):
    """A dataset on the HuggingFace Hub, by its name; no code of the dataset's own is run."""

    path: str
    split: str | None
    subset: str | None
    name = "hub"

    @override
    def read(self, key: str) -> Dataset:
        try:
            if not (Path(datasets.config.HF_DATASETS_CACHE) / self.path.replace("/", "___")).exists():
                hub.ask(self.path, "dataset")
            return load_dataset(self.path, self.subset, split=self.split or "train")
        except Exception as error:  # datasets and huggingface_hub each raise their own
            raise DataError(
                f"{key}: the dataset {self.path} cannot be had from the Hub: {one_line(error, 160)}"
            ) from error

    @override
    def stream(self, key: str) -> IterableDataset:
        hub.ask(self.path, "dataset")
        return load_dataset(self.path, self.subset, split=self.split or "train", streaming=True)


@dataclass(frozen=True)
class PythonStdlib(Format):
    """The source of this Python's standard library without its tests: text that every machine has."""

    name = "python-stdlib"
    tabular = False

    @override
    def read(self, key: str) -> Dataset:
        return read_texts(self._files(key), "file")

    @override
    def stream(self, key: str) -> IterableDataset:
        return stream_texts(self._files(key), "file")

    def _files(self, key: str) -> list[str]:
        root = Path(sysconfig.get_path("stdlib"))
        files = sorted(
            str(path)
            for path in root.rglob("*.py")
            if not STDLIB_LEFT_OUT & set(path.relative_to(root).parts) and is_utf8(path)
        )
        if not files:
            raise DataError(f"{key}: this Python has no source of its standard library at {root}; name another corpus")
        return files


AnyFormat = Text | Jsonl | Csv | Parquet | Saved | Hub | PythonStdlib

FORMATS: Mapping[str, type[AnyFormat]] = {choice.name: choice for choice in get_args(AnyFormat)}
"""The formats by name."""


def format_of(source: Source, key: str) -> AnyFormat:
    """The format of a source, with its options.

    Args:
        source: Which.
        key: Its place in the configuration, for messages.

    Returns:
        The format; whether its files are there is not known yet.

    Raises:
        ConfigError: There is no such format, it lacks its path, or it has no splits and one is asked for.
    """
    if source.format not in FORMATS:
        near = difflib.get_close_matches(source.format, FORMATS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{key}.format: there is no format {source.format!r}; {hint}valid: {', '.join(FORMATS)}")
    choice = FORMATS[source.format]
    options = {option.name: getattr(source, option.name) for option in fields(choice)}
    if "path" in options and source.path is None:
        raise ConfigError(f"{key}.path is missing: the format {source.format} needs one, as in --set {key}.path=FILE")
    if "split" not in options and source.split not in (None, "train"):
        raise ConfigError(f"{key}.split: {source.format} has no splits, got {source.split!r}; name the files instead")
    return choice(**options)


def source_of(data: str, field: str | None = None, split: str | None = None) -> Source:
    """The source that a name on the command line means.

    Args:
        data: A file, a folder, a glob, the name of a dataset on the Hub, or of a format that needs no path.
        field: The column that holds the text.
        split: Which split, where there are several.

    Returns:
        The source. The format is known by the marks of a folder or by a suffix; other paths are text, and other names
        are datasets on the Hub. It may still turn out not to be there.
    """
    path = Path(data).expanduser()
    choices: Sequence[type[AnyFormat]] = get_args(AnyFormat)
    if any(choice.name == data and not fields(choice) for choice in choices):
        return Source(data)
    marked = (choice for choice in choices if any((path / mark).exists() for mark in choice.marks))
    by_suffix = (choice for choice in choices if path.suffix in choice.suffixes)
    is_path = path.exists() or path.suffix or data.startswith((".", "/", "~")) or "*" in data
    choice = next(marked, None) or next(by_suffix, Text if is_path else Hub)
    return Source(choice.name, data, field or "text", split)


def as_text(*columns: str | None) -> dict[str, Any]:
    """Options by which pandas reads columns of CSV as the text in the file: 007, NA and None are text."""
    return {"keep_default_na": False, "converters": {column: str for column in columns if column is not None}}


def _escaped(files: Sequence[str]) -> list[str]:
    """Names for `datasets`, which takes each for a pattern: unescaped, `[1].jsonl` would read `1.jsonl`."""
    return [escape(file) for file in files]
