"""The forward process as texts: one draw of a chain, whose figures are the closed forms."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from transformers import PreTrainedTokenizerBase

from dlm.diffusion.noise import Absorbing, AnyNoise, Hybrid, Uniform
from dlm.diffusion.process import Process
from dlm.diffusion.schedule import Linear
from dlm.film.forward import NoisyText, nearest_on_chain, noisy_texts
from dlm.film.layout import MASK
from dlm.film.paint import STYLES
from dlm.model.tokenizer import vocabulary_of

TEXT = "to be, or not to be"
TIMES = (0.0, 0.25, 0.5, 1.0)


def drawn(tokenizer: PreTrainedTokenizerBase, noise: AnyNoise, times: Sequence[float] = TIMES) -> list[NoisyText]:
    process = Process(noise, Linear(), vocabulary_of(tokenizer, len(tokenizer), [tokenizer.eos_token_id]))
    return list(noisy_texts(process, tokenizer, list(TEXT.encode()), times, seed=1))


@pytest.mark.parametrize("noise", [Absorbing(), Uniform(), Hybrid(share=0.3)], ids=lambda noise: noise.name)
def test_the_figures_are_the_closed_forms(byte_tokenizer: PreTrainedTokenizerBase, noise: AnyNoise) -> None:
    """Of K = 256 symbols, random noise leaves each one in K as it was."""
    for noisy in drawn(byte_tokenizer, noise):
        assert noisy.alpha == pytest.approx(1.0 - noisy.t)
        assert noisy.clean + noisy.masked + noisy.random == pytest.approx(1.0)
        assert noisy.expected_changed == pytest.approx(len(TEXT) * (1.0 - noisy.clean - noisy.random / 256))
        assert noisy.differs == tuple(id != clean for id, clean in zip(noisy.ids, TEXT.encode(), strict=True))
        assert noisy.to_dict()["changed"] == noisy.changed == sum(noisy.differs)


def test_masks_come_one_after_the_other_and_none_goes(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    texts = drawn(byte_tokenizer, Absorbing())
    assert texts[0].text == TEXT and texts[-1].text == MASK * len(TEXT)
    for early, late in pairwise(texts):
        assert early.changed < late.changed
        assert [late_ for early_, late_ in zip(early.differs, late.differs, strict=True) if early_ and not late_] == []


def test_what_changed_is_highlighted_below_the_figures(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    (noisy,) = drawn(byte_tokenizer, Hybrid(share=0.3), [0.5])
    shown = noisy.render()
    figures, _ = shown.plain.split("\n", 1)
    assert figures.endswith(f"changed {noisy.changed} of {len(TEXT)}, expected {noisy.expected_changed:.2f}")
    looks = [span.style for span in shown.spans]
    assert looks.count(STYLES["masked"]) == sum(cell.text is None for cell in noisy.frame) > 0
    assert looks.count(STYLES["changed"]) == sum(
        differs and bool(cell.text) for differs, cell in zip(noisy.differs, noisy.frame, strict=True)
    )


def test_times_on_a_chain_are_the_nearest_each_once() -> None:
    assert nearest_on_chain([0.1, 0.3, 0.35, 0.9], 4) == [0.0, 0.25, 1.0]
    assert nearest_on_chain([0.1, 0.3], None) == [0.1, 0.3]
