"""Options that commands share, and the sampler that they describe."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from dlm.errors import ConfigError

if TYPE_CHECKING:
    from dlm.diffusion.unmask import Budget, Order
    from dlm.pipeline import Sampler


class Grid(StrEnum):
    """How `--steps` are laid out."""

    LINEAR = "linear"
    COSINE = "cosine"
    BINOMIAL = "binomial"


HOW = "How it writes"

Model = Annotated[str, typer.Argument(help="A run folder, a checkpoint folder or a Hub name.", show_default=False)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same text.", rich_help_panel=HOW)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; a GPU if there is one by default.")]
Output = Annotated[Path | None, typer.Option(help="Write to this file instead of stdout.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Watching = Annotated[bool, typer.Option("--watch", help="Show the first text while it is being unmasked.")]
Export = Annotated[
    Path | None, typer.Option(help="Write the denoising as a page (.html) or picture (.svg).", show_default=False)
]
OrderOption = Annotated[
    str | None,
    typer.Option(
        "--order",
        metavar="NAME",
        help="Which masked positions first: random, confidence, margin, entropy, left-to-right.",
        rich_help_panel=HOW,
        show_default=False,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="Budget: this many steps.", rich_help_panel=HOW, show_default="one token a step"),
]
GridOption = Annotated[
    Grid,
    typer.Option(
        "--grid",
        help="How --steps are laid out; binomial reveals each token on its own (ancestral sampling).",
        rich_help_panel=HOW,
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--threshold", help="Budget: every token above this probability.", rich_help_panel=HOW, show_default=False
    ),
]
FactorOption = Annotated[
    float | None,
    typer.Option(
        "--factor", help="Budget: the most n with (n+1)(1-p_n) below this.", rich_help_panel=HOW, show_default=False
    ),
]
EntropyBoundOption = Annotated[
    float | None,
    typer.Option(
        "--entropy-bound",
        help="Budget: as many as keep the joint entropy error below this, in nats.",
        rich_help_panel=HOW,
        show_default=False,
    ),
]
BlockLength = Annotated[
    int | None,
    typer.Option(
        min=1, help="Write blocks of this many tokens from left to right.", rich_help_panel=HOW, show_default=False
    ),
]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token.", rich_help_panel=HOW)]
TopK = Annotated[
    int | None,
    typer.Option(min=1, help="Draw from the k likeliest tokens.", rich_help_panel=HOW, show_default=False),
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Draw from the likeliest tokens that reach this probability together.",
        rich_help_panel=HOW,
        show_default=False,
    ),
]


def check_device(name: str | None) -> None:
    """Refuses a device that is not there, before anything is loaded onto it."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # the last two: torch was built without it
        raise ConfigError(f"--device {name} cannot be used here: {str(error).splitlines()[0]:.120}") from error


def build_sampler(
    *,
    order: str | None,
    default: str,
    steps: int | None,
    grid: Grid,
    threshold: float | None,
    factor: float | None,
    entropy_bound: float | None,
    block_length: int | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> "Sampler":
    """The sampler that the options describe.

    Args:
        order: The order asked for.
        default: The order if none is asked for and the budget suggests none.
        steps: Budget.
        grid: How the steps are laid out.
        threshold: Budget.
        factor: Budget.
        entropy_bound: Budget.
        block_length: Tokens a block.
        temperature: Of the token choice.
        top_k: Of the token choice.
        top_p: Of the token choice.

    Returns:
        The sampler.

    Raises:
        ConfigError: More than one budget is given, or a number is out of its range.
    """
    from dlm.diffusion.unmask import TokenChoice
    from dlm.pipeline import Sampler

    _check("--temperature", temperature, 0.0 <= temperature < float("inf"), "at least 0")
    _check("--top-p", top_p, top_p is None or 0.0 < top_p <= 1.0, "above 0 and at most 1")
    _check("--threshold", threshold, threshold is None or 0.0 <= threshold <= 1.0, "from 0 to 1")
    _check("--factor", factor, factor is None or factor > 0.0, "above 0")
    _check("--entropy-bound", entropy_bound, entropy_bound is None or entropy_bound >= 0.0, "at least 0")
    given = {"--steps": steps, "--threshold": threshold, "--factor": factor, "--entropy-bound": entropy_bound}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)} are different budgets: give one of them")
    if order is None and (threshold is not None or factor is not None):
        default = "confidence"
    elif order is None and entropy_bound is not None:
        default = "entropy"
    return Sampler(
        order=_order(order or default),
        budget=_budget(steps, grid, threshold, factor, entropy_bound),
        token=TokenChoice(temperature, top_k, top_p),
        block_length=block_length,
    )


def _order(name: str) -> "Order":
    from dlm.diffusion.unmask import AnyOrder

    classes = {choice.name: choice for choice in get_args(AnyOrder)}
    if name not in classes:
        raise ConfigError(f"--order: there is no order {name!r}; valid: {', '.join(classes)}")
    order: Order = classes[name]()
    return order


def _budget(
    steps: int | None, grid: Grid, threshold: float | None, factor: float | None, entropy_bound: float | None
) -> "Budget":
    from dlm.diffusion import unmask

    if steps is not None:
        if grid is Grid.BINOMIAL:
            return unmask.Ancestral(steps)
        return unmask.FixedSteps(steps, "linear" if grid is Grid.LINEAR else "cosine")
    if threshold is not None:
        return unmask.Threshold(threshold)
    if factor is not None:
        return unmask.Factor(factor)
    if entropy_bound is not None:
        return unmask.EntropyBound(entropy_bound)
    return unmask.OneAtATime()


def _check(name: str, value: float | None, good: bool, wanted: str) -> None:
    if not good:
        raise ConfigError(f"{name} must be {wanted}, got {value}")
