"""What fills the holes of texts: those of known length side by side, and those of unknown length after a search."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby, islice

from dlm.diffusion.automaton import Automaton
from dlm.diffusion.constrain import Held
from dlm.diffusion.rules import Rule
from dlm.diffusion.verify import Verified
from dlm.errors import ConfigError, DataError
from dlm.lm.candidates import Candidate, by_text, united
from dlm.lm.canvas import Canvas, certain_if_empty
from dlm.lm.infillings import Infilling
from dlm.lm.languages import Languages
from dlm.lm.layout import Layout
from dlm.lm.lengths import Weigher
from dlm.lm.mixing import Descent
from dlm.lm.rereading import Rereader
from dlm.lm.rows import Task, Written, in_batches, in_groups
from dlm.lm.search import NOT_REREAD, Lengths, LengthSearch
from dlm.template import Hole, Template, exact, has_choices, holes_of, is_open

Ways = list[list[Candidate]]
"""The candidates of a template, those of each text together."""


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
        score: The log-likelihood of what was written of each of some rows, given the rest.
        rereader: Reads whole texts by the causal reading of the model; None where it has none.
        seed: What is written depends on the seed, its text's number, its lengths and its own number alone.
    """

    layout: Layout
    languages: Languages
    weigher: Weigher
    rule: Callable[[Canvas], Rule | Verified]
    write: Callable[[Sequence[Task], bool], Iterator[Written]]
    watched: bool
    score: Callable[[Sequence[Canvas]], list[float]]
    rereader: Rereader | None
    seed: int

    def fill(self, templates: Mapping[int, Template], num: int, search: LengthSearch) -> Iterator[list[Infilling]]:
        """Fills texts, and gives each as soon as it and those before it are filled.

        Args:
            templates: The texts, under the numbers that their noise follows from.
            num: How many alternatives of each; fewer where the best of several fillings are looked for, or holes are
                held to a language, and too few differ.
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
                yield from self._drawn([*group], num, search)

    def _drawn(
        self, known: Sequence[tuple[int, Template]], num: int, search: LengthSearch
    ) -> Iterator[list[Infilling]]:
        """The alternatives of texts whose holes have one length each: all that are drawn, or the best as reread."""
        causal = self.rereader is not None
        tries = search.tried(num, causal=causal)
        chosen = search.ranks(causal=causal) and (tries > 1 or search.reread is True)
        for batch in in_batches(known, self.weigher.batch_size if chosen else len(known)):
            asked = [(text, task) for place, text in batch for task in self._tasks(text, place, tries)]
            written = self._written(asked, watched=not chosen)
            if chosen:
                templates = [text for _, text in batch]
                found = self._put_together([(text, [*islice(written, tries)], None) for text in templates])
                yield from self._best([*zip(templates, found, strict=True)], num, reread=True)
            else:
                for group in in_groups(self._scored(written), len(batch), tries):
                    yield sorted((each.found for each in group), key=lambda one: -one.rank)

    def _searched(self, place: int, template: Template, num: int, search: LengthSearch) -> list[Infilling]:
        """The alternatives of a text whose holes may have several lengths, in two rounds where fillings are reread."""
        posterior = self._possible(template, self.weigher.posterior(template, search))
        # Choices were written down to be chosen from, the long ones too.
        likely = posterior if has_choices(template) else search.likely(posterior)
        reread = search.rereads(template) and self.rereader is not None
        if reread:
            first = [*_of_lengths(self._tried(template, place, search.first_round(likely, num)), posterior)]
            # What is put together tells more than what was written: it reads better, and has lengths of its own.
            (found,) = self._put_together([(template, first, likely)])
            read = [(each.found.lengths, each.found.rank) for each in found]
            shares = search.second_round(likely, read, search.fillings(num) - len(first))
            second = _of_lengths(self._tried(template, place, shares, first), posterior)
            (found,) = self._put_together([(template, [*found, *second], likely)])
        else:
            tried = self._tried(template, place, search.shared_out(likely, num))
            found = [*_of_lengths(tried, posterior)]
        (best,) = self._best([(template, found)], num, reread=reread)
        return best

    def _possible(self, template: Template, posterior: Mapping[Lengths, float]) -> Mapping[Lengths, float]:
        """The lengths that the languages of the holes have where these then stand."""
        holes = [*holes_of(template).values()]
        held = [number for number, hole in enumerate(holes) if hole.pattern is not None]
        if not held:
            return posterior

        @cache
        def suits(number: int, length: int, filled: tuple[bool, ...]) -> bool:
            """Whether a hole has a text of so many tokens, where the others are filled or empty."""
            lengths = [length if at == number else int(each) for at, each in enumerate(filled)]
            known = exact(template, lengths)
            return self.languages.suits(known, self.layout.holes(known), number)

        found = {}
        for lengths, log_p in posterior.items():
            filled = tuple(map(bool, lengths))
            if all(suits(number, lengths[number], filled) for number in held):
                found[lengths] = log_p
        if not found:
            raise DataError(
                "no text of the lengths that were weighed matches the expressions: raise --effort, or say other lengths"
            )
        return found

    def _tried(
        self, template: Template, place: int, shares: Mapping[Lengths, int], before: Sequence[Candidate] = ()
    ) -> list[Candidate]:
        """So many fillings of each of some lengths, none of them drawn as one before."""
        drawn = Counter(each.found.lengths for each in before)
        asked: list[tuple[Template, Task]] = []
        for lengths, count in shares.items():
            known, first = exact(template, lengths), drawn[lengths]
            asked += [(known, task) for task in self._tasks(known, place, first + count, lengths)[first:]]
        return [*self._written(asked, watched=False)]

    def _weighed(
        self, place: int, template: Template, ways: Sequence[tuple[Template, Canvas]], num: int, search: LengthSearch
    ) -> list[Infilling]:
        """The alternatives of a text whose holes have few choices: all of them are scored, and none is drawn."""
        lengths = [tuple(map(len, row.holes)) for _, row in ways]
        fitting = iter(tuple(sorted(set(each))) for each in zip(*lengths, strict=True))
        known: Template = tuple(part if isinstance(part, str) else _among(part, next(fitting)) for part in template)
        posterior = self.weigher.posterior(known, search) if is_open(known) else {}
        fits = [way for way, each in zip(ways, lengths, strict=True) if not posterior or each in posterior]
        found = (Candidate.of(whole, row, (*self._key(place), 0), 0, self.layout.tokenizer) for whole, row in fits)
        (best,) = self._best([(template, _of_lengths(found, posterior))], num, reread=bool(search.reread))
        return best

    def _best(
        self, asked: Sequence[tuple[Template, Iterable[Candidate]]], num: int, *, reread: bool
    ) -> list[list[Infilling]]:
        """The likeliest texts of each template, as reread or by their log-likelihoods; who watches sees the first."""
        templates = [template for template, _ in asked]
        found = [by_text(candidates) for _, candidates in asked]
        every = [[*_every([texts])] for texts in found]
        found = _with(found, self._reread(templates, every) if reread else self._scored(_every(found)))
        found = [sorted(texts, key=lambda ways: -united(ways).rank)[:num] for texts in found]
        if reread:  # the log-likelihoods of the others are not asked for
            found = _with(found, self._scored(_every(found)))
        likeliest = [max(texts[0], key=lambda way: way.found.rank) for texts in found]
        if self.watched:
            again = [self._again(each) for each in likeliest if any(each.row.editable)]
            for _ in self.write(again, True):
                pass
        return [[*map(united, texts)] for texts in found]

    def _put_together(
        self, asked: Sequence[tuple[Template, Sequence[Candidate], Collection[Lengths] | None]]
    ) -> list[list[Candidate]]:
        """Candidates as they are read, and those that their holes make; see `dlm.lm.mixing`.

        Args:
            asked: Templates, their candidates, and the lengths that holes may be filled with where there are several.

        Returns:
            Candidates that were read, for each template.
        """
        every = [[*_every([by_text(found)])] for _, found, _ in asked]  # each once
        read = self._reread([template for template, _, _ in asked], every)
        descents = [
            Descent(template, self.layout, [*islice(read, len(found))], likely)
            for (template, _, likely), found in zip(asked, every, strict=True)
        ]
        while going_on := [each for each in descents if not each.finished]:
            new = [each.asked() for each in going_on]
            read = self._reread([each.template for each in going_on], new)
            for each, mixtures in zip(going_on, new, strict=True):
                each.take([*islice(read, len(mixtures))])
        return [[*each.texts.values()] for each in descents]

    def _reread(self, templates: Sequence[Template], found: Sequence[Sequence[Candidate]]) -> Iterator[Candidate]:
        """Candidates as the causal reading finds them, each read as a whole, and once."""
        assert self.rereader is not None
        rows: list[Canvas] = []
        for template, candidates in zip(templates, found, strict=True):
            new = [each.found for each in candidates if each.found.log_whole is None]
            longest = max(map(sum, new[0].length_posterior), default=0) if new else 0  # all have the same posterior
            rows += self.rereader.rows(template, [each.ids for each in new], longest)
        nats = self.rereader.read(rows)
        return (
            each if each.found.log_whole is not None else each.knowing(log_whole=next(nats))
            for candidates in found
            for each in candidates
        )

    def _scored(self, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
        """Candidates and their log-likelihoods, a batch at a time; one whose holes are all empty needs none."""
        coming = iter(candidates)
        while batch := [*islice(coming, self.weigher.batch_size)]:
            nats = certain_if_empty([each.row for each in batch], self.score)
            yield from (each.knowing(log_likelihood=log_p) for each, log_p in zip(batch, nats, strict=True))

    def _key(self, place: int, lengths: Lengths = ()) -> tuple[int | str, ...]:
        """What all random numbers of a text, or of some lengths of its holes, follow from."""
        return self.seed, "infill", place, *lengths

    def _task(self, template: Template, key: tuple[int | str, ...]) -> Task:
        canvas = self.layout.holes(template)
        return Task(canvas, self.rule(canvas), key, held=self.languages.held(template, canvas) or ())

    def _again(self, candidate: Candidate) -> Task:
        """The task that writes a candidate once more; one that was never written itself is held to its tokens."""
        task = self._task(candidate.template, candidate.key)
        if not candidate.sources:
            return task
        size = self.weigher.process.vocabulary.size
        pairs = zip(task.canvas.spans, candidate.found.ids, strict=True)
        return replace(task, held=tuple(Held(span, Automaton.of_string(ids, size)) for span, ids in pairs if ids))

    def _tasks(self, template: Template, place: int, count: int, lengths: Lengths = ()) -> list[Task]:
        """So many tasks that write one text, each with random numbers of its own."""
        key = self._key(place, lengths)
        task = self._task(template, key)
        return [replace(task, key=(*key, number)) for number in range(count)]

    def _written(self, asked: Sequence[tuple[Template, Task]], *, watched: bool) -> Iterator[Candidate]:
        """Each row, as soon as its batch is written; one whose holes are all empty is there already."""
        open_tasks = [task for _, task in asked if any(task.canvas.editable)]
        rows = (
            (ids, calls)
            for batch in self.write(open_tasks, watched)
            for ids, calls in zip(batch.x_BL.tolist(), batch.calls, strict=True)
        )
        for template, task in asked:
            ids, calls = next(rows) if any(task.canvas.editable) else (task.canvas.ids, 0)
            row = replace(task.canvas, ids=ids[: len(task.canvas.ids)])
            yield Candidate.of(template, row, task.key, calls, self.layout.tokenizer)


def _every(found: Iterable[Ways]) -> Iterator[Candidate]:
    """All candidates of some texts."""
    return (each for texts in found for ways in texts for each in ways)


def _with(found: Iterable[Ways], candidates: Iterator[Candidate]) -> list[Ways]:
    """Others in the places of all candidates."""
    return [[[next(candidates) for _ in ways] for ways in texts] for texts in found]


def _different(template: Template, found: list[Infilling]) -> list[Infilling]:
    """The alternatives of a text; where a hole is held to a language, which may have few texts, each text once."""
    if all(hole.pattern is None for hole in holes_of(template).values()):
        return found
    likeliest: dict[str, Infilling] = {}
    for one in found:
        likeliest.setdefault(one.text, one)
    return [*likeliest.values()]


def _is_searched(template: Template) -> bool:
    """Whether the best of several fillings is looked for: of several lengths, or of several choices."""
    return is_open(template) or any(len(hole.choices) > 1 for hole in holes_of(template).values())


def _of_lengths(candidates: Iterable[Candidate], posterior: Mapping[Lengths, float]) -> Iterator[Candidate]:
    """Candidates that know how likely their lengths are, where these were weighed."""
    for each in candidates:
        log_length = posterior[each.found.lengths] if posterior else 0.0
        yield each.knowing(log_length=log_length, length_posterior=posterior)


def _among(hole: Hole, lengths: tuple[int, ...]) -> Hole:
    """A hole that may have these lengths, in ascending order."""
    return replace(hole, tokens=lengths[0], most=lengths[-1] if len(lengths) > 1 else None, among=lengths)
