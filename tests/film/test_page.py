"""The page plays every frame, needs nothing outside itself, and its text is never anything but text."""

import re

import pytest

from dlm.film.layout import legible
from dlm.film.page import to_html
from tests.support.films import HOSTILE, STORY, film, frame, page_data


def test_the_page_plays_every_frame() -> None:
    data = page_data(to_html(STORY))
    texts = list(data["first"])
    played = [tuple(texts)]
    for changes in data["changes"]:
        for index, text in changes:
            texts[index] = text
        played.append(tuple(texts))
    assert played == [tuple(cell.text for cell in shown) for shown in STORY.frames]
    assert data["given"] == "10000"
    assert data["calls"] == list(STORY.calls)


def test_the_page_needs_nothing_outside_itself() -> None:
    assert not re.search(r"https?:|\bsrc=|<link|@import|url\(|{{", to_html(STORY))


def test_a_page_without_scripts_shows_the_finished_text() -> None:
    assert "\nSay:\n hello\tworld!</pre>" in to_html(STORY)


def test_a_page_grows_with_its_changes_not_with_its_frames() -> None:
    words = [f" word{number}" for number in range(1000)]
    steps = (frame(*words[:shown], *[None] * (1000 - shown)) for shown in range(1001))
    assert len(to_html(film(*steps)).encode()) < 100_000


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_holds_hostile_text_as_text(text: str) -> None:
    page = to_html(film(frame(None), frame(text), title=text, footer=text))
    plain = to_html(film(frame(None), frame("x"), title="x", footer="x"))
    assert page_data(page)["changes"] == [[[0, legible(text)]]]
    assert page.count("<") == plain.count("<")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", page)
