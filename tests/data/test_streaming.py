"""A stream gives every token once an epoch, to one process alone, and goes on from where it stood."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor

from dlm.config import Data, HeldOut, Source
from dlm.data.documents import Plain
from dlm.data.reading import read
from dlm.data.streaming import Stream, open_stream
from dlm.data.streaming_batches import StreamingBatches
from dlm.errors import ConfigError, DataError, DlmError
from dlm.settings import parse_config
from tests.support.fixtures import Refused

END, PAD = 256, 257
LENGTH = 8


def documents(count: int, shards: int = 4) -> tuple[list[str], IterableDataset]:
    """Texts that are all different, of 3 to 7 bytes, so that none fills two rows."""
    texts = [f"{i:03d}" + "x" * (i * 7 % 5) for i in range(count)]
    return texts, Dataset.from_dict({"text": texts}).to_iterable_dataset(num_shards=shards)


def batches(stream: IterableDataset, **keys: Any) -> StreamingBatches:
    def spell(texts: list[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    given = {"length": LENGTH, "packing": "pack", "buffer": 5, "seed": 0, **keys}
    opened = Stream("texts", stream, bool, Plain(Dataset.from_dict({"text": ["-"]})))
    return StreamingBatches(opened, spell, END, PAD, **given)


def take(source: StreamingBatches, steps: int, size: int = 3) -> list[Tensor]:
    return [source.batch(step, range(size)).x0_BL for step in range(steps)]


@pytest.mark.parametrize("buffer", [1, 5, None])
def test_every_token_comes_once_an_epoch(buffer: int | None) -> None:
    texts, stream = documents(60)
    stream_L = [id_ for text in texts for id_ in [*text.encode(), END]]
    rows = len(stream_L) // LENGTH
    whole = Counter(tuple(stream_L[i * LENGTH : (i + 1) * LENGTH]) for i in range(rows))
    # A block is filled over the end of an epoch, so only whole blocks within it can be told apart.
    buffer = buffer or rows
    blocks = rows // buffer * buffer
    found = [tuple(row.tolist()) for row in torch.cat(take(batches(stream, buffer=buffer), blocks, 1))]
    assert len(found) == blocks > 0 and not Counter(found) - whole
    if buffer in (1, rows):
        assert Counter(found) == whole


def test_the_next_epoch_goes_on_where_the_last_ended_in_another_order() -> None:
    """What was too little for a row is the beginning of the next epoch's first."""
    texts, stream = documents(30)
    stream_L = [id_ for text in texts for id_ in [*text.encode(), END]] * 3
    source = batches(stream, buffer=1)
    rows = torch.cat(take(source, 2 * len(stream_L) // 3 // LENGTH, 1))
    assert rows.flatten().tolist() == stream_L[: rows.numel()]
    shuffled = torch.cat(take(batches(stream, buffer=20), 20, 1))
    assert not torch.equal(shuffled, rows[:20])
    assert Counter(map(tuple, shuffled.tolist())) == Counter(map(tuple, rows[:20].tolist()))
    other = torch.cat(take(batches(stream, buffer=20, seed=1), 20, 1))
    assert not torch.equal(shuffled, other)


@pytest.mark.parametrize("shards", [1, 2, 4, 5])
def test_processes_share_the_documents_out(shards: int) -> None:
    texts, stream = documents(40, shards)
    found = []
    for process in range(2):
        source = batches(stream, packing="pad", length=16, buffer=1, process=process, processes=2)
        mine: Counter[str] = Counter()
        while True:
            row = source.batch(1, [0]).x0_BL[0].tolist()
            text = bytes(row[: row.index(END)]).decode()
            if text in mine:
                break
            mine[text] += 1
        found.append(set(mine))
    assert found[0].isdisjoint(found[1]) and found[0] | found[1] == set(texts)


@pytest.mark.parametrize("packing", ["pack", "pad"])
@pytest.mark.parametrize("buffer", [1, 4, 50])
@pytest.mark.parametrize("process", [0, 1])
def test_a_stream_goes_on_from_where_it_stood(packing: str, buffer: int, process: int) -> None:
    _, stream = documents(40)
    keys = {"packing": packing, "buffer": buffer, "process": process, "processes": 2}
    whole = take(batches(documents(40)[1], **keys), 30)
    for stop in (0, 1, 2, 7, 13, 22):
        first = batches(stream, **keys)
        before = take(first, stop)
        state = json.loads(json.dumps(first.state()))
        again = batches(documents(40)[1], **keys)
        again.restore([state, state])  # each process looks at its own
        assert json.loads(json.dumps(again.state())) == state
        for mine, expected in zip(before + take(again, 30 - stop), whole, strict=True):
            assert torch.equal(mine, expected)


def test_a_stream_is_not_read_again_from_block_to_block() -> None:
    """As many documents are read as there are, not those before each block once more."""
    read_so_far = []

    def counted() -> Iterator[dict[str, str]]:
        for i in range(100):
            read_so_far.append(i)
            yield {"text": "7 bytes"}

    source = batches(IterableDataset.from_generator(counted), buffer=4)
    take(source, 100, 1)
    assert read_so_far == list(range(100))


def test_only_what_is_needed_is_read() -> None:
    read_so_far = []

    def endless() -> Iterator[dict[str, str]]:
        for i in range(10**9):
            read_so_far.append(i)
            yield {"text": "ten bytes."}

    source = batches(IterableDataset.from_generator(endless), buffer=4)
    assert read_so_far == []
    take(source, 4, 1)
    assert len(read_so_far) <= 5  # 4 rows of 8 from documents of 11


def test_padding_is_not_learned_and_documents_are_told_apart() -> None:
    batch = batches(documents(10)[1], packing="pad", length=16, buffer=2).batch(1, range(6))
    assert torch.equal(batch.loss_mask_BL, batch.x0_BL != PAD)
    assert torch.equal(batch.document_BL >= 0, batch.loss_mask_BL)
    for row in range(6):
        assert len(set(batch.document_BL[row][batch.loss_mask_BL[row]].tolist())) == 1
    packed = batches(documents(10)[1], buffer=2).batch(1, range(4))
    ends_BL = packed.x0_BL[:, :-1] == END
    assert torch.equal(packed.document_BL[:, 1:] - packed.document_BL[:, :-1], ends_BL.long())


# Where the documents come from


def rows() -> list[str]:
    return [f"line {i}" for i in range(200)] + ["", "the last"]


def sources(folder: Path) -> dict[str, Source]:
    texts = rows()
    table = Dataset.from_dict({"body": texts, "id": list(range(len(texts)))})
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text("\n".join(texts[:100]), encoding="utf-8")
    (folder / "text" / "b.txt").write_text("\n".join(texts[100:]), encoding="utf-8")
    table.to_json(folder / "rows.jsonl")
    table.to_csv(folder / "rows.csv")
    table.to_parquet(folder / "rows.parquet")
    table.save_to_disk(str(folder / "saved"))
    return {
        "text": Source("text", str(folder / "text"), documents="line"),
        "jsonl": Source("jsonl", str(folder / "rows.jsonl"), "body"),
        "csv": Source("csv", str(folder / "rows.csv"), "body"),
        "parquet": Source("parquet", str(folder / "rows.parquet"), "body"),
        "saved": Source("saved", str(folder / "saved"), "body"),
    }


@pytest.mark.parametrize("name", ["text", "jsonl", "csv", "parquet", "saved"])
def test_a_stream_holds_the_documents_of_its_source(name: str, tmp_path: Path) -> None:
    source = sources(tmp_path)[name]
    stream = open_stream(Data(source, held_out=HeldOut(share=0.2), streaming=True))
    held_out = set(stream.validation.texts())
    trained = [row["text"] for row in stream.train if stream.wanted(row["text"])]
    assert sorted([*trained, *held_out]) == sorted(read(source, "data.train").texts())
    assert held_out and held_out.isdisjoint(trained)
    assert list(stream.beginning()) == trained


def test_a_validation_source_leaves_the_whole_stream_to_train_on(tmp_path: Path) -> None:
    found = sources(tmp_path)
    stream = open_stream(Data(found["jsonl"], validation=found["text"], streaming=True))
    assert sum(stream.wanted(row["text"]) for row in stream.train) == len([row for row in rows() if row])


def test_the_standard_library_streams() -> None:
    stream = open_stream(Data(Source("python-stdlib"), streaming=True))
    assert "def " in next(stream.beginning())


# What is refused


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"train": {"format": "text", "path": "nowhere.txt"}}, DataError, ("data.train", "nowhere.txt")),
        ({"train": {"format": "txet", "path": "x"}}, ConfigError, ("data.train.format", "text")),
        ({"train": {"format": "text"}}, ConfigError, ("data.train.path",)),
        ({"train": {"format": "jsonl", "path": "rows.jsonl"}}, DataError, ("data.train.field", "'text'", "body, id")),
        (
            {"train": {"format": "jsonl", "path": "rows.jsonl", "field": "id"}},
            DataError,
            ("data.train.field", "0, not"),
        ),
        ({"train": {"format": "jsonl", "path": "broken.jsonl"}}, DataError, ("data.train", "broken.jsonl")),
        ({"train": {"format": "text", "path": "empty.txt", "documents": "line"}}, DataError, ("empty.txt",)),
        ({"train": {"format": "text", "path": "empty.txt"}}, ConfigError, ("data.train.documents", "line")),
        ({"train": {"format": "jsonl", "path": "empty.txt"}}, DataError, ("data.train", "empty.txt")),
        ({"train": {"format": "jsonl", "path": "mixed.jsonl"}}, DataError, ("data.train", "mixed.jsonl", "7")),
        ({"train": {"format": "text", "path": "binary.txt", "documents": "line"}}, DataError, ("binary.txt", "UTF-8")),
        (
            {"train": {"format": "jsonl", "path": "rows.jsonl", "field": "body"}, "held_out": {"by": "tail"}},
            ConfigError,
            ("data.held_out.by", "stream"),
        ),
        (
            {"train": {"format": "jsonl", "path": "rows.jsonl", "field": "body"}, "held_out": {"share": 0.0}},
            DataError,
            ("data.held_out", "share"),
        ),
    ],
)
def test_what_cannot_be_streamed(
    refused: Refused, changes: dict[str, Any], kind: type[DlmError], words: tuple[str, ...], tmp_path: Path
) -> None:
    sources(tmp_path)
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    (tmp_path / "mixed.jsonl").write_text('{"text": null}\n{"text": 7}\n', encoding="utf-8")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    train = dict(changes["train"])
    if "path" in train:
        train["path"] = str(tmp_path / train["path"])
    config = parse_config({"data": {**changes, "train": train, "streaming": True}})
    with refused(kind, *words):
        stream = open_stream(config.data)
        list(stream.train)


def test_prompts_cannot_be_streamed(refused: Refused) -> None:
    source = {"format": "jsonl", "path": "x", "prompt": "p", "response": "r"}
    with refused(ConfigError, "streaming", "prompts"):
        parse_config({"data": {"train": source, "streaming": True, "packing": "pad"}})


def test_a_stream_of_nothing_is_refused(refused: Refused) -> None:
    _, stream = documents(1, 1)
    with refused(DataError, "no text", "fewer processes"):
        take(batches(stream, process=1, processes=2), 1)


def test_another_number_of_processes_is_refused(refused: Refused) -> None:
    places = [batches(documents(10)[1], process=i, processes=2).state() for i in range(2)]
    with refused(ConfigError, "2 processes", "got 1"):
        batches(documents(10)[1]).restore(places)
