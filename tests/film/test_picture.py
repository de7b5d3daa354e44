"""The picture shows each frame at its time, ends as the film does, and its text is only text."""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len

from dlm.film.frames import Film
from dlm.film.layout import legible
from dlm.film.picture import COLUMNS, PICTURES, to_svg
from tests.support.films import HOSTILE, STORY, film, frame

SVG = "{http://www.w3.org/2000/svg}"


def picture(story: Film) -> ElementTree.Element:
    return ElementTree.fromstring(to_svg(story))


def standing(root: ElementTree.Element) -> list[str]:
    """The rows of the text that stays, read off the coordinates."""
    rows: dict[float, str] = {}
    nodes = root.findall(f".//{SVG}g[@id='text']//{SVG}text")
    for node in sorted(nodes, key=lambda node: float(node.attrib["x"])):
        row, column = float(node.attrib["y"]), round((float(node.attrib["x"]) - 24) / 8.4)
        before = rows.get(row, "")
        assert cell_len(before) <= column
        rows[row] = before + " " * (column - cell_len(before)) + (node.text or "")
    return [rows[row] for row in sorted(rows)]


def test_the_picture_ends_as_the_film_does() -> None:
    assert standing(picture(STORY)) == ["Say:", " hello  world!"]


def test_a_picture_breaks_long_lines_between_words() -> None:
    text = "word " * 40 + "你好 " * 40 + "e\u0301" * 100
    rows = standing(picture(film(frame(None), frame(text))))
    assert max(map(cell_len, rows)) <= COLUMNS
    assert rows[0] == " ".join(["word"] * 16)
    assert "".join("".join(rows).split()) == "".join(text.split())


def seen_at(root: ElementTree.Element, seconds: float) -> Iterator[tuple[str, str]]:
    """The texts and blocks that are opaque at a time, by the rules of CSS animations."""
    css = root.findtext(f"{SVG}style") or ""
    length = re.search(r"animation:([\d.]+)s", css)
    frames = dict(re.findall(r"@keyframes ([\w-]+) ?{((?:[^{}]*{[^{}]*})*)}", css))
    for group in root.findall(f"{SVG}g"):
        past = group.get("class") == "past"
        if not past and group.get("id") != "text":
            continue
        for scene in group:
            name = (scene.get("class") or "").split(" ")[-1]
            stops = {100.0: float(not past)}
            for places, rule in re.findall(r"([\d.%,]+){([^{}]*)}", frames.get(name, "")):
                if opacity := re.search(r"opacity:(\d)", rule):
                    stops |= {float(place.rstrip("%")): float(opacity[1]) for place in places.split(",")}
            at = 100 * seconds / float(length[1]) if length else 100.0
            low = max((stop for stop in stops if stop <= at), default=min(stops))
            high = min(stop for stop in stops if stop >= at)
            share = (at - low) / (high - low) if high > low else 0.0
            if stops[low] + share * (stops[high] - stops[low]) > 0.5:
                yield from ((node.tag.removeprefix(SVG), node.text or "") for node in scene)


def test_the_picture_shows_each_frame_at_its_time() -> None:
    story = film(
        frame("Say", None, None, None, given=1),
        frame("Say", " hi", None, None, given=1),
        frame("Say", " hello", None, "!", given=1),
        frame("Say", None, " world", "!", given=1),
        frame("Say", " hello", " world", "!", given=1),
    )
    root = picture(story)
    for number, shown in enumerate(story.frames):
        seen = list(seen_at(root, 0.7 + 0.35 * (number - 1) + 0.3))
        assert sum(tag == "rect" for tag, _ in seen) == sum(cell.text is None for cell in shown)
        words = sorted(text for tag, text in seen if tag == "text")
        assert words == sorted(cell.text.strip() for cell in shown if cell.text is not None)


def test_a_long_film_makes_a_short_picture() -> None:
    words = [f" w{number}" for number in range(1000)]
    story = film(*(frame(*words[:n], *[None] * (1000 - n)) for n in range(1001)))
    root = picture(story)
    counts = [node.text or "" for node in root.findall(f".//{SVG}g[@class='count']/{SVG}text")]
    assert len(counts) == PICTURES
    assert counts[0] == "step 0/1000 · 0 calls"
    assert counts[-1] == "step 1000/1000 · 1000 calls"
    assert " ".join(standing(root)).split() == "".join(words).split()
    assert len(to_svg(story).encode()) < 250_000


@pytest.mark.parametrize("text", HOSTILE)
def test_a_picture_holds_hostile_text_as_text(text: str) -> None:
    root = picture(film(frame(None, None), frame(text, "a"), frame("b", text), title=text, footer=text))
    assert {node.tag.removeprefix(SVG) for node in root.iter()} == {
        *("svg", "title", "style", "rect", "path", "circle", "text", "g")
    }
    assert root.findtext(f"{SVG}title") == legible(text).replace("\n", " ")


def test_a_text_that_gives_way_stands_where_its_successor_will() -> None:
    root = picture(film(frame("x" * 78, " ephemeral"), frame("x" * 78, " lasting")))
    (early,) = root.findall(f".//{SVG}g[@class='past']//{SVG}text")
    late = root.findall(f".//{SVG}g[@id='text']//{SVG}text")[-1]
    assert (early.text, late.text) == ("ephemeral", "lasting")
    assert (early.get("x"), early.get("y")) == (late.get("x"), late.get("y"))
    assert early.get("textLength") == late.get("textLength")  # squeezed, so that it covers nothing else


def test_a_picture_of_one_frame_stands_still() -> None:
    root = picture(film(frame("a", None)))
    assert "@keyframes" not in (root.findtext(f"{SVG}style") or "")
    assert standing(root) == ["a"]
    assert len(root.findall(f".//{SVG}g[@id='text']//{SVG}rect")) == 1
