"""Reads a configuration from YAML and overrides; a mistake is one line that names the key.

A run has one complete file; there is no inheritance and nothing is read from the environment.
"""

import dataclasses
import difflib
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from dlm.config import Config
from dlm.diffusion.formulation import Formulation
from dlm.errors import ConfigError, one_line, shortened
from dlm.spellings import translate_override, translate_tree

CHOICES = ("tokenizer", "noise", "schedule", "readings", "objective.loss", "objective.levels")
"""Keys whose value is `{name: ..., ...}`; files and `--set` may give the bare name for them."""


def default_config_path() -> Path:
    """The default configuration of `dlm train`: `configs/tiny.yaml`, in a wheel or a clone."""
    package = Path(__file__).parent
    return next(p for p in (package / "configs/tiny.yaml", package.parent / "configs/tiny.yaml") if p.exists())


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies the overrides and validates the result.

    Args:
        path: A YAML file.
        overrides: `dotted.key=value`, later ones winning. A value is read as YAML; that of a key that holds text is
            taken as it is, unless it is null or in quotes.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: The file cannot be read, or a key or a value is not valid; the message names the
            dotted key and, for an unknown one, the nearest valid name.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        hint = "; a text that begins with * needs quotes" if "alias" in str(error) else ""
        raise ConfigError(f"{path} is not valid YAML: {one_line(error, limit=None)}{hint}") from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path} holds no configuration: expected keys such as data and train, got {shortened(repr(tree), 60)}"
        )
    tree = _normalise(tree)
    for override in overrides:
        tree = _override(tree, override)
    return parse_config(tree)


def parse_config(tree: Mapping[str, Any]) -> Config:
    """Validates a tree of plain values, as YAML gives it.

    Args:
        tree: Keys and values in the shape of `Config`, or in an older spelling of it. It is left unchanged.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: A key or a value is not valid.
    """
    tree = _normalise(tree)
    try:
        config = _adapter().validate_python(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, Config)) from error
    _check_booleans(tree, dump_config(config), "")
    return config


def dump_config(config: Config) -> dict[str, Any]:
    """The configuration as plain values that YAML writes and `parse_config` reads back unchanged."""
    plain: dict[str, Any] = _adapter().dump_python(config, mode="json")
    return plain


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of plain values as dotted keys; a branch without keys vanishes."""
    if not isinstance(tree, Mapping):
        return {prefix[:-1]: tree}
    return {key: value for name, child in tree.items() for key, value in flatten(child, f"{prefix}{name}.").items()}


def parse_formulation(tree: Any) -> Formulation:
    """Validates a formulation in plain values.

    Args:
        tree: Keys and values in the shape of `Formulation`.

    Returns:
        The formulation.

    Raises:
        ConfigError: A key or a value is not valid.
    """
    try:
        found = TypeAdapter(_formulations()).validate_python(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, _formulations(), "formulation")) from error
    formulation = Formulation(**{f.name: getattr(found, f.name) for f in dataclasses.fields(Formulation)})
    try:
        formulation.check()
    except ValueError as error:
        raise ConfigError(f"formulation.{error}") from error
    return formulation


def dump_formulation(formulation: Formulation) -> dict[str, Any]:
    """The formulation as plain values that `parse_formulation` reads back unchanged."""
    plain: dict[str, Any] = TypeAdapter(Formulation).dump_python(formulation, mode="json")
    return plain


def _check_booleans(given: Any, taken: Any, key: str) -> None:
    """Refuses true and false for a number, because Python takes them for 1 and 0."""
    if isinstance(given, Mapping) and isinstance(taken, Mapping):
        for name in given:
            _check_booleans(given[name], taken.get(name), f"{key}.{name}".lstrip("."))
    elif isinstance(given, list | tuple) and isinstance(taken, list | tuple):
        for i, (one, other) in enumerate(zip(given, taken, strict=False)):
            _check_booleans(one, other, f"{key}.{i}")
    elif isinstance(given, bool) and isinstance(taken, int | float) and not isinstance(taken, bool):
        raise ConfigError(f"{key}: expected a number, got {given}")


class _Loader(yaml.SafeLoader):
    """Reads `3e-4` as a number, as YAML 1.2 does; YAML 1.1 reads it as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@cache
def _adapter() -> TypeAdapter[Config]:
    return TypeAdapter(Config)


@cache
def _formulations() -> Any:
    """`Formulation` with what pydantic must know: that a union is chosen from by name, and that keys are checked."""
    hints = get_type_hints(Formulation)
    choices = {name: len(list(_dataclasses(hint))) > 1 for name, hint in hints.items()}
    return dataclasses.make_dataclass(
        "Formulation",
        [
            (f.name, Annotated[hints[f.name], Field(discriminator="name")] if choices[f.name] else hints[f.name], f)
            for f in dataclasses.fields(Formulation)
        ],
        namespace={"__pydantic_config__": ConfigDict(extra="forbid")},
    )


def _normalise(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree in the present spelling, where every choice is `{name: ..., ...}`."""
    normal = translate_tree(tree)
    for choice in CHOICES:
        keys = choice.split(".")
        if isinstance(name := _get(normal, keys), str):
            normal = _put(normal, keys, {"name": name})
    return normal


def _override(tree: Mapping[str, Any], override: str) -> dict[str, Any]:
    """The tree with `dotted.key=value` put in."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes key=value, got {override!r}; for example --set optim.lr=3e-4")
    try:
        value = text if _is_text(key.strip(), text) else yaml.load(text, _Loader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"--set {key}: the value {text!r} is not valid YAML") from error
    changed = dict(tree)
    for name, part in translate_override(key.strip(), value):
        changed = _put(changed, name.split("."), part)
    return _normalise(changed)  # so that the next one finds a bare name spelled out


def _is_text(key: str, value: str) -> bool:
    """Whether an override is text as it stands: the key holds text, and the value is no null and nothing in quotes.

    So `data.train.path=*.txt` is a glob and no alias of YAML, and `data.train.field=1` is a name and no number.
    """
    value = value.strip()
    if value.lower() in ("", "~", "null") or value[0] in "\"'":
        return False
    hint: Any = Config
    for name in key.split("."):
        hint = next((hints[name] for c in _dataclasses(hint) if name in (hints := get_type_hints(c))), None)
    members = set(_members(hint))
    return str in members and not (value[0] in "[{" and members - {str, type(None)})


def _members(hint: Any) -> Iterator[Any]:
    """The types in a union, or the type itself."""
    if get_origin(hint) in (Union, types.UnionType):
        for member in get_args(hint):
            yield from _members(member)
    else:
        yield hint


def _get(tree: Any, keys: Sequence[str]) -> Any:
    """What stands at a key of a tree, or None."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _put(tree: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of the tree with a value at a key; parents that are not trees are replaced."""
    first, *rest = keys
    if rest:
        child = tree.get(first)
        value = _put(child if isinstance(child, Mapping) else {}, rest, value)
    return {**tree, first: value}


def _explain(error: ValidationError, root: type, *above: str) -> str:
    """The first error in one line: the dotted key, the value received and the valid ones."""
    first = _telling(error)
    parts, names = _walk(first["loc"], root)
    key, got = ".".join([*above, *parts]), shortened(repr(first["input"]), 80)
    match first["type"]:
        case "unexpected_keyword_argument":
            near = difflib.get_close_matches(parts[-1], names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            return f"unknown configuration key {key}: {hint}valid here: {', '.join(names)}"
        case "missing" | "missing_argument":
            return f"configuration key {key} is missing"
        case "union_tag_invalid":
            choices = first["ctx"]["expected_tags"].replace("'", "")
            return f"{key}.name: unknown choice {first['ctx']['tag']!r}; valid: {choices}"
        case "union_tag_not_found":
            return f"{key}: expected {{name: ...}} with a choice in it, got {got}"
        case "value_error":
            return f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
        case _:
            message = first["msg"][:1].lower() + first["msg"][1:]
            return f"{key}: {message}, got {got}"


def _telling(error: ValidationError) -> ErrorDetails:
    """The first error; where a list or a mapping is given for a choice of types, not that it is no text."""
    first, *others = error.errors()
    above = first["loc"][:-1]
    if first["type"] in ("literal_error", "string_type") and isinstance(first["input"], Mapping | list | tuple):
        return next((other for other in others if other["loc"][: len(above)] == above), first)
    return first


def _walk(location: Sequence[str | int], root: type) -> tuple[list[str], list[str]]:
    """The location without the tags that pydantic adds for unions, and the key names valid at its end."""
    here: Any = root
    parts: list[str] = []
    names: list[str] = []
    for step in location:
        classes = list(_dataclasses(here))
        tagged = [c for c in classes if len(classes) > 1 and getattr(c, "name", None) == step]
        if tagged or (len(classes) == 1 and step == classes[0].__name__):
            here = (tagged or classes)[0]
            continue
        if step == "str" or "[" in str(step):  # which of several types, such as literal['file','line']
            continue
        parts.append(str(step))
        names = [f.name for c in classes for f in dataclasses.fields(c)]
        hints = [get_type_hints(c, include_extras=False) for c in classes]
        here = next((h[str(step)] for h in hints if str(step) in h), None)
    return parts, names


def _dataclasses(hint: Any) -> Iterator[Any]:
    """The dataclasses in a type: itself, or the members of a union."""
    if dataclasses.is_dataclass(hint):
        yield hint
    elif get_origin(hint) in (Union, types.UnionType, Annotated):
        for member in get_args(hint):
            yield from _dataclasses(member)
