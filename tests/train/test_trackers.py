"""Trackers get a run's name and configuration, and go on with the same run after `--resume`.

The tests of real trackers need their packages: `pip install tensorboard wandb`. None of them uses the network.
"""

import json
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from dlm.config import Config
from dlm.errors import TrainingError
from dlm.train.run import RunFolder
from dlm.train.trackers import settings, start_trackers
from tests.support.reporters import PlugPulledError, PullsPlug
from tests.support.tiny_runs import altered, describe, losses, resume, train

tensorboard = pytest.mark.skipif(not find_spec("tensorboard"), reason="tensorboard is not installed")
wandb = pytest.mark.skipif(not find_spec("wandb"), reason="wandb is not installed")


def killed_and_resumed(folder: Path, tracker: str) -> tuple[Config, Path]:
    """A run that was killed in step 8 and went on after step 6, which was saved: it took step 7 twice."""
    config, run = describe(folder, trackers=(tracker,)), folder / "my-run"
    with pytest.raises(PlugPulledError):
        train(run, config, PullsPlug("step", 8))
    return config, resume(run)


def test_the_configuration_in_values_that_every_tracker_takes(tmp_path: Path) -> None:
    found = settings(describe(tmp_path))
    assert {type(value) for value in found.values()} == {bool, int, float, str}
    assert found["optim.lr"] == 0.003 and found["train.steps"] == 8 and found["model.sizes.hidden_size"] == 16
    assert found["optim.betas"] == "[0.9, 0.95]" and found["train.micro_batch_size"] == "null"


def test_a_tracker_that_cannot_be_started_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no API key\nuse `wandb login`")

    monkeypatch.setattr(Accelerator, "init_trackers", fail)
    config = altered(describe(tmp_path), "train", trackers=("wandb",))
    with pytest.raises(
        TrainingError, match=r"train\.trackers: wandb could not be started: no API key use `wandb login`$"
    ):
        start_trackers(Accelerator(cpu=True), tmp_path, config, 0)


def test_wandb_is_told_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(Accelerator, "init_trackers", lambda *_, init_kwargs: told.append(init_kwargs["wandb"]))
    for variable in ("WANDB_NAME", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR"):
        monkeypatch.delenv(variable, raising=False)
    config, run = describe(tmp_path, trackers=("wandb",)), tmp_path / "my-run"
    RunFolder.create(run, config).begin()
    for step in (0, 6):
        start_trackers(Accelerator(cpu=True), run, config, step)
    assert told[0] == told[1] == {"name": "my-run", "id": told[0]["id"], "resume": "allow", "dir": str(run)}
    RunFolder.create(run, config, overwrite=True).begin()
    monkeypatch.setenv("WANDB_NAME", "another")
    start_trackers(Accelerator(cpu=True), run, config, 0)
    assert "name" not in told[2] and told[2]["id"] != told[0]["id"]


@tensorboard
def test_tensorboard_has_one_run_with_each_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    config, run = killed_and_resumed(tmp_path, "tensorboard")
    assert {path.parent for path in run.rglob("*tfevents*")} == {run / "dlm"}
    events = EventAccumulator(str(run / "dlm"))
    events.Reload()
    assert {event.step: event.value for event in events.Scalars("loss")} == pytest.approx(losses(run))
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))
    assert [event.step for event in events.Scalars("validation_nelbo")] == [4, 8]
    begun = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(begun).session_start_info.hparams
    assert set(values) == set(settings(config)) and values["optim.lr"].number_value == 0.003


def records(file: Path) -> Iterator[Any]:
    """What an offline run of Weights & Biases wrote: protocol buffers in LevelDB's log format, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


@wandb
@pytest.mark.long
def test_wandb_has_one_run_with_the_name_and_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config, run = killed_and_resumed(tmp_path, "wandb")
    first, second = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert first.name == second.name == f"run-{(run / 'tracking-id').read_text().strip()}.wandb"
    for file, steps in ((first, range(1, 8)), (second, range(7, 9))):
        found = list(records(file))
        (described,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
        assert (described.display_name, described.project) == ("my-run", "dlm")
        updates = [item for record in found for item in record.config.update]
        given = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in updates}
        assert given | settings(config) == given
        lines = [record.history for record in found if record.WhichOneof("record_type") == "history"]
        assert [line.step.num for line in lines] == list(steps)
        told = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in line.item} for line in lines]
        assert {line["loss"] for line in told} == {losses(run)[step] for step in steps}
