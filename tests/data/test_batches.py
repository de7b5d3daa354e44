"""Every token is in one place of one row, and the order is a pure function of the seed and the step."""

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from dlm.data.batches import Batch, Sequences, TrainingBatches
from dlm.data.tokens import Tokens
from dlm.errors import DataError
from dlm.model.text import decode, encode
from dlm.model.tokenizer import fingerprint
from tests.support.corpora import PAD, counted
from tests.support.fixtures import Refused

END = 998
DOCUMENTS = ["hello", "", "a", "caf\u00e9 \U0001f600", "x" * 23]


def of(documents: Dataset, tokenizer: PreTrainedTokenizerBase, calls: list[int]) -> Tokens:
    def counting(texts: list[str]) -> list[list[int]]:
        calls.append(len(texts))
        return encode(tokenizer, texts)

    assert tokenizer.eos_token_id is not None
    return Tokens.of(documents, counting, int(tokenizer.eos_token_id), len(tokenizer), fingerprint(tokenizer))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("x0_BL", "loss_mask_BL", "document_BL"))


# Tokens


def test_each_document_is_in_the_stream_and_its_end_after_it(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    documents = Dataset.from_dict({"text": DOCUMENTS})
    tokens = of(documents, byte_tokenizer, [])
    ends = tokens.offsets[1:] - 1
    assert (tokens.ids[ends] == byte_tokenizer.eos_token_id).all()
    spans = zip(tokens.offsets[:-1].tolist(), ends.tolist(), strict=True)
    assert [decode(byte_tokenizer, tokens.ids[a:b].tolist()) for a, b in spans] == DOCUMENTS
    assert tokens.sizes.tolist() == [len(text.encode()) for text in DOCUMENTS]
    assert len(tokens) == sum(len(text.encode()) + 1 for text in DOCUMENTS)


def test_more_documents_than_one_piece_of_work(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [f"number {i}" for i in range(600)]
    tokens = of(Dataset.from_dict({"text": texts}), byte_tokenizer, [])
    whole = decode(byte_tokenizer, np.asarray(tokens.ids).tolist())
    assert whole.split(byte_tokenizer.eos_token)[:-1] == texts


def test_the_second_time_is_read_from_the_cache(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    documents, calls = Dataset.from_dict({"text": ["second time", "b"]}), list[int]()
    first = of(documents, byte_tokenizer, calls)
    once = list(calls)
    second = of(documents, byte_tokenizer, calls)
    assert once and calls == once
    assert all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ("ids", "offsets", "sizes"))


def test_other_documents_or_another_tokenizer_are_not_mixed_up(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    a, b = (Dataset.from_dict({"text": [text]}) for text in ("abc", "abd"))
    ids = [of(documents, byte_tokenizer, []).ids.tolist() for documents in (a, b)]
    shifted = Tokens.of(
        a, lambda texts: [[ord(c) + 1 for c in text] for text in texts], END, 1000, "another"
    ).ids.tolist()
    assert ids[0] != ids[1]
    assert shifted == [98, 99, 100, END]


@pytest.mark.parametrize("name", ["ids", "offsets", "sizes", "given", "sums"])
@pytest.mark.parametrize("keep", [0, 40, 130])
def test_a_cut_cache_file_is_made_anew(
    byte_tokenizer: PreTrainedTokenizerBase, quiet_machine: Path, name: str, keep: int
) -> None:
    documents, calls = Dataset.from_dict({"text": [f"cut {name} {keep}", "and more of it"]}), list[int]()
    before = set((quiet_machine / "dlm").glob("*")) if (quiet_machine / "dlm").exists() else set()
    expected = of(documents, byte_tokenizer, calls).ids.tolist()
    (folder,) = set((quiet_machine / "dlm").glob("*")) - before
    file = folder / f"{name}.npy"
    file.write_bytes(file.read_bytes()[:keep])
    again = of(documents, byte_tokenizer, calls)
    assert len(calls) == 2
    assert again.ids.tolist() == expected
    assert {path.name for path in folder.iterdir()} == {
        f"{part}.npy" for part in ("ids", "offsets", "sizes", "given", "sums")
    }


@pytest.mark.parametrize("name", ["ids", "offsets", "sizes"])
def test_a_cache_file_of_the_right_size_and_the_wrong_content_is_made_anew(
    byte_tokenizer: PreTrainedTokenizerBase, quiet_machine: Path, name: str
) -> None:
    documents = Dataset.from_dict({"text": [f"damaged {name}", "and more of it"]})
    expected = of(documents, byte_tokenizer, [])
    values = {part: np.array(getattr(expected, part)) for part in ("ids", "offsets", "sizes")}
    file = max((quiet_machine / "dlm").glob(f"*/{name}.npy"), key=lambda path: path.stat().st_mtime_ns)
    raw = bytearray(file.read_bytes())
    raw[-8] ^= 1
    file.write_bytes(raw)
    calls = list[int]()
    again = of(documents, byte_tokenizer, calls)
    assert calls == [2]
    assert all(np.array_equal(getattr(again, part), value) for part, value in values.items())


def test_offsets_of_nothing_are_made_anew(byte_tokenizer: PreTrainedTokenizerBase, quiet_machine: Path) -> None:
    documents, calls = Dataset.from_dict({"text": ["offsets of nothing"]}), list[int]()
    expected = of(documents, byte_tokenizer, calls).offsets.tolist()
    file = max((quiet_machine / "dlm").glob("*/offsets.npy"), key=lambda path: path.stat().st_mtime_ns)
    np.save(file, np.zeros(0, dtype=np.int64))
    assert of(documents, byte_tokenizer, calls).offsets.tolist() == expected
    assert len(calls) == 2


def test_work_that_breaks_off_leaves_no_files(quiet_machine: Path) -> None:
    def interrupted(texts: list[str]) -> list[list[int]]:
        raise KeyboardInterrupt

    files = {path for path in quiet_machine.rglob("*") if path.is_file()}
    with pytest.raises(KeyboardInterrupt):
        Tokens.of(Dataset.from_dict({"text": ["broken off"]}), interrupted, END, 1000, "interrupted")
    assert {path for path in quiet_machine.rglob("*") if path.is_file()} == files


def test_a_large_vocabulary_keeps_its_large_ids() -> None:
    documents = Dataset.from_dict({"text": ["wide"]})
    tokens = Tokens.of(documents, lambda texts: [[70_000, 2**17] for _ in texts], 65_536, 2**17 + 1, "wide")
    assert tokens.ids.tolist() == [70_000, 2**17, 65_536]


# Rows


@pytest.mark.parametrize("length", [1, 4, 7, 13, 50])
def test_packed_rows_hold_every_token_once_and_in_order(length: int) -> None:
    tokens = counted([5, 1, 3, 10, 2])
    sequences = Sequences(tokens, length, "pack", PAD)
    batch = sequences.batch(range(len(sequences)))
    assert batch.x0_BL[batch.loss_mask_BL].tolist() == list(range(21))
    assert (batch.x0_BL[~batch.loss_mask_BL] == PAD).all()
    assert batch.x0_BL.shape == (len(sequences), length)
    assert batch.loss_mask_BL[:-1].all()  # only the last row may be short
    assert (sequences.dropped_tokens, sequences.cut_documents, sequences.learned_tokens) == (0, 0, 21)


@pytest.mark.parametrize("length", [1, 4, 7, 50])
def test_padded_rows_begin_with_their_document(length: int) -> None:
    sizes = [5, 1, 3, 10, 2]
    sequences = Sequences(counted(sizes), length, "pad", PAD)
    batch = sequences.batch(range(len(sequences)))
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    for row, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        kept = min(size, length)
        assert batch.x0_BL[row].tolist() == [*range(start, start + kept), *[PAD] * (length - kept)]
        assert batch.document_BL[row].tolist() == [row] * kept + [-1] * (length - kept)
    assert torch.equal(batch.loss_mask_BL, batch.document_BL >= 0)
    assert int(batch.loss_mask_BL.sum()) == sequences.learned_tokens == sum(sizes) - sequences.dropped_tokens
    assert sequences.cut_documents == sum(size > length for size in sizes)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_packed_tokens_know_their_document(offset: int) -> None:
    sizes = [5, 1, 3, 10, 2]
    owner = np.repeat(np.arange(5), sizes)
    batch = Sequences(counted(sizes), 4, "pack", PAD).batch([0, 2, 4], offset)
    assert torch.equal(batch.document_BL >= 0, batch.loss_mask_BL)
    places = batch.x0_BL[batch.loss_mask_BL].numpy()  # an id is its own place in the stream
    assert batch.document_BL[batch.loss_mask_BL].tolist() == owner[places].tolist()
    assert [int(row[0]) for row in batch.x0_BL] == [offset, offset + 8, offset + 16]


# Training


@pytest.mark.parametrize("packing", ["pack", "pad"])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 64])
def test_an_epoch_visits_each_row_once(packing: Literal["pack", "pad"], batch_size: int) -> None:
    sequences = Sequences(counted([9, 4, 7, 30, 2, 11]), 4, packing, PAD)
    batches = TrainingBatches(sequences, batch_size, seed=1)
    epochs, steps = 3, -(-3 * batches.rows // batch_size)
    rows = torch.cat([batches.batch(step, range(batch_size)).x0_BL for step in range(1, steps + 1)])
    for epoch in range(epochs):
        part = rows[epoch * batches.rows : (epoch + 1) * batches.rows]
        starts = Counter(part[:, 0].tolist())
        assert max(starts.values()) == 1 and len(starts) == batches.rows
        if packing == "pack":
            assert len(set(part.flatten().tolist())) == part.numel()  # no token twice, none of them padding
            assert PAD not in part
        else:
            assert sorted(starts) == [0, 9, 13, 20, 50, 52]


def test_packed_epochs_together_reach_every_token() -> None:
    sequences = Sequences(counted([60, 3]), 8, "pack", PAD)
    batches = TrainingBatches(sequences, 6, seed=0)
    seen = torch.cat([batches.batch(step, range(6)).x0_BL for step in range(1, 150)]).flatten().tolist()
    assert set(seen) == set(range(63))


def test_a_step_is_a_pure_function_of_the_seed_and_the_step() -> None:
    sequences = Sequences(counted([40, 41, 42]), 5, "pack", PAD)
    a, b, other = (TrainingBatches(sequences, 7, seed) for seed in (3, 3, 4))
    forward = [a.batch(step, range(7)) for step in range(1, 12)]
    backward = [b.batch(step, range(7)) for step in range(11, 0, -1)][::-1]
    assert all(same(x, y) for x, y in zip(forward, backward, strict=True))
    assert not all(same(x, other.batch(step, range(7))) for step, x in enumerate(forward, 1))
    assert not same(forward[0], forward[1])


@pytest.mark.parametrize("packing", ["pack", "pad"])
@pytest.mark.parametrize("total", [4, 10, 40])
def test_the_parts_of_a_batch_are_the_parts_of_the_whole(packing: Literal["pack", "pad"], total: int) -> None:
    sequences = Sequences(counted([9, 4, 7, 30, 2, 11]), 4, packing, PAD)
    batches = TrainingBatches(sequences, total, seed=0)
    for step in range(1, 9):
        whole = batches.batch(step, range(total))
        halves = [batches.batch(step, range(start, start + total // 2)) for start in (0, total // 2)]
        for name in ("x0_BL", "loss_mask_BL", "document_BL"):
            assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(whole, name))


def test_epochs_have_orders_of_their_own() -> None:
    batches = TrainingBatches(Sequences(counted([1] * 50), 1, "pad", PAD), 50, seed=0)
    first, second = (batches.batch(step, range(50)).x0_BL[:, 0].tolist() for step in (1, 2))
    assert first != second != list(range(50)) != first
    assert sorted(first) == sorted(second) == list(range(50))


@pytest.mark.parametrize("tokens", [4, 5, 7, 8, 9, 11, 12])
def test_every_row_of_a_little_text_is_full(tokens: int) -> None:
    batches = TrainingBatches(Sequences(counted([tokens]), 4, "pack", PAD), 3, seed=0)
    for step in range(1, 20):
        assert batches.batch(step, range(3)).loss_mask_BL.all()


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_less_text_than_a_row_is_refused(refused: Refused, tokens: int) -> None:
    with refused(DataError, f"{tokens} tokens", "data.length 4"):
        TrainingBatches(Sequences(counted([tokens]), 4, "pack", PAD), 1, seed=0)
