"""The truths are written down, by the numbers that the self-test's claims carry."""

import re
from pathlib import Path

from dlm.selftest import TRUTHS

PAGE = Path(__file__).parents[2] / "dlm/diffusion/README.md"


def written() -> dict[int, set[str]]:
    """The number of each truth on the page, and the rooms that it names."""
    section = PAGE.read_text(encoding="utf-8").split("\n## Truths with a known answer\n")[1]
    items = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |\Z)", section, re.DOTALL | re.MULTILINE)
    return {int(number): set(re.findall(r"`(\w+)\.py`", item)) for number, item in items}


def checked() -> dict[int, set[str]]:
    """The number of each truth that is checked, and the rooms that check it."""
    rooms: dict[int, set[str]] = {}
    for number, checks in TRUTHS:
        rooms.setdefault(number, set()).add(checks.__module__.removeprefix("dlm.selftest."))
    return rooms


def test_the_page_has_the_truths_that_are_checked_each_with_the_rooms_that_check_it() -> None:
    assert written() == checked()


def test_the_numbers_run_from_1_and_are_checked_in_order() -> None:
    numbers = [number for number, _ in TRUTHS]
    assert numbers == sorted(numbers)
    assert list(written()) == list(range(1, max(numbers) + 1))
