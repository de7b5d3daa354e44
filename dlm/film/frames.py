"""The frames of a film, and a recorder that makes them from the states of a sampler.

A frame holds one cell a token, in reading order. A cell is masked, revealed or given by the user. Between two frames
any cell that was not given may be revealed, changed or masked again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dlm.diffusion.sample import State
from dlm.model.text import pieces
from dlm.model.tokenizer import special_ids
from dlm.plain import counted


@dataclass(frozen=True, slots=True)
class Cell:
    """One token's place in the text.

    Attributes:
        text: The token's text; None while it is masked.
        given: Whether it came from the user, and so never changes.
    """

    text: str | None
    given: bool = False


Frame = tuple[Cell, ...]

Viewer = Callable[[Frame, str], None]
"""Called with every frame and a short note on how far the sampler is."""


@dataclass(frozen=True)
class Film:
    """A denoising from its first canvas to its finished text.

    Attributes:
        title: What the text is, in a few words.
        frames: One canvas a step, the first before any step; all have the same cells, and the same ones given.
        calls: How many times the network had been called when each frame was taken.
        footer: How to make the film again, such as the command line.

    Raises:
        ValueError: There is no frame, a frame has other cells than the first, or `calls` does not fit `frames`.
    """

    title: str
    frames: tuple[Frame, ...]
    calls: tuple[int, ...]
    footer: str = ""

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("a film needs at least one frame")
        if len(self.calls) != len(self.frames):
            raise ValueError(f"a film of {len(self.frames)} frames needs as many calls, not {len(self.calls)}")
        given = [cell.given for cell in self.frames[0]]
        for number, frame in enumerate(self.frames):
            if len(frame) != len(given):
                raise ValueError(f"frame {number} has {len(frame)} cells, the first frame {len(given)}")
            if [cell.given for cell in frame] != given:
                raise ValueError(f"frame {number} has not the same given cells as the first frame")


def frame_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], given: Sequence[bool] | None = None) -> Frame:
    """Ids as a frame.

    The tokens between two masks are decoded together, so that a character made of several tokens is whole.

    Args:
        tokenizer: Decodes; its mask is what a masked cell has.
        ids: One id a cell.
        given: Which cells came from the user; none by default.

    Returns:
        One cell an id.
    """
    mask_id = special_ids(tokenizer).mask
    texts: list[str | None] = []
    run: list[int] = []
    for id in [*ids, mask_id]:
        if id == mask_id:
            texts += [*pieces(tokenizer, run), None]
            run = []
        else:
            run.append(id)
    given = [False] * len(ids) if given is None else given
    return tuple(Cell(text, is_given) for text, is_given in zip(texts[:-1], given, strict=True))


def ending(frame: Frame, ends: Sequence[str]) -> Frame:
    """What a frame adds to what was given: the cells up to the end of text, and empty ones behind it.

    Args:
        frame: A frame.
        ends: What may stand in a cell where the text ends.

    Returns:
        A frame of the cells that were not given.
    """
    cells = [cell for cell in frame if not cell.given]
    stop = next((place for place, cell in enumerate(cells) if cell.text in ends), len(cells))
    return (*cells[:stop], *[Cell("")] * (len(cells) - stop))


class Recorder:
    """Follows the first text of a sampler's first batch, state by state."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, viewer: Viewer | None = None, keep: bool = True) -> None:
        """Prepares to record.

        Args:
            tokenizer: Decodes the sampler's ids.
            viewer: Is shown each frame when it is made, such as `LiveView.show`.
            keep: Whether every frame is kept for `film`.
        """
        self._tokenizer, self._viewer, self._keep = tokenizer, viewer, keep
        self._given: list[bool] | None = None
        self._frames: list[Frame] = []
        self._calls: list[int] = []
        self._done = False

    def take(self, state: State) -> None:
        """Makes a frame of a state; the states of later batches are ignored.

        Args:
            state: The next state of the sampler.
        """
        if state.calls == 0 and self._given is not None and not state.changed_BL.any():
            self._done = True  # another batch begins
        if self._done:
            return
        ids = state.x_BL[0].tolist()
        if self._given is None:  # the padding, which is neither given nor editable, is left out
            pad_id, editable = special_ids(self._tokenizer).pad, state.editable_BL[0].tolist()
            self._given = [not written for id, written in zip(ids, editable, strict=True) if written or id != pad_id]
        frame = frame_of(self._tokenizer, ids[: len(self._given)], self._given)
        if self._keep:
            self._frames.append(frame)
            self._calls.append(int(state.calls_B[0]))
        if self._viewer:
            self._viewer(frame, counted(state.calls, "network call"))

    @property
    def frames(self) -> int:
        """How many frames were kept."""
        return len(self._frames)

    def film(self, title: str, footer: str = "") -> Film:
        """The film of the frames that were kept.

        Args:
            title: What the text is, in a few words.
            footer: How to make the film again.

        Returns:
            The film.

        Raises:
            ValueError: No frame was kept.
        """
        return Film(title, tuple(self._frames), tuple(self._calls), footer)
