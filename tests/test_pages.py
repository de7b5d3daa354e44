"""What the pages say is there: links, files, commands, flags, configuration keys, code and the tree of files."""

import contextlib
import dataclasses
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import pytest
import typer.main

from dlm.cli.app import app
from dlm.config import Config
from dlm.data.formats import FORMATS
from dlm.diffusion.remask import AnyRemasker
from dlm.diffusion.unmask import AnyBudget, AnyOrder
from dlm.errors import ConfigError
from dlm.settings import default_config_path, load_config
from tests.support.commands import dlm

ROOT = Path(__file__).parents[1]
CONTRIBUTING = ROOT / ".github/CONTRIBUTING.md"
PAGES = sorted(
    page
    for room in ("*.md", ".github/*.md", "configs/**/*.md", "dlm/**/*.md", "tests/**/*.md")
    for page in ROOT.glob(room)
)
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OWN_PATH = re.compile(r"(configs|dlm|tests|\.github|\.ci)/\S*")
OTHER_CODE = "## Names in other code bases"
"""A table of keys: its first column has ours, the others those of other projects."""


class Block(NamedTuple):
    """A fenced block: its language and its text."""

    language: str
    text: str


class Command(NamedTuple):
    """A command of a console block, its words and what it prints there."""

    words: list[str]
    output: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(*block) for block in found]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[Command]:
    """What follows the prompts of a page's console blocks, and the lines of its scripts that run `dlm`."""
    for language, text in blocks(page):
        lines = text.replace("\\\n", " ")
        if language == "bash":
            lines = "".join(f"$ {line}\n" for line in lines.splitlines() if " dlm " in line)
        elif language != "console":
            continue
        variables: dict[str, str] = {}
        for line, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", lines, re.MULTILINE):
            for part in line.split(" && "):
                words = words_of(part, variables)
                variables |= dict(word.split("=", 1) for word in words if re.match(r"[A-Z]+=", word))
                words = [word for word in words if not re.match(r"[A-Z]+=", word)]
                if words:
                    yield Command(words, output)


def words_of(line: str, variables: dict[str, str]) -> list[str]:
    line = re.sub(r"\$([A-Z]+)\b", lambda found: variables.get(found[1], found[0]), line)
    return shlex.split(line.replace("$'", "'"), comments=True)


def code_words(page: Path) -> list[str]:
    """What stands between backticks in a page's prose, but for the names of other projects."""
    own, _, foreign = prose(page).partition(OTHER_CODE)
    first_column = re.findall(r"^\| (`[^`]*`)", foreign, re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", "\n".join([own, *first_column]))


def example_names() -> set[str]:
    """The names of the choices that the contributing page adds."""
    return set(re.findall(r'name: Literal\["([\w-]+)"\]', CONTRIBUTING.read_text(encoding="utf-8")))


def example_flags() -> set[str]:
    """The options that the contributing page adds: the fields of its budget."""
    return {f"--{name}" for name in re.findall(r"^    (\w+): .*metadata", CONTRIBUTING.read_text(), re.MULTILINE)}


def check_dlm(arguments: list[str], output: str = "") -> None:
    """Parses a command line of `dlm` and loads the configuration that it describes."""
    if example_flags().intersection(arguments):
        return
    table, (name, *rest) = COMMANDS, arguments
    while hasattr(table[name], "commands"):
        if not rest:
            return
        table, (name, *rest) = table[name].commands, rest
    try:
        given = table[name].make_context(name, list(rest)).params  # which empties the list it is given
    except Exception as error:
        if type(error).__name__ == "MissingParameter" and not output:  # prose names a command by a part of it
            return
        raise
    if "settings" not in given or any(word.rpartition("=")[2] in example_names() for word in rest):
        return
    source, settings = given["config"] or default_config_path(), given["settings"] or ()
    if output.startswith("dlm: "):
        with pytest.raises(ConfigError) as refused:
            load_config(source, settings)
        assert output.strip() == f"dlm: {refused.value}"
    else:
        load_config(source, settings)


def check_command(page: Path, words: list[str], output: str) -> None:
    program, *rest = words
    if "dlm" in words:
        check_dlm(words[words.index("dlm") + 1 :], output)
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text()
        for word in rest:
            assert re.search(rf"^{word.partition('=')[0]}( \?=|:)", makefile, re.MULTILINE), word
    elif program == "python" and rest[0] == "-m":
        source = ROOT.joinpath(*rest[1].split(".")).with_suffix(".py").read_text()
        assert [word for word in rest[2:] if word.startswith("--") and f'"{word}"' not in source] == []
    elif program == "python":
        assert [block for block in blocks(page) if block.text.startswith(f"# {rest[0]}:")]
    else:
        raise AssertionError(f"a page names {program}, which this test does not know")


def check_path(word: str) -> None:
    """A path of this repository, or a glob of them, names something."""
    word = word.rpartition("=")[2]
    if OWN_PATH.fullmatch(word):
        assert list(ROOT.glob(word.rstrip("/"))), f"{word} is not there"


def keys_of(kind: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a configuration."""
    if not dataclasses.is_dataclass(kind):
        for member in get_args(kind):
            yield from keys_of(member, prefix)
        return
    for name, hint in get_type_hints(kind).items():
        yield f"{prefix}{name}"
        yield from keys_of(hint, f"{prefix}{name}.")


KEYS = set(keys_of(Config))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny run in runs/tiny."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "text.txt").write_text("for i in range(10):\n    print(i)\n" * 20)
    settings = ["data.train.path=text.txt", "data.train.format=text", "data.held_out.by=tail", "data.length=64"]
    settings += ["data.held_out.share=0.3", "tokenizer=bytes", "train.steps=2", "train.batch_size=2"]
    settings += [
        "train.validate_every=2",
        "train.validate_sequences=2",
        "train.sample_length=0",
        "train.precision=fp32",
    ]
    settings += ["model.sizes.hidden_size=16", "model.sizes.num_hidden_layers=1", "model.sizes.head_dim=8"]
    settings += ["model.sizes.num_attention_heads=2", "model.sizes.num_key_value_heads=2"]
    with contextlib.chdir(folder):
        dlm("train", *(word for setting in settings for word in ("--set", setting)))
    return folder


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_link_of_a_page_resolves(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not link.startswith("https://")]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no {target}"
        assert not anchor or anchor in anchors(target), f"{link}: {ids(target)} has {sorted(anchors(target))}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_of_a_page_can_be_typed(page: Path) -> None:
    for words, output in commands(page):
        check_command(page, words, output)
        for word in words:
            check_path(word)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_flag_key_and_path_in_the_prose_of_a_page_exists(page: Path) -> None:
    groups = [*COMMANDS.values(), *COMMANDS["bench"].commands.values()]
    parameters = [parameter for command in groups for parameter in command.get_params(typer.Context(command))]
    flags = {flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)}
    for code in code_words(page):
        if code.startswith("dlm ") and not code.startswith("dlm --"):
            check_dlm(shlex.split(re.sub(r" \[[A-Z]+\]", "", code))[1:])
        elif code.startswith("--"):
            assert [word for word in code.split() if word.startswith("--") and word not in flags] == []
            load_config(default_config_path(), re.findall(r"--set (\S+=\S+)", code))
        elif key := re.fullmatch(r"((\w+)(\.\w+)+)(: .*)?", code):
            if (page.parent / code).is_file():
                continue
            known = key[2] not in KEYS or key[1] in KEYS or key[1].startswith("model.sizes.")
            assert known or key[3] == ".safetensors", f"there is no key {key[1]}"
        check_path(code)


def test_the_pages_print_what_the_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that need no model."""
    shown = [(words, output) for page in PAGES for words, output in commands(page) if words[:2] == ["dlm", "corrupt"]]
    assert shown
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for words, output in shown:
        assert dlm(*words[1:])[0].rstrip() == output.rstrip()


@pytest.mark.long
def test_the_python_of_the_pages_runs(run_folder: Path) -> None:
    """All but what adds a class to the package, which `test_extending.py` builds, and the upload."""
    codes = [text for page in PAGES for language, text in blocks(page) if language == "python"]
    codes = [re.sub(r"^lm\.push_to_hub\(.*\n", "", code, flags=re.MULTILINE) for code in codes]
    codes = [code for code in codes if "@dataclass" not in code]
    assert len(codes) >= 3
    with contextlib.chdir(run_folder):
        for code in codes:
            exec(code, {})  # the pages' own
    assert (run_folder / "my-model/model.safetensors").is_file()
    assert '"prompt": "def ' in (run_folder / "pairs.jsonl").read_text().splitlines()[0].replace("'", '"')


def test_every_example_of_the_contributing_page_is_built() -> None:
    built = (ROOT / "tests/test_extending.py").read_text()
    classes = re.findall(r"^class (\w+)[(:]", CONTRIBUTING.read_text(encoding="utf-8"), re.MULTILINE)
    assert classes and [name for name in classes if f'"{name}": ("dlm/' not in built] == []


def test_every_configuration_is_in_the_table() -> None:
    page = ROOT / "configs/README.md"
    linked = re.findall(r"\]\(([\w/-]+\.yaml)\)", prose(page))
    assert {str(path.relative_to(page.parent)) for path in page.parent.rglob("*.yaml")} <= set(linked)


KINDS = ("order", "budget", "token", "reopen", "blocks", "guidance", "cache", "next")
"""The choices of a sampler, by the first words of the front page's table."""


def test_the_front_page_names_every_choice_of_a_sampler() -> None:
    """The table has a flag for each order, each budget and each other option of the sampler, and no other."""
    rows = re.findall(r"^\| (\w+).*?\| (.*) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    table = {name: re.findall(r"`([^`]+)`", flags) for name, flags in rows}
    orders = {order.name for order in get_args(AnyOrder)}
    assert sorted(table["order"]) == sorted(f"--order {name}" for name in orders)
    assert table["reopen"] == ["--steps N", *(f"--remask {remasker.name}" for remasker in get_args(AnyRemasker))]

    parameters = COMMANDS["sample"].get_params(typer.Context(COMMANDS["sample"]))
    options = {flag for parameter in parameters for flag in parameter.opts}
    used = " ".join(table["budget"])
    for budget in get_args(AnyBudget):
        for field in dataclasses.fields(budget):
            if field.name in ("name", "schedule"):  # the schedule is the model's own
                continue
            flag = f"--{field.name}" if f"--{field.name}" in options else f"--{budget.name}"
            assert flag in options and re.search(rf"{flag}\b", used), flag
            for choice in get_args(get_type_hints(budget)[field.name]):
                assert f"{flag} {choice}" in table["budget"]
    for code in [code for name in KINDS for code in table[name] if " " in code]:
        number = {"N": "3", "K": "3", "P": "0.5", "F": "0.5", "G": "0.5"}
        COMMANDS["sample"].make_context("sample", ["MODEL", *(number.get(word, word) for word in code.split())])

    described = {p.opts[0] for p in parameters if getattr(p, "rich_help_panel", None) == "How it writes"}
    named = {code.split()[0] for name in KINDS for code in table[name]}
    assert described - {"--seed"} == named - {"--no-verify"}


def test_the_page_of_the_configurations_has_every_format_and_its_suffixes() -> None:
    _, table = (ROOT / "configs/README.md").read_text(encoding="utf-8").split("| `data.train.format` |", 1)
    rows = re.findall(r"^\| `([\w-]+)` \| .* \|(.*)\|$", table.partition("\n\n")[0], re.MULTILINE)
    shown = {name: tuple(re.findall(r"`(\.\w+)`", suffixes)) for name, suffixes in rows}
    assert shown == {name: choice.suffixes for name, choice in FORMATS.items()}


def test_the_contributing_page_has_every_file() -> None:
    """The tree names each file of the package once, in its folder, and nothing else."""
    (tree,) = [text for language, text in blocks(CONTRIBUTING) if not language and text.startswith("dlm/\n")]
    named: list[str] = []
    folder = ""
    for line in tree.splitlines()[1:]:
        depth, words = (len(line) - len(line.lstrip())) // 2, line.split("  ")
        names = next(word for word in words if word.strip()).split()
        if names[0].endswith("/"):
            folder = names[0]
            continue
        named += [f"{folder if depth > 1 else ''}{name}" for name in names]
    files = [path.relative_to(ROOT / "dlm") for path in (ROOT / "dlm").rglob("*") if path.is_file()]
    left_out = {"__init__.py", "__main__.py", "py.typed", "README.md"}
    there = {str(path) for path in files if path.name not in left_out and "__pycache__" not in path.parts}
    assert len(named) == len(set(named))
    assert sorted(named) == sorted(there)


def test_the_pages_number_the_floors_as_the_linter_knows_them() -> None:
    (layers,) = [
        contract["layers"]
        for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    ]
    known = {room: floor for floor, rooms in enumerate(reversed(layers)) for room in rooms.split(" | ")}
    listed = re.findall(r"^  (\w+)(?:/|\.py) +(\d+)  ", CONTRIBUTING.read_text(), re.M)
    assert {f"dlm.{room}": int(floor) for room, floor in listed} == known
    front = re.findall(r"^dlm/(\w+)/ +(\d+)  ", (ROOT / "README.md").read_text(), re.M)
    assert len(front) == len([room for room in known if (ROOT / room.replace(".", "/")).is_dir()])
    assert all(known[f"dlm.{room}"] == int(floor) for room, floor in front)
