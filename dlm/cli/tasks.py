"""Tasks of lm-evaluation-harness on the command line, for `dlm eval --tasks`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm.cli import options
from dlm.cli.console import caution, is_first, write_data
from dlm.errors import ConfigError
from dlm.plain import counted, plain_json

if TYPE_CHECKING:
    from dlm.evaluate.tasks import TaskResult, TasksReport
    from dlm.lm import DiffusionLM

KINDS = {
    "loglikelihood": "of continuations",
    "loglikelihood_rolling": "of texts",
    "generate_until": "of answers to be written",
}
"""What the harness's kinds of requests ask for."""

LONG = 1e6
"""From here on a number is written with its exponent."""


@dataclass(frozen=True)
class Asked:
    """What the options of `dlm eval --tasks` ask for.

    Attributes:
        tasks: Names of tasks, with commas between them.
        folder: Task files of the user.
        limit: Only the first so many documents of each task.
        few_shot: Examples before each question.
        chat: Whether the chat template writes the questions.
        readings: How the model is read; one at most.
        sampler: The sampler's options as one text.
        how: The other fields of `How`.
    """

    tasks: str
    folder: Path | None
    limit: int | None
    few_shot: int | None
    chat: bool
    readings: list[str] | None
    sampler: str | None
    how: Mapping[str, Any]

    def names(self) -> list[str]:
        """The names of the tasks.

        Returns:
            At least one.

        Raises:
            ConfigError: There is none, the folder is not there, or more is asked for than can be done.
        """
        if len(readings := {*(self.readings or ())}) > 1:
            raise ConfigError(f"--tasks are done by one --reading, got {', '.join(sorted(readings))}: give one of them")
        names = [name for part in self.tasks.split(",") if (name := part.strip())]
        if not names:
            raise ConfigError("--tasks: name tasks, as in --tasks hellaswag,lambada_openai")
        if self.folder is not None and not self.folder.is_dir():
            raise ConfigError(f"--task-path: {self.folder} is no folder; name one that holds task files (.yaml)")
        return names


def run_tasks(load: Callable[[], "DiffusionLM"], asked: Asked, *, as_json: bool) -> None:
    """Has a model do tasks, and prints the report.

    Args:
        load: Loads the model, once the tasks are known to be there.
        asked: What is asked for.
        as_json: Whether to print JSON.

    Raises:
        ConfigError: There is no such task, or lm-evaluation-harness is not installed.
        DataError: A task cannot be loaded, or does not fit the model.
    """
    names, given = asked.names(), options.read_sampler(asked.sampler or "")
    if given.get("drafts") == "auto":
        raise ConfigError("--drafts auto is measured for one prompt: give a number of them in --sampler")
    sampler = options.build_sampler(given)
    from dlm.evaluate.harness import HarnessModel
    from dlm.evaluate.requests import How
    from dlm.evaluate.tasks import evaluate_tasks, load_tasks

    tasks = load_tasks(names, asked.folder)
    reading = next(iter(asked.readings or ()), None)
    how = How(reading=reading, greedy=tasks.decodes_greedily, sampler=sampler, **asked.how)
    model = HarnessModel(load(), how)
    report = evaluate_tasks(model, tasks, limit=asked.limit, few_shot=asked.few_shot, chat=asked.chat)
    if report is None or not is_first():
        return
    write_data(plain_json(report.to_dict()) if as_json else "\n".join(_table(report)), None)
    for line in _cautions(report, asked.limit):
        caution(line)


def _table(report: "TasksReport") -> Iterator[str]:
    """The report for a person."""
    rows = [("task", "metric", "value", "standard error", "documents", "examples"), *map(_row, report.results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(n) if i < 2 else cell.rjust(n) for i, (cell, n) in enumerate(zip(row, widths, strict=True))]
        yield "  ".join(cells).rstrip()
    yield ""
    yield f"reading          {report.reading}"
    if report.exact:
        yield "log-likelihoods  exact"
    else:
        yield f"log-likelihoods  lower bounds, from {report.draws} draws and seed {report.seed}"
    if any(result.is_bound for result in report.results):
        yield "perplexities     upper bounds, marked by ≤"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < LONG else f"{value:.4g}"


def _row(result: "TaskResult") -> tuple[str, ...]:
    """The cells of a metric."""
    metric = result.metric if result.filter == "none" else f"{result.metric} ({result.filter})"
    value = _number(result.value) if isinstance(result.value, float) else str(result.value)
    error = "" if result.standard_error is None else _number(result.standard_error)
    counts = ("" if count is None else f"{count:,}" for count in (result.documents, result.few_shot))
    return result.task, metric, f"≤ {value}" if result.is_bound else value, error, *counts


def _cautions(report: "TasksReport", limit: int | None) -> Iterator[str]:
    """What is to be known of the results."""
    for kind, count in report.shortened.items():
        yield (
            f"{counted(count, 'request')} {KINDS[kind]} did not fit the context: of what is given, the beginning was "
            "cut"
        )
    if limit is not None:
        yield f"--limit {limit}: these are not the figures of the whole tasks"
    yield from report.cautions
