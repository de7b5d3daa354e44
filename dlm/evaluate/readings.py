"""The readings of one model on the same text, side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm.config import Time
from dlm.data.batches import Sequences
from dlm.evaluate.bootstrap import Interval, Ratio
from dlm.evaluate.likelihood import Measured, estimator_of, measure
from dlm.evaluate.report import LikelihoodReport
from dlm.lm import DiffusionLM

Told = Callable[[int, int, str], None]
"""(parts done, all parts, what comes next), called before every part."""


@dataclass(frozen=True)
class Difference:
    """How much more one reading needs than another on the same text.

    Both have the same bootstrap, so that what is hard in a text counts for neither: the interval is narrower than
    those of the two would suggest.

    Attributes:
        reading: The one.
        other: The other, which is subtracted.
        nats_per_token: The difference, in nats a token; of two bounds it is that of the bounds.
        nats_per_token_ci95: Its 95% bootstrap interval; None of a single unit.
        resampled: What the bootstrap resamples: documents, or sequences.
    """

    reading: str
    other: str
    nats_per_token: float
    nats_per_token_ci95: Interval | None
    resampled: str

    @classmethod
    def between(cls, one: Measured, other: Measured, seed: int) -> "Difference":
        """Compares two readings of the same sequences.

        Args:
            one: The one.
            other: What is subtracted.
            seed: Decides the bootstrap.

        Returns:
            The difference; it is not a number where both are infinite.
        """
        (nats_U, tokens_U), (others_U, _) = one.scores.units, other.scores.units
        found = Ratio.of(nats_U - others_U, tokens_U, seed)
        return cls(one.report.reading, other.report.reading, found.value, found.interval, one.report.resampled)


@dataclass(frozen=True)
class ReadingsReport:
    """Every reading of a model that was asked for.

    Attributes:
        reports: By reading.
        differences: Each reading but the first, compared with the first.
    """

    reports: Mapping[str, LikelihoodReport]
    differences: tuple[Difference, ...]

    @property
    def first(self) -> LikelihoodReport:
        """That of the first reading."""
        return next(iter(self.reports.values()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: those of the first reading, and where there are several all of them by name."""
        found = self.first.to_dict()
        if len(self.reports) > 1:
            found["readings"] = {name: report.to_dict() for name, report in self.reports.items()}
            found["differences"] = [asdict(difference) for difference in self.differences]
        return found


def evaluate_readings(
    lm: DiffusionLM,
    sequences: Sequences,
    readings: Sequence[str] = (),
    *,
    rows: Sequence[int] | None = None,
    draws: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    time: Time | None = None,
    words_D: NDArray[np.int64] | None = None,
    told: Told | None = None,
) -> ReadingsReport:
    """Measures a corpus in several readings, and compares them text by text.

    With several processes, all of them must call it, and all get the full report.

    Args:
        lm: The model.
        sequences: The corpus.
        readings: Which, as in `evaluate_likelihood`; by default all that the model was trained for.
        rows: Which of its sequences; all by default.
        draws: Noisy copies of each sequence, even and at least 4.
        batch_size: Sequences a forward.
        seed: Decides the noise and the bootstrap.
        time: The chain whose bound is estimated; by default the model's own.
        words_D: Words of each document, for the perplexity a word; None for none.
        told: Called before every batch; a part is a sequence.

    Returns:
        The report of each, and the differences.

    Raises:
        ConfigError: The model has no such reading, or the reading no such chain.
        DataError: There is no sequence.
    """
    # One named twice is measured once.
    names = list(dict.fromkeys(readings or lm.formulation.readings.all))
    for name in names:  # before the first takes its time
        estimator_of(lm, draws, time, name)
    how: dict[str, Any] = {"rows": rows, "draws": draws, "batch_size": batch_size, "seed": seed}
    count = len(sequences) if rows is None else len(rows)

    def measured(number: int, name: str) -> Measured:
        def tell(done: int) -> None:
            if told:
                told(number * count + done, len(names) * count, name)

        return measure(lm, sequences, time=time, reading=name, words_D=words_D, told=tell, **how)

    first, *others = (measured(number, name) for number, name in enumerate(names))
    return ReadingsReport(
        {each.report.reading: each.report for each in (first, *others)},
        tuple(Difference.between(other, first, seed) for other in others),
    )
