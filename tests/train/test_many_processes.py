"""A run on several processes is the run of one: the same losses, the same checkpoints, and it goes on either way."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from shutil import copytree
from typing import Any

import psutil
import pytest

from dlm.config import Config
from dlm.errors import ConfigError
from dlm.lm import DiffusionLM
from dlm.settings import dump_config, parse_config
from dlm.train.run import RunFolder
from tests.support.commands import answer
from tests.support.launchers import ENVIRONMENT, command, launch
from tests.support.processes import together
from tests.support.tiny_runs import back_to, bounds, describe, lines, losses, resume, train, weights, write

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A run of one process that takes half a batch at a time, with dropout and an average of the weights."""
    folder = tmp_path_factory.mktemp("alone")
    config = describe(folder, micro_batch_size=2, ema=0.1)
    return config, train(folder / "run", config)


def close(run: Path, other: Path) -> bool:
    """Whether losses and validations are the same to float rounding."""
    assert len(bounds(run)) == 2 and len(losses(run)) == 8
    return bounds(run) == pytest.approx(bounds(other), abs=1e-5) and losses(run) == pytest.approx(
        losses(other), abs=1e-5
    )


def test_two_processes_train_as_one_that_accumulates(alone: tuple[Config, Path], tmp_path: Path) -> None:
    """By Accelerate's launcher; the tests below have the environment of torchrun, or torchrun itself."""
    config, undisturbed = alone
    done = launch("train", write(config, tmp_path / "c.yaml"), "--run-dir", tmp_path / "run", launcher="ddp")
    assert done.returncode == 0, done.stderr
    assert "2 x cpu" in done.stderr and done.stderr.count("done:") == 1
    assert done.stderr.count("step 8  validation bound") == 1 and not done.stdout
    assert close(tmp_path / "run", undisturbed)


def test_the_comparison_sees_another_seed(alone: tuple[Config, Path], tmp_path: Path) -> None:
    from dataclasses import replace

    config, undisturbed = alone
    assert not close(train(tmp_path / "run", replace(config, seed=1)), undisturbed)


def test_a_run_goes_on_with_more_processes_and_with_fewer(alone: tuple[Config, Path], tmp_path: Path) -> None:
    config, undisturbed = alone
    run = train(tmp_path / "run", config)
    back_to(run, 4)
    done = together("train", "--resume", "--run-dir", run)
    assert done.returncode == 0 and "going on after step 4" in done.stderr, done.stderr
    assert "2 x cpu" in done.stderr and done.stderr.count("done:") == 1 and not done.stdout
    assert close(run, undisturbed)
    back_to(run, 4)
    resume(run)
    assert close(run, undisturbed)


def test_two_processes_give_the_evaluation_of_one(alone: tuple[Config, Path]) -> None:
    _, run = alone
    asked = ["eval", run, "--draws", "4", "--batch-size", "2"]
    both = together(*asked, "--json")
    assert both.returncode == 0, both.stderr
    expected, found = answer(*asked), json.loads(both.stdout)
    assert found.keys() == expected.keys()
    numbers = [key for key, value in expected.items() if isinstance(value, float)]
    assert "nats_per_token" in numbers and "sampling_se" in numbers
    assert {key: found[key] for key in numbers} == pytest.approx({key: expected[key] for key in numbers}, rel=1e-6)
    assert found["tokens"] == expected["tokens"] and found["sequences"] == expected["sequences"]


def test_a_killed_rank_ends_the_run_and_loses_nothing_saved(alone: tuple[Config, Path], tmp_path: Path) -> None:
    config, _ = alone
    file = write(config, tmp_path / "c.yaml")
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert together("train", file, "--run-dir", whole).returncode == 0
    with subprocess.Popen(
        command("train", file, "--run-dir", run, "--set", "train.steps=8"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    ) as launched:
        while not (run / "checkpoints/step-000002").exists():
            assert launched.poll() is None
            time.sleep(0.005)
        children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        assert launched.wait(60) != 0
    saved = weights(run, 2)
    assert saved == weights(whole, 2)
    done = together("train", "--resume", "--run-dir", run)
    assert done.returncode == 0, done.stderr
    assert weights(run) == weights(whole) and lines(run) == lines(whole)


def test_a_killed_launcher_ends_its_processes(alone: tuple[Config, Path], tmp_path: Path) -> None:
    """They are in sessions of their own, and would train beside the run that goes on."""
    file, run = write(describe(tmp_path, steps=100_000, save_every=10), tmp_path / "c.yaml"), tmp_path / "run"
    with subprocess.Popen(
        command("train", file, "--run-dir", run), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as it:
        while not (run / "checkpoints/step-000010").exists():
            assert it.poll() is None
            time.sleep(0.01)
        workers = psutil.Process(it.pid).children(recursive=True)
        assert len(workers) == 2
        beside = together("train", "--resume", "--run-dir", run)
        assert beside.returncode != 0 and f"{run} is being written by process " in beside.stderr
        it.kill()
        assert psutil.wait_procs(workers, timeout=30)[1] == []
        assert it.stderr is not None
        assert "the launcher that started this process is gone" in it.stderr.read()
    again = RunFolder.reopen(run)
    again.lock(pytest.fail)
    again.unlock()


def test_a_mistake_on_every_process_is_no_hang(alone: tuple[Config, Path], tmp_path: Path) -> None:
    config, _ = alone
    file = write(config, tmp_path / "c.yaml")
    done = together("train", file, "--run-dir", tmp_path / "run", "--set", "train.batch_size=1")
    assert done.returncode != 0
    assert "train.batch_size 1 is less than one sequence for each of the 2 processes" in done.stderr


def test_machines_that_do_not_share_the_run_folder_are_told(alone: tuple[Config, Path], tmp_path: Path) -> None:
    _, run = alone
    for rank, step in enumerate((8, 4)):
        back_to(Path(copytree(run, tmp_path / f"run-{rank}", symlinks=True)), step)
    done = together("train", "--resume", "--run-dir", tmp_path / "run-$RANK")
    assert done.returncode != 0 and "after different steps, [4, 8]: put it on a disk" in done.stderr, done.stderr


def streamed(folder: Path, *texts: bytes, **keys: Any) -> Config:
    """A run on a stream of files, each of them one process's."""
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_bytes(text)
    (folder / "validation.txt").write_text("some words to validate on\n" * 20, encoding="utf-8")
    tree = dump_config(describe(folder, **keys))
    tree["data"] |= {"streaming": True, "buffer": 5}
    tree["data"]["train"] = {"format": "text", "path": str(folder / "[0-9].txt"), "documents": "line"}
    tree["data"]["validation"] = {"format": "text", "path": str(folder / "validation.txt")}
    return parse_config(tree)


def words(seed: int) -> bytes:
    draw = random.Random(seed)
    return "".join("".join(draw.choices("abcdefgh ", k=30)) + "\n" for _ in range(600)).encode()


def test_a_stream_on_two_processes_goes_on_where_each_stood(tmp_path: Path) -> None:
    run = tmp_path / "run"
    file = write(streamed(tmp_path, words(0), words(1)), tmp_path / "c.yaml")
    assert (done := together("train", file, "--run-dir", run)).returncode == 0, done.stderr
    whole = weights(run), lines(run)
    back_to(run, 4)
    assert (done := together("train", "--resume", "--run-dir", run)).returncode == 0, done.stderr
    assert (weights(run), lines(run)) == whole
    with pytest.raises(ConfigError, match="2 processes"):
        resume(run)


def test_a_rank_that_fails_ends_the_others_with_its_own_error(tmp_path: Path) -> None:
    run = tmp_path / "run"
    broken = words(1)[:12_000] + b"\xff\n" + words(2)  # further down than the first read of the file
    config = streamed(tmp_path, words(0), broken, steps=2000, save_every=50, keep=1000, validate_every=2000)
    done = launch("train", write(config, tmp_path / "c.yaml"), "--run-dir", run)
    assert done.returncode != 0
    told = {line.partition(":")[0]: line for line in done.stderr.splitlines() if line.startswith("dlm")}
    assert "1.txt is not UTF-8 text: byte 12000" in told["dlm, process 1"], done.stderr
    assert "another process of this run has ended" in told.get("dlm", "another process of this run has ended")
    assert "Traceback" not in done.stderr.partition("torch/distributed")[0]
    last = RunFolder.reopen(run).last()
    assert last is not None
    DiffusionLM.from_pretrained(last)  # what was saved is whole
