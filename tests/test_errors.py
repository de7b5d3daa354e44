"""What messages show of a value."""

import pytest

from dlm.errors import shortened


@pytest.mark.parametrize(
    ("shown", "limit", "expected"),
    [
        ("'abcdef'", 8, "'abcdef'"),
        ("'abcdef'", 7, "'abcd…'"),
        ('"it\'s all"', 7, '"it\'s…"'),
        ("[1, 2, 3]", 6, "[1, 2…"),
        ("", 6, ""),
    ],
)
def test_a_value_that_is_cut_says_so_inside_its_quotes(shown: str, limit: int, expected: str) -> None:
    assert shortened(shown, limit) == expected
