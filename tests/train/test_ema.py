"""The weight average against its closed forms (Karras et al., 2312.02696, section 3.1)."""

import pytest
import torch
from torch import nn

from dlm.train.ema import Ema, power_of_width


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.25])
def test_the_power_has_the_width(width: float) -> None:
    power = power_of_width(width)
    assert ((power + 1) / ((power + 2) ** 2 * (power + 3))) ** 0.5 == pytest.approx(width, rel=1e-9)


@pytest.mark.parametrize(("width", "power"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_powers_that_the_paper_names(width: float, power: float) -> None:
    assert power_of_width(width) == pytest.approx(power, abs=0.005)


def follow(width: float, values: torch.Tensor) -> Ema:
    """The average of a model whose one weight takes the values, a step each."""
    model = nn.Linear(1, 1, bias=False)
    ema = Ema(model, width)
    for step, value in enumerate(values, start=1):
        nn.init.constant_(model.weight, float(value))
        ema.update(model, step)
    return ema


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_the_average_weighs_step_tau_by_its_power(width: float) -> None:
    steps, power = 2000, power_of_width(width)
    taus = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    weight = taus**power / (taus**power).sum()
    for trajectory in (taus, taus.square(), torch.sin(20 * taus)):
        found = follow(width, trajectory).weights["weight"].item()
        assert found == pytest.approx((weight * trajectory).sum().item(), abs=0.01 * width)


def test_the_window_has_the_width_asked_for() -> None:
    taus = torch.linspace(0, 1, 2001)[1:]
    first, second = (follow(0.1, values).weights["weight"].item() for values in (taus, taus.square()))
    assert (second - first**2) ** 0.5 == pytest.approx(0.1, rel=0.01)


def test_the_first_step_replaces_what_the_average_began_with() -> None:
    assert follow(0.1, torch.tensor([7.0])).weights["weight"].item() == 7.0


def test_averages_are_float32_whatever_the_model_is() -> None:
    model = nn.Linear(3, 2).to(torch.bfloat16)
    ema = Ema(model, 0.1)
    ema.update(model, 5)
    assert {w.dtype for w in ema.weights.values()} == {torch.float32}


def test_applied_lends_the_averages_and_restores_the_weights() -> None:
    model = nn.Linear(3, 2)
    ema = Ema(model, 0.1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    own = {name: p.detach().clone() for name, p in model.named_parameters()}

    def equals(weights: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(p, weights[name]) for name, p in model.named_parameters())

    with ema.applied(model):
        assert equals(ema.weights) and not equals(own)
    assert equals(own)
    with pytest.raises(RuntimeError), ema.applied(model):
        raise RuntimeError
    assert equals(own)
