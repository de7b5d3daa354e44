"""The parts of a text with holes as ids: where a token may cross into a hole, the hole is written from there on.

A text that is cut ends in other tokens than it has as a whole. Most tokenizers join a blank to the word behind it, and
a line break to the indentation of the next line. To a model that has learned whole texts, a blank that is a token by
itself says that another blank follows. So the end of a text that may be joined to what fills a hole is taken back, and
written again at the beginning of the hole, which is held to it. This is known as token healing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dlm.model.spelling import Spelling
from dlm.model.text import encode
from dlm.template import Template

LONGEST = 8
"""The most characters of a lead: text that ends in more blanks and line breaks keeps its tokens."""


@dataclass(frozen=True)
class Lead:
    """The end of the text before a hole, which is written again with what fills it.

    Attributes:
        text: What is written begins with it.
        own: How many positions are added for it before those of the hole: as many as its tokens before a word. None are
            where the hole's own first token takes it in.
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


def parts_of(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    mask_id: int,
    spelling: Spelling | None = None,
    *,
    together: bool = True,
) -> Parts:
    """The ids of each part of a template, masks for a hole, as few as it may have.

    The blanks beside a hole are left out where the mask takes them, as RoBERTa's does: they belong to its word.

    Args:
        template: Texts and holes.
        tokenizer: The model's tokenizer.
        mask_id: What stands in the holes.
        spelling: What the tokens spell that holes are written with; None where nothing holds a hole to a lead, so that
            texts keep all of their tokens.
        together: Whether the tokens of a hole are held to its lead together. Else only its first token is, and no lead
            has several characters.

    Returns:
        The parts.
    """
    ids: list[list[int]] = [[] for _ in template]
    leads: list[Lead | None] = [None] * len(template)
    mask = tokenizer.added_tokens_decoder.get(mask_id)
    takes_left, takes_right = (mask.lstrip, mask.rstrip) if mask else (False, False)
    start = 0
    for number, part in enumerate((*template, None)):
        if isinstance(part, str) or (part is not None and part.is_empty):
            continue
        texts = {at: text for at in range(start, number) if isinstance(text := template[at], str)}
        text = "".join(texts.values())
        text = text.lstrip() if takes_right and start else text
        if texts:
            first = next(iter(texts))
            held = spelling if part is not None and part.tokens else None
            if part is not None and takes_left and text != text.rstrip():
                (ids[first],) = encode(tokenizer, [text.rstrip()], continues=start > 0)
                leads[number] = Lead(" ", own=0) if held is not None and held.joins(" ") else None
            else:
                longest = 0 if part is None or part.pattern is not None else LONGEST if together else 1
                ids[first], lead = parted(text, tokenizer, held, longest, continues=start > 0)
                if part is not None:
                    leads[number] = lead
        if part is not None:
            ids[number] = [mask_id] * (part.tokens + own_of(leads[number]))
        start = number + 1
    return Parts(ids, leads)


def span_ids(span: str, lead: Lead | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What is written into a hole for a text to stand in it, the lead with it.

    Args:
        span: The text, which is not empty.
        lead: The hole's.
        tokenizer: The model's tokenizer.

    Returns:
        Ids, more than the lead's own.
    """
    if lead is None:
        return encode(tokenizer, [span], continues=True)[0]
    before_a_word, alone, both = encode(tokenizer, [lead.text + "a", span, lead.text + span], continues=True)
    return both if len(both) > lead.own else [*before_a_word[: lead.own], *alone]


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


def parted(
    text: str, tokenizer: PreTrainedTokenizerBase, spelling: Spelling | None, longest: int, *, continues: bool = False
) -> tuple[list[int], Lead | None]:
    """The ids of a text that stay as they are, whatever is written behind it, and its end, which is written again.

    Args:
        text: The text.
        tokenizer: The model's tokenizer.
        spelling: What its tokens spell; None where nothing holds what is written to a lead.
        longest: The most characters of a lead with positions of its own.
        continues: Whether it is a part from within a text.

    Returns:
        Ids, and the lead of what is written.
    """

    def ids_of(*texts: str) -> list[list[int]]:
        return encode(tokenizer, texts, continues=continues)

    blank = text[-1:]
    if spelling is not None and blank.isspace() and spelling.joins(blank):
        shorter, longer = ids_of(text[:-1], text + "a")
        if longer[: len(shorter)] == shorter:
            return shorter, Lead(blank, own=0)
    kept = text.rstrip()
    last = text[len(kept) :]
    if spelling is not None and 0 < len(last) <= longest and spelling.goes_on(last):
        shorter, longer = ids_of(kept, text + "a")
        own = len(longer) - len(shorter) - 1
        if own > 0 and longer[: len(shorter)] == shorter:
            return shorter, Lead(last, own)
    return ids_of(text)[0], None
