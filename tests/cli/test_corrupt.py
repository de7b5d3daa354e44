"""`dlm corrupt`: what it shows is one draw of the chain, and its figures are the closed forms."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dlm.diffusion.noise import AnyNoise
from dlm.film.layout import MASK
from dlm.lm import DiffusionLM
from dlm.model.checkpoint import Sidecar
from dlm.settings import parse_config
from tests.support.choices import names
from tests.support.commands import answer, dlm

SIGMAS = 4.5
LONG = "abca" * 1000
"""4000 tokens over 3 symbols: enough to tell a share from another."""


def corrupt(*words: object, stdin: str | None = None) -> tuple[str, str]:
    """Stdout and stderr of the command."""
    return dlm("corrupt", *words, stdin=stdin)


def told(*words: object) -> dict[str, Any]:
    """What the command says to a machine."""
    return answer("corrupt", *words)


def near(count: float, probability: float, of: int) -> None:
    """Asserts that a count is what a binomial may give."""
    assert abs(count - of * probability) <= SIGMAS * math.sqrt(of * probability * (1.0 - probability)) + 1e-9


# The figures


def test_for_a_machine() -> None:
    found = told("to be", "--at", "0.25,0.75")
    assert set(found) == {"process", "schedule", "tokens", "symbols", "states"}
    assert (found["process"], found["schedule"], found["tokens"], found["symbols"]) == ("absorbing", "linear", 5, 5)
    assert [list(state) for state in found["states"]] == [
        ["t", "alpha", "clean", "masked", "random", "expected_changed", "changed", "text", "ids"]
    ] * 2
    assert [state["t"] for state in found["states"]] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("words", "alpha", "clean", "masked", "random"),
    [
        (["--process", "absorbing"], 0.7, 0.7, 0.3, 0.0),
        (["--process", "uniform"], 0.7, 0.7, 0.0, 0.3),
        (["--process", "uniform", "--schedule", "polynomial"], 0.91, 0.91, 0.0, 0.09),
        (["--schedule", "cosine"], 1.0 - math.sin(0.15 * math.pi), None, None, 0.0),
        (["--schedule", "geometric"], math.exp(-((1e-4) ** 0.7) * 20.0**0.3), None, None, 0.0),
        (["--process", "hybrid", "--share", "0.3", "--at", "0.5"], 0.5, 0.35, 0.35, 0.3),
    ],
)
def test_the_shares_and_the_number_that_changes_are_exact(
    words: Sequence[str], alpha: float, clean: float | None, masked: float | None, random: float
) -> None:
    """L(1 - alpha) under masks, L(1 - alpha)(1 - 1/K) under uniform noise; both are L(1 - clean - random/K)."""
    found = told("abcab" * 4, "--at", "0.3", *words)
    (state,) = found["states"]
    clean, masked = alpha if clean is None else clean, 1.0 - alpha if masked is None else masked
    assert [state[name] for name in ("alpha", "clean", "masked", "random")] == pytest.approx(
        [alpha, clean, masked, random]
    )
    assert (found["tokens"], found["symbols"]) == (20, 3)
    assert state["expected_changed"] == pytest.approx(20 * (1.0 - clean - random / 3))


def test_a_text_of_one_character_cannot_change_into_another() -> None:
    found = told("aaaaaaaa", "--process", "uniform", "--at", "0.5,1")
    assert found["symbols"] == 1
    assert [(state["expected_changed"], state["changed"]) for state in found["states"]] == [(0.0, 0)] * 2
    assert {state["text"] for state in found["states"]} == {"aaaaaaaa"}


# The chain


@pytest.mark.parametrize("process", names(AnyNoise))
def test_every_state_has_the_shares_of_its_time(process: str) -> None:
    """Also the later ones, which come from the state before and not from the clean text."""
    found = told(LONG, "--process", process, "--at", "0,0.1,0.3,0.5,0.7,0.9,1")
    assert len({id for state in found["states"] for id in state["ids"]} - {0, 1, 2}) <= 1  # the mask, and no other
    clean = found["states"][0]["ids"]
    assert found["states"][0]["text"] == LONG
    for state in found["states"]:
        ids = state["ids"]
        assert state["changed"] == sum(one != other for one, other in zip(ids, clean, strict=True))
        near(state["changed"], state["expected_changed"] / len(LONG), len(LONG))
        near(sum(id > 2 for id in ids), state["masked"], len(LONG))
        assert state["text"] == "".join("abc"[id] if id < 3 else MASK for id in ids)


@pytest.mark.parametrize("seed", range(3))
def test_a_mask_stays_and_what_is_not_masked_is_clean(seed: int) -> None:
    states = told(LONG, "--at", "0.2,0.4,0.6,0.8", "--seed", str(seed))["states"]
    masked = [{place for place, id in enumerate(state["ids"]) if id > 2} for state in states]
    assert all(early < late for early, late in itertools.pairwise(masked))
    for state, places in zip(states, masked, strict=True):
        assert all("abc"[id] == LONG[place] for place, id in enumerate(state["ids"]) if place not in places)
        assert state["text"].count(MASK) == state["changed"] == len(places)


@pytest.mark.parametrize("process", names(AnyNoise))
def test_each_state_comes_from_the_one_before(process: str) -> None:
    """From s to t a symbol stays with chance keep + (random(t) - keep random(s))/K, far above what two draws give."""
    early, late = told(LONG, "--process", process, "--at", "0.5,0.6")["states"]
    pairs = [pair for pair in zip(early["ids"], late["ids"], strict=True) if pair[0] < 3]
    keep = late["clean"] / early["clean"]
    near(sum(s == t for s, t in pairs), keep + (late["random"] - keep * early["random"]) / 3, len(pairs))


def test_pure_noise_keeps_nothing_but_by_chance() -> None:
    (uniform,) = told(LONG, "--process", "uniform", "--at", "1")["states"]
    assert MASK not in uniform["text"] and uniform["clean"] == 0.0
    near(len(LONG) - uniform["changed"], 1 / 3, len(LONG))
    (absorbing,) = told(LONG, "--at", "1")["states"]
    assert absorbing["text"] == MASK * len(LONG)


def test_a_draw_follows_its_seed() -> None:
    one, same, other = (told("to be or not", "--seed", seed) for seed in ("1", "1", "2"))
    assert one == same != other


def test_times_are_taken_once_and_in_order() -> None:
    assert told("to be", "--at", "0.9, .1,0.90,0.1") == told("to be", "--at", "0.1,0.9")


def test_times_of_a_chain_of_steps() -> None:
    found = told("to be", "--steps", "4", "--at", "0.1,0.3,0.35,0.9")
    assert [state["t"] for state in found["states"]] == [0.0, 0.25, 1.0]
    _, err = corrupt("to be", "--steps", "4", "--at", "0.1,0.3,0.35,0.9")
    assert "a chain of 4 steps: 0.1, 0.3, 0.35, 0.9 rounded to 0, 0.25, 1" in err
    _, err = corrupt("to be", "--steps", "4", "--at", "0.25,0.5")
    assert "a chain of 4 steps" in err and "rounded" not in err


# The text


def test_bytes_are_a_token_each() -> None:
    found = told("né", "--tokenizer", "bytes", "--at", "0")
    assert (found["tokens"], found["symbols"]) == (3, 256)
    assert found["states"][0]["ids"] == [*"né".encode()] and found["states"][0]["text"] == "né"


def test_text_from_stdin() -> None:
    assert corrupt("-", stdin="to be\n") == corrupt("to be\n")


def test_for_a_person() -> None:
    out, err = corrupt("to be or not", "--process", "hybrid")
    found = told("to be or not", "--process", "hybrid")
    assert "\x1b" not in out and err == "12 tokens over 7 symbols, hybrid noise, linear schedule\n"
    blocks = out.removesuffix("\n").split("\n\n")
    assert len(blocks) == len(found["states"])
    for block, state in zip(blocks, found["states"], strict=True):
        head, text = block.split("\n")
        assert text == state["text"]
        shares = [f"{name} {state[name]:.4f}" for name in ("alpha", "clean", "masked", "random")]
        changed = f"changed {state['changed']} of 12, expected {state['expected_changed']:.2f}"
        assert head.split("  ") == [f"t {state['t']:g}", *shares, changed]


def test_a_terminal_shows_masks_dim_and_changed_tokens_bright(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    (state,) = told("abcd", "--process", "hybrid", "--share", "0.5", "--at", "0.5", "--seed", "1")["states"]
    out, _ = corrupt("abcd", "--process", "hybrid", "--share", "0.5", "--at", "0.5", "--seed", "1")
    shown = ""
    for clean, id in zip("abcd", state["ids"], strict=True):
        now = "abcd"[id] if id < 4 else MASK
        shown += now if now == clean else f"\x1b[{'2' if now == MASK else '1;33'}m{now}\x1b[0m"
    assert {"\x1b[2m", "\x1b[1;33m"} <= {shown[i : i + n] for i in range(len(shown)) for n in (4, 7)}
    assert out.splitlines()[1] == shown


def test_hostile_text_is_only_text() -> None:
    out, _ = corrupt("\x1b[2J[bold]x[/]", "--at", "0")
    assert out.splitlines()[1] == "␛[2J[bold]x[/]"


def test_into_a_file(tmp_path: Path) -> None:
    for words in (["to be"], ["to be", "--json"]):
        path = tmp_path / f"{len(words)}.txt"
        plain = corrupt(*words)[0]
        assert corrupt(*words, "--output", path)[0] == "" and path.read_text(encoding="utf-8") == plain
        corrupt(*words, "--output", path, "--seed", "1", "--overwrite")
        assert path.read_text(encoding="utf-8") == corrupt(*words, "--seed", "1")[0] != plain


# A model's own


@pytest.fixture(scope="module")
def model(tiny_lm: DiffusionLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose process, schedule and chain are not the default, and whose weights are gone."""
    run = tmp_path_factory.mktemp("runs") / "hybrid"
    tree = {
        "data": {"train": {"format": "text", "path": "none.txt"}},
        "noise": {"name": "hybrid", "share": 0.3},
        "schedule": {"name": "cosine"},
        "model": {"time_conditioning": False},
        "time": {"steps": 4},
    }
    sidecar = Sidecar.of_run(parse_config(tree), tiny_lm.process.mask_id, 0)
    lm = DiffusionLM(tiny_lm.model, tiny_lm.tokenizer, sidecar=sidecar)
    lm.save_pretrained(run / "checkpoints/best")
    (run / "checkpoints/best/model.safetensors").unlink()
    return run


def test_a_model_brings_its_own_process_and_tokenizer(model: Path) -> None:
    found = told("né", model, "--at", "0.3,0.5")
    assert (found["process"], found["schedule"], found["tokens"]) == ("hybrid", "cosine", 3)
    assert found["symbols"] == 257  # the bytes, and the end of text, which training texts hold
    assert [state["t"] for state in found["states"]] == [0.25, 0.5]
    alpha = 1.0 - math.sin(math.pi / 4)
    random = 2 * 0.3 / 0.7 * math.sqrt(alpha * (1.0 - alpha))
    assert found["states"][1]["clean"] == pytest.approx(alpha / (1.0 + random))
    assert told("né", model / "checkpoints/best", "--at", "0.3,0.5") == found


def test_what_is_asked_for_goes_before_the_models_own(model: Path) -> None:
    words = ["--process", "uniform", "--schedule", "linear", "--steps", "10", "--at", "0.3"]
    found = told("né", model, *words)
    assert (found["process"], found["schedule"], found["tokens"]) == ("uniform", "linear", 3)
    assert [(state["t"], state["alpha"]) for state in found["states"]] == [(0.3, pytest.approx(0.7))]
    (state,) = told("né", model, "--share", "0.5", "--schedule", "linear", "--at", "0.5")["states"]
    assert state["random"] == pytest.approx(0.5)


def test_characters_that_a_model_does_not_know_are_told(tmp_path: Path, make_lm: Any) -> None:
    from dlm.config import Characters
    from dlm.model.tokenizer import build_tokenizer

    make_lm(build_tokenizer(Characters(), lambda: ["abc"]), 8).save_pretrained(tmp_path / "abc")
    out, err = corrupt("a§c§", tmp_path / "abc", "--at", "0")
    assert out.splitlines()[1] == "a<|unknown|>c<|unknown|>"
    assert err.splitlines()[1:] == ["2 tokens are unknown to the tokenizer"]
