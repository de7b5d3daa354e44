"""Choices of noise, schedule, time and objective, by name, and a run's configuration with such choices in it."""

from typing import Any

from dlm.config import Config
from dlm.settings import dump_config, parse_config

TIMED: dict[str, dict[str, Any]] = {
    "uniform": {"noise": {"name": "uniform"}},
    "hybrid": {
        "noise": {"name": "hybrid"},
        "schedule": {"name": "cosine"},
        "objective": {"loss": "hybrid-ce", "levels": "even"},
    },
    "clip": {"noise": {"name": "uniform"}, "objective": {"loss": "ce", "levels": "clip"}},
    "chain": {"noise": {"name": "uniform"}, "parameterization": "mixture", "time": {"steps": 10}},
    "timed masks": {"model": {"time_conditioning": True}, "schedule": {"name": "geometric"}},
}
"""Every one of them has a network that takes the time."""


def chosen(config: Config, **keys: Any) -> Config:
    """The configuration with other choices of noise, schedule, time and objective, and other keys of `model`."""
    tree = dump_config(config)
    for key, value in keys.items():
        tree[key] = tree[key] | value if key == "model" else value
    return parse_config(tree)
