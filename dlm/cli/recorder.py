"""Turns ids into the frames of a film: those of one state, and those of a whole sampler."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from transformers import PreTrainedTokenizerBase

from dlm.cli.console import errors
from dlm.cli.export import export
from dlm.cli.film import Cell, Film, Frame, Watch
from dlm.diffusion.sample import State
from dlm.errors import ConfigError
from dlm.lm import DiffusionLM
from dlm.model.text import pieces


def check_suffix(path: Path | None) -> None:
    """Refuses a film of unknown kind before anything is computed for it."""
    if path is not None and path.suffix not in (".html", ".svg"):
        raise ConfigError(f"--export writes .html or .svg, got {path}")


def frame_of(tokenizer: PreTrainedTokenizerBase, mask_id: int, ids: Sequence[int], given: Sequence[bool]) -> Frame:
    """Ids as a frame: tokens between two masks are decoded together, so that characters of several tokens are whole.

    Args:
        tokenizer: Decodes.
        mask_id: The id of the mask.
        ids: One id a cell.
        given: Which cells came from the user.

    Returns:
        One cell an id.
    """
    texts: list[str | None] = []
    run: list[int] = []
    for id in [*ids, mask_id]:
        if id == mask_id:
            texts += [*pieces(tokenizer, run), None]
            run = []
        else:
            run.append(id)
    return tuple(Cell(text, is_given) for text, is_given in zip(texts[:-1], given, strict=True))


class Recorder:
    """Follows the first text of the first batch, live, on film, or both.

    Attributes:
        wanted: Whether there is anything to follow.
    """

    def __init__(self, lm: DiffusionLM, *, live: bool, keep: bool) -> None:
        """Prepares to record.

        Args:
            lm: The model; its tokenizer gives the tokens' text.
            live: Show every state as it comes.
            keep: Keep every state for a film.
        """
        self.wanted = live or keep
        self._lm, self._keep = lm, keep
        self._watch = Watch(errors, keep=False) if live else None
        self._given: list[bool] | None = None
        self._frames: list[Frame] = []
        self._calls: list[int] = []
        self._done = False

    def __enter__(self) -> Self:
        if self._watch:
            self._watch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._watch:
            self._watch.__exit__(kind, error, where)

    def take(self, state: State) -> None:
        """Takes a state; those of later batches are let go."""
        if state.calls == 0 and self._given is not None and not state.changed_BL.any():
            self._done = True  # another batch begins
        if self._done:
            return
        ids = state.x_BL[0].tolist()
        if self._given is None:  # what is neither given nor written is padding, up to the longest row's end
            pad_id, editable = self._lm.tokenizer.pad_token_id, state.editable_BL[0].tolist()
            self._given = [not written for id, written in zip(ids, editable, strict=True) if written or id != pad_id]
        frame = frame_of(self._lm.tokenizer, self._lm.process.mask_id, ids[: len(self._given)], self._given)
        if self._keep:
            self._frames.append(frame)
            self._calls.append(int(state.calls_B[0]))
        if self._watch:
            self._watch.show(frame, f"{state.calls} network calls")

    def export(self, path: Path, title: str, footer: str = "") -> None:
        """Writes the film to a file that ends in .html or .svg."""
        export(Film(title, tuple(self._frames), tuple(self._calls), footer), path)
