"""`dlm chat`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from dlm.cli import options
from dlm.cli.console import check_given, errors, is_terminal, note, quiet_libraries, write_text
from dlm.cli.writing import calibrated, load
from dlm.data.text import check_text
from dlm.errors import DataError

if TYPE_CHECKING:
    from dlm.lm import DiffusionLM, Sampler
    from dlm.lm.sampler import Watch

ASK = "> "
FIRST = {"role": "user", "content": "?"}
"""What stands for a message before there is one."""


def chat(
    context: typer.Context,
    model: options.Model,
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most tokens of an answer.",
            show_default=f"what the context has room for; {options.PUBLISHED}",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="Begin with this system message.", show_default=False)] = None,
    *,
    seed: options.Seed = 0,
    mask_token: options.MaskToken = None,
    dtype: options.HeldIn = "auto",
    quantised: options.Load = None,
    device: options.Device = None,
    debug: options.Debug = False,
) -> None:
    """Have a conversation: each line is a message, whose answer is shown while it is denoised.

    Ctrl-D or Ctrl-C ends it. Where stdin is no terminal, the answers alone are written, one after the other.

    Example:  dlm chat runs/docs --length 64 --steps 32
    """
    quiet_libraries()
    how = options.build_sampler(context.obj)
    messages = [] if system is None else [{"role": "system", "content": check_given(system, "--system")}]
    lm = load(model, device, dtype, quantised, mask_token)
    how = calibrated(lm, how, context.obj, [*messages, FIRST], batch_size=1)
    conversation = Conversation(lm, how, length, seed, messages)
    if is_terminal(sys.stdin):
        _talk(conversation)
    else:
        _read(conversation)


class Conversation:
    """The messages so far, and the model that answers them."""

    def __init__(
        self, lm: "DiffusionLM", how: "Sampler", length: int | None, seed: int, messages: list[dict[str, str]]
    ) -> None:
        """Begins.

        Args:
            lm: The model.
            how: How it writes.
            length: The most tokens of an answer; as for `DiffusionLM.generate` if None.
            seed: The answers follow from it and from what was said.
            messages: What comes before the first message.

        Raises:
            DataError: The tokenizer has no chat template, or the template refuses a message, or no message fits.
            ConfigError: The sampler needs absorbing noise, and the model's noise is another.
        """
        self._lm, self._how, self._length, self._seed, self._messages = lm, how, length, seed, messages
        self._answers = 0
        lm.generate_each({0: [*messages, FIRST]}, sampler=how)  # checks, and writes nothing

    def answer(self, message: str, *, shown: bool = False) -> str:
        """Answers a message. Both are then part of the conversation.

        Args:
            message: What was said.
            shown: Whether the answer is shown while it is denoised.

        Returns:
            The answer.

        Raises:
            DataError: There is no room for an answer, or the message is no text; the conversation stays as it was.
        """
        asked = [*self._messages, {"role": "user", "content": check_text(message)}]
        room = self._lm.layout.room(asked, self._how.negative)
        tokens = min(room, self._length or sum(self._lm.layout.canvas(asked).editable))
        with _watching(self._lm) if shown else _unwatched() as watch:
            written = self._lm.generate_each(
                {self._answers: asked}, length=tokens, sampler=self._how, seed=self._seed, watch=watch
            )
            ((answer,),) = written
        self._messages = [*asked, {"role": "assistant", "content": answer.continuation}]
        self._answers += 1
        if len(answer.ids) == tokens:
            why = "--length allows no more" if self._length else "a greater --length allows more"
            note(
                f"answer {self._answers} has no end after {tokens} tokens, and "
                f"{why if tokens < room else 'the context is full'}"
            )
        return answer.continuation


def _talk(conversation: Conversation) -> None:
    """Asks for messages at a terminal, until its user ends it."""
    from dlm.film.layout import legible

    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 - input() then edits its line, and remembers the lines before
    while True:
        try:
            if not is_terminal(sys.stdout):
                errors.print(ASK, end="")
            message = input(ASK if is_terminal(sys.stdout) else "")
            if message.strip():
                answer = conversation.answer(message, shown=True)
                write_text(legible(answer) if is_terminal(sys.stdout) else answer, None)
        except (EOFError, KeyboardInterrupt):
            errors.print()  # what stands on the terminal next begins on a line of its own
            return
        except (DataError, UnicodeDecodeError) as error:
            note(str(error))


def _read(conversation: Conversation) -> None:
    """Answers every line of stdin that is not blank."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            message = line.decode("utf-8").rstrip("\r\n")
            if message.strip():
                write_text(conversation.answer(message), None)
                sys.stdout.flush()
        except UnicodeDecodeError as error:
            raise DataError(f"line {number} is not UTF-8: {error.reason} at {error.start}") from error
        except DataError as error:
            raise DataError(f"line {number}: {error}") from error


@contextmanager
def _watching(lm: "DiffusionLM") -> Iterator["Watch | None"]:
    """Shows an answer while it is denoised, without what was said before it; the screen is then as it was."""
    from dlm.film.frames import Recorder, ending
    from dlm.film.live import LiveView
    from dlm.model.text import decode

    ends = [decode(lm.tokenizer, [id]) for id in lm.end_ids]
    with LiveView(errors, keep=False) as view:
        recorder = Recorder(lm.tokenizer, viewer=lambda frame, note: view.show(ending(frame, ends), note), keep=False)
        yield recorder.take


@contextmanager
def _unwatched() -> Iterator["Watch | None"]:
    yield None
