"""`dlm sample`."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlm.cli import options
from dlm.cli.console import check_given, json_line, line_writer, note, quiet_libraries, write_data, write_text
from dlm.cli.records import (
    Record,
    Resume,
    chat_of,
    check_single,
    file_lines,
    read_batch,
    report,
    resumable,
    unfinished,
    usable,
)
from dlm.cli.writing import calibrated, check_outputs, is_apart, load_many, load_writer, recording
from dlm.data.text import check_text
from dlm.errors import ConfigError, DataError
from dlm.plain import counted

if TYPE_CHECKING:
    from dlm.lm import Sample
    from dlm.lm.layout import Prompt

Length = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens to write.", show_default=f"what the context has room for; {options.PUBLISHED}"),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help='Continue the "prompt", or answer the "messages", on each line of a .jsonl file.', show_default=False
    ),
]


def sample(
    context: typer.Context,
    model: options.Model,
    num: Annotated[int, typer.Option(min=1, max=options.MOST_TEXTS, help="How many texts.")] = 1,
    length: Length = None,
    prompt: Annotated[str | None, typer.Option(help="Continue this text.", show_default=False)] = None,
    chat: Annotated[
        str | None, typer.Option(help="Answer this message, by the tokenizer's chat template.", show_default=False)
    ] = None,
    prompts: Prompts = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Leave out bad lines of --prompts, and report them at the end.")
    ] = False,
    resume: Resume = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=options.MOST_ROWS, help="Texts written side by side.", show_default="16")
    ] = None,
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
    """Write texts, all tokens in parallel, from nothing or after a prompt.

    Example:  dlm sample runs/tiny --prompt "def main(" --order confidence
    """
    single = _single(prompt, chat, prompts)
    if prompts is None:
        check_single("the lines of a file: give --prompts FILE too", keep_going=keep_going, resume=resume)
    check_outputs(output, export, overwrite, {"--prompts": prompts}, resume=None if prompts is None else resume)
    records = (
        []
        if prompts is None
        else read_batch(file_lines(prompts), _prompt_of, name="stdin" if str(prompts) == "-" else prompts)
    )
    usable(records, lambda asked: None, keep_going=keep_going)
    quiet_libraries()
    how = options.build_sampler(context.obj)
    asked: dict[str, Any] = {"num": num, "length": length, "sampler": how, "seed": seed}
    if batch_size is not None:
        asked["batch_size"] = batch_size
    weights = model, device, dtype, quantised
    title = f"dlm sample {model}"
    if prompts is not None:
        many = load_many(*weights, mask_token)
        wanted = usable(records, partial(many.layout.canvas, length=length), keep_going=keep_going)
        wanted, keeps = _unwritten(wanted, output if resume else None, num)
        if wanted:
            one = next(iter(wanted.values())).asked
            asked["sampler"] = calibrated(many, how, context.obj, one, min(batch_size or 16, num * len(wanted)))
        began = time.perf_counter()
        film = export if wanted else None
        with recording(many, title, watch and bool(wanted), film, apart=is_apart(output)) as seen:
            each_asks = {number: record.asked for number, record in wanted.items()}
            found = many.generate_each(each_asks, watch=seen.take, **asked)
            texts = _write_lines([*wanted.values()], seen.each(found, len(wanted)), output, overwrite, keeps)
            facts = _facts(texts, time.perf_counter() - began, seed) if texts else {}
    else:
        lm = load_writer(*weights, how, batch_size, mask_token)
        how = asked["sampler"] = calibrated(lm, how, context.obj, single, min(batch_size or 16, num), quiet=as_json)
        began = time.perf_counter()
        with recording(lm, title, watch, export, apart=True) as seen:
            stream = lm.stream(single, watch=seen.take, **asked)
            texts = _finished(seen.each(stream, num), num)
            facts = _facts(texts, time.perf_counter() - began, seed)
        measured = {"drafts": how.drafts} if context.obj.get("drafts") == "auto" else {}
        _write_texts(texts, {**facts, **measured} if as_json else None, output, overwrite)
    if texts and not as_json:
        _tell(len(texts), facts)
    report(records)
    if prompts is None and len(texts) < num:
        raise KeyboardInterrupt


def _finished(texts: "Iterator[Sample]", num: int) -> "list[Sample]":
    """The texts; after Ctrl-C, those that were finished by then."""
    found: list[Sample] = []
    try:
        found.extend(texts)  # those before a Ctrl-C are in it
    except KeyboardInterrupt:
        if not found:
            raise
        told = f"{len(found)} of {counted(num, 'text')} {'was' if len(found) == 1 else 'were'} finished"
        note(told)
    return found


def _single(prompt: str | None, chat: str | None, prompts: Path | None) -> "Prompt":
    """What the command line alone asks for, where no file does."""
    if sum(given is not None for given in (prompt, chat, prompts)) > 1:
        raise ConfigError(
            "--prompt continues a text, --chat answers a message, --prompts does so for every line of a file: "
            "give one of them"
        )
    if chat is None:
        return None if prompt is None else check_given(prompt, "--prompt")
    if not chat.strip():
        raise ConfigError(
            "--chat: the message is blank, so there is nothing to answer; to write from nothing, leave --chat out"
        )
    return [{"role": "user", "content": check_given(chat, "--chat")}]


def _prompt_of(fields: Mapping[str, Any]) -> "Prompt":
    """What a line of a file asks for."""
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if (prompt is None) == (messages is None):
        raise DataError(
            'it needs a field "prompt" with a text or a field "messages" with a chat, and one of them alone'
        )
    if "samples" in fields:
        raise DataError('the field "samples" is where the texts are written: give it another name')
    if messages is None:
        try:
            return check_text(prompt)
        except DataError as error:
            raise DataError(f'the field "prompt" {error}') from error
    chat = chat_of(messages)
    if chat[-1]["role"] == "assistant":
        raise DataError("messages must end with one that is to be answered, and not with the assistant's")
    return chat


def _unwritten(
    wanted: "Mapping[int, Record[Prompt]]", begun: Path | None, num: int
) -> "tuple[dict[int, Record[Prompt]], int | None]":
    """The records that are left, and the bytes that are kept; lines of another `--num` are refused."""
    rest, kept = unfinished(wanted, begun, ("samples",))
    for number, line in enumerate(kept.found, start=1):
        samples = line.get("samples")
        if not isinstance(samples, list) or len(samples) != num:
            has = counted(len(samples), "text") if isinstance(samples, list) else "no texts"
            raise ConfigError(f"--resume: line {number} of --output has {has}, and --num is {num}: give the same --num")
    return rest, kept.size


def _write_lines(
    records: "Sequence[Record[Prompt]]",
    found: "Iterable[list[Sample]]",
    output: Path | None,
    overwrite: bool,
    keeps: int | None,
) -> "list[Sample]":
    """Writes the texts of each record on a line, behind the bytes that are kept, and gives all of these texts."""
    written: list[Sample] = []
    if not records:
        return []
    with resumable(output), line_writer(output, overwrite=overwrite, keeps=keeps) as write_line:
        for record, texts in zip(records, found, strict=True):
            write_line(json_line({**record.given, "samples": [*map(_plain, texts)]}, output))
            written += texts
    return written


def _write_texts(
    texts: "Sequence[Sample]", facts: Mapping[str, Any] | None, output: Path | None, overwrite: bool
) -> None:
    """Writes texts one under the other, or as JSON with what is said of all of them."""
    if facts is None:
        write_text("\n---\n".join(text.text for text in texts), output, overwrite=overwrite)
    else:
        line = json_line({"samples": [*map(_plain, texts)], **facts}, output)
        write_data(line, output, overwrite=overwrite)


def _plain(text: "Sample") -> dict[str, Any]:
    """A text as plain values."""
    return {
        "text": text.text,
        "continuation": text.continuation,
        "tokens": text.tokens,
        "network_calls": text.calls,
    }


def _tell(count: int, facts: Mapping[str, float]) -> None:
    """A line about the texts, for a person."""
    note(
        f"{counted(count, 'text')}, {counted(int(facts['tokens']), 'token')} in "
        f"{counted(int(facts['network_calls']), 'network call')} "
        f"({facts['tokens_per_call']:.2f} tokens a call), {facts['tokens_per_second']:,.0f} tokens/s, "
        f"unigram entropy {facts['unigram_entropy']:.2f} nats"
    )


def _facts(texts: "Sequence[Sample]", seconds: float, seed: int) -> dict[str, float]:
    """What is said of all texts together."""
    from dlm.evaluate.samples import unigram_entropy

    tokens, calls = sum(text.tokens for text in texts), sum(text.calls for text in texts)
    return {
        "network_calls": calls,
        "tokens": tokens,
        "tokens_per_call": tokens / calls,
        "tokens_per_second": tokens / seconds,
        "unigram_entropy": unigram_entropy(id for text in texts for id in text.ids),
        "seed": seed,
    }
