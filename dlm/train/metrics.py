"""What a run reports: lines in a file, and events for a display."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import override

from dlm.evaluate.report import LikelihoodReport


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step.

    Attributes:
        step: Its number, from 1.
        loss: What was minimised, in nats a token it counts.
        nelbo: An unbiased, noisy estimate of the true bound on this batch, in nats a token; None where the
            objective leaves out noise levels that the bound needs.
        lr: The learning rate relative to its peak.
        grad_norm: The global gradient norm before clipping; None where it overflowed in float16, and the step was
            skipped.
        tokens: Tokens of the run so far.
        tokens_per_second: Of this step.
        next_token: The cross-entropy of next tokens, in nats a token; None where none are learned beside masks.
    """

    step: int
    loss: float
    nelbo: float | None
    lr: float
    grad_norm: float | None
    tokens: int
    tokens_per_second: float
    next_token: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `next_token` only where there is one."""
        found = asdict(self)
        return found if self.next_token is not None else {k: v for k, v in found.items() if k != "next_token"}

    def tracked(self) -> dict[str, float]:
        """The values for experiment trackers."""
        shown = {"loss": self.loss, "nelbo": self.nelbo, "lr": self.lr, "next_token": self.next_token}
        return {name: value for name, value in shown.items() if value is not None}


@dataclass(frozen=True)
class Validation:
    """One validation of a model, in each of its readings.

    Attributes:
        reports: By reading, in the order of `Readings.all`; a run is judged by the first.
    """

    reports: Mapping[str, LikelihoodReport]

    @property
    def judged(self) -> LikelihoodReport:
        """The one that a run is judged by."""
        return next(iter(self.reports.values()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: the first reading as `validation`, and where there are several all as `readings`."""
        found: dict[str, Any] = {"validation": self.judged.to_dict()}
        if len(self.reports) > 1:
            found["readings"] = {name: report.to_dict() for name, report in self.reports.items()}
        return found

    def tracked(self) -> dict[str, float]:
        """The values for experiment trackers."""
        found = {"validation_nelbo": self.judged.nats_per_token}
        if len(self.reports) > 1:  # a colon is no part of a tracker's names
            several = {name.replace(":", "-"): report for name, report in self.reports.items()}
            found |= {f"validation_nelbo/{name}": report.nats_per_token for name, report in several.items()}
        return found


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run before its first step.

    Attributes:
        folder: The run folder.
        parameters: Parameters of the network, frozen ones included.
        train_tokens: Tokens that are learned, so without prompts and without what no row holds; None of a stream.
        validation_tokens: Tokens of the validation text that can be scored, counted the same way.
        vocabulary: Number of ids.
        device: Where it runs.
        precision: What it computes in.
        attention: How attention is computed.
        steps: Steps of the whole run.
        first: The first step to take; more than 1 where a run is resumed.
        losses: What of the text is left out and cut, a line each.
    """

    folder: Path
    parameters: int
    train_tokens: int | None
    validation_tokens: int
    vocabulary: int
    device: str
    precision: str
    attention: str
    steps: int
    first: int
    losses: tuple[str, ...] = ()


class Reporter(Protocol):
    """Is told of a run's progress, such as a display in a terminal."""

    def note(self, text: str) -> None:
        """Something that the user should know before the run begins."""
        ...

    def begin(self, facts: RunFacts) -> None:
        """The run is about to take its first step."""
        ...

    def step(self, metrics: StepMetrics) -> None:
        """A step was taken."""
        ...

    def validation(self, step: int, validation: Validation, best: bool) -> None:
        """The model was validated; `best` says whether it is the best so far."""
        ...

    def sample(self, step: int, text: str) -> None:
        """The model wrote a short text."""
        ...

    def saved(self, step: int, folder: Path) -> None:
        """A checkpoint was written."""
        ...


class Silent(Reporter):
    """A reporter that shows nothing."""

    @override
    def note(self, text: str) -> None:
        pass

    @override
    def begin(self, facts: RunFacts) -> None:
        pass

    @override
    def step(self, metrics: StepMetrics) -> None:
        pass

    @override
    def validation(self, step: int, validation: Validation, best: bool) -> None:
        pass

    @override
    def sample(self, step: int, text: str) -> None:
        pass

    @override
    def saved(self, step: int, folder: Path) -> None:
        pass


class MetricsLog(Protocol):
    """A log of a run's metrics."""

    def step(self, metrics: StepMetrics) -> None:
        """Adds the line of a step."""
        ...

    def validation(self, step: int, validation: Validation, sample: str) -> None:
        """Adds the line of a validation, with the text that the model wrote then; empty for none."""
        ...

    def close(self) -> None:
        """Closes the log."""
        ...


class Unwritten(MetricsLog):
    """A log that keeps nothing: only the first process writes its metrics."""

    @override
    def step(self, metrics: StepMetrics) -> None:
        pass

    @override
    def validation(self, step: int, validation: Validation, sample: str) -> None:
        pass

    @override
    def close(self) -> None:
        pass


class MetricsFile(MetricsLog):
    """`metrics.jsonl`: a line a step, and a line a validation."""

    def __init__(self, path: Path, step: int) -> None:
        """Opens the file and drops the lines after `step`, since those steps are taken again.

        Args:
            path: The file; it is created if it does not exist.
            step: The last step that counts.
        """
        kept = [line for line in read_lines(path) if line["step"] <= step]
        draft = path.with_name(f".{path.name}.draft")
        draft.write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")
        draft.replace(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    @override
    def step(self, metrics: StepMetrics) -> None:
        self._write(metrics.to_dict())

    @override
    def validation(self, step: int, validation: Validation, sample: str) -> None:
        self._write({"step": step, **validation.to_dict(), **({"sample": sample} if sample else {})})

    @override
    def close(self) -> None:
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> Sequence[dict[str, Any]]:
    """The complete lines of `metrics.jsonl`; a run that was killed may have left an incomplete one.

    Args:
        path: The file, which need not be there.

    Returns:
        The lines.
    """
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
