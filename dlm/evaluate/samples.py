"""Statistics of texts that a model wrote."""

import math
from collections import Counter
from collections.abc import Iterable


def unigram_entropy(ids: Iterable[int]) -> float:
    """Entropy, in nats, of how often each token occurs: low for a text that repeats itself.

    Args:
        ids: Every token written, of one text or of many.

    Returns:
        Nats; 0 for no tokens.
    """
    counts = Counter(ids)
    total = counts.total()
    return math.fsum(-n / total * math.log(n / total) for n in counts.values()) + 0.0
