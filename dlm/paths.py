"""Paths as users write them."""

import os
import shlex
from pathlib import Path


def expand(path: str | Path) -> Path:
    """A path whose `~` stands for the home folder; where there is no such user, it is left as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - that of pathlib raises where there is no such user


def quoted(path: str | Path) -> str:
    """A path as a word of a shell's command line, in quotes where it needs them."""
    return shlex.quote(str(path))
