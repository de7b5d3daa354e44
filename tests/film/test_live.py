"""A film tells what happened: in a terminal, on a page and in a picture, and its text is never anything but text."""

import json
import re
from collections.abc import Iterator
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len
from rich.console import Console

from dlm.cli.export import COLUMNS, PICTURES, export
from dlm.cli.film import MASK, STYLES, Cell, Film, Frame, Watch, legible, render, wrap
from dlm.errors import ConfigError

SVG = "{http://www.w3.org/2000/svg}"
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


# The film


@pytest.mark.parametrize(
    ("frames", "calls", "what"),
    [
        ((), (), "at least one"),
        ((frame("a"), frame("a", "b")), (0, 1), "frame 1 has 2 cells"),
        ((frame("a"),), (0, 1), "as many calls"),
        ((frame("a"), frame("a", given=1)), (0, 1), "given"),
    ],
)
def test_a_film_that_does_not_hold_together_is_refused(
    frames: tuple[Frame, ...], calls: tuple[int, ...], what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        Film("", frames, calls)


# The text


def test_legible_leaves_ordinary_text_alone() -> None:
    text = "a\tb\nπ 你好 e\u0301 👩‍👧 “x”"
    assert legible(text) == text


def test_legible_text_holds_no_control_and_is_valid_xml() -> None:
    clean = legible(ALL_OF_UNICODE)
    assert all(char in "\n\t" or ord(char) >= 0x20 for char in clean)
    assert not set(clean) & set(map(chr, [*range(0x7F, 0xA0), *range(0x202A, 0x202F), 0xFFFE, 0xFFFF]))
    ElementTree.fromstring(f"<a>{clean.replace('&', '').replace('<', '')}</a>")


def test_render_is_the_cells_one_after_the_other() -> None:
    shown = render(STORY.frames[3])
    assert shown.plain == f"Say:\n{MASK}  world!"


@pytest.mark.parametrize("text", HOSTILE)
def test_render_shows_hostile_text_as_it_stands(text: str) -> None:
    out = StringIO()
    console = Console(file=out, width=10_000, force_terminal=True, color_system=None)
    shown = render(frame(text))
    console.print(shown)
    assert shown.plain == legible(text).expandtabs(4)
    assert out.getvalue() == shown.plain + "\n"
    assert "\x1b" not in out.getvalue()


def test_render_marks_what_happened_since_the_frame_before() -> None:
    before = frame("given", None, None, "old", "same", "gone", given=1)
    after = frame("given", None, "new", "young", "same", None, given=1)
    shown = render(after, before)
    looks = {shown.plain[span.start : span.end]: span.style for span in shown.spans}
    assert looks["given"] == STYLES["given"]
    assert looks["new"] == STYLES["revealed"]
    assert looks["young"] == STYLES["changed"]
    assert looks[MASK] == STYLES["masked"]
    assert "same" not in looks
    assert not {STYLES["revealed"], STYLES["changed"]} & {span.style for span in render(after).spans}


@pytest.mark.parametrize(
    ("texts", "width", "rows"),
    [
        (["one", " two", " three"], 8, ["one two ", "three"]),
        (["aaaa", " bbbb", " c"], 9, ["aaaa bbbb", "c"]),  # the blank between two rows is dropped, and parts words
        (["abcdefgh"], 3, ["abc", "def", "gh"]),
        (["ab", "\n\n", "c"], 9, ["ab", "", "c"]),
        (["a", "\tb"], 9, ["a   b"]),
        (["你好", "吗"], 5, ["你好", "吗"]),
        (["x", "e\u0301\u0302", "y"], 2, ["xe\u0301\u0302", "y"]),
        ([], 5, [""]),
        (["a" * 300], None, ["a" * 300]),
    ],
)
def test_wrap(texts: list[str], width: int | None, rows: list[str]) -> None:
    laid = wrap(texts, width)
    assert ["".join(piece.text for piece in row) for row in laid] == rows
    for row in laid:
        for left, right in pairwise(row):
            assert right.column == left.column + cell_len(left.text)


@pytest.mark.parametrize("width", range(2, 12))
def test_wrap_keeps_to_the_width_and_loses_nothing_but_blanks(width: int) -> None:
    texts = ["The", " quick", "你好", MASK, "\tfox \n", "", "\n", " jumps  over", "-the-lazy", " dog" * 9]
    laid = wrap(texts, width)
    assert all(cell_len("".join(piece.text for piece in row)) <= width for row in laid)
    assert {piece.cell for row in laid for piece in row} == {place for place, text in enumerate(texts) if text}
    kept = "".join(piece.text for row in laid for piece in row)
    assert "".join(kept.split()) == "".join("".join(texts).split())


# The terminal


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


def watched(story: Film, *, terminal: bool, keep: bool, height: int = 24) -> str:
    out = StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, height=height, _environ={"TERM": "xterm"})
    with Watch(console, keep=keep, least_seconds=0) as watch:
        for number, shown in enumerate(story.frames):
            watch.show(shown, f"step {number}")
    return out.getvalue()


def test_a_terminal_sees_every_frame_and_keeps_the_last() -> None:
    written = watched(STORY, terminal=True, keep=True)
    assert all(f"step {number}" in written for number in range(5))
    assert written.count("\x1b[?2026h") == written.count("\x1b[?2026l") == 5
    assert screen(written) == "Say:\n hello  world!"


def test_a_terminal_may_be_left_as_it_was() -> None:
    assert screen(watched(STORY, terminal=True, keep=False)) == ""


def test_without_a_terminal_only_the_last_frame_is_printed() -> None:
    assert watched(STORY, terminal=False, keep=True) == "Say:\n hello  world!\n"
    assert watched(STORY, terminal=False, keep=False) == ""


def test_a_tall_text_is_seen_where_it_changes_and_left_whole() -> None:
    lines = [f"line {number}\n" for number in range(100)]
    masked: list[str | None] = [*lines]
    masked[70] = None
    written = watched(film(frame(*masked), frame(*lines)), terminal=True, keep=True, height=10)
    live, _, left = written.rpartition("\x1b[?2026l")
    assert "line 70" in live
    assert "line 71" in live
    assert "line 1\n" not in live
    assert "of 101" in live
    assert screen(live + left) == "".join(lines).rstrip()


def test_a_fast_run_is_paced() -> None:
    now, slept = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    console = Console(file=StringIO(), force_terminal=True)
    with Watch(console, least_seconds=0.5, clock=lambda: now[0], sleep=sleep) as watch:
        watch.show(frame("a"))
        now[0] += 0.2  # the network works
        watch.show(frame("b"))
        now[0] += 2.0
        watch.show(frame("c"))
    assert slept == [pytest.approx(0.3), 0.0]


# The page


def page_data(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="film">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_plays_every_frame(tmp_path: Path) -> None:
    export(STORY, tmp_path / "film.html")
    data = page_data((tmp_path / "film.html").read_text(encoding="utf-8"))
    texts = list(data["first"])
    played = [tuple(texts)]
    for changes in data["changes"]:
        for index, text in changes:
            texts[index] = text
        played.append(tuple(texts))
    assert played == [tuple(cell.text for cell in shown) for shown in STORY.frames]
    assert data["given"] == "10000"
    assert data["calls"] == list(STORY.calls)


def test_the_page_needs_nothing_outside_itself(tmp_path: Path) -> None:
    export(STORY, tmp_path / "film.html")
    page = (tmp_path / "film.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|\bsrc=|<link|@import|url\(|{{", page)


def test_a_page_without_scripts_shows_the_finished_text(tmp_path: Path) -> None:
    export(STORY, tmp_path / "film.html")
    assert "\nSay:\n hello\tworld!</pre>" in (tmp_path / "film.html").read_text(encoding="utf-8")


def test_a_page_grows_with_its_changes_not_with_its_frames(tmp_path: Path) -> None:
    words = [f" word{number}" for number in range(1000)]
    steps = (frame(*words[:shown], *[None] * (1000 - shown)) for shown in range(1001))
    export(film(*steps), tmp_path / "film.html")
    assert (tmp_path / "film.html").stat().st_size < 100_000


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_holds_hostile_text_as_text(tmp_path: Path, text: str) -> None:
    export(film(frame(None), frame(text), title=text, footer=text), tmp_path / "film.html")
    export(film(frame(None), frame("x"), title="x", footer="x"), tmp_path / "plain.html")
    page, plain = ((tmp_path / name).read_text(encoding="utf-8") for name in ("film.html", "plain.html"))
    assert page_data(page)["changes"] == [[[0, legible(text)]]]
    assert page.count("<") == plain.count("<")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", page)


# The picture


def picture(story: Film, folder: Path) -> ElementTree.Element:
    export(story, folder / "film.svg")
    return ElementTree.parse(folder / "film.svg").getroot()


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


def test_the_picture_ends_as_the_film_does(tmp_path: Path) -> None:
    assert standing(picture(STORY, tmp_path)) == ["Say:", " hello  world!"]


def test_a_picture_breaks_long_lines_between_words(tmp_path: Path) -> None:
    text = "word " * 40 + "你好 " * 40 + "e\u0301" * 100
    rows = standing(picture(film(frame(None), frame(text)), tmp_path))
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


def test_the_picture_shows_each_frame_at_its_time(tmp_path: Path) -> None:
    story = film(
        frame("Say", None, None, None, given=1),
        frame("Say", " hi", None, None, given=1),
        frame("Say", " hello", None, "!", given=1),
        frame("Say", None, " world", "!", given=1),
        frame("Say", " hello", " world", "!", given=1),
    )
    root = picture(story, tmp_path)
    for number, shown in enumerate(story.frames):
        seen = list(seen_at(root, 0.7 + 0.35 * (number - 1) + 0.3))
        assert sum(tag == "rect" for tag, _ in seen) == sum(cell.text is None for cell in shown)
        words = sorted(text for tag, text in seen if tag == "text")
        assert words == sorted(cell.text.strip() for cell in shown if cell.text is not None)


def test_a_long_film_makes_a_short_picture(tmp_path: Path) -> None:
    words = [f" w{number}" for number in range(1000)]
    root = picture(film(*(frame(*words[:n], *[None] * (1000 - n)) for n in range(1001))), tmp_path)
    counts = [node.text or "" for node in root.findall(f".//{SVG}g[@class='count']/{SVG}text")]
    assert len(counts) == PICTURES
    assert counts[0] == "step 0/1000 · 0 calls"
    assert counts[-1] == "step 1000/1000 · 1000 calls"
    assert " ".join(standing(root)).split() == "".join(words).split()
    assert (tmp_path / "film.svg").stat().st_size < 250_000


@pytest.mark.parametrize("text", HOSTILE)
def test_a_picture_holds_hostile_text_as_text(tmp_path: Path, text: str) -> None:
    root = picture(film(frame(None, None), frame(text, "a"), frame("b", text), title=text, footer=text), tmp_path)
    assert {node.tag.removeprefix(SVG) for node in root.iter()} == {
        *("svg", "title", "style", "rect", "path", "circle", "text", "g")
    }
    assert root.findtext(f"{SVG}title") == legible(text).replace("\n", " ")


def test_a_text_that_gives_way_stands_where_its_successor_will(tmp_path: Path) -> None:
    root = picture(film(frame("x" * 78, " ephemeral"), frame("x" * 78, " lasting")), tmp_path)
    (early,) = root.findall(f".//{SVG}g[@class='past']//{SVG}text")
    late = root.findall(f".//{SVG}g[@id='text']//{SVG}text")[-1]
    assert (early.text, late.text) == ("ephemeral", "lasting")
    assert (early.get("x"), early.get("y")) == (late.get("x"), late.get("y"))
    assert early.get("textLength") == late.get("textLength")  # squeezed, so that it covers nothing else


def test_a_picture_of_one_frame_stands_still(tmp_path: Path) -> None:
    root = picture(film(frame("a", None)), tmp_path)
    assert "@keyframes" not in (root.findtext(f"{SVG}style") or "")
    assert standing(root) == ["a"]
    assert len(root.findall(f".//{SVG}g[@id='text']//{SVG}rect")) == 1


# The file


@pytest.mark.parametrize("name", ["film.html", "film.svg", "FILM.SVG"])
@pytest.mark.parametrize(
    "story", [STORY, film(()), film(frame(""), frame("")), film(frame(None), frame(None), footer="")]
)
def test_the_same_film_is_the_same_file(tmp_path: Path, name: str, story: Film) -> None:
    export(story, tmp_path / name)
    once = (tmp_path / name).read_bytes()
    export(story, tmp_path / name)
    assert (tmp_path / name).read_bytes() == once
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.html.*\.svg.*'film\.gif'") as refusal:
        export(STORY, tmp_path / "film.gif")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        export(STORY, tmp_path / "nowhere" / "film.html")
    (tmp_path / "taken.svg").mkdir()
    with pytest.raises(ConfigError, match="taken"):
        export(STORY, tmp_path / "taken.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.svg"]
