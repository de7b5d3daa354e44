"""Line charts as small static SVG, each with a title, a text alternative and a table of its values."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dlm.bench.plot import round_step
from dlm.film.layout import legible

WIDTH, HEIGHT = 400, 250
"""Units of a chart; it is as wide as a phone, so that its text stays legible there."""

LEFT, RIGHT, TOP, BOTTOM = 50, 10, 10, 38
"""Units around the axes."""

POINTS = 240
"""The most points of a line; more are put together, as no reader sees them."""

ROWS = 12
"""The most rows of a table."""

DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2")
"""A line is told from others by more than its colour."""


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: What it is called.
        y: Its values; those that are not finite are left out.
        x: Where they are, by the name of the axis, as many as there are values.
        low: The lower ends of intervals; None for no intervals.
        high: Their upper ends.
        colour: The number of its colour.
        dash: The number of its dash pattern.
        dots: Whether each value has a dot, as few and measured ones have.
    """

    name: str
    y: Sequence[float]
    x: Mapping[str, Sequence[float]]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: int = 0
    dash: int = 0
    dots: bool = False

    def points(self, axis: str) -> list[tuple[float, float, float, float]]:
        """(x, y, low, high) of each finite value; without intervals both ends are the value."""
        low, high = self.low or self.y, self.high or self.y
        found = zip(self.x[axis], self.y, low, high, strict=True)
        return [point for point in found if all(map(math.isfinite, point))]


def chart(key: str, title: str, unit: str, series: Sequence[Series], *, about: str = "") -> str:
    """A figure with one picture for each axis that its lines have, and one table.

    Args:
        key: Names the figure's parts in the page; unlike that of any other.
        title: What is drawn.
        unit: What it is measured in.
        series: The lines, all with the same axes.
        about: A sentence on what it means.

    Returns:
        The figure; an empty text where no line has a value.
    """
    drawn = [each for each in series if any(map(math.isfinite, each.y))]
    if not drawn:
        return ""
    pictures = "".join(_picture(f"{key}-{number}", title, unit, axis, drawn) for number, axis in enumerate(drawn[0].x))
    legend = "".join(_legend(each) for each in drawn) if len(series) > 1 else ""
    return (
        f'<figure id="{key}"><figcaption><h3>{_text(title)}</h3><p>{_text(unit)}. {_text(about)}</p></figcaption>'
        f"{pictures}{f'<ul class=legend>{legend}</ul>' if legend else ''}{_table(title, unit, drawn)}</figure>"
    )


def thinned(x: Sequence[float], y: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """A line of many points as one of few: the mean of each of `POINTS` runs of them.

    Args:
        x: Where the values are.
        y: The values; those that are None or not finite are left out.

    Returns:
        Both, shorter.
    """
    kept = [(a, b) for a, b in zip(x, y, strict=True) if b is not None and math.isfinite(b)]
    size = max(-(-len(kept) // POINTS), 1)
    runs = [kept[at : at + size] for at in range(0, len(kept), size)]
    return [run[-1][0] for run in runs], [math.fsum(b for _, b in run) / len(run) for run in runs]


def number(value: float) -> str:
    """A number with four significant digits, or whole with commas where it is large."""
    if not math.isfinite(value):
        return str(value)
    if value and abs(value) < 0.001:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def _text(text: str) -> str:
    """A text as it stands in the page."""
    return escape(legible(text))


@dataclass(frozen=True)
class _Scale:
    """From values to units of the picture."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """The place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values, no more than asked for."""
        step = round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        found = []
        while (first * step) <= self.high + 1e-9 * step:
            found.append(first * step)
            first += 1
        return found


def _scales(axis: str, series: Sequence[Series]) -> tuple[_Scale, _Scale]:
    """Scales that hold all values; a vertical one that begins at zero where that is near."""
    points = [point for each in series for point in each.points(axis)]
    left, right = min(p[0] for p in points), max(p[0] for p in points)
    low, high = min(p[2] for p in points), max(p[3] for p in points)
    if 0.0 <= low < 0.35 * high:
        low = 0.0
    room = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    if right == left:
        left, right = left - 0.5, right + 0.5
    return (
        _Scale(left, right, LEFT, WIDTH - RIGHT),
        _Scale(low - (room if low else 0.0), high + room, HEIGHT - BOTTOM, TOP),
    )


def _picture(key: str, title: str, unit: str, axis: str, series: Sequence[Series]) -> str:
    """The lines against one axis."""
    x, y = _scales(axis, series)
    name, _, _ = axis.partition(":")
    return (
        f'<svg class="chart by-{_text(name)}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{_text(title)} by {_text(_label(axis))}</title>'
        f'<desc id="{key}-d">{_text(_told(unit, axis, series))}</desc>'
        f"{''.join(_axes(axis, x, y))}{''.join(part for each in series for part in _line(each, axis, x, y))}</svg>"
    )


def _label(axis: str) -> str:
    """What stands below an axis: `seconds`, or of `level:share of masks` what is behind the colon."""
    name, colon, label = axis.partition(":")
    return label if colon else name


def _told(unit: str, axis: str, series: Sequence[Series]) -> str:
    """The picture in words."""
    parts = []
    for each in series:
        points = each.points(axis)
        least = min(points, key=lambda point: point[1])
        parts.append(
            f"{each.name}: from {number(points[0][1])} at {number(points[0][0])} to {number(points[-1][1])} at "
            f"{number(points[-1][0])} {_label(axis)}, the least {number(least[1])} at {number(least[0])}"
        )
    return f"{unit}. {'; '.join(parts)}."


def _axes(axis: str, x: _Scale, y: _Scale) -> Iterator[str]:
    """Grid lines, round numbers, and what the axis below is."""
    for value in y.ticks(5):
        at = y(value)
        yield f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_short(value)}</text>'
    for value in x.ticks(5):
        at = x(value)
        anchor = "end" if at > WIDTH - RIGHT - 12 else "middle"
        yield f'<path class="grid" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        yield f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="{anchor}">{_short(value)}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text class="soft" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{_text(_label(axis))}</text>'


def _line(series: Series, axis: str, x: _Scale, y: _Scale) -> Iterator[str]:
    """A line, its dots and its intervals."""
    points = [(x(a), y(b), y(low), y(high)) for a, b, low, high in series.points(axis)]
    yield f'<g class="c{series.colour % 6}">'
    if series.low is not None:
        for a, _, low, high in points:
            ends = f"M{a - 3:.1f} {low:.1f}h6M{a - 3:.1f} {high:.1f}h6"
            yield f'<path class="error" d="M{a:.1f} {low:.1f}V{high:.1f}{ends}"/>'
    path = "L".join(f"{a:.1f} {b:.1f}" for a, b, _, _ in points)
    yield f'<path class="line" d="M{path}"{_dash(series)}/>'
    if series.dots or len(points) == 1:
        yield "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b, _, _ in points)
    yield "</g>"


def _legend(series: Series) -> str:
    """A row of the legend."""
    return (
        f'<li><svg class="key c{series.colour % 6}" viewBox="0 0 28 10" aria-hidden="true">'
        f'<path class="line" d="M0 5H28"{_dash(series)}/></svg>{_text(series.name)}</li>'
    )


def _dash(series: Series) -> str:
    """The dash pattern of a line, as an attribute."""
    dash = DASHES[series.dash % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _short(value: float) -> str:
    """A round number in few characters."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size and abs(value) >= 1e4:
            return f"{value / size:.4g}{sign}"
    return f"{value:.4g}" if abs(value) >= 1e-3 or not value else f"{value:.0e}"


def _table(title: str, unit: str, series: Sequence[Series]) -> str:
    """The values, thinned to a few rows a line, behind a button of the page."""
    axes = [*series[0].x]
    spans = any(each.low is not None for each in series)
    heads = [*(["line"] if len(series) > 1 else []), *map(_label, axes), unit, *(["95% interval"] if spans else [])]
    body = ""
    for each in series:
        places = [place for place in range(len(each.y)) if math.isfinite(each.y[place])]
        stride = max(-(-len(places) // ROWS), 1)
        shown = sorted({*places[::stride], places[-1]})
        for place in shown:
            cells = [*([each.name] if len(series) > 1 else []), *(number(each.x[axis][place]) for axis in axes)]
            cells.append(number(each.y[place]))
            if spans:
                ends = (each.low[place], each.high[place]) if each.low and each.high else None
                cells.append("" if ends is None else f"{number(ends[0])} to {number(ends[1])}")
            body += f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>"
    label = f"Values of {_text(title[:1].lower() + title[1:])}"
    return (
        f"<details><summary>{label}</summary>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{''.join(f'<th scope=col>{_text(head)}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{body}</tbody></table></div></details>"
    )
