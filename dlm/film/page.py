"""A film as one page: a slider, a counter, light and dark; it loads nothing from elsewhere.

The page lays the text out as it ends, so that only the tokens change and no text moves.
"""

import json
import re
from html import escape
from importlib.resources import files

from dlm.film.frames import Film
from dlm.film.layout import legible, legible_cell, shown


def to_html(film: Film) -> str:
    """Makes the page that plays a film; without scripts it shows the finished text.

    Args:
        film: The film.

    Returns:
        The page, `page.html` with its places filled in.
    """
    changes = [
        [
            [index, legible_cell(cell)]
            for index, (old, cell) in enumerate(zip(before, after, strict=True))
            if cell.text != old.text
        ]
        for before, after in zip(film.frames, film.frames[1:], strict=False)
    ]
    data = {
        "given": "".join("1" if cell.given else "0" for cell in film.frames[0]),
        "first": [legible_cell(cell) for cell in film.frames[0]],
        "changes": changes,
        "calls": film.calls,
    }
    values = {
        "title": escape(legible(film.title)),
        "final": escape("".join(shown(film.frames[-1]))),
        "footer": escape(legible(film.footer)),
        # JSON in ASCII, where no character can end the script element.
        "film": re.sub("[<>&]", lambda char: f"\\u{ord(char[0]):04x}", json.dumps(data, separators=(",", ":"))),
    }
    template = files("dlm.film").joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"{{(\w+)}}", lambda name: values[name[1]], template)
