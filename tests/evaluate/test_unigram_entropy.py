"""The entropy of a text's tokens, where it is known."""

import math

import pytest

from dlm.evaluate.samples import unigram_entropy


@pytest.mark.parametrize("count", [1, 2, 3, 100])
@pytest.mark.parametrize("times", [1, 7])
def test_equally_frequent_tokens_have_the_logarithm_of_their_number(count: int, times: int) -> None:
    assert unigram_entropy(list(range(count)) * times) == pytest.approx(math.log(count), abs=1e-12)


def test_no_token_and_one_token_say_nothing() -> None:
    assert unigram_entropy([]) == 0.0
    assert math.copysign(1.0, unigram_entropy([5] * 9)) == 1.0 and unigram_entropy([5] * 9) == 0.0


def test_two_frequencies() -> None:
    p = 0.25
    assert unigram_entropy([0, 1, 1, 1]) == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))


def test_names_and_order_do_not_matter() -> None:
    assert unigram_entropy([1, 1, 2, 3]) == pytest.approx(unigram_entropy(iter([9, 7, 9, 0])))


def test_repeating_one_token_lowers_it() -> None:
    values = [unigram_entropy([*range(10), *[0] * more]) for more in (0, 5, 20, 100)]
    assert values == sorted(values, reverse=True) and len(set(values)) == 4
