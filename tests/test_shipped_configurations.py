"""The files in `configs/` are complete, in the present spelling, and agree with the defaults of the library."""

import dataclasses
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import yaml

from dlm.config import Config, Data, Separator, Source
from dlm.data.formats import FORMATS
from dlm.settings import default_config_path, dump_config, load_config
from dlm.spellings import translate_tree

FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
FORMULATION = ("noise", "schedule", "time", "parameterization", "objective")
COLUMNS = {"field", "prompt", "response", "messages"}


def dataclasses_in(hint: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(hint):
        yield hint
    elif get_origin(hint) in (Union, types.UnionType):
        for member in get_args(hint):
            yield from dataclasses_in(member)


def keys_of(kind: Any, value: dict[str, Any]) -> set[str]:
    """The keys that a complete file gives for this class."""
    if kind is not Source:
        return {field.name for field in dataclasses.fields(kind)}
    choice = FORMATS[value["format"]]
    columns = COLUMNS - {"field"} if "prompt" in value else {"field"}
    options = {option.name for option in dataclasses.fields(choice)} - {"columns"}
    return {"format", *options, *(columns if choice.tabular else ())}


def missing(hint: Any, value: Any, path: str = "") -> list[str]:
    """The dotted keys that a value of this type does not name."""
    kinds = list(dataclasses_in(hint))
    if not kinds or value is None or kinds == [Separator]:  # which is one way to say what a document is
        return []
    given = {"name": value} if isinstance(value, str) else value
    kind = next(kind for kind in kinds if len(kinds) == 1 or kind.name == given["name"])
    hints = get_type_hints(kind)
    found = [f"{path}{key}" for key in sorted(keys_of(kind, given) - set(given))]
    return found + [key for name in given for key in missing(hints[name], given[name], f"{path}{name}.")]


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree as dotted keys."""
    if not isinstance(tree, dict) or not tree:
        return {prefix[:-1]: tree}
    return {key: value for name, child in tree.items() for key, value in leaves(child, f"{prefix}{name}.").items()}


def is_number(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(is_number(each) for each in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_names_every_key_and_loads(path: Path) -> None:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert missing(Config, tree) == []
    assert translate_tree(tree) == tree
    load_config(path)


def test_a_key_that_is_left_out_is_found() -> None:
    tree = yaml.safe_load(default_config_path().read_text(encoding="utf-8"))
    del tree["optim"]["momentum"], tree["time"], tree["model"]["lora"]
    tree["data"]["train"] = {"format": "hub", "path": "owner/name"}
    tree["objective"]["levels"] = "bell"
    left_out = ["data.train.field", "data.train.split", "data.train.subset", "model.lora"]
    assert sorted(missing(Config, tree)) == [*left_out, "objective.levels.concentration", "optim.momentum", "time"]


def test_the_default_of_the_library_is_the_formulation_of_the_default_file() -> None:
    tiny = load_config(default_config_path())
    default = Config(data=tiny.data)
    assert [getattr(default, key) for key in FORMULATION] == [getattr(tiny, key) for key in FORMULATION]


def test_the_defaults_are_those_of_the_default_file_but_for_numbers_and_the_tokenizer() -> None:
    tiny = load_config(default_config_path())
    shipped, default = dump_config(tiny), dump_config(Config(data=Data(train=tiny.data.train)))
    for tree in (shipped, default):
        del tree["tokenizer"], tree["model"]["sizes"], tree["data"]["train"]
    plain = {key: value for key, value in leaves(default).items() if not is_number(value)}
    assert len(plain) > 20
    assert plain == {key: leaves(shipped)[key] for key in plain}
