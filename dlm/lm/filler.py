"""What fills the holes of texts: those of known length side by side, and those of unknown length after a search."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice

from dlm.diffusion.automaton import Automaton
from dlm.diffusion.constrain import Held
from dlm.diffusion.rules import Rule
from dlm.diffusion.verify import Verified
from dlm.errors import ConfigError, DataError
from dlm.lm.candidates import Candidate, Parts, by_text, united
from dlm.lm.canvas import Canvas, certain_if_empty
from dlm.lm.infillings import Infilling
from dlm.lm.languages import Languages
from dlm.lm.layout import Layout
from dlm.lm.lengths import Weigher
from dlm.lm.rereading import Rereader
from dlm.lm.rows import Task, Written, in_batches, in_groups
from dlm.lm.search import NOT_REREAD, Lengths, LengthSearch
from dlm.template import Hole, Template, exact, has_choices, is_open

Ways = list[list[Candidate]]
"""The candidates of a template, those of each text together."""

SWEEPS = 2
"""How often each of several holes is filled anew with the best of what was written into it."""


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
        seed: An alternative depends on the seed, its text's number, its lengths and its own number alone.
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
                yield from self._best([(text, islice(written, tries)) for _, text in batch], num, reread=True)
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
            first = _of_lengths(self._tried(template, place, search.first_round(likely, num)), posterior)
            found = [*self._reread([template], [[[*first]]])]
            read = [(each.found.lengths, _rank(each)) for each in _every([self._mixed(template, by_text(found))])]
            shares = search.second_round(likely, read, max(search.effort, num) - len(found))
            found += self._tried(template, place, shares, found)
        else:
            found = self._tried(template, place, search.shared_out(likely, num))
        (best,) = self._best([(template, _of_lengths(found, posterior))], num, reread=reread)
        return best

    def _possible(self, template: Template, posterior: Mapping[Lengths, float]) -> Mapping[Lengths, float]:
        """The lengths that the languages of the holes have where these then stand."""
        if not any(isinstance(part, Hole) and part.pattern is not None for part in template):
            return posterior
        found = {}
        for lengths, log_p in posterior.items():
            known = exact(template, lengths)
            if self.languages.held(known, self.layout.holes(known)) is not None:
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
        tokenizer = self.layout.tokenizer
        found = (
            Candidate.of(whole, row, (*self._key(place), 0), 0, tokenizer)
            for (whole, row), each in zip(ways, lengths, strict=True)
            if not posterior or each in posterior
        )
        (best,) = self._best([(template, _of_lengths(found, posterior))], num, reread=bool(search.reread))
        return best

    def _best(
        self, asked: Sequence[tuple[Template, Iterable[Candidate]]], num: int, *, reread: bool
    ) -> list[list[Infilling]]:
        """The likeliest texts of each template, as reread or by their log-likelihoods; who watches sees the first."""
        templates = [template for template, _ in asked]
        found = [by_text(candidates) for _, candidates in asked]
        found = _with(found, self._reread(templates, found) if reread else self._scored(_every(found)))
        if reread:
            found = [*map(self._mixed, templates, found)]
        found = [sorted(texts, key=lambda ways: -united(ways).rank)[:num] for texts in found]
        if reread:  # the log-likelihoods of the others are not asked for
            found = _with(found, self._scored(_every(found)))
        likeliest = [max(texts[0], key=_rank) for texts in found]
        if self.watched:
            again = [self._again(each) for each in likeliest if any(each.row.editable)]
            for _ in self.write(again, True):
                pass
        return [[*map(united, texts)] for texts in found]

    def _mixed(self, template: Template, found: Ways) -> Ways:
        """The candidates of a text, and others whose holes are each filled as in one of these.

        From the best of all, each hole in turn is filled as the text then reads best, of all that was written into that
        hole (iterated conditional modes; Besag 1986, section 2.5). So holes that were filled well in different texts
        come together, and a text is read for that rather than written.
        """
        written = [*_every([found])]
        known = {each.found.ids: each for each in written}
        best = max(written, key=_rank)
        parts: Parts = (best,) * len(best.found.spans)
        for number in [*range(len(parts))] * SWEEPS if len(parts) > 1 else ():
            options = {each.found.ids[number]: each for each in written}.values()
            tried = [(*parts[:number], option, *parts[number + 1 :]) for option in options]
            mixtures = [(each, one) for each in tried if (one := self._mixture(template, each)) is not None]
            new = [(each, one) for each, one in mixtures if one.found.ids not in known]
            for (each, _), one in zip(new, self._reread([template], [[[one for _, one in new]]]), strict=True):
                known[one.found.ids] = one
                if one.found.rank > best.found.rank:
                    best, parts = one, each
        return by_text(known.values())

    def _mixture(self, template: Template, parts: Parts) -> Candidate | None:
        """A candidate whose holes are filled as in others; None where lengths or borders do not suit each other."""
        lengths = tuple(part.found.lengths[at] for at, part in enumerate(parts))
        posterior = parts[0].found.length_posterior
        if posterior and lengths not in posterior:
            return None
        whole = exact(template, lengths)
        canvas = self.layout.holes(whole)
        if canvas.leads != tuple(part.row.leads[at] for at, part in enumerate(parts)):
            return None
        mixture = Candidate.mixture(whole, canvas, parts, self.layout.tokenizer)
        return mixture if mixture.found.spans == tuple(part.found.spans[at] for at, part in enumerate(parts)) else None

    def _reread(self, templates: Sequence[Template], found: Sequence[Ways]) -> Iterator[Candidate]:
        """Candidates as the causal reading finds them, each read as a whole, and once."""
        assert self.rereader is not None
        rows: list[Canvas] = []
        for template, texts in zip(templates, found, strict=True):
            new = [each.found for each in _every([texts]) if each.found.log_whole is None]
            longest = max(map(sum, new[0].length_posterior), default=0) if new else 0  # all have the same posterior
            rows += self.rereader.rows(template, [each.ids for each in new], longest)
        nats = self.rereader.read(rows)
        return (
            each if each.found.log_whole is not None else each.knowing(log_whole=next(nats)) for each in _every(found)
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
        if not candidate.mixed:
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


def _rank(candidate: Candidate) -> float:
    return candidate.found.rank


def _every(found: Iterable[Ways]) -> Iterator[Candidate]:
    """All candidates of some texts."""
    return (each for texts in found for ways in texts for each in ways)


def _with(found: Iterable[Ways], candidates: Iterator[Candidate]) -> list[Ways]:
    """Others in the places of all candidates."""
    return [[[next(candidates) for _ in ways] for ways in texts] for texts in found]


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


def _of_lengths(candidates: Iterable[Candidate], posterior: Mapping[Lengths, float]) -> Iterator[Candidate]:
    """Candidates that know how likely their lengths are, where these were weighed."""
    for each in candidates:
        log_length = posterior[each.found.lengths] if posterior else 0.0
        yield each.knowing(log_length=log_length, length_posterior=posterior)


def _among(hole: Hole, lengths: tuple[int, ...]) -> Hole:
    """A hole that may have these lengths, in ascending order."""
    return replace(hole, tokens=lengths[0], most=lengths[-1] if len(lengths) > 1 else None, among=lengths)
