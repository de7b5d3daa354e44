"""Passages of a text with holes in them, the same for every model: spans of tokens, words and lines."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from transformers import PreTrainedTokenizerBase

from dlm.diffusion.draws import generator, inverse_cdf_
from dlm.lm.layout import Layout
from dlm.lm.parts import own_of
from dlm.model.text import encode, token_ends
from dlm.template import Hole, Template

TRIES = 50
"""How often a place for a passage is looked for before a kind of spans is given up."""

TOKENS, NAMED = (4, 8, 16, 32, 64), ("words", "lines")
"""Lengths of spans in tokens of the first model, and spans that are units of the text."""

_UNITS = {"words": re.compile(r"(?<!\S)\S+(?=\s)"), "lines": re.compile(r"(?<=\n)[^\n]*\S[^\n]*(?=\n)")}


Reader = tuple[PreTrainedTokenizerBase, int]
"""The tokenizer of a model, and its context."""


@dataclass(frozen=True)
class Kind:
    """What the holes of a passage are.

    Attributes:
        span: So many tokens, or `words` or `lines`.
        holes: How many holes a passage has.
    """

    span: int | str
    holes: int = 1

    @property
    def name(self) -> str:
        """As in `8 tokens` and `3 x words`."""
        span = f"{self.span} tokens" if isinstance(self.span, int) else self.span
        return span if self.holes == 1 else f"{self.holes} x {span}"


@dataclass(frozen=True)
class Passage:
    """A part of a text, some spans of which are holes.

    Attributes:
        parts: Texts and spans in turn, as they stood there; the first and the last are texts.
    """

    parts: tuple[str, ...]

    @property
    def spans(self) -> tuple[str, ...]:
        """What stood in the holes."""
        return self.parts[1::2]

    def template(self, lengths: Sequence[int] | None, longest: int) -> Template:
        """The passage with holes.

        Args:
            lengths: Tokens of each hole; None for unknown lengths.
            longest: The most tokens of a hole of unknown length.

        Returns:
            Texts and holes.
        """
        holes = iter([Hole(length) for length in lengths] if lengths else [Hole(1, longest)] * len(self.spans))
        return tuple(next(holes) if place % 2 else part for place, part in enumerate(self.parts))

    def known(self, layout: Layout) -> "Known":
        """The passage with holes of as many tokens as stood there.

        Args:
            layout: How texts become rows of a model.

        Returns:
            What is known of it.
        """
        template = self.template([1] * len(self.spans), 1)
        ids = layout.filled(template, self.spans)
        leads = layout.leads(template)
        lengths = [len(each) - own_of(lead) for each, lead in zip(ids, leads, strict=True)]
        characters = sum(len(lead.text) for lead in leads if lead is not None) + sum(map(len, self.spans))
        return Known(self.template(lengths, 1), ids, characters)


@dataclass(frozen=True)
class Known:
    """A passage in the tokens of one model, when the lengths of its holes are known.

    Attributes:
        template: Texts and holes.
        ids: Those of what stood in each hole, its lead with them.
        characters: What they spell.
    """

    template: Template
    ids: list[list[int]]
    characters: int


@dataclass
class Texts:
    """Documents that passages are taken from, each as often as it is long.

    Attributes:
        texts: The documents.
        readers: The tokenizer and the context of each model; lengths are in tokens of the first.
    """

    texts: Sequence[str]
    readers: Sequence[Reader]

    @property
    def context(self) -> int:
        """The shortest context of the models."""
        return min(context for _, context in self.readers)

    def passages(self, kind: Kind, count: int, seed: int) -> list[Passage]:
        """Passages with holes of one kind.

        Args:
            kind: What the holes are.
            count: How many passages.
            seed: Decides which; a passage depends on the seed, the kind and its own number alone.

        Returns:
            The passages; none where no such holes fit the context or the documents.
        """
        if isinstance(kind.span, int) and kind.span * kind.holes > self.context // 2:
            return []
        found = []
        for number in range(count):
            stream = generator(seed, "passage", str(kind.span), kind.holes, number)
            tries = (self._at_random(stream).passage(kind, stream) for _ in range(TRIES))
            passage = next((one for one in tries if one is not None), None)
            if passage is None:
                return []
            found.append(passage)
        return found

    @cached_property
    def _read(self) -> list["_Text"]:
        return [_Text(text, self.readers, self.context) for text in self.texts]

    def _at_random(self, stream: torch.Generator) -> "_Text":
        weights_1V = torch.tensor([[len(text) for text in self.texts]], dtype=torch.float64)
        return self._read[int(inverse_cdf_(weights_1V, torch.rand(1, generator=stream, dtype=torch.float64)))]


@dataclass
class _Text:
    """One document; its tokens are found when they are first asked for."""

    text: str
    readers: Sequence[Reader]
    context: int

    @cached_property
    def ends(self) -> list[int]:
        """Where each token ends, in characters; the first entry is where the first begins."""
        return [0, *token_ends(self.readers[0][0], self.text)]

    def passage(self, kind: Kind, stream: torch.Generator) -> Passage | None:
        """A passage at a random place; None where it has no such holes."""
        tokens, width = len(self.ends) - 1, 3 * self.context // 4
        if tokens < width + 2:
            return None
        # Neither the first token nor the last is in a hole, so that every hole has a text on either side.
        first = 1 + int(torch.randint(tokens - width - 1, (), generator=stream))
        spans = self._spans(kind, first, first + width, stream)
        if len(spans) < kind.holes or not all(self._fits(spans, *reader) for reader in self.readers):
            return None
        low, high = self.ends[max(0, first - self.context)], self.ends[min(tokens, first + width + self.context)]
        borders = [low, *(place for span in spans for place in span), high]
        return Passage(tuple(self.text[a:b] for a, b in pairwise(borders)))

    def _spans(self, kind: Kind, first: int, last: int, stream: torch.Generator) -> list[tuple[int, int]]:
        """Spans of the text between two tokens, in order and with text between them; fewer where they do not fit."""
        if isinstance(kind.span, int):
            starts = (first + torch.randint(last - first - kind.span + 1, (kind.holes,), generator=stream)).tolist()
            found = sorted((self.ends[start], self.ends[start + kind.span]) for start in starts)
        else:
            low, high = self.ends[first], self.ends[last]
            units = [*self._units(kind.span, low, high)]
            order = torch.randperm(len(units), generator=stream)[: kind.holes].tolist()
            found = sorted(units[i] for i in order)
        apart = all(b < c for (_, b), (c, _) in pairwise(found))
        return found if apart and all(a < b for a, b in found) else []

    def _units(self, name: str, low: int, high: int) -> Iterator[tuple[int, int]]:
        """The words or lines that lie whole between two characters."""
        for unit in _UNITS[name].finditer(self.text, low, high + 1):  # a pattern sees nothing behind its end
            if unit.end() <= high:
                yield unit.span()

    def _fits(self, spans: Sequence[tuple[int, int]], tokenizer: PreTrainedTokenizerBase, context: int) -> bool:
        """Whether a model knows what the spans hold, and has room for them, for what is between them and for more."""
        ids = encode(tokenizer, [self.text[a:b] for a, b in spans], continues=True)
        (whole,) = encode(tokenizer, [self.text[spans[0][0] : spans[-1][1]]], continues=True)
        known = not any(tokenizer.unk_token_id in each for each in ids)
        return known and sum(map(len, ids)) <= context // 2 and len(whole) <= 3 * context // 4
