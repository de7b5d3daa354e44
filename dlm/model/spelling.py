"""The bytes that each token of a tokenizer spells, and languages of texts as languages of tokens."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from dlm.diffusion.automaton import Automaton
from dlm.errors import ConfigError, DataError, shortened
from dlm.model.expressions import ByteAutomaton, compile_expression
from dlm.model.text import decode, drops_blanks
from dlm.model.tokenizer import byte_alphabet, is_byte

MOST_STEPS = 2**22
"""Pairs of a state and a class of tokens at most; each takes a few microseconds a token and network call."""


@dataclass(frozen=True, eq=False)
class Spelling:
    """What the tokens spell that a span may be written with.

    Attributes:
        tokenizer: The model's.
        size: V.
        forbidden: The ids that are never written.
    """

    tokenizer: PreTrainedTokenizerBase
    size: int
    forbidden: Collection[int]

    @cached_property
    def bytes_of(self) -> dict[int, bytes]:
        """The bytes of each token, behind other tokens; together they are the bytes of the decoded text.

        Returns:
            What each id spells that may be written.

        Raises:
            ConfigError: What a token spells depends on the tokens around it.
        """
        backend, forbidden = self.tokenizer.backend_tokenizer, set(self.forbidden)
        if drops_blanks(self.tokenizer):
            raise ConfigError(
                "this model's tokenizer has no blanks in its tokens, so that what a token spells depends on the next: "
                "spans cannot be held to expressions or choices; leave them out"
            )
        names = ((id_, backend.id_to_token(id_)) for id_ in range(self.size) if id_ not in forbidden)
        tokens = {id_: name for id_, name in names if name}
        state = backend.decoder.__getstate__()
        if b'"ByteLevel"' in state:
            byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
            # A token with any other character is taken as it stands, as the decoder does.
            return {
                id_: bytes(map(byte_of.__getitem__, name)) if set(name) <= byte_of.keys() else name.encode()
                for id_, name in tokens.items()
            }
        falls_back = b'"ByteFallback"' in state
        plain = [id_ for id_, name in tokens.items() if not (falls_back and is_byte(name))]
        first = next((id_ for id_ in plain if decode(self.tokenizer, [id_]).strip()), None)
        if first is None:
            raise ConfigError("this model's tokenizer has no token of a text alone: spans cannot be held to a language")
        before = decode(self.tokenizer, [first])
        found = {id_: decode(self.tokenizer, [first, id_]).removeprefix(before).encode() for id_ in plain}
        return found | {id_: bytes([int(name[3:5], 16)]) for id_, name in tokens.items() if id_ not in found}

    @cached_property
    def strips(self) -> bool:
        """Whether the decoder takes a blank from the beginning of a text."""
        blank = next((id_ for id_, spelled in self.bytes_of.items() if spelled[:1] == b" " and spelled.strip()), None)
        return blank is not None and decode(self.tokenizer, [blank])[:1] != " "

    def joins(self, blank: str) -> bool:
        """Whether a token begins with a blank and goes on with a word.

        Args:
            blank: One character that is a blank or a line break.

        Returns:
            Whether there is one.
        """
        longer = (spelled[len(blank.encode()) :] for spelled in self._begun_by(blank).values())
        return any(rest and not rest[:1].isspace() for rest in longer)

    def goes_on(self, text: str) -> bool:
        """Whether a token begins with the end of a text, and goes on behind it.

        Args:
            text: The text.

        Returns:
            Whether there is one.
        """
        ends = (text[start:] for start in range(len(text)))
        return any(len(spelled) > len(end.encode()) for end in ends for spelled in self._begun_by(end).values())

    def beginning(self, text: str, tokens: int) -> tuple[int, Automaton]:
        """How tokens are held to spell a text and more.

        Args:
            text: What they begin with.
            tokens: How many there are.

        Returns:
            How many of the first are held, no more than the text has bytes; and their language.
        """
        held = min(tokens, len(text.encode()))
        key = text, held == tokens
        if key not in self._beginning:
            # One byte at least stands behind the text, where none of the tokens that are not held does.
            anything = ByteAutomaton(np.zeros((1, 256), dtype=np.int64), np.ones(1, dtype=np.bool_), 0)
            self._beginning[key] = self._lifted(anything.behind(text, empty=held < tokens), text, stripped=False)
        return held, self._beginning[key]

    @cached_property
    def _beginning(self) -> dict[tuple[str, bool], Automaton]:
        """The languages of the texts that were asked for."""
        return {}

    def _begun_by(self, text: str) -> dict[int, bytes]:
        """The tokens that begin with a text."""
        if text not in self._begun:
            begin = text.encode()
            self._begun[text] = {id_: each for id_, each in self.bytes_of.items() if each.startswith(begin)}
        return self._begun[text]

    @cached_property
    def _begun(self) -> dict[str, dict[int, bytes]]:
        """The tokens that begin with the texts that were asked for."""
        return {}

    def automaton(self, expression: str, *, lead: str = "", stripped: bool = False) -> Automaton:
        """The language of an expression, in tokens.

        Args:
            expression: See `compile_expression`.
            lead: What stands before every text that the expression matches; not before the empty text.
            stripped: Whether the first token loses the blank that it may begin with.

        Returns:
            What accepts the strings of tokens whose text the expression matches.

        Raises:
            ConfigError: What a token spells depends on the tokens around it.
            DataError: The expression cannot be used, or no tokens of this tokenizer spell a text of its language.
        """
        key = expression, lead, stripped
        if key not in self._known:
            shown, language = shortened(expression, 60), compile_expression(expression)
            led = language.behind(lead, empty=False) if lead else language
            self._known[key] = self._lifted(led, shown, stripped=stripped)
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[str, str, bool], Automaton]:
        """The languages that were asked for."""
        return {}

    def _lifted(self, language: ByteAutomaton, shown: str, *, stripped: bool) -> Automaton:
        """An automaton over bytes as one over tokens."""
        # How a blank that is spelled as a byte begins a text, decoders do not agree on.
        name_of = self.tokenizer.backend_tokenizer.id_to_token
        unsure = {
            id_ for id_, spelled in self.bytes_of.items() if stripped and spelled == b" " and is_byte(name_of(id_))
        }
        ids = [id_ for id_, spelled in self.bytes_of.items() if spelled and id_ not in unsure]
        spelled = [self.bytes_of[id_] for id_ in ids]
        # Bytes that lead to the same states are one, so that most tokens are equal.
        columns_SC, of_byte_B = np.unique(language.next_SB, axis=1, return_inverse=True)
        number_B = of_byte_B.reshape(-1) + 1
        next_ST, of_token_N = _walks([number_B[np.frombuffer(each, dtype=np.uint8)] for each in spelled], columns_SC)
        start, accepting_S = language.start, language.accepting_S
        if stripped:  # a state of its own stands before the first token
            bare = [number_B[np.frombuffer(each.removeprefix(b" "), dtype=np.uint8)] for each in spelled]
            first_1T, of_bare_N = _walks(bare, columns_SC)
            pairs_N2, of_token_N = np.unique(np.stack([of_token_N, of_bare_N], 1), axis=0, return_inverse=True)
            next_ST = np.concatenate([next_ST[:, pairs_N2[:, 0]], first_1T[start : start + 1, pairs_N2[:, 1]]])
            start, accepting_S = len(accepting_S), np.append(accepting_S, accepting_S[start])
        live_S = _live(next_ST, accepting_S)
        if not live_S[start]:
            raise DataError(f"no tokens of this model's tokenizer spell a text that /{shown}/ matches")
        next_SC, of_walk_T = np.unique(next_ST, axis=1, return_inverse=True)
        useful_C = (live_S[next_SC] & live_S[: len(next_SC), None]).any(0)
        number_C = np.where(useful_C, useful_C.cumsum() - 1, useful_C.sum())
        class_V = np.full(self.size, useful_C.sum())
        class_V[ids] = number_C[of_walk_T.reshape(-1)[of_token_N.reshape(-1)]]
        next_SC = next_SC[:, useful_C]
        if next_SC.size > MOST_STEPS:
            raise DataError(
                f"/{shown}/ needs {next_SC.shape[0]} states and {next_SC.shape[1]} classes of this tokenizer's tokens, "
                f"whose product is more than {MOST_STEPS}: write a shorter one"
            )
        return Automaton(torch.from_numpy(next_SC), torch.from_numpy(class_V), torch.from_numpy(accepting_S), start)


def _walks(
    tokens: Sequence[NDArray[np.int64]], columns_SC: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The state after each different token, of the numbers of its bytes, in each state; and which of them each is."""
    distinct = {each.tobytes(): each for each in tokens}
    number = {key: i for i, key in enumerate(distinct)}
    width = max((len(each) for each in distinct.values()), default=0)
    padded_TW = np.zeros((len(distinct), width), dtype=np.int64)
    for row, each in enumerate(distinct.values()):
        padded_TW[row, : len(each)] = each
    states = len(columns_SC)
    stay_SC = np.concatenate([np.arange(states)[:, None], columns_SC], axis=1)
    next_ST = np.repeat(np.arange(states)[:, None], len(distinct), axis=1)
    for column in padded_TW.T:
        next_ST = stay_SC[next_ST, column]
    return next_ST, np.array([number[each.tobytes()] for each in tokens], dtype=np.int64)


def _live(next_ST: NDArray[np.int64], accepting_S: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The states from which some tokens lead to an accepting one."""
    live_S, before = accepting_S.copy(), -1
    while (now := int(live_S.sum())) > before:
        before = now
        live_S |= live_S[next_ST].any(1)
    return live_S
