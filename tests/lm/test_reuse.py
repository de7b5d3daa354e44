"""Keys and values that are used again: exact where no change reaches them, and never of another token or row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dlm.diffusion.network import FunctionNetwork, NetworkInput
from dlm.diffusion.remask import Cap
from dlm.diffusion.reuse import Reuse, ReusingNetwork
from dlm.diffusion.unmask import Confidence, FixedSteps, LeftToRight, OneAtATime, Random, Threshold, TokenChoice
from dlm.errors import ConfigError
from dlm.lm import DiffusionLM, Sampler
from dlm.model.backbone import Backbone
from dlm.model.cache import CanvasCache, check_reuse
from tests.support import public
from tests.support.commands import dlm, refusal
from tests.support.fixtures import MakeLM, Refused
from tests.support.tiny_models import TINY, build

# Behind nothing all masks look alike, and rounding would decide which is the most confident.
PROMPTS = {1: "a", 2: "bcdef", 3: "ghijklmnopqrstuv"}
SAMPLERS = [
    Sampler(order=Random()),
    Sampler(order=Confidence(), token=TokenChoice(temperature=0.7)),
    Sampler(order=LeftToRight(), budget=FixedSteps(5)),
    Sampler(order=Confidence(), budget=OneAtATime(), block_length=4),
    Sampler(budget=FixedSteps(12), remask=Cap(0.5)),
]
NAMES = ["random", "confidence", "left to right", "blocks", "remasked"]


def texts(lm: DiffusionLM, sampler: Sampler, reuse: Reuse | None, **options: Any) -> list[str]:
    """What is written behind prompts of several lengths, which are rows of several lengths."""
    found = lm.generate_each(PROMPTS, num=2, length=10, sampler=replace(sampler, reuse=reuse), **options)
    return [sample.text for group in found for sample in group]


@pytest.fixture(scope="module")
def shallow(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    """A model of one layer: a key and a value are of their own token alone, so no change elsewhere reaches them."""
    lm = make_lm(byte_tokenizer, 32)
    lm.model.model.layers = nn.ModuleList(lm.model.model.layers[:1])
    lm.model.config.num_hidden_layers = 1
    return lm


@pytest.mark.parametrize("sampler", SAMPLERS, ids=NAMES)
@pytest.mark.parametrize("reach", ["dual", "prefix"])
@pytest.mark.parametrize("refresh", [2, 100])
def test_it_is_exact_where_no_change_reaches_another_token(
    shallow: DiffusionLM, sampler: Sampler, reach: Any, refresh: int
) -> None:
    assert texts(shallow, sampler, Reuse(reach, refresh)) == texts(shallow, sampler, None)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=NAMES)
@pytest.mark.parametrize("reach", ["dual", "prefix"])
def test_computed_at_every_call_it_is_exact(tiny_lm: DiffusionLM, sampler: Sampler, reach: Any) -> None:
    expected = texts(tiny_lm, sampler, None)
    assert texts(tiny_lm, sampler, Reuse(reach, 1)) == expected
    assert texts(tiny_lm, sampler, Reuse(reach, 100)) != expected


@pytest.mark.parametrize("kind", ["llada", "dream", "a2d", "diffugpt"])
def test_published_models_use_keys_and_values_again(tmp_path: Path, kind: str) -> None:
    """Models that predict one position earlier, or read a token before every text."""
    folder = tmp_path / kind
    folder.mkdir()
    getattr(public, kind)(folder)
    lm = DiffusionLM.from_pretrained(folder, dtype="fp32")
    expected = [sample.text for sample in lm.generate("ab", num=3, length=8)]
    for reach in ("dual", "prefix"):
        exact = lm.generate("ab", num=3, length=8, sampler=Sampler(reuse=Reuse(reach, 1)))
        assert [sample.text for sample in exact] == expected
        lm.generate("ab", num=3, length=8, sampler=Sampler(reuse=Reuse(reach, 8)))


def test_a_text_does_not_depend_on_its_batch(tiny_lm: DiffusionLM) -> None:
    for sampler in SAMPLERS:
        expected = texts(tiny_lm, sampler, Reuse("dual", 3))
        assert texts(tiny_lm, sampler, Reuse("dual", 3), batch_size=1) == expected
        assert texts(tiny_lm, sampler, Reuse("dual", 3), batch_size=3) == expected


def test_each_row_counts_its_own_calls(shallow: DiffusionLM, tiny_lm: DiffusionLM) -> None:
    """Rows that take part in other calls than their neighbours, as with a threshold."""
    sampler = Sampler(budget=Threshold(0.02), token=TokenChoice(temperature=0.5))
    for lm in (shallow, tiny_lm):
        expected = texts(lm, sampler, Reuse("dual", 3))
        assert texts(lm, sampler, Reuse("dual", 3), batch_size=1) == expected


def test_holes_are_filled_with_what_stands_around_them_used_again(tiny_lm: DiffusionLM, shallow: DiffusionLM) -> None:
    text = "for [MASK:3] in [MASK:4]: pass"
    for lm, refresh in ((tiny_lm, 1), (shallow, 100)):
        found = lm.infill(text, num=2, sampler=Sampler(reuse=Reuse("dual", refresh)))
        assert [one.spans for one in found] == [one.spans for one in lm.infill(text, num=2)]


@pytest.mark.parametrize(
    ("reach", "expected"),
    [
        # what is wanted is 3 and 5; what has changed since it was computed is 1, then nothing
        ("dual", [[0, 1, 2, 3, 4, 5], [1, 3, 5], [3, 5], [0, 1, 2, 3, 4, 5]]),
        ("prefix", [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [3, 4, 5], [0, 1, 2, 3, 4, 5]]),
    ],
)
def test_a_call_computes_what_is_wanted_and_what_has_changed(reach: Any, expected: list[list[int]]) -> None:
    seen: list[list[int]] = []

    def network(inputs: NetworkInput) -> Tensor:
        assert inputs.positions is not None
        seen.append(inputs.positions[0].tolist())
        return torch.zeros(int(inputs.wanted_BL.sum()), 3)

    reusing = ReusingNetwork(FunctionNetwork(network), CanvasCache(1), Reuse(reach, 3), 1, pad_id=9)
    first_BL, second_BL = torch.tensor([[1, 1, 1, 1, 1, 1, 9]]), torch.tensor([[1, 2, 1, 1, 1, 1, 9]])
    wanted_BL = torch.tensor([[0, 0, 0, 1, 0, 1, 0]]) > 0
    for ids_BL in (first_BL, second_BL, second_BL, second_BL):
        reusing(NetworkInput(ids_BL, wanted_BL, torch.zeros(1)))
    assert seen == expected


def test_rows_out_of_step_get_their_own_predictions(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    """Calls for some of the rows, so that others are computed whole when these are not."""
    lm = make_lm(byte_tokenizer, 32)
    network = Backbone(lm.model, 258)
    reusing = ReusingNetwork(network, CanvasCache(3), Reuse("dual", 2), 3, 258)
    ids_BL = torch.randint(0, 256, (3, 7), generator=torch.Generator().manual_seed(0))
    wanted_BL = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    with torch.no_grad():
        for rows in ([0, 2], [0, 1, 2], [1], [0, 1, 2], [2, 0]):
            rows_R = torch.tensor(rows)
            part = NetworkInput(ids_BL[rows_R], wanted_BL[rows_R], torch.zeros(len(rows)), rows_B=rows_R)
            expected_NV = network(NetworkInput(ids_BL[rows_R], wanted_BL[rows_R], torch.zeros(len(rows))))
            torch.testing.assert_close(reusing(part), expected_NV, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_used_again_is_refused(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, refused: Refused
) -> None:
    again = Reuse()
    cases: list[tuple[dict[str, Any], Sampler, str]] = [
        ({"noise": {"name": "uniform"}}, Sampler(reuse=again), "noise that is not masks alone"),
        ({"model": {"time_conditioning": True}}, Sampler(reuse=again), "takes the time"),
        ({"readings": {"name": "joint"}}, Sampler(reuse=again), "--no-verify"),
        ({"readings": {"name": "joint"}}, Sampler(reuse=again, block_length=4), "remembers the blocks"),
        ({"readings": {"name": "blocks", "size": 4}}, Sampler(reuse=again), "remembers the blocks"),
        ({"readings": {"name": "autoregressive"}}, Sampler(reuse=again), "leave it out"),
    ]
    for keys, sampler, told in cases:
        with refused(ConfigError, "--cache", told):
            make_lm(byte_tokenizer, 32, **keys).generate(sampler=sampler, length=4)
    joint = make_lm(byte_tokenizer, 32, readings={"name": "joint"})
    joint.generate(sampler=Sampler(reuse=again, verify=False), length=4)
    joint.infill("a[MASK:2]b", sampler=Sampler(reuse=again))


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_encoders_keep_no_keys_and_values(architecture: str, refused: Refused) -> None:
    backbone = Backbone(build(architecture), 37)
    with refused(ConfigError, "--cache", "is an encoder"):
        check_reuse(backbone, backbone, 8)


def test_layers_that_see_a_part_of_the_row_are_found(refused: Refused) -> None:
    """With all keys and values given, a window of two tokens would be lost."""
    narrow = Backbone(build("mistral", {**TINY, "sliding_window": 2}), 37)
    with refused(ConfigError, "--cache", "predicts something else"):
        check_reuse(narrow, narrow, 8)
    wide = Backbone(build("mistral", {**TINY, "sliding_window": 64}), 37)
    check_reuse(wide, wide, 8)


def test_the_commands_take_it(tiny_lm: DiffusionLM, tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny_lm.save_pretrained(model)
    words = ["sample", model, "--length", "8", "--num", "2", "--dtype", "fp32"]
    plain, _ = dlm(*words)
    assert dlm(*words, "--cache", "dual", "--refresh", "1")[0] == plain
    assert dlm(*words, "--cache", "prefix")[0] != ""
    dlm("infill", model, "a[MASK:3]b", "--cache", "dual")
    assert "--cache prefix or --cache dual" in refusal(*words, "--refresh", "2")
    assert "--refresh" in refusal(*words, "--cache", "dual", "--refresh", "0")
    assert "for '--cache': 'triple' is not one of 'dual', 'prefix'" in refusal(*words, "--cache", "triple")
    with pytest.raises(ValueError, match="reach must be dual or prefix"):
        Reuse("triple")  # type: ignore[arg-type]
