"""What a run reports while it goes on: to a file, and to whoever watches."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from dlm.evaluate.likelihood import LikelihoodReport


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step.

    Attributes:
        step: Its number, from 1.
        loss: What was minimised, in nats a token it counts.
        nelbo: An unbiased, noisy estimate of the true bound on this batch, in nats a token; None where the
            objective leaves noise levels out that it needs.
        lr: The learning rate relative to its peak.
        grad_norm: The global gradient norm before clipping.
        tokens: Tokens seen so far in the run.
        tokens_per_second: Of this step.
    """

    step: int
    loss: float
    nelbo: float | None
    lr: float
    grad_norm: float
    tokens: int
    tokens_per_second: float

    def tracked(self) -> dict[str, float]:
        """What an experiment tracker draws."""
        shown = {"loss": self.loss, "nelbo": self.nelbo, "lr": self.lr}
        return {name: value for name, value in shown.items() if value is not None}


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run before its first step.

    Attributes:
        folder: The run folder.
        parameters: Parameters of the network, frozen ones included.
        train_tokens: Tokens of the training text; None of a stream.
        validation_tokens: Tokens of the validation text.
        vocabulary: Number of ids.
        device: Where it runs.
        precision: What it computes in.
        attention: How attention is computed.
        steps: Steps of the whole run.
        first: The first step of this part of it.
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


class Reporter(Protocol):
    """Whoever watches a run."""

    def begin(self, facts: RunFacts) -> None:
        """The run is about to take its first step."""
        ...

    def step(self, metrics: StepMetrics) -> None:
        """A step was taken."""
        ...

    def validation(self, step: int, report: LikelihoodReport, best: bool) -> None:
        """The model was validated; `best` if it was never better."""
        ...

    def sample(self, step: int, text: str) -> None:
        """The model wrote a short text."""
        ...

    def saved(self, step: int, folder: Path) -> None:
        """A checkpoint was written."""
        ...


class Silent:
    """A reporter for a run that nobody watches."""

    def begin(self, facts: RunFacts) -> None:
        """Nothing."""

    def step(self, metrics: StepMetrics) -> None:
        """Nothing."""

    def validation(self, step: int, report: LikelihoodReport, best: bool) -> None:
        """Nothing."""

    def sample(self, step: int, text: str) -> None:
        """Nothing."""

    def saved(self, step: int, folder: Path) -> None:
        """Nothing."""


class MetricsLog(Protocol):
    """Where the lines of a run's metrics go."""

    def step(self, metrics: StepMetrics) -> None:
        """Adds the line of a step."""
        ...

    def validation(self, step: int, report: LikelihoodReport) -> None:
        """Adds the line of a validation."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


class Unwritten:
    """The metrics of a process that is not the first, which alone writes."""

    def step(self, metrics: StepMetrics) -> None:
        """Nothing."""

    def validation(self, step: int, report: LikelihoodReport) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class MetricsFile:
    """`metrics.jsonl`: a line a step, and a line a validation."""

    def __init__(self, path: Path, step: int) -> None:
        """Opens the file and drops what lies after `step`, which is about to be done again.

        Args:
            path: The file; made if it is not there.
            step: The last step that counts.
        """
        kept = [line for line in _lines(path) if line["step"] <= step]
        draft = path.with_name(f".{path.name}.draft")
        draft.write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")
        draft.replace(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def step(self, metrics: StepMetrics) -> None:
        """Adds the line of a step."""
        self._write(asdict(metrics))

    def validation(self, step: int, report: LikelihoodReport) -> None:
        """Adds the line of a validation."""
        self._write({"step": step, "validation": report.to_dict()})

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")


def _lines(path: Path) -> Sequence[dict[str, Any]]:
    """The whole lines of the file; a run that was killed may have left half of one."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
