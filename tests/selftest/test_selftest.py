"""The truths that `dlm selftest` checks, one test each, and that a wrong figure would be noticed."""

import json
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from typer.testing import CliRunner

from dlm import selftest
from dlm.cli.app import app
from dlm.selftest import TRUTHS, truths
from dlm.selftest.check import Check, chi_square, frequency


@pytest.mark.parametrize(
    "truth", [checks for _, checks in TRUTHS], ids=[f"{number}-{checks.__name__}" for number, checks in TRUTHS]
)
def test_the_truth_holds(truth: Callable[[], Iterator[Check]]) -> None:
    checks = list(truth())
    assert checks
    assert not [check for check in checks if not check.holds]


def test_a_figure_beyond_its_tolerance_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "TRUTHS", ((12, lambda: iter([Check("two is three", 3.0, 2.0, 0.5)])),))
    shown = CliRunner().invoke(app, ["selftest"])
    assert shown.exit_code == 1
    assert "FAILS" in shown.stdout and "(12) two is three" in shown.stderr
    plain = CliRunner().invoke(app, ["selftest", "--json"])
    assert plain.exit_code == 1
    assert json.loads(plain.stdout) == {
        "holds": False,
        "checks": [{"claim": "(12) two is three", "exact": 3.0, "computed": 2.0, "tolerance": 0.5, "holds": False}],
    }


def test_the_command_prints_each_claim_with_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "TRUTHS", ((3, lambda: iter([Check("a half", 0.5, 0.5, 1e-9)])),))
    shown = CliRunner().invoke(app, ["selftest"])
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[-1].split() == ["ok", "0.5000000000", "0.5000000000", "1e-09", "(3)", "a", "half"]


def test_each_claim_begins_with_the_number_of_its_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (lambda: iter([Check("a", 0, 0, 0), Check("b", 0, 0, 0)])), (lambda: iter([Check("c", 0, 0, 0)]))
    monkeypatch.setattr(selftest, "TRUTHS", ((1, one), (2, two)))
    assert [check.claim for check in truths()] == ["(1) a", "(1) b", "(2) c"]


def test_a_frequency_is_compared_within_its_standard_error() -> None:
    assert frequency("fair", 5_200, 10_000, 0.5).holds  # 4 standard errors of 50
    assert not frequency("fair", 5_230, 10_000, 0.5).holds


def test_pearsons_statistic_is_near_its_degrees_of_freedom_only_for_the_right_distribution() -> None:
    expected_M = torch.tensor([50.0, 30.0, 20.0, 0.0])
    right = chi_square("die", torch.tensor([55, 27, 18, 0]), expected_M)
    assert right.claim == "die: chi-square, mean 2" and right.exact == 2
    assert right.computed == pytest.approx(25 / 50 + 9 / 30 + 4 / 20) and right.holds
    assert not chi_square("die", torch.tensor([20, 30, 50, 0]), expected_M).holds
    assert chi_square("die", torch.tensor([54, 27, 18, 1]), expected_M).computed == math.inf
