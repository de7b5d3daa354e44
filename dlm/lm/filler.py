"""What fills the holes of texts: those of known length side by side, and those of unknown length after a search."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from dlm.diffusion.rules import Rule
from dlm.diffusion.verify import Verified
from dlm.errors import ConfigError
from dlm.lm.canvas import Canvas
from dlm.lm.infillings import Infilling
from dlm.lm.layout import Layout
from dlm.lm.lengths import NOT_REREAD, Lengths, LengthSearch, Weigher, exact, is_open
from dlm.lm.rereading import Rereader
from dlm.lm.rows import Task, Written, in_groups
from dlm.template import Template


@dataclass(frozen=True)
class Filler:
    """Fills holes with one model, by one sampler.

    Attributes:
        layout: How texts become rows.
        weigher: Weighs lengths.
        rule: How the masks of a row are filled.
        write: (tasks, whether it is watched) -> rows written in batches.
        watched: Whether anyone watches; of a search they see the best filling.
        ranked: The ids, the log-likelihood and the calls of each row of a batch.
        rereader: Reads whole texts by the causal reading of the model; None where it has none.
        seed: An alternative depends on the seed, its text's number, its lengths and its own number alone.
    """

    layout: Layout
    weigher: Weigher
    rule: Callable[[Canvas], Rule | Verified]
    write: Callable[[Sequence[Task], bool], Iterator[Written]]
    watched: bool
    ranked: Callable[[Written], Iterator[tuple[list[int], float, int]]]
    rereader: Rereader | None
    seed: int

    def fill(self, templates: Mapping[int, Template], num: int, search: LengthSearch) -> Iterator[list[Infilling]]:
        """Fills texts, and gives each as soon as it and those before it are filled.

        Args:
            templates: The texts, under the numbers that their noise follows from.
            num: How many alternatives of each; fewer where the holes' lengths are searched and too few differ.
            search: How lengths are searched.

        Returns:
            An iterator over the alternatives of each text, the most likely first.

        Raises:
            DataError: The holes of a text and what stands between them do not fit the context.
            ConfigError: The length of a hole is not given, and the model's noise has no masks; or texts are to be
                reread, and the model has no causal reading.
        """
        if search.reread and self.rereader is None:
            raise ConfigError(NOT_REREAD)
        for template in templates.values():
            self.rule(self.layout.holes(template))
            if is_open(template) and not self.weigher.process.noise.masks:
                raise ConfigError(
                    "a hole of unknown length is a number of masks, which this model's noise "
                    f"({self.weigher.process.noise.name}) has not: say its tokens, as in [MASK:12]"
                )
        return self._fill(templates, num, search)

    def _fill(self, templates: Mapping[int, Template], num: int, search: LengthSearch) -> Iterator[list[Infilling]]:
        for searched, group in groupby(templates.items(), key=lambda item: is_open(item[1])):
            if searched:
                for place, template in group:
                    yield self._searched(place, template, num, search)
            else:
                asked = [
                    (template, self._task(template, place, number))
                    for place, template in group
                    for number in range(num)
                ]
                for alternatives in in_groups(self._filled(asked), len(asked) // num, num):
                    yield sorted(alternatives, key=lambda one: -one.log_likelihood)

    def _searched(self, place: int, template: Template, num: int, search: LengthSearch) -> list[Infilling]:
        """The alternatives of a text whose holes may have several lengths; equal texts are one."""
        posterior = self.weigher.posterior(template, search)
        asked: list[tuple[Template, Task]] = []
        weights: list[float] = []
        for lengths, count in search.shared_out(posterior, num):
            known = exact(template, lengths)
            asked += [(known, self._task(known, place, number, lengths)) for number in range(count)]
            weights += [posterior[lengths]] * count
        best: dict[str, tuple[Infilling, Task]] = {}
        ids_of: dict[str, set[tuple[tuple[int, ...], ...]]] = {}
        filled = self._filled(asked, watched=False)
        for found, weight, (_, task) in zip(filled, weights, asked, strict=True):
            one = replace(found, log_length=weight, length_posterior=posterior)
            before, _ = best.get(one.text, (None, None))
            better = before if before is not None and before.log_joint >= one.log_joint else one
            if before is not None and one.ids not in ids_of[one.text]:  # the same text by other tokens
                more = math.log1p(math.exp(-abs(before.log_joint - one.log_joint)))
                better = replace(better, log_likelihood=better.log_likelihood + more)
            best[one.text] = better, task if before is None else best[one.text][1]
            ids_of.setdefault(one.text, set()).add(one.ids)
        found_texts = self._reread(template, best, search)
        ranked = sorted(found_texts.values(), key=lambda each: -each[0].rank)[:num]
        if self.watched and any(ranked[0][1].canvas.editable):
            for _ in self.write([ranked[0][1]], True):  # the same again
                pass
        return [one for one, _ in ranked]

    def _reread(
        self, template: Template, found: dict[str, tuple[Infilling, Task]], search: LengthSearch
    ) -> dict[str, tuple[Infilling, Task]]:
        """The alternatives as the causal reading finds them, where they are ranked by it."""
        # Nothing behind the last hole tells where it ends: the shortest filling would always be the likeliest.
        wanted = isinstance(template[-1], str) if search.reread is None else search.reread
        if self.rereader is None or not wanted:
            return found
        nats = self.rereader.nats(template, [one.ids for one, _ in found.values()])
        return {
            text: (replace(one, log_whole=each), task)
            for (text, (one, task)), each in zip(found.items(), nats, strict=True)
        }

    def _task(self, template: Template, place: int, number: int, lengths: Lengths = ()) -> Task:
        canvas = self.layout.holes(template)
        return Task(canvas, self.rule(canvas), (self.seed, "infill", place, *lengths, number))

    def _filled(self, asked: Sequence[tuple[Template, Task]], *, watched: bool = True) -> Iterator[Infilling]:
        """Each row as a text, as soon as its batch is written; one whose holes are all empty is there already."""
        open_tasks = [task for _, task in asked if any(task.canvas.editable)]
        rows = (row for batch in self.write(open_tasks, watched) for row in self.ranked(batch))
        for template, task in asked:
            given = task.canvas.ids, 0.0, 0
            ids, log_likelihood, calls = next(rows) if any(task.canvas.editable) else given
            yield Infilling.of(template, task, ids, log_likelihood, calls, self.layout.tokenizer)
