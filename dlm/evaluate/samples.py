"""Statistics of sampled texts."""

import math
from collections import Counter
from collections.abc import Iterable


def unigram_entropy(ids: Iterable[int]) -> float:
    """Entropy, in nats, of how often each token occurs: low for a text that repeats itself.

    Args:
        ids: All tokens of one text or of several.

    Returns:
        The entropy in nats; 0 for no tokens.
    """
    counts = Counter(ids)
    total = counts.total()
    return math.fsum(-n / total * math.log(n / total) for n in counts.values()) + 0.0
