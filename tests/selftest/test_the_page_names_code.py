"""The page of the mathematics names the files of its folder, and code that is there."""

import ast
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "dlm/diffusion"
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")


def defined(file: str) -> set[str]:
    """The names that a file defines, members as `Class.member`."""
    names = set[str]()
    for node in ast.parse((FOLDER / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
            members = node.body if isinstance(node, ast.ClassDef) else []
            names |= {f"{node.name}.{part.name}" for part in members if isinstance(part, ast.FunctionDef)}
            fields = (part.target for part in members if isinstance(part, ast.AnnAssign))
            names |= {f"{node.name}.{field.id}" for field in fields if isinstance(field, ast.Name)}
    return names


def test_the_table_has_every_file_of_the_folder_once() -> None:
    listed = re.findall(r"^\| \[`(\w+\.py)`\]\(\1\) \|", TEXT, re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in FOLDER.glob("*.py") if path.name != "__init__.py")


def test_every_class_that_is_named_is_defined() -> None:
    named = set(re.findall(r"`([A-Z][a-z0-9]\w*(?:\.\w+)?)`", TEXT))
    assert len(named) > 20
    assert not named - set[str]().union(*(defined(path.name) for path in FOLDER.glob("*.py")))


PLACED = re.findall(r"`(\w+\.py)`:\s+`([\w.]+)`", TEXT)
PLACED += [(file, name) for name, file in re.findall(r"`([\w.]+)` \(`(\w+\.py)`\)", TEXT)]


@pytest.mark.parametrize(("file", "name"), sorted(set(PLACED)))
def test_what_is_named_with_a_file_is_defined_there(file: str, name: str) -> None:
    assert name in defined(file)
