"""Paths as users write them."""

import os
from pathlib import Path


def expand(path: str | Path) -> Path:
    """A path whose `~` stands for the home folder; where there is no such user, it is left as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - that of pathlib raises where there is no such user
