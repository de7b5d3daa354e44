"""What a person sees: the progress of a run, and where data and messages go."""

import json
import os
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from dlm.data.lines import text_of
from dlm.errors import ConfigError, DataError, WriteError, unwritten

if TYPE_CHECKING:
    from dlm.train.metrics import RunFacts, StepMetrics, Validation

errors = Console(stderr=True)
"""Messages, progress and warnings; stdout is for data alone."""


def is_first() -> bool:
    """Whether this is the first of the processes that a launcher started, which alone prints; or the only one."""
    return os.environ.get("RANK", "0") == "0"


def is_terminal(stream: TextIO) -> bool:
    """Whether a person is at the other end of stdin or stdout."""
    return stream.isatty()


PACKAGE = Path(__file__).parent.parent
"""Where the code of this package stands."""


def quiet_libraries() -> None:
    """Keeps the libraries' own notes and progress bars out of the way of ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # our own line says what cannot be read
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of what its own parts still call
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()


def note(line: str) -> None:
    """Prints a line about the work to stderr, dimmed, as it stands."""
    errors.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def caution(line: str) -> None:
    """Says on stderr, in yellow, what is to be known of a result."""
    errors.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def told_warnings() -> Iterator[None]:
    """Prints warnings of this package as plain lines on stderr; others stay as they are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=r"dlm\.")
        before = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], filename: str, *where: Any, **more: Any) -> None:
            if issubclass(category, UserWarning) and Path(filename).is_relative_to(PACKAGE):
                caution(str(message))
            else:
                before(message, category, filename, *where, **more)

        warnings.showwarning = show
        yield


def write_data(text: str, output: Path | None, *, overwrite: bool = False) -> None:
    """Writes lines to a file, or to stdout; never over a file that is there, unless asked.

    Args:
        text: The lines, without the last newline.
        output: The file; stdout if None.
        overwrite: Whether an existing file is replaced.

    Raises:
        ConfigError: The file exists, or its name is one where nothing can be.
        WriteError: It cannot be written.
    """
    write_text(text + "\n", output, overwrite=overwrite)


def write_text(text: str, output: Path | None, *, overwrite: bool = False) -> None:
    """Writes a text exactly as it is to a file; or to stdout, where it gets a newline if it ends in none.

    Args:
        text: The text.
        output: As for `write_data`, and so is what is raised.
        overwrite: Whether an existing file is replaced.

    Raises:
        ConfigError: As for `write_data`.
        WriteError: As for `write_data`.
    """
    check_free(output, overwrite)
    with writing(output):
        if output is None:
            encoding = sys.stdout.encoding or "utf-8"
            ended = text if text.endswith("\n") else text + "\n"
            sys.stdout.write(ended.encode(encoding, "replace").decode(encoding))
            sys.stdout.flush()
        else:
            with _replacing(output) as draft:
                draft.write_text(text, encoding="utf-8", errors="replace", newline="")


@contextmanager
def _gone_if_failed(output: Path, *, keeps_part: bool = False) -> Iterator[None]:
    """Leaves no new file behind where it could not be written; or where it is empty, if a part is of use."""
    is_new = not output.exists()
    try:
        yield
    except BaseException:
        if is_new and output.is_file() and not (keeps_part and output.stat().st_size):
            output.unlink()
        raise


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """Where to write a file whole: beside one that it replaces, which stays as it is until this one is complete.

    A folder that takes no other file, or a name that stands for a device, leaves no choice but to write in place.
    """
    target = output.resolve()
    if not target.is_file() or not os.access(target.parent, os.W_OK):
        with _gone_if_failed(output):
            yield output
        return
    with tempfile.NamedTemporaryFile(prefix=f".{target.name[:32]}.", dir=target.parent, delete=False) as made:
        draft = Path(made.name)
    try:
        shutil.copymode(target, draft)
        yield draft
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def writing(output: Path | None) -> Iterator[None]:
    """Makes one line of what the system says where a file, or stdout, cannot be written inside."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritten(f"cannot write {output or 'stdout'}", error) from error


def json_line(value: Any, output: Path | None) -> str:
    r"""A value as a line of JSON, of which nothing is lost where it is written.

    Args:
        value: Plain values.
        output: The file, which is UTF-8; stdout if None.

    Returns:
        The line. Characters that cannot be written as they are, such as half of one, are written as `\ud800`, and so
        are those that some programs take for the end of a line.
    """
    line = json.dumps(value, ensure_ascii=False)
    for end in "\x85\u2028\u2029":
        line = line.replace(end, f"\\u{ord(end):04x}")
    try:
        line.encode("utf-8" if output else sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return line


@contextmanager
def line_writer(
    output: Path | None, *, overwrite: bool = False, keeps: int | None = None
) -> Iterator[Callable[[str], None]]:
    """Opens a file, or stdout, for lines that are there as soon as they are written.

    Args:
        output: The file; stdout if None.
        overwrite: Whether an existing file is replaced.
        keeps: The bytes of an existing file that are kept, and written behind; None for one that is replaced.

    Yields:
        A function that writes a line.

    Raises:
        ConfigError: The file exists, or its name is one where nothing can be.
        WriteError: It cannot be written.
    """

    def write(line: str) -> None:
        with writing(output):
            stream.write(f"{line}\n")
            stream.flush()

    check_free(output, overwrite or keeps is not None)
    if output is None:
        stream: TextIO = sys.stdout
        yield write
        return
    with _gone_if_failed(output, keeps_part=True):
        with writing(output):
            fresh: Literal["w", "x"] = "w" if overwrite or (output.exists() and not output.is_file()) else "x"
            stream = output.open("a" if keeps is not None else fresh, encoding="utf-8", newline="\n")
            if keeps is not None:
                stream.truncate(keeps)
        try:
            yield write
        finally:
            with writing(output):
                stream.close()


def write_styled(draw: Callable[[int | None], Text], output: Path | None, *, overwrite: bool = False) -> None:
    """Writes text as `write_data` does; a terminal shows its colours.

    Args:
        draw: Gives the text for so many columns; for as many as it takes where it is told None.
        output: The file; stdout if None.
        overwrite: Whether an existing file is replaced.
    """
    console = Console()
    if output is None and console.is_terminal:
        console.print(draw(console.width))
    else:
        write_data(draw(None).plain, output, overwrite=overwrite)


def read_text(text: str) -> str:
    """A text that was given on the command line, where - stands for what stdin holds.

    Args:
        text: The argument.

    Returns:
        The text.

    Raises:
        DataError: It is not UTF-8, or stdin cannot be read.
    """
    if text != "-":
        return check_given(text, "the text")
    try:
        return text_of(sys.stdin.buffer.read(), "stdin")
    except OSError as error:
        raise DataError(f"stdin cannot be read: {error.strerror}") from error


def check_given(text: str, name: str) -> str:
    """Refuses bytes on the command line that are no text.

    Args:
        text: An argument or an option, as Python hands it over: such bytes are halves of characters in it.
        name: What it is called.

    Returns:
        The text.

    Raises:
        DataError: There are such bytes.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{name} is not UTF-8: the byte at character {error.start + 1} cannot be read") from error
    return text


def check_free(path: Path | None, overwrite: bool, *, resumable: bool = False) -> None:
    """Refuses a file that exists or cannot be written, before anything is computed for it.

    Args:
        path: The file; None for none.
        overwrite: Whether an existing file may be replaced.
        resumable: Whether the command could go on with it.

    Raises:
        ConfigError: It exists, or is a folder, or its folder is not there.
        WriteError: It or its folder may not be written.
    """
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"cannot write {path}: it is a folder; give the name of a file")
    if path.exists():
        if path.is_file() and not overwrite:
            more = ", or --resume to go on with it" if resumable else ""
            raise ConfigError(f"{path} exists already: choose another name, or say --overwrite{more}")
        check_writable(path, path)
    else:
        check_writable(path, path.parent)


def check_apart(reads: Mapping[str, Path | None], writes: Mapping[str, Path | None]) -> None:
    """Refuses to write what is read, which opening it for writing would empty.

    Args:
        reads: Files that are read, by the options that named them; - stands for stdin.
        writes: Files that are written, likewise.

    Raises:
        ConfigError: Two of them are one file, by whatever names or links.
    """
    for reading, source in reads.items():
        for writing, target in writes.items():
            if source is not None and target is not None and _is_same(source, target):
                raise ConfigError(
                    f"{writing} {target} is what {reading} reads, and would be lost: write to another file"
                )


def _is_same(source: Path, target: Path) -> bool:
    """Whether two paths lead to one file that is there; a stdin that is a file may be one of them."""
    try:
        read = os.fstat(sys.stdin.fileno()) if str(source) == "-" else source.stat()
        return stat.S_ISREG(read.st_mode) and os.path.samestat(read, target.stat())
    except (OSError, ValueError):  # one of them is not there, or stdin is closed or no stream of the system
        return False


def check_writable(path: Path, standing: Path) -> None:
    """Refuses a file or folder for which there is no place, before anything is computed for it.

    Args:
        path: What is to be written.
        standing: What must stand there to write it: the file itself, or a folder.

    Raises:
        ConfigError: It does not stand there.
        WriteError: It may not be written.
    """
    if not standing.exists():
        raise ConfigError(f"cannot write {path}: there is no folder {standing}; make it first")
    if path != standing and not standing.is_dir():
        raise ConfigError(f"cannot write {path}: {standing} is no folder")
    if not os.access(standing, os.W_OK | os.X_OK if standing.is_dir() else os.W_OK):
        raise WriteError(f"cannot write {path}: {standing} may not be written")


class TrainingDisplay:
    """Shows a run: a progress line in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, every: int) -> None:
        """Prepares the display.

        Args:
            console: Where to.
            every: Steps between two plain lines.
        """
        self._console, self._every = console, every
        self._validation = ""
        self._progress = Progress(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} tokens/s{task.fields[validation]}"),
            TimeElapsedColumn(),
            TextColumn("so far,"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "TrainingDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """A line of its own."""
        self._say(escape(text))

    def begin(self, facts: "RunFacts") -> None:
        """The facts of the run, and the empty bar."""
        text = "a stream" if facts.train_tokens is None else f"{facts.train_tokens:,} tokens"
        self._say(
            f"[bold]{escape(str(facts.folder))}[/]: {facts.parameters:,} parameters, vocabulary {facts.vocabulary:,}, "
            f"{text} to train on and {facts.validation_tokens:,} tokens to validate on; "
            f"{facts.device}, {facts.precision}, {facts.attention} attention"
        )
        for loss in facts.losses:
            self._say(f"[yellow]{escape(loss)}[/]")
        if facts.first > facts.steps:
            self._say(
                f"all {facts.steps} steps are done already; to train on, add --set train.steps=N, and "
                f"--set optim.restart={facts.steps} where the learning rate has decayed"
            )
        elif facts.first > 1:
            self._say(f"going on after step {facts.first - 1}")
        self._task = self._progress.add_task(
            "", total=facts.steps, completed=facts.first - 1, loss=float("nan"), speed=0.0, validation=""
        )
        self._progress.start()

    def step(self, metrics: "StepMetrics") -> None:
        """Moves the bar, or writes a line now and then."""
        self._progress.update(
            self._task,
            completed=metrics.step,
            loss=metrics.loss,
            speed=metrics.tokens_per_second,
            validation=self._validation,
        )
        if not self._console.is_terminal and metrics.step % self._every == 0:
            self._say(
                f"step {metrics.step}  loss {metrics.loss:.4f}  {_next_token(metrics)}lr {metrics.lr:.1%} of its peak  "
                f"{metrics.tokens_per_second:,.0f} tokens/s"
            )

    def validation(self, step: int, validation: "Validation", best: bool) -> None:
        """A line with the bound and its error, and where there are several readings one with the others."""
        report = validation.judged
        interval = report.nats_per_token_ci95
        error = "" if interval is None else f"± {(interval[1] - interval[0]) / 2:.4f} "
        what = "loss" if report.estimator == "exact" else "bound"
        self._validation = f"  {what} {report.nats_per_token:.4f}"
        self._progress.update(self._task, validation=self._validation)
        self._say(
            f"[bold]step {step}[/]  validation {what} [bold green]{report.nats_per_token:.4f}[/] {error}"
            f"nats/token{'  (best so far)' if best else ''}"
        )
        _, *others = validation.reports.items()
        if others:
            self._say(f"  {report.reading} above; {', '.join(f'{n} {r.nats_per_token:.4f}' for n, r in others)}")

    def sample(self, step: int, text: str) -> None:
        """A short text that the model wrote, on one line."""
        line = Text(repr(text)[1:-1], style="italic dim")
        line.truncate(max(self._console.width - 2, 20), overflow="ellipsis")
        self._console.print(Text("  ") + line, highlight=False)

    def saved(self, step: int, folder: Path) -> None:
        """Nothing: the checkpoint is where the run's other checkpoints are."""

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


def _next_token(metrics: "StepMetrics") -> str:
    """The part of next tokens, where a loss has one."""
    return "" if metrics.next_token is None else f"next token {metrics.next_token:.4f}  "
