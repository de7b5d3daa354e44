"""What a film shows of a sampler, whatever the noise: what was given stays, what is written changes."""

import json
import re
from collections.abc import Callable, Sequence
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from dlm.cli import recorder
from dlm.cli.app import app
from dlm.cli.film import STYLES, Film, render
from dlm.cli.recorder import Recorder
from dlm.lm import DiffusionLM, Sampler
from dlm.model.checkpoint import Sidecar
from dlm.model.time_embedding import build_time_embedding
from dlm.settings import parse_config
from dlm.template import parse_template

NOISES = ("absorbing", "uniform", "hybrid")
PROMPT = "the cat"
LENGTH, STEPS = 9, 6


@pytest.fixture(scope="module")
def lms(tiny_lm: DiffusionLM) -> dict[str, DiffusionLM]:
    """Models of every noise, with the same weights."""

    def make(noise: str) -> DiffusionLM:
        tree = {"data": {"train": {"format": "text", "path": "none.txt"}, "length": 32}, "noise": {"name": noise}}
        sidecar = Sidecar.of_run(parse_config(tree), tiny_lm.process.mask_id, 0)
        time_embedding = None if noise == "absorbing" else build_time_embedding(tiny_lm.model, 0)
        return DiffusionLM(tiny_lm.model, tiny_lm.tokenizer, sidecar=sidecar, time_embedding=time_embedding)

    return {noise: make(noise) for noise in NOISES}


@pytest.fixture(scope="module")
def saved(lms: dict[str, DiffusionLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of every noise."""
    folder = tmp_path_factory.mktemp("models")
    for noise, lm in lms.items():
        lm.save_pretrained(folder / noise)
    return folder


def filmed(lm: DiffusionLM, write: Callable[[Recorder], object], monkeypatch: pytest.MonkeyPatch) -> Film:
    """The film that a recorder would write."""
    films: list[Film] = []
    monkeypatch.setattr(recorder, "export", lambda film, path: films.append(film))
    with Recorder(lm, live=False, keep=True) as following:
        write(following)
    following.export(Path("film.html"), "a film")
    return films[0]


def page_of(path: Path) -> dict[str, Any]:
    """What the page knows of its film."""
    found = re.search(r'<script type="application/json" id="film">(.*?)</script>', path.read_text(encoding="utf-8"))
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.mark.parametrize("noise", NOISES)
def test_the_prompt_is_given_and_the_rest_is_written(
    lms: dict[str, DiffusionLM], noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For noise without masks too, whose first state has symbols where the text is to stand."""
    written: list[str] = []

    def write(following: Recorder) -> None:
        samples = lms[noise].generate(PROMPT, num=3, length=LENGTH, watch=following.take, batch_size=2)
        written.extend(sample.text for sample in samples)

    film = filmed(lms[noise], write, monkeypatch)
    for frame in film.frames:
        assert [cell.given for cell in frame] == [True] * len(PROMPT) + [False] * LENGTH
        assert "".join(cell.text or "?" for cell in frame[: len(PROMPT)]) == PROMPT
    last = "".join(cell.text or "" for cell in film.frames[-1])
    assert last == written[0] or last.startswith(written[0] + "<|endoftext|>")
    masks = [sum(cell.text is None for cell in frame) for frame in film.frames]
    assert masks[0] == {"absorbing": LENGTH, "uniform": 0, "hybrid": LENGTH}[noise] and masks[-1] == 0


def test_random_symbols_change_at_every_step(lms: dict[str, DiffusionLM], monkeypatch: pytest.MonkeyPatch) -> None:
    from dlm.diffusion.unmask import FixedSteps

    sampler = Sampler(budget=FixedSteps(STEPS))
    lm = lms["uniform"]
    film = filmed(lm, lambda r: lm.generate(PROMPT, length=LENGTH, sampler=sampler, watch=r.take), monkeypatch)
    assert film.calls == tuple(range(STEPS + 1))
    for before, after in pairwise(film.frames):
        looks = {span.style for span in render(after, before).spans}
        assert STYLES["changed"] in looks and not looks & {STYLES["revealed"], STYLES["masked"]}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(
    ("texts", "given"),
    [
        (["a[MASK:2]b", "a [MASK:5] longer text"], [True, False, False, True]),
        (["[MASK:3]", "a [MASK:5] longer text"], [False] * 3),
        (["ab[MASK:1]", "ab[MASK:1]"], [True, True, False]),
    ],
)
def test_a_film_has_no_padding(
    lms: dict[str, DiffusionLM],
    noise: str,
    texts: Sequence[str],
    given: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first text is followed to its own end, not to the end of the longest beside it."""
    templates = [parse_template(text) for text in texts]
    lm = lms[noise]
    film = filmed(lm, lambda r: lm.infill_many(templates, watch=r.take), monkeypatch)
    for frame in film.frames:
        assert [cell.given for cell in frame] == given
    last = "".join(cell.text or "" for cell in film.frames[-1])
    assert last == lm.infill_many(templates)[0][0].text


@pytest.mark.parametrize("suffix", [".html", ".svg"])
def test_films_of_random_symbols_are_written(saved: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film{suffix}"
    words = ["sample", str(saved / "uniform"), "--prompt", PROMPT, "--length", str(LENGTH), "--steps", str(STEPS)]
    found = CliRunner().invoke(app, [*words, "--export", str(path)], catch_exceptions=False)
    assert found.exit_code == 0 and found.stdout == CliRunner().invoke(app, words).stdout
    if suffix == ".svg":
        page = path.read_text(encoding="utf-8")
        assert f"step {STEPS}/{STEPS} · {STEPS} calls" in page and "<path" in page and 'class="mask' not in page
        return
    film = page_of(path)
    assert film["given"] == "1" * len(PROMPT) + "0" * LENGTH and None not in film["first"]
    assert len(film["changes"]) == STEPS and all(film["changes"])
    assert all(text is not None and cell >= len(PROMPT) for change in film["changes"] for cell, text in change)


def test_a_terminal_shows_random_symbols_change(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80, _environ={"TERM": "xterm-256color"})
    monkeypatch.setattr(recorder, "errors", terminal)
    words = ["sample", str(saved / "uniform"), "--prompt", PROMPT, "--length", str(LENGTH), "--steps", str(STEPS)]
    found = CliRunner().invoke(app, [*words, "--watch"], catch_exceptions=False)
    assert found.exit_code == 0 and found.stdout == CliRunner().invoke(app, words).stdout
    frames = screen.getvalue().split("\x1b[?2026h")[1:]
    assert len(frames) == STEPS + 1 and all("\x1b[36mt\x1b[0m" in frame for frame in frames)
    assert ["\x1b[1;33m" in frame for frame in frames] == [False] + [True] * STEPS
    assert f"{STEPS} network calls" in frames[-1]
