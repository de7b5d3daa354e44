"""Writes a film to a file, as its suffix says."""

import os
from contextlib import suppress
from pathlib import Path

from dlm.errors import ConfigError, unwritten
from dlm.film.frames import Film
from dlm.film.page import to_html
from dlm.film.picture import to_svg
from dlm.paths import expand

WRITERS = {".html": to_html, ".svg": to_svg}
"""What makes the text of a file, by its suffix."""


def check_suffix(path: Path) -> None:
    """Refuses a file that no film can be written to, by its name.

    Args:
        path: The file.

    Raises:
        ConfigError: Its suffix is no known one, in capitals or not.
    """
    if path.suffix.lower() not in WRITERS:
        raise ConfigError(f"a film is written as .html (a page) or .svg (a picture), not as {path.name!r}")


def export(film: Film, path: Path) -> None:
    """Writes a film as a page (.html) or a picture (.svg), in place of any file of that name.

    Args:
        film: What to write.
        path: The file's name, which ends in .html or .svg.

    Raises:
        ConfigError: The suffix is another one, or the name is one where nothing can be.
        WriteError: The file cannot be written.
    """
    path = expand(path)
    check_suffix(path)
    text = WRITERS[path.suffix.lower()](film)
    beside = path.with_name(f".{path.name}.{os.getpid()}")  # renamed when it is whole, so that no reader sees half
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise unwritten(f"the film cannot be written to {str(path)!r}", error) from error
