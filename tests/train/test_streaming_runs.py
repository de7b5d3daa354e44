"""A run on a stream: it never reads ahead of what it learns from, and goes on exactly from where it was cut."""

import json
from pathlib import Path
from typing import Any

import pytest

from dlm.config import Config
from dlm.data import reading, run_data, streaming
from dlm.settings import dump_config, parse_config
from tests.support.commands import answer, refusal
from tests.support.tiny_runs import STEPS, cut_after, lines, losses, resized, resume, train, weights
from tests.support.tiny_runs import describe as describe_text


def describe(folder: Path, **changes: Any) -> Config:
    path = folder / "documents.jsonl"
    if not path.exists():
        texts = (f"document {i} says {'so ' * (i % 7)}" for i in range(300))
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    tree = dump_config(describe_text(folder))
    tree["data"] |= {"streaming": True, "buffer": 5, "train": {"format": "jsonl", "path": str(path)}}
    tree["data"]["held_out"] = {"by": "documents", "share": 0.1}
    for part, keys in changes.items():
        tree[part] = tree[part] | keys if isinstance(keys, dict) else keys
    return parse_config(tree)


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize("tokenizer", [{"name": "bytes"}, {"name": "characters"}])
def test_a_stream_resumes_bit_for_bit(step: int, tokenizer: dict[str, Any], tmp_path: Path) -> None:
    config = describe(tmp_path, tokenizer=tokenizer)
    whole = train(tmp_path / "whole", config)
    assert weights(resume(cut_after(tmp_path / "cut", config, step))) == weights(whole)
    assert losses(tmp_path / "cut") == losses(whole)


def test_accumulation_sees_the_same_rows(tmp_path: Path) -> None:
    at_once, in_parts = (
        losses(train(tmp_path / name, resized(describe(tmp_path, train=keys), attention_dropout=0.0)))
        for name, keys in (("whole", {}), ("parts", {"micro_batch_size": 2}))
    )
    assert at_once == pytest.approx(in_parts, rel=1e-4)


def test_the_text_is_not_read_before_the_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No reader of whole sources is called: not for training, and not for what is held out of it."""

    def read(*_: object) -> None:
        raise AssertionError("a whole source was read")

    for module in (reading, streaming):
        monkeypatch.setattr(module, "read", read)
    monkeypatch.setattr(run_data, "read_splits", read)
    train(tmp_path / "run", describe(tmp_path))
    assert len(losses(tmp_path / "run")) == STEPS


def test_a_run_on_a_stream_is_evaluated_on_what_it_held_out(tmp_path: Path) -> None:
    run = train(tmp_path / "run", describe(tmp_path, train={"validate_sequences": 1000, "validate_draws": 16}))
    said = [line["validation"] for line in lines(run) if "validation" in line][-1]
    report = answer("eval", run / "checkpoints" / "last")
    assert report["tokens"] == said["tokens"]
    assert report["nats_per_token"] == pytest.approx(said["nats_per_token"], rel=1e-6)
    assert "streams" in refusal("eval", run, "--split", "train")
