"""`dlm bench train`, `dlm bench sample` and `dlm bench frontier`."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlm.cli import options
from dlm.cli.console import check_free, errors, quiet_libraries, write_data, write_text
from dlm.cli.progress import progress
from dlm.cli.writing import calibrated
from dlm.errors import ConfigError
from dlm.plain import counted, plain_json

if TYPE_CHECKING:
    from dlm.bench.frontier import Frontier, Point
    from dlm.bench.machine import Machine
    from dlm.bench.sampling import SamplingSpeed
    from dlm.bench.training import TrainingSpeed

Lines = list[tuple[str, str]]
Number = TypeVar("Number", int, float)


def train(
    config: Annotated[
        Path | None, typer.Argument(help="A YAML file; the small default if none.", show_default=False)
    ] = None,
    settings: options.Settings = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed.")] = 20,
    warmup: Annotated[int, typer.Option(min=1, help="Steps that come first, untimed.")] = 5,
    every_row: Annotated[
        bool, typer.Option("--every-row", help="Project every position at once, learned or not, to compare with.")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Time the training step against the machine's own limits; the run is thrown away.

    Example:  dlm bench train --set train.compile=true
    """
    from dlm.settings import default_config_path, load_config

    tree = load_config(config or default_config_path(), settings or ())
    quiet_libraries()
    from dlm.bench.training import bench_training

    errors.print(f"timing {warmup} + {steps} steps, then the machine itself", highlight=False)
    speed = bench_training(tree, steps=steps, warmup=warmup, every_row=every_row)
    write_data(json.dumps(speed.to_dict()) if as_json else _table(_training(speed)), None)


def sample(
    context: typer.Context,
    model: options.Model,
    num: Annotated[int, typer.Option(min=1, max=options.MOST_ROWS, help="Texts written side by side.")] = 8,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens a text.", show_default="the context")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often it is timed.")] = 5,
    *,
    mask_token: options.MaskToken = None,
    dtype: options.HeldIn = "fp32",
    quantised: options.Load = None,
    device: options.Device = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Time the sampler against the machine's own limits.

    Example:  dlm bench sample runs/tiny --steps 32
    """
    weights = options.check_weights(dtype, quantised)
    quiet_libraries()
    from dlm.bench.sampling import bench_sampling
    from dlm.lm import DiffusionLM

    how = options.build_sampler(context.obj)
    options.check_device(device)
    mask = options.read_mask_token(mask_token)
    lm = DiffusionLM.from_pretrained(model, device=device, mask_token=mask, **weights)
    how = calibrated(lm, how, context.obj, None, num)
    errors.print(f"writing {counted(num, 'text')} {repeats + 2} times, then timing the machine itself", highlight=False)
    speed = bench_sampling(lm, num=num, length=length, sampler=how, repeats=repeats)
    write_data(json.dumps(speed.to_dict()) if as_json else _table(_sampling(speed)), None)


def frontier(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Run folders, checkpoint folders or Hub names.", show_default=False),
    ],
    judge: Annotated[
        str | None,
        typer.Option(
            help="The model that says how likely the texts are: autoregressive, or of dlm.",
            show_default="the first autoregressive model, else the first with a causal reading",
        ),
    ] = None,
    samplers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="steps-N, one, confidence, confidence-N, threshold-P, blocks-S, blocks-S-N, causal, verified-K, "
            "verified-K@A, transformers; of masks also NAME+dual-R, NAME+prefix-R and remask-NAME-N.",
            show_default="those that suit each model",
        ),
    ] = None,
    temperatures: Annotated[str, typer.Option(metavar="T,...", help="Temperatures; 0 takes the likeliest.")] = "1.0",
    batch_sizes: Annotated[
        str | None,
        typer.Option(metavar="N,...", help="Texts written side by side.", show_default="8, or all of --num"),
    ] = None,
    num: Annotated[int, typer.Option(min=1, max=options.MOST_TEXTS, help="Texts of each model and sampler.")] = 16,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens a text.", show_default="the shortest context")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each is timed, in turns.")] = 5,
    seed: Annotated[int, typer.Option(help="The texts follow from it.")] = 0,
    *,
    output: Annotated[
        Path | None, typer.Option(help="Draw quality against speed into this .svg file.", show_default=False)
    ] = None,
    overwrite: options.Overwrite = False,
    dtype: options.HeldIn = "fp32",
    quantised: options.Load = None,
    device: options.Device = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare models and samplers: how fast they write, and how likely a judge finds their texts.

    Example:  dlm bench frontier runs/joint runs/autoregressive --output frontier.svg
    """
    asked_temperatures = numbers("--temperatures", temperatures, float, 0.0)
    asked_sizes = numbers("--batch-sizes", batch_sizes, int, 1) if batch_sizes is not None else [min(8, num)]
    if (most := max(asked_sizes)) > num:
        raise ConfigError(f"--batch-sizes: {most} is more than the {counted(num, 'text')} of --num")
    if output is not None and output.suffix != ".svg":
        raise ConfigError(f"--output writes .svg, got {output}")
    check_free(output, overwrite)
    weights = options.check_weights(dtype, quantised)
    quiet_libraries()
    from dlm.bench.frontier import bench_frontier, open_models
    from dlm.bench.kinds import kind
    from dlm.bench.plot import to_svg

    asked = [kind(name) for name in names("--samplers", samplers)] if samplers is not None else None
    check_once("--samplers", [each.name for each in asked or ()])
    options.check_device(device)
    opened, judging = open_models(models, judge, samplers=asked, device=device, **weights)
    with progress("pass", shown=not as_json) as told:
        found = bench_frontier(
            opened,
            judging,
            samplers=asked,
            temperatures=asked_temperatures,
            batch_sizes=asked_sizes,
            num=num,
            length=length,
            repeats=repeats,
            seed=seed,
            told=told,
        )
    write_data(plain_json(found.to_dict()) if as_json else _frontier(found), None)
    if output is not None:
        write_text(to_svg(found), output, overwrite=overwrite)


def names(option: str, text: str) -> list[str]:
    """Names or numbers with commas between them."""
    names = [name.strip() for name in text.split(",")]
    if "" in names:
        raise ConfigError(f"{option} takes one or more, with commas between them, got {text!r}")
    return names


def numbers(option: str, text: str, read: Callable[[str], Number], least: Number) -> list[Number]:
    """Numbers with commas between them, each once."""
    whole = "whole numbers" if read is int else "finite numbers"
    try:
        numbers = [read(name) for name in names(option, text)]
    except ValueError:
        raise ConfigError(f"{option} takes {whole} with commas between them, got {text!r}") from None
    for number in numbers:
        if not least <= number < math.inf:
            raise ConfigError(f"{option} takes {whole} from {least:g} on, got {number}")
    check_once(option, numbers)
    return numbers


def check_once(option: str, values: Sequence[object]) -> None:
    """Refuses what is given twice: its points would be the same."""
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"{option}: {value} is given twice")


def _frontier(found: "Frontier") -> str:
    """The table, and what is to be known of its figures."""
    points = found.points
    varied = {name: len({getattr(p, name) for p in points}) > 1 for name in ("temperature", "batch_size")}
    least = "" if found.judge_exact else "\u2264 "
    columns: list[tuple[str, Callable[[Point], str]]] = [
        ("sampler", lambda p: p.sampler),
        *([("temp.", lambda p: f"{p.temperature:g}")] if varied["temperature"] else []),
        *([("batch", lambda p: str(p.batch_size))] if varied["batch_size"] else []),
        ("tokens/s", lambda p: f"{p.tokens_per_second:,.0f}"),
        ("calls", lambda p: f"{p.calls_per_text:.1f}"),
        ("tokens/call", lambda p: f"{p.tokens_per_call:.2f}"),
        (f"{least}nats/token", lambda p: _with_error(p.nats_per_token, p.nats_per_token_se)),
        *([(f"{least}nats/byte", lambda p: _with_error(p.nats_per_byte, p.nats_per_byte_se))] * found.encoded_anew),
        ("entropy", lambda p: _with_error(p.entropy, p.entropy_se)),
        ("repeated", lambda p: _share(p.repeated)),
        ("distinct", lambda p: _share(p.distinct)),
    ]
    return "\n".join([*lines_of(table_of(points, columns)), "", *_notes(found)])


def lines_of(*parts: str | Table) -> list[str]:
    """Texts and tables as plain lines; a narrow terminal wraps them, where rich would cut figures off."""
    drawn = StringIO()
    console = Console(width=400, file=drawn)
    for part in parts:
        console.print(part, highlight=False)
    return [line.rstrip() for line in drawn.getvalue().splitlines()]


def table_of(points: Iterable[Any], columns: Sequence[tuple[str, Callable[[Any], Any]]]) -> Table:
    """A table with a line a point, its model named once.

    Args:
        points: In the order of their models.
        columns: The head of each, and what it shows of a point. The first is a name, the others are figures.

    Returns:
        The table.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("model", overflow="fold")
    for number, (name, _) in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    last = None
    for point in points:
        table.add_row(Text(point.model if point.model != last else ""), *(show(point) for _, show in columns))
        last = point.model
    return table


def _notes(found: "Frontier") -> Iterator[str]:
    """What was done, and what is to be known of the figures."""
    settings = [f"{counted(found.num, 'text')} of {counted(found.length, 'token')}"]
    settings += [f"temperature {found.points[0].temperature:g}"] * (len({p.temperature for p in found.points}) == 1)
    settings += [f"batches of {found.points[0].batch_size}"] * (len({p.batch_size for p in found.points}) == 1)
    threads = f", {counted(found.threads, 'thread')}" if found.device == "cpu" else ""
    passes = "the median of" if found.repeats > 1 else "that of"
    yield (
        f"{', '.join(settings)}, seed {found.seed}; tokens/s is {passes} {counted(found.repeats, 'pass')} in turns; "
        f"{found.device}{threads}"
    )
    exact = "exactly" if found.judge_exact else "an upper bound alone"
    yield f"judge: {found.judge}, {found.judge_reading} reading, {exact}; \u00b1 is the standard error, by text"
    if found.judge_is_compared:
        yield "the judge is one of these models, and favours texts like its own: name another by --judge"
    if found.encoded_anew:
        yield (
            "the judge's tokenizer is not that of all models: texts are decoded and encoded anew, and a token of "
            "nats/token is the judge's; all other columns count a model's own"
        )
    from dlm.evaluate.samples import judging_notes

    yield from judging_notes(sum(p.unknown for p in found.points), sum(p.cut for p in found.points))


def _with_error(value: float, error: float) -> str:
    shown = "-" if math.isnan(value) else f"{value:.3f}"
    return shown if math.isnan(error) else f"{shown} \u00b1 {error:.3f}"


def _share(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}%"


def _training(speed: "TrainingSpeed") -> Lines:
    flops = "6" if speed.flops_per_token == 6 * speed.hidden_parameters else "6 (where frozen 4)"
    rows = "projected everywhere" if speed.every_row else "projected where it is to be learned, in chunks"
    return [
        *_machine(speed.machine),
        ("model", _model(speed)),
        ("step", f"{speed.batch_size} x {speed.length} tokens, {speed.optimizer}, {rows}"),
        ("time", _time(speed.seconds, speed.fastest, speed.slowest, f"{speed.steps} steps")),
        ("tokens", f"{speed.tokens_per_second:,.0f} a second"),
        ("compute", _compute(speed, flops)),
        ("data", f"{100 * speed.data_share:.2f}% of a step"),
        ("memory", _memory(speed, "weights, gradients, optimizer")),
    ]


def _sampling(speed: "SamplingSpeed") -> Lines:
    calls = f"{speed.calls} network calls, {speed.tokens_per_call:.2f} tokens a call and text"
    return [
        *_machine(speed.machine),
        ("model", _model(speed)),
        ("texts", f"{speed.num} x {speed.length} tokens, {calls}"),
        ("time", _time(speed.seconds, speed.fastest, speed.slowest, f"{speed.repeats} repeats")),
        ("tokens", f"{speed.tokens_per_second:,.0f} a second, {1000 * speed.seconds_per_call:.1f} ms a call"),
        ("compute", _compute(speed, "2")),
        ("memory", _memory(speed, "weights")),
    ]


def _machine(machine: "Machine") -> Lines:
    threads = f", {machine.threads} threads" if machine.device == "cpu" else ""
    return [
        ("machine", f"{machine.name}, {machine.device}{threads}, torch {machine.torch}"),
        (
            "its limits",
            f"{_flops(machine.peak)} in {machine.dtype} products, {machine.bandwidth / 1e9:.0f} GB/s copied",
        ),
    ]


def _model(speed: "TrainingSpeed | SamplingSpeed") -> str:
    return (
        f"{speed.parameters:,} parameters, {speed.hidden_parameters:,} of them no embedding, vocabulary "
        f"{speed.vocabulary:,}, {speed.attention} attention"
    )


def _time(seconds: float, fastest: float, slowest: float, of: str) -> str:
    return f"{1000 * seconds:.1f} ms, the median of {of} from {1000 * fastest:.1f} to {1000 * slowest:.1f}"


def _compute(speed: "TrainingSpeed | SamplingSpeed", flops: str) -> str:
    share = f"{100 * speed.share_of_peak:.1f}% of the machine's peak"
    return f"{_flops(speed.flops_per_second)} at {flops} FLOP a parameter and token, {share}"


def _memory(speed: "TrainingSpeed | SamplingSpeed", kept: str) -> str:
    peak, own, beyond = (
        f"{n / 2**20:,.0f} MiB" for n in (speed.peak_bytes, speed.model_bytes, speed.beyond_model_bytes)
    )
    return f"{own} the model's own ({kept}), {beyond} of tensors beyond it; the program {peak} at most"


def _flops(speed: float) -> str:
    if speed >= 1e13:
        return f"{speed / 1e12:,.1f} TFLOP/s"
    return f"{speed / 1e9:,.0f} GFLOP/s" if speed >= 1e10 else f"{speed / 1e6:,.0f} MFLOP/s"


def _table(lines: Lines) -> str:
    return "\n".join(f"{name:<12}{text}" for name, text in lines)
