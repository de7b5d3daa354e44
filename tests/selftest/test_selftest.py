"""The truths that `dlm selftest` checks, one test each, and that a wrong figure would be noticed."""

import json
from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner

from dlm.cli.app import app
from dlm.selftest import truths
from dlm.selftest.truths import TRUTHS, Check


@pytest.mark.parametrize("truth", TRUTHS, ids=lambda truth: truth.__name__.strip("_"))
def test_the_truth_holds(truth: Callable[[], Iterator[Check]]) -> None:
    checks = list(truth())
    assert checks
    assert not [check for check in checks if not check.holds]


def test_a_figure_beyond_its_tolerance_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truths, "TRUTHS", (lambda: iter([Check("two is three", 3.0, 2.0, 0.5)]),))
    shown = CliRunner().invoke(app, ["selftest"])
    assert shown.exit_code == 1
    assert "FAILS" in shown.stdout and "two is three" in shown.stderr
    plain = CliRunner().invoke(app, ["selftest", "--json"])
    assert plain.exit_code == 1
    assert json.loads(plain.stdout) == {
        "holds": False,
        "checks": [{"claim": "two is three", "exact": 3.0, "computed": 2.0, "tolerance": 0.5, "holds": False}],
    }


def test_the_command_prints_each_claim_with_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truths, "TRUTHS", (lambda: iter([Check("a half", 0.5, 0.5, 1e-9)]),))
    shown = CliRunner().invoke(app, ["selftest"])
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[-1].split() == ["ok", "0.5000000000", "0.5000000000", "1e-09", "a", "half"]
