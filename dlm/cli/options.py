"""Options that commands share, and the sampler that they describe."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from dlm.errors import ConfigError

if TYPE_CHECKING:
    from dlm.diffusion.unmask import Budget
    from dlm.pipeline import Sampler


class Grid(StrEnum):
    """How `--steps` are laid out."""

    LINEAR = "linear"
    COSINE = "cosine"
    BINOMIAL = "binomial"


HOW = "How it writes"

Model = Annotated[str, typer.Argument(help="A run folder, a checkpoint folder or a Hub name.", show_default=False)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key: optim.lr=3e-4. Repeatable.", show_default=False)
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same text.", rich_help_panel=HOW)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; a GPU if there is one by default.")]
Output = Annotated[Path | None, typer.Option(help="Write to this file instead of stdout.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Watching = Annotated[bool, typer.Option("--watch", help="Show the first text while it is being written.")]
Export = Annotated[
    Path | None, typer.Option(help="Write the denoising as a page (.html) or picture (.svg).", show_default=False)
]


def check_device(name: str | None) -> None:
    """Refuses a device that is not there, before anything is loaded onto it."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # the last two: torch was built without it
        raise ConfigError(f"--device {name} cannot be used here: {str(error).splitlines()[0]:.120}") from error


def check_precision(name: str) -> Literal["fp32", "bf16"]:
    """What `--precision` may be."""
    if name not in ("fp32", "bf16"):
        raise ConfigError(f"--precision is fp32 or bf16, got {name}")
    return "bf16" if name == "bf16" else "fp32"


@dataclass(frozen=True)
class SamplerOptions:
    """The options that describe a sampler, each with its help; `with_sampler` gives them to a command."""

    order: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which masked positions first: random, confidence, margin, entropy, left-to-right.",
            rich_help_panel=HOW,
            show_default=False,
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Budget: this many steps; with noise that is not masks alone (uniform, hybrid), those of the "
            "reverse chain.",
            rich_help_panel=HOW,
            show_default="one token a step; of a reverse chain the model's own, or 64 and more",
        ),
    ] = None
    grid: Annotated[
        Grid,
        typer.Option(
            help="How --steps are laid out; binomial reveals each token on its own (ancestral sampling).",
            rich_help_panel=HOW,
        ),
    ] = Grid.LINEAR
    threshold: Annotated[
        float | None,
        typer.Option(help="Budget: every token above this probability.", rich_help_panel=HOW, show_default=False),
    ] = None
    factor: Annotated[
        float | None,
        typer.Option(help="Budget: the most n with (n+1)(1-p_n) below this.", rich_help_panel=HOW, show_default=False),
    ] = None
    entropy_bound: Annotated[
        float | None,
        typer.Option(
            help="Budget: as many as keep the joint entropy error below this, in nats.",
            rich_help_panel=HOW,
            show_default=False,
        ),
    ] = None
    block_length: Annotated[
        int | None,
        typer.Option(
            min=1, help="Write blocks of this many tokens from left to right.", rich_help_panel=HOW, show_default=False
        ),
    ] = None
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.", rich_help_panel=HOW)] = 1.0
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Draw from the k likeliest tokens.", rich_help_panel=HOW, show_default=False),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Draw from the likeliest tokens that reach this probability together.",
            rich_help_panel=HOW,
            show_default=False,
        ),
    ] = None

    def build(self) -> "Sampler":
        """The sampler, in which the budget suggests the order where there is none.

        Returns:
            The sampler.

        Raises:
            ConfigError: More than one budget is given, or a number is out of its range.
        """
        from dlm.diffusion.unmask import AnyOrder, TokenChoice
        from dlm.pipeline import Sampler

        _check("--temperature", self.temperature, 0.0 <= self.temperature < float("inf"), "at least 0")
        _check("--top-p", self.top_p, self.top_p is None or 0.0 < self.top_p <= 1.0, "above 0 and at most 1")
        _check("--threshold", self.threshold, self.threshold is None or 0.0 <= self.threshold <= 1.0, "from 0 to 1")
        _check("--factor", self.factor, self.factor is None or self.factor > 0.0, "above 0")
        bound = self.entropy_bound
        _check("--entropy-bound", bound, bound is None or bound >= 0.0, "at least 0")
        suggestions = {"steps": None, "threshold": "confidence", "factor": "confidence", "entropy_bound": "entropy"}
        given = [name for name in suggestions if getattr(self, name) is not None]
        if len(given) > 1:
            names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ConfigError(f"{names} are different budgets: give one of them")
        order = self.order or (suggestions[given[0]] if given else None)
        return Sampler(
            order=named("--order", AnyOrder, order)() if order else None,
            budget=self._budget(),
            token=TokenChoice(self.temperature, self.top_k, self.top_p),
            block_length=self.block_length,
        )

    def _budget(self) -> "Budget | None":
        from dlm.diffusion import unmask

        if self.steps is not None:
            if self.grid is Grid.BINOMIAL:
                return unmask.Ancestral(self.steps)
            return unmask.FixedSteps(self.steps, "linear" if self.grid is Grid.LINEAR else "cosine")
        if self.threshold is not None:
            return unmask.Threshold(self.threshold)
        if self.factor is not None:
            return unmask.Factor(self.factor)
        if self.entropy_bound is not None:
            return unmask.EntropyBound(self.entropy_bound)
        return None


def with_sampler(command: Callable[..., None]) -> Callable[..., None]:
    """A command that has the fields of `SamplerOptions` for options, in the place of its parameter `sampler`."""
    signature = inspect.signature(command)
    described = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in fields(SamplerOptions)
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(sampler=SamplerOptions(**{p.name: given.pop(p.name) for p in described}), **given)

    own = list(signature.parameters.values())
    place = list(signature.parameters).index("sampler")
    whole = signature.replace(parameters=[*own[:place], *described, *own[place + 1 :]])
    run.__signature__ = whole  # type: ignore[attr-defined]  # what typer reads
    return run


def named(option: str, union: Any, name: str) -> Any:
    """The class of a union that goes by this name.

    Args:
        option: The option that the name was given to, such as --order.
        union: Small dataclasses, each with its `name`.
        name: What was asked for.

    Returns:
        The class.

    Raises:
        ConfigError: None has that name; the message has those which there are.
    """
    classes = {choice.name: choice for choice in get_args(union)}
    if name not in classes:
        valid = ", ".join(classes)
        raise ConfigError(f"{option}: there is no {option.removeprefix('--')} {name!r}; valid: {valid}")
    return classes[name]


def _check(name: str, value: float | None, good: bool, wanted: str) -> None:
    if not good:
        raise ConfigError(f"{name} must be {wanted}, got {value}")
