"""A run has its model's special tokens around every row, in training as in all that is done with its checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

from dlm.config import Config
from dlm.data.batches import TrainingBatches
from dlm.data.corpus import corpus
from dlm.data.documents import Plain
from dlm.errors import ConfigError
from dlm.evaluate.likelihood import evaluate_likelihood
from dlm.lm import DiffusionLM
from dlm.model.tokenizer import Affixes, affixes_of, build_tokenizer
from dlm.settings import parse_config
from dlm.train.metrics import Silent
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer
from tests.support import commands
from tests.support.encoders import LENGTH, encoder
from tests.support.fixtures import Refused
from tests.support.tiny_runs import bounds, resume, train

TEXTS = ["we saw a cat.", "i love you very much", "you", "we love cats , (a cat) " * 5]


def describe(folder: Path, **data: Any) -> Config:
    """A run from a random BERT."""
    model = encoder("bert", folder / "bert")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 10))
    source = {"format": "jsonl", "path": str(folder / "rows.jsonl")}
    begin = {"init": "pretrained", "path": str(model)}
    loop = {"steps": 4, "batch_size": 4, "precision": "fp32", "validate_every": 4, "validate_sequences": 4}
    return parse_config(
        {
            "data": {"train": source, "validation": source, "length": LENGTH, **data},
            "tokenizer": {"name": "pretrained", "path": str(model)},
            "model": begin,
            "train": {**loop, "save_every": 2},
        }
    )


def test_padded_rows_are_as_transformers_writes_them(tmp_path: Path) -> None:
    trainer = Trainer(RunFolder.create(tmp_path / "run", describe(tmp_path, packing="pad")), Silent())
    batch = trainer.validation.batch(range(4))
    for row, text in enumerate(TEXTS):
        ids = trainer.tokenizer(text, truncation=True, max_length=LENGTH, padding="max_length")["input_ids"]
        assert batch.x0_BL[row].tolist() == ids
        scored = [i for i, learned in enumerate(batch.loss_mask_BL[row].tolist()) if learned]
        whole = row < 3
        length = len(trainer.tokenizer(text)["input_ids"])
        assert scored == list(range(1, length if whole else LENGTH - 1))  # the end of a whole text is its [SEP]


@pytest.mark.parametrize("streaming", [False, True])
def test_packed_rows_have_them_around_the_stream(tmp_path: Path, streaming: bool) -> None:
    config = describe(tmp_path, streaming=streaming)
    trainer = Trainer(RunFolder.create(tmp_path / "run", config), Silent())
    for step in range(1, 4):
        batch = trainer.batches.batch(step, range(4))
        assert batch.x0_BL.shape == (4, LENGTH)
        assert set(batch.x0_BL[:, 0].tolist()) == {2} and not batch.loss_mask_BL[:, 0].any()
        for ids, learned in zip(batch.x0_BL.tolist(), batch.loss_mask_BL.tolist(), strict=True):
            text = [id_ for id_, one in zip(ids, learned, strict=True) if one]
            assert len(text) == LENGTH - 2
            assert ids == [2, *text, *([0] if text[-1] == 3 else [])][:LENGTH] or ids[-1] == 3
    trainer.upcoming.close()


@pytest.mark.parametrize("streaming", [False, True])
def test_documents_that_stand_apart_would_each_need_them(tmp_path: Path, streaming: bool, refused: Refused) -> None:
    config = describe(tmp_path, streaming=streaming, attend="document")
    with refused(ConfigError, "data.attend", "[CLS] and [SEP]", "data.packing pad"):
        Trainer(RunFolder.create(tmp_path / "run", config), Silent())


def test_a_run_its_checkpoint_and_eval_agree(tmp_path: Path) -> None:
    config = describe(tmp_path, packing="pad")
    run = train(tmp_path / "run", config)
    lm = DiffusionLM.from_pretrained(run, device="cpu", dtype="fp32")
    assert lm.sidecar.affixes == affixes_of(lm.tokenizer) != Affixes()
    rows = corpus(lm.tokenizer, Plain(Dataset.from_dict({"text": TEXTS * 10})), LENGTH, "pad", lm.sidecar.affixes)
    report = evaluate_likelihood(lm, rows, rows=[0, 1], draws=64)
    assert report.tokens == int(rows.batch([0, 1]).loss_mask_BL.sum())
    assert report.nats_per_token * report.tokens == pytest.approx(sum(lm.nelbo(TEXTS[:2], draws=64)), rel=0.1)
    order = Trainer(RunFolder.reopen(run), Silent()).validation
    assert order.affixes == lm.sidecar.affixes and bounds(run)[0] > 0.0
    words = ["eval", run, "--max-documents", "4", "--precision", "fp32", "--device", "cpu", "--json"]
    out, told = commands.dlm(*words)
    assert "the tokenizer changes the scored text" in told  # it joins words by one blank
    said = json.loads(out)
    assert said["tokens"] == sum(int(rows.batch([i]).loss_mask_BL.sum()) for i in range(4))


def test_a_run_that_began_without_them_goes_on_without(tmp_path: Path) -> None:
    run = train(tmp_path / "run", describe(tmp_path))
    for path in sorted((run / "checkpoints").glob("step-*/dlm.yaml")):
        tree = yaml.safe_load(path.read_text())
        del tree["affixes"]
        path.write_text(yaml.safe_dump({**tree, "format": 3}))
    trainer = Trainer(RunFolder.reopen(run), Silent())
    assert trainer.affixes == Affixes() and trainer.batches.batch(5, range(2)).loss_mask_BL.all()
    trainer.upcoming.close()
    assert DiffusionLM.from_pretrained(run).sidecar.affixes == Affixes()


def test_a_resumed_run_keeps_them(tmp_path: Path) -> None:
    run = train(tmp_path / "run", describe(tmp_path))
    for folder in (run / "checkpoints").glob("step-000004"):
        for file in sorted(folder.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        folder.rmdir()
    resume(run)
    assert DiffusionLM.from_pretrained(run).sidecar.affixes != Affixes()


def test_a_tail_stands_before_what_ends_a_row(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(describe(tmp_path).tokenizer, list)
    rows = corpus(tokenizer, Plain(Dataset.from_dict({"text": TEXTS[:3]})), 12, "pad", Affixes((2,), (3,)))
    batch = TrainingBatches(rows, 3, seed=0, tail_id=3).batch(1, range(3))
    assert batch.x0_BL.shape == (3, 12) and set(batch.x0_BL[:, 0].tolist()) == {2}
    for ids, learned in zip(batch.x0_BL.tolist(), batch.loss_mask_BL.tolist(), strict=True):
        last = max(i for i, one in enumerate(learned) if one)
        assert ids[last] == 3 and set(ids[last + 1 :]) <= {0}
