"""`dlm corrupt`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from dlm.cli import options
from dlm.cli.console import (
    caution,
    check_apart,
    check_free,
    json_line,
    note,
    quiet_libraries,
    read_text,
    write_data,
    write_styled,
)
from dlm.errors import ConfigError, DataError
from dlm.plain import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from dlm.diffusion.formulation import Formulation
    from dlm.diffusion.noise import AnyNoise

Source = Annotated[
    str | None,
    typer.Argument(
        help="A model whose tokenizer, process and schedule to take: a run folder, a checkpoint folder or a Hub name.",
        show_default=False,
    ),
]
ProcessName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What noise does to a token: absorbing, uniform, hybrid.",
        show_default="absorbing, or the model's",
    ),
]
Share = Annotated[
    float | None, typer.Option(help="The share of random symbols in hybrid noise, half way.", show_default=False)
]
ScheduleName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="How fast: linear, cosine, polynomial, geometric.", show_default="linear, or the model's"
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="A chain of T steps: each time is the nearest k/T.",
        show_default="continuous time, or the model's chain",
    ),
]
TokenizerName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="bytes, or characters: those that the text has.",
        show_default="characters, or the model's",
    ),
]


def corrupt(
    text: Annotated[str, typer.Argument(help="The text; - reads stdin.", show_default=False)],
    model: Source = None,
    process: ProcessName = None,
    share: Share = None,
    schedule: ScheduleName = None,
    at: Annotated[str, typer.Option(metavar="T,T,..", help="The times, from 0 to 1.")] = "0.1,0.3,0.5,0.7,0.9",
    steps: Steps = None,
    tokenizer: TokenizerName = None,
    seed: Annotated[int, typer.Option(help="The noise follows from it.")] = 0,
    output: options.Output = None,
    as_json: options.Json = False,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,
) -> None:
    """Watch the forward process at work: one text, noisier from time to time.

    The texts are one draw of the Markov chain. Changed tokens are highlighted, masked ones are ░░.

    Example:  dlm corrupt "To be, or not to be" --process uniform
    """
    check_free(output, overwrite)
    check_apart({"the text -": Path("-") if text == "-" else None}, {"--output": output})
    text = read_text(text)
    if not text:
        raise DataError("the text is empty: there is nothing to corrupt")
    if model is not None and tokenizer is not None:
        raise ConfigError("a model has a tokenizer of its own: leave out --tokenizer, or the model")
    asked = _times(at)
    quiet_libraries()
    from dlm.diffusion.schedule import Schedule
    from dlm.film.forward import nearest_on_chain, noisy_texts
    from dlm.model.text import encode
    from dlm.model.tokenizer import id_count, special_ids, vocabulary_of

    known, formulation, forbidden = _known_by(model) if model is not None else _made_for(text, tokenizer)
    formulation = replace(
        formulation,
        noise=_noise(formulation.noise, process, share),
        schedule=options.named("--schedule", Schedule, schedule)() if schedule else formulation.schedule,
        steps=steps or formulation.steps,
    )
    size = id_count(known)
    forward = formulation.process(vocabulary_of(known, size, forbidden))
    times = nearest_on_chain(asked, formulation.steps)
    (x0,) = encode(known, [text])
    if not x0:
        raise DataError("the text has no token for this tokenizer: there is nothing to corrupt")
    texts = list(noisy_texts(forward, known, x0, times, seed))

    symbols = len(forward.vocabulary.symbols_K)
    if as_json:
        names = {"process": formulation.noise.name, "schedule": formulation.schedule.name}
        found = {**names, "tokens": len(x0), "symbols": symbols, "states": [noisy.to_dict() for noisy in texts]}
        write_data(json_line(found, output), output, overwrite=overwrite)
    else:
        write_styled(
            lambda width: Text("\n\n").join(noisy.render(width) for noisy in texts), output, overwrite=overwrite
        )
        summary = f"{len(x0)} tokens over {symbols} symbols, {_summary(formulation, asked, times)}"
        note(summary)
    unknown = special_ids(known).unknown
    if unknown in x0:
        caution(f"{counted(x0.count(unknown), 'token', 'are')} unknown to the tokenizer")


def _summary(formulation: "Formulation", asked: "Sequence[float]", times: "Sequence[float]") -> str:
    """The noise, the schedule and the chain; where the chain moved the times, both."""
    summary = f"{formulation.noise.name} noise, {formulation.schedule.name} schedule"
    if formulation.steps:
        summary += f", a chain of {formulation.steps} steps"
    if times != asked:
        summary += f": {_listed(asked)} rounded to {_listed(times)}"
    return summary


def _times(at: str) -> list[float]:
    """The times asked for, each once, in order."""
    try:
        times = sorted({float(word) for word in at.split(",")})
    except ValueError:
        raise ConfigError(f"--at takes times with commas between them, such as 0.1,0.5; got {at!r}") from None
    for time in times:
        if not 0.0 <= time <= 1.0:
            raise ConfigError(f"--at takes times from 0 to 1, got {time:g}")
    return times


def _noise(default: "AnyNoise", name: str | None, share: float | None) -> "AnyNoise":
    from dlm.diffusion.noise import AnyNoise, Hybrid

    noise: AnyNoise = options.named("--process", AnyNoise, name)() if name else default
    if share is None:
        return noise
    if not isinstance(noise, Hybrid):
        raise ConfigError(
            f"--share is for hybrid noise and this is {noise.name}: add --process hybrid, or leave it out"
        )
    try:
        return replace(noise, share=share)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error


def _known_by(model: str) -> tuple["PreTrainedTokenizerBase", "Formulation", list[int]]:
    """A model's tokenizer and formulation, without its weights; no id is forbidden that the model may meet."""
    from dlm.config import Pretrained
    from dlm.diffusion.formulation import Formulation
    from dlm.model.checkpoint import read_sidecar
    from dlm.model.locate import resolve
    from dlm.model.tokenizer import build_tokenizer

    path = resolve(model)
    sidecar = read_sidecar(path)
    formulation = sidecar.formulation if sidecar else Formulation()
    if not (formulation.readings.any_order or formulation.readings.remembers):
        raise ConfigError(
            f"{model} was trained with readings {formulation.readings.name} and has no noise: leave the model out, or "
            "take one that was trained with noise"
        )
    return build_tokenizer(Pretrained(path), lambda: ()), formulation, []


def _made_for(text: str, name: str | None) -> tuple["PreTrainedTokenizerBase", "Formulation", list[int]]:
    """A tokenizer for this one text, the default formulation, and the ids that are of no use inside a text."""
    from dlm.config import Bytes, Characters
    from dlm.diffusion.formulation import Formulation
    from dlm.model.tokenizer import build_tokenizer, special_ids

    spec = options.named("--tokenizer", Bytes | Characters, name)() if name else Characters()
    tokenizer = build_tokenizer(spec, lambda: [text])
    ids = special_ids(tokenizer)
    return tokenizer, Formulation(), [ids.end] if ids.unknown is None else [ids.end, ids.unknown]


def _listed(times: "Sequence[float]") -> str:
    return ", ".join(f"{time:.4g}" for time in times)
