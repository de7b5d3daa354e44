"""What a film shows of a sampler, whatever the noise: what was given stays, what is written changes."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from transformers import PreTrainedTokenizerBase

from dlm.diffusion.noise import AnyNoise
from dlm.diffusion.unmask import FixedSteps
from dlm.film.frames import Cell, Film, Frame, Recorder, ending, frame_of
from dlm.film.paint import STYLES, render
from dlm.lm import DiffusionLM, Sampler
from dlm.model.checkpoint import Sidecar
from dlm.model.time_embedding import build_time_embedding
from dlm.plain import counted
from dlm.settings import parse_config
from dlm.template import parse_template
from tests.support.choices import names
from tests.support.films import frame

NOISES = names(AnyNoise)
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


def filmed(lm: DiffusionLM, write: Callable[[Recorder], object]) -> Film:
    """The film that a recorder makes."""
    recorder = Recorder(lm.tokenizer)
    write(recorder)
    return recorder.film("a film")


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


@pytest.mark.parametrize("noise", NOISES)
def test_the_prompt_is_given_and_the_rest_is_written(lms: dict[str, DiffusionLM], noise: str) -> None:
    """For noise without masks too, whose first state has symbols where the text is to stand."""
    written: list[str] = []

    def write(following: Recorder) -> None:
        samples = lms[noise].generate(PROMPT, num=3, length=LENGTH, watch=following.take, batch_size=2)
        written.extend(sample.text for sample in samples)

    film = filmed(lms[noise], write)
    for shown in film.frames:
        assert [cell.given for cell in shown] == [True] * len(PROMPT) + [False] * LENGTH
        assert "".join(cell.text or "?" for cell in shown[: len(PROMPT)]) == PROMPT
    last = "".join(cell.text or "" for cell in film.frames[-1])
    assert last == written[0] or last.startswith(written[0] + "<|endoftext|>")
    masks = [sum(cell.text is None for cell in shown) for shown in film.frames]
    assert masks[0] == {"absorbing": LENGTH, "uniform": 0, "hybrid": LENGTH}[noise] and masks[-1] == 0


def test_random_symbols_change_at_every_step(lms: dict[str, DiffusionLM]) -> None:
    sampler = Sampler(budget=FixedSteps(STEPS))
    lm = lms["uniform"]
    film = filmed(lm, lambda r: lm.generate(PROMPT, length=LENGTH, sampler=sampler, watch=r.take))
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
    lms: dict[str, DiffusionLM], noise: str, texts: Sequence[str], given: list[bool]
) -> None:
    """The first text is followed to its own end, not to the end of the longest beside it."""
    templates = dict(enumerate(map(parse_template, texts)))
    lm = lms[noise]
    film = filmed(lm, lambda r: list(lm.infill_each(templates, watch=r.take)))
    for shown in film.frames:
        assert [cell.given for cell in shown] == given
    last = "".join(cell.text or "" for cell in film.frames[-1])
    assert last == next(lm.infill_each(templates))[0].text


def test_a_viewer_sees_the_frames_of_the_film_as_they_are_made(tiny_lm: DiffusionLM) -> None:
    seen: list[tuple[Frame, str]] = []
    recorder = Recorder(tiny_lm.tokenizer, viewer=lambda shown, note: seen.append((shown, note)))
    tiny_lm.generate(PROMPT, num=2, batch_size=1, length=LENGTH, watch=recorder.take)
    film = recorder.film("a film", "a footer")
    assert (film.title, film.footer) == ("a film", "a footer")
    noted = [counted(calls, "network call") for calls in film.calls]
    assert seen == [*zip(film.frames, noted, strict=True)] and "1 network call" in noted


def test_what_is_not_kept_makes_no_film(tiny_lm: DiffusionLM) -> None:
    seen: list[Frame] = []
    recorder = Recorder(tiny_lm.tokenizer, viewer=lambda shown, note: seen.append(shown), keep=False)
    tiny_lm.generate(PROMPT, length=LENGTH, watch=recorder.take)
    assert len(seen) > 1
    with pytest.raises(ValueError, match="at least one"):
        recorder.film("a film")


def test_a_character_of_several_tokens_is_whole_and_a_mask_parts_it(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    mask_id = byte_tokenizer.mask_token_id
    assert [cell.text for cell in frame_of(byte_tokenizer, [*"né".encode()])] == ["n", "", "é"]
    first, second = "é".encode()
    parted = frame_of(byte_tokenizer, [first, mask_id, second], [True, False, False])
    assert parted == (Cell("\ufffd", True), Cell(None), Cell("\ufffd"))


def test_an_ending_is_what_was_added_up_to_the_end_of_text() -> None:
    ends = ["<end>", "<turn>"]
    assert ending(frame("a", None, "b", "<end>", "c", None, given=1), ends) == frame(None, "b", "", "", "")
    assert ending(frame("a", "b", "<turn>", None, given=1), ends) == frame("b", "", "")
    assert ending(frame("<end>", "b", None, given=1), ends) == frame("b", None)
