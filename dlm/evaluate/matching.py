"""How near what was written comes to what stood there."""

from collections import Counter
from collections.abc import Iterator

LONGEST_GRAM, BETA = 6, 2.0
"""The longest character n-grams of chrF, and the weight of recall in it: those of chrF2."""


def character_accuracy(written: str, true: str) -> float:
    """The share of characters that stand in their places.

    Args:
        written: What was written.
        true: What stood there.

    Returns:
        From 0 to 1; the characters of the longer text are all of them. 1 for two empty texts.
    """
    longest = max(len(written), len(true))
    return sum(a == b for a, b in zip(written, true, strict=False)) / longest if longest else 1.0


def chrf(written: str, true: str) -> float:
    """The character n-gram F-score of one text, chrF2 (Popović 2015, W15-3049; beta 2 and n up to 6).

    Precision and recall are means over the n of which one of the texts has an n-gram. Blanks count as characters do,
    because a span may be little else; most tools leave them out.

    Args:
        written: What was written.
        true: What stood there.

    Returns:
        From 0 to 1; 1 for equal texts.
    """
    if written == true:
        return 1.0
    shares = [*_shares(written, true)]
    precision, recall = (sum(each[side] for each in shares) / len(shares) for side in (0, 1))
    weighted = BETA**2 * precision + recall
    return (1.0 + BETA**2) * precision * recall / weighted if weighted else 0.0


def _shares(written: str, true: str) -> Iterator[tuple[float, float]]:
    """Precision and recall of the n-grams of each length."""
    for n in range(1, min(LONGEST_GRAM, max(len(written), len(true))) + 1):
        ours, theirs = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (written, true))
        common = sum((ours & theirs).values())
        yield tuple(common / max(sum(grams.values()), 1) for grams in (ours, theirs))  # type: ignore[misc]
