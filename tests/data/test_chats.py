"""Chats in the usual shapes are the same chats, and what is no chat is named by its place."""

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from transformers import PreTrainedTokenizerBase

from dlm.config import HeldOut, Source
from dlm.data.chats import messages_of
from dlm.data.corpus import corpus
from dlm.data.losses import losses_of, odd_roles
from dlm.data.reading import read
from dlm.errors import ConfigError, DataError
from dlm.model.text import decode
from dlm.settings import parse_config
from tests.support.fixtures import Refused

SAID: list[dict[str, Any]] = [
    {"role": role, "content": text} for role, text in (("system", "s"), ("user", "q"), ("assistant", "a"))
]
SHAREGPT = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def rows(source: Source) -> list[tuple[str, list[dict[str, str]]]]:
    """Each message that is learned, and those before it."""
    found = read(source, "data.train").rows
    return [(text, json.loads(before)) for text, before in zip(found["text"], found["messages"], strict=True)]


def jsonl(folder: Path, chats: list[Any]) -> Source:
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    return Source("jsonl", str(path), messages="messages")


@pytest.mark.parametrize(
    "chat",
    [
        SAID,
        SHAREGPT,
        json.dumps(SAID),
        [{**message, "name": None} for message in SAID],
        [*SAID[:2], {**SAID[2], "name": "me", "weight": 1, "tags": ["a"]}],
        [*SAID[:2], {"role": "assistant", "content": [{"type": "text", "text": "a"}]}],
    ],
)
def test_the_usual_shapes_are_the_same_chat(tmp_path: Path, chat: Any) -> None:
    assert messages_of(chat) == SAID
    assert rows(jsonl(tmp_path, [chat])) == [("a", SAID[:2])]


def test_messages_may_have_different_keys(tmp_path: Path) -> None:
    """For such a column, datasets hands over lists of another type; one chat has a key more, in one message alone."""
    source = jsonl(tmp_path, [SAID, [{**SAID[1], "name": "me"}, SAID[2]], None, SHAREGPT])
    assert rows(source) == [("a", SAID[:2]), ("a", SAID[1:2]), ("a", SAID[:2])]


@pytest.mark.parametrize("column", ["chat", "messages", "text"])
@pytest.mark.parametrize("as_json", [False, True])
def test_chats_in_a_table_with_types(tmp_path: Path, as_json: bool, column: str) -> None:
    chats: list[Any] = [SAID, [{**SAID[1], "weight": 1}, {**SAID[2], "weight": 0}], SHAREGPT]
    pq.write_table(
        pa.Table.from_pylist([{column: json.dumps(chat) if as_json else chat} for chat in chats]),
        tmp_path / "t.parquet",
    )
    assert rows(Source("parquet", str(tmp_path / "t.parquet"), messages=column)) == [("a", SAID[:2])] * 2


def test_chats_that_datasets_reads_as_lists_of_any_type(tmp_path: Path) -> None:
    """As it does for JSON lines on the Hub, where one message has a key more."""
    source = jsonl(tmp_path, [SAID, [{**SAID[1], "name": "me"}, SAID[2]]])
    load_dataset("json", data_files=source.path, split="train").save_to_disk(tmp_path / "saved")
    assert rows(Source("saved", str(tmp_path / "saved"), messages="messages")) == [("a", SAID[:2]), ("a", SAID[1:2])]


def test_a_message_of_weight_0_is_seen_and_not_learned(tmp_path: Path) -> None:
    chat = [SAID[1], {**SAID[2], "weight": 0}, {"role": "user", "content": "more"}, {**SAID[2], "content": "b"}]
    expected = [{"role": message["role"], "content": message["content"]} for message in chat]
    assert rows(jsonl(tmp_path, [chat])) == [("b", expected[:3])]


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ("not JSON", ["{role, content}", "not JSON"]),
        ({"role": "user"}, ["{role, content}"]),
        ([{"role": "user"}], ["{role, content} or {from, value}", "{'role': 'user'}"]),
        ([{"from": "human", "text": "x"}], ["{from, value}"]),
        ([{"role": 7, "content": "x"}], ["both of them text"]),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], ["both of them text", "image_url"]),
        ([{**SAID[2], "weight": 0.5}], ["0 or 1", "0.5"]),
        (["hello"], ["'hello'"]),
    ],
)
def test_what_is_no_chat_is_named_by_its_line(tmp_path: Path, refused: Refused, chat: Any, words: list[str]) -> None:
    with refused(DataError, "data.train.messages", "line 2 of", "'messages'", *words):
        read(jsonl(tmp_path, [SAID, chat]), "data.train")


def test_roles_that_the_template_does_not_know_are_told_once(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    """ShareGPT's own names are translated where they stand under `from`, and there alone."""
    odd = [{"role": "human", "content": "q"}, {"role": "bing", "content": "b"}, SAID[2]]
    documents = read(jsonl(tmp_path, [SAID, odd, SHAREGPT, odd]), "data.train")
    assert documents.roles == ("bing", "human") and len(documents) == 4
    plain, knowing = copy.deepcopy(byte_tokenizer), copy.deepcopy(byte_tokenizer)
    plain.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    knowing.chat_template = (
        "{% for m in messages %}{% if m.role in ('human', \"bing\") %}{{ m.content }}{% endif %}{% endfor %}"
    )
    (told,) = odd_roles("training", documents, plain)
    assert "the training chats" in told and "does not speak: bing, human;" in told
    assert [*odd_roles("training", documents, knowing)] == []
    assert [*odd_roles("training", read(jsonl(tmp_path, [SAID, SHAREGPT]), "data.train"), plain)] == []
    with_many = [[{"role": f"r{i}", "content": "x"}, SAID[2]] for i in range(7)]
    (told,) = odd_roles("training", read(jsonl(tmp_path, with_many), "data.train"), plain)
    assert "r0, r1, r2, r3, r4 and 2 more;" in told


def test_chats_without_an_answer_say_who_speaks(tmp_path: Path, refused: Refused) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "model", "content": "a"}]
    with refused(DataError, "data.train.messages", "no chat", "model, user"):
        read(jsonl(tmp_path, [chat]), "data.train")


# Calls of tools

CALL = {"type": "function", "id": "c1", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
TOLD = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}<{{ c.function.name }} {{ c.function.arguments.city }}>{% endfor %}"
    "{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %}{% if m.name %}@{{ m.name }}{% endif %};{% endfor %}"
)


def called(**call: Any) -> list[dict[str, Any]]:
    """A chat with a call, which is `call`, its result and an answer."""
    return [
        SAID[1],
        {"role": "assistant", **call},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "rain"},
        SAID[2],
    ]


@pytest.mark.parametrize("calls", [CALL["function"], [CALL, CALL]])
def test_a_call_in_a_chat_of_sharegpt_is_one(calls: Any) -> None:
    said = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": json.dumps(calls)},
        {"from": "observation", "value": "rain"},
        {"from": "function_call", "value": "no JSON of a call"},
    ]
    assert messages_of(said) == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": calls if isinstance(calls, list) else [calls]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "no JSON of a call"},
    ]
    with pytest.raises(DataError, match="must name the tool of each call"):
        messages_of([{"from": "function_call", "value": "{}"}])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    "call",
    [
        {"content": None, "tool_calls": [CALL]},
        {"tool_calls": [CALL]},
        {"content": "", "tool_calls": json.dumps([CALL])},
        {"content": None, "tool_calls": [{**CALL, "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}]},
        {"content": None, "function_call": {"name": "weather", "arguments": '{"city": "Bern"}'}},
    ],
)
def test_a_call_of_a_tool_is_seen_by_what_follows_and_counted(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase, kind: str, call: dict[str, Any]
) -> None:
    chats = [called(**call), [{**SAID[1], "name": "me"}, {**SAID[2], "tool_calls": None}]]
    source = jsonl(tmp_path, chats)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([{"m": chat} for chat in chats]), tmp_path / "t.parquet")
        source = Source("parquet", str(tmp_path / "t.parquet"), messages="m")
    documents = read(source, "data.train")
    byte_tokenizer.chat_template = TOLD
    try:
        sequences = corpus(byte_tokenizer, documents, 64, "pad")
    finally:
        byte_tokenizer.chat_template = None
    tokens = sequences.tokens
    prompts = [tokens.ids[start : start + given] for start, given in zip(tokens.offsets, tokens.given, strict=False)]
    assert [decode(byte_tokenizer, ids.tolist()) for ids in prompts] == [
        "user:q;assistant:<weather Bern>;tool:rain#c1@weather;",
        "user:q;",
    ]
    assert list(documents.texts()) == ["a", "a"]
    (line,) = losses_of("training", documents, sequences)
    assert line.startswith("1 training message calls tools") and "not learned" in line


def test_chats_without_tools_are_written_down_as_before(tmp_path: Path) -> None:
    """So that the data of a run that is resumed is the same."""
    chat = [{**message, "name": "me", "tool_calls": None, "tool_call_id": None} for message in SAID]
    found = read(jsonl(tmp_path, [chat, [{**message, "tool_calls": []} for message in SAID]]), "data.train")
    assert found.rows["chat"] == [json.dumps(SAID)] * 2
    assert found.calls == 0


def test_the_calls_of_a_chat_are_counted_once(tmp_path: Path) -> None:
    """With two answers, in a chat that is learned in part, and in one that is not learned at all."""
    chat = called(content="Let me see.", tool_calls=[CALL, CALL])
    documents = read(jsonl(tmp_path, [chat, chat[:2], called(tool_calls=[CALL])[:2]]), "data.train")
    assert (len(documents), documents.calls, documents.empty) == (3, 3, 1)
    train, validation = documents.split(HeldOut("documents", 0.5))
    assert (train.calls, validation.calls) == (3, 0)


def test_chats_that_only_call_tools_say_so(tmp_path: Path, refused: Refused) -> None:
    with refused(DataError, "data.train.messages", "no chat", "a call of a tool has no text to learn"):
        read(jsonl(tmp_path, [called(tool_calls=[CALL])[:2]]), "data.train")


@pytest.mark.parametrize(
    ("calls", "words"),
    [("weather", ["list of calls", "'weather'"]), ([7], ["list of calls", "[7]"]), ([{"id": "x"}], ["name the tool"])],
)
def test_calls_that_cannot_be_read_are_refused(tmp_path: Path, refused: Refused, calls: Any, words: list[str]) -> None:
    with refused(DataError, "data.train.messages", "line 1 of", *words):
        read(jsonl(tmp_path, [called(tool_calls=calls)]), "data.train")


# Prompts of several columns

ALPACA = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Greet.", "input": "", "output": "Hello"},
    {"instruction": "Ask.", "output": "Why?"},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_alpaca(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    path = tmp_path / "t"
    if kind == "jsonl":
        path.write_text(json.dumps(ALPACA), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(ALPACA), path)
    source = Source(kind, str(path), prompt=("instruction", "input"), response="output")
    tokens = corpus(byte_tokenizer, read(source, "data.train"), 64, "pad").tokens
    spans = zip(tokens.offsets[:-1], tokens.offsets[1:] - 1, strict=True)
    found = [decode(byte_tokenizer, tokens.ids[start:end].tolist()) for start, end in spans]
    assert found == ["Add.\n\n1 and 2\n\n3", "Greet.\n\nHello", "Ask.\n\nWhy?"]
    assert tokens.sizes.tolist() == [1, 5, 4]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"prompt": [], "response": "r"}, ["data.train.prompt"]),
        ({"prompt": ["p", "r"], "response": "r"}, ["response", "'r'"]),
        ({"prompt": "r", "response": "r"}, ["response", "'r'"]),
        ({"prompt": [7], "response": "r"}, ["data.train.prompt"]),
    ],
)
def test_columns_of_prompts_that_are_refused(refused: Refused, keys: dict[str, Any], words: list[str]) -> None:
    with refused(ConfigError, *words):
        parse_config({"data": {"train": {"format": "jsonl", "path": "x", **keys}, "packing": "pad"}})
