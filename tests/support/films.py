"""Small films, texts that try to be more than text, and what a page holds."""

import json
import re
from typing import Any

from dlm.film.frames import Cell, Film, Frame

ALL_OF_UNICODE = "".join(map(chr, [*range(0x300), *range(0x2000, 0x2070), 0xD800, 0xDFFF, 0xFFFE, 0xFFFF, 0x1F600]))
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--",
    "]]>",
    "<b>&amp;{{film}}",
    "[bold red]x[/]",
    "[/nothing]",
    "\x1b[2J\x1b]0;title\x07",
    "\x00\u2028\x85",
    "\ud800",
    "\u202egnp.exe",
    "'\"`${1}\\",
    ALL_OF_UNICODE,
)


def frame(*texts: str | None, given: int = 0) -> Frame:
    return tuple(Cell(text, place < given) for place, text in enumerate(texts))


def film(*frames: Frame, title: str = "a film", footer: str = "dlm sample") -> Film:
    return Film(title, frames, tuple(range(len(frames))), footer)


STORY = film(
    frame("Say", None, None, None, None, given=1),
    frame("Say", None, " hullo", None, None, given=1),
    frame("Say", ":\n", " hello", None, None, given=1),
    frame("Say", ":\n", None, "\tworld", "!", given=1),
    frame("Say", ":\n", " hello", "\tworld", "!", given=1),
)


def page_data(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="film">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def screen(written: str) -> str:
    """What a terminal shows after this was written: it knows line feeds, carriage returns, up and erase."""
    lines, row, column = [""], 0, 0
    for control, text in re.findall(r"(\x1b\[[?\d;]*[A-Za-z]|[\r\n])|([^\x1b\r\n]+)", written):
        if text:
            lines[row] = lines[row][:column].ljust(column) + text
            column += len(text)
        elif control == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif control == "\r":
            column = 0
        elif control.endswith("A"):
            row -= int(control[2:-1])
        elif control.endswith("K"):
            lines[row] = ""
    return "\n".join(lines).rstrip("\n")
