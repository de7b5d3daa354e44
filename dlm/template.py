"""Text with holes: `[MASK:12]` is a span of twelve tokens, `[MASK:3-12]` of three to twelve, `[MASK]` of any length.

`[MASK:/[0-9]{4}/]` is a span that an expression matches, `[MASK:2-4:/[0-9]{4}/]` one of two to four tokens.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dlm.errors import ConfigError, DataError, shortened

LONGEST = 32
"""The most tokens of a hole of any length, where nothing else is asked for."""


@dataclass(frozen=True)
class Hole:
    """A span to be written.

    Attributes:
        tokens: How many tokens it has, or how many at least.
        most: How many at most; None for exactly `tokens`.
        expression: What matches it, all of it, as Python's `re.fullmatch` does; None for any text.
        choices: The texts of which it is one; none for any text.
        among: The only lengths from `tokens` to `most` that it may have; None for all of them.
    """

    tokens: int
    most: int | None = None
    expression: str | None = None
    choices: tuple[str, ...] = ()
    among: tuple[int, ...] | None = None

    @property
    def lengths(self) -> Sequence[int]:
        """How many tokens it may have."""
        return self.among or range(self.tokens, (self.tokens if self.most is None else self.most) + 1)

    @property
    def may_be_empty(self) -> bool:
        """Whether it may have no tokens."""
        return 0 in self.lengths

    @property
    def is_empty(self) -> bool:
        """Whether it has none."""
        return self.tokens == 0 and self.most is None

    @property
    def pattern(self) -> str | None:
        """The expression of its language: its own, or one of its choices; None for any text."""
        return "|".join(map(re.escape, self.choices)) if self.choices else self.expression


Template = tuple[str | Hole, ...]
"""Texts and holes in reading order; the texts are never changed."""


def parse_template(
    text: str, marker: str = "MASK", longest: int = LONGEST, choices: Sequence[str] | None = None
) -> Template:
    r"""Splits a text at its holes.

    A backslash before a hole makes it literal: `\[MASK:3]` stands for the text `[MASK:3]`, and `\\[MASK:3]`
    for one backslash and a hole. A slash within an expression is written `\/`.

    Args:
        text: Text with at least one hole.
        marker: The word before the colon.
        longest: The most tokens of a hole that says no length; of choices, each has its own.
        choices: The texts that a hole which says nothing may have; None for any.

    Returns:
        The parts; putting them together again gives `text` with its escapes resolved.

    Raises:
        ConfigError: The marker has blanks, colons or brackets, or is empty.
        DataError: There is no hole; the length of one is no number of tokens and no range, or its expression has no
            end; or there are choices, and no hole that says nothing, or a choice is empty.
    """
    if not re.fullmatch(r"[^\s\[\]:]+", marker):
        raise ConfigError(f"--marker is a word without blanks, colons and brackets, got {marker!r}")
    plain = Hole(1, longest) if choices is None else _one_of(choices)
    parts: list[str | Hole] = []
    literal, end = "", 0
    for found in _marked(marker).finditer(text):
        slashes = found[1]
        literal += text[end : found.start()] + "\\" * (len(slashes) // 2)
        end = found.end()
        if len(slashes) % 2:
            literal += found.group(0).lstrip("\\")
            continue
        size, expression = found["lengths"] or found["size"], found["expression"]
        if found["late"] is not None:
            mended = _written(marker, size or found["late"], expression)
            raise DataError(f"{found.group(0)[len(slashes) :]} has a length behind its expression: write {mended}")
        says_nothing = size is None and expression is None
        parts += [literal, plain if says_nothing else _hole(size, expression, marker, longest)]
        literal = ""
    parts.append(literal + text[end:])
    if len(parts) == 1:
        begun = f"; [{marker}:/ begins an expression, which /] ends" if f"[{marker}:/" in text else ""
        meant = "".join(f"; {shortened(repr(each), 40)} is none" for each in mistaken(text, marker)[:1])
        raise DataError(f"nothing to fill: the text has no span such as [{marker}:12] or [{marker}]{begun or meant}")
    if choices is not None and plain not in parts:
        raise DataError(
            f"choices are for spans that say nothing else: the text has no plain [{marker}]; write it where one of "
            "them is to stand"
        )
    return tuple(part for part in parts if part != "")


def mistaken(text: str, marker: str = "MASK") -> list[str]:
    """What looks like a hole and is none: with other capitals or blanks, without the colon, or not closed.

    A backslash before it says that it is meant as it stands. So does a name or a bracket, as in `x[mask]`, unless a
    length stands behind a blank or a colon in it.

    Args:
        text: Text, with holes or without.
        marker: As for `parse_template`, which keeps all of these as they are.

    Returns:
        Each of them as it stands.
    """
    outside = _marked(marker).sub(lambda hole: " " * len(hole.group(0)), text)
    rest = (
        r"(?P<length>[ \t]*[ \t:][ \t]*[0-9][^\[\]\n]{0,40})"
        r"|-?[0-9][^\[\]\n]{0,40}|[ \t]*:[ \t]*/[^\[\]\n]{0,40}|[ \t]*:?[ \t]*(?=\]|$)"
    )
    found = []
    for near in re.finditer(rf"\[[ \t]*(?i:{re.escape(marker)})(?:{rest})\]?", outside, re.MULTILINE):
        before, behind = outside[max(near.start() - 1, 0) : near.start()], outside[near.end() : near.end() + 1]
        is_code = re.fullmatch(r"[\w)\]]", before) or behind == "("
        if before != "\\" and (near["length"] or not is_code):
            found.append(near.group(0).rstrip())
    return found


def _marked(marker: str) -> re.Pattern[str]:
    """All that is written as a hole, with the backslashes before it."""
    return re.compile(rf"(\\*)\[{re.escape(marker)}(?::{_EXPRESSION}|:(?P<size>[^\]\n]*))?\]")


def exact(template: Template, lengths: Iterable[int]) -> Template:
    """A template whose holes have these lengths."""
    following = iter(lengths)
    return tuple(
        replace(part, tokens=next(following), most=None, among=None) if isinstance(part, Hole) else part
        for part in template
    )


def holes_of(parts: Iterable[str | Hole]) -> dict[int, Hole]:
    """The holes among the parts of a text, each by its place among them, in reading order."""
    return {place: part for place, part in enumerate(parts) if isinstance(part, Hole)}


def is_open(template: Template) -> bool:
    """Whether a hole of a template may have several lengths."""
    return any(hole.most is not None for hole in holes_of(template).values())


def has_choices(template: Template) -> bool:
    """Whether a hole of a template has texts to choose from."""
    return any(hole.choices for hole in holes_of(template).values())


_EXPRESSION = (
    r"(?:(?P<lengths>[^\]\n/]*):)?/(?P<expression>(?:[^/\\\n]|\\[^\n])*)/(?::(?P<late>[0-9]{1,9}(?:-[0-9]{1,9})?))?"
)
"""A length, or none, and an expression between slashes; a backslash keeps what follows it within the expression.

A length behind the expression is taken in, to be told where it belongs.
"""


def _hole(size: str | None, expression: str | None, marker: str, longest: int) -> Hole:
    """The hole of a marker that says so many tokens, a range of them, or what matches it, or both."""
    if size is None:
        return Hole(0, longest, expression)
    found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", size)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if most < max(least, 1):
        if within := re.fullmatch(r"(?:([0-9-]*):)?/(.*)(?<!\\)/(?::([0-9-]+))?", size):
            raise DataError(
                f"[{marker}:{size}] has a slash within its expression, which would end it: write "
                f"{_written(marker, within[1] or within[3], within[2])}"
            )
        if expression is None and "/" in size:
            raise DataError(
                f"[{marker}:{size}] begins an expression that does not end: close it by /], as in [{marker}:/[0-9]+/], "
                r"and write a slash within it as \/"
            )
        if 0 < most < least:
            rest = "" if expression is None else f":/{expression}/"
            raise DataError(
                f"[{marker}:{size}{rest}] is a range that ends before it begins: write [{marker}:{most}-{least}{rest}]"
            )
        raise DataError(
            f"[{marker}:{size}] is no span: write a number of tokens, of at least 1 and at most nine digits, as in "
            f"[{marker}:12], a range, as in [{marker}:3-12], or [{marker}] for any length"
        )
    return Hole(least, None if least == most else most, expression)


def _written(marker: str, size: str | None, expression: str) -> str:
    """A hole of a length, or of any, that an expression matches, as it should be written."""
    lengths = sorted(map(int, re.findall(r"[0-9]{1,9}", size or "")))
    said = f"{'-'.join(map(str, lengths))}:" if any(lengths) else ""
    escaped = re.sub(r"(?<!\\)/", r"\/", expression)
    return f"[{marker}:{said}/{escaped}/]"


def _one_of(choices: Sequence[str]) -> Hole:
    """The hole that has one of some texts: of as many tokens as they may take, a byte each and a blank before them."""
    if not choices or "" in choices:
        raise DataError(f"choices are texts such as yes,no and none of them is empty, got {','.join(choices)!r}")
    return Hole(
        1, 1 + max(len(each.encode(errors="replace")) for each in choices), choices=tuple(dict.fromkeys(choices))
    )
