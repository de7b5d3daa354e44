"""What a harness asks of a model: log-likelihoods of continuations and of texts, and answers."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm import tqdm

from dlm.data.windows import windows
from dlm.diffusion.unmask import TokenChoice
from dlm.errors import ConfigError, DataError
from dlm.lm import DiffusionLM, Sampler, Score
from dlm.lm.canvas import Canvas
from dlm.lm.layout import Encoded, Layout
from dlm.model.text import encode

Pair = tuple[str, str]
"""A context, and what continues it."""

Part = tuple[Encoded, Sequence[int]]
"""The same in ids."""


@dataclass(frozen=True)
class How:
    """How requests are answered.

    Attributes:
        reading: How the model is read; by default as its runs are judged.
        draws: Noisy copies that a bound is estimated from; even, at least 4.
        seed: The noise follows from it and from what is asked, whatever else is asked and on how many processes.
        batch_size: Rows side by side.
        greedy: Whether to find out if greedy decoding writes a continuation; without, it is said that it does not.
        length: The most tokens of an answer; by default as the task says.
        stride: Tokens that each further window of a long text scores; by default windows do not overlap.
        sampler: How answers are written. The task says the temperature, unless this does.
    """

    reading: str | None = None
    draws: int = 16
    seed: int = 0
    batch_size: int = 16
    greedy: bool = True
    length: int | None = None
    stride: int | None = None
    sampler: Sampler = field(default_factory=Sampler)

    def __post_init__(self) -> None:
        least = {"draws": 4, "batch_size": 1, "length": 1, "stride": 1}
        for name in (*least, "seed"):
            value = getattr(self, name)
            if value is None and name in ("length", "stride"):
                continue
            if type(value) is not int or value < least.get(name, value):
                bound = f" from {least[name]} on" if name in least else ""
                raise ConfigError(f"{name} must be a whole number{bound}, got {value!r}")
        if self.draws % 2:
            raise ConfigError(f"draws must be even, got {self.draws}")
        if type(self.greedy) is not bool:
            raise ConfigError(f"greedy must be true or false, got {self.greedy!r}")


@dataclass(frozen=True)
class Continuations:
    """Ids to be scored without an end of text, each after its own prompt."""

    asked: Sequence[Part]

    def canvases(self, layout: Layout) -> list[Canvas]:
        """A row for each; see `Layout.continued`."""
        return [layout.continued(prompt, ids) for prompt, ids in self.asked]


class Answering:
    """Answers requests. The noise of each follows from the seed and from what is asked alone.

    Attributes:
        lm: The model.
        how: How.
        chats: Whether a chat template wrote the contexts, with the names of special tokens.
        reading: How the model is read.
        exact: Whether log-likelihoods are exact; otherwise they are lower bounds.
        shortened: How many requests of each kind lost the beginning of their context, which was too long.
    """

    def __init__(self, lm: DiffusionLM, how: How, *, shows: bool) -> None:
        """Prepares the answers.

        Args:
            lm: The model.
            how: How.
            shows: Whether a person, if one looks on, sees how far it is.

        Raises:
            ConfigError: The model is not read so, or that reading decodes nothing greedily and `greedy` is asked.
        """
        self.lm, self.how, self.chats, self._shows = lm, how, False, shows
        self.reading = how.reading or lm.formulation.readings.all[0]
        self.exact = lm.estimator(self.reading, how.draws).method(lm.process) == "exact"
        self.shortened: Counter[str] = Counter()
        if how.greedy:
            try:
                self._score({}, greedy=True)
            except ConfigError as error:
                raise ConfigError(
                    f"the reading {self.reading} of this model decodes nothing greedily, one token at a time, so that "
                    "is_greedy is not known: give greedy=false to go without, or another reading"
                ) from error

    def log_likelihoods(self, groups: Sequence[Sequence[Pair]]) -> list[dict[Pair, tuple[float, bool]]]:
        """Scores continuations, those of a group under common random masks.

        Args:
            groups: Such as the choices of one question.

        Returns:
            For each group, the log-likelihood of each continuation in nats, and whether greedy decoding writes it.

        Raises:
            DataError: A continuation alone does not fit the context.
        """
        numbers = [number_of("loglikelihood", sorted({*group})) for group in groups]
        asked = {number: sorted({*group}) for number, group in zip(numbers, groups, strict=True)}
        found: dict[int, dict[Pair, tuple[float, bool]]] = {}
        rows: dict[int, dict[Pair, Part]] = {}
        for number, pairs in asked.items():
            parts = {pair: self.lm.layout.parted(*pair, chat=self.chats) for pair in pairs}
            found[number] = {pair: (0.0, True) for pair, (_, ids) in parts.items() if not ids}
            kept: dict[Pair, Part] = {
                pair: (self._fitting("loglikelihood", prompt, len(ids)), ids)
                for pair, (prompt, ids) in parts.items()
                if ids
            }
            if kept:
                rows[number] = kept
        scores = self._score({number: [*parts.values()] for number, parts in rows.items()}, greedy=self.how.greedy)
        for number, each in scores:
            answers = ((score.log_likelihood, bool(score.greedy)) for score in each)
            found[number] |= zip(rows[number], answers, strict=True)
        return [found[number] for number in numbers]

    def texts(self, texts: Sequence[str]) -> list[float]:
        """Scores texts as a whole: the sum over windows, each after what it overlaps.

        Args:
            texts: The texts.

        Returns:
            The log-likelihood of each in nats.

        Raises:
            ConfigError: The stride is longer than the context.
        """
        room = self.lm.context - len(self.lm.sidecar.affixes)
        rows: dict[int, list[Part]] = {}
        pieces: dict[str, list[int]] = {}
        for text in dict.fromkeys(texts):
            (ids,) = encode(self.lm.tokenizer, [text])
            pieces[text] = []
            for window in windows(len(ids), room, self.how.stride):
                number = number_of("loglikelihood_rolling", (text, window.start, window.stop))
                given, scored = ids[window.start : window.scored], ids[window.scored : window.stop]
                rows[number] = [(Encoded(given), scored)]
                pieces[text].append(number)
        found = {number: score.log_likelihood for number, (score,) in self._score(rows, greedy=False)}
        return [sum(found[number] for number in pieces[text]) for text in texts]

    def written(
        self, contexts: Mapping[int, str], token: TokenChoice, length: int, until: Sequence[str]
    ) -> Iterator[tuple[int, str]]:
        """Writes after each context: a text of the whole length, which is then cut.

        Args:
            contexts: The contexts, under the numbers that their noise follows from.
            token: The choice of tokens, unless `how` has one.
            length: Tokens to write.
            until: Strings that end an answer, and are no part of it.

        Yields:
            Each number and its answer.

        Raises:
            DataError: The length leaves no room in the context.
        """
        prompts: dict[int, Encoded] = {}
        for number, context in contexts.items():
            if self.chats:
                whole, _ = self.lm.layout.parted(context, "", chat=True)
            else:
                whole = Encoded(encode(self.lm.tokenizer, [context])[0])
            prompts[number] = self._fitting("generate_until", whole, length)
            if whole.ids and not prompts[number].ids:
                raise DataError(
                    f"an answer of {length} tokens leaves no room for its prompt in this model's context of "
                    f"{self.lm.context}: ask for a shorter length"
                )
        sampler = replace(self.how.sampler, token=self.how.sampler.token or token)
        texts = self.lm.generate_each(
            prompts, length=length, sampler=sampler, seed=self.how.seed, batch_size=self.how.batch_size
        )
        for number, (text,) in self._seen("answers", zip(prompts, texts, strict=True), len(prompts)):
            yield number, cut_at(text.continuation, until)

    def _score(self, rows: Mapping[int, Sequence[Part]], *, greedy: bool) -> Iterator[tuple[int, list[Score]]]:
        """The scores of each group, the longest first, so that what does not fit the memory fails at once."""
        order = sorted(rows, key=lambda number: -max(len(prompt.ids) + len(ids) for prompt, ids in rows[number]))
        scores = self.lm.score_each(
            {number: Continuations(rows[number]) for number in order},
            draws=self.how.draws,
            seed=self.how.seed,
            batch_size=self.how.batch_size,
            reading=self.how.reading,
            greedy=greedy,
        )
        return self._seen("log-likelihoods", zip(order, scores, strict=True), len(order))

    def _seen(self, what: str, items: Iterator[Any], total: int) -> Iterator[Any]:
        """The items, with a bar where a person looks on."""
        hidden = None if self._shows else True
        return iter(tqdm(items, desc=what, total=total, disable=hidden, leave=False, file=sys.__stderr__))

    def _fitting(self, kind: str, prompt: Encoded, tokens: int) -> Encoded:
        """The end of a prompt that leaves room for so many tokens."""
        try:
            kept = self.lm.layout.shortened(prompt, tokens)
        except DataError as error:
            raise DataError(f"a request does not fit: {error}; for an answer, ask for a shorter length") from error
        self.shortened[kind] += len(kept.ids) < len(prompt.ids)
        return kept


def number_of(kind: str, asked: object) -> int:
    """What the noise of a request follows from: what is asked, and nothing else; never 0."""
    digest = hashlib.blake2b(json.dumps([kind, asked]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 | 1


def cut_at(text: str, ends: Sequence[str]) -> str:
    """A text up to the first of the strings that end it."""
    return text[: min((at for end in ends if end and (at := text.find(end)) >= 0), default=len(text))]
