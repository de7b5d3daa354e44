"""Quality against speed as one picture (SVG), without scripts; it loads nothing from elsewhere."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple, get_args

from dlm.bench.frontier import Frontier, Point
from dlm.bench.kinds import Family
from dlm.plain import counted

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 860, 64, 24, 34, 46  # pixels of a panel, and around its axes
_LINE, _ADVANCE, _ASCENT, _DESCENT = 15, 6.7, 10, 4  # pixels of small text: a row, a character, above and below
_MARGIN, _RADIUS = 16, 5
_STYLE = """
svg{--card:#fff;--edge:#d5d9e2;--ink:#1d2230;--soft:#5c6477;--grid:#e8ebf1;--level:42%}
@media(prefers-color-scheme:dark){svg{--card:#14171f;--edge:#363d4f;--ink:#e3e6ee;--soft:#9aa2b5;--grid:#262c3a;--level:68%}}
text{font:11px ui-monospace,"SF Mono",SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:var(--ink)}
.soft{fill:var(--soft)}.title{font-size:14px;font-weight:600}.card{fill:var(--card);stroke:var(--edge)}
.grid{stroke:var(--grid)}.axis{stroke:var(--soft)}.error{stroke-width:1;opacity:.55}.lead{stroke-width:.7;opacity:.6}
.mark{stroke-width:1.6;stroke-linejoin:round}.kind{stroke:var(--soft);fill:var(--soft)}
"""
_HUES = (212, 12, 142, 285, 40, 180, 330)
"""The colours of the first models, far apart."""

_SHAPES: dict[Family, str] = {
    "steps": "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0-5 0z",
    "one at a time": "M-4.5-4.5H4.5V4.5H-4.5z",
    "confidence": "M0-6L6 0L0 6L-6 0z",
    "threshold": "M-5.5-3H5.5V3H-5.5z",
    "blocks": "M-6-3H-2V3H2V-3H6V3H-6z",
    "reused": "M-5-5L5-5L-5 5L5 5z",
    "remasked": "M-4.2-5.5L0-1.4L4.2-5.5L5.5-4.2L1.4 0L5.5 4.2L4.2 5.5L0 1.4L-4.2 5.5L-5.5 4.2L-1.4 0L-5.5-4.2z",
    "causal": "M0-5.5L5.5 4.5H-5.5z",
    "verified": "M0-6.5L1.9-2.1L6.5-1.7L3 1.4L4.1 6L0 3.5L-4.1 6L-3 1.4L-6.5-1.7L-1.9-2.1z",
    "relaxed": "M0 5.5L5.5-4.5H-5.5z",
    "transformers": "M-2-5.5H2V-2H5.5V2H2V5.5H-2V2H-5.5V-2H-2z",
}
"""The marker of each family of samplers, around its own middle."""


class _Box(NamedTuple):
    """A rectangle that a label or a marker takes."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "_Box") -> bool:
        """Whether the two overlap."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def inside(self, other: "_Box") -> bool:
        """Whether it lies within another."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.top <= self.top and self.bottom <= other.bottom


def to_svg(found: Frontier) -> str:
    """Draws nats against tokens a second, one panel for each temperature and batch size, all on the same scales.

    A model has one colour and a family of samplers one marker. A label has the sampler and the entropy of its texts,
    without which their nats say little. A bar is one standard error either way.

    Args:
        found: What was compared.

    Returns:
        The picture as XML. A point whose nats or speed is not finite is left out, and counted below.
    """
    shown = [p for p in found.points if math.isfinite(_quality(found, p)) and p.tokens_per_second > 0.0]
    settings = list(dict.fromkeys((p.temperature, p.batch_size) for p in found.points))
    most = max((sum((p.temperature, p.batch_size) == each for p in shown) for each in settings), default=0)
    height = max(360, 90 + 26 * most)  # room for every label
    scales = _Scales.of(found, shown, height)
    top = _MARGIN + 36 + _LINE * (1 + len(_colours(found)))
    whole = top + height * len(settings) + _MARGIN + _LINE * len(notes := list(_notes(found, shown)))
    body: list[str] = []
    for row, each in enumerate(settings):
        members = [p for p in shown if (p.temperature, p.batch_size) == each]
        body.append(f'<g transform="translate({_MARGIN},{top + height * row})">')
        body += _panel(found, members, f"temperature {each[0]:g}, batch size {each[1]}", scales)
        body.append("</g>")
    width = _WIDTH + 2 * _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {whole}" width="{width}" height="{whole}"'
            ' role="img" xml:space="preserve">',
            "<title>Quality against speed</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="card" x=".5" y=".5" width="{width - 1}" height="{whole - 1}" rx="12"/>',
            f'<text class="title" x="{_MARGIN + 4}" y="{_MARGIN + 12}">Quality against speed</text>',
            *_legend(found),
            *body,
            *(
                f'<text class="soft" x="{_MARGIN + 4}" y="{whole - 14 - _LINE * row}">{escape(note)}</text>'
                for row, note in enumerate(reversed(notes))
            ),
            "</svg>\n",
        ]
    )


def _quality(found: Frontier, point: Point) -> float:
    """The nats that are drawn: a byte where tokenizers differ, else a token."""
    return point.nats_per_byte if found.encoded_anew else point.nats_per_token


def _error(found: Frontier, point: Point) -> float:
    """Their standard error; 0 where it is not known."""
    error = point.nats_per_byte_se if found.encoded_anew else point.nats_per_token_se
    return error if math.isfinite(error) else 0.0


@dataclass(frozen=True)
class _Scales:
    """From values to pixels, the same in all panels.

    Attributes:
        speed: The slowest and the fastest, in tokens a second.
        nats: The best and the worst.
        height: Pixels of a panel.
    """

    speed: tuple[float, float]
    nats: tuple[float, float]
    height: int

    @classmethod
    def of(cls, found: Frontier, points: Sequence[Point], height: int) -> "_Scales":
        """Scales that hold all points and their errors."""
        speeds = [p.tokens_per_second for p in points] or [1.0]
        low = min((_quality(found, p) - _error(found, p) for p in points), default=0.0)
        high = max((_quality(found, p) + _error(found, p) for p in points), default=1.0)
        room = max(0.08 * (high - low), 0.02 * abs(high), 1e-3)
        return cls((min(speeds) / 1.25, max(speeds) * 1.25), (low - room, high + room), height)

    @property
    def inner(self) -> _Box:
        """What the axes enclose."""
        return _Box(_LEFT, _TOP, _WIDTH - _RIGHT, self.height - _BOTTOM)

    def x(self, speed: float) -> float:
        """The column of a speed, on a logarithmic axis."""
        share = math.log(speed / self.speed[0]) / math.log(self.speed[1] / self.speed[0])
        return self.inner.left + share * (self.inner.right - self.inner.left)

    def y(self, nats: float) -> float:
        """The row of a number of nats; fewer are lower."""
        share = (nats - self.nats[0]) / (self.nats[1] - self.nats[0])
        return self.inner.bottom - share * (self.inner.bottom - self.inner.top)


def _panel(found: Frontier, points: Sequence[Point], title: str, scales: _Scales) -> Iterator[str]:
    """The points of one temperature and batch size."""
    yield f'<text x="{_LEFT}" y="{_TOP - 12}">{escape(title)}</text>'
    yield from _axes(found, scales)
    colours = _colours(found)
    places = [(scales.x(p.tokens_per_second), scales.y(_quality(found, p))) for p in points]
    labels = _Labels(scales.inner, places)
    for point, (x, y) in zip(points, places, strict=True):
        colour, half = colours[point.model], _error(found, point)
        yield f'<g style="fill:{colour};stroke:{colour}"><title>{escape(_told(found, point))}</title>'
        if half:
            low, high = scales.y(_quality(found, point) - half), scales.y(_quality(found, point) + half)
            yield f'<path class="error" d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
        shape = _SHAPES[point.family]
        yield f'<path class="mark" transform="translate({x:.1f},{y:.1f})" d="{shape}" fill-opacity=".35"/></g>'
        text = f"{point.sampler} H {point.entropy:.2f}"
        box = labels.place(x, y, _ADVANCE * len(text))
        if math.dist(start := _nearest(box, x, y), (x, y)) > 14:
            yield f'<path class="lead" style="stroke:{colour}" d="M{x:.1f} {y:.1f}L{start[0]:.1f} {start[1]:.1f}"/>'
        yield (
            f'<text x="{box.left:.1f}" y="{box.bottom - _DESCENT:.1f}" textLength="{box.right - box.left:.1f}">'
            f'<tspan style="fill:{colour}">{escape(point.sampler)}</tspan>'
            f'<tspan class="soft"> H {point.entropy:.2f}</tspan></text>'
        )


def _told(found: Frontier, point: Point) -> str:
    """What a reader sees who points at a marker."""
    what = "byte" if found.encoded_anew else "token"
    return (
        f"{point.model}, {point.sampler}, temperature {point.temperature:g}, batch size {point.batch_size}: "
        f"{point.tokens_per_second:,.0f} tokens/s, {_quality(found, point):.3f} nats/{what}, "
        f"entropy {point.entropy:.2f} nats, {point.tokens_per_call:.2f} tokens a call"
    )


class _Labels:
    """The labels of a panel, placed one after another where nothing else is."""

    def __init__(self, inner: _Box, marks: Sequence[tuple[float, float]]) -> None:
        self._inner, self._marks = inner, marks
        self._taken = [_around(x, y) for x, y in marks]
        self._labels: list[_Box] = []

    def place(self, x: float, y: float, width: float) -> _Box:
        """The best free place for the label of a marker: near it, nearer than to others, with no label between."""
        best, least = None, math.inf
        for distance, box in self._candidates(x, y, width):
            if distance >= least:
                break
            if not box.inside(self._inner) or any(box.meets(other) for other in self._taken):
                continue
            at = _nearest(box, x, y)
            own = math.dist(at, (x, y))
            astray = any(math.dist(_nearest(box, *mark), mark) < own for mark in self._marks if mark != (x, y))
            crossed = sum(_crosses(label, (x, y), at) for label in self._labels)
            cost = distance + 80.0 * astray + 60.0 * crossed
            if cost < least:
                best, least = box, cost
        found = best or _Box(x + 10, y, x + 10 + width, y + _ASCENT + _DESCENT)
        self._taken.append(found)
        self._labels.append(found)
        return found

    def _candidates(self, x: float, y: float, width: float) -> list[tuple[float, _Box]]:
        """Places in the order of their distance, right and left of the marker first."""
        height = _ASCENT + _DESCENT
        beside = [(x + 10, y - height / 2), (x - 10 - width, y - height / 2)]
        over = [(x - width / 2 + shift, top) for shift in (0, -30, 30) for top in (y - 10 - height, y + 10)]
        columns = range(int(self._inner.left), int(self._inner.right - width) + 1, 20)
        rows = range(int(self._inner.top), int(self._inner.bottom - height) + 1, 12)
        far = [(left, top) for left in columns for top in rows]
        boxes = [_Box(left, top, left + width, top + height) for left, top in (*beside, *over, *far)]
        costs = [0.0, 1.0, *[4.0] * len(over), *(math.dist(_nearest(b, x, y), (x, y)) + 5.0 for b in boxes[8:])]
        return sorted(zip(costs, boxes, strict=True))


def _around(x: float, y: float) -> _Box:
    return _Box(x - _RADIUS - 2, y - _RADIUS - 2, x + _RADIUS + 2, y + _RADIUS + 2)


def _nearest(box: _Box, x: float, y: float) -> tuple[float, float]:
    """The point of a box that is nearest to another, such as where a line from a marker meets its label."""
    return min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)


def _crosses(box: _Box, start: tuple[float, float], end: tuple[float, float]) -> bool:
    """Whether a line runs through a box."""
    points = [[a + (b - a) * share / 16 for a, b in zip(start, end, strict=True)] for share in range(17)]
    return any(box.left < x < box.right and box.top < y < box.bottom for x, y in points)


def _axes(found: Frontier, scales: _Scales) -> Iterator[str]:
    """Grid lines, numbers and names of the two axes."""
    inner, what = scales.inner, "byte" if found.encoded_anew else "token"
    for speed in _decades(*scales.speed):
        x = scales.x(speed)
        yield f'<path class="grid" d="M{x:.1f} {inner.top}V{inner.bottom}"/>'
        yield f'<text class="soft" x="{x:.1f}" y="{inner.bottom + 16}" text-anchor="middle">{speed:,g}</text>'
    step = round_step((scales.nats[1] - scales.nats[0]) / 6)
    for number in range(math.ceil(scales.nats[0] / step), math.floor(scales.nats[1] / step) + 1):
        y = scales.y(number * step)
        yield f'<path class="grid" d="M{inner.left} {y:.1f}H{inner.right}"/>'
        shown = f"{number * step:.{max(0, -math.floor(math.log10(step)))}f}"
        yield f'<text class="soft" x="{inner.left - 8}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
    yield f'<path class="axis" fill="none" d="M{inner.left} {inner.top}V{inner.bottom}H{inner.right}"/>'
    middle = (inner.left + inner.right) / 2
    yield f'<text x="{middle}" y="{inner.bottom + 34}" text-anchor="middle">tokens/s (more is better)</text>'
    bound = "" if found.judge_exact else "bound of "
    middle = (inner.top + inner.bottom) / 2
    yield (
        f'<text transform="translate(14,{middle}) rotate(-90)" text-anchor="middle">'
        f"{bound}judged nats/{what} (fewer is better)</text>"
    )


def _decades(low: float, high: float) -> list[float]:
    """Round numbers between two, on a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [float(digit * 10.0**power) for power in powers for digit in digits]
        if len(inside := [value for value in found if low <= value <= high]) >= 3:
            break
    return inside


def round_step(step: float) -> float:
    """The next of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * 0.999)


def _colours(found: Frontier) -> dict[str, str]:
    """A colour a model; how light it is follows the reader's scheme."""
    models = dict.fromkeys(p.model for p in found.points)
    hues = (*_HUES, *(137.5 * more % 360 for more in range(len(models))))
    return {name: f"hsl({hue:g} 72% var(--level))" for name, hue in zip(models, hues, strict=False)}


def _legend(found: Frontier) -> Iterator[str]:
    """A row a model, and the markers in a last row."""
    x, y = _MARGIN + 10, _MARGIN + 32
    for row, (name, colour) in enumerate(_colours(found).items()):
        yield f'<rect x="{x - 6}" y="{y + _LINE * row - 9}" width="12" height="9" rx="2" style="fill:{colour}"/>'
        shown = name if len(name) <= 110 else f"…{name[-109:]}"
        yield f'<text x="{x + 12}" y="{y + _LINE * row}">{escape(shown)}</text>'
    families = {p.family for p in found.points}
    column, marks = float(x), ""
    y += _LINE * len(_colours(found))
    for family in get_args(Family):
        if family in families:
            marks += (
                f'<path class="kind mark" transform="translate({column:.1f},{y - 4})" d="{_SHAPES[family]}"'
                f' fill-opacity=".35"/><text class="soft" x="{column + 12:.1f}" y="{y}">{family}</text>'
            )
            column += 12 + _ADVANCE * len(family) + 24
    yield marks


def _notes(found: Frontier, shown: Sequence[Point]) -> Iterator[str]:
    """What the figures are."""
    yield (
        f"H: unigram entropy of a text in nats. Bars: one standard error, by text. {counted(found.num, 'text')} of "
        f"{counted(found.length, 'token')}, {found.device}"
    )
    name = found.judge if len(found.judge) <= 60 else f"…{found.judge[-59:]}"
    itself = ", one of these models" if found.judge_is_compared else ""
    yield f"judge: {name}{itself}, {found.judge_reading} reading, {'exact' if found.judge_exact else 'an upper bound'}"
    if left := len(found.points) - len(shown):
        yield f"not drawn, as nothing was written or the nats are not finite: {left}"
