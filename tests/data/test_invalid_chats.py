"""Chats that cannot be written are named by their row, or left out and counted."""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from dlm.cli.console import TrainingDisplay
from dlm.config import HeldOut, Source
from dlm.data.corpus import corpus
from dlm.data.reading import read
from dlm.errors import DataError
from dlm.model.text import ChatTemplate
from dlm.settings import parse_config
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer
from tests.support import commands
from tests.support.fixtures import Refused
from tests.support.tiny_models import SMALLEST

STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/...') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}<|assistant|>"
)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def spoken(*roles: str) -> dict[str, Any]:
    return {"m": [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)]}


GOOD = spoken("user", "assistant", "user", "assistant")
BROKEN = spoken("user", "assistant", "user", "user", "assistant")  # its first answer could be written
MIXED = [GOOD, spoken("user", "assistant"), BROKEN, GOOD, spoken("system", "user", "assistant"), GOOD]


@pytest.fixture
def strict_tokenizer(byte_tokenizer: PreTrainedTokenizerBase) -> Iterator[PreTrainedTokenizerBase]:
    byte_tokenizer.chat_template = STRICT
    yield byte_tokenizer
    byte_tokenizer.chat_template = None


def test_the_template_is_asked_with_what_the_family_tells_it(
    byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A template that refuses a chat because it was told nothing would leave all of them out."""
    byte_tokenizer.chat_template = "{% if not quick %}{{ raise_exception('say quick') }}{% endif %}>"
    source = Source("jsonl", str(write(tmp_path / "m.jsonl", [GOOD])), messages="m", skip_invalid=True)
    try:
        sequences = corpus(
            byte_tokenizer, read(source, "data.train"), 64, "pad", template=ChatTemplate({"quick": True})
        )
    finally:
        byte_tokenizer.chat_template = None
    assert len(sequences) == 2 and not sequences.skipped.rows


def test_a_chat_that_the_template_refuses_is_named_by_its_row(
    strict_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, refused: Refused
) -> None:
    source = Source("jsonl", str(write(tmp_path / "m.jsonl", MIXED)), messages="m")
    with refused(DataError, "row 3 of", "m.jsonl", "roles must alternate", "data.train.skip_invalid=true"):
        corpus(strict_tokenizer, read(source, "data.train"), 128, "pad")


def test_chats_that_cannot_be_written_may_be_left_out_and_are_counted(
    strict_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    source = Source("jsonl", str(write(tmp_path / "m.jsonl", MIXED)), messages="m", skip_invalid=True)
    sequences = corpus(strict_tokenizer, read(source, "data.train"), 128, "pad")
    assert len(sequences) == 2 + 1 + 2 + 2  # nothing of a chat that is wrong further down
    assert sequences.skipped.rows == 2
    said = str(sequences.skipped)
    assert "2 rows left out" in said and "row 3 of" in said and "roles must alternate" in said


def test_chats_that_are_none_may_be_left_out_and_are_counted(
    strict_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [GOOD, {"m": [{"role": "user", "content": "hi"}, {"role": None, "content": "yes"}]}, BROKEN, GOOD]
    source = Source("jsonl", str(write(tmp_path / "m.jsonl", rows)), messages="m", skip_invalid=True)
    documents = read(source, "data.train")
    assert documents.skipped.rows == 1 and "row 2 of" in documents.skipped.first
    train, validation = documents.split(HeldOut("documents", 0.5))
    assert train.skipped.rows + validation.skipped.rows == 1
    sequences = corpus(strict_tokenizer, documents, 128, "pad")
    assert len(sequences) == 4
    assert sequences.skipped.rows == 2 and "row 2 of" in sequences.skipped.first


HALVES = [
    [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "yes"}],
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "\udfff yes"}],
    [{"role": "user\ud800", "content": "hi"}, {"role": "assistant", "content": "yes"}],
    [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "\ud800"}],
    [{"role": "user", "content": [{"type": "text", "text": "\udc00"}]}, {"role": "assistant", "content": "yes"}],
]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl of json", "jsonl of raw json", "parquet of json"])
@pytest.mark.parametrize("half", HALVES)
def test_a_chat_with_half_of_a_character_is_named_or_left_out_and_counted(
    tmp_path: Path, refused: Refused, kind: str, half: list[dict[str, Any]]
) -> None:
    chats = [GOOD["m"], half, GOOD["m"]]
    path = tmp_path / f"m.{kind.split()[0]}"
    if kind == "parquet of json":
        pq.write_table(pa.table({"m": [json.dumps(chat) for chat in chats]}), path)
    else:
        cells = [chat if kind == "jsonl" else json.dumps(chat, ensure_ascii="raw" not in kind) for chat in chats]
        write(path, [{"m": cell} for cell in cells])
    source = Source(kind.split()[0], str(path), messages="m")
    with refused(DataError, "data.train.messages", "row 2" if path.suffix == ".parquet" else "line 2", "half of a"):
        read(source, "data.train")
    documents = read(replace(source, skip_invalid=True), "data.train")
    assert len(documents) == 4
    assert documents.skipped.rows == 1
    assert "row 2 of" in documents.skipped.first and "half of a character" in documents.skipped.first


TWICE = [
    '{"m": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "content": "c"}]}',
    '{"m": [{"role": "user", "content": "a"}, {"role": "assistant", "role": "user", "content": "b"}]}',
    '{"m": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0, "weight": 1}]}',
    '{"m": [{"role": "user", "content": [{"type": "text", "text": "a", "text": "b"}]}]}',
    '{"m": [], "m": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
]
"""Chats in which a name stands twice, so that no one knows what was said."""


@pytest.mark.parametrize("line", TWICE)
def test_a_chat_in_which_a_name_stands_twice_is_named_or_left_out_and_counted(
    tmp_path: Path, refused: Refused, line: str
) -> None:
    path = write(tmp_path / "m.jsonl", [GOOD])
    path.write_text(f"{path.read_text()}{line}\n")
    source = Source("jsonl", str(path), messages="m")
    with refused(DataError, "data.train.messages", "line 2 of", "stands", "twice"):
        read(source, "data.train")
    found = read(replace(source, skip_invalid=True), "data.train")
    assert (len(found), found.skipped.rows) == (2, 1) and "row 2 of" in found.skipped.first


def test_what_is_not_read_of_a_message_may_stand_twice(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(
        '{"m": [{"role": "user", "content": "a", "id": 1, "id": 2}, {"role": "assistant", "content": "b"}]}'
    )
    assert list(read(Source("jsonl", str(path), messages="m"), "data.train").texts()) == ["b"]


def test_a_source_of_which_nothing_is_left_is_refused(
    strict_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, refused: Refused
) -> None:
    source = Source("jsonl", str(write(tmp_path / "m.jsonl", [BROKEN])), messages="m", skip_invalid=True)
    with refused(DataError, "no chat is left", "row 1 of"):
        corpus(strict_tokenizer, read(source, "data.train"), 128, "pad")
    source = Source("jsonl", str(write(tmp_path / "n.jsonl", [{"m": "hi"}])), messages="m", skip_invalid=True)
    with refused(DataError, "no row is left", "row 1 of"):
        read(source, "data.train")


def test_a_run_says_how_many_rows_it_leaves_out_and_who_is_unknown(
    tmp_path: Path, strict_tokenizer: PreTrainedTokenizerBase
) -> None:
    strict_tokenizer.save_pretrained(tmp_path / "speller")
    path = tmp_path / "m.jsonl"
    rows = [*MIXED, spoken("user", "bing", "user", "assistant")]
    path.write_text("".join(json.dumps(row).replace("user 0", f"user {i}") + "\n" for i in range(10) for row in rows))
    train = {"format": "jsonl", "path": str(path), "messages": "m", "skip_invalid": True}
    config = parse_config(
        {
            "data": {"train": train, "held_out": {"share": 0.3}, "length": 128, "packing": "pad"},
            "tokenizer": {"name": "pretrained", "path": str(tmp_path / "speller")},
            "model": {"sizes": SMALLEST},
            "train": {"steps": 1, "batch_size": 2, "precision": "fp32", "validate_sequences": 2, "sample_length": 0},
        }
    )
    shown = io.StringIO()
    Trainer(RunFolder.create(tmp_path / "run", config), TrainingDisplay(Console(file=shown, width=300), 1)).train()
    left_out = [int(count) for count in re.findall(r"(\d+) rows? left out", shown.getvalue())]
    assert sum(left_out) == 20 and "roles must alternate" in shown.getvalue()
    assert shown.getvalue().count("the training chats have roles of which") == 1 and ": bing;" in shown.getvalue()
    told = commands.dlm("eval", tmp_path / "run", "--data", path, "--draws", "4")[1]
    assert "rows left out" in told and "the scored chats have roles of which" in told
