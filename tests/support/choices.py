"""The choices that a union holds, for tests that must hold for each of them."""

from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

from dlm.diffusion.schedule import Schedule, noise_levels
from dlm.diffusion.unmask import AnyBudget, AnyOrder, Budget, Order


def names(union: Any) -> list[str]:
    """The names of a union's choices, in its order."""
    return [choice.name for choice in get_args(union)]


def named(choice: Any) -> str:
    """The id of a choice in a test."""
    return str(choice.name)


def defaults(union: Any) -> list[Any]:
    """Each choice of a union, with its own defaults."""
    return [choice() for choice in get_args(union)]


def example(choice: type[Any]) -> Any:
    """A choice with 3 or 0.6 for each field that must be given."""
    given = {"int": 3, "float": 0.6}
    kinds = get_type_hints(choice)
    return choice(**{f.name: given[kinds[f.name].__name__] for f in fields(choice) if f.default is MISSING})


ORDERS: list[Order] = defaults(AnyOrder)
FIXED_ORDERS: list[Order] = [order for order in ORDERS if not order.is_random]
"""Those that draw no random numbers."""

BUDGETS: list[Budget] = [example(choice) for choice in get_args(AnyBudget)]

COMPLETE_SCHEDULES: list[Schedule] = [each for each in defaults(Schedule) if noise_levels(each) == (0.0, 1.0)]
"""Those that go from clean text to nothing but noise, as counts of masks ask."""
