"""What a run has written into `metrics.jsonl`, read again."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from dlm.errors import DataError
from dlm.evaluate.bootstrap import Interval
from dlm.train.metrics import StepMetrics, read_lines

METRICS = "metrics.jsonl"
"""The file of a run folder that has a line a step, and a line a validation."""


@dataclass(frozen=True)
class Bound:
    """What a validation measured in one reading.

    Attributes:
        nats_per_token: The bound, or the value where it is exact.
        interval: Its 95% interval; None where there is none.
        exact: Whether it is no bound but the value.
    """

    nats_per_token: float
    interval: Interval | None
    exact: bool

    @classmethod
    def parse(cls, report: Mapping[str, Any]) -> Self:
        """Takes it from a report as a run wrote it."""
        interval = report.get("nats_per_token_ci95")
        low_high = None if interval is None else (float(interval[0]), float(interval[1]))
        return cls(float(report["nats_per_token"]), low_high, report.get("estimator") == "exact")


@dataclass(frozen=True)
class Validated:
    """A validation.

    Attributes:
        step: After which step.
        bounds: By reading; a run is judged by the first.
        sample: What the model wrote then; empty for nothing.
    """

    step: int
    bounds: Mapping[str, Bound]
    sample: str

    @property
    def reading(self) -> str:
        """The reading that the run is judged by."""
        return next(iter(self.bounds))

    @property
    def judged(self) -> Bound:
        """That by which the run is judged."""
        return next(iter(self.bounds.values()))


@dataclass(frozen=True)
class History:
    """The steps and validations of a run, each in order and once.

    Attributes:
        steps: The steps.
        seconds: When each ended, in seconds of training without validations and pauses.
        validations: The validations.
    """

    steps: tuple[StepMetrics, ...]
    seconds: tuple[float, ...]
    validations: tuple[Validated, ...]

    @classmethod
    def read(cls, run: Path) -> Self:
        """Reads the file of a run; of a step that was taken again, what was written last counts.

        Args:
            run: The run folder.

        Returns:
            The history; an empty one where there is no file.

        Raises:
            DataError: The file is not what a run writes.
        """
        path = run / METRICS
        steps: dict[int, StepMetrics] = {}
        validations: dict[int, Validated] = {}
        names = {field.name for field in fields(StepMetrics)}
        try:
            for line in read_lines(path):
                if "validation" in line:
                    several = line.get("readings") or {
                        line["validation"].get("reading", "any-order"): line["validation"]
                    }
                    bounds = {name: Bound.parse(report) for name, report in several.items()}
                    validations[line["step"]] = Validated(line["step"], bounds, str(line.get("sample", "")))
                elif "loss" in line:
                    steps[line["step"]] = StepMetrics(**{name: line[name] for name in names if name in line})
            ordered = [steps[number] for number in sorted(steps)]
            return cls(tuple(ordered), _seconds(ordered), tuple(validations[number] for number in sorted(validations)))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise DataError(f"{path} is damaged: {str(error) or type(error).__name__:.120}") from error

    @property
    def best(self) -> Validated | None:
        """The validation with the lowest bound; None before the first."""
        found = [each for each in self.validations if not math.isnan(each.judged.nats_per_token)]
        return min(found, key=lambda each: each.judged.nats_per_token, default=None)

    @property
    def has_saved(self) -> bool:
        """Whether there was a checkpoint: one follows each validation, before the next."""
        return len(self.validations) > 1

    def speed(self, last: int = 50) -> float | None:
        """Tokens a second over the last steps; None before the first."""
        taken = [step for step in self.steps[-last:] if step.tokens_per_second > 0]
        if not taken:
            return None
        rates = sorted(step.tokens_per_second for step in taken)
        return rates[len(rates) // 2]


def _seconds(steps: list[StepMetrics]) -> tuple[float, ...]:
    """The sum of what each step took: its tokens over its speed."""
    found, before, total = [], 0, 0.0
    for step in steps:
        if step.tokens_per_second > 0:
            total += max(step.tokens - before, 0) / step.tokens_per_second
        before = step.tokens
        found.append(total)
    return tuple(found)
