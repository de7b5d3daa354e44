"""Files of tensors come back bit for bit, and everything that can be wrong with one is a line."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dlm.errors import CheckpointError, one_line
from dlm.model.tensors import read_tensors, weights_checksum, write_tensors
from tests.support.fixtures import Refused


def test_tensors_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).T, "b": torch.arange(5), "c": torch.ones(2, dtype=torch.bfloat16)}
    write_tensors(tensors, tmp_path / "x.safetensors")
    found = read_tensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in tensors.items())


@pytest.mark.parametrize("content", [b"", b"junk" * 100, None])
def test_a_damaged_file(content: bytes | None, refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with refused(CheckpointError, f"{path} is damaged", "go on from the one before"):
        read_tensors(path)


def test_tensors_that_do_not_fit(refused: Refused, tmp_path: Path) -> None:
    write_tensors(nn.Linear(2, 3).state_dict(), tmp_path / "x.safetensors")
    with refused(CheckpointError, "the layer cannot be read: ", "size mismatch"):
        read_tensors(
            tmp_path / "x.safetensors", nn.Linear(3, 3).load_state_dict, problem="the layer cannot be read", limit=200
        )


def test_one_line() -> None:
    assert one_line(ValueError("two\n  lines\tand a tab ")) == "two lines and a tab"
    assert one_line(KeyError()) == "KeyError" and one_line("") == ""
    assert one_line("x" * 300) == "x" * 200
    assert one_line("x" * 300, limit=None) == "x" * 300


def test_a_checksum_knows_a_models_names_shapes_and_values(tmp_path: Path, refused: Refused) -> None:
    """Every value of a small tensor; of a large one, a change anywhere in a sixteenth of it, and its last values."""
    small, large = torch.zeros(64, 32), torch.zeros(3_000_000)
    plain = {"a": small, "b": large}
    assert summed(tmp_path, plain) == summed(tmp_path, {"a": small.clone(), "b": large.clone()})
    others = [{"a": small.T, "b": large}, {"a": small, "c": large}, {"a": small}]
    for name, at in (("a", 0), ("a", 1000), ("a", 2047), ("b", 2_999_999)):
        changed = {key: value.clone() for key, value in plain.items()}
        changed[name].view(-1)[at] = 1.0
        others.append(changed)
    part = large.clone()
    part[1_000_000:1_200_000] = 1.0
    others.append({"a": small, "b": part})
    found = [summed(tmp_path, tensors) for tensors in (plain, *others)]
    assert len(set(found)) == len(found) and None not in found
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with refused(CheckpointError, "model.safetensors is damaged"):
        weights_checksum(str(tmp_path))
    assert weights_checksum("owner/name") is None


def summed(folder: Path, tensors: dict[str, torch.Tensor]) -> str | None:
    write_tensors(tensors, folder / "model.safetensors")
    return weights_checksum(str(folder))
