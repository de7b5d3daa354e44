"""A run folder on a disk without symbolic links or where folders cannot be flushed, and a copy of a run folder."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dlm.config import Config, Pretrained
from dlm.lm import DiffusionLM
from dlm.model.checkpoint import point, whole_folder
from dlm.model.locate import follow, resolve
from tests.support.commands import dlm, refusal
from tests.support.tiny_runs import altered, back_to, cut_after, describe, resume, same, train


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A run on a disk that has everything."""
    folder = tmp_path_factory.mktemp("whole")
    config = describe(folder, keep=0)
    return config, train(folder / "run", config)


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)


@pytest.mark.usefixtures("no_links")
def test_a_run_without_links_is_the_same_run(whole: tuple[Config, Path], tmp_path: Path) -> None:
    config, undisturbed = whole
    run = cut_after(tmp_path / "run", config, 5)
    checkpoints = run / "checkpoints"
    assert not (checkpoints / "last").is_symlink()
    assert follow(checkpoints / "last") == checkpoints / "step-000005"
    resume(run)
    assert same(run, undisturbed)
    kept = {path.name for path in (undisturbed / "checkpoints").iterdir()}
    assert {path.name for path in checkpoints.iterdir()} == kept
    for name in ("best", "last"):
        assert follow(checkpoints / name).name == (undisturbed / "checkpoints" / name).resolve().name


@pytest.mark.usefixtures("no_links")
def test_every_command_follows_what_stands_for_a_link(whole: tuple[Config, Path], tmp_path: Path) -> None:
    config, undisturbed = whole
    run = train(tmp_path / "run", config)
    expected = dlm("sample", undisturbed, "--seed", "1", "--length", "8")[0]
    for name in (run, run / "checkpoints/best"):
        assert dlm("sample", name, "--seed", "1", "--length", "8")[0] == expected
        on = altered(replace(config, tokenizer=Pretrained(str(name))), "model", init="pretrained", path=str(name))
        on = altered(altered(on, "model", sizes={}), "train", steps=1)
        train(tmp_path / f"from-{name.name}", on)


def test_a_copy_that_made_folders_of_the_links_goes_on(whole: tuple[Config, Path], tmp_path: Path) -> None:
    """As `cp -rL`, an archive or a drive does."""
    config, undisturbed = whole
    cut = cut_after(tmp_path / "cut", config, 5)
    run = shutil.copytree(cut, tmp_path / "run", symlinks=False)
    assert (run / "checkpoints/last").is_dir() and not (run / "checkpoints/last").is_symlink()
    DiffusionLM.from_pretrained(run)
    resume(run)
    assert same(run, undisturbed)
    assert (run / "checkpoints/last").readlink() == Path("step-000008")


def test_a_run_moves_between_disks_with_links_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        (tmp_path / f"step-00000{step}").mkdir()
    for step, links in ((1, True), (2, False), (3, True), (1, False), (2, False)):
        with monkeypatch.context() as patch:
            if not links:
                patch.setattr(os, "symlink", lambda *_, **__: (_ for _ in ()).throw(NotImplementedError))
            point(tmp_path / "last", tmp_path / f"step-00000{step}")
        assert (tmp_path / "last").is_symlink() == links
        assert follow(tmp_path / "last").resolve() == tmp_path / f"step-00000{step}"
    assert not list(tmp_path.glob(".*"))


def test_only_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "step-000001").mkdir()
    for text in ("step-000002\n", "../step-000001", "step-000001 and more", "\xff", ""):
        (tmp_path / "best").write_text(text, encoding="latin-1")
        assert follow(tmp_path / "best") == tmp_path / "best"
    assert "is neither a run folder nor a checkpoint" in refusal("sample", tmp_path / "best")
    assert follow(tmp_path / "none") == tmp_path / "none"


@pytest.mark.parametrize("fault", ["open", "fsync"])
def test_folders_that_cannot_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    opened, flushed = os.open, os.fsync
    asked: list[str] = []

    def no_folders(path: Path, flags: int, *rest: int) -> int:
        if Path(path).is_dir():
            asked.append("open")
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, flags, *rest)

    def not_here(descriptor: int) -> None:
        asked.append("fsync")
        flushed(descriptor)
        raise OSError(errno.EINVAL, "Invalid argument")

    if fault == "open":
        monkeypatch.setattr(os, "open", no_folders)
    else:
        monkeypatch.setattr(os, "fsync", not_here)
    with whole_folder(tmp_path / "step-000001") as draft:
        (draft / "config.json").write_text("{}")
    point(tmp_path / "last", tmp_path / "step-000001")
    assert fault in asked and resolve(tmp_path / "last").endswith("last")


def test_a_checkpoint_that_was_removed_by_hand(whole: tuple[Config, Path], tmp_path: Path) -> None:
    """The links lead nowhere then, until the run goes on."""
    config, undisturbed = whole
    run = train(tmp_path / "run", altered(config, "train", keep=9))
    back_to(run, 6)
    resume(run)
    assert same(run, undisturbed)
