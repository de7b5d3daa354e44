"""A process that `torchrun` or `accelerate launch` started ends when its launcher is gone.

A launcher ends its processes before it ends itself, but not under `kill -9`, and they are in sessions of their own.
Imports nothing heavy, because it must watch before torch is loaded.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

PROGRAMS = {"torchrun", "accelerate", "accelerate-launch"}
"""The launchers by the names of their programs."""

MODULES = {
    "torch.distributed.run",
    "torch.distributed.launch",
    "accelerate.commands.accelerate_cli",
    "accelerate.commands.launch",
}
"""The launchers as modules of Python."""

INTERVAL = 0.5
"""Seconds between two looks at the launcher."""


def end_with_launcher() -> None:
    """Ends this process, from now on, at once when the launcher that started it is gone; there may be none."""
    elastic = "TORCHELASTIC_RUN_ID" in os.environ
    if not elastic and not any(name.startswith("ACCELERATE_") for name in os.environ):
        return
    import psutil

    launcher = next((parent for parent in psutil.Process().parents() if _is_launcher(parent)), None)
    if launcher is None and elastic:  # started by another program through torch's library, or an orphan already
        launcher = psutil.Process().parent()
        if launcher is None or _store_is_gone():
            _end()
    if launcher is not None:
        threading.Thread(target=_watch, args=(launcher,), name="dlm-launcher", daemon=True).start()


def launches(command: Sequence[str]) -> bool:
    """Whether a command line is that of a launcher.

    Args:
        command: Its words.

    Returns:
        True for `torchrun` and `accelerate`, as programs, modules or files of Python.
    """
    for word in command:
        path = PurePath(word)
        if path.stem in PROGRAMS or word in MODULES:
            return True
        if path.suffix == ".py" and ".".join(path.with_suffix("").parts[-3:]) in MODULES:
            return True
    return False


def _is_launcher(process: "psutil.Process") -> bool:
    import psutil

    with suppress(psutil.Error):
        return launches(process.cmdline())
    return False


def _watch(launcher: "psutil.Process") -> None:
    import psutil

    while True:
        try:
            if not launcher.is_running() or launcher.status() == psutil.STATUS_ZOMBIE:
                _end()
        except psutil.NoSuchProcess:
            _end()
        time.sleep(INTERVAL)


def _store_is_gone() -> bool:
    """Whether nobody listens where the launcher of the first machine would, in which its processes meet."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    try:
        socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except (OSError, KeyError, ValueError):
        return False
    return False


def _end() -> None:
    """Ends the process as `kill -9` would: what was saved is whole, and the other processes may hang by now."""
    with suppress(Exception):
        rank = os.environ.get("RANK", "0")
        sys.stderr.write(f"dlm, process {rank}: the launcher that started this process is gone, and so it ends\n")
        sys.stderr.flush()
    os._exit(1)
