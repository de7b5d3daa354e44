"""`--export` and `--watch` show noise without masks too: symbols that change at every step."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from dlm.cli.writing import recording
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


def test_lines_stand_where_a_drawing_has_ended(tiny_lm: DiffusionLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output may be the same terminal: what is drawn after a line began would be drawn over it."""
    out = StringIO()
    terminal = Console(file=out, force_terminal=True, width=80, _environ={"TERM": "xterm-256color"})
    monkeypatch.setattr("dlm.cli.writing.errors", terminal)
    templates = {number: parse_template("a [MASK:3] b") for number in range(3)}
    with recording(tiny_lm, "a film", watch=True, export=None) as seen:
        found = tiny_lm.infill_each(templates, batch_size=1, watch=seen.take)
        for number, _ in enumerate(seen.each(found, len(templates), apart=False)):
            out.write(f"line {number}\n")
    assert out.getvalue().count("\x1b[?2026h") == 4 and screen(out.getvalue()) == "line 0\nline 1\nline 2"


def test_a_film_is_told_of(tiny_lm: DiffusionLM, tmp_path: Path) -> None:
    model, film = tmp_path / "model", tmp_path / "film.html"
    tiny_lm.save_pretrained(model)
    told = dlm("infill", model, "a [MASK:3] b", "--export", film)[1].splitlines()
    assert told[-1] == f"{film}: the film of the first text, 4 frames of 3 network calls"
