"""Texts of several holes put together of others: each hole is filled as in one of the texts that were written.

A text is only as good as the worst of its holes, and of several drafts each is good at another. From the best draft on,
each hole in turn is filled as the text then reads best, of all that was written into that hole, until no hole can be
changed for the better. These are iterated conditional modes (Besag 1986, On the Statistical Analysis of Dirty
Pictures). Texts are read for that, and none is written.
"""

from collections.abc import Collection, Sequence

from dlm.lm.candidates import Candidate, Sources
from dlm.lm.layout import Layout
from dlm.lm.search import Lengths
from dlm.template import Template, exact

SWEEPS = 2
"""How often each hole is filled anew at most."""


class Descent:
    """The way from the best of some texts to the best that their holes make, one hole after the other.

    Attributes:
        template: The texts with their holes.
        texts: All that were read, by the ids of their holes.
    """

    def __init__(
        self, template: Template, layout: Layout, found: Sequence[Candidate], likely: Collection[Lengths] | None
    ) -> None:
        """Begins at the best text.

        Args:
            template: The text with its holes.
            layout: How it becomes rows.
            found: Texts that were read, at least one; those that were put together before are among them, and are gone
                on from.
            likely: The lengths that holes may be filled with; None where they have one length each.
        """
        self.template, self.layout, self.likely = template, layout, likely
        self.texts = {each.found.ids: each for each in found}
        self._written = [each for each in found if not each.sources]
        self._best = max(found, key=lambda each: each.found.rank)
        self._holes = len(self._best.found.spans)
        self._step, self._unchanged = 0, 0

    @property
    def finished(self) -> bool:
        """Whether no hole can be changed for the better, or each was tried often enough."""
        return self._holes < 2 or self._unchanged == self._holes or self._step == SWEEPS * self._holes

    def asked(self) -> list[Candidate]:
        """The texts that differ from the best in the next hole, and that were not read yet."""
        number, best = self._step % self._holes, self._best
        sources = best.sources or (best,) * self._holes
        options = {each.found.ids[number]: each for each in (*self._written, *sources)}.values()
        tried = ((*sources[:number], option, *sources[number + 1 :]) for option in options)
        return [mixture for each in tried if (mixture := self._mixture(each)) is not None]

    def take(self, read: Sequence[Candidate]) -> None:
        """Goes on from the best.

        Args:
            read: What was asked, now that it is read.
        """
        self.texts |= {each.found.ids: each for each in read}
        before = self._best
        self._best = max((before, *read), key=lambda each: each.found.rank)
        self._unchanged = self._unchanged + 1 if self._best is before else 1
        self._step += 1

    def _mixture(self, sources: Sources) -> Candidate | None:
        """A new text of others' holes; None where it is known, too unlikely by its lengths, or no text of its own."""
        ids = tuple(each.found.ids[at] for at, each in enumerate(sources))
        lengths = tuple(each.found.lengths[at] for at, each in enumerate(sources))
        if ids in self.texts or (self.likely is not None and lengths not in self.likely):
            return None
        whole = exact(self.template, lengths)
        canvas = self.layout.holes(whole)
        if canvas.leads != tuple(each.row.leads[at] for at, each in enumerate(sources)):
            return None  # what stands before an empty hole is joined to what stands behind it
        mixture = Candidate.mixture(whole, canvas, sources, self.layout.tokenizer)
        alike = mixture.found.spans == tuple(each.found.spans[at] for at, each in enumerate(sources))
        return mixture if alike else None
