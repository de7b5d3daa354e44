"""What fills the holes of texts: those of known length side by side, and those of unknown length after a search."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from dlm.diffusion.rules import Rule
from dlm.diffusion.verify import Verified
from dlm.errors import ConfigError
from dlm.lm.canvas import Canvas, stack
from dlm.lm.infillings import Infilling
from dlm.lm.languages import Languages
from dlm.lm.layout import Layout
from dlm.lm.lengths import NOT_REREAD, Lengths, LengthSearch, Weigher, exact, is_open
from dlm.lm.rereading import Rereader
from dlm.lm.rows import Task, Written, in_batches, in_groups
from dlm.template import Hole, Template


@dataclass(frozen=True)
class Filler:
    """Fills holes with one model, by one sampler.

    Attributes:
        layout: How texts become rows.
        languages: What texts a hole may have.
        weigher: Weighs lengths.
        rule: How the masks of a row are filled.
        write: (tasks, whether it is watched) -> rows written in batches.
        watched: Whether anyone watches; of a search they see the best filling.
        ranked: The ids, the log-likelihood and the calls of each row of a batch.
        rereader: Reads whole texts by the causal reading of the model; None where it has none.
        seed: An alternative depends on the seed, its text's number, its lengths and its own number alone.
    """

    layout: Layout
    languages: Languages
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
            num: How many alternatives of each; fewer where the holes' lengths are searched, or holes are held to a
                language, and too few differ.
            search: How lengths are searched.

        Returns:
            An iterator over the alternatives of each text, the most likely first.

        Raises:
            DataError: The holes of a text and what stands between them do not fit the context, or a hole has no text.
            ConfigError: The length of a hole is not given, and the model's noise has no masks; or texts are to be
                reread, and the model has no causal reading.
        """
        if search.reread and self.rereader is None:
            raise ConfigError(NOT_REREAD)
        templates = {place: self.languages.resolved(template) for place, template in templates.items()}
        canvases = {place: self.layout.holes(template) for place, template in templates.items()}
        self.layout.warn_of_unseen([*canvases.values()])
        for place, template in templates.items():
            self.rule(canvases[place])
            if is_open(template) and not self.weigher.process.noise.masks:
                raise ConfigError(
                    "a hole of unknown length is a number of masks, which this model's noise "
                    f"({self.weigher.process.noise.name}) has not: say its tokens, as in [MASK:12]"
                )
        found = self._fill(templates, num, search)
        return map(_different, templates.values(), found)

    def _fill(self, templates: Mapping[int, Template], num: int, search: LengthSearch) -> Iterator[list[Infilling]]:
        for searched, group in groupby(templates.items(), key=lambda item: _is_searched(item[1])):
            if searched:
                for place, template in group:
                    ways = self.languages.enumerated(template, search.effort)
                    yield (
                        self._weighed(place, template, ways, num, search)
                        if ways
                        else self._searched(place, template, num, search)
                    )
            else:
                known = [*group]
                asked = [
                    (template, self._task(template, place, number))
                    for place, template in known
                    for number in range(num)
                ]
                wanted = num > 1 if search.reread is None else search.reread
                groups = in_groups(self._filled(asked), len(known), num)
                for (_, template), alternatives in zip(known, groups, strict=True):
                    yield sorted(self._reread(template, alternatives, wanted=wanted), key=lambda one: -one.rank)

    def _searched(self, place: int, template: Template, num: int, search: LengthSearch) -> list[Infilling]:
        """The alternatives of a text whose holes may have several lengths; equal texts are one."""
        posterior = self.weigher.posterior(template, search)
        asked: list[tuple[Template, Task]] = []
        weights: list[float] = []
        for lengths, count in search.shared_out(posterior, num):
            known = exact(template, lengths)
            if self.languages.held(known, self.layout.holes(known)) is not None:
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
        # Nothing behind the last hole tells where it ends: the shortest filling would always be the likeliest.
        wanted = isinstance(template[-1], str) if search.reread is None else search.reread
        ones = self._reread(template, [one for one, _ in best.values()], wanted=wanted)
        tasks = [task for _, task in best.values()]
        ranked = sorted(zip(ones, tasks, strict=True), key=lambda each: -each[0].rank)[:num]
        if self.watched and any(ranked[0][1].canvas.editable):
            for _ in self.write([ranked[0][1]], True):  # the same again
                pass
        return [one for one, _ in ranked]

    def _reread(self, template: Template, found: Sequence[Infilling], *, wanted: bool) -> list[Infilling]:
        """The alternatives as the causal reading finds them, where they are ranked by it."""
        if self.rereader is None or not wanted:
            return [*found]
        nats = self.rereader.nats(template, [one.ids for one in found])
        return [replace(one, log_whole=each) for one, each in zip(found, nats, strict=True)]

    def _weighed(
        self, place: int, template: Template, ways: Sequence[tuple[Template, Canvas]], num: int, search: LengthSearch
    ) -> list[Infilling]:
        """The alternatives of a text whose holes have few choices: all of them are scored, and none is drawn."""
        lengths = [tuple(map(len, canvas.holes)) for _, canvas in ways]
        among = [tuple(sorted(set(each))) for each in zip(*lengths, strict=True)]
        fitting = iter(among)
        known: Template = tuple(
            part if isinstance(part, str) else _of_lengths(part, next(fitting)) for part in template
        )
        posterior = self.weigher.posterior(known, search) if is_open(known) else {}
        kept = [way for way, each in zip(ways, lengths, strict=True) if not posterior or each in posterior]
        found: list[tuple[Infilling, Template]] = []
        for batch in in_batches(kept, self.weigher.batch_size):
            tasks = [Task(canvas, self.rule(canvas), ()) for _, canvas in batch]
            x_BL, editable_BL = stack([task.canvas for task in tasks], self.weigher.pad_id)
            ranked = self.ranked(Written(tasks, x_BL, editable_BL, [0] * len(tasks)))
            for (whole, _), task, (ids, nats, calls) in zip(batch, tasks, ranked, strict=True):
                one = Infilling.of(whole, task, ids, nats, calls, self.layout.tokenizer)
                log_length = posterior[one.lengths] if posterior else 0.0
                found.append((replace(one, log_length=log_length, length_posterior=posterior), whole))
        ones = self._reread(template, [one for one, _ in found], wanted=bool(search.reread))
        found = [(one, whole) for one, (_, whole) in zip(ones, found, strict=True)]
        found = sorted(found, key=lambda each: -each[0].rank)[:num]
        if self.watched:
            for _ in self.write([self._task(found[0][1], place, 0)], True):  # the likeliest, as it would be written
                pass
        return [one for one, _ in found]

    def _task(self, template: Template, place: int, number: int, lengths: Lengths = ()) -> Task:
        canvas = self.layout.holes(template)
        key: tuple[int | str, ...] = (self.seed, "infill", place, *lengths, number)
        return Task(canvas, self.rule(canvas), key, held=self.languages.held(template, canvas) or ())

    def _filled(self, asked: Sequence[tuple[Template, Task]], *, watched: bool = True) -> Iterator[Infilling]:
        """Each row as a text, as soon as its batch is written; one whose holes are all empty is there already."""
        open_tasks = [task for _, task in asked if any(task.canvas.editable)]
        rows = (row for batch in self.write(open_tasks, watched) for row in self.ranked(batch))
        for template, task in asked:
            given = task.canvas.ids, 0.0, 0
            ids, log_likelihood, calls = next(rows) if any(task.canvas.editable) else given
            yield Infilling.of(template, task, ids, log_likelihood, calls, self.layout.tokenizer)


def _different(template: Template, found: list[Infilling]) -> list[Infilling]:
    """The alternatives of a text; where a hole is held to a language, which may have few texts, each text once."""
    if not any(isinstance(part, Hole) and part.pattern is not None for part in template):
        return found
    likeliest: dict[str, Infilling] = {}
    for one in found:
        likeliest.setdefault(one.text, one)
    return [*likeliest.values()]


def _is_searched(template: Template) -> bool:
    """Whether the best of several fillings is looked for: of several lengths, or of several choices."""
    return is_open(template) or any(isinstance(part, Hole) and len(part.choices) > 1 for part in template)


def _of_lengths(hole: Hole, lengths: tuple[int, ...]) -> Hole:
    """A hole that may have these lengths, in ascending order."""
    return replace(hole, tokens=lengths[0], most=lengths[-1] if len(lengths) > 1 else None, among=lengths)
