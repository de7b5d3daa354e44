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
from dlm.lm.parts import Lead, own_of
from dlm.model.expressions import compile_expression
from dlm.model.spelling import Spelling
from dlm.model.text import encode
from dlm.plain import counted
from dlm.template import Hole, Template, has_choices, holes_of


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
                    self._check_choices(part, canvas.leads[number])
                    automaton = self._automaton(part, template, canvas, number)
                    part = self._possible(part, automaton, led=canvas.leads[number] is not None)
                number += 1
            found.append(part)
        resolved = tuple(found)
        self.layout.holes(resolved)
        if has_choices(resolved):
            self._check_room(resolved, canvas.leads)
        return resolved

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
            try:
                row = next(self._rows(template, chosen, leads), None)
            except DataError:  # they are too long together
                continue
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

    def _check_choices(self, hole: Hole, lead: Lead | None) -> None:
        """Refuses a choice that no tokens spell, or that is longer than the context: it would never be chosen."""
        known = self.spelling.bytes_of.keys()
        for choice in hole.choices:
            if all(set(ids) - known for ids in self._spelled(choice, lead)):
                raise DataError(
                    f"choice {shortened(repr(choice), 60)} has characters that this model cannot write; leave it out"
                )
            if (tokens := self._tokens(choice, lead)) > self.layout.sidecar.context:
                raise DataError(
                    f"choice {shortened(repr(choice), 60)} takes {tokens} tokens, and the context of this model is "
                    f"{self.layout.sidecar.context}: leave it out"
                )

    def _check_room(self, template: Template, leads: Sequence[Lead | None]) -> None:
        """Refuses a choice for which there is no room where the other holes are as short as may be."""
        spare = self.layout.spare(template)
        for hole, lead in zip(_holes(template), leads, strict=True):
            for choice in hole.choices:
                if (tokens := self._tokens(choice, lead)) > hole.tokens + spare:
                    raise DataError(
                        f"choice {shortened(repr(choice), 60)} takes {tokens} tokens, and beside the text around it "
                        f"the context of {self.layout.sidecar.context} has room for {hole.tokens + spare}: leave it out"
                    )

    def _tokens(self, choice: str, lead: Lead | None) -> int:
        """How many tokens a choice takes where it stands."""
        return min(map(len, self._spelled(choice, lead))) - own_of(lead)

    def _spelled(self, choice: str, lead: Lead | None) -> list[list[int]]:
        """The ids that a choice may have where it stands, its lead with it; where it has none, maybe a blank."""
        blanks = ("", " ") if lead is None else (lead.text,)
        return [encode(self.layout.tokenizer, [blank + choice], continues=True)[0] for blank in blanks]

    def _possible(self, hole: Hole, automaton: Automaton, *, led: bool) -> Hole:
        """The hole with the lengths that its language has; an empty one has no lead."""
        possible = automaton.lengths(max(hole.lengths))
        if led and compile_expression(hole.pattern or "").accepts(""):
            possible = [0, *possible]
        lengths = tuple(length for length in possible if length in hole.lengths)
        if not lengths:
            least, most = hole.lengths[0], hole.lengths[-1]
            asked = counted(most, "token") if least == most else f"{least} to {most} tokens"
            raise DataError(
                f"no text of {asked} matches /{shortened(hole.pattern or '', 60)}/{self._nearest(automaton, hole)}: "
                "let the span have other lengths"
            )
        return replace(hole, tokens=lengths[0], most=lengths[-1] if len(lengths) > 1 else None, among=lengths)

    def _nearest(self, automaton: Automaton, hole: Hole) -> str:
        """The lengths of a language that are nearest to those of a hole, in words."""
        known = automaton.lengths(self.layout.sidecar.context)
        if not known:
            return f", which takes more than the {self.layout.sidecar.context} of the context"
        shorter = [length for length in known if length < hole.lengths[0]][-1:]
        longer = [length for length in known if length > hole.lengths[-1]][:1]
        *fewer, last = [*shorter, *longer]
        tokens = f"{fewer[0]} or {last} tokens" if fewer else counted(last, "token")
        return f", and the nearest that does has {tokens}"


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
