"""The type of documents follows from the columns that a source names, and says what is learned of each."""

import json
from collections import Counter

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from dlm.config import HeldOut, Source
from dlm.data.corpus import corpus
from dlm.data.documents import Chats, Documents, Pairs, Plain, kept_back, type_of
from dlm.model.text import decode

CHAT = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]
TABLE = Dataset.from_list([{"text": "whole", "q": "ask ", "a": "answer", "m": CHAT}])
SOURCES = {
    Plain: Source("jsonl", "x"),
    Pairs: Source("jsonl", "x", prompt="q", response="a"),
    Chats: Source("jsonl", "x", messages="m"),
}


@pytest.mark.parametrize(
    ("kind", "columns", "texts"),
    [
        (Plain, ["text"], ["whole"]),
        (Pairs, ["prompt", "text"], ["answer"]),
        (Chats, ["chat", "messages", "row", "text"], ["a", "a"]),
    ],
)
def test_a_type_takes_its_columns_from_a_table(kind: type[Documents], columns: list[str], texts: list[str]) -> None:
    assert type_of(SOURCES[kind]) is kind
    documents = kind.of(TABLE, SOURCES[kind], "data.train")
    assert sorted(documents.rows.column_names) == columns
    assert list(documents.texts()) == texts


def test_a_prompt_is_seen_and_not_learned(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    plain, pairs = (kind.of(TABLE, SOURCES[kind], "data.train") for kind in (Plain, Pairs))
    assert corpus(byte_tokenizer, plain, 16, "pad").tokens.given.tolist() == [0]
    tokens = corpus(byte_tokenizer, pairs, 16, "pad").tokens
    assert tokens.given.tolist() == [4]
    assert decode(byte_tokenizer, tokens.ids[:-1].tolist()) == "ask answer"
    assert tokens.sizes.tolist() == [len("answer")]


def test_the_messages_of_a_chat_are_on_the_same_side() -> None:
    chats = [
        [{"role": role, "content": f"{role} {i} {n}"} for n in range(2) for role in ("user", "assistant")]
        for i in range(100)
    ]
    documents = Chats.of(Dataset.from_dict({"m": chats}), SOURCES[Chats], "data.train")
    assert [len(json.loads(before)) for before in documents.rows["messages"]] == [1, 3] * 100
    train, validation = documents.split(HeldOut("documents", 0.5))
    sides = [Counter(side.rows["row"]) for side in (train, validation)]
    assert all(30 < len(side) < 70 and set(side.values()) == {2} for side in sides)
    assert not sides[0].keys() & sides[1].keys()


def test_pairs_with_the_same_response_are_on_both_sides_and_equal_pairs_on_one() -> None:
    """1,000 questions with ten answers: each answer is held out at its share, not all of it or nothing."""
    pairs = [{"q": f"question {i}", "a": str(i % 10)} for i in range(1_000)] * 2
    documents = Pairs.of(Dataset.from_list(pairs), SOURCES[Pairs], "data.train")
    train, validation = documents.split(HeldOut("documents", 0.3))
    assert set(train.texts()) == set(validation.texts()) == set("0123456789")
    assert not set(train.rows["prompt"]) & set(validation.rows["prompt"])
    assert 520 <= len(validation) <= 680 and len(train) + len(validation) == 2_000  # 600 expected


def test_the_border_between_prompt_and_response_counts_and_a_missing_prompt_is_an_empty_one() -> None:
    rows = [{"q": q, "a": a} for i in range(64) for q, a in ((f"{i}", "ab"), (f"{i}a", "b"), (None, f"{i}"))]
    rows += [{"q": "", "a": f"{i}"} for i in range(64)]
    documents = Pairs.of(Dataset.from_list(rows), SOURCES[Pairs], "data.train")
    sides = kept_back(documents.rows["prompt"], documents.rows["text"], share=0.5, wanted=True)
    assert sides[2:192:3] == sides[192:]
    assert sides[0:192:3] != sides[1:192:3]


def test_the_first_documents_are_all_where_there_are_fewer() -> None:
    documents = Plain(Dataset.from_dict({"text": ["a", "", "c"]}))
    assert list(documents.first(2).texts()) == ["a", ""] and len(documents.first(7)) == 3
    assert list(documents.without_empty().texts()) == ["a", "c"]
