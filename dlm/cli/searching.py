"""The options of a search of lengths: what they ask for, and what it will cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from dlm.cli.console import note
from dlm.cli.options import MOST_ROWS
from dlm.cli.records import file_lines
from dlm.errors import ConfigError, DataError
from dlm.plain import counted
from dlm.template import Hole, Template, has_choices, holes_of, is_open

if TYPE_CHECKING:
    from dlm.lm import DiffusionLM
    from dlm.lm.search import LengthSearch

OF_LENGTHS = ("--length-prior", "--length-top-p")
"""Options that are for spans of unknown length alone."""
PRIORS = ("run", "uniform")
"""The priors of lengths that have a name; any other is a file."""
MIXED = ", and the best of each span put together"
"""What is done besides where a text has several spans."""

Prior = Annotated[
    str | None,
    typer.Option(
        metavar="run|uniform|FILE",
        help="How likely each length of a span is by itself: as of words and lines in the model's training text, all "
        "alike, or as in a text.",
        show_default="run, where the model has it",
    ),
]
Effort = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_ROWS,
        help="How many lengths are weighed and how many fillings tried, at most; the likeliest is given.",
        show_default="32; 8 fillings where lengths are given, if a causal reading ranks them",
    ),
]
LengthTopP = Annotated[
    float | None,
    typer.Option(
        "--length-top-p",
        metavar="P",
        help="Fill only the likeliest lengths of a span that together have this probability; 1 fills all, and finds "
        "the likeliest text whatever its length, which is often a short one.",
        show_default="0.8",
    ),
]
Reread = Annotated[
    bool | None,
    typer.Option(
        "--reread/--no-reread",
        help="Rank fillings by the causal reading of the text, from the first span to 16 tokens behind the last, and "
        "put the best of several spans together.",
        show_default="where the model has one; not of choices, nor where a span of unknown length ends the text",
    ),
]


def _text_of(length_prior: str | None) -> str:
    """The text that a prior is counted in; empty where no file is named."""
    if length_prior is None or length_prior in PRIORS:
        return ""
    try:
        text = "".join(file_lines(Path(length_prior)))
    except DataError as error:
        raise ConfigError(f"--length-prior is {', '.join(PRIORS)} or a text: {error}") from error
    if not text.strip():
        raise ConfigError(f"--length-prior {length_prior}: there is no text in it, to count the lengths of")
    return text


@dataclass(frozen=True)
class SearchOptions:
    """What is asked of a search, before there is a model to search with; None for what is not said.

    Attributes:
        prior: `--length-prior`.
        text: The text that lengths are counted in; empty where that names no file.
        top_p: `--length-top-p`.
        effort: `--effort`.
        reread: `--reread` or `--no-reread`.
        longest: `--max-length`.
    """

    prior: str | None
    text: str
    top_p: float | None
    effort: int | None
    reread: bool | None
    longest: int | None

    def __post_init__(self) -> None:
        check_length_top_p(self.top_p)

    @classmethod
    def read(
        cls, prior: str | None, top_p: float | None, effort: int | None, reread: bool | None, longest: int | None
    ) -> Self:
        """The options, and the text that one of them may name; for the arguments see the class."""
        return cls(prior, _text_of(prior), top_p, effort, reread, longest)

    @property
    def given(self) -> list[str]:
        """The options that are said."""
        every = {
            "--length-prior": self.prior,
            "--length-top-p": self.top_p,
            "--effort": self.effort,
            "--no-reread" if self.reread is False else "--reread": self.reread,
        }
        return [name for name, value in every.items() if value is not None]

    def higher(self, templates: Iterable[Template]) -> str:
        """The options that try more fillings of some texts where they are raised."""
        fills_all = self.top_p == 1.0 or all(map(has_choices, templates))
        return "--effort" if fills_all else "--effort or --length-top-p"

    def of(
        self, lm: "DiffusionLM", num: int, templates: Mapping[int, Template], parsed: Mapping[int, Template]
    ) -> "LengthSearch | None":
        """The search, by the model's own prior or the one asked for; None where a model ends spans itself.

        Options that no span needs are refused.

        Args:
            lm: The model.
            num: How many alternatives are wanted.
            templates: The texts that are filled.
            parsed: These, and those that are left out.

        Returns:
            The search.
        """
        from dlm.lm.search import NOT_REREAD, LengthSearch
        from dlm.model.spans import LengthPrior

        if self.longest is not None and self.longest > lm.context:
            raise ConfigError(
                f"--max-length must be at most the context of this model, {lm.context:,}, got {self.longest:,}"
            )
        if lm.filling.in_the_middle:
            if self.given:
                raise ConfigError(
                    f"{_are(self.given)} for a search of lengths, and this model, which fills in the middle, ends a "
                    f"span by itself: leave {_them(self.given)} out"
                )
            return None
        if self.effort is not None and self.effort < num:
            raise ConfigError(
                f"--effort {self.effort} tries fewer fillings than the alternatives of --num {num}: raise it"
            )
        if self.reread and not lm.formulation.readings.causal:
            raise ConfigError(NOT_REREAD)
        if self.prior == "run" and lm.sidecar.lengths is None:
            raise ConfigError(
                "--length-prior run: nothing was counted when this model was made; name a text, or uniform"
            )
        own, texts = self.prior in (None, "run"), [self.text] if self.text else []
        search = LengthSearch(None if own else LengthPrior.of_texts(texts, lm.tokenizer), reread=self.reread)
        search = search if self.effort is None else replace(search, effort=self.effort, tries=self.effort)
        search = search if self.top_p is None else replace(search, top_p=self.top_p)
        self._check(lm, templates, parsed, search)
        return search

    def _check(
        self,
        lm: "DiffusionLM",
        templates: Mapping[int, Template],
        parsed: Mapping[int, Template],
        search: "LengthSearch",
    ) -> None:
        """Refuses options where no span needs a search, of the texts that are filled and of those left out."""
        resolved = [*map(lm.languages.resolved, templates.values())]
        dropped = [template for number, template in parsed.items() if number not in templates]
        searched = [*filter(is_open, (*resolved, *dropped))]
        if self.top_p is not None and searched and all(map(has_choices, searched)):
            raise ConfigError("--length-top-p: choices are tried whatever their length; leave it out")
        if resolved and not searched:
            if unused := [name for name in self.given if name in OF_LENGTHS]:
                raise ConfigError(
                    f"{_are(unused)} for spans of unknown length, and every span has its length: "
                    f"leave {_them(unused)} out"
                )
            enumerated = any(lm.languages.enumerated(each, search.effort) for each in resolved)
            if self.effort is not None and not enumerated and not search.ranks(causal=lm.formulation.readings.causal):
                raise ConfigError(
                    "--effort: nothing is searched here, since every span has its length and no causal reading ranks "
                    "fillings; leave it out, or ask for more alternatives by --num"
                )


def check_length_top_p(top_p: float | None) -> None:
    """Refuses a probability that is not above 0 and at most 1."""
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ConfigError(f"--length-top-p must be above 0 and at most 1, got {top_p}")


def _are(options_given: Sequence[str]) -> str:
    """Options as what a sentence is about."""
    *others, last = options_given
    return f"{', '.join(others)} and {last} are" if others else f"{last} is"


def _them(options_given: Sequence[str]) -> str:
    return "it" if len(options_given) == 1 else "them"


def tell_cost(lm: "DiffusionLM", templates: Sequence[Template], search: "LengthSearch | None", num: int) -> None:
    """Says how spans will be filled, and what a search will cost, before it begins."""
    from dlm.lm.evidence import ASKED

    if search is None:
        note("this model fills in the middle: one span after the other, from left to right")
        return
    every = [*map(lm.languages.resolved, templates)]
    templates = [each for each in every if not lm.languages.enumerated(each, search.effort)]
    searched = [template for template in templates if is_open(template)]
    causal = lm.formulation.readings.causal
    tries = search.tried(num, causal=causal)
    if searched:
        holes = max(len(_open_holes(each)) for each in searched)
        lengths = min(search.effort, max(len(hole.lengths) for each in searched for hole in _open_holes(each)))
        tried = search.fillings(num)
        mixed = tried > 1 and causal and any(search.rereads(each) and _several(each) for each in searched)
        what = f"at most {counted(lengths, 'length')}" + (f" of each of {holes} spans" if holes > 1 else "")
        weighed = f"{what} {'is' if lengths == 1 else 'are'} weighed by {ASKED} tokens behind"
        note(
            f"{_each_of(searched, every, 'a span of unknown length')}{weighed}, and at most "
            f"{counted(tried, 'filling')} tried{MIXED if mixed else ''} (--effort)"
        )
    known = [template for template in templates if not is_open(template)]
    if known and tries > 1 and search.ranks(causal=causal):
        mixed = any(map(_several, known))
        what = "the likeliest is" if num == 1 else f"the {num} likeliest are"
        note(
            f"{_each_of(known, every, 'spans of known length')}{what} taken of {tries} fillings"
            f"{MIXED if mixed else ''} (--effort)"
        )


def _open_holes(template: Template) -> list[Hole]:
    """The spans of a text that may have several lengths."""
    return [hole for hole in holes_of(template).values() if hole.most is not None]


def _several(template: Template) -> bool:
    """Whether a text has several spans."""
    return len(holes_of(template)) > 1


def _each_of(texts: Sequence[Template], every: Sequence[Template], having: str) -> str:
    """Which texts of a batch are spoken of: all, or those that have something."""
    if len(every) == 1:
        return ""
    if len(texts) == len(every):
        return f"for each of {len(every):,} texts, "
    return (
        f"for the one text with {having}, "
        if len(texts) == 1
        else f"for each of the {len(texts):,} texts with {having}, "
    )
