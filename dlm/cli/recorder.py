"""Turns the states of a sampler into the frames of a film."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from dlm.cli.console import errors
from dlm.cli.export import export
from dlm.cli.film import Cell, Film, Frame, Watch
from dlm.diffusion.generate import State
from dlm.errors import ConfigError
from dlm.model.tokenizer import pieces
from dlm.pipeline import DiffusionLM


def check_suffix(path: Path | None) -> None:
    """Refuses a film of unknown kind before anything is computed for it."""
    if path is not None and path.suffix not in (".html", ".svg"):
        raise ConfigError(f"--export writes .html or .svg, got {path}")


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
        mask_id, pad_id = self._lm.process.mask_id, self._lm.tokenizer.pad_token_id
        if self._given is None:
            self._given = [id != mask_id for id in ids if id != pad_id]
        frame = self._frame(ids[: len(self._given)])
        if self._keep:
            self._frames.append(frame)
            self._calls.append(int(state.calls_B[0]))
        if self._watch:
            self._watch.show(frame, f"{state.calls} network calls")

    def export(self, path: Path, title: str, footer: str = "") -> None:
        """Writes the film to a file that ends in .html or .svg."""
        export(Film(title, tuple(self._frames), tuple(self._calls), footer), path)

    def _frame(self, ids: Sequence[int]) -> Frame:
        """Runs of revealed tokens are decoded together, so that characters of several tokens are whole."""
        assert self._given is not None
        texts: list[str | None] = []
        run: list[int] = []
        for id in [*ids, self._lm.process.mask_id]:
            if id == self._lm.process.mask_id:
                texts += [*pieces(self._lm.tokenizer, run), None]
                run = []
            else:
                run.append(id)
        return tuple(Cell(text, given) for text, given in zip(texts[:-1], self._given, strict=True))
