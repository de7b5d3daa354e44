"""A process ends when its launcher is gone, whatever stands between them and however early it happens."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dlm.launcher import launches

WORKER = (
    "import os, sys, time; from dlm.launcher import end_with_launcher; end_with_launcher(); print('on', flush=True)"
)
ELASTIC = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1"}
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no"}


@pytest.mark.parametrize(
    "command",
    [
        ["/usr/bin/python3", "/home/me/.venv/bin/torchrun", "--standalone", "-m", "dlm"],
        ["python", "-m", "torch.distributed.run", "-m", "dlm", "train"],
        ["python", "/lib/site-packages/torch/distributed/run.py", "-m", "dlm"],
        ["python", "/home/me/.venv/bin/accelerate", "launch", "-m", "dlm"],
        ["C:/Scripts/torchrun.exe", "-m", "dlm"],
    ],
)
def test_command_lines_of_launchers(command: list[str]) -> None:
    assert launches(command)


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["/sbin/init"],
        ["bash", "-c", "torchrun -m dlm train"],
        ["python", "-m", "dlm", "train", "runs/torchrun-1"],
        ["vim", "distributed/run.py"],
    ],
)
def test_command_lines_of_others(command: list[str]) -> None:
    assert not launches(command)


@contextmanager
def launched(folder: Path, name: str, told: dict[str, str], *words: str) -> Iterator[subprocess.Popen[str]]:
    """A program of this name that starts the words in a session of their own; both are gone in the end."""
    program = folder / name
    program.write_text(
        "import subprocess, sys, time\nsubprocess.Popen(sys.argv[1:], start_new_session=True)\ntime.sleep(60)\n"
    )
    command, left = [sys.executable, str(program), *words], []
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **told}, text=True) as launcher:
        try:
            assert launcher.stdout is not None and launcher.stdout.readline() == "on\n"
            left = psutil.Process(launcher.pid).children(recursive=True)
            yield launcher
        finally:
            launcher.kill()
            for process in left:
                if process.is_running():
                    process.kill()


@pytest.mark.parametrize(
    ("name", "told", "between"),
    [
        ("torchrun", ELASTIC, False),
        ("torchrun", ELASTIC, True),
        ("my-own.py", ELASTIC, False),
        ("accelerate", ACCELERATE, False),
    ],
)
def test_a_worker_ends_with_its_launcher(tmp_path: Path, name: str, told: dict[str, str], between: bool) -> None:
    worker = [sys.executable, "-c", f"{WORKER}; time.sleep(60)"]
    words = ["bash", "-c", '"$@"; true', "-", *worker] if between else worker
    with launched(tmp_path, name, told, *words) as launcher:
        processes = psutil.Process(launcher.pid).children(recursive=True)
        assert len(processes) == 1 + between
        time.sleep(1.0)
        assert all(process.is_running() for process in processes)
        launcher.send_signal(signal.SIGKILL)
        assert psutil.wait_procs(processes, timeout=5)[1] == []


@pytest.mark.parametrize("listens", [False, True])
def test_a_worker_whose_launcher_was_gone_before_it_looked(listens: bool) -> None:
    """Its parent is then another process, and only the meeting place tells."""
    with socket.socket() as store:
        store.bind(("127.0.0.1", 0))
        if listens:
            store.listen()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.getsockname()[1])}
        environment = {**os.environ, **ELASTIC, **place, "TORCHELASTIC_USE_AGENT_STORE": "True"}
        done = subprocess.run([sys.executable, "-c", WORKER], env=environment, capture_output=True, text=True)
    told = "dlm, process 1: the launcher that started this process is gone, and so it ends\n"
    assert (done.returncode, done.stdout, done.stderr) == ((0, "on\n", "") if listens else (1, "", told))


def test_without_a_launcher_a_process_outlives_its_parent(tmp_path: Path) -> None:
    """As under `nohup`, from a shell whose user set one of Accelerate's variables."""
    script = f'{sys.executable} -c {WORKER + "; time.sleep(1.5); open(sys.argv[1], chr(119))"!r} "$0" & exit 0'
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    mark = tmp_path / "mark"
    subprocess.run(["bash", "-c", script, str(mark)], env=environment, check=True, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 20
    while not mark.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
