"""The texts that a hole may have: expressions and choices as languages of a model's tokens."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dlm.diffusion.automaton import Automaton
from dlm.diffusion.constrain import Held
from dlm.diffusion.process import Process
from dlm.errors import ConfigError, DataError, shortened
from dlm.lm.canvas import Canvas, beside, given_text, written_spans
from dlm.lm.layout import Layout
from dlm.lm.parts import Lead
from dlm.model.expressions import compile_expression
from dlm.model.spelling import Spelling
from dlm.model.text import encode
from dlm.plain import counted
from dlm.template import Hole, Template, holes_of


@dataclass(frozen=True)
class Languages:
    """The languages of holes, in the tokens of one model.

    Attributes:
        layout: How texts become rows.
        process: The forward process.
        spelling: What the tokens spell that holes are written with.
    """

    layout: Layout
    process: Process
    spelling: Spelling

    def resolved(self, template: Template) -> Template:
        """A template whose holes have no length that their languages do not.

        Args:
            template: Texts and holes.

        Returns:
            The same for holes of any text.

        Raises:
            DataError: A hole has no text of its language, or the holes and what stands between them do not fit the
                context.
            ConfigError: The model's noise is not masks alone, or what its tokens spell is not known.
        """
        if all(isinstance(part, str) or part.pattern is None for part in template):
            self.layout.holes(template)
            return template
        if not self.process.absorbing:
            raise ConfigError(
                f"an expression or choices say what masks may become, and this model's noise is "
                f"{self.process.noise.name}: give the spans their tokens alone, as in [MASK:12]"
            )
        canvas = self.layout.holes(_shortest(template))
        number, found = 0, list[str | Hole]()
        for part in template:
            if isinstance(part, Hole):
                if part.pattern is not None:
                    self._check_choices(part)
                    automaton = self._automaton(part, template, canvas, number)
                    part = self._possible(part, automaton, led=canvas.leads[number] is not None)
                number += 1
            found.append(part)
        self.layout.holes(tuple(found))
        return tuple(found)

    def held(self, template: Template, canvas: Canvas) -> tuple[Held, ...] | None:
        """The spans of a row that are held to languages, or begin with the end of the text before them.

        Args:
            template: The text with holes of known length.
            canvas: What was made of it.

        Returns:
            Its spans; None where a language has no string of as many tokens in its place.
        """
        held: list[Held] = []
        for number, (part, places) in enumerate(zip(_holes(template), canvas.holes, strict=True)):
            if part.pattern is None:
                held += self._led(canvas, number)
                continue
            automaton = self._fitting(part, template, canvas, number)
            if automaton is None:
                return None
            held.append(Held(places, automaton))
        return tuple(held)

    def suits(self, template: Template, canvas: Canvas, number: int) -> bool:
        """Whether a hole has a text of its tokens where it stands.

        Args:
            template: The text with holes of known length.
            canvas: What was made of it.
            number: Which of the holes it is.

        Returns:
            Whether its language has a string of as many tokens; of a hole of any text, yes.
        """
        part = _holes(template)[number]
        return part.pattern is None or self._fitting(part, template, canvas, number) is not None

    def led(self, canvas: Canvas) -> tuple[Held, ...]:
        """The spans of a row that begin with the end of the text before them."""
        return tuple(held for number in range(len(canvas.holes)) for held in self._led(canvas, number))

    def _led(self, canvas: Canvas, number: int) -> Sequence[Held]:
        """How a span is held to its lead, if it has one."""
        if (lead := canvas.leads[number]) is None:
            return ()
        span = canvas.spans[number]
        count, automaton = self.spelling.beginning(lead.text, len(span))
        return (Held(span[:count], automaton),)

    def enumerated(self, template: Template, most: int) -> Sequence[tuple[Template, Canvas]] | None:
        """All ways of filling the holes of a text with their choices, each by the tokens that its text has.

        Args:
            template: Texts and holes.
            most: How many ways are enumerated at most.

        Returns:
            The text with its chosen holes, and the row with their ids, for all ways of lengths that the holes may have;
            None where there is no such way, where a hole is no choice, where there are too many ways, or where a choice
            would be written otherwise.
        """
        ways = 1
        for hole in _holes(template):
            ways *= len(hole.choices)
        if not 1 <= ways <= most:
            return None
        found = []
        canvas = self.layout.holes(_shortest(template))
        leads = canvas.leads
        for chosen in itertools.product(*(hole.choices for hole in _holes(template))):
            row = next(self._rows(template, chosen, leads), None)
            if row is None:
                return None
            found.append(row)
        lengths = [hole.lengths for hole in _holes(template)]
        fitting = [
            (whole, row)
            for whole, row in found
            if all(len(places) in known for places, known in zip(row.holes, lengths, strict=True))
        ]
        return fitting or None

    def check_all_chosen(self, template: Template, ways: Sequence[Template]) -> None:
        """Refuses a choice that no way of filling a text has, since nothing around it could be read.

        Args:
            template: Texts and holes of choices.
            ways: The ways that are scored; see `enumerated`.

        Raises:
            DataError: There is one.
        """
        for number, hole in enumerate(_holes(template)):
            chosen = {text for way in ways for text in _holes(way)[number].choices}
            if left_out := next((choice for choice in hole.choices if choice not in chosen), None):
                raise DataError(
                    f"choice {shortened(repr(left_out), 60)} leaves no room to read the text around it in the context "
                    f"of {self.layout.sidecar.context} tokens: leave it out"
                )

    def _rows(
        self, template: Template, chosen: Sequence[str], leads: Sequence[Lead | None]
    ) -> Iterator[tuple[Template, Canvas]]:
        """The rows whose holes are written as they should: with a blank before them where the decoder takes it."""
        tokenizer = self.layout.tokenizer
        first = isinstance(template[0], Hole)
        for blank in itertools.product(*(("", " ") if lead is None else (lead.text,) for lead in leads)):
            spelled = [
                encode(tokenizer, [before + text], continues=number > 0 or not first)[0]
                for number, (before, text) in enumerate(zip(blank, chosen, strict=True))
            ]
            if any(set(ids) - self.spelling.bytes_of.keys() for ids in spelled):
                continue
            following = iter(zip(spelled, chosen, strict=True))
            whole: Template = tuple(part if isinstance(part, str) else _chosen(*next(following)) for part in template)
            canvas = self.layout.holes(tuple(whole))
            row = canvas.written(spelled)
            if written_spans(whole, tokenizer, row) == tuple(chosen):
                yield whole, row

    def _fitting(self, hole: Hole, template: Template, canvas: Canvas, number: int) -> Automaton | None:
        """The language of a hole, by number, where it stands; None where that has no string of its tokens."""
        automaton, tokens = self._automaton(hole, template, canvas, number), len(canvas.holes[number])
        return automaton if tokens in automaton.lengths(tokens) else None

    def _automaton(self, hole: Hole, template: Template, canvas: Canvas, number: int) -> Automaton:
        """The language of a hole, by number, where it stands."""
        assert hole.pattern is not None
        place = [*holes_of(template)][number]
        before, _ = beside(template, place)
        begins = canvas.holes[number].start == canvas.start
        if (lead := canvas.leads[number]) is not None:
            return self.spelling.automaton(hole.pattern, lead=lead.text)
        seen = given_text(self.layout.tokenizer, canvas, canvas.holes[number])
        taken = before[-1:].isspace() and not seen[-1:].isspace()
        return self.spelling.automaton(hole.pattern, stripped=taken or (begins and self.spelling.strips))

    def _check_choices(self, hole: Hole) -> None:
        """Refuses a choice that no tokens spell, or that is longer than the context: it would never be chosen."""
        tokenizer, known = self.layout.tokenizer, self.spelling.bytes_of.keys()
        context = self.layout.sidecar.context
        for choice in hole.choices:
            spelled = [encode(tokenizer, [blank + choice], continues=True)[0] for blank in ("", " ")]
            named = f"choice {shortened(repr(choice), 60)}"
            if all(set(ids) - known for ids in spelled):
                raise DataError(f"{named} has characters that this model cannot write; leave it out")
            if (tokens := min(map(len, spelled))) > context:
                raise DataError(
                    f"{named} takes {tokens} tokens, and the context of this model is {context}: leave it out"
                )

    def _possible(self, hole: Hole, automaton: Automaton, *, led: bool) -> Hole:
        """The hole with the lengths that its language has; an empty one has no lead."""
        possible = automaton.lengths(max(hole.lengths))
        if led and compile_expression(hole.pattern or "").accepts(""):
            possible = [0, *possible]
        lengths = tuple(length for length in possible if length in hole.lengths)
        if not lengths:
            context = self.layout.sidecar.context
            known = automaton.lengths(context)
            takes = f"more than the {context} of the context"
            if known:
                takes = f"{known[0]} at least" if known[-1] == context else _least_and_most(known)
            named = f"/{shortened(hole.pattern or '', 60)}/"
            raise DataError(
                f"no text of {_least_and_most(hole.lengths)} matches {named}, which takes {takes}: let the span have "
                "other lengths"
            )
        return replace(hole, tokens=lengths[0], most=lengths[-1] if len(lengths) > 1 else None, among=lengths)


def _chosen(ids: Sequence[int], text: str) -> Hole:
    """A hole of one text."""
    return Hole(len(ids), choices=(text,))


def _shortest(template: Template) -> Template:
    """A text with holes of as few tokens as they may have, and those that are held to a language not empty."""
    return tuple(
        replace(part, tokens=max(part.tokens, part.pattern is not None), most=None) if isinstance(part, Hole) else part
        for part in template
    )


def _holes(template: Template) -> Sequence[Hole]:
    return [*holes_of(template).values()]


def _least_and_most(lengths: Sequence[int]) -> str:
    """How many tokens ascending lengths are, in words."""
    least, most = lengths[0], lengths[-1]
    return counted(most, "token") if least == most else f"{least} to {most} tokens"
