"""`dlm sample`."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dlm.cli import options
from dlm.cli.console import errors, json_line, quiet_libraries, write_data
from dlm.cli.writing import check_outputs, load_writer, recording
from dlm.errors import ConfigError

if TYPE_CHECKING:
    from dlm.lm import Sample


def sample(
    context: typer.Context,
    model: options.Model,
    num: Annotated[int, typer.Option(min=1, help="How many texts.")] = 1,
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens to write.",
            show_default=f"what the context has room for; {options.PUBLISHED}",
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Continue this text.", show_default=False)] = None,
    chat: Annotated[
        str | None, typer.Option(help="Answer this message, by the tokenizer's chat template.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Texts written side by side.", show_default="16")
    ] = None,
    *,
    seed: options.Seed = 0,
    mask_token: options.MaskToken = None,
    dtype: options.HeldIn = "auto",
    quantised: options.Load = None,
    device: options.Device = None,
    output: options.Output = None,
    export: options.Export = None,
    watch: options.Watching = False,
    as_json: options.Json = False,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,
) -> None:
    """Write texts, all tokens in parallel, from nothing or after a prompt.

    Example:  dlm sample runs/tiny --prompt "def main(" --order confidence
    """
    if prompt and chat:
        raise ConfigError("--prompt continues a text and --chat answers a message: give one of them")
    check_outputs(output, export, overwrite)
    quiet_libraries()
    how = options.build_sampler(context.obj)
    lm = load_writer(model, device, dtype, quantised, how, batch_size, mask_token)
    began = time.perf_counter()
    with recording(lm, f"dlm sample {model}", watch, export) as take:
        texts = lm.generate(
            [{"role": "user", "content": chat}] if chat else prompt,
            num=num,
            length=length,
            sampler=how,
            seed=seed,
            watch=take,
            **({} if batch_size is None else {"batch_size": batch_size}),
        )
        facts = _facts(texts, time.perf_counter() - began, seed)
    if as_json:
        rows = [
            {"text": t.text, "continuation": t.continuation, "tokens": len(t.ids), "network_calls": t.calls}
            for t in texts
        ]
        write_data(json_line({"samples": rows, **facts}, output), output, overwrite=overwrite)
        return
    write_data("\n---\n".join(text.text for text in texts), output, overwrite=overwrite)
    errors.print(
        f"{num} text{'s' if num > 1 else ''}, {facts['tokens']} tokens in {facts['network_calls']} network calls "
        f"({facts['tokens_per_call']:.2f} tokens a call), {facts['tokens_per_second']:,.0f} tokens/s, "
        f"unigram entropy {facts['unigram_entropy']:.2f} nats",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


def _facts(texts: "Sequence[Sample]", seconds: float, seed: int) -> dict[str, float]:
    """What is said of all texts together."""
    from dlm.evaluate.samples import unigram_entropy

    tokens, calls = sum(len(text.ids) for text in texts), sum(text.calls for text in texts)
    return {
        "network_calls": calls,
        "tokens": tokens,
        "tokens_per_call": tokens / calls,
        "tokens_per_second": tokens / seconds,
        "unigram_entropy": unigram_entropy(id for text in texts for id in text.ids),
        "seed": seed,
    }
