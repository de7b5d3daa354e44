"""Rows that are in no document are counted, once, and a run and an evaluation say how many."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from rich.console import Console
from tokenizers.normalizers import Lowercase
from transformers import PreTrainedTokenizerBase

from dlm.cli.console import TrainingDisplay
from dlm.config import HeldOut, Source
from dlm.data.choosing import misread
from dlm.data.corpus import corpus
from dlm.data.losses import altered_in, losses_of
from dlm.data.reading import read
from dlm.data.run_data import read_run_data
from dlm.errors import DataError
from dlm.settings import parse_config
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer
from tests.support import commands
from tests.support.fixtures import Refused
from tests.support.tiny_models import SMALLEST

TEXTS: list[dict[str, Any]] = [{"text": "a"}, {"text": None}, {"n": 1}, {"text": ""}, {"text": "b"}, {"text": "c"}]


def jsonl(folder: Path, rows: list[dict[str, Any]], **columns: Any) -> Source:
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Source("jsonl", str(folder / "t.jsonl"), **columns)


def said(source: Source, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    documents = read(source, "data.train")
    return list(losses_of("training", documents, corpus(tokenizer, documents, 64, "pad")))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "saved"])
def test_rows_without_text_are_counted(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    """Where the column is missing in a row, null or empty."""
    source = Source(kind, str(tmp_path / f"t.{kind}"))
    cells = [row.get("text") for row in TEXTS]
    match kind:
        case "jsonl":
            source = jsonl(tmp_path, TEXTS)
        case "csv":
            (tmp_path / "t.csv").write_text("n,text\n" + "".join(f"1,{cell or ''}\n" for cell in cells))
        case "parquet":
            pq.write_table(pa.table({"text": cells}), tmp_path / "t.parquet")
        case _:
            Dataset.from_dict({"text": cells}).save_to_disk(tmp_path / "t.saved")
    assert len(read(source, "data.train")) == 3
    assert said(source, byte_tokenizer) == ["3 training rows without text are left out"]


def test_empty_lines_and_files_of_text_are_no_rows_that_lack_something(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt").touch()
    assert not said(Source("text", str(tmp_path), documents="line"), byte_tokenizer)


def test_pairs_without_a_response_are_counted(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    rows: list[dict[str, Any]] = [{"q": "a", "r": "b"}, {"q": "a", "r": None}, {"q": None, "r": "c"}]
    source = jsonl(tmp_path, rows, prompt="q", response="r")
    assert said(source, byte_tokenizer) == ["1 training row without a response is left out"]


@pytest.mark.parametrize("skip", [False, True])
def test_chats_without_an_answer_to_learn_are_counted(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase, skip: bool
) -> None:
    """Every row of a source is in a document, or counted as not valid, or counted as without a response."""
    ask: dict[str, Any] = {"role": "user", "content": "hi"}
    call: dict[str, Any] = {"role": "assistant", "content": None}
    good: dict[str, Any] = {"m": [ask, call, ask, {"role": "assistant", "content": "yes"}]}
    none: list[dict[str, Any]] = [{"m": None}, {}, {"m": []}, {"m": [ask]}, {"m": [ask, call]}]
    none += [{"m": [ask, {"role": "assistant", "content": "no", "weight": 0}]}]
    bad: list[dict[str, Any]] = [{"m": "hi"}, {"m": [{"role": "user"}]}] if skip else []
    documents = read(jsonl(tmp_path, [good, *none, *bad, good], messages="m", skip_invalid=skip), "data.train")
    assert (len(documents), documents.empty, documents.skipped.rows) == (2, 6, len(bad))
    assert documents.rows["row"] == [0, 7 + len(bad)]


def test_what_is_left_out_is_counted_once_when_some_of_the_rest_is_held_out(tmp_path: Path) -> None:
    documents = read(jsonl(tmp_path, TEXTS), "data.train")
    for held_out in (HeldOut("documents", 0.5), HeldOut("tail", 0.5)):
        train, validation = documents.split(held_out)
        assert (train.empty, validation.empty) == (3, 0)  # the head of each text is empty, which is no loss


def test_a_column_that_no_row_has_is_refused_with_those_there_are(tmp_path: Path, refused: Refused) -> None:
    with refused(DataError, "data.train.field", "'txt'", "did you mean text?", "it has text, n"):
        read(jsonl(tmp_path, TEXTS, field="txt"), "data.train")
    with refused(DataError, "data.train.messages", "'m'", "it has text, n"):
        read(jsonl(tmp_path, TEXTS, messages="m"), "data.train")


def test_a_run_and_an_evaluation_say_how_many_rows_have_no_text(tmp_path: Path) -> None:
    train = jsonl(tmp_path, [*({"text": f"text {i}"} for i in range(40)), {"text": None}, {"n": 1}])
    config = parse_config(
        {
            "data": {"train": {"format": "jsonl", "path": train.path}, "held_out": {"share": 0.3}, "length": 16},
            "tokenizer": {"name": "bytes"},
            "model": {"sizes": SMALLEST},
            "train": {"steps": 1, "batch_size": 2, "precision": "fp32", "validate_sequences": 2, "sample_length": 0},
        }
    )
    shown = io.StringIO()
    Trainer(RunFolder.create(tmp_path / "run", config), TrainingDisplay(Console(file=shown, width=300), 1)).train()
    assert shown.getvalue().count("without text") == 1
    assert "2 training rows without text are left out" in shown.getvalue()
    told = commands.dlm("eval", tmp_path / "run", "--data", train.path, "--draws", "4")[1]
    assert "2 scored rows without text are left out" in told


@pytest.mark.parametrize(
    ("path", "format"),
    [("a.jsonl", "jsonl"), ("a.NDJSON.gz", "jsonl"), ("*.csv", "csv"), ("a.txt", None), ("a.md", None), ("a", None)],
)
def test_records_that_are_read_as_plain_text_are_said(path: str, format: str | None) -> None:
    said = [*misread(Source("text", path), "data.train")]
    assert len(said) == (format is not None)
    if format:
        assert f"{path} is read as plain text" in said[0] and f"--set data.train.format={format}" in said[0]
        assert not [*misread(Source(format, path), "data.train")]


def test_texts_by_other_names_that_are_left_out_are_said(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.md").write_text("a note")
    source = Source("text", str(tmp_path))
    assert not [*misread(source, "data.train")]  # they are read
    (tmp_path / "one.txt").write_text("a text")
    (tmp_path / "run.py").write_text("pass")
    (line,) = misread(source, "data.train")
    assert line.startswith(f"data.train: 3 *.md in {tmp_path} are left out beside its *.txt")
    assert not [*misread(Source("text", f"{tmp_path}/*.txt"), "data.train")]


def test_a_run_says_that_it_reads_records_as_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' * 40)
    source = {"format": "text", "path": str(tmp_path / "a.jsonl")}
    keys = {"train": source, "held_out": {"by": "tail", "share": 0.3}, "length": 16}
    config = parse_config({"data": keys, "tokenizer": {"name": "bytes"}})
    assert sum("a.jsonl is read as plain text" in line for line in read_run_data(config, config.tokenizer).losses) == 1


@pytest.mark.parametrize(
    ("documents", "by", "told"), [(10, "tail", 1), (9, "tail", 0), (1, "tail", 0), (40, "documents", 0)]
)
def test_a_run_that_learns_no_documents_end_says_so(tmp_path: Path, documents: int, by: str, told: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"a text of number {number}, the end.\n" for number in range(documents)))
    source = {"format": "text", "path": str(path), "documents": "line"}
    keys = {"train": source, "held_out": {"by": by, "share": 0.3}, "length": 16}
    config = parse_config({"data": keys, "tokenizer": {"name": "bytes"}})
    said = [line for line in read_run_data(config, config.tokenizer).losses if "no document's end is learned" in line]
    assert len(said) == told and all(f"each of {documents} documents" in line and "30%" in line for line in said)


def test_characters_that_the_tokenizer_does_not_know_are_told(tmp_path: Path) -> None:
    """The characters are those of the training text alone."""
    (tmp_path / "train.txt").write_text("abc " * 40)
    (tmp_path / "other.txt").write_text("abc xyz " * 20)
    tree: dict[str, Any] = {
        "data": {
            "train": {"format": "text", "path": str(tmp_path / "train.txt")},
            "validation": {"format": "text", "path": str(tmp_path / "other.txt")},
            "length": 8,
        },
        "tokenizer": {"name": "characters"},
    }
    config = parse_config(tree)
    (told,) = read_run_data(config, config.tokenizer).losses
    assert told.startswith("60 of the 161 validation tokens stand for characters that the tokenizer does not know")


def test_a_tokenizer_that_changes_its_texts_is_told(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    documents = read(jsonl(tmp_path, [{"text": "all small"}, {"text": "and One Capital"}]), "data.train")
    assert [*altered_in("training", documents.texts(), byte_tokenizer)] == []
    uncased = copy.deepcopy(byte_tokenizer)
    uncased.backend_tokenizer.normalizer = Lowercase()
    (told,) = altered_in("training", documents.texts(), uncased)
    assert "of 'and One Capital' it keeps 'and one capital'" in told
    assert [*altered_in("training", documents.first(1).texts(), uncased)] == []
