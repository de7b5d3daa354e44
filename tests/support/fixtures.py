"""The types of the fixtures in `tests/conftest.py`."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from dlm.pipeline import DiffusionLM

MakeLM = Callable[..., DiffusionLM]
"""(tokenizer, context, keys of the configuration=..) -> a random model.

It has wide weights, so that its predictions are far from uniform, and those of its clock, if it has one, are too.
"""

Refused = Callable[..., AbstractContextManager[None]]
"""(kind of error, words...) -> a context in which that error is raised, in one line that holds the words."""
