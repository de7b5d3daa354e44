"""Errors that a user can act on, each with a message of one line."""


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
    """A model on disk cannot be read, or cannot be written."""


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
    """Some records of a batch could not be used; the others are done."""

    exit_code = 1


class InterruptedRunError(DlmError):
    """The user stopped a run, which was saved first."""

    exit_code = 130


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
