"""One writer of a run folder: a lock that the system keeps, and a record of who holds it.

The lock ends with its process. Where the disk has no locks, or each machine has its own, the record decides: its writer
touches it every few seconds, and a record that is touched no more is stale.
"""

import errno
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psutil
from filelock import FileLock, Timeout

from dlm.errors import ConfigError, TrainingError, unwritten

LOCK = ".lock"
"""The file of a run folder that is locked; the names of all other files here begin with it too."""

PATIENCE = 2.0
"""Seconds to wait for a writer that is ending."""

BEAT = 10.0
"""Seconds between two touches of the record."""

STALE = 60.0
"""Seconds without a touch after which a record is stale."""

NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""What a disk answers that has no locks."""


@dataclass(frozen=True)
class Holder:
    """A process that writes a run folder.

    Attributes:
        host: The name of its machine.
        process: Its id there.
        since: When it took the lock, in UTC.
        kernel: Which start of which machine it runs on; processes that agree on this share their locks.
        namespace: Where its id means something, such as one container.
        token: Tells two holders apart.
    """

    host: str
    process: int
    since: str
    kernel: str
    namespace: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def this(cls) -> Self:
        """This process, from now on."""
        return cls(
            host=platform.node(),
            process=os.getpid(),
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            kernel=_kernel(),
            namespace=_namespace(),
        )

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"

    def is_gone(self, *, locks: bool) -> bool:
        """Whether the process has certainly ended.

        Args:
            locks: Whether this process has just taken the lock of a disk that has locks.

        Returns:
            False also where that cannot be told from here, as for a process of another machine.
        """
        if self.kernel != _kernel():
            return False
        if self.namespace != _namespace() or self.process == os.getpid():
            return locks
        return not psutil.pid_exists(self.process)


class RunLock:
    """The right to write a run folder, from `acquire` to `release` or to the end of the process."""

    def __init__(self, folder: Path) -> None:
        """Prepares; nothing is written before `acquire`.

        Args:
            folder: The run folder, which may not exist yet.
        """
        self._folder = folder
        self._record = folder / f"{LOCK}.json"
        self._lock: FileLock | None = None
        self._holder: Holder | None = None
        self._made: list[Path] = []
        self._released = threading.Event()

    def __del__(self) -> None:
        with suppress(Exception):  # at the end of the interpreter little works
            self.release()

    def acquire(self, tell: Callable[[str], None]) -> None:
        """Takes the lock; the folder is made if it is not there.

        Args:
            tell: Is told why this takes long, where it does.

        Raises:
            ConfigError: Another process writes the folder; the message names it. Or the name is one where no folder
                can be.
            WriteError: The folder cannot be written.
        """
        self._released = threading.Event()
        try:
            self._make()
            locks = self._take()
            self._succeed(locks, tell)
        except BaseException as error:
            self.release()
            if isinstance(error, OSError):
                raise unwritten(f"cannot write the run folder {self._folder}", error) from error
            raise
        assert self._holder is not None
        beat = (self._record, self._holder.token, self._released)
        threading.Thread(target=_keep_touching, args=beat, name="dlm-lock", daemon=True).start()

    def check(self) -> None:
        """Stops a process that has lost the lock, as one that was suspended may have.

        Raises:
            TrainingError: Another process writes the folder now.
        """
        if self._holder is None:
            return
        found = _read(self._record)
        if found is not None and found.token != self._holder.token:
            raise TrainingError(f"{self._folder} has been taken over by {found}; this process ends without saving")

    def release(self) -> None:
        """Gives the lock up; a folder that was made for it and has nothing else in it is removed."""
        self._released.set()
        held = self._lock is not None or self._holder is not None
        if self._holder is not None and _read(self._record) == self._holder:
            self._record.unlink(missing_ok=True)
        self._holder = None
        if held and self._made and {path.name for path in _entries(self._folder)} <= {LOCK}:
            with suppress(OSError):
                (self._folder / LOCK).unlink(missing_ok=True)
                for folder in self._made:
                    folder.rmdir()
        self._made = []
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _make(self) -> None:
        missing = [self._folder, *self._folder.parents]
        self._made = [folder for folder in missing if not folder.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)

    def _take(self) -> bool:
        """Locks the file, and says whether the disk has locks at all."""
        lock = FileLock(self._folder / LOCK, timeout=PATIENCE, fallback_to_soft=False, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise refusal(self._folder, _read(self._record)) from None
        except NotImplementedError:
            return False
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            raise
        self._lock = lock
        return True

    def _succeed(self, locks: bool, tell: Callable[[str], None]) -> None:
        """Writes this process into the record, once the process that is in it is known to be gone."""
        mine = Holder.this()
        draft = self._record.with_name(f"{LOCK}.{mine.token}")
        try:
            draft.write_text(json.dumps(asdict(mine)) + "\n", encoding="utf-8")
            before = _read(self._record)
            if before is not None and not before.is_gone(locks=locks):
                self._outwait(before, draft, tell)
            draft.replace(self._record)
        finally:
            draft.unlink(missing_ok=True)
        if not locks:
            time.sleep(PATIENCE)  # of two that came here at once, the later one stays in the record
            found = _read(self._record)
            if found != mine:
                raise refusal(self._folder, found)
        self._holder = mine

    def _outwait(self, before: Holder, draft: Path, tell: Callable[[str], None]) -> None:
        """Waits until the record is stale; both times are by the clock of the disk, which may not be this machine's."""
        touched = _touched(self._record)
        left = STALE - (draft.stat().st_mtime - touched) if touched is not None else 0.0
        if left > 0:
            tell(f"{self._folder} was being written by {before}; waiting {left:.0f} s for a sign of life from it")
        end = time.monotonic() + left
        while touched is not None and time.monotonic() < end:
            time.sleep(min(1.0, BEAT))
            now = _touched(self._record)
            if now is not None and now != touched:
                raise refusal(self._folder, _read(self._record) or before)
            touched = now


def refusal(folder: Path, holder: Holder | None) -> ConfigError:
    """The error of a process that finds a run folder being written."""
    return ConfigError(
        f"{folder} is being written by {holder or 'another process'}: "
        "wait for its end or stop it, or choose another folder by --run-dir"
    )


def writer_of(folder: Path) -> Holder | None:
    """The other process that writes a folder, as far as its record tells; only `RunLock.acquire` is sure."""
    record = folder / f"{LOCK}.json"
    found, touched = _read(record), _touched(record)
    if found is None or touched is None or (found.kernel, found.process) == (_kernel(), os.getpid()):
        return None
    return None if found.is_gone(locks=False) or time.time() - touched > STALE else found


def is_lock(path: Path) -> bool:
    """Whether a file of a run folder belongs to its lock."""
    return path.name == LOCK or path.name.startswith(f"{LOCK}.")


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _read(record: Path) -> Holder | None:
    """Who is in the record; None if there is none that can be read."""
    try:
        tree: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return Holder(**tree)
    except (OSError, ValueError, TypeError):
        return None


def _touched(record: Path) -> float | None:
    """When the record was touched; None if there is none."""
    try:
        return record.stat().st_mtime
    except FileNotFoundError:
        return None


def _keep_touching(record: Path, token: str, released: threading.Event) -> None:
    while not released.wait(BEAT):
        found = _read(record)
        if found is not None and found.token == token:
            with suppress(OSError):
                os.utime(record)


def _kernel() -> str:
    """This start of this machine, as far as it can be told."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{platform.node()}-{uuid.getnode():x}"


def _namespace() -> str:
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""
