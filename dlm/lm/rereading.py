"""How likely a causal reading finds texts whose holes are filled, each read as a whole from its first hole on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from dlm.lm.canvas import Canvas, certain_if_empty
from dlm.lm.layout import REACH, Layout
from dlm.lm.parts import joined, own_of
from dlm.lm.scoring import Score
from dlm.template import Template, exact, holes_of

Filling = Sequence[Sequence[int]]
"""The ids of each hole of a text, its lead with them."""


@dataclass(frozen=True)
class Rereader:
    """Reads filled texts by the causal reading of a model.

    Attributes:
        layout: How texts become rows.
        score: The exact log-likelihood of what is to be scored of each row, given what stands before it.
    """

    layout: Layout
    score: Callable[[Sequence[Canvas]], Iterator[Score]]

    def nats(self, template: Template, fillings: Sequence[Filling]) -> list[float]:
        """Log p(the spans, what stands between them and behind them | what stands before the first).

        The end of what stands before is with the spans where tokens may join the two; see `dlm.lm.parts`.

        Args:
            template: Texts and holes.
            fillings: What may stand in the holes.

        Returns:
            Nats a filling.
        """
        return [*self.read(self.rows(template, fillings))]

    def read(self, rows: Sequence[Canvas]) -> Iterator[float]:
        """The log-probability of what is to be read of each row; that of nothing is 0.

        Args:
            rows: As `rows` makes them.

        Returns:
            Nats a row, a batch at a time.
        """
        return certain_if_empty(rows, lambda asked: (score.log_likelihood for score in self.score(asked)))

    def rows(self, template: Template, fillings: Sequence[Filling], longest: int = 0) -> list[Canvas]:
        """The rows that are read.

        Fillings of different lengths are compared by the same text behind them: `REACH` tokens, or as many as the
        longest leaves room for, if half of that room is left to the text before the first.

        Args:
            template: Texts and holes.
            fillings: What may stand in the holes.
            longest: The most tokens of a filling that these may be compared with, where that is none of them.

        Returns:
            One a filling.
        """
        holes = holes_of(template)
        parts = cache(lambda *lengths: self.layout.parts(exact(template, lengths)))
        base = parts(*[1] * len(holes))
        before, behind = self.layout.unmoved(template), joined(base.ids[max(holes) + 1 :])
        size, owns = sum(map(len, base.ids)) - len(holes), sum(map(own_of, base.leads))
        # An empty hole may take a token more: its lead, which is else in its own first token.
        may_be_empty = [place for place, hole in holes.items() if hole.may_be_empty]
        empty = [parts(*(int(other != place) for other in holes)).ids for place in may_be_empty]
        size += sum(max(0, sum(map(len, ids)) - (len(holes) - 1) - size) for ids in empty)
        written = max([longest, *(sum(map(len, filling)) - owns for filling in fillings)])
        prefix = self.layout.sidecar.affixes.prefix
        room = self.layout.sidecar.context - len(prefix) - (size - len(before) - len(behind)) - written
        reach = max(0, min(REACH, len(behind), max(room // 2, room - len(before))))
        kept = max(0, min(len(before), room - reach))
        given = [*prefix, *before[len(before) - kept :]]
        canvases = []
        for filling in fillings:
            ids = [*parts(*(int(len(span) > 0) for span in filling)).ids]
            for place, span in zip(holes, filling, strict=True):
                ids[place] = [*span]
            whole = joined(ids)
            row = [*given, *whole[len(before) : len(whole) - (len(behind) - reach)]]
            canvases.append(Canvas(row, [i >= len(given) for i in range(len(row))], []))
        return canvases
