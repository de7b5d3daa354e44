"""A run folder has one writer: who is second is told who is first, and what a dead writer left stops nobody."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import filelock
import pytest

from dlm.errors import ConfigError, TrainingError
from dlm.train import lock as lock_module
from dlm.train.lock import LOCK, Holder, RunLock
from dlm.train.run import RunFolder
from tests.support.commands import dlm, refusal
from tests.support.fixtures import Refused
from tests.support.locks import another
from tests.support.tiny_runs import describe, losses, train, write


def unheard(text: str) -> None:
    raise AssertionError(f"it waited: {text}")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same times, a tenth as long and less."""
    monkeypatch.setattr(lock_module, "PATIENCE", 0.1)
    monkeypatch.setattr(lock_module, "BEAT", 0.1)
    monkeypatch.setattr(lock_module, "STALE", 1.0)


def leave(folder: Path, holder: Holder) -> Path:
    """A record that its writer did not take back."""
    folder.mkdir(exist_ok=True)
    (folder / LOCK).touch()
    record = folder / f"{LOCK}.json"
    record.write_text(json.dumps(asdict(holder)))
    return record


def elsewhere() -> Holder:
    return replace(Holder.this(), host="node-7", process=4711, kernel="another", token="theirs")


def dead() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that has none."""

    def acquire(self: filelock.BaseFileLock, *_: object, **__: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)


def test_the_second_is_told_who_is_first_and_a_killed_one_stops_nobody(tmp_path: Path, refused: Refused) -> None:
    run = tmp_path / "run"
    with another(run) as process:
        with refused(ConfigError, str(run), f"process {process.pid} on {os.uname().nodename} since 20", "--run-dir"):
            RunLock(run).acquire(unheard)
        process.kill()
        process.wait()
        assert (run / f"{LOCK}.json").exists()
        lock = RunLock(run)
        lock.acquire(unheard)
    with refused(ConfigError, f"process {os.getpid()} "):
        RunLock(run).acquire(unheard)
    lock.release()
    RunLock(run).acquire(unheard)


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_no_command_writes_where_another_writes(tmp_path: Path, flag: str) -> None:
    config = describe(tmp_path, steps=4)
    file, run = write(config, tmp_path / "config.yaml"), train(tmp_path / "run", config)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name[:5] != LOCK}
    with another(run) as process:
        err = refusal("train", file, "--run-dir", run, flag, "--set", "train.steps=4")
        assert err.count("\n") == 1 and f"is being written by process {process.pid} on " in err
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name[:5] != LOCK} == before
    dlm("train", file, "--run-dir", run, flag)


def test_a_run_that_another_began_in_the_meantime_is_not_touched(tmp_path: Path) -> None:
    config = describe(tmp_path)
    late = RunFolder.create(tmp_path / "run", config)
    run = train(tmp_path / "run", config)
    with pytest.raises(ConfigError, match="exists already"):
        late.lock(unheard)
    late = RunFolder.reopen(run)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(ConfigError, match="seed was 1 and is now 0"):
        late.lock(unheard)
    assert len(losses(run)) == 8


def test_a_refused_run_leaves_nothing(tmp_path: Path) -> None:
    file = write(describe(tmp_path, text="abc"), tmp_path / "config.yaml")
    refusal("train", file, "--run-dir", tmp_path / "deep/er/run")
    assert not (tmp_path / "deep").exists()


def test_a_run_leaves_no_record(tmp_path: Path) -> None:
    run = train(tmp_path / "run", describe(tmp_path, steps=1))
    assert [path.name for path in run.iterdir() if path.name.startswith(LOCK)] == [LOCK]


def test_a_folder_that_cannot_be_made(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").touch()
    with refused(ConfigError, "cannot write the run folder", "Not a directory"):
        RunLock(tmp_path / "file" / "run").acquire(unheard)


def test_a_record_from_elsewhere_is_waited_for_until_it_is_stale(tmp_path: Path) -> None:
    """Locks may not reach from machine to machine."""
    told: list[str] = []
    leave(tmp_path, elsewhere())
    began = time.monotonic()
    RunLock(tmp_path).acquire(told.append)
    assert time.monotonic() - began > 0.9
    assert len(told) == 1 and "process 4711 on node-7" in told[0] and "waiting 1 s" in told[0]


def test_an_old_record_from_elsewhere_is_stale(tmp_path: Path) -> None:
    record = leave(tmp_path, elsewhere())
    os.utime(record, (time.time() - 2, time.time() - 2))
    RunLock(tmp_path).acquire(unheard)


def test_a_record_from_elsewhere_that_is_touched_is_not_stale(tmp_path: Path, refused: Refused) -> None:
    record, ended = leave(tmp_path, elsewhere()), threading.Event()

    def touch() -> None:
        while not ended.wait(0.1):
            os.utime(record)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with refused(ConfigError, "process 4711 on node-7"):
            RunLock(tmp_path).acquire(print)
    finally:
        ended.set()
        thread.join()
    assert json.loads(record.read_text())["token"] == "theirs"


def test_another_container_of_this_machine_shares_its_locks(tmp_path: Path) -> None:
    leave(tmp_path, replace(Holder.this(), process=1, namespace="pid:[1]"))
    RunLock(tmp_path).acquire(unheard)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "a"}'])
def test_a_record_that_cannot_be_read_stops_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / f"{LOCK}.json").write_text(text)
    RunLock(tmp_path).acquire(unheard)


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    without_locks(monkeypatch)
    lock = RunLock(tmp_path)
    lock.acquire(unheard)
    time.sleep(1.5)  # longer than a record lives untouched
    with refused(ConfigError, f"process {os.getpid()} "):
        RunLock(tmp_path).acquire(print)
    lock.release()
    lock.acquire(unheard)
    time.sleep(1.5)
    with refused(ConfigError, f"process {os.getpid()} "):
        RunLock(tmp_path).acquire(print)
    lock.release()
    leave(tmp_path, replace(Holder.this(), process=dead()))
    RunLock(tmp_path).acquire(unheard)


def test_two_at_once_on_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    monkeypatch.setattr(lock_module, "PATIENCE", 0.5)
    together, outcomes = threading.Barrier(2), []

    def start(lock: RunLock) -> None:
        together.wait()
        try:
            lock.acquire(print)
            outcomes.append("trains")
        except ConfigError:
            outcomes.append("refused")

    locks = [RunLock(tmp_path) for _ in range(2)]
    threads = [threading.Thread(target=start, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused", "trains"]


def test_a_writer_that_lost_the_folder_saves_nothing(tmp_path: Path) -> None:
    """It was suspended for longer than its record lives, and another machine took over."""
    run = RunFolder.create(tmp_path / "run", describe(tmp_path))
    run.lock(unheard)
    run.begin()
    leave(run.path, elsewhere())
    time.sleep(0.3)
    with pytest.raises(TrainingError, match="taken over by process 4711 on node-7"):
        run.save(None, lambda _: None)  # type: ignore[arg-type]
    assert not list(run.checkpoints.iterdir())
    run.unlock()
    assert json.loads((run.path / f"{LOCK}.json").read_text())["token"] == "theirs"
