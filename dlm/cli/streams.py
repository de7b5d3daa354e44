"""Stdin, stdout and stderr where a shell closed them, and a stdout that cannot be written."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dlm.cli.console import errors

REPLACED = (("stdin", os.O_WRONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w"))
"""The streams, how the null device is opened in place of each, and how they are used."""


def open_closed_streams() -> None:
    """Opens the streams that a shell closed, as by `>&-`.

    The next file to be opened would take the place of a closed one, and what is printed would be written into it. A
    stdin or stdout that was closed fails when it is used, as it should; messages to a closed stderr are lost.
    """
    for name, flags, mode in REPLACED:
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, flags)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", errors="backslashreplace"))


@contextmanager
def checked_stdout() -> Iterator[None]:
    """Runs a program to its end, which is a failure of one line if not all that it wrote to stdout has arrived."""
    try:
        try:
            yield
        except SystemExit as ended:
            if not ended.code:
                sys.stdout.flush()
            raise
    except BrokenPipeError:  # the reader has all that it wants, as `head` has
        sys.exit(1)
    except OSError as error:
        if error.errno is None or error.filename:
            raise
        errors.print(f"[bold red]dlm:[/] cannot write stdout: {error.strerror}", soft_wrap=True, highlight=False)
        sys.exit(1)
    finally:
        _drop_unwritten()


def _drop_unwritten() -> None:
    """Keeps Python, as it ends, from trying once more to write what cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
