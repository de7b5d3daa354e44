"""Holes filled by next tokens: one after the other, from left to right."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dlm.diffusion.automaton import Automaton
from dlm.diffusion.constrain import Held
from dlm.diffusion.rules import Rule
from dlm.diffusion.verify import Verified
from dlm.errors import DataError
from dlm.lm.canvas import Canvas, certain_if_empty, fill, written_text
from dlm.lm.infillings import Infilling
from dlm.lm.layout import REACH, Layout
from dlm.lm.parts import Lead, own_of
from dlm.lm.rows import Task, Written, in_batches
from dlm.lm.scoring import Score
from dlm.model.sentinels import BESIDE, Sentinels
from dlm.template import Hole, Template, holes_of


@dataclass
class _Text:
    """A text that is being filled.

    Attributes:
        template: Texts and holes.
        key: What its random numbers follow from.
        parts: The ids of its parts; of a hole those that were written, its lead with them.
        leads: What its holes begin with that is no part of them; one a part.
        spans: What was written into each hole so far, as text.
        nats: The log-probability of that.
        calls: Network calls so far.
    """

    template: Template
    key: tuple[int | str, ...]
    parts: list[list[int]]
    leads: list[Lead | None]
    spans: list[str] = field(default_factory=list)
    nats: float = 0.0
    calls: int = 0

    @property
    def holes(self) -> list[int]:
        """Which parts are holes."""
        return [*holes_of(self.template)]


@dataclass(frozen=True)
class _Asked:
    """A hole of a text as the model sees it.

    Attributes:
        text: The text.
        place: Which part of it.
        hole: The hole, with no more tokens than fit.
        lead: What it begins with that is no part of it.
        before: The ids of all that stands before it.
        given: The ids that it is written behind.
        start: Where the text begins in these, behind special tokens.
    """

    text: _Text
    place: int
    hole: Hole
    lead: Lead | None
    before: list[int]
    given: list[int]
    start: int

    @property
    def fewest(self) -> int:
        """The fewest tokens that are written, the lead's own with them."""
        return self.hole.tokens + own_of(self.lead)

    @property
    def most(self) -> int:
        """The most of them."""
        return self.hole.lengths[-1] + own_of(self.lead)

    def task(
        self,
        rule: Rule | Verified,
        written: Sequence[int],
        masks: Sequence[int],
        ends: Sequence[int],
        first: Automaton | None,
    ) -> Task:
        """What is written behind what was written of it already."""
        given = [*self.given, *written]
        ids = [*given, *masks]
        place = range(len(given), len(ids))
        canvas = Canvas(ids, [i in place for i in range(len(ids))], [place], self.start, (None,))
        held = () if first is None or written else (Held(place[:1], first),)
        return Task(canvas, rule, (*self.text.key, len(self.text.spans), "rest" if ends else "first"), (*ends,), held)


@dataclass(frozen=True)
class MiddleFiller:
    """Fills holes by the next tokens of one model.

    A model with sentinels reads what stands before a hole and then what stands behind it, up to the next hole, and
    writes the middle behind both (2207.14255). A middle of unknown length ends by the end of text. Without sentinels,
    a hole is filled from the left alone.

    Attributes:
        layout: How texts become rows.
        sentinels: The model's sentinels; None to read what stands before a hole alone.
        rule: How so many tokens are written.
        write: (tasks, whether a text may end) -> rows written in batches.
        score: (canvases, whether a text may end) -> the exact log-likelihood of each.
        end_ids: The ids that end a text.
        seed: An alternative depends on the seed, its text's number and its own number alone.
        batch_size: Texts written side by side.
    """

    layout: Layout
    sentinels: Sentinels | None
    rule: Callable[[int], Rule | Verified]
    write: Callable[[Sequence[Task], bool], Iterator[Written]]
    score: Callable[[Sequence[Canvas], bool], Iterator[Score]]
    end_ids: tuple[int, ...]
    seed: int
    batch_size: int

    def fill(self, templates: Mapping[int, Template], num: int) -> Iterator[list[Infilling]]:
        """Fills texts, and gives each as soon as it and those before it are filled.

        Args:
            templates: The texts, under the numbers that their noise follows from.
            num: How many alternatives of each.

        Returns:
            An iterator over the alternatives of each text, the most likely first.

        Raises:
            DataError: A hole does not fit the context.
            ConfigError: The sampler asks for what next tokens cannot do.
        """
        for template in templates.values():
            self.check(template)
        self.rule(1)
        given = [[id_ for part in self._text(template, ()).parts for id_ in part] for template in templates.values()]
        self.layout.warn_of_unseen([Canvas(ids, [False] * len(ids), []) for ids in given])
        return self._fill(templates, num)

    def check(self, template: Template) -> None:
        """Refuses a text with a hole that does not fit the context, or that next tokens do not fill.

        Args:
            template: Texts and holes.

        Raises:
            DataError: There is one, or one that is held to an expression or to choices.
        """
        if any(hole.pattern is not None for hole in holes_of(template).values()):
            raise DataError(
                "a span is held to an expression or to choices by its masks, and this model fills in the middle by "
                "next tokens: leave them out"
            )
        for hole, lead in zip(holes_of(template).values(), self.layout.leads(template), strict=True):
            if hole.tokens + own_of(lead) > self._room:
                raise DataError(
                    f"a span of {hole.tokens + own_of(lead)} tokens does not fit the context of "
                    f"{self.layout.sidecar.context}, which has room for {self._room} beside its special tokens"
                )

    def fitting(self, template: Template) -> Template:
        """The text with holes that have no more tokens than the context has room for.

        Args:
            template: Texts and holes, of which `check` refuses none.

        Returns:
            The same where all fit.
        """
        text = self._text(template, ())
        holes = {place: self._asked(text, place).hole for place in text.holes}
        return tuple(holes.get(place, part) for place, part in enumerate(template))

    def nats(self, templates: Sequence[Template], spans: Sequence[Sequence[Sequence[int]]]) -> list[float]:
        """The exact log-probability of given spans, each hole after those before it.

        Args:
            templates: Texts with holes of known length.
            spans: The ids of each hole of each, its lead with them.

        Returns:
            Nats a text.
        """
        texts = [self._text(template, ()) for template in templates]
        for number in range(max(len(text.holes) for text in texts)):
            open_texts = [(text, ids) for text, ids in zip(texts, spans, strict=True) if number < len(text.holes)]
            asked = [self._asked(text, text.holes[number]) for text, _ in open_texts]
            self._take(asked, [[*ids[number]] for _, ids in open_texts], open_ended=False)
        return [text.nats for text in texts]

    @property
    def _room(self) -> int:
        """Tokens of a row that may be text."""
        beside = BESIDE if self.sentinels else 0
        return self.layout.sidecar.context - len(self.layout.sidecar.affixes.prefix) - beside

    def _fill(self, templates: Mapping[int, Template], num: int) -> Iterator[list[Infilling]]:
        for batch in in_batches([*templates.items()], max(1, self.batch_size // num)):
            texts = [
                self._text(template, (self.seed, "middle", place, number))
                for place, template in batch
                for number in range(num)
            ]
            for number in range(max(len(text.holes) for text in texts)):
                self._fill_holes([text for text in texts if number < len(text.holes)], number)
            for group in in_batches(texts, num):
                yield sorted(map(_infilling, group), key=lambda one: -one.log_likelihood)

    def _text(self, template: Template, key: tuple[int | str, ...]) -> _Text:
        parts = self.layout.parts(template)
        return _Text(template, key, parts.ids, parts.leads)

    def _first(self, asked: _Asked) -> Automaton | None:
        """What a hole with a lead may begin with."""
        if asked.lead is None:
            return None
        assert self.layout.spelling is not None
        return self.layout.spelling.beginning(asked.lead.text, asked.fewest)[1]

    def _fill_holes(self, texts: Sequence[_Text], number: int) -> None:
        """Fills the next hole of some texts."""
        asked = [self._asked(text, text.holes[number]) for text in texts]
        for open_ended in (False, True):
            part = [each for each in asked if (each.hole.most is not None) == open_ended]
            written = self._written(part, [[] for _ in part], [each.fewest for each in part], ends=False)
            if open_ended:
                left = [each.most - each.fewest for each in part]
                written = self._written(part, written, left, ends=True)
            self._take(part, written, open_ended=open_ended)

    def _written(
        self, asked: Sequence[_Asked], before: Sequence[list[int]], counts: Sequence[int], *, ends: bool
    ) -> list[list[int]]:
        """What was written of some holes and so many tokens more, or fewer where they end."""
        mask_id, found = self.layout.sidecar.mask_id, [[*ids] for ids in before]
        wanted = [i for i, count in enumerate(counts) if count]
        stops = self.end_ids if ends else ()
        tasks = [
            asked[i].task(self.rule(counts[i]), before[i], [mask_id] * counts[i], stops, self._first(asked[i]))
            for i in wanted
        ]
        rows = (
            (task, ids, calls)
            for batch in self.write(tasks, ends)
            for task, ids, calls in zip(batch.tasks, batch.x_BL.tolist(), batch.calls, strict=True)
        )
        for i, (task, ids, calls) in zip(wanted, rows, strict=True):
            (place,) = task.canvas.holes
            new = ids[place.start : place.stop]
            stop = next((at for at, id_ in enumerate(new) if id_ in task.stop_ids), None)
            found[i] += new[:stop]
            asked[i].text.calls += calls
        return found

    def _take(self, asked: Sequence[_Asked], written: Sequence[list[int]], *, open_ended: bool) -> None:
        """Puts what was written into the texts, with the likelihood of how it was drawn.

        The fewest tokens of a hole are drawn where no end may be, those beyond where one may, and an end where there
        was room for one token more.
        """
        fewest = [each.fewest if open_ended else len(ids) for each, ids in zip(asked, written, strict=True)]
        firsts = [ids[:count] for ids, count in zip(written, fewest, strict=True)]
        nats = self._nats([each.given for each in asked], firsts, ends=False)
        if open_ended:
            givens = [[*each.given, *first] for each, first in zip(asked, firsts, strict=True)]
            rests = [
                [*ids[count:], *self.end_ids[:1][: each.most - len(ids)]]
                for each, ids, count in zip(asked, written, fewest, strict=True)
            ]
            nats = [a + b for a, b in zip(nats, self._nats(givens, rests, ends=True), strict=True)]
        for each, ids, added in zip(asked, written, nats, strict=True):
            text, place = each.text, each.place
            before = "".join(_text_before(text, place))
            behind = next((part for part in text.template[place + 1 : place + 2] if isinstance(part, str)), "")
            row, hole = [*each.before, *ids], range(len(each.before), len(each.before) + len(ids))
            text.spans.append(written_text(self.layout.tokenizer, row, hole, before, behind, each.lead))
            text.parts[place], text.nats = ids, text.nats + added

    def _nats(self, givens: Sequence[list[int]], scored: Sequence[list[int]], *, ends: bool) -> list[float]:
        """The log-probability of some ids behind others, of which an end may be one or may not."""
        canvases = [
            Canvas([*given, *ids], [i >= len(given) for i in range(len(given) + len(ids))], [])
            for given, ids in zip(givens, scored, strict=True)
        ]
        return [*certain_if_empty(canvases, lambda asked: (each.log_likelihood for each in self.score(asked, ends)))]

    def _asked(self, text: _Text, place: int) -> _Asked:
        """A hole, and as much of what stands beside it as the context has room for."""
        hole, lead = text.template[place], text.leads[place]
        assert isinstance(hole, Hole)
        before = [id_ for part in text.parts[:place] for id_ in part]
        beside = text.template[place + 1 : place + 2]
        behind = text.parts[place + 1] if self.sentinels and any(isinstance(part, str) for part in beside) else []
        if hole.most is not None:
            kept = min(REACH, len(before)) + min(REACH, len(behind))
            hole = Hole(hole.tokens, max(hole.tokens, min(hole.most, self._room - kept - own_of(lead))))
        room = self._room - hole.lengths[-1] - own_of(lead)
        left = min(len(before), max(room // 2, room - len(behind)))
        seen, after = before[len(before) - left :], behind[: room - left]
        prefix = [*self.layout.sidecar.affixes.prefix]
        row = seen if self.sentinels is None else self.sentinels.before_middle(seen, after)
        return _Asked(text, place, hole, lead, before, [*prefix, *row], len(prefix))


def _text_before(text: _Text, place: int) -> Iterator[str]:
    """What stands before a hole, the holes before it filled."""
    spans = iter(text.spans)
    for part in text.template[:place]:
        yield part if isinstance(part, str) else next(spans)


def _infilling(text: _Text) -> Infilling:
    written = tuple(tuple(text.parts[place]) for place in text.holes)
    lengths = tuple(len(text.parts[place]) - own_of(text.leads[place]) for place in text.holes)
    spans = tuple(text.spans)
    return Infilling(fill(text.template, spans), spans, written, lengths, text.nats, text.calls)
