"""`--remask NAME[:option=value,...]`: how it is written, how it is refused, and its films."""

import re
from io import StringIO
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from dlm.cli.options import build_sampler, remasker
from dlm.diffusion.remask import AnyRemasker, Cap, Loop, Planner
from dlm.diffusion.unmask import FixedSteps
from dlm.errors import ConfigError
from dlm.lm import DiffusionLM, Sampler
from tests.support.choices import defaults, named
from tests.support.commands import answer, dlm, invoke, refusal
from tests.support.films import page_data
from tests.support.fixtures import Refused

LENGTH, STEPS = 9, 12


@pytest.fixture(scope="module")
def model(tiny_lm: DiffusionLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_lm.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("choice", defaults(AnyRemasker), ids=named)
def test_a_name_alone_has_the_defaults(choice: AnyRemasker) -> None:
    assert remasker(choice.name) == choice
    sampler = build_sampler({"remask": choice.name, "steps": 8})
    assert sampler == Sampler(budget=FixedSteps(8), remask=choice)


def test_options_stand_behind_a_colon() -> None:
    assert remasker("cap:eta=0.1") == Cap(0.1)
    assert remasker("loop:on=0.6,off=0.1, eta=.03,alpha=8e-1") == Loop(0.03, on=0.6, off=0.1, alpha=0.8)
    assert remasker("planner:eta=2") == Planner(2.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("cup", "no remask 'cup'; valid: cap, rescale, confidence, loop, psi, planner"),
        ("", "no remask ''"),
        ("Cap", "no remask 'Cap'"),
        ("cap:", "--remask cap has no option ''; valid: eta"),
        ("cap:on=0.1", "--remask cap has no option 'on'; valid: eta"),
        ("loop:name=1", "--remask loop has no option 'name'; valid: eta, on, off, alpha"),
        ("cap:eta", "--remask cap: eta is a number, as in eta=0.1, got ''"),
        ("cap:eta=much", "got 'much'"),
        ("cap:eta=0.1,eta=0.2", "--remask cap: eta is given twice"),
        ("cap:eta=1.5", "--remask cap: eta must be from 0 to 1, got 1.5"),
        ("cap:eta=nan", "--remask cap: eta must be from 0 to 1, got nan"),
        ("loop:on=0.01", "--remask loop: off and on must be 0 < off < on < 1"),
    ],
)
def test_what_it_is_not(given: str, said: str, refused: Refused) -> None:
    with refused(ConfigError, said):
        build_sampler({"remask": given, "steps": 8})


@pytest.mark.parametrize("command", ["sample", "infill"])
def test_the_help_has_every_remasker_and_its_defaults(command: str) -> None:
    words = " ".join(invoke(command, "--help").stdout.replace("│", " ").split()).replace(" ", "")
    for choice in defaults(AnyRemasker):
        assert f"{choice.name}:eta={choice.eta:g}" in words


@pytest.mark.parametrize("name", [choice.name for choice in get_args(AnyRemasker)])
def test_the_commands_write_by_it(model: Path, name: str) -> None:
    how = ["--remask", name, "--steps", STEPS]
    found = answer("sample", model, "--prompt", "ab", "--length", LENGTH, *how)
    assert found["samples"][0]["text"].startswith("ab") and found["network_calls"] <= STEPS
    filled = answer("infill", model, "ab[MASK:3]cd", *how)
    assert filled["text"] == f"ab{filled['spans'][0]}cd" and filled["network_calls"] <= STEPS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--remask cap takes a number of steps: give --steps N too"),
        (["--threshold", "0.9"], "give --steps N instead of the budget threshold"),
        (["--steps", "4", "--order", "margin"], "leave --order margin out"),
        (["--steps", "4", "--grid", "cosine"], "leave --grid cosine out"),
        (["--verify"], "--verify, --drafts and --accept are for a model"),
    ],
)
@pytest.mark.parametrize("command", ["sample", "infill"])
def test_a_combination_that_cannot_work_is_one_line(model: Path, command: str, words: list[str], said: str) -> None:
    text = ["a[MASK:2]"] if command == "infill" else ["--length", "4"]
    error = refusal(command, model, *text, "--remask", "cap", *words)
    assert said in error and error.startswith("dlm: ") and error.count("\n") == 1


WRITE = ["--prompt", "the cat", "--length", LENGTH, "--steps", STEPS, "--remask", "rescale:eta=0.9"]


@pytest.mark.parametrize("suffix", [".html", ".svg"])
def test_films_show_tokens_become_masks_again(model: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film{suffix}"
    assert dlm("sample", model, *WRITE, "--export", path)[0] == dlm("sample", model, *WRITE)[0]
    text = path.read_text(encoding="utf-8")
    if suffix == ".svg":
        starts = {int(start) for start in re.findall(r'class="mask m(\d+)-', text)}
        assert 0 in starts and len(starts) > 1  # masks of the beginning, and ones that come later
        return
    film = page_data(text)
    shown, reopened = list(film["first"]), 0
    for change in film["changes"]:
        for cell, now in change:
            assert cell >= len("the cat") and now != shown[cell]
            reopened += now is None
            shown[cell] = now
    assert reopened and None not in shown
    assert film["calls"] == sorted(film["calls"])


def test_a_terminal_shows_tokens_become_masks_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80, _environ={"TERM": "xterm-256color"})
    monkeypatch.setattr("dlm.cli.writing.errors", terminal)
    assert dlm("sample", model, *WRITE, "--watch")[0] == dlm("sample", model, *WRITE)[0]
    frames = screen.getvalue().split("\x1b[?2026h")[1:]
    revealed = [int(frame.split(f"/{LENGTH} tokens")[0].rpartition(" ")[2].rpartition("m")[2]) for frame in frames]
    assert revealed[0] == 0 and revealed[-1] == LENGTH and revealed != sorted(revealed)
