"""Runs with fill-in-the-middle: what they leave on disk, that they resume, and that without it nothing changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from dlm.config import Config
from dlm.data.batches import rearranging_streams
from dlm.diffusion.readings import Autoregressive
from dlm.errors import ConfigError
from dlm.lm import DiffusionLM
from dlm.model.sentinels import MIDDLE, PREFIX, SUFFIX, Sentinels
from dlm.settings import dump_config, parse_config
from tests.support.fixtures import Refused
from tests.support.tiny_runs import altered, cut_after, describe, losses, resume, same, start, train


def middle_config(folder: Path, **data: object) -> Config:
    config = replace(describe(folder), readings=Autoregressive())
    return altered(config, "data", **{"fim": 0.5, "length": 24, **data})


def test_a_run_leaves_a_model_that_fills_in_the_middle_and_resumes_exactly(tmp_path: Path) -> None:
    config = middle_config(tmp_path, fim_order="spm")
    whole = train(tmp_path / "whole", config)
    checkpoint = whole / "checkpoints/last"
    written = yaml.safe_load((checkpoint / "dlm.yaml").read_text())
    lm = DiffusionLM.from_pretrained(whole)
    ids = [lm.tokenizer.get_vocab()[token] for token in (PREFIX, SUFFIX, MIDDLE)]
    assert lm.sidecar.sentinels == Sentinels(ids[0], ids[1], ids[2], "spm") and len({*ids}) == 3
    assert written["fim"] == {"prefix": ids[0], "suffix": ids[1], "middle": ids[2], "order": "spm"}
    assert lm.filling.in_the_middle and lm.infill("ab[MASK:2]c")[0].text.startswith("ab")
    lm.save_pretrained(tmp_path / "again")
    assert DiffusionLM.from_pretrained(tmp_path / "again").sidecar.sentinels == lm.sidecar.sentinels

    cut_after(tmp_path / "cut", config, 4)
    assert same(resume(tmp_path / "cut"), whole)


@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_a_stream_is_rearranged_too(tmp_path: Path, packing: str) -> None:
    (tmp_path / "text.txt").write_text("\n".join(f"line {i} of the text" for i in range(300)))
    config = middle_config(tmp_path, fim=1.0, packing=packing, streaming=True, buffer=8)
    source = replace(config.data.train, documents="line")
    run = start(tmp_path, altered(config, "data", train=source, held_out=replace(config.data.held_out, by="documents")))
    sentinels = run.sidecar.sentinels
    assert sentinels is not None
    one, again = (run.batches.batch(step, [0, 1, 2, 3]) for step in (1, 2))
    assert (one.x0_BL == sentinels.middle).any(1).all() and (again.x0_BL == sentinels.prefix).any(1).all()
    assert not one.loss_mask_BL[torch.isin(one.x0_BL, torch.tensor(sentinels.all))].any()


def test_without_it_texts_losses_and_the_vocabulary_are_as_before(tmp_path: Path) -> None:
    """A rate of 0 adds no token and draws nothing; with one, validation reads every text as it stands."""
    plain = replace(describe(tmp_path), readings=Autoregressive())
    none = start(tmp_path / "none", altered(plain, "data", fim=0.0, fim_order="spm"))
    some = start(tmp_path / "some", altered(plain, "data", fim=1e-9))
    assert none.sidecar.sentinels is None and len(some.tokenizer) == len(none.tokenizer) + 3
    for step in (1, 5):
        one, other = (run.batches.batch(step, [0, 1, 2, 3]) for run in (none, some))
        assert torch.equal(one.x0_BL, other.x0_BL) and torch.equal(one.loss_mask_BL, other.loss_mask_BL)
    all_rows = [run.validation.batch(range(len(run.validation))).x0_BL for run in (none, some)]
    assert torch.equal(*all_rows)
    trained = [losses(train(tmp_path / name, config)) for name, config in (("a", plain), ("b", none.config))]
    assert trained[0] == trained[1]


def test_cuts_follow_from_the_seed_the_step_and_the_place_in_the_batch() -> None:
    keys = [(seed, step, place) for seed in (0, 1) for step in (1, 2) for place in (0, 1)]
    drawn, again = (
        [torch.rand((), generator=rearranging_streams(seed, step, [place])[0]).item() for seed, step, place in keys]
        for _ in range(2)
    )
    assert drawn == again and len({*drawn}) == len(keys)


def test_a_step_with_rearranged_texts_has_no_bound_of_its_own(tmp_path: Path) -> None:
    assert start(tmp_path, middle_config(tmp_path)).step(1).nelbo is None


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"readings": "masked"}, ("data.fim", "readings autoregressive", "masked", "set it to 0")),
        ({"readings": "joint"}, ("data.fim", "joint")),
        ({"data": {"length": 7}}, ("fim", "length 7", "8 or more")),
        ({"data": {"fim": 1.5}}, ("data.fim", "1.5")),
        ({"data": {"fim_order": "pms"}}, ("data.fim_order", "psm", "spm")),
        (
            {
                "data": {
                    "train": {"format": "jsonl", "path": "a.jsonl", "prompt": "a", "response": "b"},
                    "packing": "pad",
                }
            },
            ("fim", "responses", "set it to 0"),
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    keys: dict[str, dict[str, object]], words: tuple[str, ...], tmp_path: Path, refused: Refused
) -> None:
    tree = dump_config(middle_config(tmp_path))
    for key, value in keys.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    with refused(ConfigError, *words):
        parse_config(tree)
