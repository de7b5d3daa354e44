"""A painted frame shows its cells and what happened to them, and is never anything but text."""

from io import StringIO

import pytest
from rich.console import Console

from dlm.film.layout import MASK, legible
from dlm.film.paint import STYLES, render
from tests.support.films import HOSTILE, STORY, frame


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
