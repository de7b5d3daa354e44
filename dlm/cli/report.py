"""`dlm report`."""

from pathlib import Path
from typing import Annotated

import typer

from dlm.cli import options
from dlm.cli.console import caution, check_free, errors, quiet_libraries, write_text
from dlm.errors import ConfigError
from dlm.paths import expand, quoted

Runs = Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.", show_default=False)]
Page = Annotated[Path, typer.Option("--output", "-o", help="The page, an .html file.", show_default=False)]
NoModel = Annotated[
    bool, typer.Option("--no-model", help="Show what runs wrote alone, without measuring their best checkpoints.")
]
Documents = Annotated[
    int | None,
    typer.Option(min=1, help="Measure the first so many documents of a run's validation text.", show_default="64"),
]
Draws = Annotated[int | None, typer.Option(min=4, help="Noisy copies of each sequence; even.", show_default="16")]
Side = Annotated[int | None, typer.Option(min=1, max=options.MOST_ROWS, help="Sequences a forward.", show_default="32")]


def report(
    runs: Runs,
    output: Page,
    no_model: NoModel = False,
    max_documents: Documents = None,
    draws: Draws = None,
    batch_size: Side = None,
    *,
    seed: Annotated[int, typer.Option(help="The noise, the film and the intervals follow from it.")] = 0,
    dtype: options.HeldIn = "fp32",
    quantised: options.Load = None,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,
) -> None:
    """Show a run as one page: its curves, its samples, and where its bound comes from; or several side by side.

    Example:  dlm report runs/tiny -o report.html
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--output writes a page, such as report.html, got {output}")
    told = {"--max-documents": max_documents, "--draws": draws, "--batch-size": batch_size}
    if no_model and (given := [name for name, value in told.items() if value is not None]):
        raise ConfigError(
            f"{given[0]} says how models are measured, and --no-model measures none: leave one of them out"
        )
    if draws is not None and draws % 2:
        raise ConfigError(f"--draws must be even, got {draws}")
    weights = options.check_weights(dtype, quantised)
    check_free(output, overwrite)
    quiet_libraries()
    from dlm.report.gather import Held, Settings, paired, read_runs, with_models
    from dlm.report.page import to_page

    options.check_device(device)
    parts = read_runs([expand(run) for run in runs])
    settings = Settings(max_documents or 64, draws or 16, batch_size or 32, seed)
    if not no_model:
        held: Held = {"device": device, **weights}
        parts = with_models(parts, held, settings, lambda line: errors.print(line, markup=False, highlight=False))
    said = {**told, "--seed": seed or None, "--dtype": dtype if dtype != "fp32" else None, "--load": quantised}
    chosen: dict[str, object] = {**said, "--device": device}
    options_given = "".join(f" {name} {value}" for name, value in chosen.items() if value is not None)
    footer = f"dlm report {' '.join(quoted(run) for run in runs)} -o {quoted(output)}{options_given}"
    pairs = paired(parts, seed)
    write_text(to_page(parts, pairs, f"{footer}{' --no-model' if no_model else ''}"), output, overwrite=overwrite)
    for part in parts:
        if part.why:
            caution(f"{part.name} was not measured: {part.why}")
    errors.print(f"done: {output}", markup=False, highlight=False, soft_wrap=True)
