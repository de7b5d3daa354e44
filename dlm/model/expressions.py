"""Regular expressions as automata over the bytes of UTF-8: exactly what Python's `re.fullmatch` accepts.

Python's own parser reads an expression, and Python's own matcher says which characters a class holds. What is between,
from the parsed expression to a minimal deterministic automaton, is the textbook's: Thompson's construction, subsets,
and Moore's refinement. (Automata that search for the first match, as those of Rust's `regex` do, do not serve: in
`a|ab` they never reach `ab`.)
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from re import _compiler, _constants, _parser  # type: ignore[attr-defined]
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm.errors import DataError, shortened

MOST_STATES = 2000
"""The states of an automaton at most; `.{0,500}` has 501, and some for characters of several bytes."""

MOST_WORK = 2**20
"""The states of all subsets together that are looked at before an expression is found too large."""

_CHARACTERS = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
_OUTSIDE = {
    "AT": "^, $, \\b and other anchors",
    "ASSERT": "lookahead and lookbehind",
    "GROUPREF": "references to groups",
}
_OUTSIDE |= {"ASSERT_NOT": _OUTSIDE["ASSERT"], "GROUPREF_EXISTS": _OUTSIDE["GROUPREF"]}
_OUTSIDE |= {"POSSESSIVE_REPEAT": "possessive repeats", "ATOMIC_GROUP": "atomic groups"}


@dataclass(frozen=True)
class ByteAutomaton:
    """A deterministic automaton over bytes, with as few states as its language allows.

    Attributes:
        next_SB: The state after each of the 256 bytes in each state. One state that accepts nothing may be among them.
        accepting_S: Whether a text may end in a state.
        start: The state before the first byte.
    """

    next_SB: NDArray[np.int64]
    accepting_S: NDArray[np.bool_]
    start: int

    def accepts(self, text: str) -> bool:
        """Whether a text is in the language."""
        state = self.start
        for byte in text.encode():
            state = int(self.next_SB[state, byte])
        return bool(self.accepting_S[state])

    def behind(self, text: str, *, empty: bool = True) -> "ByteAutomaton":
        """The language of the same texts behind another, which begins each of them.

        Args:
            text: What begins them.
            empty: Whether it may stand alone, where the empty text is one of these.

        Returns:
            The automaton.
        """
        lead, states = text.encode(), len(self.accepting_S)
        nothing = states + len(lead) + 1
        next_SB = np.full((nothing + 1, 256), nothing)
        next_SB[:states] = self.next_SB
        for place, byte in enumerate(lead, states):
            next_SB[place, byte] = place + 1
        after = nothing - 1  # behind the lead
        next_SB[after] = self.next_SB[self.start]
        accepting_S = np.append(self.accepting_S, np.zeros(len(lead) + 2, dtype=np.bool_))
        accepting_S[after] = empty and self.accepting_S[self.start]
        return ByteAutomaton(next_SB, accepting_S, states)


@lru_cache(maxsize=64)
def compile_expression(expression: str) -> ByteAutomaton:
    """The automaton of an expression.

    Args:
        expression: In the syntax of Python's `re`, without what no automaton knows: lookaround and references to
            groups, and without anchors, possessive repeats and atomic groups.

    Returns:
        What accepts the texts that `re.fullmatch` matches.

    Raises:
        DataError: It is no expression, or has what no automaton knows, or needs too many states, or matches nothing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of nested sets, which mean nothing special yet
            tree = _parser.parse(expression)
        builder = _Builder(shortened(expression, 60))
        last = builder.add(tree, builder.new(), tree.state.flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise DataError(f"/{shortened(expression, 60)}/ is no regular expression: {error}") from error
    found = _minimal(*builder.subsets(last))
    if len(found.accepting_S) > MOST_STATES:
        raise builder.too_large()
    if not found.accepting_S.any():
        raise DataError(f"/{shortened(expression, 60)}/ matches no text")
    return found


class _Builder:
    """A non-deterministic automaton, grown from state 0 on."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.steps: list[dict[int, int]] = []  # by bytes; each is one, as classes are deterministic
        self.jumps: list[list[int]] = []  # without a byte
        self.classes: dict[tuple[str, int], _Tail] = {}

    def new(self) -> int:
        """One more state."""
        if len(self.steps) >= 100 * MOST_STATES:
            raise self.too_large()
        self.steps.append({})
        self.jumps.append([])
        return len(self.steps) - 1

    def add(self, nodes: Any, first: int, flags: int) -> int:
        """Appends nodes of a parsed expression behind a state, and gives the state after them."""
        for node in nodes:
            first = self._add(node, first, flags)
        return first

    def _add(self, node: tuple[Any, Any], first: int, flags: int) -> int:
        match str(node[0]), node[1]:
            case "SUBPATTERN", (_, more, fewer, inner):
                kept = flags & ~_parser.TYPE_FLAGS if more & _parser.TYPE_FLAGS else flags  # one of a, u and L alone
                return self.add(inner, first, (kept | more) & ~fewer)
            case "BRANCH", (_, ways):
                last = self.new()
                for way in ways:
                    begin = self.new()
                    self.jumps[first].append(begin)
                    self.jumps[self.add(way, begin, flags)].append(last)
                return last
            case (("MAX_REPEAT" | "MIN_REPEAT"), (least, most, inner)):
                return self._repeat(
                    int(least), None if most is _constants.MAXREPEAT else int(most), inner, first, flags
                )
            case name, _ if name in _OUTSIDE:
                raise DataError(
                    f"/{self.shown}/ has {_OUTSIDE[name]}, which a span cannot be held to: an expression matches the "
                    "whole span, and only it"
                )
        return self._character(node, first, flags)

    def _repeat(self, least: int, most: int | None, inner: Any, first: int, flags: int) -> int:
        for _ in range(least):
            first = self.add(inner, first, flags)
        last = self.new()
        self.jumps[first].append(last)
        if most is None:
            begin = self.new()
            self.jumps[first].append(begin)
            end = self.add(inner, begin, flags)
            self.jumps[end] += [begin, last]
            return last
        for _ in range(most - least):
            begin = self.new()
            self.jumps[first].append(begin)
            first = self.add(inner, begin, flags)
            self.jumps[first].append(last)
        return last

    def _character(self, node: tuple[Any, Any], first: int, flags: int) -> int:
        """One character of a class, by the bytes of UTF-8."""
        key = repr(node), flags
        if key not in self.classes:
            self.classes[key] = _bytes_of(_members(node, flags))
        last, made = self.new(), dict[int, int]()

        def state_of(tail: _Tail) -> int:
            if tail is None:
                return last
            if id(tail) not in made:  # equal tails are one object, and to compare them would take long
                made[id(tail)] = state = self.new()
                self.steps[state] = {byte: state_of(rest) for byte, rest in tail}
            return made[id(tail)]

        self.jumps[first].append(state_of(self.classes[key]))
        return last

    def subsets(self, last: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The deterministic automaton, from state 1 on; state 0 accepts nothing."""
        begin, work = self._closure([0]), 0
        number, todo = {frozenset[int](): 0, begin: 1}, [begin]
        rows: list[NDArray[np.int64]] = [np.zeros(256, dtype=np.int64)]
        while todo:
            together: dict[int, set[int]] = {}
            for state in todo.pop(0):
                for byte, target in self.steps[state].items():
                    together.setdefault(byte, set()).add(target)
            row = np.zeros(256, dtype=np.int64)
            closed: dict[frozenset[int], int] = {}
            for byte, targets in together.items():
                key = frozenset(targets)
                if key not in closed:
                    whole = self._closure(key)
                    work += len(whole)
                    if whole not in number:
                        if len(number) > 10 * MOST_STATES or work > MOST_WORK:
                            raise self.too_large()
                        number[whole] = len(number)
                        todo.append(whole)
                    closed[key] = number[whole]
                row[byte] = closed[key]
            rows.append(row)
        return np.stack(rows), np.array([last in states for states in number])

    def _closure(self, states: Sequence[int] | frozenset[int]) -> frozenset[int]:
        found, todo = set(states), [*states]
        while todo:
            for after in self.jumps[todo.pop()]:
                if after not in found:
                    found.add(after)
                    todo.append(after)
        # Where nothing but a jump leaves a state, it says nothing that those it leads to do not.
        return frozenset(state for state in found if self.steps[state] or not self.jumps[state])

    def too_large(self) -> DataError:
        """What is said of an automaton of too many states."""
        return DataError(
            f"/{self.shown}/ needs an automaton of more than {MOST_STATES} states: write it with smaller numbers of "
            "repeats, or with fewer characters, as in [a-z] or (?a:\\w)"
        )


def _minimal(next_SB: NDArray[np.int64], accepting_S: NDArray[np.bool_]) -> ByteAutomaton:
    """The automaton with as few states as can be: those that accept the same rests are one."""
    columns_SC, of_byte_B = np.unique(next_SB, axis=1, return_inverse=True)
    of_S, count = accepting_S.astype(np.int64), 0
    while (now := int(of_S.max()) + 1) > count:
        count = now
        signs_SX = np.concatenate([of_S[:, None], of_S[columns_SC]], axis=1)
        of_S = np.unique(signs_SX, axis=0, return_inverse=True)[1].reshape(-1)
    first_N = np.unique(of_S, return_index=True)[1]
    merged_NB = of_S[columns_SC[first_N]][:, of_byte_B.reshape(-1)]
    return ByteAutomaton(merged_NB, accepting_S[first_N], int(of_S[1]))


_Tail = tuple[tuple[int, "_Tail"], ...] | None
"""The bytes that may come next, each with what may come after it; None at the end of the character."""


_LEADS = ((0xC0, 0x80, 0x800), (0xE0, 0x800, 0x10000), (0xF0, 0x10000, 0x110000))
"""The first of the bytes that lead two, three or four, and the characters that these spell."""


def _bytes_of(inside: NDArray[np.bool_]) -> _Tail:
    """The bytes of the characters of a class, of which each is inside or not; equal tails are one object."""
    made: dict[bytes, _Tail] = {}

    def tail(start: int, size: int, begin: int) -> _Tail:
        """What may follow a byte that stands for `size` characters from `start` on, those from `begin` on."""
        step, key = size // 64, inside[start : start + size].tobytes() + b"-" * (start < begin)
        if key not in made:
            places = ((0x80 + i, start + i * step) for i in range(64))
            kept = [(byte, at) for byte, at in places if at >= begin and inside[at : at + step].any()]
            made[key] = tuple((byte, tail(at, step, begin) if step > 1 else None) for byte, at in kept)
        return made[key]

    leads: list[tuple[int, _Tail]] = [(int(byte), None) for byte in inside[:0x80].nonzero()[0]]
    for continuations, (lead, begin, stop) in enumerate(_LEADS, start=1):
        size = 64**continuations
        leads += [
            (lead + start // size, tail(start, size, begin))
            for start in range(begin // size * size, stop, size)
            # Shorter forms spell what is before `begin`, and UTF-8 allows those alone.
            if inside[max(start, begin) : min(start + size, stop)].any()
        ]
    return tuple(leads)


def _members(node: tuple[Any, Any], flags: int) -> NDArray[np.bool_]:
    """Whether each character is in a class, as Python's matcher says."""
    inside = np.zeros(0x110000 + 2**18, dtype=np.bool_)  # the last lead byte stands for more characters than there are
    state = _parser.State()
    state.flags, state.str = flags, ""
    members = _compiler.compile(_parser.SubPattern(state, [node]), flags)
    inside[[ord(character) for character in members.findall(_CHARACTERS)]] = True
    return inside
