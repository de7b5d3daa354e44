"""Older spellings of the configuration, translated into the present one.

Two keys have changed. `process` is now `noise`. `objective` was one choice, `{name: bell, concentration: 3}`; it is now
two, `{loss: ce, levels: {name: bell, concentration: 3}}`.
"""

from collections.abc import Mapping
from typing import Any

OBJECTIVES = {
    "elbo": ("elbo", "even"),
    "ce": ("ce", "even"),
    "hybrid-ce": ("hybrid-ce", "even"),
    "bell": ("ce", "bell"),
    "clip": ("ce", "clip"),
}
"""The loss and the levels that each of the older objectives stands for."""

SETTINGS = {"coefficient": "loss", "concentration": "levels", "low": "levels", "high": "levels"}
"""The choice that each setting of an older objective now belongs to."""


def translate_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a configuration.

    Args:
        tree: A configuration in plain values, in any spelling. It is left unchanged.

    Returns:
        The same configuration in the present spelling.
    """
    translated = {"noise" if key == "process" and "noise" not in tree else key: value for key, value in tree.items()}
    objective = tree.get("objective")
    if isinstance(objective, str):
        objective = {"name": objective}
    if isinstance(objective, Mapping) and "name" in objective:
        translated["objective"] = _objective(objective)
    return translated


def translate_override(key: str, value: Any) -> list[tuple[str, Any]]:
    """Translates an override of one key; one that sets a whole objective is left to `translate_tree`.

    Args:
        key: A dotted key, in any spelling.
        value: Its value.

    Returns:
        The overrides in the present spelling.
    """
    first, *rest = key.split(".")
    if first == "process":
        return [(".".join(["noise", *rest]), value)]
    if first == "objective" and len(rest) == 1:
        if rest[0] in SETTINGS:
            return [(f"objective.{SETTINGS[rest[0]]}.{rest[0]}", value)]
        if rest[0] == "name":
            loss, levels = OBJECTIVES.get(value, (value, None)) if isinstance(value, str) else (value, None)
            names = [("objective.loss.name", loss)]
            return [*names, ("objective.levels.name", levels)] if levels else names
    return [(key, value)]


def _objective(old: Mapping[str, Any]) -> dict[str, Any]:
    """The two choices that an older objective stands for; a name that never was one is left for the loss to refuse."""
    settings = {key: value for key, value in old.items() if key != "name"}
    name = old["name"]
    if not isinstance(name, str) or name not in OBJECTIVES:
        return {"loss": dict(old)}
    loss, levels = OBJECTIVES[name]
    if name == loss:
        return {"loss": {"name": loss, **settings}, "levels": {"name": levels}}
    return {"loss": {"name": loss}, "levels": {"name": levels, **settings}}
