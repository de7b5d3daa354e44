"""The documents that a command measures: those of a file, or those of the run itself."""

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from dlm.cli.console import caution, is_first
from dlm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dlm.data.documents import Documents
    from dlm.lm import DiffusionLM


def named_documents(
    lm: "DiffusionLM",
    data: str,
    format: str | None,
    split: str | None,
    subset: str | None,
    field: str | None,
    documents: Literal["file", "paragraph", "line"] = "file",
) -> "Documents":
    """The documents of `--data`; the columns of a table are those of the run, unless one is named."""
    from dlm.data.choosing import source_of, unread
    from dlm.data.formats import FORMATS
    from dlm.data.reading import read

    source = replace(source_of(data, field, split, subset, format), documents=documents)
    has_columns = source.format in FORMATS and FORMATS[source.format].tabular
    if lm.config is not None and field is None and has_columns:
        begun = lm.config.data.train
        kept = ("field", "prompt", "response", "messages", "skip_invalid")
        source = replace(source, **{name: getattr(begun, name) for name in kept})
    if is_first():
        for line in unread(source, "--data"):
            caution(line)
    return read(source, "--data")


def own_documents(
    lm: "DiffusionLM", model: str, format: str | None, split: str | None, subset: str | None, field: str | None
) -> "Documents":
    """The run's own documents, from where it reads them now, if they are what it read."""
    from dlm.train import own_text

    for name, value in (("--format", format), ("--subset", subset), ("--field", field)):
        if value is not None:
            raise ConfigError(f"{name} is of other text than the run's own: give that by --data, or leave {name} out")
    try:
        return own_text.own_documents(lm, model, split)
    except (ConfigError, DataError) as error:
        raise type(error)(f"{error}; --data FILE measures other text") from error
