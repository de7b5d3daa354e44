"""`dlm runs`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlm.cli import options
from dlm.cli.console import errors, quiet_libraries, write_data
from dlm.plain import plain_json

if TYPE_CHECKING:
    from dlm.train.listing import RunState

STYLES = {"training": "bold cyan", "finished": "green", "interrupted": "yellow", "broken": "bold red"}
"""How a state looks in a terminal; its word says it all without."""


def runs(
    folder: Annotated[Path, typer.Argument(help="A folder of run folders, or a run folder.")] = Path("runs"),
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List runs: where each stands, how good it is, and how to go on with it.

    Example:  dlm runs
    """
    quiet_libraries()
    from dlm.paths import expand
    from dlm.train.listing import list_runs

    found = list_runs(expand(folder))
    if as_json:
        write_data(plain_json({"runs": [each.to_dict() for each in found]}), None)
    elif found:
        _show(found)
    else:
        errors.print(f"no run in {folder}", markup=False, highlight=False, soft_wrap=True)


def _show(found: "list[RunState]") -> None:
    """A table with a row a run, and below it what is wrong with those that are broken."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for name in ("step", "best bound", "tokens/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("last change", no_wrap=True)
    table.add_column("to go on", overflow="fold")
    for run in found:
        next_ = Text(run.go_on or "-")
        state = Text(run.state if run.writer is None else f"{run.state}, {run.writer}", STYLES[run.state])
        speed = "-" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}"
        table.add_row(Text(run.path), state, _steps(run), _best(run), speed, run.changed or "-", next_)
    problems = [f"{run.path}: {run.problem}" for run in found if run.problem]  # below, as they are long
    terminal = Console()
    if terminal.is_terminal:
        terminal.print(table, highlight=False)
        for line in problems:
            terminal.print(f"\n{line}", style=STYLES["broken"], markup=False, highlight=False, soft_wrap=True)
        return
    wide = Console(width=2000)  # a line a run, for programs that read lines
    with wide.capture() as drawn:
        wide.print(table, highlight=False)
    rows = [line.rstrip() for line in drawn.get().splitlines()]
    write_data("\n".join([*rows, *([""] if problems else []), *problems]), None)


def _steps(run: "RunState") -> str:
    """How far it is, and from where it goes on if that is another step."""
    if run.steps is None:
        return "-"
    behind = run.state == "interrupted" and (run.saved or 0) < run.step
    return f"{run.step:,} of {run.steps:,}" + (f" (saved {run.saved or 0:,})" if behind else "")


def _best(run: "RunState") -> str:
    """The bound, and half the width of its interval."""
    if run.best is None:
        return "-"
    error = "" if run.best_ci95 is None else f" \u00b1 {(run.best_ci95[1] - run.best_ci95[0]) / 2:.4f}"
    return f"{run.best:.4f}{error} {run.reading}"
