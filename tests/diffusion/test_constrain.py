"""Predictions held to a language: what they are by enumeration of every string, and that no span has a dead end."""

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from scipy import stats
from torch import Tensor

from dlm.diffusion.automaton import Automaton
from dlm.diffusion.constrain import ConstrainedDenoiser, Held
from dlm.diffusion.denoiser import Denoiser, FunctionDenoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.noise import Absorbing
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.remask import Cap, Planner
from dlm.diffusion.remasking import Planned, Remasking
from dlm.diffusion.rules import ReverseChain, Rule, Unmasking
from dlm.diffusion.sample import sample
from dlm.diffusion.schedule import Linear
from dlm.diffusion.unmask import Confidence, FixedSteps, LeftToRight, OneAtATime, Random, Threshold, TokenChoice
from tests.support.choices import BUDGETS, ORDERS
from tests.support.joints import Wrong
from tests.support.networks import ask, unmask

K, L = 4, 4
MASK = K
Ids = tuple[int, ...]


def language(accepts: Callable[[Ids], bool], longest: int = L) -> Automaton:
    """The strings of up to so many symbols that a function accepts; beginnings with the same endings are a state."""

    def endings(word: Ids) -> frozenset[Ids]:
        rests = itertools.chain(*(itertools.product(range(K), repeat=n) for n in range(longest - len(word) + 1)))
        return frozenset(rest for rest in rests if accepts((*word, *rest)))

    words: dict[frozenset[Ids], Ids] = {endings(()): ()}
    todo, steps = list[Ids]([()]), dict[frozenset[Ids], list[frozenset[Ids]]]()
    while todo:
        word = todo.pop()
        after = [endings((*word, symbol)) for symbol in range(K)]
        steps[endings(word)] = after
        for symbol, key in enumerate(after):
            if key not in words:
                words[key] = (*word, symbol)
                todo.append(words[key])
    number = {key: i for i, key in enumerate(words)}
    next_SC = [[number[key] for key in steps[key_of]] for key_of in words]
    return Automaton(torch.tensor(next_SC), torch.tensor([*range(K), K]), torch.tensor([() in key for key in words]), 0)


def rising(word: Ids) -> bool:
    """No symbol less than the one before it, and not all alike."""
    return [*word] == sorted(word) and len(set(word)) > 1


def even(word: Ids) -> bool:
    return sum(word) % 2 == 0


def one(word: Ids) -> bool:
    return word in {(2, 0, 3, 1)}


LANGUAGES = [rising, even, one]


def held(accepts: Callable[[Ids], bool], start: int = 0, stop: int = L) -> Held:
    return Held(range(start, stop), language(accepts))


def write(
    denoiser: Denoiser, spans: Sequence[Held], rows: int, rule: Rule | None = None, length: int = L, seed: int = 0
) -> list[Ids]:
    """Rows of masks, filled."""
    canvas_BL = torch.full((rows, length), MASK)
    constrained = ConstrainedDenoiser(denoiser, [spans] * rows, MASK)
    rule = rule or Unmasking(PROCESS, Random(), FixedSteps(1), TokenChoice())
    streams = [generator("constrained", seed, row) for row in range(rows)]
    *_, last = sample(rule, constrained, canvas_BL, torch.ones_like(canvas_BL, dtype=torch.bool), generators=streams)
    return [tuple(row) for row in last.x_BL.tolist()]


PROCESS = Process(Absorbing(), Linear(), Vocabulary.plain(K))


def is_drawn_from(found: list[Ids], p: dict[Ids, float]) -> bool:
    """Whether strings are draws of a distribution, by the chi-square test; rare ones are one outcome."""
    assert set(found) <= set(p)
    often = [word for word, share in p.items() if share * len(found) >= 5]
    expected = [p[word] for word in often] + [sum(share for word, share in p.items() if word not in often)]
    counts = [found.count(word) for word in often] + [sum(word not in often for word in found)]
    if expected[-1] * len(found) < 1:
        expected, counts = expected[:-1], counts[:-1]
    total = sum(expected)
    return len(counts) == 1 or bool(stats.chisquare(counts, [sum(counts) * e / total for e in expected]).pvalue > 1e-4)


def independent(log_p_LV: Tensor, accepts: Callable[[Ids], bool]) -> dict[Ids, float]:
    """The distribution of accepted strings whose symbols are independent, by enumeration."""
    words = filter(accepts, itertools.product(range(K), repeat=len(log_p_LV)))
    weights = {word: math.exp(sum(float(log_p_LV[i, v]) for i, v in enumerate(word))) for word in words}
    return {word: weight / sum(weights.values()) for word, weight in weights.items()}


def predictions(denoiser: Denoiser, word: Sequence[int]) -> Tensor:
    """What a denoiser says of all positions of a text."""
    x_1L = torch.tensor([word])
    return ask(denoiser, x_1L, torch.ones(1, dtype=torch.float64), torch.ones_like(x_1L, dtype=torch.bool))


@pytest.mark.parametrize("accepts", LANGUAGES)
def test_each_position_has_its_share_of_the_accepted_strings(accepts: Callable[[Ids], bool]) -> None:
    p = independent(predictions(Wrong(K, L), [MASK] * L), accepts)
    found = predictions(ConstrainedDenoiser(Wrong(K, L), [[held(accepts)]], MASK), [MASK] * L).exp()
    for place, symbol in itertools.product(range(L), range(K)):
        expected = sum(share for word, share in p.items() if word[place] == symbol)
        assert float(found[place, symbol]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("accepts", LANGUAGES)
def test_one_step_draws_from_the_independent_predictions_given_the_language(accepts: Callable[[Ids], bool]) -> None:
    p = independent(predictions(Wrong(K, L), [MASK] * L), accepts)
    assert is_drawn_from(write(Wrong(K, L), [held(accepts)], 600), p)


def test_several_steps_draw_each_from_what_is_left() -> None:
    """Two tokens a step from left to right: the pair's share of all strings, then the next pair's given the first."""
    denoiser, accepts, expected = Wrong(K, L), rising, dict[Ids, float]()
    first = independent(predictions(denoiser, [MASK] * L), accepts)
    for pair in itertools.product(range(K), repeat=2):
        share = sum(p for word, p in first.items() if word[:2] == pair)
        if share:
            later = predictions(denoiser, [*pair, MASK, MASK])[2:]
            rest = independent(later, lambda two, pair=pair: accepts((*pair, *two)))  # type: ignore[misc]
            expected |= {(*pair, *two): share * p for two, p in rest.items()}
    rule = Unmasking(PROCESS, LeftToRight(), FixedSteps(2), TokenChoice())
    assert sum(expected.values()) == pytest.approx(1.0)
    assert is_drawn_from(write(denoiser, [held(accepts)], 600, rule), expected)


def test_one_at_a_time_in_a_random_order_is_the_mean_over_orders() -> None:
    denoiser, expected = Wrong(K, 3), dict[Ids, float]()
    for order in itertools.permutations(range(3)):
        for word in filter(even, itertools.product(range(K), repeat=3)):
            share, seen = 1 / 6, [MASK] * 3
            for place in order:
                log_p = predictions(denoiser, seen)
                known = {i: symbol for i, symbol in enumerate(seen) if symbol != MASK}
                p = independent(log_p, lambda w: even(w) and all(w[i] == s for i, s in known.items()))  # noqa: B023
                given = {w: math.exp(sum(float(log_p[i, w[i]]) for i in range(3) if i not in known)) for w in p}
                share *= sum(v for w, v in given.items() if w[place] == word[place]) / sum(given.values())
                seen[place] = word[place]
            expected[word] = expected.get(word, 0.0) + share
    rule = Unmasking(PROCESS, Random(), OneAtATime(), TokenChoice())
    assert is_drawn_from(write(denoiser, [held(even, 0, 3)], 600, rule, length=3), expected)


RULES: list[Rule] = [
    *(Unmasking(PROCESS, order, budget, TokenChoice()) for order in ORDERS for budget in BUDGETS),
    *(
        Unmasking(PROCESS, Confidence(), FixedSteps(2), TokenChoice(*how))
        for how in ((0.0,), (0.3, 2), (1.5, None, 0.4))
    ),
    ReverseChain(PROCESS, 3, TokenChoice()),
    Remasking(PROCESS, 5, Cap(), TokenChoice()),
    Planned(PROCESS, FixedSteps(3), Planner(), TokenChoice()),
]


def described(rule: Rule) -> str:
    return f"{rule.order.name}-{rule.budget.name}" if isinstance(rule, Unmasking) else type(rule).__name__


@pytest.mark.parametrize("accepts", LANGUAGES)
@pytest.mark.parametrize("rule", RULES, ids=described)
def test_no_sampler_comes_to_a_dead_end(rule: Rule, accepts: Callable[[Ids], bool]) -> None:
    for seed in range(2):
        assert all(map(accepts, write(Wrong(K, L), [held(accepts)], 12, rule, seed=seed)))


def test_spans_that_touch_stand_at_the_ends_and_free_masks_between_them() -> None:
    spans = [held(even, 0, 2), held(rising, 2, 5), held(even, 6, 9)]
    rule = Unmasking(PROCESS, Random(), FixedSteps(3), TokenChoice())
    found = write(Wrong(K, 9), spans, 40, rule, length=9)
    assert all(even(word[:2]) and rising(word[2:5]) and even(word[6:9]) for word in found)
    assert len({word[5] for word in found}) > 1


def test_a_string_that_the_network_rules_out_is_still_written() -> None:
    log_p = torch.tensor([0.0, -math.inf, -math.inf, -math.inf, -math.inf], dtype=torch.float64)
    sure = FunctionDenoiser(lambda inputs: log_p.expand(int(inputs.wanted_BL.sum()), -1))
    assert write(sure, [held(one)], 2) == [(2, 0, 3, 1)] * 2
    assert set(write(sure, [held(lambda word: word[:1] == (3,))], 20)) == {(3, 0, 0, 0)}


def test_rows_without_a_language_are_written_as_ever() -> None:
    rows = 6
    canvas_BL, streams = torch.full((rows, L), MASK), lambda: [generator("row", row) for row in range(rows)]
    everything = torch.ones_like(canvas_BL, dtype=torch.bool)
    how = {"mask_id": MASK, "order": Confidence(), "budget": Threshold(0.5), "token": TokenChoice()}
    *_, plain = unmask(Wrong(K, L), canvas_BL, everything, generators=streams(), **how)  # type: ignore[arg-type]
    mixed = ConstrainedDenoiser(Wrong(K, L), [[held(even)], [], [], [held(one)], [], []], MASK)
    *_, other = unmask(mixed, canvas_BL, everything, generators=streams(), **how)  # type: ignore[arg-type]
    assert torch.equal(plain.x_BL[[1, 2, 4, 5]], other.x_BL[[1, 2, 4, 5]])
    assert tuple(other.x_BL[3].tolist()) == (2, 0, 3, 1) and even(tuple(other.x_BL[0].tolist()))


def test_lengths_are_those_of_the_accepted_strings() -> None:
    found = language(rising)
    assert found.lengths(6) == [2, 3, 4] and found.lengths(1) == [] and language(even).lengths(6) == [0, 1, 2, 3, 4]
    assert language(one).lengths(6) == [4]


def test_a_call_asks_for_no_more_than_the_masks_of_the_spans_it_touches() -> None:
    seen: list[NetworkInput] = []

    def note(inputs: NetworkInput) -> Tensor:
        seen.append(inputs)
        return Wrong(K, 9)(inputs)

    spans = [held(even, 0, 3), held(rising, 5, 8)]
    x_1L = torch.tensor([[MASK, 1, MASK, MASK, 2, MASK, 1, MASK, MASK]])
    wanted_1L = torch.zeros_like(x_1L, dtype=torch.bool)
    wanted_1L[0, [2, 3]] = True
    found = ask(ConstrainedDenoiser(FunctionDenoiser(note), [spans], MASK), x_1L, None, wanted_1L)
    assert len(found) == 2 and seen[0].wanted_BL.nonzero()[:, 1].tolist() == [0, 2, 3]


def test_a_language_of_one_string_has_no_other() -> None:
    for length in range(4):
        for ids in itertools.product(range(3), repeat=length):
            automaton = Automaton.of_string(ids, 3)
            every = (other for size in range(5) for other in itertools.product(range(3), repeat=size))
            assert [other for other in every if automaton.accepts(other)] == [ids]
            assert automaton.lengths(5) == [length]
