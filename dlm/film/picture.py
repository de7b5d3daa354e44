"""A film as one animated picture (SVG), without scripts; it loads nothing from elsewhere.

The picture lays the text out as it ends, so that only the tokens change and no text moves.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

from dlm.film.frames import Film
from dlm.film.layout import Piece, legible, legible_cell, shown, wrap

COLUMNS = 80  # of the picture's text
PICTURES = 240  # of an animation at most; an eye sees no more

_ADVANCE, _SMALL = 8.4, 7.2  # pixels a column, in the text and in the notes
_LINE, _MARGIN, _BAR = 22, 24, 40  # pixels a row, around the text, and down to the end of the title bar
_LEAD, _HOLD, _FADE, _GLOW = 0.7, 3.0, 0.15, 0.9  # seconds: first picture, last picture, appearing, cooling down
_INK = "#e3e6ee"
_GLOWS = {"revealed": "#4ff5c3", "changed": "#ffc04d"}
_LIGHTS = ("#f2685f", "#f4be4f", "#4fc46a")
_RAIL = ("rail", "bar")
_STYLE = f"""
text{{font:14px ui-monospace,"SF Mono",SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}}
svg{{fill:{_INK}}}.given{{fill:#8fa9d8}}.small{{fill:#8d94a6}}.small text{{font-size:12px}}
.title{{font:600 13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}}
.card{{fill:#14171f;stroke:#363d4f}}.head{{fill:#1d212c}}.rail{{fill:#2a3040}}.bar{{fill:#3fcaa5}}
.mask{{fill:#323a4d}}.past>*{{opacity:0}}
"""


def to_svg(film: Film) -> str:
    """Makes the picture, which loops; without its CSS, or where a reader wants no motion, it shows the finished text.

    Args:
        film: The film.

    Returns:
        The picture as XML.
    """
    count = min(len(film.frames), PICTURES)
    steps = [number * (len(film.frames) - 1) // max(1, count - 1) for number in range(count)]
    timeline = _Timeline(len(steps))
    rows = wrap(shown(film.frames[-1]), COLUMNS)
    widest = max(piece.column + cell_len(piece.text) for row in rows for piece in row or [Piece(0, 0, "")])
    width = 2 * _MARGIN + _ADVANCE * max(60, widest)
    notes = [row for row in wrap([legible(film.footer)], int((width - 2 * _MARGIN) / _SMALL)) if row]
    floor = _BAR + 2 * _MARGIN + _LINE * len(rows) - 8
    height = floor + (18 * len(notes) + 10 if notes else 0)
    past, text = _cells(film, steps, rows, timeline)
    title = legible(film.title).replace("\n", " ")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
            f' height="{height:g}" role="img" xml:space="preserve">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}{timeline.css()}</style>",
            f'<rect class="card" x=".5" y=".5" width="{width - 1:g}" height="{height - 1:g}" rx="12"/>',
            *_title_bar(film, title, steps, width),
            '<g class="past">',
            *_grouped(past),
            '</g><g id="text">',
            *_grouped(text),
            '</g><g class="small">',
            *(_text(0, floor + 8 + 18 * row, p.text, _SMALL) for row, (p,) in enumerate(notes)),
            "</g></svg>\n",
        ]
    )


class _Scene(NamedTuple):
    """What one cell shows from picture `start` until picture `end`."""

    start: int
    end: int
    text: str | None
    look: str  # "mask", "given", "plain" or a key of _GLOWS


def _scenes(texts: Sequence[str | None], look: str) -> list[_Scene]:
    """One cell's texts, one a picture, as scenes; `look` is that of a cell which is given or starts with a text."""
    scenes: list[_Scene] = []
    start = 0
    for end in range(1, len(texts) + 1):
        if end == len(texts) or texts[end] != texts[start]:
            text = texts[start]
            if text is None:
                kind = "mask"
            elif look == "given" or start == 0:
                kind = look
            else:
                kind = "revealed" if texts[start - 1] is None else "changed"
            scenes.append(_Scene(start, end, text, kind))
            start = end
    return scenes


class _Timeline:
    """The times of the animation's pictures, and the CSS of what shows only for a while."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pause = min(0.35, max(0.04, 9.0 / max(1, count - 1)))
        self._seconds = _LEAD + (count - 1) * self._pause + _HOLD
        self._keyframes: dict[str, str] = {}

    def _at(self, picture: int, later: float = 0.0) -> str:
        moment = _LEAD + (picture - 1) * self._pause + later if picture else 0.0
        return f"{100 * moment / self._seconds:.4g}%"

    def name(self, scene: _Scene) -> str:
        """The CSS class of a scene: it fades in, glows if its look does, and fades out again."""
        start, end, _, look = scene
        if (start, end) == (0, self.count):
            return look
        name = f"{look[0]}{start}-{end}"
        glow = f";fill:{_GLOWS[look]}" if look in _GLOWS else ""
        frames = ["0%{opacity:1}"]
        if start:
            frames = [f"0%,{self._at(start)}{{opacity:0{glow}}}", f"{self._at(start, _FADE)}{{opacity:1{glow}}}"]
            frames += [f"{self._at(start, _FADE + _GLOW)}{{fill:{_INK}}}"] * bool(glow)
        if end < self.count:
            frames += [f"{self._at(end)}{{opacity:1}}", f"{self._at(end, _FADE)}{{opacity:0}}"]
        self._keyframes[name] = "".join(frames)
        return f"{look} {name}" if look in ("mask", "given") else name

    def css(self) -> str:
        """The rules of every scene that was named, of the bar and of the counter."""
        if self.count == 1:
            return ""
        first, last, up = self._at(1), self._at(self.count - 1), f"transform:translateY(-{_LINE}px)"
        counting = (
            f"0%{{transform:none;animation-timing-function:step-end}}"
            f"{first}{{{up};animation-timing-function:steps({max(1, self.count - 2)})}}"
            f"{last},to{{transform:translateY(-{_LINE * (self.count - 1)}px)}}"
        )
        moving = {"bar": f"0%{{transform:scaleX(0)}}{last},to{{transform:none}}", "count": counting, **self._keyframes}
        rules = [f".{name}{{animation-name:{name}}}@keyframes {name}{{{frames}}}" for name, frames in moving.items()]
        clock = f"svg g,.bar{{animation:{self._seconds:.2f}s linear infinite}}"
        still = "@media (prefers-reduced-motion:reduce){svg g,.bar{animation:none!important}}"
        return "\n".join([clock, *rules, still, ""])


def _title_bar(film: Film, title: str, steps: Sequence[int], width: float) -> list[str]:
    """The bar above the text; its counter is a strip of all its values that moves behind a slit."""
    last, calls = len(film.frames) - 1, film.calls
    return [
        f'<path class="head" d="M1 {_BAR}V12.5A11.5 11.5 0 0 1 12.5 1H{width - 12.5:g}'
        f'A11.5 11.5 0 0 1 {width - 1:g} 12.5V{_BAR}z"/>',
        *(f'<circle cx="{24 + 18 * place}" cy="20" r="5.5" fill="{fill}"/>' for place, fill in enumerate(_LIGHTS)),
        f'<text class="title" x="{width / 2:g}" y="24.5" text-anchor="middle">'
        f"{escape(_shortened(title, int((width - 380) / 7.5)))}</text>",
        f'<svg y="9" width="{width:g}" height="{_LINE}" overflow="hidden"><g class="small">'
        f'<g class="count" transform="translate(0,-{_LINE * (len(steps) - 1)})">',
        *(
            f'<text x="{width - 20:g}" y="{15 + _LINE * place}" text-anchor="end">'
            f"step {step}/{last} · {calls[step]} call{'s' * (calls[step] != 1)}</text>"
            for place, step in enumerate(steps)
        ),
        "</g></g></svg>",
        *(f'<rect class="{name}" x="1" y="{_BAR - 1}" width="{width - 2:g}" height="2"/>' for name in _RAIL),
    ]


def _cells(
    film: Film, steps: Sequence[int], rows: Sequence[Sequence[Piece]], timeline: _Timeline
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The nodes that show only for a while, and those that stay at the end, each by the class with its times."""
    scenes = [
        _scenes([legible_cell(film.frames[step][cell]) for step in steps], "given" if first.given else "plain")
        for cell, first in enumerate(film.frames[0])
    ]
    past: defaultdict[str, list[str]] = defaultdict(list)
    text: defaultdict[str, list[str]] = defaultdict(list)
    homes: dict[int, Piece] = {}  # each cell's first piece, or its first that is not blank
    for piece in (piece for row in rows for piece in row):
        if piece.cell not in homes or (piece.text.strip() and not homes[piece.cell].text.strip()):
            homes[piece.cell] = piece
    for number, row in enumerate(rows):
        base = _BAR + _MARGIN + _LINE * number + 14
        runs: list[Piece] = []  # what stays, joined where it appears at the same time
        names: list[str] = []
        for piece in row:
            *early, final = scenes[piece.cell]
            home = homes[piece.cell] is piece
            for scene in early:
                if scene.text is None:
                    past[timeline.name(scene)] += _block(piece, home, base)
                elif home:
                    past[timeline.name(scene)] += _squeezed(piece, scene.text, base)
            name = timeline.name(final)
            if final.text is None:
                text[name] += _block(piece, home, base)
            elif names and names[-1] == name and runs[-1].column + cell_len(runs[-1].text) == piece.column:
                runs[-1] = runs[-1]._replace(text=runs[-1].text + piece.text)
            else:
                runs.append(piece)
                names.append(name)
        for name, run in zip(names, runs, strict=True):
            if run.text.strip(" "):
                text[name].append(_text(run.column, base, run.text))
    return past, text


def _grouped(nodes: dict[str, list[str]]) -> Iterator[str]:
    """One group a class: browsers can animate a few hundred groups, but not thousands of nodes."""
    for name, members in nodes.items():
        if members:
            yield f'<g class="{name}">'
            yield from members
            yield "</g>"


def _text(column: int, base: int, text: str, advance: float = _ADVANCE, room: int | None = None) -> str:
    """Text from a column on, with its length, so that fonts of other widths keep the columns."""
    body = text.strip(" ")
    x = _MARGIN + advance * (column + len(text) - len(text.lstrip(" ")))
    columns = cell_len(body)
    squeeze = ' lengthAdjust="spacingAndGlyphs"' if room is not None and room < columns else ""
    length = f' textLength="{advance * min(columns, room or columns):g}"{squeeze}' if columns > 1 else ""
    return f'<text x="{x:.1f}" y="{base}"{length}>{escape(body)}</text>'


def _block(piece: Piece, home: bool, base: int) -> list[str]:
    """The block over a masked piece; a blank has one only where it is the whole cell."""
    body = piece.text.strip() or (piece.text or " ") * home
    if not body:
        return []
    x = _MARGIN + 1 + _ADVANCE * (piece.column + cell_len(piece.text.partition(body)[0]))
    width = _ADVANCE * cell_len(body) - 2
    return [f'<rect x="{x:.1f}" y="{base - 12}" width="{width:.1f}" height="16" rx="4"/>']


def _squeezed(piece: Piece, gone: str, base: int) -> list[str]:
    """An earlier text of a cell, squeezed into the room of its final text, or put at the end of the row."""
    text = " ".join(gone.split())
    lead = len(piece.text) - len(piece.text.lstrip(" "))
    room = cell_len(piece.text.strip()) or max(1, COLUMNS - piece.column)
    column = piece.column + lead * bool(piece.text.strip())
    return [_text(column, base, _shortened(text, 2 * room), room=room)] if text else []


def _shortened(text: str, columns: int) -> str:
    return text if cell_len(text) <= columns else set_cell_size(text, columns - 1).rstrip() + "…"
