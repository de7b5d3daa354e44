"""The formats of documents: each declares its suffixes, how it is read and how it is streamed.

To add a format, write a class here and put its name in `AnyFormat`. All of them go through HuggingFace `datasets`.
"""

import difflib
import hashlib
import json
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any, ClassVar, get_args

import datasets
import pyarrow.parquet
from datasets import Dataset, Features, IterableDataset, Value, load_dataset, load_from_disk
from typing_extensions import override

from dlm import hub
from dlm.data.chats import CHATS
from dlm.data.files import (
    TextUnit,
    check_separator,
    files_of,
    is_utf8,
    read_rows,
    read_texts,
    stamp_of,
    stream_texts,
)
from dlm.data.keys import listed, option_of, shown
from dlm.data.records import Read, csv_records, json_records, names_in, rows_of
from dlm.errors import ConfigError, DataError, DlmError, one_line
from dlm.paths import expand

STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

MARKUP = (".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".log", ".srt", ".html", ".htm", ".css")
SOURCE_CODE = (".py", ".sh", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".hs", ".java", ".jl", ".js", ".ts")
MORE_SOURCE_CODE = (".kt", ".lean", ".lua", ".ml", ".php", ".pl", ".r", ".rb", ".rs", ".scala", ".sql", ".swift")
PLAIN_TEXT = (*MARKUP, *SOURCE_CODE, *MORE_SOURCE_CODE)
"""Suffixes of files that are known to be plain text; a folder is searched for them where it holds no `.txt`."""

FIRST_RECORDS = 10_000
"""Records at the beginning of a stream in which its columns must come."""

PARQUET_ROWS = 1_000
"""Rows a batch of a Parquet file that begins with a group of none."""

SHARDS = 64
"""Parts of a dataset saved to disk, which processes share."""


class Format(ABC):
    """One format of documents, and where they are.

    Each format is a frozen dataclass. Its fields are what its reader needs of `Source`: a format with a field `path`
    needs a path, and only one with a field `split` or `subset` has some to choose from.

    Attributes:
        name: What `format` in the configuration calls it.
        suffixes: The suffixes of its files, in lower case. A folder is searched for them, and a file that the command
            line names is read in the format that declares its suffix.
        alone: Further suffixes of its files; a folder is searched for them where it holds none of `suffixes`.
        marks: Files by which a folder is known to be one dataset in this format.
        tabular: Whether documents are rows with named columns, of which the source names those to read. Otherwise
            each document is one text, in the column `text`.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    alone: ClassVar[tuple[str, ...]] = ()
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
    """UTF-8 text, byte for byte: one document a file, a paragraph, a line, or between two separators."""

    path: str
    documents: TextUnit
    name = "text"
    suffixes = (".txt",)
    alone = PLAIN_TEXT
    tabular = False

    @override
    def read(self, key: str) -> Dataset:
        files = self._files(key)
        check_separator(files, self.documents, key)
        return read_texts(files, self.documents, key)

    @override
    def stream(self, key: str) -> IterableDataset:
        files = self._files(key)
        if self.documents == "file" and len(files) == 1:
            raise ConfigError(
                f"{option_of(key, 'documents')}: one file is one document, which is never read in parts; "
                "set line or paragraph"
            )
        check_separator(files, self.documents, key)
        return stream_texts(files, self.documents)

    def _files(self, key: str) -> list[str]:
        return files_of(self.path, self.suffixes, key, self.alone)


@dataclass(frozen=True)
class Records(Format):
    """Records in text files, of which nothing but the columns asked for is read; see `dlm.data.records`.

    Attributes:
        path: A file, a folder or a glob.
        columns: The columns to read, by the key of the source that names them.
        skip_invalid: Whether what is no chat is kept, to be counted and left out.
    """

    path: str
    columns: Mapping[str, tuple[str, ...]]
    skip_invalid: bool

    @abstractmethod
    def records(self) -> Read:
        """A function that gives the records of a file; it goes into the name of a cache."""

    @override
    def read(self, key: str) -> Dataset:
        files = self._files(key)
        columns = self._checked(files, key, None)
        given = {
            "files": files,
            "read": self.records(),
            "columns": columns,
            "keeps_invalid": self.skip_invalid,
        }
        if "messages" in columns.values():
            given["version"] = CHATS
        return read_rows(rows_of, given, list(columns), key)

    @override
    def stream(self, key: str) -> IterableDataset:
        files = self._files(key)
        given = {"files": files, "read": self.records(), "columns": self._checked(files, key, FIRST_RECORDS)}
        return IterableDataset.from_generator(rows_of, gen_kwargs={**given, "stamp": ""})

    def _files(self, key: str) -> list[str]:
        return files_of(self.path, self.suffixes, key, self.alone)

    def _checked(self, files: Sequence[str], key: str, most: int | None) -> dict[str, str]:
        """The wanted columns and the keys that name them, if they are there."""
        wanted = {column: option for option, columns in self.columns.items() for column in columns}
        try:
            names = names_in(files, self.records(), wanted, most)
        except DataError as error:
            raise DataError(f"{key}: {self.path} cannot be read as {self.name}: {error}") from error
        if names is None:
            raise no_rows(self.path, key)
        check_columns(names, self.columns, self.path, key)
        return wanted


@dataclass(frozen=True)
class Jsonl(Records):
    """One JSON object a line, or one array of objects."""

    name = "jsonl"
    suffixes = (".jsonl", ".ndjson")
    alone = (".json",)

    @override
    def records(self) -> Read:
        return json_records


@dataclass(frozen=True)
class Csv(Records):
    """Comma-separated values, with the columns' names in the first row."""

    delimiter: ClassVar[str] = ","
    name = "csv"
    suffixes = (".csv",)

    @override
    def records(self) -> Read:
        return partial(csv_records, delimiter=self.delimiter)


@dataclass(frozen=True)
class Tsv(Csv):
    """Tab-separated values, with the columns' names in the first row; quotes stand as in `Csv`."""

    delimiter: ClassVar[str] = "\t"
    name = "tsv"
    suffixes = (".tsv",)


@dataclass(frozen=True)
class Parquet(Format):
    """Apache Parquet, of which nothing but the columns asked for is read.

    Attributes:
        path: A file, a folder or a glob.
        columns: The columns to read, by the key of the source that names them.
    """

    path: str
    columns: Mapping[str, tuple[str, ...]]
    name = "parquet"
    suffixes = (".parquet",)

    @override
    def read(self, key: str) -> Dataset:
        files, options = self._opened(key)
        # The cache knows a file by its path and time; the content goes into the name of the build instead.
        build = hashlib.blake2b(stamp_of(files).encode(), digest_size=8).hexdigest()
        try:
            return load_dataset("parquet", build, data_files=_escaped(files), split="train", **options)
        except Exception as error:  # pyarrow and datasets each raise their own
            reason = one_line(error.__cause__ or error, 160)
            raise DataError(f"{key}: {self.path} cannot be read as parquet: {reason}") from error

    @override
    def stream(self, key: str) -> IterableDataset:
        files, options = self._opened(key)
        return load_dataset("parquet", data_files=_escaped(files), split="train", streaming=True, **options)

    def _opened(self, key: str) -> tuple[list[str], dict[str, Any]]:
        """The files that have rows, and how they are read.

        Every file must have the wanted columns, which are text wherever they hold some or nothing.
        """
        wanted = {column: option for option, columns in self.columns.items() for column in columns}
        options: dict[str, Any] = {"columns": [*wanted]}
        kinds, filled = [], []
        for file in files_of(self.path, self.suffixes, key):
            try:
                about = pyarrow.parquet.read_metadata(file)
                schema = about.schema.to_arrow_schema()
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{key}: {file} cannot be read as parquet: {one_line(error, 160)}") from error
            check_columns(schema.names, self.columns, file, key)
            if twice := [column for column in wanted if schema.names.count(column) > 1]:
                option = option_of(key, wanted[twice[0]])
                raise DataError(f"{option}: {file}: {twice[0]!r} stands there twice: rename one of the two")
            kinds += [schema.field(column).type for column in wanted]
            if about.num_rows:
                filled.append(file)
                if not about.row_group(0).num_rows:  # from which datasets takes the size of its batches
                    options["batch_size"] = PARQUET_ROWS
        if not filled:
            raise no_rows(self.path, key)
        if all(map(_is_text, kinds)):
            options["features"] = Features(dict.fromkeys(wanted, Value("large_string")))
        return filled, options


@dataclass(frozen=True)
class Saved(Format):
    """A folder that `save_to_disk` of `datasets` wrote."""

    path: str
    split: str | None
    name = "saved"
    marks = ("state.json", "dataset_dict.json")

    @override
    def read(self, key: str) -> Dataset:
        documents = self._opened(key)
        # The fingerprint on disk says how it was made, not what it holds: other text could come under the same one.
        documents._fingerprint = stamp_of([file["filename"] for file in documents.cache_files])
        return documents

    @override
    def stream(self, key: str) -> IterableDataset:
        documents = self._opened(key)
        return documents.to_iterable_dataset(num_shards=min(SHARDS, len(documents)))

    def _opened(self, key: str) -> Dataset:
        """The split that is asked for; a dataset without splits has at most the one that it came from.

        No other split is opened, as `datasets` opens none that has no rows.
        """
        folder, option = expand(self.path), option_of(key, "split")
        try:
            splits = _json(folder / "dataset_dict.json").get("splits")
            name = self.split or "train"
            if splits is not None and name not in splits:
                raise ConfigError(f"{option}: {self.path} has no split {name!r}; it has {listed(splits)}")
            folder = folder if splits is None else folder / name
            if _json(folder / "state.json").get("_data_files") == []:
                raise no_rows(self.path, key)
            found = load_from_disk(str(folder))
        except DlmError:
            raise
        except Exception as error:  # datasets and pyarrow each raise their own
            raise DataError(f"{key}: {self.path} is no dataset saved to disk: {one_line(error, 160)}") from error
        if not len(found):
            raise no_rows(self.path, key)
        if splits is None and self.split not in (None, str(found.split)):
            raise ConfigError(f"{option}: {self.path} has no splits, got {self.split!r}; leave {option} out")
        return found


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
                f"{key}: there is no file or folder {self.path}, and no such dataset could be had from the Hub: "
                f"{one_line(error, 160)}"
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
        return read_texts(self._files(key), "file", key)

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


AnyFormat = Text | Jsonl | Csv | Tsv | Parquet | Saved | Hub | PythonStdlib

FORMATS: Mapping[str, type[AnyFormat]] = {choice.name: choice for choice in get_args(AnyFormat)}
"""The formats by name."""


def check_columns(names: Sequence[str], wanted: Mapping[str, Sequence[str]], where: str, key: str) -> None:
    """Refuses a column that is not there.

    Args:
        names: The columns that are.
        wanted: The columns that are asked for, by the key of the source that names them.
        where: What has the columns, for messages.
        key: The source's place in the configuration, for messages.

    Raises:
        DataError: A column is not there; the message names the nearest one.
    """
    for option, columns in wanted.items():
        for column in columns:
            if column not in names:
                near = difflib.get_close_matches(column, names, n=1)
                hint = f"did you mean {shown(near[0])}? " if near else ""
                raise DataError(
                    f"{option_of(key, option)}: {where} has no field {column!r}; {hint}it has {listed(names) or 'none'}"
                )


def no_rows(where: str, key: str) -> DataError:
    """The error for a table without rows.

    Args:
        where: What has none, for messages.
        key: The source's place in the configuration, for messages.

    Returns:
        The error.
    """
    return DataError(f"{key}: {where} holds no row, so there is no text at all")


def _json(file: Path) -> dict[str, Any]:
    """What a file of JSON holds; nothing where there is none."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _is_text(kind: pyarrow.DataType) -> bool:
    """Whether a column of Arrow holds text, or nothing."""
    types = pyarrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind)


def _escaped(files: Sequence[str]) -> list[str]:
    """Names for `datasets`, which takes each for a pattern: unescaped, `[1].jsonl` would read `1.jsonl`."""
    return [escape(file) for file in files]
