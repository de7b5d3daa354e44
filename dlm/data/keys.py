"""How messages call the options of a source, and the names in it; imports no library of data."""

from collections.abc import Iterable

COMMAND_LINE = "--data"
"""The place of a source that `dlm eval` names; others have a key of the configuration, such as `data.train`."""

OPTIONS = ("field", "format", "split", "subset", "documents")
"""The options of a source that the command line has."""


def is_named_by_command(key: str) -> bool:
    """Whether a source is named on the command line, by an option such as `--data` or by an argument such as `FILE`."""
    return key.startswith("--") or key.isupper()


def option_of(key: str, name: str) -> str:
    """What a user calls an option of a source.

    Args:
        key: The source's place, such as `data.train` or `--data`.
        name: The option, such as `field`.

    Returns:
        The option where it is given, such as `data.train.field` or `--field`. A source of the command line has its
        other options from the run of its model, and there they are `data.train.prompt` and so on.
    """
    if not is_named_by_command(key):
        return f"{key}.{name}"
    if name == "path":
        return key
    return f"--{name}" if name in OPTIONS else f"{key}, with data.train.{name} of the model's run"


def shown(name: str) -> str:
    """A name as it is, or in quotes where its ends would not be seen."""
    plain = name.isprintable() and name == name.strip() and name and not set(name) & {",", "'", '"'}
    return name if plain else repr(name)


def listed(names: Iterable[str]) -> str:
    """Names for a message; see `shown`."""
    return ", ".join(map(shown, names))
