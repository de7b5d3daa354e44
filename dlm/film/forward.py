"""The forward process as a film: one text, noisier from time to time, with what the mathematics says of each time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from dlm.diffusion.draws import generator
from dlm.diffusion.process import Process
from dlm.film.frames import Frame, frame_of
from dlm.film.layout import MASK, shown, wrap
from dlm.film.paint import Look, paint


@dataclass(frozen=True)
class NoisyText:
    """A draw of q(xt | x0) for one text at one time.

    Attributes:
        t: The time.
        alpha: The schedule's alpha(t).
        clean: The share of tokens that no noise has touched.
        masked: The share of masks.
        random: The share of tokens drawn at random, which may be the clean one by chance.
        expected_changed: The mean number of tokens that differ from the clean text.
        ids: The tokens' ids.
        differs: For each token, whether it differs from the clean text here.
        frame: The tokens' texts.
    """

    t: float
    alpha: float
    clean: float
    masked: float
    random: float
    expected_changed: float
    ids: tuple[int, ...]
    differs: tuple[bool, ...]
    frame: Frame

    @property
    def changed(self) -> int:
        """How many tokens differ from the clean text."""
        return sum(self.differs)

    @property
    def text(self) -> str:
        """The text, with `MASK` for a mask."""
        return "".join(MASK if cell.text is None else cell.text for cell in self.frame)

    def to_dict(self) -> dict[str, Any]:
        """The figures, the text and the ids, as JSON has them."""
        figures = ("t", "alpha", "clean", "masked", "random", "expected_changed", "changed", "text")
        return {**{name: getattr(self, name) for name in figures}, "ids": list(self.ids)}

    def render(self, width: int | None = None) -> Text:
        """The figures in one line, and the text below them.

        Args:
            width: Columns after which the text is broken; None leaves its lines whole.

        Returns:
            Styled text, in which the changed tokens are highlighted.
        """
        figures = (
            f"t {self.t:.4g}  alpha {self.alpha:.4f}  "
            f"clean {self.clean:.4f}  masked {self.masked:.4f}  random {self.random:.4f}  "
            f"changed {self.changed} of {len(self.ids)}, expected {self.expected_changed:.2f}"
        )
        looks: list[Look] = [
            "masked" if cell.text is None else "changed" if differs else "settled"
            for cell, differs in zip(self.frame, self.differs, strict=True)
        ]
        return Text.assemble((figures, "bold"), "\n", paint(wrap(shown(self.frame), width), looks))


def noisy_texts(
    process: Process, tokenizer: PreTrainedTokenizerBase, x0: Sequence[int], times: Sequence[float], seed: int
) -> Iterator[NoisyText]:
    """One draw of the chain: the first state comes from the clean text, each other one from the state before.

    Args:
        process: The forward process.
        tokenizer: Decodes the ids.
        x0: The ids of the clean text.
        times: From 0 to 1, ascending.
        seed: The noise follows from it.

    Yields:
        The text at each time.
    """
    x0_BL, generators = torch.tensor([list(x0)]), [generator(seed, "corrupt")]
    x_BL, previous_B = x0_BL, None
    for time in times:
        t_B = torch.tensor([time], dtype=torch.float64)
        if previous_B is None:
            x_BL = process.corrupt(x0_BL, t_B, generators)
        else:
            x_BL = process.sample_transition(x_BL, previous_B, t_B, generators)
        previous_B = t_B
        yield _noisy_text(process, tokenizer, x0_BL[0], x_BL[0], t_B)


def nearest_on_chain(times: Sequence[float], steps: int | None) -> list[float]:
    """The nearest times k/T of a chain of T steps.

    Args:
        times: Times from 0 to 1.
        steps: T; None for continuous time, where every time is on the chain.

    Returns:
        Times, ascending, each once; in continuous time the given ones.
    """
    return list(times) if steps is None else sorted({round(time * steps) / steps for time in times})


def _noisy_text(
    process: Process, tokenizer: PreTrainedTokenizerBase, x0_L: torch.Tensor, x_L: torch.Tensor, t_B: torch.Tensor
) -> NoisyText:
    shares = process.shares(t_B)
    same_L = shares.clean + process.noise_of(shares, x0_L)  # q(xt = x0 | x0)
    ids = x_L.tolist()
    return NoisyText(
        t=float(t_B),
        alpha=float(process.schedule.alpha(t_B)),
        clean=float(shares.clean),
        masked=float(shares.masked),
        random=float(shares.random),
        expected_changed=float((1.0 - same_L).sum()),
        ids=tuple(ids),
        differs=tuple((x_L != x0_L).tolist()),
        frame=frame_of(tokenizer, ids),
    )
