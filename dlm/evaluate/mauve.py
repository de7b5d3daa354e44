"""MAUVE: how close texts are to other texts, among the hidden states of a model."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from dlm.errors import ConfigError
from dlm.evaluate.bootstrap import RESAMPLES, Ratio

SCALE = 5.0
"""The c of the paper, and the default of its authors."""

MIXTURES = np.linspace(1e-6, 1.0 - 1e-6, 25)
"""The mixtures of both histograms at which the divergence curve is computed, as its authors do."""

FEWEST = 20
"""With fewer texts there would be fewer than two texts for each of the two bins that are the least."""

Features = NDArray[np.float32]
Histogram = NDArray[np.float64]


def check_installed() -> None:
    """Refuses to go on without the package.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import mauve  # noqa: F401
    except ImportError as error:
        raise ConfigError("MAUVE needs the package mauve-text: pip install mauve-text, or dlm[quality]") from error


def mauve_score(texts_ND: Features, others_MD: Features, seed: int) -> Ratio:
    """MAUVE (2102.01454, eq. 2 and 3): the area under the divergence curve of two histograms over clusters of states.

    The package reduces the states by PCA and clusters them by k-means into a tenth as many bins as there are texts. The
    bootstrap then draws both histograms anew and leaves the bins as they are.

    Draws from two histograms are further apart than the histograms, so that the value of N and M texts lies below that
    of ever more texts, and the bootstrap's values below that value again. Values are compared with those of as many
    texts, so the interval is of the mean of what other N and M texts of the same sources give: the bootstrap's, moved
    up by the distance from its mean to the value, and cut at 1.

    Args:
        texts_ND: A state for each of N texts.
        others_MD: A state for each of M texts to compare with.
        seed: Decides the clusters, and the bootstrap.

    Returns:
        A value above 0 and at most 1, which is 1 for equal histograms; its standard error and 95% interval. All are of
        N and M texts: with fewer, the value is lower for the same two sources.

    Raises:
        ConfigError: The package is not installed.
    """
    check_installed()
    from mauve import compute_mauve

    with _quiet_stderr():
        found = compute_mauve(
            p_features=texts_ND, q_features=others_MD, mauve_scaling_factor=SCALE, seed=abs(seed) % 2**31
        )
    p_K, q_K = np.asarray(found.p_hist, float), np.asarray(found.q_hist, float)
    return resampled(float(found.mauve), p_K, q_K, (len(texts_ND), len(others_MD)), seed)


def resampled(
    value: float, p_K: Histogram, q_K: Histogram, texts: tuple[int, int], seed: int, resamples: int = RESAMPLES
) -> Ratio:
    """The error and the interval of MAUVE, with the bins as they are; see `mauve_score`.

    Args:
        value: MAUVE of the two histograms.
        p_K: The share of the texts in each bin.
        q_K: The same of the others.
        texts: How many there are of each.
        seed: Decides the bootstrap.
        resamples: How often both are drawn anew.

    Returns:
        The value with its standard error and 95% interval.
    """
    random, (n, m) = np.random.default_rng(abs(seed)), texts
    drawn = np.array([_area(random.multinomial(n, p_K) / n, random.multinomial(m, q_K) / m) for _ in range(resamples)])
    low, high = (np.quantile(drawn, [0.025, 0.975]) + value - drawn.mean()).clip(0.0, 1.0).tolist()
    return Ratio(value, float(drawn.std(ddof=1)), (low, high))


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keeps out what the clustering, in C++, writes to stderr of every text that there could be more of."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - os.devnull is no path of a file
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _area(p_K: Histogram, q_K: Histogram) -> float:
    """The area under the divergence curve of two histograms, as the package computes it."""
    from mauve.compute_mauve import get_divergence_curve_for_multinomials
    from sklearn.metrics import auc

    x, y = get_divergence_curve_for_multinomials(p_K, q_K, MIXTURES, SCALE).T
    by_x, by_y = np.argsort(x), np.argsort(y)
    return float(auc(x[by_x], y[by_x]) + auc(y[by_y], x[by_y])) / 2.0
