"""`--export` and `--watch` show noise without masks too: symbols that change at every step."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from dlm.cli.writing import recording
from dlm.errors import WriteError
from dlm.lm import DiffusionLM
from dlm.template import parse_template
from tests.support.commands import dlm
from tests.support.films import page_data, screen
from tests.support.fixtures import MakeLM

PROMPT = "the cat"
LENGTH, STEPS = 9, 6


@pytest.fixture(scope="module")
def model(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of uniform noise."""
    folder = tmp_path_factory.mktemp("models") / "uniform"
    make_lm(byte_tokenizer, 32, noise={"name": "uniform"}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("suffix", [".html", ".svg"])
def test_films_of_random_symbols_are_written(model: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film{suffix}"
    words = ["sample", model, "--prompt", PROMPT, "--length", LENGTH, "--steps", STEPS]
    assert dlm(*words, "--export", path)[0] == dlm(*words)[0]
    if suffix == ".svg":
        page = path.read_text(encoding="utf-8")
        assert f"step {STEPS}/{STEPS} · {STEPS} calls" in page and "<path" in page and 'class="mask' not in page
        return
    film = page_data(path.read_text(encoding="utf-8"))
    assert film["given"] == "1" * len(PROMPT) + "0" * LENGTH and None not in film["first"]
    assert len(film["changes"]) == STEPS and all(film["changes"])
    assert all(text is not None and cell >= len(PROMPT) for change in film["changes"] for cell, text in change)


def test_a_terminal_shows_random_symbols_change(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80, _environ={"TERM": "xterm-256color"})
    monkeypatch.setattr("dlm.cli.writing.errors", terminal)
    words = ["sample", model, "--prompt", PROMPT, "--length", LENGTH, "--steps", STEPS]
    assert dlm(*words, "--watch")[0] == dlm(*words)[0]
    frames = screen.getvalue().split("\x1b[?2026h")[1:]
    assert len(frames) == STEPS + 1 and all("\x1b[36mt\x1b[0m" in frame for frame in frames)
    assert ["\x1b[1;33m" in frame for frame in frames] == [False] + [True] * STEPS
    assert f"{STEPS} network calls" in frames[-1]


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """What a terminal is sent."""
    out = StringIO()
    terminal = Console(file=out, force_terminal=True, width=80, _environ={"TERM": "xterm-256color"})
    monkeypatch.setattr("dlm.cli.writing.errors", terminal)
    monkeypatch.setattr("dlm.cli.progress.errors", terminal)
    return out


@pytest.mark.parametrize("apart", [False, True])
def test_lines_stand_where_a_drawing_has_ended(apart: bool, tiny_lm: DiffusionLM, out: StringIO) -> None:
    """Standard output may be the same terminal: what is drawn after a line began would be drawn over it."""
    templates = {number: parse_template("a [MASK:2] b") for number in range(3)}
    with recording(tiny_lm, "a film", watch=True, export=None, apart=apart) as seen:
        found = tiny_lm.infill_each(templates, batch_size=1, watch=seen.take)
        for number, _ in enumerate(seen.each(found, len(templates))):
            if not apart:
                out.write(f"line {number}\n")
    drawing = out.getvalue().split("\x1b[?2026h")
    assert len(drawing) == 4 and screen(out.getvalue()) == ("" if apart else "line 0\nline 1\nline 2")
    # The bar stands before the drawing and behind it, where no line would meet it.
    below = drawing[-1].split("\x1b[?2026l")[1]
    assert ("0/3" in drawing[0], "3/3" in below) == (apart, apart)


def test_a_bar_is_taken_away_where_writing_fails(tiny_lm: DiffusionLM, out: StringIO) -> None:
    templates = {number: parse_template("a [MASK:3] b") for number in range(3)}
    with pytest.raises(WriteError), recording(tiny_lm, "a film", watch=False, export=None, apart=True) as seen:
        for _ in seen.each(tiny_lm.infill_each(templates), len(templates)):
            raise WriteError("no room")
    assert "1/3" in out.getvalue() and screen(out.getvalue()) == ""


def test_without_a_terminal_long_work_is_told_in_lines(
    tiny_lm: DiffusionLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lines(pause: float) -> list[str]:
        monkeypatch.setattr("dlm.cli.progress.PAUSE", pause)
        with recording(tiny_lm, "a film", watch=False, export=None, apart=True) as seen:
            for _ in seen.each(range(3), 3):
                pass
        return capsys.readouterr().err.splitlines()

    assert lines(60.0) == []
    assert lines(-1.0) == [f"written: {number} of 3 texts" for number in range(3)]


def test_a_text_that_nothing_wrote_has_no_film(tiny_lm: DiffusionLM, tmp_path: Path) -> None:
    model, film = tmp_path / "model", tmp_path / "film.html"
    tiny_lm.save_pretrained(model)
    told = dlm("infill", model, "ab[MASK:0-1:/q?/]cd", "--effort", "1", "--length-top-p", "0.01", "--export", film)[1]
    assert told.startswith(f"{film}: no film is made") or film.exists()


def test_a_film_is_told_of(tiny_lm: DiffusionLM, tmp_path: Path) -> None:
    model, film = tmp_path / "model", tmp_path / "film.html"
    tiny_lm.save_pretrained(model)
    told = dlm("infill", model, "a [MASK:3] b", "--export", film)[1].splitlines()
    assert told[0] == f"{film}: the film of the first text that was written, 4 frames of 3 network calls"
