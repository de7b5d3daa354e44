"""A run that is stopped at any moment and goes on ends as one that was never stopped, to the last bit."""

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dlm.config import Config
from dlm.data.run_data import read_run_data
from dlm.errors import CheckpointError, ConfigError, DataError, InterruptedRunError
from dlm.train.metrics import Silent, StepMetrics
from tests.support.commands import dlm
from tests.support.launchers import ENVIRONMENT
from tests.support.reporters import AsksToStop, PlugPulledError, PullsPlug, Steps
from tests.support.tiny_runs import STEPS, altered, describe, lines, losses, resume, same, train, weights, write


@pytest.fixture(scope="module", params=[("muon", 0.0), ("muon", 0.1), ("adamw", 0.0)], ids=["muon", "ema", "adamw"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A configuration, and a run of it that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    name, ema = request.param
    config = altered(describe(folder, ema=ema), "optim", name=name)
    return config, train(folder / "run", config)


@pytest.mark.parametrize("moment", [("step", 1), ("step", 5), ("validation", 4), ("saved", 6), ("step", STEPS)])
def test_resumes_to_the_same_bits(whole: tuple[Config, Path], tmp_path: Path, moment: tuple[str, int]) -> None:
    config, undisturbed = whole
    with pytest.raises(PlugPulledError):
        train(tmp_path / "run", config, PullsPlug(*moment))
    assert not weights(tmp_path / "run")
    resume(tmp_path / "run")
    assert same(tmp_path / "run", undisturbed)


def test_the_comparison_sees_another_seed(whole: tuple[Config, Path], tmp_path: Path) -> None:
    config, undisturbed = whole
    from dataclasses import replace

    train(tmp_path / "run", replace(config, seed=1))
    assert not same(tmp_path / "run", undisturbed)


def test_a_finished_run_has_nothing_to_resume(whole: tuple[Config, Path]) -> None:
    _, undisturbed = whole
    before, written, steps = weights(undisturbed), lines(undisturbed), Steps()
    resume(undisturbed, reporter=steps)
    assert (weights(undisturbed), lines(undisturbed), steps.taken) == (before, written, [])


def test_the_averaged_weights_are_the_model_and_the_raw_ones_the_trainers(whole: tuple[Config, Path]) -> None:
    config, undisturbed = whole
    assert ("trainer/weights.safetensors" in weights(undisturbed)) == bool(config.train.ema)


def test_half_a_line_of_metrics_is_dropped(whole: tuple[Config, Path], tmp_path: Path) -> None:
    config, undisturbed = whole
    with pytest.raises(PlugPulledError):
        train(tmp_path / "run", config, PullsPlug("saved", 4))
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    resume(tmp_path / "run")
    assert same(tmp_path / "run", undisturbed)


def test_metrics_have_a_line_a_step(whole: tuple[Config, Path]) -> None:
    _, run = whole
    steps = [line for line in lines(run) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert [line["tokens"] for line in steps] == [4 * 16 * step for step in range(1, STEPS + 1)]
    assert [line["step"] for line in lines(run) if "validation" in line] == [4, 8]


@contextmanager
def running(config: Path, run: Path) -> Iterator[subprocess.Popen[str]]:
    """`python -m dlm train`, gone when the context ends."""
    command = [sys.executable, "-m", "dlm", "train", str(config), "--run-dir", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as it:
        try:
            yield it
        finally:
            it.kill()


def wait(process: subprocess.Popen[str], run: Path, happened: Callable[[], bool]) -> None:
    """Looks until it happened, without a pause once the run has a folder."""
    end = time.monotonic() + 120
    while not happened():
        assert process.poll() is None and time.monotonic() < end, "it ended before what was waited for"
        if not run.exists():
            time.sleep(0.1)


@pytest.mark.long
def test_killed_in_the_middle_of_a_save(tmp_path: Path) -> None:
    """With an average of the weights, so that a checkpoint has all the files that one can have."""
    config = describe(tmp_path, steps=40, save_every=1, validate_every=39, ema=0.1)
    run, checkpoints = tmp_path / "killed", tmp_path / "killed/checkpoints"

    def stopped_while_saving() -> bool:
        if not list(checkpoints.glob("step-00000[3-9]")) or not list(checkpoints.glob(".step-*.draft")):
            return False
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        if list(checkpoints.glob(".step-*.draft")):
            return True
        process.send_signal(signal.SIGCONT)  # too late: the checkpoint is whole
        return False

    with running(write(config, tmp_path / "config.yaml"), run) as process:
        wait(process, run, stopped_while_saving)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert list(checkpoints.glob(".step-*.draft")) and not weights(run, 40)
    resume(run)
    assert not list(checkpoints.glob(".*"))
    assert same(run, train(tmp_path / "whole", config), 40)


@pytest.mark.long
def test_killed_at_any_moment_and_resumed_by_the_command(tmp_path: Path) -> None:
    config = describe(tmp_path, steps=60, save_every=7, validate_every=30)
    file, run = write(config, tmp_path / "config.yaml"), tmp_path / "killed"
    metrics, moment = run / "metrics.jsonl", int.from_bytes(os.urandom(1)) % 40
    with running(file, run) as process:
        wait(process, run, lambda: metrics.exists() and metrics.read_text().count("\n") > moment)
        process.kill()
    out, _ = dlm("train", file, "--run-dir", run, "--resume")
    assert out == ""
    assert same(run, train(tmp_path / "whole", config), 60), f"killed at step {moment}"


@pytest.mark.long
def test_ctrl_c_saves_and_tells_how_to_go_on(tmp_path: Path) -> None:
    config = describe(tmp_path, steps=400, save_every=None, validate_every=400)
    run = tmp_path / "stopped"
    with running(write(config, tmp_path / "config.yaml"), run) as process:
        wait(process, run, lambda: (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_bytes()) > 500)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    step = max(losses(run))
    assert err.splitlines()[-1] == (
        f"dlm: stopped after step {step}, which is saved; go on by: dlm train --resume --run-dir {run}"
    )
    assert "Traceback" not in err and weights(run, step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_to_the_same_bits(whole: tuple[Config, Path], tmp_path: Path, number: int) -> None:
    config, undisturbed = whole
    before = signal.getsignal(number)
    with pytest.raises(InterruptedRunError, match=r"stopped after step 3.*--resume"):
        train(tmp_path / "run", config, AsksToStop(3, number))
    assert signal.getsignal(number) is before
    assert (tmp_path / "run/checkpoints/last").resolve().name == "step-000003"
    resume(tmp_path / "run")
    assert same(tmp_path / "run", undisturbed)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    class Insists(Silent):
        def step(self, metrics: StepMetrics) -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", describe(tmp_path), Insists())


def interrupted(folder: Path) -> tuple[Config, Path]:
    config = describe(folder)
    with pytest.raises(PlugPulledError):
        train(folder / "run", config, PullsPlug("saved", 4))
    return config, folder / "run"


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    config, run = interrupted(tmp_path)
    for part, key, value in [
        ("optim", "lr", 0.5),
        ("train", "steps", 9),
        ("train", "batch_size", 8),
        ("train", "ema", 0.1),
        ("data", "length", 8),
    ]:
        with pytest.raises(ConfigError, match=rf"{part}\.{key} was .* and is now {value}"):
            resume(run, altered(config, part, **{key: value}))
    assert max(losses(run)) == 4


def test_what_changes_nothing_learned_may_change(whole: tuple[Config, Path], tmp_path: Path) -> None:
    config, undisturbed = whole
    with pytest.raises(PlugPulledError):
        train(tmp_path / "run", config, PullsPlug("step", 5))
    resume(tmp_path / "run", altered(config, "train", validate_every=1, log_every=3, keep=7))
    assert weights(tmp_path / "run") == weights(undisturbed)
    assert losses(tmp_path / "run") == losses(undisturbed)


@pytest.mark.parametrize("change", ["another length", "one letter"])
def test_another_text_is_refused(tmp_path: Path, change: str) -> None:
    _, run = interrupted(tmp_path)
    file = tmp_path / "text.txt"
    file.write_text("abc " * 200 if change == "another length" else "~" + file.read_text()[1:])
    with pytest.raises(DataError, match=r"the training text has changed since"):
        resume(run)


def test_a_run_with_the_checksums_of_earlier_versions_goes_on_with_those_of_today(
    whole: tuple[Config, Path], tmp_path: Path
) -> None:
    config, undisturbed = whole
    with pytest.raises(PlugPulledError):
        train(tmp_path / "run", config, PullsPlug("step", 5))
    data = read_run_data(config, config.tokenizer)
    begun = tmp_path / "run/checkpoints/step-000004/trainer/progress.json"
    recorded = json.loads(begun.read_text())
    assert recorded["train_checksum"] == data.checksum
    validation = data.validation.tokens.ids.tobytes()
    earlier = {"train_checksum": data.earlier_checksum, "validation_checksum": zlib.crc32(validation)}
    assert all(earlier[key] != recorded[key] for key in earlier)
    begun.write_text(json.dumps(recorded | earlier))
    resume(tmp_path / "run")
    assert weights(tmp_path / "run") == weights(undisturbed)
    ended = json.loads((tmp_path / f"run/checkpoints/step-{STEPS:06}/trainer/progress.json").read_text())
    assert {key: ended[key] for key in earlier} == {key: recorded[key] for key in earlier}


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    _, run = interrupted(tmp_path)
    progress = run / "checkpoints/step-000004/trainer/progress.json"
    text = progress.read_text()
    progress.write_text(text[: len(text) // 2])
    with pytest.raises(CheckpointError, match=r"step-000004 is damaged, remove it to go on from the one before"):
        resume(run)
    progress.write_text(json.dumps({**json.loads(text), "unheard_of": 1}))
    with pytest.raises(CheckpointError, match="step-000004 is damaged"):
        resume(run)
