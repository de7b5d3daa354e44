"""Errors that a user can act on, each with a message of one line.

The exit code is 2 where the user named something that cannot be used, such as a model that is damaged, and 1 where all
that was named is fine and the machine or the run fails, such as a disk that is full.
"""

import errno


class DlmError(Exception):
    """Something the user can mend; the message is one line.

    It says what was wrong, what was received and what to do next. The command line prints that line
    and leaves with `exit_code`, with no traceback.
    """

    exit_code = 2


class ConfigError(DlmError):
    """A configuration key or a command-line value is not valid."""


class DataError(DlmError):
    """A text, a data set or a tokenizer cannot be used as it is."""


class CheckpointError(DlmError):
    """A model cannot be read, or would be written over something."""


class WriteError(DlmError):
    """The machine refuses to write: the disk is full, or it may not be written."""

    exit_code = 1


class TrainingError(DlmError):
    """A run cannot go on, though nothing in its input was refused."""

    exit_code = 1


class RangeError(DlmError):
    """A computation has left the range of its numbers."""

    exit_code = 1


class SelftestError(DlmError):
    """A known truth does not hold on this machine."""

    exit_code = 1


class BatchError(DlmError):
    """Some records of a batch could not be used; the others, if there are any, are done."""

    exit_code = 1


class InterruptedRunError(DlmError):
    """The user stopped a run, which was saved first."""

    exit_code = 130


def unwritten(message: str, error: OSError) -> DlmError:
    """The error for a file or folder that could not be written.

    Args:
        message: What could not be written; the system's reason is put behind it.
        error: What the system said.

    Returns:
        A `ConfigError` if the name is one where nothing can be, such as one in a folder that is not there; else a
        `WriteError`.
    """
    misnamed = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP)
    kind = ConfigError if error.errno in misnamed else WriteError
    return kind(f"{message}: {error.strerror or error}")


def one_line(error: BaseException | str, limit: int | None = 200) -> str:
    """The message of another library's error, as one line.

    Args:
        error: The error, or its message.
        limit: The most characters to keep; None for all.

    Returns:
        The message, with single spaces for all white space; the name of the error's class if it has no message.
    """
    line = " ".join(str(error).split())[:limit]
    return line or ("" if isinstance(error, str) else type(error).__name__)


def shortened(shown: str, limit: int) -> str:
    """A value as a message shows it, where a cut is to be seen.

    Args:
        shown: The value, in quotes if it is a text: as `repr` or JSON writes it.
        limit: The most characters.

    Returns:
        The same, or its beginning with an ellipsis, which stands inside the quotes.
    """
    if len(shown) <= limit:
        return shown
    quote = shown[0] if shown[0] in "'\"" and shown[-1] == shown[0] else ""
    return f"{shown[: limit - 1 - len(quote)]}…{quote}"
