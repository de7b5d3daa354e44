"""What is asked of a model to learn how long a hole is: the text behind it, behind so many masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from torch import Tensor

from dlm.lm.canvas import Canvas
from dlm.lm.layout import Layout
from dlm.lm.parts import Parts, joined, shared
from dlm.lm.search import Lengths
from dlm.template import Hole, Template, exact

ASKED, BEFORE = 8, 64
"""The tokens behind a hole that are asked how long it is, and the most before it that are read for that.

Twice as many of each cost four times as much, and were not seen to make the true length of words likelier, in
source text and in prose.
"""


@dataclass(frozen=True)
class Question:
    """A row, of which some tokens are asked one after the other; those that were not yet asked are masks.

    Attributes:
        ids: The row; masks in holes.
        asked: The places of the tokens, in the order in which they are asked. The last may be the first mask of a hole:
            of that it is asked how likely it begins with the hole's lead, and it stays a mask.
        first_V: What the hole may begin with; None where it has no lead.
        mask_id: The id of the mask.
    """

    ids: list[int]
    asked: list[int]
    first_V: Tensor | None
    mask_id: int

    def canvas(self, number: int) -> Canvas:
        """The row that asks one of the tokens, by its number in `asked`."""
        hidden = {*self.asked[number:]}
        ids = [self.mask_id if at in hidden else id_ for at, id_ in enumerate(self.ids)]
        return Canvas(ids, [at == self.asked[number] for at in range(len(ids))], [])

    def wanted(self, number: int) -> int | Tensor:
        """What is asked of it: an id; or of all ids, boolean of shape (V,), whether it may be this one."""
        id_ = self.ids[self.asked[number]]
        return self.first_V if id_ == self.mask_id and self.first_V is not None else id_


def questions(layout: Layout, template: Template, number: int, every: Sequence[Lengths]) -> list[Question]:
    """What is asked of each of some lengths of a hole, up to the next hole.

    This is the text that stands there whatever fills the next hole, from where the text ends that stands before this
    hole whatever fills it; what is between the two is asked with the next hole. So all that is asked of all holes
    together is one text for all lengths.

    Args:
        layout: How texts become rows.
        template: Texts and holes.
        number: Which of the holes it is, from 0 on.
        every: The lengths of the holes up to this one, and of none behind it.

    Returns:
        A question for each.
    """
    mask_id, affixes, room = layout.sidecar.mask_id, layout.sidecar.affixes, layout.sidecar.context
    holes = [at for at, part in enumerate(template) if isinstance(part, Hole)]
    place, is_last = holes[number], number + 1 == len(holes)
    kept, some = len(layout.unmoved(template)), layout.parts(exact(template, [1] * len(holes)))
    # No more of a long text is looked at than may be read.
    before = max(0, kept - BEFORE)
    after = max(0, len(joined(some.ids[place + 1 :])) - ASKED) if is_last else 0

    @cache
    def parts(*filled: int) -> Parts:
        found = layout.parts(exact(template, filled))
        ids = [*found.ids]
        last = max(at for at, part in enumerate(ids) if part or not at)
        ids[last] = ids[last][: len(ids[last]) - after]
        ids[0] = ids[0][before:]
        return replace(found, ids=ids)

    def ids_of(*lengths: int) -> list[list[int]]:
        known = (*lengths, *[1] * (len(holes) - len(lengths)))
        left = iter(known)
        pairs = zip(template, parts(*(int(length > 0) for length in known)).ids, strict=True)
        return [ids if isinstance(part, str) else [*ids, *[mask_id] * (next(left) - 1)] for part, ids in pairs]

    def standing(*lengths: int) -> list[int]:
        """The ids before the hole behind those of some lengths that stand there whatever fills it."""
        at = holes[len(lengths)]
        ids, hole = joined(ids_of(*lengths, 1)[:at]), template[at]
        assert isinstance(hole, Hole)
        return ids[: shared(ids, joined(ids_of(*lengths, 0)))] if hole.may_be_empty else ids

    rows = [joined(ids_of(*lengths)) if is_last else standing(*lengths) for lengths in every]
    behind = max(
        len(row) - len(joined(ids_of(*lengths)[: place + 1])) for row, lengths in zip(rows, every, strict=True)
    )
    room -= len(affixes) + max(map(len, rows)) - behind - (kept - before)
    reach = max(0, min(ASKED, behind, room))
    dropped = kept - before - max(0, min(kept - before, room - reach))
    moved = len(affixes.prefix) - dropped
    found = []
    for ids, lengths in zip(rows, every, strict=True):
        read = [*affixes.prefix, *ids[dropped : len(ids) - (behind - reach)]]
        asked = [at for at in range(len(standing(*lengths[:-1])) + moved, len(read)) if read[at] != mask_id]
        lead = parts(*(int(length > 0) for length in lengths), *[1] * (len(holes) - number - 1)).leads[place]
        first_V = None
        if lead is not None and layout.spelling is not None:
            count, automaton = layout.spelling.beginning(lead.text, lead.own + lengths[-1])
            first_V = automaton.first_V(count)
            asked += [at for at in (len(joined(ids_of(*lengths)[:place])) + moved,) if at < len(read)]
        found.append(Question(read, asked, first_V, mask_id))
    return found
