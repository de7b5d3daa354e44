"""A checkpoint is whole or not there, names its fault in a line, and is never unpickled."""

import copy
import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from transformers import AutoTokenizer

from dlm.config import Config
from dlm.diffusion.formulation import Formulation
from dlm.diffusion.noise import AnyNoise
from dlm.diffusion.schedule import Schedule
from dlm.errors import CheckpointError, ConfigError, WriteError
from dlm.lm import DiffusionLM
from dlm.model.checkpoint import FORMAT, Sidecar, point, read_sidecar, whole_folder, write_tokenizer
from dlm.model.locate import resolve
from tests.support.choices import defaults, named
from tests.support.fixtures import Refused


@pytest.fixture
def saved(tiny_lm: DiffusionLM, tmp_path: Path) -> Path:
    """A checkpoint of the tiny model."""
    tiny_lm.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def fail(folder: Path, fault: BaseException) -> None:
    (folder / "half").write_text("h")
    raise fault


# Whole or not at all


def test_a_folder_appears_with_all_that_was_written(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "runs" / "a") as draft:
        (draft / "sub").mkdir()
        (draft / "sub" / "x").write_text("x")
        assert not (tmp_path / "runs" / "a").exists()
    assert names(tmp_path / "runs") == {"a"}
    assert (tmp_path / "runs" / "a" / "sub" / "x").read_text() == "x"


@pytest.mark.parametrize("fault", [RuntimeError("a bug"), KeyboardInterrupt()])
def test_a_bug_or_an_interrupt_inside_leaves_no_folder(tmp_path: Path, fault: BaseException) -> None:
    with pytest.raises(type(fault)), whole_folder(tmp_path / "a") as draft:
        fail(draft, fault)
    assert not (tmp_path / "a").exists()
    with whole_folder(tmp_path / "a") as draft:
        assert names(draft) == set()
        (draft / "whole").write_text("w")
    assert names(tmp_path) == {"a"} and names(tmp_path / "a") == {"whole"}


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, refused: Refused) -> None:
    with (
        refused(WriteError, f"cannot save {tmp_path / 'a'}", "No space left on device"),
        whole_folder(tmp_path / "a") as draft,
    ):
        fail(draft, OSError(errno.ENOSPC, "No space left on device"))
    assert names(tmp_path) == set()


def test_a_disk_that_is_full_only_when_flushed(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refused(WriteError, "No space left"), whole_folder(tmp_path / "a") as draft:
        (draft / "x").write_text("x")
    assert names(tmp_path) == set()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_stands_there_is_not_touched(tmp_path: Path, refused: Refused, kind: str) -> None:
    target = tmp_path / "a"
    if kind == "folder":
        target.mkdir()
        (target / "mine").write_text("m")
    else:
        target.write_text("m")
    with refused(CheckpointError, str(target), "exists already"), whole_folder(target):
        pass
    assert ((target / "mine") if kind == "folder" else target).read_text() == "m"
    assert names(tmp_path) == {"a"}


def test_a_place_that_cannot_be_written(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("f")
    with refused(ConfigError, "cannot save", "Not a directory"), whole_folder(tmp_path / "file" / "a"):
        pass


def test_weights_that_cannot_be_written_leave_nothing(
    tiny_lm: DiffusionLM, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tiny_lm.tokenizer, "save_pretrained", full)  # after the weights are there
    with refused(WriteError, "No space left"):
        tiny_lm.save_pretrained(tmp_path / "a")
    assert names(tmp_path) == set()


def test_a_link_moves_in_one_step_and_with_its_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("one", "two"):
        (run / name).mkdir(parents=True)
        point(run / "last", run / name)
        assert (run / "last").resolve() == (run / name).resolve()
    run.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "last").resolve() == (tmp_path / "moved" / "two").resolve()
    assert names(tmp_path / "moved") == {"one", "two", "last"}


# What a user means


def test_a_run_means_its_best_then_its_last_checkpoint(tmp_path: Path, refused: Refused) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with refused(CheckpointError, str(run), "no checkpoint yet", "--resume"):
        resolve(run)
    for step, name in (("step-1", "last"), ("step-2", "best")):
        (run / "checkpoints" / step).mkdir()
        (run / "checkpoints" / step / "config.json").write_text("{}")
        point(run / "checkpoints" / name, run / "checkpoints" / step)
        assert Path(resolve(run)).resolve() == (run / "checkpoints" / step).resolve()
    assert resolve(run / "checkpoints" / "last") == str(run / "checkpoints" / "last")
    assert Path(resolve(run / "checkpoints" / "step-1")).name == "step-1"


def test_a_folder_without_a_model(tmp_path: Path, refused: Refused) -> None:
    with refused(CheckpointError, str(tmp_path), "no config.json"):
        resolve(tmp_path)


@pytest.mark.parametrize("name", ["./none", "/none/there", "~/none-there", "a/b/c", "with space", ""])
def test_a_path_with_nothing_there(
    name: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(CheckpointError, name):
        resolve(name)


@pytest.mark.parametrize("name", ["bert-base-uncased", "owner/model.v2"])
def test_a_hub_name_is_left_as_it_is_and_said_to_be_out_of_reach(name: str, refused: Refused) -> None:
    assert resolve(name) == name
    with refused(CheckpointError, name, "Hub"):
        DiffusionLM.from_pretrained(name)


# What is on the disk


def test_the_sidecar_comes_back(tiny_config: Config, tmp_path: Path) -> None:
    sidecar = Sidecar.of_run(tiny_config, 258, 7)
    (tmp_path / "dlm.yaml").write_text(sidecar.dump(), encoding="utf-8")
    assert read_sidecar(str(tmp_path)) == sidecar
    (tmp_path / "dlm.yaml").unlink()
    assert read_sidecar(str(tmp_path)) is None


@pytest.mark.parametrize("noise", defaults(AnyNoise), ids=named)
@pytest.mark.parametrize("schedule", defaults(Schedule), ids=named)
def test_a_formulation_that_no_run_made_comes_back(noise: AnyNoise, schedule: Schedule, tmp_path: Path) -> None:
    kind: Literal["mixture", "subs"] = "mixture" if noise.randomises else "subs"
    sidecar = Sidecar(Formulation(noise, schedule, 7, kind, timed=noise.randomises), 12, 258)
    (tmp_path / "dlm.yaml").write_text(sidecar.dump(), encoding="utf-8")
    assert read_sidecar(str(tmp_path)) == sidecar


def test_formats_1_and_2_have_their_formulation_in_the_configuration(tiny_config: Config, tmp_path: Path) -> None:
    written = yaml.safe_load(Sidecar.of_run(tiny_config, 258, 7).dump())
    for version in (1, 2):
        tree = {"format": version, "mask_id": 258, "step": 7, "config": written["config"]}
        (tmp_path / "dlm.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        assert read_sidecar(str(tmp_path)) == Sidecar.of_run(tiny_config, 258, 7)


def test_a_model_that_no_run_made_is_described_when_it_is_saved(tiny_lm: DiffusionLM, tmp_path: Path) -> None:
    DiffusionLM(tiny_lm.model, tiny_lm.tokenizer).save_pretrained(tmp_path / "a")
    tree = yaml.safe_load((tmp_path / "a/dlm.yaml").read_text())
    assert "config" not in tree and "step" not in tree
    again = DiffusionLM.from_pretrained(tmp_path / "a")
    assert again.config is None and again.formulation == Formulation()
    assert again.context == tree["context"] == tiny_lm.model.config.max_position_embeddings
    tree |= {"context": 8, "formulation": {"noise": {"name": "absorbing"}, "steps": 5}}
    (tmp_path / "a/dlm.yaml").write_text(yaml.safe_dump(tree))
    by_hand = DiffusionLM.from_pretrained(tmp_path / "a")
    assert by_hand.context == 8 and by_hand.formulation == Formulation(steps=5)
    assert by_hand.generate()[0].calls <= 5


def test_a_checkpoint_is_plain_files_without_pickles(saved: Path) -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json", "dlm.yaml"} <= names(saved)
    assert not [name for name in names(saved) if name.endswith((".bin", ".pt", ".pkl", ".py"))]
    assert json.loads((saved / "config.json").read_text())["is_causal"] is False
    assert yaml.safe_load((saved / "dlm.yaml").read_text())["format"] == 3 < FORMAT  # nothing in it is new


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_cut_file_is_said_in_a_line(saved: Path, refused: Refused, name: str, keep: int) -> None:
    raw = (saved / name).read_bytes()
    (saved / name).write_bytes(raw[: min(keep, len(raw) - 2)])
    with refused(CheckpointError, str(saved)):
        DiffusionLM.from_pretrained(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_is_gone(saved: Path, refused: Refused, name: str) -> None:
    (saved / name).unlink()
    if name == "tokenizer.json":
        (saved / "tokenizer_config.json").unlink()
    with refused(CheckpointError, str(saved)):
        DiffusionLM.from_pretrained(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just text",
        "[1, 2]",
        "format: [",
        "format: x\nmask_id: 1\nstep: 1\nconfig: {}",
        "mask_id: 258",
        "format: 1\nmask_id: 258\nstep: 0",
        "format: 1\nmask_id: 258\nstep: 0\nconfig: 3",
        "format: 1\nmask_id: 258\nstep: 0\nconfig: {dat: 3}",
        "format: 1\nmask_id: 258\nstep: 0\nconfig: {data: {train: {format: text}, lenght: 3}}",
        "format: 3\nmask_id: 258\ncontext: 32",
        "format: 3\nmask_id: 258\ncontext: wide\nformulation: {}",
        "format: 3\nmask_id: 258\ncontext: 32\nformulation: {nois: absorbing}",
        "format: 3\nmask_id: 258\ncontext: 32\nformulation: {noise: {name: white}}",
        "format: 3\nmask_id: 258\ncontext: 32\nformulation: {steps: 0}",
        "format: 3\nmask_id: 258\ncontext: 32\nformulation: {noise: {name: uniform}, parameterization: subs}",
        "\x00",
        "a: !!python/object/apply:os.getcwd []",
    ],
)
def test_a_damaged_sidecar(saved: Path, refused: Refused, text: str) -> None:
    (saved / "dlm.yaml").write_text(text)
    with refused(CheckpointError, "dlm.yaml"):
        DiffusionLM.from_pretrained(saved)


def test_a_sidecar_that_is_not_text(saved: Path, refused: Refused) -> None:
    (saved / "dlm.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with refused(CheckpointError, "dlm.yaml"):
        read_sidecar(str(saved))


def test_a_later_format_asks_for_a_newer_dlm(saved: Path, refused: Refused) -> None:
    tree = yaml.safe_load((saved / "dlm.yaml").read_text())
    (saved / "dlm.yaml").write_text(yaml.safe_dump({**tree, "format": FORMAT + 1, "config": "anything new"}))
    with refused(CheckpointError, "dlm.yaml", f"format {FORMAT + 1}", "newer dlm"):
        DiffusionLM.from_pretrained(saved)


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_nothing_is_ever_unpickled(saved: Path, refused: Refused, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    (saved / "model.safetensors").unlink()
    (saved / name).write_bytes(pickle.dumps(Trap(mark)))
    with refused(CheckpointError, str(saved)):
        DiffusionLM.from_pretrained(saved)
    assert not mark.exists()
    pickle.loads((saved / name).read_bytes())
    assert mark.exists()  # the trap does work


def test_remote_code_is_not_run(saved: Path, refused: Refused, tmp_path: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Own"}}
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "code.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'mark')!r}).touch()")
    with refused(CheckpointError, str(saved)):
        DiffusionLM.from_pretrained(saved)
    assert not (tmp_path / "mark").exists()


def test_a_saved_tokenizer_is_one_that_older_transformers_know(tmp_path: Path, byte_tokenizer: Any) -> None:
    """Version 4 knows no `TokenizersBackend`, and takes a list of further special tokens by its own name alone."""
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|turn|>"]})
    tokenizer.init_kwargs["auto_map"] = {"AutoTokenizer": ["tokenization_other.Other", None]}
    write_tokenizer(tmp_path, tokenizer)
    described = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert described["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map" not in described
    assert described["additional_special_tokens"] == ["<|turn|>"] and "extra_special_tokens" not in described
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab() and again.all_special_ids == tokenizer.all_special_ids
    assert again("a<|turn|>b").input_ids == tokenizer("a<|turn|>b").input_ids == [97, len(byte_tokenizer), 98]
