"""What is asked of a model to learn how long a hole is: the text behind it, behind so many masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from dlm.lm.canvas import Canvas
from dlm.lm.layout import Layout
from dlm.lm.parts import joined, shared
from dlm.lm.search import Lengths
from dlm.template import Template, exact

ASKED, BEFORE = 8, 64
"""The tokens behind a hole that are asked how long it is, and the most before it that are read for that.

Twice as many of each cost four times as much, and were not seen to make the true length of words likelier, in
source text and in prose.
"""


@dataclass(frozen=True)
class Question:
    """A row, of which some tokens are asked from left to right; those after the one that is asked are masks.

    Attributes:
        ids: The row; masks in holes.
        asked: The places of the tokens. A mask among them is asked whether a hole may begin with it, and stays a mask.
        first_V: What the hole may begin with, which is held to the end of the text before it; None where that is not
            asked.
        mask_id: The id of the mask.
    """

    ids: list[int]
    asked: list[int]
    first_V: Tensor | None
    mask_id: int

    def canvas(self, number: int) -> Canvas:
        """The row that asks one of the tokens."""
        hidden = {*self.asked[number:]}
        ids = [self.mask_id if at in hidden else id_ for at, id_ in enumerate(self.ids)]
        return Canvas(ids, [at == self.asked[number] for at in range(len(ids))], [])

    def wanted(self, number: int) -> int | Tensor:
        """What is asked of it: an id, or all those that a hole may begin with."""
        id_ = self.ids[self.asked[number]]
        return self.first_V if id_ == self.mask_id and self.first_V is not None else id_


def questions(layout: Layout, template: Template, place: int, every: Sequence[Lengths]) -> list[Question]:
    """What is asked of each of some lengths of a hole: the same text of all.

    Where the hole may be empty, the end of the text before it may have other tokens then. So it is asked too.

    Args:
        layout: How texts become rows.
        template: Texts and holes.
        place: Which part of the template the hole is.
        every: The lengths of the holes up to this one, and of none behind it.

    Returns:
        A question for each.
    """
    mask_id, affixes, room = layout.sidecar.mask_id, layout.sidecar.affixes, layout.sidecar.context
    upto = template[: place + 1 + any(isinstance(part, str) for part in template[place + 1 : place + 2])]
    some = layout.parts(exact(upto, [1] * len(every[0])))
    kept, behind = len(layout.unmoved(template)), sum(map(len, some.ids[place + 1 :]))
    # No more of a long text is looked at than may be read.
    before, after = max(0, kept - BEFORE), max(0, behind - ASKED)
    kept, behind = kept - before, behind - after
    may_be_empty = any(length == 0 for *_, length in every)
    lead = some.leads[place] if may_be_empty else None

    @cache
    def parts(*filled: int) -> list[list[int]]:
        ids = [*layout.parts(exact(upto, filled)).ids]
        last = max(at for at, part in enumerate(ids) if part or not at)
        ids[last] = ids[last][: len(ids[last]) - after]
        ids[0] = ids[0][before:]
        return ids

    def ids_of(*lengths: int) -> list[list[int]]:
        left = iter(lengths)
        known = zip(upto, parts(*(int(length > 0) for length in lengths)), strict=True)
        return [ids if isinstance(part, str) else [*ids, *[mask_id] * (next(left) - 1)] for part, ids in known]

    rows = [joined(ids_of(*lengths)) for lengths in every]
    room -= len(affixes) + max(map(len, rows)) - behind - kept
    reach = max(0, min(behind, room))
    dropped = kept - max(0, min(kept, room - reach))
    moved = len(affixes.prefix) - dropped
    found = []
    for ids, (*others, length) in zip(rows, every, strict=True):
        first = joined(ids_of(*others, 1)[:place])
        begin = shared(first, joined(ids_of(*others, 0))) if may_be_empty else len(first)
        read = [*affixes.prefix, *ids[dropped : len(ids) - (behind - reach)]]
        first_V = None
        if lead is not None and length and layout.spelling is not None:
            count, automaton = layout.spelling.beginning(lead.text, lead.own + length)
            first_V = automaton.first_V(count)
        led = None if first_V is None else len(first) + moved
        asked = [at for at in range(begin + moved, len(read)) if at == led or read[at] != mask_id]
        found.append(Question(read, asked, first_V, mask_id))
    return found
