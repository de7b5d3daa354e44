"""Text as people write it, from corpora that were published in tokens: what each of them did is undone.

The names are those of the zero-shot corpora of MDLM (2406.07524, table 3). What no rule names stays as it is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from dlm.errors import ConfigError

Rule = tuple[str, str]
"""A regular expression, and what stands in place of what it finds."""


def _closed(opening: str, closing: str) -> Rule:
    """Takes the blanks away inside of brackets or quotes."""
    first, last = re.escape(opening), re.escape(closing)
    return rf"{first}\s*([^{last}]*?)\s*{last}", rf"{opening}\1{closing}"


def _set_apart(opening: str, closing: str) -> Rule:
    """Takes the blanks away inside of brackets or quotes that have one on both sides, and no other sign of theirs."""
    first, last = re.escape(opening), re.escape(closing)
    return rf"{first} ([^{first}{last}]+) {last}", rf"{opening}\1{closing}"


@dataclass(frozen=True)
class Ptb:
    r"""Penn Treebank, as it is used for language models.

    Clitics and `n't` are joined to their words, a `\/` is a slash, `N` (a number) is 1, `<unk>` is a question mark,
    and $ and # stand beside the number.
    """

    name: Literal["ptb"] = "ptb"
    rules: ClassVar[Sequence[Rule]] = (
        (" (?='s|n't)", ""),
        ("(?<=s) ' ", "' "),
        (r" \n ", "\n"),
        (r"\\/", "/"),
        ("(?<= )N(?= )", "1"),
        (r"([$#]) (?=1)", r"\1"),
        ("<unk>", "?"),
    )


@dataclass(frozen=True)
class Wikitext:
    """WikiText.

    The signs within numbers and compounds (`@-@`, `@,@`, `@.@`) lose their marks, punctuation is joined to the word
    before it, brackets and quotes close up, the signs of a heading stand together, and lines have no blanks at their
    ends.
    """

    name: Literal["wikitext"] = "wikitext"
    rules: ClassVar[Sequence[Rule]] = (
        ("(?<=s) '", "'"),
        (" @([-,.])@ ", r"\1"),
        *((f" {re.escape(sign)} ", f"{sign} ") for sign in ":;.!?,"),
        *(_closed(*pair) for pair in ("()", "[]", "{}", '""', "''")),
        ("(?<==) (?==)", ""),
        (" ° ", "°"),
        (r" \n", "\n"),
        (r"\n ", "\n"),
        ("(?<= )N(?= )", "1"),
        (" (?='s)", ""),
    )


@dataclass(frozen=True)
class Lm1b:
    """The One Billion Word Benchmark.

    Addresses, clitics, punctuation, slashes and signs of money are joined to what they belong to, and brackets and
    quotes close up.
    """

    name: Literal["lm1b"] = "lm1b"
    rules: ClassVar[Sequence[Rule]] = (
        ("(https?) : / / ", r"\1://"),
        (r" '(?=\w)", "'"),
        (r"(?<= )(\w+) \.(?= |$)", r"\1."),
        (r" ([?!])(?= |$)", r"\1"),
        *((f" {sign} ", f"{sign} ") for sign in ",:;"),
        (" / ", "/"),
        *(_set_apart(*pair) for pair in ('""', "''", "()", "[]")),
        ("([$£]) ", r"\1"),
    )


@dataclass(frozen=True)
class Lambada:
    """LAMBADA in OpenAI's edition: quotes are straight, and the text begins with an empty line and ends in no blank."""

    name: Literal["lambada"] = "lambada"
    rules: ClassVar[Sequence[Rule]] = (("[“”]", '"'), (r"^\s*|\s*$", ""), (r"\A", "\n"))


@dataclass(frozen=True)
class AgNews:
    """AG News: what is left of HTML's names for signs becomes the signs, and a backslash, a line's end, a blank."""

    name: Literal["agnews"] = "agnews"
    rules: ClassVar[Sequence[Rule]] = (
        (r" (?=#39;(?:s|t|d|m|re|ve|ll)\b)", ""),
        ("&?#39;", "'"),
        ("&?quot;", '"'),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&?amp;", "&"),
        (r"\\+", " "),
    )


@dataclass(frozen=True)
class Scientific:
    """Scientific Papers, of arXiv and PubMed: the rules of WikiText, then those of the One Billion Word Benchmark."""

    name: Literal["scientific"] = "scientific"
    rules: ClassVar[Sequence[Rule]] = (*Wikitext.rules, *Lm1b.rules)


AnyDetokenizer = Ptb | Wikitext | Lm1b | Lambada | AgNews | Scientific

DETOKENIZERS: Mapping[str, type[AnyDetokenizer]] = {choice.name: choice for choice in get_args(AnyDetokenizer)}
"""The detokenizers by name."""


def check_detokenizer(name: str, key: str) -> None:
    """Refuses a name that is no corpus's.

    Args:
        name: The name.
        key: Who asks, such as `--detokenize`.

    Raises:
        ConfigError: There is no such corpus.
    """
    if name not in DETOKENIZERS:
        raise ConfigError(f"{key}: there is no {name!r}; valid: {', '.join(DETOKENIZERS)}")


def detokenized(text: str, rules: Sequence[Rule]) -> str:
    """A text after each of some rules.

    Args:
        text: A text in tokens, with blanks between them.
        rules: Such as those of `Ptb`.

    Returns:
        The text as people write it.
    """
    for pattern, new in rules:
        text = re.sub(pattern, new, text)
    return text
