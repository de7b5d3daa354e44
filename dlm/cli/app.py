"""The `dlm` command: its subcommands, and the one place where errors become a line and an exit code."""

import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typing_extensions import override

from dlm.cli import (
    bench,
    bench_infill,
    chat,
    corrupt,
    evaluate,
    infill,
    merge,
    quality,
    report,
    runs,
    sample,
    score,
    selftest,
    train,
)
from dlm.cli.console import errors, is_first, told_warnings
from dlm.cli.options import USAGE, SamplerCommand, usage_message
from dlm.cli.process import settle
from dlm.cli.streams import checked_stdout, open_closed_streams
from dlm.errors import ConfigError, DlmError, InterruptedRunError, one_line
from dlm.launcher import end_with_launcher
from dlm.paths import expand


class OneLineGroup(TyperGroup):
    """Commands of which a wrong use is one line, as any other error is."""

    @override
    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _used_rightly():
            return super().make_context(*args, **kwargs)

    @override
    def invoke(self, ctx: Any) -> Any:
        with _used_rightly():
            return super().invoke(ctx)


@contextmanager
def _used_rightly() -> Iterator[None]:
    """Makes one line of a wrong use; a command without any words shows its help instead."""
    try:
        yield
    except USAGE as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        help_of = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        _fail(f"{usage_message(error)}{help_of}", 2, debug=False)


app = typer.Typer(
    name="dlm",
    cls=OneLineGroup,
    help="Text diffusion language models: train, sample, infill and score them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """Runs the command line."""
    end_with_launcher()
    settle()
    open_closed_streams()
    with checked_stdout():
        app(prog_name="dlm")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dlm {version('dlm')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _guarded(command: Callable[..., None], *, shared: bool = False) -> Callable[..., None]:
    """A command whose failures are one line each; `--debug` shows the traceback too. Few can be shared by processes."""

    @functools.wraps(command)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        several = os.environ.get("WORLD_SIZE", "1") != "1"
        try:
            if several and not shared:
                raise ConfigError("train and eval alone run on several processes: start this one without a launcher")
            given = {name: expand(value) if isinstance(value, Path) else value for name, value in kwargs.items()}
            with told_warnings():
                command(*args, debug=debug, **given)
            _leave(several)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            _fail("interrupted", 130, debug)
        except DlmError as error:
            _leave(several and isinstance(error, InterruptedRunError))  # which is after the same step on all of them
            _fail(str(error), error.exit_code, debug)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            misnamed = error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
            refused = isinstance(error, PermissionError)
            remedy = ": give another name" if misnamed else ": ask its owner, or name another file" if refused else ""
            _fail(f"{error.strerror or error}{where}{remedy}", 2 if misnamed or refused else 1, debug)
        except Exception as error:
            if "out of memory" in str(error).lower() or "can't allocate memory" in str(error):
                message = (
                    "out of memory: ask for a smaller batch, length or model; sample, infill and eval hold weights in "
                    "fewer bytes by --dtype bf16 or --load 4bit"
                )
            elif "closed by peer" in str(error) or "reset by peer" in str(error):
                message = (
                    "another process of this run has ended, and this one with it; what that one said is the reason"
                )
            else:
                told = ": ".join(filter(None, (type(error).__name__, str(error))))
                message = f"{told}; run it again with --debug for the traceback"
            _fail(message, 1, debug)

    return run


def _leave(wanted: bool) -> None:
    if wanted:
        from dlm.distributed import leave_process_group

        leave_process_group()


def _fail(message: str, code: int, debug: bool) -> None:
    if code == InterruptedRunError.exit_code and not is_first():
        raise typer.Exit(code)  # the first says so for all
    if debug:
        traceback.print_exc()
    with suppress(OSError):  # which may be what is told
        sys.stdout.flush()
    who = "dlm" if is_first() else f"dlm, process {os.environ['RANK']}"
    errors.print(f"[bold red]{who}:[/] {_escaped(one_line(message, limit=None))}", soft_wrap=True, highlight=False)
    raise typer.Exit(code)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


for _name, _command in (
    ("train", train.train),
    ("sample", sample.sample),
    ("infill", infill.infill),
    ("chat", chat.chat),
    ("eval", evaluate.evaluate),
    ("score", score.score),
    ("quality", quality.quality),
    ("report", report.report),
    ("runs", runs.runs),
    ("corrupt", corrupt.corrupt),
    ("merge", merge.merge),
    ("selftest", selftest.selftest),
):
    _kind = SamplerCommand if _name in ("sample", "infill", "chat") else None
    app.command(_name, cls=_kind)(_guarded(_command, shared=_name in ("train", "eval")))

_bench = typer.Typer(help="Measure the speed of training and sampling, quality against speed, and infilling.")
_bench.command("train")(_guarded(bench.train))
_bench.command("sample", cls=SamplerCommand)(_guarded(bench.sample))
_bench.command("frontier")(_guarded(bench.frontier))
_bench.command("infill")(_guarded(bench_infill.infill))
app.add_typer(_bench, name="bench", no_args_is_help=True)
