"""Which format of documents a source means, and which source a name on the command line means."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import get_args

from dlm import hub
from dlm.config import Source
from dlm.data.files import files_in, matching, summary
from dlm.data.formats import FORMATS, MARKUP, AnyFormat, Hub, Text
from dlm.data.keys import COMMAND_LINE, option_of
from dlm.data.lines import bare_suffix
from dlm.errors import ConfigError
from dlm.paths import expand

FILES = "a file, a folder or a glob"
"""What a path means."""

WITH_FORMAT = (COMMAND_LINE, "FILE")
"""What the command line calls the sources that `--format` is of."""


def format_of(source: Source, key: str) -> AnyFormat:
    """The format of a source, with its options.

    Args:
        source: Which.
        key: Its place in the configuration, for messages.

    Returns:
        The format; whether its files are there is not known yet.

    Raises:
        ConfigError: There is no such format, it lacks its path, a name is blank, or an option is given that it
            has no use for, such as a split, a subset or a column.
    """
    if source.format not in FORMATS:
        near = difflib.get_close_matches(source.format, FORMATS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"{option_of(key, 'format')}: there is no format {source.format!r}; {hint}valid: {', '.join(FORMATS)}"
        )
    choice = FORMATS[source.format]
    options = {option.name: getattr(source, option.name) for option in fields(choice)}
    if "path" in options and source.path is None:
        raise ConfigError(f"{key}.path is missing: the format {source.format} needs one, as in --set {key}.path=FILE")
    if "split" not in options and source.split not in (None, "train"):
        raise ConfigError(
            f"{option_of(key, 'split')}: {source.format} has no splits, got {source.split!r}; name the files instead"
        )
    if "subset" not in options and source.subset is not None:
        raise ConfigError(
            f"{option_of(key, 'subset')}: {source.format} has no subsets, got {source.subset!r}; name the files instead"
        )
    if "path" not in options and source.path is not None:
        raise ConfigError(
            f"{option_of(key, 'path')}: {source.format} has no path, got {source.path!r}; "
            f"name the format of what is there by {key}.format, or leave the path out"
        )
    if "documents" not in options and source.documents != "file":
        raise ConfigError(
            f"{option_of(key, 'documents')}: a document of {source.format} is no part of a text file; leave it out"
        )
    for option, what in (("path", FILES), ("split", "a split"), ("subset", "a subset")):
        _check_named(options.get(option), what, option_of(key, option))
    _check_columns(source, key)
    return choice(**options)


def source_of(
    data: str,
    field: str | None = None,
    split: str | None = None,
    subset: str | None = None,
    format: str | None = None,
    *,
    key: str = COMMAND_LINE,
) -> Source:
    """The source that a name on the command line means.

    Args:
        data: A file, a folder, a glob, the name of a dataset on the Hub, or of a format that needs no path.
        field: The column that holds the text.
        split: Which split, where there are several.
        subset: Which subset of a dataset on the Hub, where it has several.
        format: The name of its format; by default the name of the data tells.
        key: What the command line calls it, for messages.

    Returns:
        The source. It may still turn out not to be there.

    Raises:
        ConfigError: The name does not tell the format, is blank, or stands for stdin.
        DataError: A folder cannot be read.
    """
    _check_named(data, FILES, key)
    if data == "-":
        raise ConfigError(f"{key} - would be stdin, which is not read here: write the text to a file and name it")
    if format is None and data in FORMATS and not fields(FORMATS[data]):
        return Source(data, field="text" if field is None else field, split=split)
    kind = _format_named(data, key) if format is None else format
    return Source(kind, data, "text" if field is None else field, split, subset)


def misread(source: Source, key: str) -> Iterator[str]:
    """What is to be said of plain text: that its name tells of records, or that a folder holds more.

    Args:
        source: Which.
        key: Its place in the configuration.

    Yields:
        One line, or none.
    """
    if source.format != Text.name or source.path is None:
        return
    suffix, choices = bare_suffix(source.path), get_args(AnyFormat)
    records = [choice.name for choice in choices if choice is not Text and suffix in choice.suffixes]
    if records:
        yield (
            f"{source.path} is read as plain text, signs and all; to read its records: --set {key}.format={records[0]}"
        )
    yield from unread(source, key)


def unread(source: Source, key: str) -> Iterator[str]:
    """What is to be said of files of a folder that are texts by other names, and are left out beside plain `.txt`.

    Args:
        source: Which.
        key: Its place in the configuration, or the option that named it.

    Yields:
        One line, or none.
    """
    if source.format != Text.name or source.path is None or not (folder := expand(source.path)).is_dir():
        return
    held = files_in(folder, key)
    others = [file for file in held if bare_suffix(file) in MARKUP]
    if others and any(bare_suffix(file) in Text.suffixes for file in held):
        yield f"{key}: {summary(others)} in {folder} are left out beside its *.txt; name them by a glob to read them"


def _check_columns(source: Source, key: str) -> None:
    """Refuses columns of a format that has none."""
    named = [option for option, columns in source.columns.items() if (option, columns) != ("field", ("text",))]
    if named and not FORMATS[source.format].tabular:
        having = ", ".join(name for name, each in FORMATS.items() if each.tabular)
        raise ConfigError(
            f"{option_of(key, named[0])}: {source.format} has no columns, got {getattr(source, named[0])!r}; leave "
            f"{' and '.join(option_of(key, each) for each in named)} out, or name data in a format with columns: "
            f"{having}"
        )


def _check_named(value: str | None, what: str, option: str) -> None:
    """Refuses a blank, which as a path would mean the folder that the command is run in."""
    if value is not None and not value.strip():
        raise ConfigError(f"{option}: name {what}, got {value!r}")


def _format_named(data: str, key: str) -> str:
    """The format that the name of a folder, of a file or of a dataset on the Hub tells."""
    path = expand(data)
    choices: Sequence[type[AnyFormat]] = get_args(AnyFormat)
    if path.is_dir():
        if marked := [choice.name for choice in choices if any((path / mark).exists() for mark in choice.marks)]:
            return marked[0]
        return _format_held(files_in(path, key), f"{data} is a folder with", key)
    suffix = bare_suffix(path)
    by_suffix = [choice.name for choice in choices if suffix in (*choice.suffixes, *choice.alone)]
    if by_suffix:
        return by_suffix[0]
    if not path.exists() and any(sign in data for sign in "*?["):
        files = matching(path, key)
        if not files:
            raise ConfigError(f"{key}: there is no file {data}")
        return (
            Text.name if not any(map(bare_suffix, files)) else _format_held(files, f"{data} means", key, by_glob=True)
        )
    if not path.exists() and not data.startswith((".", "/", "~")) and hub.is_name(data):
        return Hub.name
    if suffix and path.exists():
        raise ConfigError(f"{data} is in no format that is known by its name: {suffix}; {_known(key in WITH_FORMAT)}")
    return Text.name


def _format_held(files: Sequence[Path], what: str, key: str, *, by_glob: bool = False) -> str:
    """The format that the suffixes of several files tell; those that a folder is searched for come first."""
    there, choices = set(map(bare_suffix, files)), get_args(AnyFormat)
    found = [choice.name for choice in choices if there.intersection(choice.suffixes)]
    found = found or [choice.name for choice in choices if there.intersection(choice.alone)]
    if len(found) == 1:
        return str(found[0])
    held = f"files of several formats, {', '.join(found)}" if found else "no file of a format that is known"
    by_option = key in WITH_FORMAT and not (found and by_glob)  # it would read every file that a glob means
    raise ConfigError(f"{what} {held}; it holds {summary(files)}; {_known(by_option)}")


def _known(by_option: bool) -> str:
    """The formats by their suffixes, and how to name one."""
    known = [f"{name} ({' '.join(choice.suffixes)})" for name, choice in FORMATS.items() if choice.suffixes]
    remedy = "one by --format, such as --format text for plain text" if by_option else "files of one, such as '*.txt'"
    return f"known: {', '.join(known)}; name {remedy}"
