"""Prompts, responses and texts with holes as the rows that a model reads."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from dlm.errors import ConfigError, DataError
from dlm.lm.canvas import Canvas, lay_out
from dlm.model.checkpoint import Sidecar
from dlm.model.text import ChatTemplate, chat_continues, encode, encode_chat
from dlm.model.tokenizer import Affixes, memory_lead, special_ids
from dlm.template import Template

Prompt = str | Sequence[Mapping[str, Any]] | None
"""A text, or a chat of messages `{role, content}` that the tokenizer's template writes down, or nothing."""


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, template: ChatTemplate | None = None) -> list[int]:
    """The ids of a prompt, without special tokens around it but for those that a chat template writes.

    Args:
        tokenizer: The model's.
        prompt: A text, a chat, or nothing.
        template: How the model uses the chat template.

    Returns:
        The ids; none for nothing.

    Raises:
        DataError: The tokenizer has no chat template and it is a chat, or the template refuses it.
    """
    if prompt is None or isinstance(prompt, str):
        return encode(tokenizer, [prompt or ""])[0]
    return encode_chat(tokenizer, prompt, template)


@dataclass(frozen=True)
class Layout:
    """How texts become rows of one model.

    Attributes:
        tokenizer: The model's.
        sidecar: Its context, and the special tokens around a row.
    """

    tokenizer: PreTrainedTokenizerBase
    sidecar: Sidecar

    @property
    def first_id(self) -> int | None:
        """The id that the network reads before every row: a family's own, or for a shift the end of the text before."""
        return self.chat_template.first_id

    @property
    def before_id(self) -> int | None:
        """The id that stands before every text that is memory."""
        return memory_lead(self.tokenizer, self.sidecar.affixes, self.sidecar.family)

    @property
    def chat_template(self) -> ChatTemplate:
        """How chats are written."""
        return ChatTemplate.of(self.tokenizer, self.sidecar.family, shift=self.sidecar.formulation.shift)

    def canvas(self, prompt: Prompt, length: int | None = None) -> Canvas:
        """A prompt as the model sees it, and the masks that it writes into.

        Args:
            prompt: A text, a chat, or nothing.
            length: Tokens to write; by default what the context leaves room for, and for a published model no more
                than its publisher's own number.

        Returns:
            The row.

        Raises:
            DataError: The prompt, or the prompt and the length, do not fit the context.
        """
        given, affixes = self._given(prompt)
        room = self._room(given, affixes)
        if length is None:
            length = min(room, family.length) if (family := self.sidecar.family) else room
        if not 1 <= length <= room:
            raise DataError(f"the length must be from 1 to {room} tokens here, got {length}")
        return Canvas.after(given, [self.sidecar.mask_id] * length, affixes)

    def unguided(self, prompt: Prompt, canvas: Canvas, negative: str | None) -> Canvas:
        """The row that a text is guided away from.

        Args:
            prompt: What it begins with.
            canvas: Its row.
            negative: A text in the place of the prompt, or of a chat's last message; None for masks.

        Returns:
            The row, with as much to be written.

        Raises:
            ConfigError: There is no prompt.
            DataError: What stands in its place does not fit the context.
        """
        (hole,) = canvas.holes
        if hole.start == canvas.start:
            raise ConfigError("--guidance leads towards a prompt, and there is none: give --prompt or --chat")
        if negative is None:
            return self.hidden(canvas)
        chat = (
            None if prompt is None or isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": negative}]
        )
        try:
            return self.canvas(negative if chat is None else chat, len(hole))
        except DataError as error:
            raise DataError(f"--negative-prompt: {error}") from error

    def hidden(self, canvas: Canvas) -> Canvas:
        """A row whose given text is masks; special tokens around it stay.

        Args:
            canvas: The row.

        Returns:
            The same with as much to be written.
        """
        suffix = canvas.ids[max(hole.stop for hole in canvas.holes) :]
        affix = self.sidecar.affixes.suffix
        stop = len(canvas.ids) - (len(affix) if affix and tuple(suffix[-len(affix) :]) == affix else 0)
        ids = [self.sidecar.mask_id if canvas.start <= i < stop else id_ for i, id_ in enumerate(canvas.ids)]
        return replace(canvas, ids=ids)

    def room(self, prompt: Prompt) -> int:
        """The number of tokens that the context has room for after a prompt.

        Args:
            prompt: A text, a chat, or nothing.

        Returns:
            At least 1.

        Raises:
            DataError: The prompt does not fit the context.
        """
        return self._room(*self._given(prompt))

    def answered(self, prompt: Prompt, response: str) -> Canvas:
        """A prompt, and a response with its end that is to be scored.

        Args:
            prompt: A text, a chat, or nothing.
            response: The response.

        Returns:
            The row.

        Raises:
            DataError: Both together do not fit the context.
        """
        given, affixes = self._given(prompt)
        continues = bool(given) and (
            prompt is None or isinstance(prompt, str) or chat_continues(self.tokenizer, self.chat_template)
        )
        ids = [*encode(self.tokenizer, [response], continues=continues)[0], special_ids(self.tokenizer).end]
        if len(ids) > (room := self._room(given, affixes)):
            raise DataError(
                f"the response takes {len(ids)} tokens with its end, and the context has room for {room}: shorten it"
            )
        return Canvas.after(given, ids, affixes)

    def holes(self, template: Template) -> Canvas:
        """A text with holes, whose masks are to be written; see `lay_out`.

        Args:
            template: Texts and holes, at least one hole.

        Returns:
            The row.

        Raises:
            DataError: The holes and the text between them are longer than the context.
        """
        return lay_out(template, self.tokenizer, self.sidecar.mask_id, self.sidecar.context, self.sidecar.affixes)

    def pieces(self, text: str) -> list[Canvas]:
        """A text with its end that is to be scored, in pieces where it is longer than the context.

        Args:
            text: The text.

        Returns:
            One row a piece, with the special tokens around it.
        """
        affixes, room = self.sidecar.affixes, self._room([], self.sidecar.affixes)
        ids = [*encode(self.tokenizer, [text])[0], special_ids(self.tokenizer).end]
        return [Canvas.after([], ids[start : start + room], affixes) for start in range(0, len(ids), room)]

    def warn_of_unknown(self, canvases: Sequence[Canvas]) -> None:
        """Warns where what is scored has characters that the tokenizer does not know, so that another text is scored.

        Args:
            canvases: Rows that are to be scored.
        """
        unknown = special_ids(self.tokenizer).unknown
        count = sum(
            id_ == unknown and scored
            for canvas in canvases
            for id_, scored in zip(canvas.ids, canvas.editable, strict=True)
        )
        if count:
            warnings.warn(
                f"{count} of the tokens stand for characters that the tokenizer does not know: the likelihood is not "
                "that of this very text",
                stacklevel=3,
            )

    def _given(self, prompt: Prompt) -> tuple[list[int], Affixes]:
        """The ids of a prompt, and the special tokens around the row; a chat has those that its template writes."""
        given = prompt_ids(self.tokenizer, prompt, self.chat_template)
        affixes, what = self.sidecar.affixes, "prompt"
        if not (prompt is None or isinstance(prompt, str)):
            affixes, what = Affixes(), "chat"
        if self._room(given, affixes) < 1:
            raise DataError(
                f"the {what} takes {len(given) + len(affixes)} tokens and the context of this model is "
                f"{self.sidecar.context}: shorten it"
            )
        return given, affixes

    def _room(self, given: Sequence[int], affixes: Affixes) -> int:
        return self.sidecar.context - len(given) - len(affixes)
