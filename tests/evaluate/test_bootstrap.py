"""The errors of a ratio of two sums."""

import math

import pytest
import torch

from dlm.evaluate.bootstrap import Ratio


def test_the_bootstrap_sees_the_choice_of_texts_and_the_masks_whose_variances_add() -> None:
    assert Ratio(1.0, 5.0, None).se_besides(3.0) == pytest.approx(4.0)
    assert Ratio(1.0, 5.0, None).se_besides(5.5) == 0.0  # noise alone, and no less than none
    assert Ratio(1.0, None, None).se_besides(3.0) is None
    assert Ratio(1.0, 5.0, None).se_besides(math.inf) == math.inf


def test_the_error_of_a_mean_is_the_scatter_over_the_root_of_their_number() -> None:
    values_U = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = Ratio.of(values_U, torch.ones(400), seed=0)
    assert found.value == pytest.approx(float(values_U.mean()))
    assert found.se == pytest.approx(float(values_U.std()) / 20, rel=0.1)
    assert found.se is not None and found.interval is not None and found.interval[0] < found.value < found.interval[1]
    assert found.interval[1] - found.interval[0] == pytest.approx(2 * 1.96 * found.se, rel=0.1)


def test_two_ratios_of_the_same_units_resample_the_same_ones() -> None:
    values_U = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, other = Ratio.of(values_U, torch.ones(50), seed=3), Ratio.of(values_U + 2.0, torch.ones(50), seed=3)
    assert other.se == pytest.approx(one.se) and other.value == pytest.approx(one.value + 2.0)
