"""Which precision each denoiser computes in, and what each never predicts."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from dlm.diffusion.network import Network
from dlm.lm import DiffusionLM, Sampler, denoisers
from dlm.model.precision import Precision, in_precision
from dlm.model.public import by_name
from tests.support.fixtures import MakeLM
from tests.support.networks import ask


def test_on_a_cpu_calls_behind_a_cache_compute_as_scores_do(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def telling(network: nn.Module, precision: Precision) -> Network:
        told.append(precision)
        return in_precision(network, precision)

    monkeypatch.setattr(denoisers, "in_precision", telling)
    monkeypatch.setattr("dlm.lm.model.working_precisions", lambda *_: ("bf16", "fp32"))
    make_lm(byte_tokenizer, 16, readings={"name": "joint"}).save_pretrained(tmp_path / "made")
    told.clear()
    DiffusionLM.from_pretrained(tmp_path / "made", device="cpu")
    # scoring, weighing, sampling, remembering, within, infilling, ranking, continuing
    assert told == ["fp32", "bf16", "bf16", "fp32", "fp32", "bf16", "fp32", "fp32"]


def test_the_inside_of_a_text_has_no_end_and_a_text_may(tiny_lm: DiffusionLM) -> None:
    x_BL = torch.full((1, 2), tiny_lm.process.mask_id)
    wanted_BL = torch.ones_like(x_BL, dtype=torch.bool)
    for name, ends in (
        ("scoring", True),
        ("weighing", True),
        ("sampling", True),
        ("remembering", True),
        ("within", False),
        ("infilling", False),
    ):
        with torch.inference_mode():
            log_p_NV = ask(getattr(tiny_lm.denoisers, name), x_BL, torch.ones(1), wanted_BL)
        assert bool((log_p_NV[:, tiny_lm.end_ids[0]] > -torch.inf).all()) is ends
        assert bool((log_p_NV[:, tiny_lm.process.mask_id] == -torch.inf).all())


def test_a_publishers_blocks_are_for_texts_and_not_for_holes() -> None:
    family = by_name("LLaDA")
    assert Sampler().completed(family).block_length == family.block_length == 32
    assert Sampler().completed(family, inside=True).block_length is None
    assert Sampler(block_length=8).completed(family, inside=True).block_length == 8
    assert Sampler().completed(family).token == family.token and Sampler().completed(None) == Sampler()
