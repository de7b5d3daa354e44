"""The figures of some texts, each with its interval; no judged likelihood without the entropy."""

import ast
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlm.evaluate.bootstrap import Ratio, ratio_of
from dlm.evaluate.memorised import KnownText, Memorised
from dlm.evaluate.samples import Judged, Rows, distinct_share, ngrams, repetitions, unigram_entropy
from dlm.plain import finite

DISTINCT = (1, 2, 3, 4)
"""Tokens of the n-grams that are told apart."""

Parser = Callable[[str], bool]


def parses_python(text: str) -> bool:
    """Whether a text is a whole Python program, by the grammar of this Python; an empty text is one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange code, which is code
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two of code that is nested too deeply
        return False
    return True


PARSERS: Mapping[str, Parser] = {"python": parses_python}
"""What says whether a text parses, by the name of the language."""


@dataclass(frozen=True)
class Written:
    """Texts, and the tokens that they are counted in.

    Attributes:
        texts: The texts.
        ids: The tokens of each.
        judged: What a judge makes of them; None without one.
    """

    texts: Sequence[str]
    ids: Rows
    judged: Judged | None = None


@dataclass(frozen=True)
class Quality:
    """The figures of some texts.

    Attributes:
        texts: How many texts.
        figures: Values with their errors and 95% intervals, by name. With a judge there are `nats_per_token`,
            `nats_per_character` and `perplexity`, upper bounds where the judge is not exact; always `entropy`, the
            unigram entropy of a text in nats, the mean of all texts; `distinct_1` to `distinct_4`, the different
            n-grams of all texts over all n-grams; `repeated`, the share of 4-grams that came before in their text;
            `tokens` and `characters` a text. With a parser `parses`, the share of texts that parse. With known text
            `memorised_characters`, the longest substring of a text that stands there, the mean of all texts, and
            `memorised_share`, the share of all characters in substrings of enough characters that do. With features
            `mauve`.
        longest_memorised: The longest substring of any text that stands in the known text, in characters.
    """

    texts: int
    figures: Mapping[str, Ratio]
    longest_memorised: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for strict JSON: None for what is not finite, such as the share of n-grams of short texts."""
        figures = {
            name: {"value": each.value, "se": each.se, "ci95": each.interval} for name, each in self.figures.items()
        }
        longest = {} if self.longest_memorised is None else {"longest_memorised": self.longest_memorised}
        plain: dict[str, Any] = finite({"texts": self.texts, **figures, **longest})
        return plain


def measure_quality(
    written: Written,
    *,
    parser: Parser | None = None,
    known: KnownText | None = None,
    least: int = 1,
    seed: int = 0,
) -> Quality:
    """All figures of texts but MAUVE, which is of two sets of texts.

    Args:
        written: At least one text.
        parser: Says whether a text parses.
        known: What texts may have memorised.
        least: The fewest characters of a substring that counts as memorised.
        seed: Decides the bootstrap, which resamples texts.

    Returns:
        The figures.
    """
    texts, ids = written.texts, written.ids
    characters, ones = [*map(len, texts)], [1] * len(texts)

    def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
        return ratio_of(above, below, seed)

    figures: dict[str, Ratio] = {}
    if judged := written.judged:
        figures["nats_per_token"] = per_token = ratio(judged.nats, judged.tokens)
        figures["nats_per_character"] = ratio(judged.nats, characters)
        figures["perplexity"] = exponential(per_token)
    figures["entropy"] = ratio([*map(unigram_entropy, ids)], ones)
    figures |= {f"distinct_{n}": distinct(ids, n) for n in DISTINCT}
    again, ngrams_of = repetitions(ids)
    figures["repeated"] = ratio(again, ngrams_of)
    figures["tokens"] = ratio([*map(len, ids)], ones)
    figures["characters"] = ratio(characters, ones)
    if parser:
        figures["parses"] = ratio([parser(text) for text in texts], ones)
    found: list[Memorised] = known.find(texts, least) if known else []
    if found:
        figures["memorised_characters"] = ratio([each.longest for each in found], ones)
        figures["memorised_share"] = ratio([each.covered for each in found], characters)
    return Quality(len(texts), figures, max(each.longest for each in found) if found else None)


def exponential(nats: Ratio) -> Ratio:
    """The exponential of a value and its interval, its error by the delta method."""
    value = _exp(nats.value)
    return Ratio(
        value,
        None if nats.se is None else value * nats.se,
        None if nats.interval is None else (_exp(nats.interval[0]), _exp(nats.interval[1])),
    )


def distinct(ids: Rows, n: int) -> Ratio:
    """Different n-grams of all texts over all n-grams (1510.03055), with a jackknife over texts.

    The bootstrap would draw a text twice, and call what is in it repeated. Leaving out one text after another does not,
    and its error is too large rather than too small (Efron and Stein, 1981).

    Args:
        ids: The tokens of each text.
        n: Tokens of an n-gram.

    Returns:
        The share, above 0 and at most 1, the jackknife's standard error sqrt((U-1)/U sum_u (s_u - mean s)^2) over the U
        texts, and the interval of 1.96 errors either way, within 0 and 1.
    """
    value = distinct_share(ids, n)
    found = [each for row in ids if (each := list(ngrams(row, n)))]
    if len(found) < 2:
        return Ratio(value, None, None)
    holders: dict[tuple[int, ...], int] = {}  # the one text that an n-gram is in; -1 where there are several
    for number, each in enumerate(found):
        for ngram in each:
            holders[ngram] = number if holders.get(ngram, number) == number else -1
    own_U = np.bincount([number for number in holders.values() if number >= 0], minlength=len(found))
    all_U = np.array([*map(len, found)])
    left_U = (len(holders) - own_U) / (all_U.sum() - all_U)
    error = float(np.sqrt((len(found) - 1) * left_U.var()))
    return Ratio(value, error, (max(value - 1.96 * error, 0.0), min(value + 1.96 * error, 1.0)))


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700.0 else math.inf
