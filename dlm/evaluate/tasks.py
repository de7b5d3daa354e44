"""Tasks of lm-evaluation-harness: a model answers them, and a report says how well."""

import difflib
import io
import logging
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from dlm.errors import ConfigError, DataError, one_line
from dlm.evaluate.bootstrap import RESAMPLES
from dlm.evaluate.harness import HarnessModel
from dlm.plain import counted

BOUNDED = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
"""The metrics that are upper bounds where log-likelihoods are lower bounds."""

UNSCORED = ("alias", "name", "sample_len", "sample_count")
"""What stands beside the metrics in the harness's results."""


@dataclass(frozen=True)
class TaskResult:
    """One metric of one task.

    Attributes:
        task: The task, or a group of them.
        metric: The metric.
        filter: What was done to the answers before; `none` for nothing.
        value: Its value.
        standard_error: Its standard error, from the choice of the documents; None where the harness gives none.
        documents: How many documents were answered; None of a group.
        few_shot: How many examples stood before each question; None of a group.
        is_bound: Whether it is an upper bound of the model's own value.
    """

    task: str
    metric: str
    filter: str
    value: float | str | None
    standard_error: float | None
    documents: int | None
    few_shot: int | None
    is_bound: bool


@dataclass(frozen=True)
class TasksReport:
    """What a model did in tasks of lm-evaluation-harness.

    Attributes:
        results: Every metric of every task.
        reading: How the model was read.
        exact: Whether log-likelihoods are exact; otherwise they are lower bounds.
        draws: The noisy copies that a bound was estimated from; None where log-likelihoods are exact.
        seed: What the noise follows from.
        shortened: How many requests of each kind lost the beginning of their context, because it was too long.
        versions: The version of each task.
        cautions: What is to be known of the results, a line each.
    """

    results: tuple[TaskResult, ...]
    reading: str
    exact: bool
    draws: int | None
    seed: int
    shortened: Mapping[str, int]
    versions: Mapping[str, Any]
    cautions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Tasks:
    """Tasks whose documents are loaded, as the harness holds them."""

    loaded: Mapping[str, Any]

    @property
    def by_name(self) -> Mapping[str, Any]:
        """Each task."""
        return dict(self.loaded["tasks"])

    @property
    def decodes_greedily(self) -> bool:
        """Whether some metric needs to know if greedy decoding writes an answer."""
        kinds = ((task.OUTPUT_TYPE, task) for task in self.by_name.values())
        return any(
            kind == "loglikelihood" or (kind == "multiple_choice" and "exact_match" in task._metric_fn_list)
            for kind, task in kinds
        )


def load_tasks(names: Sequence[str], folder: Path | None = None) -> Tasks:
    """Finds tasks, those of a folder first, and loads their documents.

    The harness's own tasks are looked at only where the folder has not all of them. A task says where its documents
    are; those of its own are on the Hub.

    Args:
        names: Tasks, groups, tags, or patterns of them.
        folder: Task files of the user, which is there.

    Returns:
        The tasks.

    Raises:
        ConfigError: There is no such task; or it runs what a model wrote, or shows pictures.
        DataError: Its documents cannot be loaded.
    """
    with _quietly():
        manager = TaskManager(include_path=str(folder), include_defaults=False) if folder else None
        if manager is None or not all(manager.match_tasks([name]) for name in names):
            manager = TaskManager(include_path=str(folder) if folder else None)
        for name in names:
            if not manager.match_tasks([name]):
                near = difflib.get_close_matches(name, manager.all_tasks, n=3)
                hint = f"did you mean {' or '.join(near)}? " if near else ""
                raise ConfigError(f"--tasks: there is no task {name!r}; {hint}lm_eval ls tasks lists all")
        found = list(dict.fromkeys(match for name in names for match in manager.match_tasks([name])))
        try:
            loaded = manager.load(found)
        except Exception as error:  # datasets, the Hub and the code of a task each raise their own
            raise DataError(f"--tasks {','.join(names)} cannot be loaded: {_why(error)}") from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(
                f"--tasks: {name} runs code that the model writes; do it by python -m dlm.evaluate.harness, with "
                "--confirm_run_unsafe_code"
            )
        if getattr(task, "MULTIMODAL", False):
            raise ConfigError(f"--tasks: {name} shows more than text, which these models do not read; leave it out")
    return Tasks(loaded)


def evaluate_tasks(
    model: HarnessModel,
    tasks: Tasks,
    *,
    limit: int | None = None,
    few_shot: int | None = None,
    chat: bool = False,
) -> TasksReport | None:
    """Has a model answer tasks.

    With several processes, all of them must call it; each answers its part.

    Args:
        model: The model.
        tasks: What `load_tasks` found.
        limit: Only the first so many documents of each task.
        few_shot: Examples before each question; by default as each task says.
        chat: Whether the model's chat template writes the questions.

    Returns:
        The report; None at all processes but the first.

    Raises:
        ConfigError: There are fewer documents than processes or examples, or the tokenizer has no chat template.
        DataError: A request does not fit the context.
    """
    cautions = [*_prepare(model, tasks, limit, few_shot)]
    if chat:
        model.chat_template(True)
    with _quietly() as told:
        found = evaluate(
            model,
            dict(tasks.loaded),
            limit=limit,
            bootstrap_iters=RESAMPLES,
            log_samples=False,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    parts = model.gather_object(dict(model.answering.shortened))
    if found is None or parts is None:
        return None
    kinds = dict.fromkeys(kind for part in parts for kind in part)
    shortened = {kind: sum(part.get(kind, 0) for part in parts) for kind in kinds}
    cautions += dict.fromkeys(str(warning.message) for warning in told if warning.category is UserWarning)
    if model.ignored:
        ignored = ", ".join(sorted(model.ignored))
        cautions.append(f"settings of a task's generation that have no part in a diffusion sampler: {ignored}")
    return TasksReport(
        tuple(_results(found, model.answering.exact)),
        model.answering.reading,
        model.answering.exact,
        None if model.answering.exact else model.answering.how.draws,
        model.answering.how.seed,
        {kind: count for kind, count in shortened.items() if count},
        dict(found["versions"]),
        tuple(cautions),
    )


def _prepare(model: HarnessModel, tasks: Tasks, limit: int | None, few_shot: int | None) -> Iterator[str]:
    """Sets the seeds and the numbers of examples as the harness does, and names the tasks that keep their own."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    for name, task in tasks.by_name.items():
        documents = min(len(task.eval_docs), limit or len(task.eval_docs))
        if documents < model.world_size:
            raise ConfigError(
                f"{name} has {counted(documents, 'document')} for {model.world_size} processes: start fewer, or "
                "raise --limit"
            )
        own = task.get_config("num_fewshot")
        if few_shot is not None and own == 0 and few_shot != 0:
            yield f"{name} fixes its number of examples at 0: --num-fewshot {few_shot} has no part in it"
        elif few_shot is not None or own is None:
            task.set_config(key="num_fewshot", value=few_shot or 0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        _check_examples(name, task)


def _check_examples(name: str, task: Any) -> None:
    """Refuses more examples before a question than a task has besides the question."""
    asked = task.get_config("num_fewshot") or 0
    if asked and (sampler := getattr(task, "sampler", None)):
        pool, questions = [*sampler.fewshot_docs()], [*task.eval_docs]
        room = len(pool) - (pool[:1] == questions[:1])  # a question is no example of itself
        if asked > room:
            raise ConfigError(
                f"--num-fewshot: {name} has {counted(room, 'document')} to take examples from, and {asked} are asked "
                "for: give a smaller number"
            )


def _why(error: Exception) -> str:
    """What is wrong with a task, where the harness or its template says it in one word or by a type alone."""
    if isinstance(error, KeyError):
        return (
            "one of its metrics is not known" if error.args == (None,) else f"it asks for {error}, which is not there"
        )
    if type(error).__name__ == "UndefinedError":
        return f"its template asks for a field that its documents have not: {one_line(error)}"
    if isinstance(error, TypeError) and "PathLike" in str(error):
        return "it does not say where its documents are: its file needs a dataset_path"
    return one_line(error)


def _results(found: Mapping[str, Any], exact: bool) -> Iterator[TaskResult]:
    """The harness's results, a metric at a time."""
    counts, shots = found.get("n-samples", {}), found.get("n-shot", {})
    for task, values in {**found.get("groups", {}), **found["results"]}.items():
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if key in UNSCORED or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            yield TaskResult(
                task,
                metric,
                filtered or "none",
                _plain(value),
                error if isinstance(error := _plain(error), float) else None,
                counts.get(task, {}).get("effective"),
                shots.get(task),
                not exact and metric in BOUNDED,
            )


def _plain(value: Any) -> float | str | None:
    """A value as plain Python holds it."""
    return float(value) if isinstance(value, (int, float, np.number)) else None if value is None else str(value)


@contextmanager
def _quietly() -> Iterator[list[warnings.WarningMessage]]:
    """Keeps what the harness prints out of the way, and lets it compute its errors in this process.

    Yields:
        The warnings that were given meanwhile, once it is over.
    """
    harness, before = logging.getLogger("lm_eval"), os.environ.get("DISABLE_MULTIPROC")
    level = harness.level
    harness.setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with (
            warnings.catch_warnings(record=True) as told,
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            yield told
    finally:
        harness.setLevel(level)
        os.environ.pop("DISABLE_MULTIPROC")
        if before is not None:
            os.environ["DISABLE_MULTIPROC"] = before
