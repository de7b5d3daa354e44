"""How near a filling comes: shares and n-gram scores worked out by hand."""

import pytest

from dlm.evaluate.matching import character_accuracy, chrf


@pytest.mark.parametrize(
    ("written", "true", "share"),
    [("abcd", "abcd", 1.0), ("abxd", "abcd", 0.75), ("ab", "abcd", 0.5), ("abcdef", "abc", 0.5), ("", "", 1.0)],
)
def test_characters_in_their_places(written: str, true: str, share: float) -> None:
    assert character_accuracy(written, true) == share


def test_chrf_of_equal_texts_is_one_and_of_strangers_zero() -> None:
    assert chrf("to be", "to be") == 1.0 and chrf("", "") == 1.0
    assert chrf("xyz", "abc") == 0.0 and chrf("", "abc") == 0.0


def test_chrf_by_hand() -> None:
    """`ab` for `abc`: precision 1, 1, 0 and recall 2/3, 1/2, 0 of one, two and three characters."""
    precision, recall = (1 + 1 + 0) / 3, (2 / 3 + 1 / 2 + 0) / 3
    assert chrf("ab", "abc") == pytest.approx(5 * precision * recall / (4 * precision + recall))


def test_recall_weighs_more_than_precision() -> None:
    assert chrf("abcdef", "abc") > chrf("abc", "abcdef")


def test_no_gram_is_longer_than_six() -> None:
    assert chrf("abcdefgh", "abcdefgX") == pytest.approx(sum((8 - n) / (9 - n) for n in range(1, 7)) / 6)
