"""`dlm eval`."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlm.cli import options
from dlm.cli.console import errors, is_first, quiet_libraries, write_data
from dlm.errors import ConfigError, DataError
from dlm.model.locate import CHECKPOINTS, resolve

if TYPE_CHECKING:
    from dlm.config import Time
    from dlm.data.batches import Sequences
    from dlm.data.documents import Documents
    from dlm.evaluate.bootstrap import Interval
    from dlm.evaluate.readings import ReadingsReport
    from dlm.evaluate.report import ChainRuleReport, LikelihoodReport
    from dlm.lm import DiffusionLM


FEWEST_SEQUENCES = 4
"""Sequences from which on a bootstrap is not cautioned about."""

Readings = Annotated[
    list[str] | None,
    typer.Option(
        metavar="causal|any-order|blocks:S",
        help="How the model is read; repeatable.",
        show_default="every reading that it was trained for",
    ),
]
Chain = Annotated[
    str | None,
    typer.Option(
        metavar="T|continuous",
        help="Bound a chain of T steps, or continuous time.",
        show_default="as the model was trained",
    ),
]


def evaluate(
    model: options.Model,
    data: Annotated[
        str | None,
        typer.Option(help="A file, folder, glob or dataset.", show_default="the run's own validation text"),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="The data's format.", show_default="the one that its name tells")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which split of the data.", show_default=False)] = None,
    subset: Annotated[
        str | None, typer.Option(help="Which subset of a dataset on the Hub.", show_default=False)
    ] = None,
    field: Annotated[str | None, typer.Option(help="The column that holds the text.", show_default=False)] = None,
    reading: Readings = None,
    time: Chain = None,
    draws: Annotated[int, typer.Option(min=4, help="Noisy copies of each sequence; even.")] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences a forward.")] = 32,
    max_documents: Annotated[
        int | None, typer.Option(min=1, help="Score only the first so many documents.", show_default=False)
    ] = None,
    chain_rule: Annotated[
        bool, typer.Option("--chain-rule", help="Also score a few sequences exactly, one token a call.")
    ] = False,
    chain_rule_sequences: Annotated[
        int | None, typer.Option(min=1, help="How many sequences that is.", show_default="16")
    ] = None,
    dtype: options.HeldIn = "fp32",
    quantised: options.Load = None,
    seed: Annotated[int, typer.Option(help="The noise follows from it.")] = 0,
    mask_token: options.MaskToken = None,
    device: options.Device = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Bound the perplexity of a text, with error bars.

    Example:  dlm eval runs/tiny --data book.txt
    """
    if draws % 2:
        raise ConfigError(f"--draws must be even, got {draws}")
    if chain_rule_sequences is not None and not chain_rule:
        raise ConfigError("--chain-rule-sequences says how many --chain-rule scores: give that too, or leave it out")
    weights = options.check_weights(dtype, quantised)
    chain = _time(time)
    quiet_libraries()
    from dlm.data.losses import altered_in, left_out
    from dlm.distributed import process_state
    from dlm.evaluate.chain_rule import evaluate_chain_rule
    from dlm.evaluate.readings import evaluate_readings
    from dlm.lm import DiffusionLM

    options.check_device(device)
    team = process_state()
    device = device or (str(team.device) if team.num_processes > 1 else None)
    mask = options.read_mask_token(mask_token)
    lm = DiffusionLM.from_pretrained(model, device=device, mask_token=mask, **weights)
    named = format, split, subset, field
    documents = own_documents(lm, model, *named) if data is None else named_documents(lm, data, *named)
    if max_documents:
        documents = documents.first(max_documents)
    sequences = _sequences(lm, documents)
    found = evaluate_readings(lm, sequences, reading or (), draws=draws, batch_size=batch_size, seed=seed, time=chain)
    exact = None
    if chain_rule:
        exact = evaluate_chain_rule(
            lm, sequences, count=chain_rule_sequences or 16, batch_size=batch_size, seed=seed, draws=draws, time=chain
        )
    if not is_first():
        return
    plain = json.dumps({**found.to_dict(), "chain_rule": exact.to_dict() if exact else None})
    write_data(plain if as_json else _table(found, exact), None)
    lost = *left_out("scored", documents, sequences), *altered_in("scored", documents, lm.tokenizer)
    for line in (*lost, *_cautions(found.first)):
        errors.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _cautions(report: "LikelihoodReport") -> Iterator[str]:
    """What is to be known of a bound that is not one of the text itself, or not a number."""
    if report.sampling_se is None:
        yield (
            "the text is one sequence: the error from the choice of the texts is unknown, and so is every interval; "
            "score more text for one"
        )
    if report.unknown_tokens:
        yield (
            f"{report.unknown_tokens:,} tokens stand for characters that the tokenizer does not know: "
            "the bound is not one of this very text"
        )
    if report.impossible_tokens:
        named = [f"{token!r} ({count:,} times)" for token, count in report.impossible_tokens.items()]
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        yield (
            "the bound is infinite: the text holds tokens that the model never predicts: "
            f"{', '.join(named[:5])}{more}; is the mask (--mask-token) the right one?"
        )
    elif math.isinf(report.nats_per_token):
        yield "the bound is infinite: the model gives a token of this text the probability zero"
    elif math.isnan(report.nats_per_token):
        yield "the bound is not a number: the network computes none from this text; are its weights damaged?"
    elif 1 < report.sequences < FEWEST_SEQUENCES:
        yield f"intervals from {report.sequences} sequences are too narrow; score more text for wider, truer ones"


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


def _sequences(lm: "DiffusionLM", documents: "Documents") -> "Sequences":
    from dlm.data.corpus import corpus

    packing = lm.config.data.packing if lm.config else "pack"
    return corpus(lm.tokenizer, documents, lm.context, packing, lm.sidecar.affixes, lm.layout.chat_template)


def named_documents(
    lm: "DiffusionLM", data: str, format: str | None, split: str | None, subset: str | None, field: str | None
) -> "Documents":
    """The documents of `--data`."""
    from dlm.data.choosing import source_of, unread
    from dlm.data.formats import FORMATS
    from dlm.data.reading import read

    source = source_of(data, field, split, subset, format)
    has_columns = source.format in FORMATS and FORMATS[source.format].tabular
    if lm.config is not None and field is None and has_columns:  # the columns are those of the run
        begun = lm.config.data.train
        kept = ("field", "prompt", "response", "messages", "skip_invalid")
        source = replace(source, **{name: getattr(begun, name) for name in kept})
    if is_first():
        for line in unread(source, "--data"):
            errors.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return read(source, "--data")


def own_documents(
    lm: "DiffusionLM", model: str, format: str | None, split: str | None, subset: str | None, field: str | None
) -> "Documents":
    """The run's own documents, from where it reads them now, if they are what it read."""
    from dlm.data.reading import read_splits
    from dlm.data.streaming import open_stream
    from dlm.settings import load_config

    for name, value in (("--format", format), ("--subset", subset), ("--field", field)):
        if value is not None:
            raise ConfigError(f"{name} is of other text than the run's own: give that by --data, or leave {name} out")
    if lm.config is None:
        raise ConfigError("this model has no validation text of its own: give one by --data FILE")
    own = lm.config.data
    folder = Path(resolve(model)).resolve().parent
    if folder.name == CHECKPOINTS and (folder.parent / "config.yaml").is_file():
        own = load_config(folder.parent / "config.yaml").data  # its text may have moved since the checkpoint
    if own.streaming:
        if split not in (None, "validation"):
            raise ConfigError("--split of a run that streams its text is validation; give other text by --data FILE")
        documents = open_stream(own).validation
    else:
        if split not in (None, "train", "validation"):
            raise ConfigError(f"--split of a run is train or validation, got {split!r}")
        splits = read_splits(own)
        documents = splits.train if split == "train" else splits.validation
    _check_same(model, _sequences(lm, documents), split)
    return documents


def _check_same(model: str, sequences: "Sequences", split: str | None) -> None:
    """Refuses a run's own text where it is no longer what the run read, so that trained text may be in it."""
    from dlm.train.run import PROGRESS, TRAINER, Progress

    checkpoint = Path(resolve(model))
    if not (checkpoint / TRAINER / PROGRESS).is_file():
        return
    progress, tokens = Progress.read(checkpoint), sequences.tokens
    known = progress.train_checksum if split == "train" else progress.validation_checksum
    if known not in (None, tokens.checksum, tokens.earlier_checksum):
        raise DataError(
            f"the {split or 'validation'} text of {model}, or what this version makes of it, "
            "has changed since the run read it: put the old text back, or name the text to score by --data"
        )


def _dropped(report: "LikelihoodReport") -> str:
    """Of how many documents something is dropped."""
    parts = [f"{report.dropped_documents:,} whole documents, whose prompts fill a row"] * bool(report.dropped_documents)
    parts += [f"{report.cut_documents:,} documents cut"] * bool(report.cut_documents)
    return f": {', '.join(parts)}" if parts else ""


def _shown(interval: "Interval | None", sign: str = "") -> str:
    return "n.a." if interval is None else f"{interval[0]:{sign}.4f} to {interval[1]:{sign}.4f}"


def _table(found: "ReadingsReport", exact: "ChainRuleReport | None") -> str:
    report = found.first
    lines = [*(_values(report) if len(found.reports) == 1 else _readings(found))]
    terms = (("prior", report.prior_nats_per_token), ("reconstruction", report.reconstruction_nats_per_token))
    shown = [f"{nats:.6f} from the {name}" for name, nats in terms if nats and report.estimator != "exact"]
    if shown:
        lines.append(f"of its nats/token {' and '.join(shown)}, as the schedule does not go from 1 to 0")
    lines += [
        "",
        *_method(found),
        f"scored           {report.tokens:,} tokens, {report.bytes:,} bytes, {report.documents:,} documents "
        f"in {report.sequences:,} sequences of {report.length} ({report.packing})",
        *(
            [f"given            {report.given_tokens:,} tokens of prompts: the bound is of the responses alone"]
            if report.given_tokens
            else []
        ),
        *(
            ["given            where each document ends: it is read alone, as in training"]
            if report.attend == "document"
            else []
        ),
        f"dropped          {report.dropped_tokens:,} tokens, {report.dropped_bytes:,} bytes{_dropped(report)}",
        f"estimator        {_estimator(found)}, seed {report.seed}",
    ]
    if exact:
        lines += [
            "",
            f"exact, on {exact.sequences} sequences ({exact.tokens:,} tokens), nats/token:",
            f"  left to right  {exact.left_to_right_nats_per_token:.4f}",
            f"  confidence     {exact.confidence_nats_per_token:.4f}",
            f"  random order   {exact.bound_nats_per_token:.4f} (the bound)",
        ]
    return "\n".join(lines)


def _values(report: "LikelihoodReport") -> Iterator[str]:
    """The lines of one reading."""
    yield f"{'exact value' if report.estimator == 'exact' else 'upper bound'}      value     95% interval"
    rows = (
        ("nats/token", report.nats_per_token, report.nats_per_token_ci95),
        ("bits/token", report.bits_per_token, report.bits_per_token_ci95),
        ("bits/byte", report.bits_per_byte, report.bits_per_byte_ci95),
        ("perplexity", report.perplexity_bound, report.perplexity_bound_ci95),
    )
    for name, value, interval in rows:
        yield f"{name:<12} {value:>9.4f}     {_shown(interval)}"


def _readings(found: "ReadingsReport") -> Iterator[str]:
    """The lines of several readings, and of how they differ."""
    first = found.first
    yield "reading             nats/token  95% interval        bits/byte  perplexity  standard error"
    for name, report in found.reports.items():
        sign = "=" if report.estimator == "exact" else "≤"
        masks = "exact" if report.estimator == "exact" else f"{report.monte_carlo_se:.4f} from the masks"
        yield (
            f"{name:<16} {sign} {report.nats_per_token:>10.4f}  {_shown(report.nats_per_token_ci95):<18}"
            f"{report.bits_per_byte:>11.4f}{report.perplexity_bound:>12.4f}  {masks}"
        )
    yield ""
    yield f"{f'against {first.reading}':<18} {'nats/token':>10}  95% interval, paired by {first.resampled}"
    for each in found.differences:
        yield f"{each.reading:<18} {each.nats_per_token:>+10.4f}  {_shown(each.nats_per_token_ci95, '+')}"


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
