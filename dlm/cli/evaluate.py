"""`dlm eval`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlm.cli import options
from dlm.cli.console import caution, is_first, quiet_libraries, write_data
from dlm.cli.documents import named_documents, own_documents
from dlm.cli.progress import progress
from dlm.cli.tasks import Asked, run_tasks
from dlm.data.detokenize import DETOKENIZERS, check_detokenizer
from dlm.errors import ConfigError
from dlm.plain import counted, plain_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dlm.config import Time
    from dlm.data.batches import Sequences
    from dlm.data.documents import Documents
    from dlm.evaluate.bootstrap import Interval
    from dlm.evaluate.readings import ReadingsReport
    from dlm.evaluate.report import ChainRuleReport, LikelihoodReport
    from dlm.lm import DiffusionLM


class Part(StrEnum):
    """What a document of a text file is."""

    FILE = "file"
    PARAGRAPH = "paragraph"
    LINE = "line"


class Unit(StrEnum):
    """What a perplexity is shared out to."""

    TOKEN = "token"
    WORD = "word"
    BYTE = "byte"


TEXT, TASKS = "A text that is scored", "Tasks of lm-evaluation-harness"
OF_TEXT = (
    *(
        "data",
        "format",
        "split",
        "subset",
        "field",
        "documents_are",
        "max_documents",
        "per",
        "detokenize",
        "wrap",
        "time",
    ),
    *("chain_rule", "chain_rule_sequences"),
)
OF_TASKS = ("task_path", "limit", "few_shot", "apply_chat_template", "length", "sampler")
"""The options that have a part in the one or in the other alone."""

Data = Annotated[
    str | None,
    typer.Option(
        help="A file, folder, glob or dataset.", show_default="the run's own validation text", rich_help_panel=TEXT
    ),
]
Format = Annotated[
    str | None,
    typer.Option(help="The data's format.", show_default="the one that its name tells", rich_help_panel=TEXT),
]
Split = Annotated[str | None, typer.Option(help="Which split of the data.", show_default=False, rich_help_panel=TEXT)]
Subset = Annotated[
    str | None, typer.Option(help="Which subset of a dataset on the Hub.", show_default=False, rich_help_panel=TEXT)
]
Field = Annotated[
    str | None, typer.Option(help="The column that holds the text.", show_default=False, rich_help_panel=TEXT)
]
DocumentsAre = Annotated[
    Part | None,
    typer.Option("--documents", help="What a document of a text file is.", show_default="file", rich_help_panel=TEXT),
]
MaxDocuments = Annotated[
    int | None,
    typer.Option(min=1, help="Score only the first so many documents.", show_default=False, rich_help_panel=TEXT),
]
Per = Annotated[
    Unit,
    typer.Option(help="Whose perplexity comes first. Words are split at white space.", rich_help_panel=TEXT),
]
Detokenize = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(DETOKENIZERS),
        help="First undo the tokens in which this corpus was published; words and bytes are counted before.",
        show_default=False,
        rich_help_panel=TEXT,
    ),
]
Wrap = Annotated[
    bool,
    typer.Option("--wrap", help="Join documents and score full rows of them, as MDLM does.", rich_help_panel=TEXT),
]
Stride = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Score long documents in windows that move by so many tokens: each token once, after at least the others "
        "of the context.",
        show_default=False,
    ),
]
ChainRule = Annotated[
    bool,
    typer.Option("--chain-rule", help="Also score a few sequences exactly, one token a call.", rich_help_panel=TEXT),
]
ChainRuleSequences = Annotated[
    int | None, typer.Option(min=1, help="How many sequences that is.", show_default="16", rich_help_panel=TEXT)
]
Readings = Annotated[
    list[str] | None,
    typer.Option(
        metavar="causal|any-order|blocks:S",
        help="How the model is read; repeatable.",
        show_default="every reading that it was trained for; with --tasks, as its runs are judged",
    ),
]
Chain = Annotated[
    str | None,
    typer.Option(
        metavar="T|continuous",
        help="Bound a chain of T steps, or continuous time.",
        show_default="as the model was trained",
        rich_help_panel=TEXT,
    ),
]
Draws = Annotated[int, typer.Option(min=4, help="Noisy copies of each sequence; even.")]
BatchSize = Annotated[int, typer.Option(min=1, max=options.MOST_ROWS, help="Sequences a forward.")]
TaskNames = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Do these tasks of lm-evaluation-harness instead.",
        show_default=False,
        rich_help_panel=TASKS,
    ),
]
TaskPath = Annotated[
    Path | None,
    typer.Option(help="A folder with task files of your own.", show_default=False, rich_help_panel=TASKS),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Only the first so many documents of each.", show_default=False, rich_help_panel=TASKS),
]
FewShot = Annotated[
    int | None,
    typer.Option(
        "--num-fewshot",
        min=0,
        help="Examples before each question.",
        show_default="as each task says",
        rich_help_panel=TASKS,
    ),
]
ApplyChat = Annotated[
    bool,
    typer.Option("--apply-chat-template", help="Ask by the model's chat template.", rich_help_panel=TASKS),
]
Length = Annotated[
    int | None,
    typer.Option(min=1, help="The most tokens of an answer.", show_default="as each task says", rich_help_panel=TASKS),
]
HowWritten = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="'OPTIONS'",
        help="How answers are written: options of dlm sample in quotes, such as '--steps 64 --order confidence'.",
        show_default="as by dlm sample, at the temperature of the task",
        rich_help_panel=TASKS,
    ),
]
Noise = Annotated[int, typer.Option(help="The noise follows from it.")]


def evaluate(
    context: typer.Context,
    model: options.Model,
    data: Data = None,
    format: Format = None,
    split: Split = None,
    subset: Subset = None,
    field: Field = None,
    documents_are: DocumentsAre = None,
    max_documents: MaxDocuments = None,
    per: Per = Unit.TOKEN,
    detokenize: Detokenize = None,
    wrap: Wrap = False,
    stride: Stride = None,
    reading: Readings = None,
    time: Chain = None,
    draws: Draws = 16,
    batch_size: BatchSize = 32,
    chain_rule: ChainRule = False,
    chain_rule_sequences: ChainRuleSequences = None,
    tasks: TaskNames = None,
    task_path: TaskPath = None,
    limit: Limit = None,
    few_shot: FewShot = None,
    apply_chat_template: ApplyChat = False,
    length: Length = None,
    sampler: HowWritten = None,
    dtype: options.HeldIn = "fp32",
    quantised: options.Load = None,
    seed: Noise = 0,
    mask_token: options.MaskToken = None,
    device: options.Device = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Bound the perplexity of a text, with error bars; or do tasks of lm-evaluation-harness.

    Example:  dlm eval runs/tiny --data book.txt
    """
    _check_together(context, tasks is not None)
    if draws % 2:
        raise ConfigError(f"--draws must be even, got {draws}")
    weights = options.check_weights(dtype, quantised)
    load = partial(_load, model, device, mask_token, weights)
    if tasks is not None:
        quiet_libraries()
        how = {"draws": draws, "seed": seed, "batch_size": batch_size, "length": length, "stride": stride}
        asked = Asked(tasks, task_path, limit, few_shot, apply_chat_template, reading, sampler, how)
        run_tasks(load, asked, as_json=as_json)
        return
    if chain_rule_sequences is not None and not chain_rule:
        raise ConfigError("--chain-rule-sequences says how many --chain-rule scores: give that too, or leave it out")
    if wrap and stride is not None:
        raise ConfigError("--wrap joins documents and --stride keeps them apart: leave one of them out")
    if detokenize is not None:
        check_detokenizer(detokenize, "--detokenize")
    chain = _time(time)
    quiet_libraries()
    lm = load()
    named = format, split, subset, field
    if data is None:
        _check_own(lm, documents_are, detokenize)
        documents = own_documents(lm, model, *named)
    else:
        documents = named_documents(lm, data, *named, documents=(documents_are or Part.FILE).value)
    if max_documents:
        documents = documents.first(max_documents)
    text = _arranged(lm, documents, per, detokenize, wrap, stride)
    estimate = {"draws": draws, "batch_size": batch_size, "seed": seed, "time": chain}
    exactly = (chain_rule_sequences or 16) if chain_rule else 0
    report = _measured(lm, text, reading or (), exactly, estimate, shown=not as_json)
    if is_first():
        _print(lm, text, report, per, as_json=as_json)


@dataclass(frozen=True)
class Arranged:
    """The text that is scored.

    Attributes:
        documents: The documents, as they are scored.
        sequences: Their rows.
        words_D: Words of each, where a perplexity a word is asked for.
    """

    documents: "Documents"
    sequences: "Sequences"
    words_D: "NDArray[np.int64] | None"


Reports = tuple["ReadingsReport", "ChainRuleReport | None"]


def _check_together(context: typer.Context, tasks: bool) -> None:
    """Refuses options of a text with `--tasks`, and those of tasks without."""
    asked = options.given_names(context)
    if tasks and (of_text := [name for name in asked if name in OF_TEXT]):
        raise ConfigError(
            f"{_option(of_text[0])} is of a text that is scored, and --tasks have their own: leave it out"
        )
    if not tasks and (of_tasks := [name for name in asked if name in OF_TASKS]):
        raise ConfigError(f"{_option(of_tasks[0])} is of tasks that are done: give --tasks too, or leave it out")


def _check_own(lm: "DiffusionLM", documents_are: Part | None, detokenize: str | None) -> None:
    """Refuses what the configuration of a run says of the run's own text."""
    if documents_are is not None:
        raise ConfigError("--documents is of other text than the run's own: give that by --data, or leave it out")
    if detokenize is not None and lm.config is not None and lm.config.data.detokenize:
        raise ConfigError("--detokenize: the run has undone the tokens of its own text (data.detokenize): leave it out")


def _option(name: str) -> str:
    return {"few_shot": "--num-fewshot", "documents_are": "--documents"}.get(name, f"--{name.replace('_', '-')}")


def _load(model: str, device: str | None, mask_token: str | None, weights: "options.Weights") -> "DiffusionLM":
    """The model, each process's on its own device."""
    from dlm.distributed import process_state
    from dlm.lm import DiffusionLM

    options.check_device(device)
    team = process_state()
    device = device or (str(team.device) if team.num_processes > 1 else None)
    mask = options.read_mask_token(mask_token)
    return DiffusionLM.from_pretrained(model, device=device, mask_token=mask, **weights)


def _arranged(
    lm: "DiffusionLM", documents: "Documents", per: Unit, detokenize: str | None, wrap: bool, stride: int | None
) -> Arranged:
    """The documents in the rows that are asked for."""
    from dlm.train.own_text import arranged

    words = documents.words() if per == Unit.WORD else None
    written, sequences = arranged(lm, documents, detokenize=detokenize, wrap=wrap, stride=stride)
    return Arranged(written, sequences, words)


def _measured(
    lm: "DiffusionLM", text: Arranged, readings: Sequence[str], exactly: int, how: Mapping[str, Any], *, shown: bool
) -> Reports:
    """What is found of the text, and of so many of its sequences exactly."""
    from dlm.evaluate.chain_rule import evaluate_chain_rule
    from dlm.evaluate.readings import evaluate_readings

    with progress("sequence", shown=shown and is_first()) as told:
        found = evaluate_readings(lm, text.sequences, readings, words_D=text.words_D, told=told, **how)
        if not exactly:
            return found, None
        told(0, exactly, "chain rule")
        return found, evaluate_chain_rule(lm, text.sequences, count=exactly, **how)


def _print(lm: "DiffusionLM", text: Arranged, reports: Reports, per: Unit, *, as_json: bool) -> None:
    """The report on stdout, and what is to be known of it on stderr."""
    from dlm.data.losses import altered_in, left_out, odd_roles

    found, exact = reports
    plain = plain_json({**found.to_dict(), "chain_rule": exact.to_dict() if exact else None})
    write_data(plain if as_json else _table(found, exact, per), None)
    documents, tokenizer = text.documents, lm.tokenizer
    lost = *left_out("scored", documents, text.sequences), *odd_roles("scored", documents, tokenizer)
    for line in (*lost, *altered_in("scored", documents.texts(), tokenizer), *found.first.cautions()):
        caution(line)


def _time(asked: str | None) -> "Time | None":
    from dlm.config import LONGEST_CHAIN, Time

    if asked is None:
        return None
    if asked.isdecimal() and (len(asked) > 18 or int(asked) > LONGEST_CHAIN):
        raise ConfigError(
            f"--time must be at most {LONGEST_CHAIN:,} steps, got {asked:.30}: ask for fewer, or for --time continuous"
        )
    if asked != "continuous" and not (asked.isdecimal() and int(asked) > 0):
        raise ConfigError(f"--time is a number of steps or continuous, got {asked!r}")
    return Time(None if asked == "continuous" else int(asked))


def _dropped(report: "LikelihoodReport") -> str:
    """Of how many documents something is dropped."""
    why = "behind the last full row" if report.packing == "wrap" else "whose prompts fill a row"
    parts = [f"{counted(report.dropped_documents, 'whole document')}, {why}"] * bool(report.dropped_documents)
    parts += [f"{counted(report.cut_documents, 'document')} cut"] * bool(report.cut_documents)
    return f": {', '.join(parts)}" if parts else ""


def _shown(interval: "Interval | None", sign: str = "") -> str:
    return "n.a." if interval is None else f"{interval[0]:{sign}.4f} to {interval[1]:{sign}.4f}"


def _table(found: "ReadingsReport", exact: "ChainRuleReport | None", per: Unit) -> str:
    report = found.first
    lines = [*(_values(report, per) if len(found.reports) == 1 else _readings(found, per))]
    terms = (("prior", report.prior_nats_per_token), ("reconstruction", report.reconstruction_nats_per_token))
    shown = [f"{nats:.6f} from the {name}" for name, nats in terms if nats and report.estimator != "exact"]
    if shown:
        lines.append(f"of its nats/token {' and '.join(shown)}, as the schedule does not go from 1 to 0")
    lines += [
        "",
        *_method(found),
        f"scored           {_scored(report)}, {counted(report.documents, 'document')} "
        f"in {counted(report.sequences, 'sequence')} of {report.length} ({report.packing})",
        *_given(report),
        f"dropped          {counted(report.dropped_tokens, 'token')}, {counted(report.dropped_bytes, 'byte')}"
        f"{_dropped(report)}",
        f"estimator        {_estimator(found)}, seed {report.seed}",
    ]
    if exact:
        lines += [
            "",
            f"exact, on {counted(exact.sequences, 'sequence')} ({counted(exact.tokens, 'token')}), nats/token:",
            f"  left to right  {exact.left_to_right_nats_per_token:.4f}",
            f"  confidence     {exact.confidence_nats_per_token:.4f}",
            f"  random order   {exact.bound_nats_per_token:.4f} (the bound)",
        ]
    return "\n".join(lines)


def _given(report: "LikelihoodReport") -> Iterator[str]:
    """What the bound is given."""
    if report.given_tokens:
        prompts = counted(report.given_tokens, "token")
        yield f"given            {prompts} of prompts: the bound is of the responses alone"
    if report.attend == "document":
        yield "given            where each document ends: it is read alone, as in training"
    if report.context:
        yield f"given            the {report.context} tokens or more before what each further window scores, clean"


def _scored(report: "LikelihoodReport") -> str:
    """How much is scored."""
    words = [counted(report.words, "word")] if report.words else []
    return ", ".join([counted(report.tokens, "token"), *words, counted(report.bytes, "byte")])


def _perplexity(report: "LikelihoodReport", per: Unit) -> tuple[float, "Interval | None"]:
    """The perplexity of a unit, and its interval."""
    if per == Unit.WORD:
        assert report.word_perplexity_bound is not None
        return report.word_perplexity_bound, report.word_perplexity_bound_ci95
    if per == Unit.BYTE:
        return report.byte_perplexity_bound, report.byte_perplexity_bound_ci95
    return report.perplexity_bound, report.perplexity_bound_ci95


def _values(report: "LikelihoodReport", per: Unit) -> Iterator[str]:
    """The lines of one reading; the perplexity of a unit that was asked for comes first."""
    yield f"{'exact value' if report.estimator == 'exact' else 'upper bound'}      value     95% interval"
    first = () if per == Unit.TOKEN else ((f"ppl/{per}", *_perplexity(report, per)),)
    rows = (
        *first,
        ("nats/token", report.nats_per_token, report.nats_per_token_ci95),
        ("bits/token", report.bits_per_token, report.bits_per_token_ci95),
        ("bits/byte", report.bits_per_byte, report.bits_per_byte_ci95),
        ("perplexity", report.perplexity_bound, report.perplexity_bound_ci95),
    )
    for name, value, interval in rows:
        yield f"{name:<12} {value:>9.4f}     {_shown(interval)}"


def _readings(found: "ReadingsReport", per: Unit) -> Iterator[str]:
    """The lines of several readings, and of how they differ."""
    first, perplexity = found.first, "perplexity" if per == Unit.TOKEN else f"ppl/{per}"
    yield f"reading             nats/token  95% interval        bits/byte{perplexity:>12}  standard error"
    for name, report in found.reports.items():
        sign = "=" if report.estimator == "exact" else "≤"
        masks = "exact" if report.estimator == "exact" else f"{report.monte_carlo_se:.4f} from the masks"
        each, _ = _perplexity(report, per)
        yield (
            f"{name:<16} {sign} {report.nats_per_token:>10.4f}  {_shown(report.nats_per_token_ci95):<18}"
            f"{report.bits_per_byte:>11.4f} {each:>11.{4 if each < 1e6 else 0}f}  {masks}"
        )
    yield ""
    yield f"{f'against {first.reading}':<18} {'nats/token':>10}  95% interval, paired by {first.resampled}"
    for less in found.differences:
        yield f"{less.reading:<18} {less.nats_per_token:>+10.4f}  {_shown(less.nats_per_token_ci95, '+')}"


def _method(found: "ReadingsReport") -> Iterator[str]:
    """The chain of the bounds, and the errors where they are not in a table of readings."""
    report = found.first
    chain = "continuous time" if report.steps is None else f"{report.steps} steps"
    if report.reading != "any-order" and len(found.reports) == 1:
        yield f"reading          {report.reading}"
    if any(each.estimator != "exact" for each in found.reports.values()):
        yield f"chain            {report.process} noise, {report.schedule} schedule, {chain}"
    texts = "n.a." if report.sampling_se is None else f"{report.sampling_se:.4f}"
    if len(found.reports) > 1:
        return
    if report.estimator == "exact":
        yield f"standard error   {texts} nats/token from the texts ({report.resampled} resampled)"
    else:
        yield (
            f"standard error   {report.monte_carlo_se:.4f} nats/token from the "
            f"{'masks' if report.estimator == 'counts' else 'noise'} (Monte-Carlo), "
            f"{texts} from the texts ({report.resampled} resampled)"
        )


def _estimator(found: "ReadingsReport") -> str:
    """How the bounds are estimated."""
    report = next((each for each in found.reports.values() if each.estimator != "exact"), found.first)
    if report.estimator == "exact":
        return "exact"
    masks = report.estimator == "counts"
    drawn = "exact count with complements" if masks else "times"
    return f"stratified {drawn}, {report.draws} draws{' and the full mask' if masks else ''}"
