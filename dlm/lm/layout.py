"""Prompts, responses and texts with holes as the rows that a model reads."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from dlm.errors import ConfigError, DataError
from dlm.lm.canvas import Canvas, lay_out
from dlm.lm.parts import Borders, Lead, Parts, joined, own_of, shared, without
from dlm.model.checkpoint import Sidecar
from dlm.model.spelling import Spelling
from dlm.model.text import ChatTemplate, chat_continues, encode, encode_chat
from dlm.model.tokenizer import Affixes, memory_lead, special_ids
from dlm.template import Template, exact, holes_of

REACH = 16
"""The tokens before and behind the holes that there should be room for, however long they are."""


@dataclass(frozen=True)
class Encoded:
    """A prompt that is ids already, such as the end of one that was too long.

    Attributes:
        ids: The ids, without special tokens around them.
        is_chat: Whether a chat template wrote it, with all special tokens that the row has.
    """

    ids: Sequence[int]
    is_chat: bool = False


Prompt = str | Sequence[Mapping[str, Any]] | Encoded | None
"""A text, or a chat of messages `{role, content}` that the tokenizer's template writes down, or ids, or nothing."""


def is_chat(prompt: Prompt) -> bool:
    """Whether a chat template writes a prompt, and all special tokens that the row has with it."""
    if isinstance(prompt, Encoded):
        return prompt.is_chat
    return not (prompt is None or isinstance(prompt, str))


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
    if isinstance(prompt, Encoded):
        return [*prompt.ids]
    if prompt is None or isinstance(prompt, str):
        return encode(tokenizer, [prompt or ""])[0]
    return encode_chat(tokenizer, prompt, template)


def _instead(prompt: Prompt, negative: str) -> Prompt:
    """A text in the place of a prompt, or of the last message of a chat."""
    if prompt is None or isinstance(prompt, str | Encoded):
        return negative
    return [*prompt[:-1], {**prompt[-1], "content": negative}]


@dataclass(frozen=True)
class Layout:
    """How texts become rows of one model.

    Attributes:
        tokenizer: The model's.
        sidecar: Its context, and the special tokens around a row.
        spelling: What the tokens spell that holes are written with; None where holes are not held to their leads.
        together: Whether the tokens of a hole are held to its lead together, rather than the first alone.
    """

    tokenizer: PreTrainedTokenizerBase
    sidecar: Sidecar
    spelling: Spelling | None = None
    together: bool = True

    @cached_property
    def borders(self) -> Borders:
        """How texts beside holes become ids."""
        room = self.sidecar.context - len(self.sidecar.affixes)
        return Borders(self.tokenizer, self.sidecar.mask_id, self.spelling, room, self.together)

    @cached_property
    def one_by_one(self) -> "Layout":
        """The same for next tokens, of which only the first is held to a lead."""
        return replace(self, together=False)

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

    def canvas(self, prompt: Prompt, length: int | None = None, *, led: bool = False) -> Canvas:
        """A prompt as the model sees it, and the masks that it writes into.

        Args:
            prompt: A text, a chat, or nothing.
            length: Tokens to write; by default what the context leaves room for, and for a published model no more
                than its publisher's own number.
            led: Whether the last blank of a text, or its line break, is written again where tokens join it to what
                follows; see `dlm.lm.parts`.

        Returns:
            The row.

        Raises:
            DataError: The prompt, or the prompt and the length, do not fit the context.
        """
        given, affixes = self._given(prompt)
        lead = self.one_by_one.borders.lead(prompt, 1) if led and isinstance(prompt, str) else None
        if lead is not None and isinstance(prompt, str):
            given = self.borders.ids_of(without(prompt, lead), continues=False)
        room = self._room(given, affixes) - own_of(lead)
        if length is None:
            length = min(room, family.length) if (family := self.sidecar.family) else room
        if not 1 <= length <= room:
            raise DataError(f"the length must be from 1 to {room} tokens here, got {length}")
        return Canvas.after(given, [self.sidecar.mask_id] * (length + own_of(lead)), affixes, lead)

    def unguided(self, prompt: Prompt, canvas: Canvas, negative: str | None) -> Canvas:
        """The row that a text is guided away from.

        Args:
            prompt: What it begins with.
            canvas: Its row.
            negative: A text in the place of the prompt, or of a chat's last message; None for masks.

        Returns:
            The row, with as much to be written.

        Raises:
            ConfigError: There is no prompt, or it is a chat whose messages are not known apart.
            DataError: What stands in its place does not fit the context.
        """
        (hole,), (lead,) = canvas.holes, canvas.leads
        if hole.start == canvas.start and lead is None:
            raise ConfigError("--guidance leads towards a prompt, and there is none: give --prompt or --chat")
        if negative is None:
            return self.hidden(canvas)
        if isinstance(prompt, Encoded) and prompt.is_chat:
            raise ConfigError(
                "--negative-prompt takes the place of a last message, and this chat is one text: leave it out"
            )
        try:
            other = self.canvas(_instead(prompt, negative), len(hole))
        except DataError as error:
            raise DataError(f"--negative-prompt: {error}") from error
        self.warn_of_unseen([other], "by the negative prompt")
        return other

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

    def room(self, prompt: Prompt, negative: str | None = None) -> int:
        """The number of tokens that the context has room for after a prompt.

        Args:
            prompt: A text, a chat, or nothing.
            negative: What must have room in its place too; see `unguided`.

        Returns:
            At least 1.

        Raises:
            DataError: The prompt does not fit the context.
        """
        if negative is not None:
            room = self.room(prompt)
            try:
                return min(room, self.room(_instead(prompt, negative)))
            except DataError as error:
                raise DataError(f"--negative-prompt: {error}") from error
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
        continues = bool(given) and (not is_chat(prompt) or chat_continues(self.tokenizer, self.chat_template))
        ids = [*encode(self.tokenizer, [response], continues=continues)[0], special_ids(self.tokenizer).end]
        if len(ids) > (room := self._room(given, affixes)):
            raise DataError(
                f"the response takes {len(ids)} tokens with its end, and the context has room for {room}: shorten it"
            )
        return Canvas.after(given, ids, affixes)

    def parted(self, context: str, continuation: str, *, chat: bool = False) -> tuple[Encoded, list[int]]:
        """The ids of a text in two parts, of which the second is scored, as lm-evaluation-harness parts them.

        Blanks that end the context belong to the continuation. The ids of the continuation are those that it has in
        the whole text, unless a token of the whole text crosses the border: then it is encoded alone.

        Args:
            context: What is given.
            continuation: What is scored.
            chat: Whether a chat template wrote the context, with the names of special tokens.

        Returns:
            The context, and the ids of the continuation.
        """
        if chat:
            within = bool(context) and chat_continues(self.tokenizer, self.chat_template)
            (given,) = encode(self.tokenizer, [context], marked=True)
            given = given[1:] if given[:1] == [self.chat_template.first_id] else given
            return Encoded(given, is_chat=True), encode(self.tokenizer, [continuation], continues=within)[0]
        blanks = len(context) - len(context.rstrip())
        context, continuation = context[: len(context) - blanks], context[len(context) - blanks :] + continuation
        given, whole = encode(self.tokenizer, [context, context + continuation])
        if whole[: len(given)] == given:
            return Encoded(given), whole[len(given) :]
        return Encoded(given), encode(self.tokenizer, [continuation], continues=True)[0]

    def continued(self, prompt: Encoded, ids: Sequence[int]) -> Canvas:
        """A prompt, and ids after it that are to be scored without an end of text.

        Args:
            prompt: What is given; of one that is too long, the end.
            ids: The ids.

        Returns:
            The row.

        Raises:
            DataError: The ids alone do not fit the context.
        """
        kept = self.shortened(prompt, len(ids))
        return Canvas.after(kept.ids, ids, Affixes() if kept.is_chat else self.sidecar.affixes)

    def shortened(self, prompt: Encoded, tokens: int) -> Encoded:
        """The end of a prompt, as much of it as the context has room for.

        Args:
            prompt: The prompt.
            tokens: How many tokens are to stand behind it.

        Returns:
            The prompt, or its end.

        Raises:
            DataError: They alone do not fit the context.
        """
        room = self._room([], Affixes() if prompt.is_chat else self.sidecar.affixes)
        if tokens > room:
            raise DataError(f"{tokens} tokens are asked for, and the context of this model has room for {room}")
        return replace(prompt, ids=prompt.ids[max(len(prompt.ids) - (room - tokens), 0) :])

    def holes(self, template: Template) -> Canvas:
        """A text with holes, whose masks are to be written; see `lay_out`.

        Args:
            template: Texts and holes, at least one hole.

        Returns:
            The row.

        Raises:
            DataError: The holes and the text between them are longer than the context.
        """
        return lay_out(template, self.parts, self.sidecar.context, self.sidecar.affixes)

    def parts(self, template: Template) -> Parts:
        """The ids of the parts of a text with holes; see `Borders.parts`."""
        return self.borders.parts(template)

    def unmoved(self, template: Template) -> list[int]:
        """The ids before the first hole of a text that stand there whatever its holes are filled with.

        Args:
            template: Texts and holes, at least one hole.

        Returns:
            Ids, the last ones left out where they are others if holes are empty.
        """
        holes = holes_of(template)
        lengths, found = [1] * len(holes), list[list[int]]()
        for number, place in enumerate([*holes, len(template)]):
            found.append(joined(self.parts(exact(template, lengths)).ids[:place]))
            if place not in holes or not holes[place].may_be_empty:
                break
            lengths[number] = 0
        return found[0][: min(shared(found[0], other) for other in found)]

    def spare(self, template: Template) -> int:
        """How many tokens the holes of a text may have beyond their fewest.

        With so many there still is text before and behind them to read: `REACH` tokens of each, or as much as half of
        the room that the shortest leave.

        Args:
            template: Texts and holes, which fit the context.

        Returns:
            The tokens, of all holes together.
        """
        first, last = min(holes_of(template)), max(holes_of(template))
        sizes = [*map(len, self.parts(template).ids)]
        read = min(REACH, sum(sizes[:first])) + min(REACH, sum(sizes[last + 1 :]))
        spare = self.sidecar.context - len(self.sidecar.affixes) - sum(sizes[first : last + 1])
        return max(spare - read, spare // 2)

    def filled(self, template: Template, spans: Sequence[str]) -> list[list[int]]:
        """What is written into the holes of a text for these texts to stand in them.

        Args:
            template: Texts and holes, none of which may be empty.
            spans: A text a hole, none of them empty.

        Returns:
            The ids of each hole, its lead with them; see `Canvas.spans`.
        """
        return [self.borders.filled(span, lead) for span, lead in zip(spans, self.leads(template), strict=True)]

    def leads(self, template: Template) -> list[Lead | None]:
        """What each hole of a text begins with that is no part of it."""
        found = self.parts(template).leads
        return [found[place] for place in holes_of(template)]

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
        if count := self._unknown(canvases, editable=True):
            warnings.warn(
                f"{count} of the tokens stand for characters that the tokenizer does not know: the likelihood is not "
                "that of this very text",
                stacklevel=3,
            )

    def warn_of_unseen(self, canvases: Sequence[Canvas], where: str = "") -> None:
        """Warns where what is given has characters that the tokenizer does not know.

        Args:
            canvases: Rows that are to be written on.
            where: What gives them; empty for the text itself.
        """
        if count := self._unknown(canvases, editable=False):
            by = f"{where} " if where else ""
            warnings.warn(
                f"{count} of the tokens that are given {by}stand for characters that the tokenizer does not know: the "
                "model does not see what they are",
                stacklevel=3,
            )

    def _unknown(self, canvases: Sequence[Canvas], *, editable: bool) -> int:
        """How many tokens stand for unknown characters, of those that are scored or written, or of the others."""
        ids = special_ids(self.tokenizer)
        if ids.unknown in (None, ids.end, ids.pad):
            return 0
        return sum(
            id_ == ids.unknown and open_ == editable
            for canvas in canvases
            for id_, open_ in zip(canvas.ids, canvas.editable, strict=True)
        )

    def _given(self, prompt: Prompt) -> tuple[list[int], Affixes]:
        """The ids of a prompt, and the special tokens around the row; a chat has those that its template writes."""
        given = prompt_ids(self.tokenizer, prompt, self.chat_template)
        affixes, what = (Affixes(), "chat") if is_chat(prompt) else (self.sidecar.affixes, "prompt")
        if self._room(given, affixes) < 1:
            raise DataError(
                f"the {what} takes {len(given) + len(affixes)} tokens and the context of this model is "
                f"{self.sidecar.context}: shorten it"
            )
        return given, affixes

    def _room(self, given: Sequence[int], affixes: Affixes) -> int:
        return self.sidecar.context - len(given) - len(affixes)
