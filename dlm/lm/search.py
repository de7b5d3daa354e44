"""How holes of unknown length are searched: how many fillings each of the lengths gets, and how fillings are ranked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dlm.model.spans import LengthPrior
from dlm.template import Template

Lengths = tuple[int, ...]
"""The tokens of each hole of a text."""

ALIKE = 1e-9
"""The most nats that the log-probabilities of lengths differ by that are alike."""

TEMPER = 4.0
"""What log-probabilities of texts are divided by where they say which lengths to try again: one text tells little."""

FEW = 8
"""Below so many fillings, the first round takes the likeliest lengths."""

NOT_REREAD = "--reread is for a model with a causal reading, with readings joint: leave it out"


@dataclass(frozen=True)
class LengthSearch:
    """How the holes of unknown length are searched, and how fillings are ranked.

    Fillings that the causal reading ranks are written in two rounds: the texts of the first say which lengths to try
    again. Of several holes, the best are then put together.

    Attributes:
        prior: How likely each length is by itself; None for what the model's run counted, or else all alike.
        effort: The most lengths of a hole that are weighed, and the fillings that are tried.
        tries: The fillings of known length that are tried where the causal reading ranks them.
        reread: Whether fillings are ranked by the causal reading of the whole text, rather than by the log-probability
            of length and span; None for where the model has one and there is something to rank: several fillings
            of known length, or of unknown length where a text stands behind the last hole.
        top_p: The likeliest lengths that together have this probability are filled, as in nucleus sampling of tokens
            (1904.09751, section 3.1); of choices, all that were weighed. Each token more costs nats, so that of all
            texts of all lengths, the likeliest is often far shorter than what stood there.
    """

    prior: LengthPrior | None = None
    effort: int = 32
    tries: int = 8
    reread: bool | None = None
    top_p: float = 0.8

    def __post_init__(self) -> None:
        if min(self.effort, self.tries) < 1:
            raise ValueError(f"effort and tries must be at least 1, got {self.effort} and {self.tries}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def likely(self, posterior: Mapping[Lengths, float]) -> Mapping[Lengths, float]:
        """The lengths that are filled: the likeliest that have `top_p` together, and those as likely as the last.

        Args:
            posterior: The log-probability of each, up to a constant.

        Returns:
            The log-probability of each of these, given that it is one of them; the likeliest first.
        """
        ordered = sorted(posterior.items(), key=lambda item: -item[1])
        log_p_N = torch.tensor([log_p for _, log_p in ordered], dtype=torch.float64)
        # A sum that rounding keeps from its share is enough.
        fewer = int((log_p_N.softmax(0).cumsum(0) < self.top_p - ALIKE).sum())
        last = len(ordered) - 1 if self.top_p == 1.0 else min(fewer, len(ordered) - 1)
        log_p_N = log_p_N[log_p_N >= log_p_N[last] - ALIKE].log_softmax(0)
        return {lengths: log_p for (lengths, _), log_p in zip(ordered, log_p_N.tolist(), strict=False)}

    def ranks(self, *, causal: bool) -> bool:
        """Whether fillings of known length may be ranked by the causal reading.

        Args:
            causal: Whether the model has one.

        Returns:
            Whether there is one, and it is not left out.
        """
        return causal and self.reread is not False

    def rereads(self, template: Template) -> bool:
        """Whether fillings of unknown length are ranked by the causal reading, where there is one.

        Nothing behind the last hole would tell where it ends: the shortest filling would always be the likeliest.

        Args:
            template: Texts and holes.

        Returns:
            Whether they are.
        """
        return isinstance(template[-1], str) if self.reread is None else self.reread

    def tried(self, num: int, *, causal: bool) -> int:
        """How many fillings of known length are written, before the likeliest are chosen.

        Args:
            num: How many alternatives are wanted.
            causal: Whether the model has a causal reading.

        Returns:
            As many as alternatives are wanted, unless the causal reading ranks them.
        """
        return max(num, self.tries) if self.ranks(causal=causal) else num

    def fillings(self, num: int) -> int:
        """How many fillings of unknown length are written.

        Args:
            num: How many alternatives are wanted.

        Returns:
            As many as are tried, or as are wanted where these are more.
        """
        return max(self.effort, num)

    def shared_out(self, posterior: Mapping[Lengths, float], num: int) -> Mapping[Lengths, int]:
        """How many fillings each of the lengths gets, where none of them is reread.

        Args:
            posterior: The log-probability of each, the likeliest first.
            num: How many alternatives are wanted.

        Returns:
            Lengths that get some, and how many: in proportion, and at least one of each while there are enough.
        """
        left = tries = self.fillings(num)
        shares: dict[Lengths, int] = {}
        for lengths, log_p in posterior.items():
            shares[lengths] = min(left, max(1, round(tries * math.exp(log_p))))
            left -= shares[lengths]
        return {lengths: count for lengths, count in shares.items() if count}

    def first_round(self, posterior: Mapping[Lengths, float], num: int) -> Mapping[Lengths, int]:
        """How many fillings each of the lengths gets at first, where the causal reading says which to try again.

        Half of all are shared out by the probability of the lengths for each of their tokens, since a token costs a
        network call: where all lengths are alike, most are short, and the long ones lie apart.

        Args:
            posterior: The log-probability of each.
            num: How many alternatives are wanted.

        Returns:
            Lengths that get some, and how many.
        """
        tries = self.fillings(num)
        if tries < FEW:
            return dict.fromkeys(sorted(posterior, key=lambda lengths: -posterior[lengths])[: (tries + 1) // 2], 1)
        weights = {lengths: log_p - math.log(max(sum(lengths), 1)) for lengths, log_p in posterior.items()}
        return _in_proportion(weights, (tries + 1) // 2)

    def second_round(
        self, posterior: Mapping[Lengths, float], found: Sequence[tuple[Lengths, float]], count: int
    ) -> Mapping[Lengths, int]:
        """How many more fillings each of the lengths gets, after those of `first_round` were read as whole texts.

        Args:
            posterior: The log-probability of each.
            found: The lengths of each filling that there is, and the log-probability of its text by the causal reading.
            count: How many there are to be shared out.

        Returns:
            Lengths that get some, and how many: by their probability, times that of the best text of these lengths, or
            of the nearest that were tried, to the power of 1 / `TEMPER`.
        """
        best: dict[Lengths, float] = {}
        for lengths, nats in found:
            best[lengths] = max(best.get(lengths, -math.inf), nats)

        weights = dict(posterior)
        if any(nats > -math.inf for nats in best.values()):
            for lengths, tried in zip(posterior, nearest([*posterior], sorted(best)), strict=True):
                weights[lengths] += best[tried] / TEMPER
        left = {lengths: weight for lengths, weight in weights.items() if any(lengths) or lengths not in best}
        return _in_proportion(left, count)


def nearest(asked: Sequence[Lengths], others: Sequence[Lengths]) -> list[Lengths]:
    """Of other lengths, those nearest to each: by ratios, since a token more or less is little of a long hole.

    Args:
        asked: Lengths of the same holes.
        others: At least one.

    Returns:
        One a length that is asked for; the first of those that are as near.
    """
    some, known = (torch.tensor(each, dtype=torch.float64).add(1).log() for each in (asked, others))
    places = [place for part in some.split(1024) for place in torch.cdist(part, known, p=1).argmin(1).tolist()]
    return [others[place] for place in places]


def _in_proportion(log_weights: Mapping[Lengths, float], count: int) -> Mapping[Lengths, int]:
    """So many fillings in proportion to weights: at even steps through the weights of all lengths in ascending order.

    This is systematic resampling, without its random start. Holes of no tokens have one filling, and get no more.
    """
    likely = {lengths: weight for lengths, weight in sorted(log_weights.items()) if weight > -math.inf}
    highest = max(likely.values(), default=0.0)
    weights = {lengths: math.exp(weight - highest) for lengths, weight in likely.items()}
    total, passed, given, shares = sum(weights.values()), 0.0, 0, dict[Lengths, int]()
    for lengths, weight in weights.items():
        passed += weight
        upto = min(count, math.floor(count * passed / total + 0.5))
        if upto > given:
            shares[lengths], given = upto - given, upto
    empty = next((lengths for lengths in shares if not any(lengths)), None)
    if empty is not None and shares[empty] > 1:
        others = {lengths: weight for lengths, weight in likely.items() if lengths != empty}
        return {empty: 1, **_in_proportion(others, count - 1)}
    return shares
