"""DiffusionGemma writes as transformers alone would have it write, and what it would ignore is refused."""

from pathlib import Path

import pytest
import torch
import transformers

from dlm.diffusion.draws import generator
from dlm.diffusion.remask import Psi
from dlm.diffusion.sample import State
from dlm.diffusion.unmask import Confidence, EntropyBound, FixedSteps, Threshold, TokenChoice
from dlm.errors import CheckpointError, ConfigError, DataError
from dlm.film.frames import Recorder
from dlm.lm import DiffusionLM, Sampler
from dlm.lm.diffusion_gemma import DiffusionGemma
from tests.support import commands, public
from tests.support.fixtures import Refused

pytestmark = pytest.mark.skipif(
    not hasattr(transformers, "DiffusionGemmaForBlockDiffusion"), reason="this transformers does not have it"
)
PROMPT = [258, *b"ab"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return public.diffusion_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def gemma(folder: Path) -> DiffusionGemma:
    return DiffusionGemma.from_pretrained(folder, dtype="fp32", device="cpu")


def test_it_writes_what_transformers_writes_of_the_same_draws(gemma: DiffusionGemma) -> None:
    states: list[State] = []
    found = gemma.generate("ab", seed=3, watch=states.append)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(3, "sample", 0).initial_seed())
        alone = gemma.model.generate(torch.tensor([PROMPT])).sequences[0].tolist()
    assert alone == [*PROMPT, *found.ids]
    assert len(found.ids) == 16 and found.calls == 8  # the checkpoint's own two canvases, and four steps each
    last = states[-1]
    assert last.x_BL[0].tolist() == [*PROMPT, *found.ids] and last.calls == found.calls
    assert found.text == "ab" + found.continuation


def test_the_drafts_are_the_networks_own_and_never_touch_what_is_finished(gemma: DiffusionGemma) -> None:
    states: list[State] = []
    gemma.generate("ab", seed=3, watch=states.append)
    mask_id, start = gemma.tokenizer.mask_token_id, len(PROMPT)
    rows = torch.cat([state.x_BL for state in states])
    assert (rows[0, start:] == mask_id).all() and (rows[:, :start] == torch.tensor(PROMPT)).all()
    assert (rows[:5, start + 8 :] == mask_id).all()  # the second canvas is not begun
    assert (rows[4:, : start + 8] == rows[4, : start + 8]).all()  # the first is finished
    for state, before, after in zip(states[1:], rows, rows[1:], strict=False):
        assert torch.equal(state.changed_BL[0], before != after)
    recorder = Recorder(gemma.tokenizer)
    for state in states:
        recorder.take(state)
    film = recorder.film("a film")
    assert [len(frame) for frame in film.frames] == [start + 16] * len(states)
    assert [cell.given for cell in film.frames[0]] == [True] * start + [False] * 16


def test_a_text_follows_from_the_seed_and_its_number_alone(gemma: DiffusionGemma) -> None:
    state = torch.get_rng_state()
    three = gemma.generate("ab", num=3, length=8, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert len({sample.ids for sample in three}) == 3
    assert gemma.generate("ab", num=2, length=8, seed=5) == three[:2]
    assert gemma.generate("ab", length=8, seed=6)[0].ids != three[0].ids


def test_a_text_ends_at_any_end_of_the_checkpoint(gemma: DiffusionGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the end of text and the end of a turn; the canvas that is not needed is not written."""
    whole = gemma.generate("ab", seed=3)[0]
    states: list[State] = []
    monkeypatch.setattr(gemma.model.generation_config, "eos_token_id", [257, whole.ids[3]])
    ended = gemma.generate("ab", seed=3, watch=states.append)[0]
    first = whole.ids.index(whole.ids[3])
    assert ended.ids == whole.ids[:first] and ended.calls == 4
    assert (states[-1].x_BL[0, len(PROMPT) + 8 :] == 257).all()


def test_a_chat_begins_once(gemma: DiffusionGemma) -> None:
    chat = [{"role": "user", "content": "hi"}]
    gemma.tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert gemma._given(chat, 8) == [258, *b"hi"] and gemma._given("hi", 8) == [258, *b"hi"]
    assert gemma._given(None, 8) == [258]


def test_steps_and_the_entropy_bound_reach_it(gemma: DiffusionGemma) -> None:
    assert gemma.generate("ab", length=8, sampler=Sampler(budget=FixedSteps(2)))[0].calls == 2
    loose = gemma.generate("ab", length=8, sampler=Sampler(budget=EntropyBound(1000.0)))[0]
    assert loose.ids != gemma.generate("ab", length=8, sampler=Sampler(budget=EntropyBound(1e-6)))[0].ids


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (Sampler(order=Confidence()), "--order"),
        (Sampler(token=TokenChoice(temperature=0.5)), "--temperature"),
        (Sampler(block_length=4), "--block-length"),
        (Sampler(budget=FixedSteps(4), remask=Psi()), "--remask"),
        (Sampler(budget=Threshold(0.9)), "--entropy-bound"),
        (Sampler(budget=FixedSteps(4, "cosine")), "--steps"),
        (Sampler(budget=EntropyBound(0.0)), "above 0"),
    ],
)
def test_what_it_would_ignore_is_refused(gemma: DiffusionGemma, sampler: Sampler, words: str, refused: Refused) -> None:
    with refused(ConfigError, "DiffusionGemma", words):
        gemma.generate("ab", sampler=sampler)


def test_lengths_that_it_cannot_write_are_refused(gemma: DiffusionGemma, refused: Refused) -> None:
    with refused(ConfigError, "--length", "whole canvases of 8", "got 12", "16"):
        gemma.generate("ab", length=12)
    with refused(DataError, "3 tokens", "128"):
        gemma.generate("ab", length=128)
    with refused(ConfigError, "--batch-size"):
        gemma.generate("ab", batch_size=4)


def test_bytes_that_are_no_text_are_refused(folder: Path, gemma: DiffusionGemma) -> None:
    assert "--prompt is not UTF-8" in commands.refusal("sample", folder, "--prompt", "caf\udce9")
    with pytest.raises(DataError, match="half of a character"):
        gemma.generate("caf\udce9")


def test_it_samples_on_the_command_line_and_does_nothing_else(folder: Path, tmp_path: Path, refused: Refused) -> None:
    film = tmp_path / "film.html"
    options = ("--prompt", "ab", "--steps", 2, "--watch", "--export", film, "--precision", "fp32")
    out, err = commands.dlm("sample", folder, *options)
    assert out.startswith("ab") and "in 4 network calls" in err
    assert "<html" in film.read_text()
    assert "--temperature" in commands.refusal("sample", folder, "--temperature", 0.5)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ab"}\n')
    assert "one prompt at a time" in commands.refusal("sample", folder, "--prompts", tmp_path / "prompts.jsonl")
    with refused(CheckpointError, "DiffusionGemma", "dlm sample alone"):
        DiffusionLM.from_pretrained(folder)
