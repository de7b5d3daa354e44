"""`dlm bench train` and `dlm bench sample`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlm.cli import options
from dlm.cli.console import errors, quiet_libraries, write_data

if TYPE_CHECKING:
    from dlm.bench.machine import Machine
    from dlm.bench.sampling import SamplingSpeed
    from dlm.bench.training import TrainingSpeed

Lines = list[tuple[str, str]]


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
    num: Annotated[int, typer.Option(min=1, help="Texts written side by side.")] = 8,
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
    errors.print(f"writing {num} texts {repeats + 2} times, then timing the machine itself", highlight=False)
    speed = bench_sampling(lm, num=num, length=length, sampler=how, repeats=repeats)
    write_data(json.dumps(speed.to_dict()) if as_json else _table(_sampling(speed)), None)


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
