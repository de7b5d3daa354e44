"""Where documents come from: one reader a format, all of them through HuggingFace `datasets`.

To add a format, write a reader and name it in `READERS`.
"""

import difflib
import hashlib
import json
import logging
import sysconfig
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from glob import escape, glob
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from dlm.config import Data, Source
from dlm.errors import ConfigError, DataError

STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip"}


@dataclass(frozen=True)
class Splits:
    """The documents of a run, as `read` gives them.

    Attributes:
        train: What is learned from.
        validation: What is kept back.
    """

    train: Dataset
    validation: Dataset


def read(source: Source, key: str) -> Dataset:
    """Reads the documents of a source.

    Args:
        source: Which.
        key: Its place in the configuration, for messages, such as `data.train`.

    Returns:
        A memory-mapped dataset with a column `text` and no empty document. Of prompts and responses these are the
        responses, with a column `prompt` beside them; of chats the assistant's messages, with the columns `messages`,
        which holds those before each as JSON, and `chat`, which holds all of them.

    Raises:
        ConfigError: The format, the path or the split is not valid.
        DataError: The documents are missing, damaged, empty, or not where the source says.
    """
    check_source(source, key)
    with _quiet():
        documents = _columns(READERS[source.format](source, key), source, key)
        documents = documents.filter(_any_text, batched=True, input_columns="text")
    if not len(documents):
        raise DataError(f"{key}: {source.path or source.format} holds no text at all")
    return documents


def check_source(source: Source, key: str) -> None:
    """Refuses a format that there is none of, one without its path, and a split of what has none."""
    if source.format not in READERS:
        near = difflib.get_close_matches(source.format, READERS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{key}.format: there is no format {source.format!r}; {hint}valid: {', '.join(READERS)}")
    if source.path is None and source.format != "python-stdlib":
        raise ConfigError(f"{key}.path is missing: the format {source.format} needs one, as in --set {key}.path=FILE")
    if source.format not in ("saved", "hub") and source.split not in (None, "train"):
        raise ConfigError(f"{key}.split: {source.format} has no splits, got {source.split!r}; name the files instead")


def source_of(data: str, field: str | None = None, split: str | None = None) -> Source:
    """The source that a name on the command line means, by its suffix.

    Args:
        data: A file, a folder, a glob, `python-stdlib`, or the name of a dataset on the Hub.
        field: The column that holds the text.
        split: Which split, where there are several.

    Returns:
        The source, which may still turn out not to be there.
    """
    path = Path(data).expanduser()
    suffixes = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
    if data == "python-stdlib":
        return Source("python-stdlib")
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        kind = "saved"
    elif path.exists() or path.suffix or data.startswith((".", "/", "~")) or "*" in data:
        kind = suffixes.get(path.suffix, "text")
    else:
        kind = "hub"
    return Source(kind, data, field or "text", split)


def read_splits(data: Data) -> Splits:
    """Reads what to train on and what to validate on.

    Args:
        data: The sources, and what is held out where there is one only.

    Returns:
        Both, neither of them empty.

    Raises:
        ConfigError: A source is not valid.
        DataError: A source cannot be read, or there is too little to hold any of it out.
    """
    train = read(data.train, "data.train")
    if data.validation is not None:
        return Splits(train, read(data.validation, "data.validation"))
    share = data.held_out.share
    columns: dict[str, Any] = {"batched": True, "input_columns": "text"}
    whole = columns | {"input_columns": "chat" if "chat" in train.column_names else "text"}
    with _quiet():
        if data.held_out.by == "tail":
            parts = [train.map(partial(_cut, share=share, tail=tail), **columns) for tail in (False, True)]
        else:
            parts = [train.filter(partial(kept_back, share=share, wanted=back), **whole) for back in (False, True)]
        head, tail = (part.filter(_any_text, **columns) for part in parts)
    if not len(head) or not len(tail):
        raise DataError(
            f"data.held_out: a share of {share} of {len(train)} documents by {data.held_out.by} leaves "
            f"{len(head)} to train on and {len(tail)} to validate on; hold out by tail, change the share, "
            "or name a data.validation"
        )
    return Splits(head, tail)


def _read_text(source: Source, key: str) -> Dataset:
    """Documents byte for byte: a file, or its paragraphs (parted by empty lines), or its lines."""
    files = files_of(source, key, "txt")
    return Dataset.from_generator(
        texts_of,
        features=Features({"text": Value("large_string")}),
        gen_kwargs={"files": files, "documents": source.documents, "stamp": _stamp(files)},
    )


def _read_files(source: Source, key: str, *, builder: str, suffix: str) -> Dataset:
    """A table in one of the formats that `datasets` reads itself."""
    files = files_of(source, key, suffix)
    if all(Path(file).stat().st_size == 0 for file in files):
        raise DataError(f"{key}: {source.path} is empty")
    if builder != "parquet":
        _check_utf8(files, key)  # pyarrow's JSON reader takes any bytes, and fails where they are used
    # The cache knows a file by its path and time; the content goes into the name of the build instead.
    build = hashlib.blake2b(_stamp(files).encode(), digest_size=8).hexdigest()
    try:
        # A name is a pattern to `datasets`: unescaped, `[1].jsonl` would read `1.jsonl`.
        return load_dataset(
            builder, build, data_files=[escape(file) for file in files], split="train", **options_of(source)
        )
    except Exception as error:  # pyarrow, pandas and datasets each raise their own
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:160]
        raise DataError(f"{key}: {source.path} cannot be read as {source.format}: {reason}") from error


def options_of(source: Source) -> dict[str, Any]:
    """What the reader of a format is told: that in CSV what is read is text, such as 007, NA and None."""
    if source.format != "csv":
        return {}
    columns = (source.field, source.prompt, source.response)
    return {"keep_default_na": False, "converters": {column: str for column in columns if column is not None}}


def _read_saved(source: Source, key: str) -> Dataset:
    """What `save_to_disk` wrote."""
    assert source.path is not None
    try:
        found = load_from_disk(source.path)
    except Exception as error:
        raise DataError(f"{key}: {source.path} is no dataset saved to disk: {line_of(error)}") from error
    documents = split_of(found, source, key)
    # The fingerprint on disk says how it was made, not what it holds: other text could come under the same one.
    documents._fingerprint = _stamp([file["filename"] for file in documents.cache_files])
    return documents


def _read_hub(source: Source, key: str) -> Dataset:
    """A dataset from the Hub; no code of its own is run."""
    assert source.path is not None
    try:
        if not (Path(datasets.config.HF_DATASETS_CACHE) / source.path.replace("/", "___")).exists():
            ask_hub(source.path)
        return load_dataset(source.path, source.subset, split=source.split or "train")
    except Exception as error:
        raise DataError(f"{key}: the dataset {source.path} cannot be had from the Hub: {line_of(error)}") from error


def ask_hub(name: str) -> None:
    """Raises where the Hub does not answer: asked once, where `datasets` would try for half a minute."""
    with suppress(HfHubHTTPError, ValueError):  # an answer; `datasets` says what is wrong
        HfApi().repo_exists(name, repo_type="dataset")


def _read_stdlib(source: Source, key: str) -> Dataset:
    """The source text of this Python's standard library, tests left out."""
    files = stdlib_files(key)
    return Dataset.from_generator(
        texts_of,
        features=Features({"text": Value("large_string")}),
        gen_kwargs={"files": files, "documents": "file", "stamp": _stamp(files)},
    )


def stdlib_files(key: str) -> list[str]:
    """The source files of this Python's standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        str(path)
        for path in root.rglob("*.py")
        if not STDLIB_LEFT_OUT & set(path.relative_to(root).parts) and _is_utf8(path)
    )
    if not files:
        raise DataError(f"{key}: this Python has no source of its standard library at {root}; name another corpus")
    return files


READERS: Mapping[str, Callable[[Source, str], Dataset]] = {
    "text": _read_text,
    "jsonl": partial(_read_files, builder="json", suffix="jsonl"),
    "csv": partial(_read_files, builder="csv", suffix="csv"),
    "parquet": partial(_read_files, builder="parquet", suffix="parquet"),
    "saved": _read_saved,
    "hub": _read_hub,
    "python-stdlib": _read_stdlib,
}


def files_of(source: Source, key: str, suffix: str) -> list[str]:
    """The files that a path means: one, those of a folder, or those of a glob."""
    assert source.path is not None
    path = Path(source.path).expanduser()
    if path.is_dir():
        files = sorted(path.rglob(f"*.{suffix}"))
        if not files:
            raise DataError(f"{key}: the folder {path} holds no *.{suffix} file")
    elif path.exists():
        files = [path]
    else:
        files = sorted(Path(name) for name in glob(str(path), recursive=True) if Path(name).is_file())  # noqa: PTH207
        if not files:
            raise DataError(f"{key}: there is no file {source.path}")
    return [str(file.resolve()) for file in files]


def texts_of(files: list[str], documents: str, stamp: str) -> Iterator[dict[str, str]]:
    """The documents of text files, no more of which is held than one document; the stamp is for the cache alone."""
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


def _stamp(files: list[str]) -> str:
    """A hash of the files' content, so that a cache never gives old text for new."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(repr((file, Path(file).stat().st_size)).encode())
        with Path(file).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def _columns(documents: Dataset, source: Source, key: str) -> Dataset:
    """The columns that are wanted of a source, under the names that the rest of the house knows."""
    if source.messages is not None:
        check_column(documents.column_names, source.messages, "messages", source, key)
        chats = documents.select_columns(source.messages)
        turns = partial(_turns, column=source.messages, key=key)
        return chats.map(turns, batched=True, remove_columns=chats.column_names)
    own = source.format in ("text", "python-stdlib")
    names = {"text" if own else source.field: "text"}
    if source.prompt is not None and source.response is not None:
        names = {source.response: "text", source.prompt: "prompt"}
    for column, name in names.items():
        check_column(documents.column_names, column, name, source, key)
        kind = documents.features[column]
        if getattr(kind, "dtype", None) not in ("string", "large_string"):
            said = getattr(kind, "dtype", "values of several kinds, or parts")
            raise DataError(f"{key}.{_key(source, name)}: {column!r} of {source.path} holds {said}, not text")
    documents = documents.select_columns(list(names))
    return documents.rename_columns({column: name for column, name in names.items() if column != name})


def _key(source: Source, name: str) -> str:
    """The key of the configuration that says where a column comes from."""
    if name == "text":
        return "response" if source.supervised else "field"
    return name


def check_column(columns: Sequence[str], column: str, name: str, source: Source, key: str) -> None:
    """Refuses a column that is not there; `name` is what the rest of the house calls it."""
    if column not in columns:
        near = difflib.get_close_matches(column, columns, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise DataError(
            f"{key}.{_key(source, name)}: {source.path or source.format} has no field {column!r}; "
            f"{hint}it has {', '.join(columns)}"
        )


def _turns(batch: dict[str, list[Any]], column: str, key: str) -> dict[str, list[str]]:
    """Every message of an assistant, what came before it, and the whole chat, by which it is held out or not."""
    found: dict[str, list[str]] = {"text": [], "messages": [], "chat": []}
    for chat in batch[column]:
        try:
            said = [{"role": message["role"], "content": message["content"] or ""} for message in chat]
        except (TypeError, KeyError):
            said = [{"role": None}]
        if not all(isinstance(part, str) for message in said for part in message.values()):
            raise DataError(
                f"{key}.messages: {column!r} must hold lists of {{role, content}}, both of them text, got {chat!r:.80}"
            )
        for i, message in enumerate(said):
            if message["role"] == "assistant" and i:
                found["text"].append(message["content"])  # a call of a tool has none, and is not learned
                found["messages"].append(json.dumps(said[:i]))
                found["chat"].append(json.dumps(said))
    return found


def split_of(found: Dataset | DatasetDict, source: Source, key: str) -> Dataset:
    """The split that is asked for; a dataset without splits has only the one it came from, if it knows it."""
    if isinstance(found, Dataset):
        if source.split in (None, str(found.split)):
            return found
        raise ConfigError(f"{key}.split: {source.path} has no splits, got {source.split!r}; leave {key}.split out")
    name = source.split or "train"
    if name not in found:
        raise ConfigError(f"{key}.split: {source.path} has no split {name!r}; it has {', '.join(map(str, found))}")
    return found[name]


def _any_text(texts: list[str | None]) -> list[bool]:
    return [bool(text) for text in texts]


def _cut(texts: list[str], share: float, tail: bool) -> dict[str, list[str]]:
    """The head or the tail of each text, cut at a share of its characters."""
    cuts = [int(len(text) * (1.0 - share)) for text in texts]
    return {"text": [text[cut:] if tail else text[:cut] for text, cut in zip(texts, cuts, strict=True)]}


def kept_back(texts: list[str], share: float, wanted: bool) -> list[bool]:
    """Whether each document is held out: a matter of its own text, or chat, alone."""
    quantiles = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return [(int.from_bytes(q, "little") / 2**64 < share) == wanted for q in quantiles]


def _check_utf8(files: list[str], key: str) -> None:
    """Refuses the first file that is not UTF-8, where no decompression comes first."""
    for file in files:
        try:
            deque(() if Path(file).suffix in COMPRESSED else _lines(file), maxlen=0)
        except DataError as error:
            raise DataError(f"{key}: {error}") from error


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def line_of(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of `datasets` while its caches fill; it has them on a global switch, put back in the end."""
    shown = is_progress_bar_enabled()
    level: Any = datasets.logging.get_verbosity()
    disable_progress_bar()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from error
        raise DataError(f"the documents cannot be read: {line_of(error.__cause__ or error)}") from error
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            enable_progress_bar()
