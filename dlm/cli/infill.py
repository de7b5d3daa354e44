"""`dlm infill`."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlm.cli import options
from dlm.cli.console import check_given, errors, json_line, line_writer, quiet_libraries, read_text, write_text
from dlm.cli.records import (
    Record,
    Resume,
    check_single,
    file_lines,
    free_of,
    is_batch,
    read_batch,
    report,
    resumable,
    unfinished,
    usable,
)
from dlm.cli.writing import check_outputs, load, recording
from dlm.data.lines import split_lines
from dlm.data.text import check_text
from dlm.errors import ConfigError, DataError, shortened
from dlm.plain import counted
from dlm.template import LONGEST, Hole, Template, has_choices, parse_template

if TYPE_CHECKING:
    from dlm.lm import DiffusionLM, Infilling
    from dlm.lm.search import LengthSearch

WRITTEN = (
    "spans",
    "log_likelihood",
    "network_calls",
    "alternatives",
    "lengths",
    "log_joint",
    "length_posterior",
    "log_whole",
)
"""Fields that are written beside those of a record; its text is replaced by the filled one."""
OF_LENGTHS = ("--length-prior", "--length-top-p")
"""Options that are for spans of unknown length alone."""
PRIORS = ("run", "uniform")
"""The priors of lengths that have a name; any other is a file."""
MOST_FILLINGS = 65_536
"""Fillings of a text that may be tried: all of them are held until the likeliest are known."""
MOST_LENGTHS = 256
"""Lengths of the posterior that are written, the likeliest: three spans of any length have 32,768."""
MIXED = ", and the best of each span put together"
"""What is done besides where a text has several spans."""
LONGEST_PATH = 255
"""Characters of a text that may be the name of a file; systems refuse to look for much longer ones."""


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
        max=MOST_FILLINGS,
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
        help="Rank fillings by the causal reading of the text, from the first span to 16 tokens behind the last.",
        show_default="where the model has one; not of choices, nor where a span of unknown length ends the text",
    ),
]


Choices = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...",
        help=r"The texts that each span such as [MASK] may have; \, is a comma within one.",
        show_default=False,
    ),
]
Marker = Annotated[str, typer.Option(help="The word that marks a span.")]


def infill(
    context: typer.Context,
    model: options.Model,
    text: Annotated[
        str | None,
        typer.Argument(help="Text with spans such as [MASK:12] or [MASK]; - reads stdin.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Read the text from a file; .jsonl and .ndjson are a batch.", show_default=False)
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help='A batch: a {"text": ...} a line in, an object a line out.')
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Fill what can be filled of a batch, and name the rest at the end.")
    ] = False,
    resume: Resume = False,
    num: Annotated[int, typer.Option(min=1, max=MOST_FILLINGS, help="Alternatives, the likeliest first.")] = 1,
    marker: Marker = "MASK",
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="The most tokens of a span such as [MASK], of any length.", show_default=str(LONGEST)),
    ] = None,
    choices: Choices = None,
    length_prior: Prior = None,
    length_top_p: LengthTopP = None,
    effort: Effort = None,
    reread: Reread = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts written side by side.")] = 16,
    *,
    seed: options.Seed = 0,
    mask_token: options.MaskToken = None,
    dtype: options.HeldIn = "auto",
    quantised: options.Load = None,
    device: options.Device = None,
    output: options.TextOutput = None,
    export: options.Export = None,
    watch: options.Watching = False,
    as_json: options.Json = False,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,
) -> None:
    r"""Fill masked spans anywhere in a text and leave the rest as it is.

    [MASK:12] is twelve tokens, [MASK:3-12] three to twelve, and [MASK] any number that fits. [MASK:/[0-9]{4}/] is
    what the expression matches. A backslash makes a marker literal: \\[MASK:3] stands for the text [MASK:3].

    Example:  dlm infill runs/tiny "def add(a, b): return [MASK:8]"
    """
    reads = {"--file": file, "the text -": Path("-") if text == "-" else None}
    batch = jsonl or (file is not None and is_batch(file))
    if not batch:
        check_single("a batch of records: give a .jsonl file, or --jsonl", keep_going=keep_going, resume=resume)
    check_outputs(output, export, overwrite, reads, resume=resume if batch else None)
    asked = _Asked(length_prior, _text_of(length_prior), length_top_p, effort, reread)
    ask = partial(_template_of, marker=marker, longest=max_length or LONGEST, choices=_choices(choices))
    records = _records(text, file, ask, batch=batch, keep_going=keep_going)
    parsed = {number: record.asked for number, record in enumerate(records) if record.asked is not None}
    _check_length(max_length, [records[number].given for number in parsed], ask, marker)
    quiet_libraries()

    how = options.build_sampler(context.obj)
    lm = load(model, device, dtype, quantised, mask_token)
    wanted = usable(records, lm.filling.check, keep_going=keep_going)
    wanted, keeps = unfinished(wanted, output if resume else None, ("text", *WRITTEN), _is_filled)
    templates = {number: record.asked for number, record in wanted.items() if record.asked is not None}
    search = asked.of(lm, num)
    _check_use(lm, templates, parsed, search, asked)
    with recording(lm, f"dlm infill {model}", watch and bool(wanted), export if wanted else None) as take:
        found = lm.infill_each(
            templates, num=num, sampler=how, seed=seed, batch_size=batch_size, search=search, watch=take
        )  # what cannot work is refused by now
        _tell_cost(lm, [*templates.values()], search, num)
        if batch or as_json:
            _write_lines([*wanted.values()], found, output, overwrite, keeps)
        else:
            (alternatives,) = found
    if not batch and not as_json:
        _show(alternatives, num, output, overwrite)
    report(records)


def _content(text: str | None, file: Path | None) -> list[str]:
    """The lines of what was given."""
    if text is not None and file is not None:
        raise ConfigError(f"a text and --file {file} are both given: leave one of them out")
    if text is None and file is None:
        raise ConfigError('give the text, or --file FILE, or - for stdin; for example dlm infill MODEL "a [MASK:3] b"')
    return [*split_lines(read_text(text))] if text is not None else file_lines(file or Path("-"))


def _records(
    text: str | None, file: Path | None, ask: Callable[[Mapping[str, Any]], Template], *, batch: bool, keep_going: bool
) -> list[Record[Template]]:
    """The records of a batch, or the only one; refused where one has no text with spans, unless it is left out."""
    lines = _content(text, file)
    records = read_batch(lines, ask, name=file or "stdin") if batch else [_single("".join(lines), text, ask)]
    usable(records, lambda template: None, keep_going=keep_going)
    return records


def _single(content: str, given: str | None, ask: Callable[[Mapping[str, Any]], Template]) -> Record[Template]:
    """The only record of a text that is no batch."""
    single = {"text": content}
    try:
        return Record("", single, ask(single))
    except DataError as error:
        if given is None or len(given) > LONGEST_PATH or not Path(given).is_file():
            raise
        raise DataError(f"{error}; it is the name of a file: --file {given} reads that") from error


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
class _Asked:
    """What is asked of a search, before there is a model to search with; None for what is not said.

    Attributes:
        prior: `--length-prior`.
        text: The text that lengths are counted in; empty where that names no file.
        top_p: `--length-top-p`.
        effort: `--effort`.
        reread: `--reread` or `--no-reread`.
    """

    prior: str | None
    text: str
    top_p: float | None
    effort: int | None
    reread: bool | None

    def __post_init__(self) -> None:
        check_length_top_p(self.top_p)

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

    def of(self, lm: "DiffusionLM", num: int) -> "LengthSearch | None":
        """The search, by the model's own prior or the one asked for; None where a model ends spans itself."""
        from dlm.lm.search import NOT_REREAD, LengthSearch
        from dlm.model.spans import LengthPrior

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
        return search if self.top_p is None else replace(search, top_p=self.top_p)


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


def _check_length(
    max_length: int | None, given: Sequence[Mapping[str, Any]], ask: Callable[..., Template], marker: str
) -> None:
    """Refuses `--max-length` where no span of any record has any length."""
    if max_length is not None and given and all(ask(each, longest=1) == ask(each, longest=2) for each in given):
        raise ConfigError(f"--max-length is for spans such as [{marker}], and every span says its own: leave it out")


def _check_use(
    lm: "DiffusionLM",
    templates: Mapping[int, Template],
    parsed: Mapping[int, Template],
    search: "LengthSearch | None",
    asked: _Asked,
) -> None:
    """Refuses options of a search where no span needs one, of the texts that are filled and of those left out."""
    from dlm.template import is_open

    if search is None:
        return
    resolved = [*map(lm.languages.resolved, templates.values())]
    dropped = [template for number, template in parsed.items() if number not in templates]
    searched = [*filter(is_open, (*resolved, *dropped))]
    if asked.top_p is not None and searched and all(map(has_choices, searched)):
        raise ConfigError("--length-top-p: choices are tried whatever their length; leave it out")
    if resolved and not searched:
        if unused := [name for name in asked.given if name in OF_LENGTHS]:
            raise ConfigError(
                f"{_are(unused)} for spans of unknown length, and every span has its length: leave {_them(unused)} out"
            )
        enumerated = any(lm.languages.enumerated(each, search.effort) for each in resolved)
        if asked.effort is not None and not enumerated and not search.ranks(causal=lm.formulation.readings.causal):
            raise ConfigError(
                "--effort: nothing is searched here, since every span has its length and no causal reading ranks "
                "fillings; leave it out, or ask for more alternatives by --num"
            )


def _tell_cost(lm: "DiffusionLM", templates: Sequence[Template], search: "LengthSearch | None", num: int) -> None:
    """Says how spans will be filled, and what a search will cost, before it begins."""
    from dlm.lm.evidence import ASKED
    from dlm.template import is_open

    if search is None:
        _note("this model fills in the middle: one span after the other, from left to right")
        return
    templates = [*map(lm.languages.resolved, templates)]
    templates = [each for each in templates if not lm.languages.enumerated(each, search.effort)]
    searched = [template for template in templates if is_open(template)]
    causal = lm.formulation.readings.causal
    tries = search.tried(num, causal=causal)
    if searched:
        holes = max(sum(isinstance(part, Hole) and part.most is not None for part in each) for each in searched)
        mixed = search.ranks(causal=causal) and any(search.rereads(each) and _several(each) for each in searched)
        what = f"at most {counted(search.effort, 'length')}" + (f" of each of {holes} spans" if holes > 1 else "")
        _note(
            f"{_each_of(searched)}{what} {'is' if search.effort == 1 else 'are'} weighed by {ASKED} tokens behind, and "
            f"at most {counted(max(num, search.effort), 'filling')} tried{MIXED if mixed else ''} (--effort)"
        )
    if len(searched) < len(templates) and tries > num:
        known = [template for template in templates if not is_open(template)]
        what = "the likeliest is" if num == 1 else f"the {num} likeliest are"
        mixed = search.ranks(causal=causal) and any(map(_several, known))
        _note(f"{_each_of(known)}{what} taken of {tries} fillings{MIXED if mixed else ''} (--effort)")


def _several(template: Template) -> bool:
    """Whether a text has several spans."""
    return sum(isinstance(part, Hole) for part in template) > 1


def _each_of(texts: Sequence[Template]) -> str:
    return "" if len(texts) == 1 else f"for each of {len(texts)} texts, "


def _note(told: str) -> None:
    errors.print(told, style="dim", markup=False, highlight=False, soft_wrap=True)


def _choices(given: str | None) -> Sequence[str] | None:
    """The texts of `--choices`, which commas part."""
    if given is None:
        return None
    return [part.replace(r"\,", ",") for part in re.split(r"(?<!\\),", check_given(given, "--choices"))]


def _template_of(fields: Mapping[str, Any], marker: str, longest: int, choices: Sequence[str] | None) -> Template:
    """The text and the spans of a record."""
    free_of(WRITTEN, fields)
    if "text" not in fields:
        raise DataError(f'no field "text" with a text in it: {shortened(json.dumps(fields), 60)}')
    try:
        text = check_text(fields["text"])
    except DataError as error:
        raise DataError(f'no field "text" with a text in it: {error}') from error
    return parse_template(text, marker, longest, choices)


def _write_lines(
    records: Sequence[Record[Template]],
    found: "Iterable[Sequence[Infilling]]",
    output: Path | None,
    overwrite: bool,
    keeps: int | None,
) -> None:
    """Writes what is found of each record on a line, as soon as it is finished, behind the bytes that are kept."""
    with resumable(output), line_writer(output, overwrite=overwrite, keeps=keeps) as write:
        for record, alternatives in zip(records, found, strict=True):
            write(json_line({**record.given, **_filled(alternatives)}, output))


def _is_filled(fields: Mapping[str, Any], template: Template) -> bool:
    """Whether what is written on a line is a text with its spans filled."""
    from dlm.lm.canvas import fill

    spans, holes = fields.get("spans"), sum(isinstance(part, Hole) for part in template)
    if not isinstance(spans, list) or len(spans) != holes or not all(isinstance(span, str) for span in spans):
        return False
    return bool(fields.get("text") == fill(template, spans))


def _filled(alternatives: "Sequence[Infilling]") -> dict[str, Any]:
    """What is written of a record that was filled, in plain values."""
    plain = [
        {
            "text": found.text,
            "spans": list(found.spans),
            "log_likelihood": found.log_likelihood,
            "network_calls": found.calls,
            "lengths": list(found.lengths),
            "log_joint": found.log_joint,
            **({} if found.log_whole is None else {"log_whole": found.log_whole}),
        }
        for found in alternatives
    ]
    weighed = islice(alternatives[0].length_posterior.items(), MOST_LENGTHS)
    posterior = [{"lengths": list(lengths), "log_probability": log_p} for lengths, log_p in weighed]
    return {**plain[0], **({"length_posterior": posterior} if posterior else {}), "alternatives": plain}


def _show(alternatives: "Sequence[Infilling]", num: int, output: Path | None, overwrite: bool) -> None:
    """Writes the alternatives of a single text, and their likelihoods to stderr."""
    write_text("\n---\n".join(found.text for found in alternatives), output, overwrite=overwrite)
    for rank, found in enumerate(alternatives, start=1):
        score = f"log-likelihood {found.log_likelihood:.2f} nats"
        if found.calls:  # of choices, all are scored and none is written
            score += f", {counted(found.calls, 'network call')}"
        if found.length_posterior:
            what = "length" if len(found.lengths) == 1 else "lengths"
            lengths = ", ".join(map(str, found.lengths))
            score = (
                f"log-probability {found.log_joint:.2f} nats, {found.log_length:.2f} of them of the {what} {lengths}"
            )
        if found.log_whole is not None:
            score += f"; read as a whole, {found.log_whole:.2f} nats"
        _note(f"{rank}. {score}: {shortened(repr(found.spans), 100)}")
    if len(alternatives) < num:
        more = "; more are tried by a higher --effort or --length-top-p" if alternatives[0].length_posterior else ""
        texts = "text was" if len(alternatives) == 1 else "texts were"
        _note(f"only {len(alternatives):,} different {texts} found, of the {num:,} that --num asks for{more}")
