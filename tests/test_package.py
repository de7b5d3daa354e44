"""What is shipped, and what it costs to import it."""

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import dlm
from dlm.settings import default_config_path

REPOSITORY = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "accelerate", "datasets", "numpy", "pyarrow")


def loaded(code: str) -> set[str]:
    """The packages that a fresh interpreter has loaded after the code."""
    code += "\nimport json, sys; print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(found.stdout.splitlines()[-1]))


def help_of(*words: str) -> str:
    return (
        f"import sys; sys.argv = {['dlm', *words, '--help']!r}\n"
        "from dlm.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code"
    )


@pytest.mark.parametrize(
    "code",
    ["import dlm; dlm.__version__", help_of(), help_of("train"), help_of("eval"), help_of("corrupt")],
    ids=["import", "help", "train", "eval", "corrupt"],
)
def test_help_and_import_load_nothing_heavy(code: str) -> None:
    modules = loaded(code)
    assert "dlm" in modules and not modules & set(HEAVY)


@pytest.mark.parametrize("command", ["sample", "infill"])
def test_the_help_of_samplers_loads_the_mathematics_alone(command: str) -> None:
    """Their options come from the unions of orders and budgets, which import torch."""
    assert not loaded(help_of(command)) & {"transformers", "accelerate", "datasets", "pyarrow"}


def test_an_unknown_attribute_is_an_error() -> None:
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = dlm.nothing_like_this
    assert dlm.DiffusionLM.__name__ == "DiffusionLM"


def test_the_default_configuration_of_a_clone() -> None:
    assert default_config_path() == REPOSITORY / "configs/tiny.yaml"


@pytest.mark.long
def test_a_wheel_holds_everything_and_trains_the_default_outside_the_clone(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    sources = {
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "dlm").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len([name for name in sources if name.endswith("__init__.py")]) >= 7
    assert sources <= names
    assert {"dlm/film/page.html", "dlm/py.typed", "dlm/configs/tiny.yaml"} <= names
    assert not [name for name in names if name.startswith(("tests", "dlm/tests", "configs"))]

    code = (
        "import dlm, json; from dlm.settings import default_config_path, load_config\n"
        "load_config(default_config_path()); print(json.dumps([dlm.__file__, str(default_config_path())]))"
    )
    # Before the editable install on the path, and outside the clone.
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    site = tmp_path / "site/dlm"
    assert json.loads(found.stdout) == [str(site / "__init__.py"), str(site / "configs/tiny.yaml")]

    (tmp_path / "text.txt").write_text("one two three four five six seven\n" * 200)
    quick = ["train.steps=1", "train.validate_sequences=2", "train.sample_length=0", "model.sizes.num_hidden_layers=1"]
    quick += ["tokenizer=bytes", "data.train={format: text, path: text.txt}", "data.held_out={by: tail, share: 0.3}"]
    command = [sys.executable, "-m", "dlm", "train", *(word for key in quick for word in ("--set", key))]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert (tmp_path / "runs/tiny/checkpoints/best/model.safetensors").is_file()


def test_the_hooks_of_a_commit_are_the_commands_of_make_check() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    _, _, target = makefile.partition("\ncheck:")
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in target.split("\n\n")[0].splitlines()[1:]]
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert commands and [hook["entry"] for hook in hooks] == commands
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in hooks)


def test_the_workflow_runs_what_must_pass_before_a_change_lands() -> None:
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    run = (REPOSITORY / ".ci/run").read_text(encoding="utf-8")
    assert [line for line in run.splitlines() if line.startswith("make")] == ["make check", "make test"]


def test_what_tests_share_stands_in_their_support() -> None:
    """No test imports another test or a conftest, and no page runs a helper of the tests."""
    tests = REPOSITORY / "tests"
    imported = re.compile(r"^\s*(?:from|import) tests\.(?!support\b)", re.MULTILINE)
    modules = [path for path in tests.rglob("*.py") if "benchmarks" not in path.parts]
    assert modules and [path for path in modules if imported.search(path.read_text(encoding="utf-8"))] == []
    pages = [
        *REPOSITORY.glob("*.md"),
        *(p for room in (".github", "configs", "dlm") for p in (REPOSITORY / room).rglob("*.md")),
    ]
    assert pages and [page for page in pages if "tests.support" in page.read_text(encoding="utf-8")] == []


def test_no_function_is_longer_than_a_page() -> None:
    long = [
        f"{path.relative_to(REPOSITORY)}: {node.name}"
        for path in (REPOSITORY / "dlm").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 80
    ]
    assert not long
