"""`dlm score`."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlm.cli import options
from dlm.cli.console import caution, check_apart, check_free, json_line, line_writer, note, quiet_libraries
from dlm.cli.records import (
    Kept,
    Record,
    Resume,
    chat_of,
    check_resume,
    file_lines,
    free_of,
    is_batch,
    read_batch,
    read_kept,
    report,
    resumable,
    usable,
)
from dlm.cli.writing import load
from dlm.data.keys import listed
from dlm.data.lines import bare_suffix
from dlm.data.records import parse_record
from dlm.data.text import check_text
from dlm.errors import ConfigError, DataError
from dlm.plain import counted, finite

if TYPE_CHECKING:
    from dlm.lm import Answers, DiffusionLM, Score
    from dlm.lm.layout import Prompt

Asked = tuple["Prompt", list[str]]
"""A prompt and the responses to it."""

CHAIN_RULE = "left-to-right"
TABLES = (".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Suffixes of files whose lines are no texts."""

DRAWS = 16
FOUND = ("log_likelihood", "nats", "bits", "tokens", "bytes", "standard_error", "greedy")
WRITTEN = (*FOUND, "scores", "best", "best_per_byte", "reading")
"""Fields that are written beside those of a record: those of one answer, and those of several."""

SHAPES = (
    'it needs a "text"; or a "prompt" or "messages" with a "response" or "choices"; or "messages" that end with the '
    "assistant's"
)


Reading = Annotated[
    str | None,
    typer.Option(
        metavar="causal|any-order|blocks:S",
        help="How the model is read.",
        show_default="causal, which is exact, where it was trained so; else its own",
    ),
]
ChainRule = Annotated[
    bool, typer.Option("--chain-rule", help="Score exactly, masks from left to right, one token a call.")
]
Draws = Annotated[
    int | None, typer.Option(min=4, help="Masked copies that a bound is estimated from; even.", show_default=str(DRAWS))
]
Lines = Annotated[
    Path,
    typer.Argument(
        help="A text a line, or records: .jsonl and .ndjson, compressed too; - reads stdin.", show_default=False
    ),
]


def score(
    model: options.Model,
    file: Lines,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Lines are records whatever the file's name is.")] = False,
    reading: Reading = None,
    chain_rule: ChainRule = False,
    draws: Draws = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Tell whether greedy decoding, one token at a time, gives each answer.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=options.MOST_ROWS, help="Answers scored side by side.")] = 16,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Score what can be scored, and name the rest at the end.")
    ] = False,
    resume: Resume = False,
    seed: Annotated[int, typer.Option(help="The noise follows from it.")] = 0,
    mask_token: options.MaskToken = None,
    dtype: options.HeldIn = "fp32",
    quantised: options.Load = None,
    device: options.Device = None,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,
) -> None:
    """Score texts, answers to prompts, or choices between answers: a line in, a JSON object a line out.

    Example:  dlm score runs/tiny questions.jsonl --output scores.jsonl
    """
    reading = _reading(reading, chain_rule)
    if draws is not None and draws % 2:
        raise ConfigError(f"--draws must be even, got {draws}")
    check_resume(resume, output, overwrite)
    check_apart({"FILE": file}, {"--output": output})
    check_free(output, overwrite or resume, resumable=True)
    lines = file_lines(file)
    parse = parse_record if jsonl or is_batch(file) else _plain_line
    if parse is _plain_line and (suffix := bare_suffix(file)) in TABLES:
        raise ConfigError(
            f"{file}: {suffix} holds records, and plain lines would be scored with their signs and all: write them as "
            ".jsonl, or give --jsonl if each line is an object of JSON"
        )
    records = read_batch(lines, _asked_of, name="stdin" if str(file) == "-" else file, parse=parse)
    usable(records, lambda asked: None, keep_going=keep_going)
    quiet_libraries()

    lm = load(model, device, dtype, quantised, mask_token)
    reading = reading or lm.formulation.readings.all[0]
    exact = lm.estimator(reading, draws or DRAWS).method(lm.process) == "exact"
    if exact and draws is not None:
        raise ConfigError(f"--draws: the reading {reading} is exact and draws nothing; leave it out")
    wanted = usable(records, lambda asked: _answers(asked).canvases(lm.layout), keep_going=keep_going)
    kept = read_kept(output, [*wanted.values()], WRITTEN) if resume and output else Kept()
    how = {"reading": reading, "draws": draws or DRAWS, "greedy": greedy, "seed": seed, "batch_size": batch_size}
    began = time.perf_counter()
    found = _scored(lm, wanted, kept.found, how)
    rest = [*wanted.values()][len(kept.found) :]
    with resumable(output), line_writer(output, overwrite=overwrite, keeps=kept.size) as write:
        scores = _write_lines(rest, found, reading, lambda line: write(json_line(line, output)))
    for told in _altered(lm, wanted.values()):
        caution(told)
    _tell(scores, len(kept.found), reading if exact else f"{reading}, a bound", time.perf_counter() - began)
    report(records)


def _reading(reading: str | None, chain_rule: bool) -> str | None:
    """The reading that the command line asks for; None for the model's own."""
    if not chain_rule:
        return reading
    if reading not in (None, "any-order", CHAIN_RULE):
        raise ConfigError(f"--chain-rule is of the reading any-order, got --reading {reading}: leave one of them out")
    return CHAIN_RULE


def _plain_line(line: str) -> dict[str, Any]:
    """A line of a file of texts."""
    return {"text": line.rstrip("\r\n")}


def _asked_of(fields: Mapping[str, Any]) -> Asked:
    """What a record asks for."""
    free_of(WRITTEN, fields)
    given = [name for name in ("text", "prompt", "messages", "response", "choices") if fields.get(name) is not None]
    match given:
        case ["text"]:
            return None, [_text(fields, "text")]
        case ["messages"]:
            *before, last = chat_of(fields["messages"])
            if last["role"] != "assistant":
                raise DataError(
                    'messages must end with the assistant\'s; or give a "response" or "choices" beside them'
                )
            if "tool_calls" in last or not before:
                raise DataError("the assistant's last message must be a text that answers others")
            return before, [last["content"]]
        case ["prompt" | "messages" as prompt, "response" | "choices" as answer]:
            return _prompt(fields, prompt), _choices(fields) if answer == "choices" else [_text(fields, answer)]
    raise DataError(f"{SHAPES}; got {', '.join(given) or listed([*fields]) or 'nothing'}")


def _prompt(fields: Mapping[str, Any], name: str) -> "Prompt":
    """What the answers of a record are given."""
    if name == "prompt":
        return _text(fields, name)
    chat = chat_of(fields[name])
    if chat[-1]["role"] == "assistant":
        raise DataError("messages must end with one that is to be answered, where the answers stand beside them")
    return chat


def _choices(fields: Mapping[str, Any]) -> list[str]:
    """The answers of a record that are compared."""
    choices = fields["choices"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise DataError('"choices" must be a list of two texts or more; one answer is a "response"')
    named = {f"choice {number}": choice for number, choice in enumerate(choices, start=1)}
    texts = [_text(named, name) for name in named]
    if "" in texts:
        raise DataError(f'"choice {texts.index("") + 1}" is empty: it has no byte to share its nats out to')
    return texts


def _text(fields: Mapping[str, Any], name: str) -> str:
    try:
        return check_text(fields[name])
    except DataError as error:
        raise DataError(f'"{name}" {error}') from error


def _answers(asked: Asked) -> "Answers":
    from dlm.lm import Answers

    return Answers(*asked)


def _scored(
    lm: "DiffusionLM", wanted: Mapping[int, Record[Asked]], kept: Sequence[Mapping[str, Any]], how: Mapping[str, Any]
) -> "Iterator[list[Score]]":
    """The scores of the records behind those that are kept, of which the last is scored again to see that it fits."""
    asked = {number: _answers(record.asked) for number, record in wanted.items() if record.asked is not None}
    begin = max(len(kept) - 1, 0)
    found = lm.score_each(asked, begin=begin, **how)
    if kept:
        record = [*wanted.values()][begin]
        if not _alike(_plain(record, next(found), how["reading"]), kept[-1]):
            raise ConfigError(
                f"--resume: {record.place} was scored by another model, or with other options: give those, another "
                "--output, or --overwrite"
            )
    return found


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are the same, numbers to the rounding of other batches."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-3)
    return bool(one == other)


def _write_lines(
    records: Sequence[Record[Asked]],
    found: "Iterator[list[Score]]",
    reading: str,
    write: Callable[[Mapping[str, Any]], None],
) -> "list[Score]":
    """Writes what is found of each record, as soon as it is finished, and gives all scores."""
    scores: list[Score] = []
    for record, each in zip(records, found, strict=True):
        write({**record.given, **_plain(record, each, reading)})
        if not all(math.isfinite(one.log_likelihood) for one in each):
            caution(f"{record.place}: an answer has the probability zero, or none: its log-likelihood is null")
        scores += each
    return scores


def _plain(record: Record[Asked], scores: "Sequence[Score]", reading: str) -> dict[str, Any]:
    """What is written of a record, in plain values."""
    from dlm.lm.scores import Comparison

    assert record.asked is not None
    _, responses = record.asked
    plain = [_plain_score(one, text) for one, text in zip(scores, responses, strict=True)]
    if "choices" not in record.given or record.given["choices"] is None:
        return {**plain[0], "reading": reading}
    compared = Comparison.of(scores, responses)
    for one, (difference, error) in zip(plain, compared.differences, strict=True):
        one |= finite({"difference": difference, "difference_standard_error": error})
    return {"scores": plain, "best": compared.best, "best_per_byte": compared.best_per_byte, "reading": reading}


def _plain_score(one: "Score", text: str) -> dict[str, Any]:
    nats = -one.log_likelihood
    values = one.log_likelihood, nats, nats / math.log(2), one.tokens, len(text.encode()), one.monte_carlo_se
    plain: dict[str, Any] = finite(dict(zip(FOUND, values, strict=False)))
    return plain if one.greedy is None else {**plain, "greedy": one.greedy}


def _tell(scores: "Sequence[Score]", kept: int, reading: str, seconds: float) -> None:
    """A line about the answers, for a person."""
    tokens = sum(one.tokens for one in scores)
    before = f" ({counted(kept, 'line', 'were')} there already)" if kept else ""
    note(
        f"{counted(len(scores), 'answer')}{before}, {counted(tokens, 'token')}, reading {reading}, "
        f"{tokens / seconds:,.0f} tokens/s"
    )


def _altered(lm: "DiffusionLM", records: Iterable[Record[Asked]]) -> Iterator[str]:
    """Whether the tokenizer changes the texts that are scored, in a line, or none."""
    from dlm.data.losses import altered_in

    asked = (record.asked for record in records if record.asked is not None)
    texts = (text for prompt, answers in asked for text in (prompt, *answers) if isinstance(text, str))
    return altered_in("scored", texts, lm.tokenizer)
