"""A terminal sees every frame, at a pace that an eye can follow."""

from io import StringIO

import pytest
from rich.console import Console

from dlm.film.frames import Film
from dlm.film.live import LiveView
from tests.support.films import STORY, film, frame, screen


def watched(story: Film, *, terminal: bool, keep: bool, height: int = 24) -> str:
    out = StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, height=height, _environ={"TERM": "xterm"})
    with LiveView(console, keep=keep, least_seconds=0) as view:
        for number, shown in enumerate(story.frames):
            view.show(shown, f"step {number}")
    return out.getvalue()


def test_a_terminal_sees_every_frame_and_keeps_the_last() -> None:
    written = watched(STORY, terminal=True, keep=True)
    assert all(f"step {number}" in written for number in range(5))
    assert written.count("\x1b[?2026h") == written.count("\x1b[?2026l") == 5
    assert screen(written) == "Say:\n hello  world!"


def test_a_terminal_may_be_left_as_it_was() -> None:
    assert screen(watched(STORY, terminal=True, keep=False)) == ""


@pytest.mark.parametrize("keep", [False, True])
def test_lines_after_the_end_of_a_drawing_stay(keep: bool) -> None:
    """What still is shown then, of the texts that are written next, draws nothing; the view may be opened again."""
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=24, _environ={"TERM": "xterm"})
    view = LiveView(console, keep=keep, least_seconds=0)
    with view:
        view.show(STORY.frames[0])
        view.close()
        out.write("a line\n")
        view.show(STORY.frames[1])
        out.write("another\n")
    assert screen(out.getvalue()) == ("Say░░░░░░░░\n" if keep else "") + "a line\nanother"
    with view:
        view.show(STORY.frames[2])
    assert out.getvalue().count("\x1b[?2026h") == 2


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
    with LiveView(console, least_seconds=0.5, clock=lambda: now[0], sleep=sleep) as view:
        view.show(frame("a"))
        now[0] += 0.2  # the network works
        view.show(frame("b"))
        now[0] += 2.0
        view.show(frame("c"))
    assert slept == [pytest.approx(0.3), 0.0]
