"""Options that commands share, and the sampler that they describe."""

import inspect
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand
from typer.main import get_command
from typing_extensions import override

from dlm.cli.console import check_given, errors
from dlm.errors import ConfigError, shortened

if TYPE_CHECKING:
    from dlm.diffusion.guide import Guidance
    from dlm.diffusion.remask import AnyRemasker
    from dlm.diffusion.unmask import Budget
    from dlm.lm import Sampler
    from dlm.model.weights import Dtype, Quantization


USAGE: type[Any] = typer.BadParameter.__mro__[1]
"""What typer raises where a command line is not one of a command; typer does not export it by itself."""

HOW = "How it writes"
VERIFY = "Write next tokens from left to right: masks draft several at once, and the causal reading verifies them."
DRAFTS = "With --verify: tokens that a call drafts. 0 is one token a call; auto is as many as are fastest here."
CACHE = (
    "Approximate, for models in which every token sees every other: compute what is asked for and what has changed "
    "(dual), or all from the first of that on (prefix), and use the keys and values of earlier calls for the rest."
)
GUIDANCE = (
    "Towards the prompt, or the text around spans: (1+W) log p given it - W log p with masks in its place. With :late, "
    "W grows from 0 as tokens are revealed."
)
NEGATIVE = "With --guidance: away from this prompt, or this message, and not from masks."
OWN_STEPS = "one token a step; of a reverse chain the model's own, or 64 and more"

PUBLISHED = "of a published model its publisher's"

Model = Annotated[str, typer.Argument(help="A run folder, a checkpoint folder or a Hub name.", show_default=False)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key: optim.lr=3e-4. Repeatable.", show_default=False)
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same text.", rich_help_panel=HOW)]
HeldIn = Annotated[
    str,
    typer.Option(
        "--dtype",
        "--precision",
        help="What weights are held in and computed in: bf16, fp16, fp32, or auto: as they are stored, and where that "
        "is fp32, texts are written and holes' lengths weighed in bf16 if the hardware computes in it.",
    ),
]
Load = Annotated[
    str | None, typer.Option("--load", help="4bit or 8bit: quantise the weights, by bitsandbytes.", show_default=False)
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; a GPU if there is one by default.")]
MaskToken = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT|ID",
        help="The model's mask, where its tokenizer has it but does not register it as one.",
        show_default=False,
    ),
]
Output = Annotated[Path | None, typer.Option(help="Write to this file instead of stdout.", show_default=False)]
TextOutput = Annotated[
    Path | None,
    typer.Option(
        help="Write to this file instead of stdout, to the byte; stdout gets a newline where a text ends in none.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Watching = Annotated[bool, typer.Option("--watch", help="Show the first text while it is being written.")]
Export = Annotated[
    Path | None,
    typer.Option(help="Write the denoising of the first text as a page (.html) or picture (.svg).", show_default=False),
]


def check_export(path: Path | None) -> None:
    """Refuses a film of unknown kind, before anything is computed for it."""
    if path is not None:
        from dlm.film.export import check_suffix

        check_suffix(path)


MOST_ROWS = 65_536
"""Texts that may be written, scored or measured side by side, and alternatives of one text."""
MOST_TEXTS = 1_000_000
"""Texts that one command may write: each has a task from the beginning."""


def check_device(name: str | None) -> None:
    """Refuses a device that is not there, before anything is loaded onto it."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # the last two: torch was built without it
        why = shortened(str(error).splitlines()[0], 80)
        raise ConfigError(f"--device {name} cannot be used here ({why}): say cpu, or leave it out") from error


def check_weights(dtype: str, load: str | None = None) -> "Weights":
    """What `--dtype` and `--load` may be, as `DiffusionLM.from_pretrained` takes them.

    Args:
        dtype: The value of `--dtype`.
        load: The value of `--load`.

    Returns:
        Both.

    Raises:
        ConfigError: There is no such type, or no such quantisation.
    """
    types: dict[str, Dtype] = {"auto": "auto", "bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}
    bits: dict[str | None, Quantization | None] = {None: None, "4bit": "4bit", "8bit": "8bit"}
    if dtype not in types:
        raise ConfigError(f"--dtype is {', '.join(types)}, got {dtype}")
    if load not in bits:
        raise ConfigError(f"--load is 4bit or 8bit, got {load}")
    return {"dtype": types[dtype], "load": bits[load]}


class Weights(TypedDict):
    """How the weights of a model are held; see `DiffusionLM.from_pretrained`."""

    dtype: "Dtype"
    load: "Quantization | None"


def read_mask_token(given: str | None) -> str | int | None:
    """What `--mask-token` names: a token by its id where it is a whole number, else by its text."""
    return int(given) if given is not None and given.isdecimal() else given


class SamplerCommand(TyperCommand):
    """A command with the options of a sampler.

    They come from the unions of `dlm/diffusion/unmask.py`, which load torch, so they are made when they are asked for.
    The command finds their values in `context.obj`, for `build_sampler`.
    """

    _own: list[Any] | None = None

    @override
    def get_params(self, ctx: Any) -> Any:
        if self._own is None:
            described = typer.Typer(add_completion=False)
            try:
                described.command()(_described_by_options())
            except KeyboardInterrupt:  # while torch is loaded, before the command's own errors are caught
                errors.print("[bold red]dlm:[/] interrupted", highlight=False)
                raise typer.Exit(130) from None
            self._own = list(self.params)
            self.params.extend(get_command(described).params)
        return super().get_params(ctx)

    @override
    def invoke(self, ctx: Any) -> Any:
        own = {param.name for param in self._own or self.params}
        given = {name: ctx.params.pop(name) for name in [*ctx.params] if name not in own}
        ctx.obj = {name: value for name, value in given.items() if ctx.get_parameter_source(name).name != "DEFAULT"}
        return super().invoke(ctx)


def usage_message(error: Any) -> str:
    """What typer says of a wrong use, on one line that goes on behind a colon.

    Args:
        error: A `USAGE`.

    Returns:
        The line, without a full stop.
    """
    near = getattr(error, "possibilities", None)
    message = f"{error.message}; did you mean {' or '.join(near)}?" if near else error.format_message()
    if "Input should" in message and hasattr(error.__cause__, "errors"):  # pydantic's, which knows what was given
        message = f"{message.removesuffix('.')}, got {error.__cause__.errors()[0]['input']}"
    message = (
        message.replace(". Did you mean", "; did you mean")
        .replace(": Input should", ": it should")
        .replace(": Value error,", ":")
    )
    return f"{message[:1].lower()}{message[1:].removesuffix('.')}"


def read_sampler(text: str) -> Mapping[str, Any]:
    """The options of a sampler that stand in one text, such as `--steps 64 --order confidence`.

    Args:
        text: The options as on the command line of `dlm sample`.

    Returns:
        Their values by name, for `build_sampler`.

    Raises:
        ConfigError: They are not options of a sampler, or the text has a quote without its other.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--sampler: {str(error).lower()} in {text!r}") from error
    described = typer.Typer(add_completion=False)
    described.command()(_described_by_options())
    try:
        context = get_command(described).make_context("dlm sample", words)
    except USAGE as error:
        raise ConfigError(f"--sampler: {usage_message(error)}; see dlm sample --help") from error
    return {name: context.params[name] for name in given_names(context)}


def given_names(context: Any) -> list[str]:
    """The options and arguments that a command line gives, rather than leave at their defaults, by name."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]


def build_sampler(given: Mapping[str, Any]) -> "Sampler":
    """The sampler that options describe; a budget is chosen by the options that are its fields.

    Args:
        given: Values by the options' names, of those that were given.

    Returns:
        The sampler.

    Raises:
        ConfigError: More than one budget is given, or a number is out of range.
    """
    from dlm.diffusion.reuse import Reuse
    from dlm.diffusion.unmask import AnyBudget, AnyOrder, TokenChoice
    from dlm.lm import Sampler

    asked = dict(given)
    order = asked.pop("order", None)
    drafts = asked.pop("drafts", None)
    remask = asked.pop("remask", None)
    others = {name: asked.pop(name) for name in ("block_length", "accept", "verify") if name in asked}
    guided, negative = asked.pop("guidance", None), asked.pop("negative_prompt", None)
    if negative is not None and guided is None:
        raise ConfigError("--negative-prompt alone says nothing: give --guidance W too")
    reuse = {to: asked.pop(name) for name, to in (("cache", "reach"), ("refresh", "refresh")) if name in asked}
    if "refresh" in reuse and "reach" not in reuse:
        raise ConfigError("--refresh alone says nothing: give --cache prefix or --cache dual too")
    token = {f.name: asked.pop(f.name) for f in fields(TokenChoice) if f.name in asked}
    try:
        return Sampler(
            order=named("--order", AnyOrder, order)() if order else None,
            budget=_budget(get_args(AnyBudget), asked),
            remask=None if remask is None else remasker(remask),
            token=TokenChoice(**token) if token else None,
            drafts=None if drafts is None else _drafts(drafts),
            reuse=Reuse(**reuse) if reuse else None,
            guidance=None if guided is None else _guidance(guided, negative),
            **others,
        )
    except ValueError as error:  # it begins with the field's name
        name, _, rest = str(error).partition(" ")
        raise ConfigError(f"{_flag(name)} {rest}") from error


def remasker(given: str) -> "AnyRemasker":
    """The remasker that a name and its options describe, such as cap, or loop:on=0.6,eta=0.01.

    Args:
        given: The value of `--remask`.

    Returns:
        The remasker.

    Raises:
        ConfigError: There is no remasker or option of that name, or a value is not one that it takes.
    """
    from dlm.diffusion import remask

    name, colon, settings = given.partition(":")
    choice = named("--remask", remask.AnyRemasker, name)
    valid = [f.name for f in fields(choice) if f.name != "name"]
    values: dict[str, float] = {}
    for setting in settings.split(",") if colon else ():
        option, _, value = (part.strip() for part in setting.partition("="))
        if option not in valid:
            raise ConfigError(f"--remask {name} has no option {option!r}; valid: {', '.join(valid)}")
        if option in values:
            raise ConfigError(f"--remask {name}: {option} is given twice")
        try:
            values[option] = float(value)
        except ValueError:
            raise ConfigError(f"--remask {name}: {option} is a number, as in {option}=0.1, got {value!r}") from None
    try:
        found: AnyRemasker = choice(**values)
    except ValueError as error:
        raise ConfigError(f"--remask {name}: {error}") from error
    return found


def _guidance(given: str, negative: str | None) -> "Guidance":
    """What `--guidance` and `--negative-prompt` describe, such as 2 or 2:late."""
    from dlm.diffusion.guide import Guidance

    number, colon, schedule = given.partition(":")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if (colon and schedule != "late") or not 0.0 <= weight < math.inf:
        raise ConfigError(f"--guidance is a number from 0 on, or one with :late, as in 2:late, got {given!r}")
    return Guidance(
        weight, schedule == "late", None if negative is None else check_given(negative, "--negative-prompt")
    )


def _drafts(given: str) -> int:
    """The drafts of a call; where they are to be measured, any number: the model is checked before."""
    if given != "auto" and not given.isdecimal():
        raise ConfigError(f"--drafts must be a whole number from 0 on, or auto, got {given!r}")
    return 1 if given == "auto" else int(given)


def _budget(budgets: "Sequence[type[Budget]]", asked: Mapping[str, Any]) -> "Budget | None":
    """The budget whose fields were given."""
    fit = [b for b in budgets if any(f.name in asked for f in _required(b))]
    if len(numbers := sorted({f.name for b in fit for f in _required(b)})) > 1:
        given = [name for name in asked if name in numbers]
        raise ConfigError(f"{' and '.join(map(_flag, given))} are different budgets: give one of them")
    for budget in fit:
        choices = {f.name: get_args(get_type_hints(budget)[f.name]) for f in fields(budget) if f.name != "name"}  # type: ignore[arg-type]
        if all(not choices.get(name) or value in choices[name] for name, value in asked.items()):
            if lost := [name for name in asked if name not in choices]:
                raise ConfigError(f"{_flag(lost[0])} has no part in {_flag(numbers[0])}: leave one of them out")
            return budget(**asked)
    if asked:
        name = next(iter(asked))
        needed = sorted({f.name for b in budgets if name in {f.name for f in fields(b)} for f in _required(b)})  # type: ignore[arg-type]
        raise ConfigError(f"{_flag(name)} alone says nothing: give {' or '.join(map(_flag, needed))} too")
    return None


def _required(budget: "type[Budget]") -> "list[Field[Any]]":
    """The fields of a budget that have no default, by which it is chosen."""
    return [f for f in fields(budget) if f.default is MISSING]  # type: ignore[arg-type]


def _remaskers() -> str:
    """What the help says of the remaskers, with the default of each option."""
    from dlm.diffusion.remask import AnyRemasker

    told = []
    for choice in get_args(AnyRemasker):
        settings = ",".join(f"{f.name}={f.default:g}" for f in fields(choice) if f.name != "name")
        told.append(f"{choice.name}:{settings}")
    return f"With --steps: mask revealed tokens again. {', '.join(told)}; these options are the defaults."


def _described_by_options() -> Callable[..., None]:
    """A function with a parameter for the order, for each field of a budget and of the token choice, and for blocks."""
    from dlm.diffusion.reuse import Reach
    from dlm.diffusion.unmask import AnyBudget, AnyOrder, TokenChoice

    orders = ", ".join(order.name for order in get_args(AnyOrder))
    options = [_option("order", str, help=f"Which masked positions first: {orders}.", metavar="NAME")]
    numbers: dict[str, tuple[Any, str]] = {}
    choices: dict[str, list[str]] = {}
    for budget in get_args(AnyBudget):
        hints = get_type_hints(budget)
        for f in fields(budget):
            if get_origin(hints[f.name]) is Literal and f.name != "name":
                choices.setdefault(f.name, []).extend(get_args(hints[f.name]))
            if "help" in f.metadata:
                numbers[f.name] = hints[f.name], f.metadata["help"]
    for name, (kind, told) in numbers.items():
        if name in choices:
            members = [(choice.upper(), choice) for choice in choices[name]]
            listed: Any = StrEnum("Choices", members)  # type: ignore[misc]  # its names are known only here
            options.append(_option(name, listed, listed(choices[name][0]), help=told, show_default=True))
        elif kind is int:
            options.append(_option(name, kind, help=told, min=1, show_default=OWN_STEPS if name == "steps" else False))
        else:
            options.append(_option(name, kind, help=told))
    blocks = "Write blocks of this many tokens from left to right."
    options.append(_option("block_length", int, help=blocks, min=1))
    options.append(_option("remask", str, help=_remaskers(), metavar="NAME[:OPTION=VALUE,...]"))
    options += [
        _option("cache", StrEnum("Reach", [(reach.upper(), reach) for reach in get_args(Reach)]), help=CACHE),
        _option("refresh", int, help="With --cache: compute all of a text every so many calls; 1 is exact.", min=1),
        _option("verify", bool, help=VERIFY, show_default="where a model has next tokens and nothing else is asked"),
        _option("drafts", str, help=DRAFTS, metavar="K|auto"),
        _option("accept", float, help="With --verify: below 1 accept more drafts; the text is no longer exact."),
    ]
    options += [
        _option("guidance", str, help=GUIDANCE, metavar="W[:late]"),
        _option("negative_prompt", str, help=NEGATIVE, metavar="TEXT"),
    ]
    for f in fields(TokenChoice):
        least = 1 if f.name == "top_k" else None
        kind, shown = int if least else float, f.default is not None and f"{f.default}; {PUBLISHED}"
        options.append(_option(f.name, kind, f.default, help=f.metadata["help"], min=least, show_default=shown))

    def described() -> None:
        pass

    described.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # what typer reads
    return described


def _option(name: str, kind: Any, default: Any = None, **told: Any) -> inspect.Parameter:
    flag = f"{_flag(name)}/--no-{name}" if kind is bool else _flag(name)
    option = typer.Option(flag, rich_help_panel=HOW, **{"show_default": False, **told})
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


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
