"""What is asked of a model to learn how long a hole is: the text behind it, behind so many masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from torch import Tensor

from dlm.lm.canvas import Canvas
from dlm.lm.layout import Layout
from dlm.lm.parts import Parts, joined, shared
from dlm.lm.search import Lengths
from dlm.template import Hole, Template, exact, holes_of

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


@dataclass(frozen=True)
class Inquiry:
    """What is asked to learn how long one hole of a text is: the text behind it, up to the next hole.

    More exactly, what stands there whatever fills the next hole, from where the text ends that stands before this
    hole whatever fills it; what is between the two is asked with the next hole. So all that is asked of all holes
    together is one text for all lengths.

    Attributes:
        layout: How texts become rows.
        template: Texts and holes.
        number: Which of the holes it is, from 0 on.
    """

    layout: Layout
    template: Template
    number: int

    def questions(self, every: Sequence[Lengths]) -> list[Question]:
        """What is asked of each of some lengths.

        Args:
            every: The lengths of the holes up to this one, and of none behind it.

        Returns:
            A question for each.
        """
        rows = [joined(self._ids(lengths)) if self._is_last else self._standing(lengths) for lengths in every]
        ends = [len(joined(self._ids(lengths)[: self._place + 1])) for lengths in every]
        behind = max(len(row) - end for row, end in zip(rows, ends, strict=True))
        affixes, kept = self.layout.sidecar.affixes, self._unmoved - self._unread
        room = self.layout.sidecar.context - len(affixes) - (max(map(len, rows)) - behind - kept)
        reach = max(0, min(ASKED, behind, room))
        dropped = kept - max(0, min(kept, room - reach))
        read = [[*affixes.prefix, *row[dropped : len(row) - (behind - reach)]] for row in rows]
        moved = len(affixes.prefix) - dropped
        return [self._question(lengths, ids, moved) for lengths, ids in zip(every, read, strict=True)]

    def _question(self, lengths: Lengths, row: list[int], moved: int) -> Question:
        """What is asked of some lengths in their row, where everything stands so many places further on."""
        mask_id, first_V = self.layout.sidecar.mask_id, None
        begin = len(self._standing(lengths[:-1])) + moved
        asked = [at for at in range(begin, len(row)) if row[at] != mask_id]
        lead = self._parts(_filled(lengths, len(self._holes))).leads[self._place]
        if lead is not None and self.layout.spelling is not None:
            count, automaton = self.layout.spelling.beginning(lead.text, lead.own + lengths[-1])
            first_V = automaton.first_V(count)
            first = len(joined(self._ids(lengths)[: self._place])) + moved
            asked += [first] * (first < len(row))
        return Question(row, asked, first_V, mask_id)

    def _ids(self, lengths: Lengths) -> list[list[int]]:
        """The ids of each part with holes of some lengths, those behind them of one token; see `_parts`."""
        known = iter((*lengths, *[1] * (len(self._holes) - len(lengths))))
        parts = zip(self.template, self._parts(_filled(lengths, len(self._holes))).ids, strict=True)
        mask_id = self.layout.sidecar.mask_id
        return [ids if isinstance(part, str) else [*ids, *[mask_id] * (next(known) - 1)] for part, ids in parts]

    def _standing(self, lengths: Lengths) -> list[int]:
        """The ids before the hole behind those of some lengths that stand there whatever fills it."""
        at = self._holes[len(lengths)]
        ids, hole = joined(self._ids((*lengths, 1))[:at]), self.template[at]
        assert isinstance(hole, Hole)
        return ids[: shared(ids, joined(self._ids((*lengths, 0))))] if hole.may_be_empty else ids

    @cached_property
    def _parts(self) -> Callable[[Lengths], Parts]:
        """The parts with holes of one token or none, without what is not read of a long text."""

        def parts(filled: Lengths) -> Parts:
            found = self.layout.parts(exact(self.template, filled))
            ids = [*found.ids]
            last = max(at for at, part in enumerate(ids) if part or not at)
            ids[last] = ids[last][: len(ids[last]) - self._unasked]
            ids[0] = ids[0][self._unread :]
            return replace(found, ids=ids)

        return cache(parts)

    @cached_property
    def _holes(self) -> list[int]:
        return [*holes_of(self.template)]

    @property
    def _place(self) -> int:
        return self._holes[self.number]

    @property
    def _is_last(self) -> bool:
        return self.number + 1 == len(self._holes)

    @cached_property
    def _unmoved(self) -> int:
        """How many ids stand before the first hole whatever fills it."""
        return len(self.layout.unmoved(self.template))

    @property
    def _unread(self) -> int:
        """How many of the first of these are not read."""
        return max(0, self._unmoved - BEFORE)

    @cached_property
    def _unasked(self) -> int:
        """How many ids at the end of the text are not asked."""
        ids = self.layout.parts(exact(self.template, [1] * len(self._holes))).ids
        return max(0, len(joined(ids[self._place + 1 :])) - ASKED) if self._is_last else 0


def _filled(lengths: Lengths, holes: int) -> Lengths:
    """Which holes are empty, 0, and which are filled, 1, as are those behind the given lengths."""
    return (*(int(length > 0) for length in lengths), *[1] * (holes - len(lengths)))
