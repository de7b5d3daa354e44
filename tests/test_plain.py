"""Numbers as JSON has them, and as sentences do."""

import json
import math

import pytest

from dlm.plain import counted, finite, plain_json


def test_only_numbers_that_json_has_none_for_become_null() -> None:
    tree = {"a": math.inf, "b": (1.5, math.nan, [-math.inf, "nan"]), "c": None, "d": True, "e": 10**400}
    plain = {"a": None, "b": [1.5, None, [None, "nan"]], "c": None, "d": True, "e": 10**400}
    assert finite(tree) == plain == json.loads(plain_json(tree))
    assert finite(plain) == plain


@pytest.mark.parametrize(
    ("number", "what", "verb", "shown"),
    [
        (0, "text", "", "0 texts"),
        (1, "text", "", "1 text"),
        (2000, "text", "", "2,000 texts"),
        (1, "pass", "are", "1 pass is"),
        (2, "pass", "are", "2 passes are"),
        (1, "token", "stand", "1 token stands"),
        (3, "token", "stand", "3 tokens stand"),
    ],
)
def test_one_thing_and_many_are_said_as_people_say_them(number: int, what: str, verb: str, shown: str) -> None:
    assert counted(number, what, verb) == shown
