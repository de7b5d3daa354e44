"""The run folder: what it keeps, what it refuses to overwrite, and what a kill or a full disk leaves."""

import errno
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dlm.config import Config
from dlm.errors import ConfigError, WriteError
from dlm.lm import DiffusionLM
from dlm.model import tensors as tensors_module
from dlm.settings import dump_config, load_config, parse_config
from dlm.train import run as run_module
from dlm.train.run import Progress, RunFolder
from tests.support.commands import dlm, refusal
from tests.support.tiny_runs import describe, losses, train, weights, write


def fill(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path / "run", describe(tmp_path, keep=1))
    run.begin()
    return run


def progress(step: int, best_step: int | None = None) -> Progress:
    return Progress(step, 100 * step, 1000, 7, None if best_step is None else 1.0, best_step)


def kept(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (0, ["step-000002", "step-000006"]),
        (1, ["step-000002", "step-000005", "step-000006"]),
        (9, [f"step-{step:06d}" for step in range(1, 7)]),
    ],
)
def test_best_last_and_the_newest_are_kept(tmp_path: Path, keep: int, expected: list[str]) -> None:
    run = RunFolder.create(tmp_path / "run", describe(tmp_path, keep=keep))
    run.begin()
    for step in range(1, 7):
        run.save(progress(step, min(step, 2)), fill)
    assert kept(run) == ["best", "last", *expected]
    assert (run.checkpoints / "best").resolve().name == "step-000002"
    assert (run.checkpoints / "last").resolve().name == "step-000006"
    assert not (run.checkpoints / "last").readlink().is_absolute()  # a run folder can be moved


def test_there_is_no_best_before_a_validation(folder: RunFolder) -> None:
    folder.save(progress(1), fill)
    assert kept(folder) == ["last", "step-000001"]


def test_checkpoints_past_six_digits_stay_in_order(folder: RunFolder) -> None:
    folder.save(progress(999_999), fill)
    folder.save(progress(1_000_000), fill)
    assert folder.last() == folder.checkpoints / "step-1000000"


def test_a_kill_between_the_checkpoint_and_its_links(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.save(progress(1, 1), fill)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module, "point", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        folder.save(progress(2, 2), fill)
    assert (folder.checkpoints / "last").resolve().name == "step-000001"
    assert RunFolder.reopen(folder.path).resume() == (folder.checkpoints / "step-000002", progress(2, 2))
    assert {(folder.checkpoints / link).resolve().name for link in ("best", "last")} == {"step-000002"}


def test_a_kill_in_the_middle_of_pruning(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        folder.save(progress(step), fill)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", lambda path, **_: (_ for _ in ()).throw(KeyboardInterrupt))
        for step in (3, 4):
            target = folder.checkpoints / f"step-{step:06d}"
            target.mkdir()
            folder.save(progress(step), fill)
    assert folder.last() == folder.checkpoints / "step-000003"
    folder.save(progress(4), fill)
    assert kept(folder) == ["last", "step-000003", "step-000004"]


def test_what_a_kill_left_of_a_save_is_no_checkpoint(folder: RunFolder) -> None:
    folder.save(progress(1), fill)
    (folder.checkpoints / ".step-000002.draft").mkdir()
    (folder.checkpoints / ".step-000002.draft/junk").write_text("half")
    assert folder.resume() == (folder.checkpoints / "step-000001", progress(1))
    assert sorted(path.name for path in folder.save(progress(2), fill).iterdir()) == ["config.json", "trainer"]
    assert kept(folder) == ["last", "step-000001", "step-000002"]


def test_a_run_is_not_overwritten_unless_asked(folder: RunFolder) -> None:
    folder.save(progress(1), fill)
    with pytest.raises(ConfigError, match=r"exists already: .*--resume.*--overwrite.*--run-dir"):
        RunFolder.create(folder.path, folder.config)
    again = RunFolder.create(folder.path, folder.config, overwrite=True)
    assert again.resume() is None and kept(folder) == ["last", "step-000001"]  # nothing goes before `begin`
    again.begin()
    assert kept(again) == [] and load_config(folder.path / "config.yaml") == folder.config


def test_only_a_run_is_overwritten(tmp_path: Path) -> None:
    config = describe(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("meow")
    with pytest.raises(ConfigError, match="no run folder"):
        RunFolder.create(tmp_path / "photos", config, overwrite=True)
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder.create(tmp_path / "text.txt", config, overwrite=True)
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", config).begin()
    assert (tmp_path / "photos/cat.jpg").read_text() == "meow"


def standing(folder: Path) -> dict[str, bytes]:
    """The files of a folder, at any depth, but for those of the lock."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".lock")}


@pytest.mark.parametrize(
    ("configuration", "others"),
    [
        ("title: my site\nplugins: [search]\n", ("checkpoints/mine.txt",)),
        ("- a list\n", ("checkpoints/mine.txt",)),
        ("a: [unclosed\n", ("checkpoints/mine.txt",)),
        (None, ()),  # a configuration that was put there to be trained, and no run yet
    ],
)
def test_a_folder_with_a_configuration_is_not_yet_a_run(
    tmp_path: Path, configuration: str | None, others: tuple[str, ...]
) -> None:
    """Nothing of another program's folder is lost, nor of one where a user keeps a configuration."""
    place, config = tmp_path / "place", describe(tmp_path)
    for name in ("thesis.md", ".git/HEAD", *others):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("years of work")
    if configuration is None:
        write(config, place / "config.yaml")
    else:
        (place / "config.yaml").write_text(configuration)
    before = standing(place)
    said = refusal("train", write(config, tmp_path / "c.yaml"), "--run-dir", place, "--overwrite")
    assert "is no run folder and is not overwritten" in said and "--run-dir" in said
    assert standing(place) == before


def test_overwriting_keeps_what_no_run_writes(folder: RunFolder) -> None:
    folder.save(progress(1, 1), fill)
    (folder.checkpoints / ".step-000002.draft").mkdir()
    (folder.checkpoints / ".step-000003.doomed").mkdir()
    mine = ("thesis.md", ".git/HEAD", "checkpoints/step-best/notes.md", "dlm/code.py", "wandb/settings", "text.txt")
    of_the_run = (
        "metrics.jsonl",
        "tracking-id",
        "dlm/events.out.tfevents.1.host",
        "wandb/run-20260101_000000-ab/run.wandb",
        "wandb/debug-internal.log",
    )
    for name in (*mine, *of_the_run):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text("x")
    RunFolder.create(folder.path, folder.config, overwrite=True).begin()
    assert sorted(standing(folder.path)) == sorted(("config.yaml", *mine))
    assert kept(folder) == ["step-best"]


def test_folders_of_trackers_go_when_nothing_else_is_in_them(folder: RunFolder) -> None:
    (folder.path / "dlm").mkdir()
    (folder.path / "dlm/events.out.tfevents.1.host").touch()
    RunFolder.create(folder.path, folder.config, overwrite=True).begin()
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoints", "config.yaml"]


def test_an_overwriting_that_was_killed_half_way_can_be_asked_for_again(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save(progress(1), fill)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    again = RunFolder.create(folder.path, folder.config, overwrite=True)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run_module, "dump_config", killed)
        again.begin()
    assert kept(folder) == []
    RunFolder.create(folder.path, folder.config, overwrite=True).begin()


def test_the_configuration_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the rename would else leave an empty file."""
    done: list[tuple[str, str]] = []
    rename = Path.replace

    def renamed(self: Path, to: Path) -> Path:
        done.append(("rename", self.name))
        return rename(self, to)

    monkeypatch.setattr(run_module, "flush", lambda path: done.append(("flush", path.name)))
    monkeypatch.setattr(Path, "replace", renamed)
    RunFolder.create(tmp_path / "run", describe(tmp_path)).begin()
    assert done == [("flush", ".config.yaml.draft"), ("rename", ".config.yaml.draft"), ("flush", "run")]


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        RunFolder.reopen(tmp_path / "none")


def test_nothing_is_written_before_the_first_step(tmp_path: Path) -> None:
    file = write(describe(tmp_path, text="abc"), tmp_path / "config.yaml")
    refusal("train", file, "--run-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_failed_save_leaves_what_was_saved(folder: RunFolder) -> None:
    def full(draft: Path) -> None:
        fill(draft)
        raise OSError(errno.ENOSPC, "No space left on device")

    folder.save(progress(1), fill)
    with pytest.raises(WriteError, match=r"No space left on device.*the last good checkpoint is .*step-000001"):
        folder.save(progress(2), full)
    assert kept(folder) == ["last", "step-000001"]
    assert not (folder.path / "checkpoints/step-000002").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk takes rights that this process has not")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("ema", [0.0, 0.1])
def test_a_full_disk_stops_a_run_that_goes_on_when_there_is_room(tmp_path: Path, small_disk: Path, ema: float) -> None:
    config = describe(tmp_path, steps=30, save_every=1, validate_every=30, ema=ema)
    run = small_disk / "run"
    err = refusal("train", write(config, tmp_path / "config.yaml"), "--run-dir", run, code=1)
    assert "No space left" in err.splitlines()[-1]
    assert [line for line in err.splitlines() if line.startswith("dlm:")] == err.splitlines()[-1:]
    last = RunFolder.reopen(run).last()
    assert last is not None and str(last) in err.splitlines()[-1]
    DiffusionLM.from_pretrained(run).generate(length=2)  # what was saved is whole
    assert not list(last.parent.glob(".step*"))

    whole = train(tmp_path / "whole", config)
    step = int(last.name[5:])
    assert weights(run, step) == weights(whole, step)
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    dlm("train", "--resume", "--run-dir", run, "--set", "train.keep=0")
    assert weights(run, 30) == weights(whole, 30) and losses(run) == losses(whole)


def test_a_disk_that_is_full_from_the_start(tmp_path: Path, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes((1 << 20) - 4096 * 8))
    err = refusal("train", write(describe(tmp_path), tmp_path / "config.yaml"), "--run-dir", small_disk / "run", code=1)
    assert "No space left" in err.splitlines()[-1]


def test_a_full_disk_without_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same through a writer of tensors that fails, for where nothing can be mounted."""
    writes = 0

    def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        nonlocal writes
        writes += 1
        if writes == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    real = safetensors.torch.save_file
    monkeypatch.setattr(tensors_module, "save_file", save_file)
    config = write(describe(tmp_path, save_every=1, validate_every=8), tmp_path / "config.yaml")
    err = refusal("train", config, "--run-dir", tmp_path / "run", code=1)
    assert err.splitlines()[-1].startswith("dlm: cannot save")
    assert err.splitlines()[-1].endswith(f"the last good checkpoint is {tmp_path}/run/checkpoints/step-000002")
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["last", "step-000001", "step-000002"]


def test_configuration_round_trips_through_the_folder(folder: RunFolder) -> None:
    config: Config = RunFolder.reopen(folder.path).config
    assert config == folder.config


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("model.path", "run"),
        ("model.path", "run/checkpoints/best"),
        ("model.path", "link"),
        ("tokenizer.path", "run/checkpoints/step-000008"),
        ("data.train.path", "run/metrics.jsonl"),
        ("data.train.path", "run/**/*.jsonl"),
        ("data.validation.path", "run/checkpoints/../metrics.jsonl"),
    ],
)
def test_overwriting_what_a_run_starts_from_is_refused(
    key: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, and all that was there is there."""
    monkeypatch.chdir(tmp_path)
    plain = describe(tmp_path, save_every=None, validate_every=8)
    run = train(tmp_path / "run", plain)
    (tmp_path / "link").symlink_to("run/checkpoints/best")
    before = {path: path.is_file() and path.read_bytes() for path in run.rglob("*")}
    tree = dump_config(plain)
    begin = str(tmp_path / "run/checkpoints/step-000008")
    if key in ("model.path", "tokenizer.path"):
        elsewhere = shutil.copytree(begin, tmp_path / "elsewhere")
        tree["model"] |= {"init": "pretrained", "path": str(elsewhere), "sizes": {}}
        tree["tokenizer"] = {"name": "pretrained", "path": str(elsewhere)}
    if key.startswith("data"):
        tree["data"]["validation"] = {"format": "jsonl", "path": "run/none.jsonl"}
    *parts, last = key.split(".")
    part = tree
    for name in parts:
        part = part[name]
    part[last] = named
    said = refusal("train", write(parse_config(tree), tmp_path / "c.yaml"), "--run-dir", "run", "--overwrite")
    assert f"{key} {named} is in run" in " ".join(said.split()) and "--run-dir" in said
    assert {path: path.is_file() and path.read_bytes() for path in run.rglob("*")} == before
    RunFolder.create(tmp_path / "run", plain, overwrite=True)  # what reads nothing of it may replace it
