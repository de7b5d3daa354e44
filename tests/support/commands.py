"""Commands of `dlm` run in this process: what they print, and what they answer to a machine."""

import json
from typing import Any

from typer.testing import CliRunner, Result

from dlm.cli.app import app


def invoke(*words: object, stdin: str | bytes | None = None) -> Result:
    """What becomes of a command; an error that it does not report itself is raised."""
    return CliRunner().invoke(app, [*map(str, words)], input=stdin, catch_exceptions=False)


def dlm(*words: object, stdin: str | None = None) -> tuple[str, str]:
    """Stdout and stderr of a command that succeeds."""
    found = invoke(*words, stdin=stdin)
    assert found.exit_code == 0, found.stderr
    return found.stdout, found.stderr


def refusal(*words: object, stdin: str | bytes | None = None, code: int = 2) -> str:
    """Stderr of a command that ends with an error of its user, or of another code, and without a traceback."""
    found = invoke(*words, stdin=stdin)
    assert found.exit_code == code and "Traceback" not in found.stderr, found.stderr
    return found.stderr


def answer(*words: object, stdin: str | None = None) -> dict[str, Any]:
    """What a command says to a machine, in strict JSON and with nothing beside it."""
    out, err = dlm(*words, "--json", stdin=stdin)
    assert err == "" and out.count("\n") == 1

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found: dict[str, Any] = json.loads(out, parse_constant=refuse)
    return found
