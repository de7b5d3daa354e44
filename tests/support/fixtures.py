"""The types of the fixtures in `tests/conftest.py`."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from dlm.lm import DiffusionLM

MakeLM = Callable[..., DiffusionLM]
"""(tokenizer, context, keys of the configuration=..) -> a random model.

Its weights are wide, so that its predictions are far from uniform; so are those of its time embedding, if it has one.
"""

Refused = Callable[..., AbstractContextManager[None]]
"""(kind of error, words...) -> a context in which that error is raised, in one line that holds the words."""
