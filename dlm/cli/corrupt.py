"""`dlm corrupt`."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from dlm.cli import options
from dlm.cli.console import check_free, errors, quiet_libraries, read_text, write_data, write_styled
from dlm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dlm.cli.film import Frame
    from dlm.diffusion.formulation import Formulation
    from dlm.diffusion.noise import AnyNoise
    from dlm.diffusion.process import Process


def corrupt(
    text: Annotated[str, typer.Argument(help="The text; - reads stdin.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model whose tokenizer, process and schedule to take: a run folder, a checkpoint folder or a Hub "
            "name.",
            show_default=False,
        ),
    ] = None,
    process: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What noise does to a token: absorbing, uniform, hybrid.",
            show_default="absorbing, or the model's",
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(help="The share of random symbols in hybrid noise, half way.", show_default=False),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How fast: linear, cosine, polynomial, geometric.",
            show_default="linear, or the model's",
        ),
    ] = None,
    at: Annotated[str, typer.Option(metavar="T,T,..", help="The times, from 0 to 1.")] = "0.1,0.3,0.5,0.7,0.9",
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="A chain of T steps: each time is the nearest k/T.",
            show_default="continuous time, or the model's chain",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="bytes, or characters: those that the text has.",
            show_default="characters, or the model's",
        ),
    ] = None,
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
    text = read_text(text)
    if not text:
        raise DataError("the text is empty: there is nothing to corrupt")
    if model is not None and tokenizer is not None:
        raise ConfigError("a model has a tokenizer of its own: leave out --tokenizer, or the model")
    asked = _times(at)
    quiet_libraries()
    from dlm.diffusion.schedule import Schedule
    from dlm.model.text import encode
    from dlm.model.tokenizer import special_ids, vocabulary_of

    known, formulation, forbidden = _known_by(model) if model is not None else _made_for(text, tokenizer)
    formulation = replace(
        formulation,
        noise=_noise(formulation.noise, process, share),
        schedule=options.named("--schedule", Schedule, schedule)() if schedule else formulation.schedule,
        steps=steps or formulation.steps,
    )
    size = max(known.get_vocab().values()) + 1
    forward = formulation.process(vocabulary_of(known, size, forbidden))
    times = _on_the_chain(asked, formulation.steps)
    (x0,) = encode(known, [text])
    if not x0:
        raise DataError("the text has no token for this tokenizer: there is nothing to corrupt")
    moments = list(_moments(forward, known, x0, times, seed))

    noise, rate, symbols = formulation.noise.name, formulation.schedule.name, len(forward.vocabulary.symbols_K)
    if as_json:
        facts = {"process": noise, "schedule": rate, "tokens": len(x0), "symbols": symbols}
        found = {**facts, "states": [asdict(moment) for moment in moments]}
        write_data(json.dumps(found, ensure_ascii=False), output, overwrite=overwrite)
    else:

        def draw(width: int | None) -> Text:
            return Text("\n\n").join(_shown(moment, forward, known, x0, width) for moment in moments)

        write_styled(draw, output, overwrite=overwrite)
        told = f"{len(x0)} tokens over {symbols} symbols, {noise} noise, {rate} schedule"
        if formulation.steps:
            told += f", a chain of {formulation.steps} steps"
        if times != asked:
            told += f": {_listed(asked)} rounded to {_listed(times)}"
        errors.print(told, style="dim", highlight=False, markup=False, soft_wrap=True)
    unknown = special_ids(known).unknown
    if unknown in x0:
        errors.print(f"{x0.count(unknown)} tokens are unknown to the tokenizer", style="yellow", soft_wrap=True)


@dataclass(frozen=True)
class _Moment:
    """The text at one time, and what the mathematics says of that time.

    Attributes:
        t: The time.
        alpha: The schedule's.
        clean: The share of tokens that no noise has touched.
        masked: The share of masks.
        random: The share of tokens drawn at random, which may be the clean one by chance.
        expected_changed: How many tokens differ from the clean text on average.
        changed: How many do here.
        text: The text, with ░░ for a mask.
        ids: The tokens' ids.
    """

    t: float
    alpha: float
    clean: float
    masked: float
    random: float
    expected_changed: float
    changed: int
    text: str
    ids: list[int]


def _moments(
    process: "Process", tokenizer: "PreTrainedTokenizerBase", ids: list[int], times: list[float], seed: int
) -> Iterator[_Moment]:
    """One draw of the chain: the first state comes from the clean text, each other one from the state before."""
    import torch

    from dlm.cli.film import MASK
    from dlm.diffusion.draws import generator

    x0_BL, streams = torch.tensor([ids]), [generator(seed, "corrupt")]
    x_BL, before_B = x0_BL, None
    for time in times:
        t_B = torch.tensor([time], dtype=torch.float64)
        if before_B is None:
            x_BL = process.corrupt(x0_BL, t_B, streams)
        else:
            x_BL = process.sample_transition(x_BL, before_B, t_B, streams)
        before_B = t_B
        shares = process.shares(t_B)
        same_L = shares.clean + process.noise_of(shares, x0_BL[0])  # q(x0 | x0)
        frame = _frame(process, tokenizer, x_BL[0].tolist())
        yield _Moment(
            t=time,
            alpha=float(process.schedule.alpha(t_B)),
            clean=float(shares.clean),
            masked=float(shares.masked),
            random=float(shares.random),
            expected_changed=float((1.0 - same_L).sum()),
            changed=int((x_BL != x0_BL).sum()),
            text="".join(MASK if cell.text is None else cell.text for cell in frame),
            ids=x_BL[0].tolist(),
        )


def _frame(process: "Process", tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> "Frame":
    from dlm.cli.recorder import frame_of

    return frame_of(tokenizer, process.mask_id, ids, [False] * len(ids))


def _shown(
    moment: _Moment, process: "Process", tokenizer: "PreTrainedTokenizerBase", x0: list[int], width: int | None
) -> Text:
    """The figures, and the text below them."""
    from dlm.cli.film import paint

    looks = [
        "masked" if id == process.mask_id else "settled" if id == clean else "changed"
        for id, clean in zip(moment.ids, x0, strict=True)
    ]
    told = (
        f"t {moment.t:.4g}  alpha {moment.alpha:.4f}  "
        f"clean {moment.clean:.4f}  masked {moment.masked:.4f}  random {moment.random:.4f}  "
        f"changed {moment.changed} of {len(x0)}, expected {moment.expected_changed:.2f}"
    )
    return Text.assemble((told, "bold"), "\n", paint(_frame(process, tokenizer, moment.ids), looks, width))


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


def _on_the_chain(times: list[float], steps: int | None) -> list[float]:
    """The nearest times k/T of a chain of T steps; all times are on a chain in continuous time."""
    return times if steps is None else sorted({round(time * steps) / steps for time in times})


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


def _listed(times: list[float]) -> str:
    return ", ".join(f"{time:.4g}" for time in times)
