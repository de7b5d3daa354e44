"""The parts of a text with holes as ids: where a token may cross into a hole, the hole is written from there on.

A text that is cut ends in other tokens than it has as a whole. Most tokenizers join a blank to the word behind it, and
a line break to the indentation of the next line. To a model that has learned whole texts, a blank that is a token by
itself says that another blank follows. So the end of a text that may be joined to what fills a hole is taken back, and
written again at the beginning of the hole, which is held to it. This is known as token healing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from transformers import PreTrainedTokenizerBase

from dlm.model.spelling import Spelling
from dlm.model.text import encode
from dlm.template import Template

LONGEST = 8
"""The most bytes of a lead: text that ends in more blanks and line breaks keeps its tokens."""


@dataclass(frozen=True)
class Lead:
    """The end of the text before a hole, which is written again with what fills it.

    Attributes:
        text: What is written begins with it.
        own: How many positions are added for it before those of the hole: as many as its tokens before a word; 0 where
            the hole's own first token takes it in.
    """

    text: str
    own: int


@dataclass(frozen=True)
class Parts:
    """The ids of the parts of a template.

    Attributes:
        ids: One list a part; those of a hole are masks, for its lead too. Texts with no hole between them, or with an
            empty one, are one text, whose ids the first of them has.
        leads: One a part; None for a text, and for a hole that no token crosses into.
    """

    ids: list[list[int]]
    leads: list[Lead | None]


@dataclass(frozen=True)
class Borders:
    """How texts beside holes become ids.

    Attributes:
        tokenizer: The model's tokenizer.
        mask_id: What stands in holes.
        spelling: What the tokens spell that holes are written with; None where nothing holds a hole to a lead, so that
            texts keep all of their tokens.
        room: The tokens of a row; a hole that fills it has no lead with positions of its own.
        together: Whether the tokens of a hole are held to its lead together. Else only its first token is, and a lead
            has one byte.
    """

    tokenizer: PreTrainedTokenizerBase
    mask_id: int
    spelling: Spelling | None
    room: int
    together: bool = True

    def parts(self, template: Template) -> Parts:
        """The ids of each part of a template, masks for a hole, as few as it may have.

        The blanks beside a hole are left out where the mask takes them, as RoBERTa's does: they belong to its word.

        Args:
            template: Texts and holes.

        Returns:
            The parts.
        """
        ids: list[list[int]] = [[] for _ in template]
        leads: list[Lead | None] = [None] * len(template)
        mask = self.tokenizer.added_tokens_decoder.get(self.mask_id)
        takes_left, takes_right = (mask.lstrip, mask.rstrip) if mask else (False, False)
        start = 0
        for number, part in enumerate((*template, None)):
            if isinstance(part, str) or (part is not None and part.is_empty):
                continue
            texts = {at: text for at in range(start, number) if isinstance(text := template[at], str)}
            text, continues = "".join(texts.values()), start > 0
            text = text.lstrip() if takes_right and continues else text
            if part is not None and takes_left and text != text.rstrip():
                held = part.tokens > 0 and text == text.rstrip() + " "
                leads[number] = Lead(" ", own=0) if held and self.spelling and self.spelling.joins(" ") else None
                text = text.rstrip()
            elif part is not None and part.tokens:
                most = self.room - part.tokens if part.pattern is None else 0
                leads[number] = self.lead(text, most, continues=continues)
                text = without(text, leads[number])
            if texts:
                ids[next(iter(texts))] = self.ids_of(text, continues=continues)
            if part is not None:
                ids[number] = [self.mask_id] * (part.tokens + own_of(leads[number]))
            start = number + 1
        return Parts(ids, leads)

    def lead(self, text: str, most: int, *, continues: bool = False) -> Lead | None:
        """The end of a text that is written again with what stands behind it.

        Args:
            text: The text.
            most: The most positions of its own that it may have.
            continues: Whether it is a part from within a text.

        Returns:
            The lead; None where all of the text's tokens stay, whatever stands behind it.
        """
        blank, last = text[-1:], text[len(text.rstrip()) :]
        if self.spelling is None or not last:
            return None
        if not continues and last == text and self.spelling.strips:
            return None  # the decoder takes a blank from the beginning of a text
        longest, longer = LONGEST if self.together else 1, self.ids_of(text + "a", continues=continues)
        if self.spelling.joins(blank) and len(blank.encode()) <= longest:
            shorter = self.ids_of(text[:-1], continues=continues)
            if longer[: len(shorter)] == shorter:
                return Lead(blank, own=0)
        if len(last.encode()) <= longest and self.spelling.goes_on(last):
            shorter = self.ids_of(text.removesuffix(last), continues=continues)
            own = len(longer) - len(shorter) - 1
            if 0 < own <= most and longer[: len(shorter)] == shorter:
                return Lead(last, own)
        return None

    def filled(self, span: str, lead: Lead | None) -> list[int]:
        """What is written into a hole for a text to stand in it, the lead with it.

        Args:
            span: The text, which is not empty.
            lead: The hole's.

        Returns:
            Ids, more than the lead's own.
        """
        if lead is None:
            return self.ids_of(span, continues=True)
        both = self.ids_of(lead.text + span, continues=True)
        if len(both) > lead.own:
            return both
        before_a_word = self.ids_of(lead.text + "a", continues=True)
        return [*before_a_word[: lead.own], *self.ids_of(span, continues=True)]

    def ids_of(self, text: str, *, continues: bool) -> list[int]:
        """The ids of a text, or of a part from within one; see `encode`."""
        return [*self._known(text, continues)]

    @cached_property
    def _known(self) -> Callable[[str, bool], list[int]]:
        """The ids of the last texts: a text is filled by many lengths, with the same texts beside its holes."""
        return lru_cache(maxsize=64)(lambda text, continues: encode(self.tokenizer, [text], continues=continues)[0])


def without(text: str, lead: Lead | None) -> str:
    """A text whose end is written again."""
    return text if lead is None else text.removesuffix(lead.text)


def joined(ids: Iterable[Sequence[int]]) -> list[int]:
    """The ids of parts, one after the other."""
    return [id_ for part in ids for id_ in part]


def shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many ids two rows begin with in common."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((place for place, (id_, other) in pairs if id_ != other), min(len(ids), len(others)))


def own_of(lead: Lead | None) -> int:
    """How many positions are added to a hole for its lead."""
    return 0 if lead is None else lead.own
