"""A chart draws its values to scale, says them in words and in a table, and holds any name as text."""

import math
import re
from xml.etree import ElementTree

import pytest

from dlm.report.chart import HEIGHT, LEFT, POINTS, RIGHT, TOP, WIDTH, Series, chart, number, thinned

SVG = "{http://www.w3.org/2000/svg}"


def line(*y: float, **more: object) -> Series:
    return Series("run", y, {"steps": [*range(1, len(y) + 1)]}, **more)  # type: ignore[arg-type]


def picture(figure: str) -> ElementTree.Element:
    """The first picture, which is XML."""
    found = re.search(r"<svg class=\"chart.*?</svg>", figure, re.DOTALL)
    assert found
    return ElementTree.fromstring(found[0].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def coordinates(figure: str) -> list[tuple[float, float]]:
    (path,) = [p for p in picture(figure).iter(f"{SVG}path") if p.get("class") == "line"]
    return [(float(a), float(b)) for a, b in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path.get("d") or "")]


def test_values_are_drawn_to_scale() -> None:
    points = coordinates(chart("k", "Loss", "nats", [line(10.0, 20.0, 40.0)]))
    (x1, y1), (x2, y2), (x3, y3) = points
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2) and (y1 - y2) * 2 == pytest.approx(y2 - y3, abs=0.3)
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT for x, y in points)


def test_the_ticks_are_where_their_values_are() -> None:
    figure = chart("k", "Loss", "nats", [line(*range(0, 101, 10))])
    texts = {
        t.text: float(t.get("y") or 0) for t in picture(figure).iter(f"{SVG}text") if t.get("text-anchor") == "end"
    }
    points = coordinates(figure)
    assert texts["100"] - 4 == pytest.approx(points[-1][1], abs=0.2) and texts["0"] - 4 == pytest.approx(
        points[0][1], abs=0.2
    )


def test_what_is_not_finite_is_left_out_and_nothing_left_is_no_chart() -> None:
    assert len(coordinates(chart("k", "Loss", "nats", [line(1.0, math.nan, 3.0, math.inf)]))) == 2
    assert chart("k", "Loss", "nats", [line(math.nan)]) == chart("k", "Loss", "nats", []) == ""
    figure = chart("k", "Loss", "nats", [line(5.0)])
    assert len(list(picture(figure).iter(f"{SVG}circle"))) == 1  # a single point is a dot
    assert chart("k", "Flat", "nats", [line(0.0, 0.0)]) and chart("k", "Flat", "nats", [line(-3.0, -3.0)])


def test_the_words_and_the_table_have_the_values() -> None:
    figure = chart("k", "Loss", "nats", [line(3.0, 1.0, 2.0, low=[2.5, 0.5, 1.5], high=[3.5, 1.5, 2.5])])
    assert "run: from 3 at 1 to 2 at 3 steps, the least 1 at 2" in figure
    rows = re.findall(r"<tr>(.*?)</tr>", figure)
    assert [re.findall(r"<t[hd][^>]*>(.*?)</t", row) for row in rows] == [
        ["steps", "nats", "95% interval"],
        ["1", "3", "2.5 to 3.5"],
        ["2", "1", "0.5 to 1.5"],
        ["3", "2", "1.5 to 2.5"],
    ]


def test_lines_are_told_apart_without_colour() -> None:
    figure = chart("k", "Loss", "nats", [line(1.0, 2.0), line(2.0, 3.0, colour=1, dash=1)])
    dashes = [p.get("stroke-dasharray") for p in picture(figure).iter(f"{SVG}path") if p.get("class") == "line"]
    assert len(set(dashes)) == 2 and figure.count("<li>") == 2


def test_a_name_is_text() -> None:
    series = [Series("<b>&\"'", [1.0, 2.0], {"steps": [1, 2]})] * 2
    figure = chart("k", "<i>", "<u>", series)
    assert "<b>" not in figure and "<i>" not in figure and "<u>" not in figure and picture(figure) is not None


def test_a_long_line_is_thinned_to_its_means() -> None:
    x, y = thinned([*map(float, range(10_000))], [float(value % 2) for value in range(10_000)])
    assert len(x) <= POINTS and x[-1] == 9999.0 and set(y) == {0.5}
    assert thinned([1, 2, 3], [None, 5.0, math.nan]) == ([2], [5.0])
    assert thinned([], []) == ([], [])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3.0, "3"), (0.123456, "0.1235"), (12345.6, "12,346"), (1e-5, "1.00e-05"), (math.inf, "inf")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
