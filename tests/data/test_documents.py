"""The type of documents follows from the columns that a source names, and says what is learned of each."""

import json

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from dlm.config import HeldOut, Source
from dlm.data.corpus import corpus
from dlm.data.documents import Chats, Documents, Pairs, Plain, type_of
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
    documents = Chats.of(TABLE, SOURCES[Chats], "data.train")
    assert [len(json.loads(before)) for before in documents.rows["messages"]] == [1, 3]
    train, validation = documents.split(HeldOut("documents", 0.5))
    assert sorted((len(train), len(validation))) == [0, 2]


def test_the_first_documents_are_all_where_there_are_fewer() -> None:
    documents = Plain(Dataset.from_dict({"text": ["a", "", "c"]}))
    assert list(documents.first(2).texts()) == ["a", ""] and len(documents.first(7)) == 3
    assert list(documents.without_empty().texts()) == ["a", "c"]
