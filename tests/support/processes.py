"""A module on two processes, forked from one that has the libraries loaded: no launcher, and a fraction of its time."""

import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, get_context
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from tests.support.launchers import ENVIRONMENT, LAUNCHERS

LOADED = ["dlm.cli.app", "dlm.train.run", "dlm.train.trainer", "dlm.evaluate.likelihood", "dlm.lm", __name__]
"""What is loaded before the first fork."""

GRACE = 10
"""Seconds that a process has to end by itself when the other has failed."""


def together(*arguments: object, launcher: str = "torchrun", module: str = "dlm") -> subprocess.CompletedProcess[str]:
    """Runs the module to its end, however it ends, as if a launcher had started it.

    Args:
        *arguments: The words of its command line, in which each process finds its own for `$RANK`.
        launcher: Whose environment the processes have, one of `LAUNCHERS`.
        module: Its name.

    Returns:
        What both wrote, and an exit code: zero where both ended with it.
    """
    context = _fork_server()
    words = [module, *map(str, arguments)]
    with TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        shared = {**_environment(launcher), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port(), "WORLD_SIZE": "2"}
        ranks = [
            context.Process(target=_run, args=(words, {**shared, "RANK": rank, "LOCAL_RANK": rank}, stdout, stderr))
            for rank in ("0", "1")
        ]
        for rank in ranks:
            rank.start()
        wait([rank.sentinel for rank in ranks], 120)
        for rank in ranks:
            rank.join(GRACE)
            rank.kill()
            rank.join()
        return subprocess.CompletedProcess(
            words,
            max((rank.exitcode or 0 for rank in ranks), key=abs),
            stdout.read_text(encoding="utf-8"),
            stderr.read_text(encoding="utf-8"),
        )


def _fork_server() -> ForkServerContext:
    """A process with the libraries loaded, which is asked to fork; one for all tests of this process."""
    context = get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    return context


def _environment(launcher: str) -> Mapping[str, str]:
    """What a launcher tells its processes, but for their places."""
    if launcher == "torchrun":
        return ENVIRONMENT
    words = LAUNCHERS[launcher][1:]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args([*words, "-m", "dlm"]))
    return ENVIRONMENT | prepare_multi_gpu_env(args)


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _run(words: Sequence[str], environment: Mapping[str, str], stdout: Path, stderr: Path) -> None:
    """Runs the module in this process, which is a fork."""
    os.environ.clear()
    os.environ.update(environment)
    for number, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    sys.argv = [word.replace("$RANK", environment["RANK"]) for word in words]
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
