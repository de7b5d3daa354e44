"""Reporters that listen to a run, or end it at a chosen moment."""

import signal
from pathlib import Path

from dlm.train.metrics import Silent, StepMetrics, Validation


class Steps(Silent):
    """Keeps the metrics of every step."""

    def __init__(self) -> None:
        self.taken: list[StepMetrics] = []

    def step(self, metrics: StepMetrics) -> None:
        self.taken.append(metrics)


class Notes(Silent):
    """Keeps what the user is told before a run begins."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


class PlugPulledError(Exception):
    """The process ends here."""


class PullsPlug(Silent):
    """Ends the process at a moment of the run: `step`, `validation` or `saved`."""

    def __init__(self, moment: str, step: int) -> None:
        self.at = moment, step

    def step(self, metrics: StepMetrics) -> None:
        self._pull("step", metrics.step)

    def validation(self, step: int, validation: Validation, best: bool) -> None:
        self._pull("validation", step)

    def saved(self, step: int, folder: Path) -> None:
        self._pull("saved", step)

    def _pull(self, moment: str, step: int) -> None:
        if (moment, step) == self.at:
            raise PlugPulledError


class AsksToStop(Silent):
    """Sends the process a signal after a step, as Ctrl-C does."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.at, self.number = step, number

    def step(self, metrics: StepMetrics) -> None:
        if metrics.step == self.at:
            signal.raise_signal(self.number)
