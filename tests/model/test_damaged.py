"""A damaged checkpoint is refused by a line that names the file or the tensor, and what to do."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm.config import Pretrained
from dlm.errors import CheckpointError
from dlm.model.loading import load_model
from dlm.model.tensors import read_tensors
from dlm.model.tokenizer import build_tokenizer
from tests.support.fixtures import Refused
from tests.support.tiny_models import build
from tests.support.tokenizers import like_roberta

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n"


@pytest.mark.parametrize(("lost", "told"), [(1, " is missing"), (2, "and one other"), (3, "and 2 others are missing")])
def test_missing_weights_are_counted(tmp_path: Path, refused: Refused, lost: int, told: str) -> None:
    build("qwen3").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = sorted(tensors)[-lost:]
    save_file({k: v for k, v in tensors.items() if k not in names}, tmp_path / "model.safetensors", {"format": "pt"})
    with refused(CheckpointError, names[0], told):
        load_model(str(tmp_path), "eager")


def test_weights_of_other_shapes_are_named_with_both(tmp_path: Path, refused: Refused) -> None:
    build("qwen3").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    shape = list(tensors[name].shape)
    save_file({**tensors, name: torch.zeros(4, 5)}, tmp_path / "model.safetensors", {"format": "pt"})
    with refused(CheckpointError, str(tmp_path), name, "[4, 5]", str(shape)):
        load_model(str(tmp_path), "eager")


def test_a_pointer_in_the_place_of_weights_says_how_to_fetch_them(tmp_path: Path, refused: Refused) -> None:
    build("qwen3").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_text(POINTER)
    for read in (lambda: load_model(str(tmp_path), "eager"), lambda: read_tensors(tmp_path / "model.safetensors")):
        with refused(CheckpointError, f"{tmp_path / 'model.safetensors'} is a Git LFS pointer", "`git lfs pull`"):
            read()


def test_a_pointer_in_the_place_of_a_tokenizer_says_how_to_fetch_it(tmp_path: Path, refused: Refused) -> None:
    like_roberta().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(POINTER)
    with refused(CheckpointError, "tokenizer.json is a Git LFS pointer", "`git lfs pull`"):
        build_tokenizer(Pretrained(str(tmp_path)), lambda: ())


@pytest.mark.parametrize("content", ["{}", '{"model": {}}', '{"version": "1.0", "added_tokens": []}', "text", ""])
def test_a_file_that_holds_no_tokenizer_is_named(tmp_path: Path, refused: Refused, content: str) -> None:
    like_roberta().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with refused(CheckpointError, f"{tmp_path / 'tokenizer.json'} holds no tokenizer, or is damaged", "copy it again"):
        build_tokenizer(Pretrained(str(tmp_path)), lambda: ())


def test_weights_without_their_configuration_are_no_model(tmp_path: Path, refused: Refused) -> None:
    build("qwen3").save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with refused(CheckpointError, str(tmp_path), "no config.json"):
        load_model(str(tmp_path), "eager")
