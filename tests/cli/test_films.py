"""`--export` and `--watch` show noise without masks too: symbols that change at every step."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from tests.support.commands import dlm
from tests.support.films import page_data
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
