"""Text as rows of ids, of which some are to be written or scored and the others are given."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dlm.errors import DataError
from dlm.lm.parts import Lead, Parts, own_of
from dlm.model.text import decode, drops_blanks, encode, pieces
from dlm.model.tokenizer import Affixes
from dlm.template import Hole, Template, holes_of


@dataclass(frozen=True)
class Canvas:
    """A row of ids.

    Attributes:
        ids: What the row holds; the mask where something is to be written.
        editable: Whether each position is to be written, or scored.
        holes: Where the holes of a template are, in reading order.
        start: Where the text begins, behind the special tokens before it.
        leads: What each hole begins with that is no part of it; None for nothing.
    """

    ids: list[int]
    editable: list[bool]
    holes: list[range]

    start: int = 0
    leads: tuple[Lead | None, ...] = ()

    @property
    def spans(self) -> list[range]:
        """What is written for each hole: its own positions, and that of a lead which has its own."""
        pairs = zip(self.holes, self.leads, strict=True)
        return [range(hole.start - own_of(lead), hole.stop) for hole, lead in pairs]

    def written(self, spans: Sequence[Sequence[int]]) -> "Canvas":
        """The row with ids written into its spans, as many as each has."""
        ids = [*self.ids]
        for place, span in zip(self.spans, spans, strict=True):
            ids[place.start : place.stop] = span
        return replace(self, ids=ids)

    @classmethod
    def after(cls, given: Sequence[int], rest: Sequence[int], affixes: Affixes, lead: Lead | None = None) -> "Canvas":
        """A row of given ids, and after them a hole: masks that are to be written, or ids that are to be scored."""
        before, behind = affixes.around(rest)
        first = len(before) + len(given)
        span = range(first, first + len(rest))
        ids = [*before, *given, *rest, *behind]
        return cls(ids, [i in span for i in range(len(ids))], [span[own_of(lead) :]], len(before), (lead,))


def lay_out(template: Template, parts: Callable[[Template], Parts], context: int, affixes: Affixes) -> Canvas:
    """A template as the model sees it.

    A text longer than the context is seen through a window, with as much of it on either side of the holes as fits.

    Args:
        template: Texts and holes, at least one hole.
        parts: Makes ids of the parts of a template.
        context: The longest row, in tokens.
        affixes: The special tokens around the text, or around the window on it.

    Returns:
        The row.

    Raises:
        DataError: The holes and the text between them are longer than the context.
    """
    context -= len(affixes)
    widest = max(hole.tokens for hole in holes_of(template).values())
    if widest > context:  # before as many ids are made
        raise DataError(f"a span of {widest} tokens does not fit the context of {context}: give it fewer")
    ids: list[int] = []
    spans: list[range] = []
    found = parts(template)
    for part, written in zip(template, found.ids, strict=True):
        if isinstance(part, Hole):
            spans.append(range(len(ids), len(ids) + len(written)))
        ids += written
    open_spans = [span for span in spans if len(span)] or spans[:1]  # where empty ones are, does not matter
    first, last = open_spans[0].start, open_spans[-1].stop
    if last - first > context:
        raise DataError(
            f"the spans and the text between them take {last - first} tokens and the context of this model is "
            f"{context}: shorten the spans, or fill them in several calls"
        )
    start = max(0, min(first - (context - (last - first)) // 2, len(ids) - context))
    window = range(start, min(start + context, len(ids)))
    before, behind = affixes.around([])
    moved = [range(span.start - start + len(before), span.stop - start + len(before)) for span in spans]
    row = [*before, *(ids[i] for i in window), *behind]
    in_spans = {i for span in moved for i in span}
    leads = tuple(found.leads[place] for place in holes_of(template))
    holes = [range(span.start + own_of(lead), span.stop) for span, lead in zip(moved, leads, strict=True)]
    return Canvas(row, [i in in_spans for i in range(len(row))], holes, len(before), leads)


def fill(template: Template, spans: Sequence[str]) -> str:
    """The text of a template with its holes filled; everything else is exactly the text that was given."""
    filling = iter(spans)
    return "".join(next(filling) if isinstance(part, Hole) else part for part in template)


def written_spans(template: Template, tokenizer: PreTrainedTokenizerBase, row: Canvas) -> tuple[str, ...]:
    """The text of each hole, to be put between the texts of the template as they are.

    Args:
        template: Texts and holes.
        tokenizer: The model's tokenizer.
        row: What `lay_out` made of the template, the holes written.

    Returns:
        One text a hole.
    """
    spans = []
    for number, span, lead in zip(holes_of(template), row.spans, row.leads, strict=True):
        before, behind = beside(template, number)
        place = range(span.start - row.start, span.stop - row.start)
        spans.append(written_text(tokenizer, row.ids[row.start :], place, before, behind, lead))
    return tuple(spans)


def beside(template: Template, place: int) -> tuple[str, str]:
    """The texts before and behind a part of a template; empty where another hole stands there, or nothing."""
    sides = (*template[max(place - 1, 0) : place], ""), (*template[place + 1 :], "")
    before, behind = (side[0] if isinstance(side[0], str) else "" for side in sides)
    return before, behind


def given_text(tokenizer: PreTrainedTokenizerBase, canvas: Canvas, hole: range) -> str:
    """What the ids of a row before a hole say."""
    return "".join(pieces(tokenizer, canvas.ids[canvas.start : hole.start]))


def written_text(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    hole: range,
    before: str,
    behind: str = "",
    lead: Lead | None = None,
) -> str:
    """The text that the ids of a hole add to a text.

    Args:
        tokenizer: The tokenizer.
        ids: The ids of the text, without special tokens around it.
        hole: Where they were written, those of the lead with them.
        before: The text before the hole, which it is put behind as it is.
        behind: The text after it.
        lead: What ends `before` and was written again.

    Returns:
        What the hole adds, without a blank that ends `before` already and that is in no token of its own, and with
        one where the last word would grow together with the next.
    """
    parts = pieces(tokenizer, list(ids[: hole.stop]))
    seen, added = "".join(parts[: hole.start]), "".join(parts[hole.start :])
    alone = decode(tokenizer, ids[: hole.start])
    if alone != seen and (seen + added).startswith(alone):  # what ends before the hole is no whole character
        added = (seen + added)[len(alone) :]
    if lead is not None:
        added = added.removeprefix(lead.text)
    elif before[-1:].isspace() and not seen[-1:].isspace():
        added = added.removeprefix(" ")
    if drops_blanks(tokenizer) and _grow_together(tokenizer, added, behind):
        added += " "
    return added


def _grow_together(tokenizer: PreTrainedTokenizerBase, first: str, second: str) -> bool:
    """Whether two texts have other tokens side by side than each on its own."""
    if not first.strip() or second[:1].strip() == "":
        return False
    left, right = first.split()[-1], second.split()[0]
    one, other, both = encode(tokenizer, [left, right, left + right])
    return both != one + other


def certain_if_empty(
    rows: Sequence[Canvas], log_p_of: Callable[[Sequence[Canvas]], Iterable[float]]
) -> Iterator[float]:
    """The log-probability of what is scored of each row; that of nothing is 0, and costs nothing.

    Args:
        rows: The rows.
        log_p_of: Finds that of rows of which something is scored, at least one.

    Returns:
        An iterator over nats, one a row.
    """
    asked = [row for row in rows if any(row.editable)]
    found = iter(log_p_of(asked) if asked else ())
    return (next(found) if any(row.editable) else 0.0 for row in rows)


def stack(canvases: Sequence[Canvas], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of unequal length side by side.

    Args:
        canvases: The rows.
        pad_id: What fills up the shorter ones, on the right.

    Returns:
        Ids, and whether each position is editable; both of shape (B, L), on the CPU.
    """
    width = max(len(canvas.ids) for canvas in canvases)
    ids_BL = [canvas.ids + [pad_id] * (width - len(canvas.ids)) for canvas in canvases]
    editable_BL = [canvas.editable + [False] * (width - len(canvas.ids)) for canvas in canvases]
    return torch.tensor(ids_BL, dtype=torch.long), torch.tensor(editable_BL, dtype=torch.bool)
