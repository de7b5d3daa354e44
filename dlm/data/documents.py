"""The types of documents: plain texts, prompts with responses, and chats."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from dlm.config import HeldOut, Source
from dlm.data.chats import messages_of
from dlm.data.formats import FORMATS, check_columns
from dlm.data.tokens import EncodePrompts
from dlm.errors import DataError
from dlm.model.text import encode, encode_chat


@dataclass(frozen=True)
class Documents(ABC):
    """Documents of one type.

    Attributes:
        rows: A memory-mapped dataset, one document a row. The column `text` is learned and scored in every type.
        empty: How many documents were left out because their texts are empty.
        identity: The column by which a document is held out or not: equal values are on the same side.
    """

    rows: Dataset
    empty: int = 0
    identity: ClassVar[str] = "text"

    @classmethod
    def of(cls, table: Dataset, source: Source, key: str) -> Self:
        """Takes the columns of this type from a table.

        Args:
            table: What a format read.
            source: Names the columns.
            key: Its place in the configuration, for messages.

        Returns:
            The documents, empty ones among them.

        Raises:
            DataError: A column is not there, or does not hold what this type needs.
        """
        wanted = source.columns if FORMATS[source.format].tabular else {"field": ("text",)}
        check_columns(table.column_names, wanted, source.path or source.format, key)
        for option, columns in wanted.items():
            for column in columns:
                kind = getattr(table.features[column], "dtype", "values of several kinds, or parts")
                if kind not in ("string", "large_string") and option != "messages":
                    raise DataError(f"{key}.{option}: {column!r} of {source.path} holds {kind}, not text")
        names = [column for columns in wanted.values() for column in columns]
        return cls(cls._take(table.select_columns(names), wanted, key))

    @classmethod
    @abstractmethod
    def _take(cls, table: Dataset, wanted: Mapping[str, tuple[str, ...]], key: str) -> Dataset:
        """The rows of this type, from the wanted columns."""

    @abstractmethod
    def prompt_encoder(self, tokenizer: PreTrainedTokenizerBase) -> EncodePrompts | None:
        """How what stands before each response is encoded.

        Args:
            tokenizer: The model's.

        Returns:
            A function of columns of `rows`; None where documents have no prompts. The ids that it gives are seen,
            and neither learned nor scored.
        """

    def __len__(self) -> int:
        return len(self.rows)

    def texts(self) -> Iterator[str]:
        """What is learned of each document."""
        for batch in self.rows.iter(batch_size=256):
            yield from batch["text"]

    def first(self, count: int) -> Self:
        """The first so many documents, or all if there are fewer."""
        return replace(self, rows=self.rows.select(range(min(count, len(self)))))

    def without_empty(self) -> Self:
        """The documents that have a text; the others are counted."""
        rows = self.rows.filter(_any_text, batched=True, input_columns="text")
        return replace(self, rows=rows, empty=self.empty + len(self.rows) - len(rows))

    def split(self, held_out: HeldOut) -> tuple[Self, Self]:
        """Keeps a share back.

        Args:
            held_out: Which share.

        Returns:
            What is left to train on and what is kept back, either of which may be empty.
        """
        share = held_out.share
        if held_out.by == "tail":
            parts = [
                self.rows.map(partial(_cut, share=share, tail=tail), batched=True, input_columns="text")
                for tail in (False, True)
            ]
        else:
            parts = [
                self.rows.filter(
                    partial(kept_back, share=share, wanted=back), batched=True, input_columns=self.identity
                )
                for back in (False, True)
            ]
        train, validation = (replace(self, rows=part).without_empty() for part in parts)
        return train, validation


@dataclass(frozen=True)
class Plain(Documents):
    """Texts, each learned and scored as a whole; the only column is `text`."""

    @override
    @classmethod
    def _take(cls, table: Dataset, wanted: Mapping[str, tuple[str, ...]], key: str) -> Dataset:
        return _renamed(table, {wanted["field"][0]: "text"})

    @override
    def prompt_encoder(self, tokenizer: PreTrainedTokenizerBase) -> None:
        return None


@dataclass(frozen=True)
class Pairs(Documents):
    """Prompts and responses: the column `text` is the response, which follows the column `prompt` as it is.

    Of several columns of prompts, those that are not empty are joined, with an empty line after each.
    """

    @override
    @classmethod
    def _take(cls, table: Dataset, wanted: Mapping[str, tuple[str, ...]], key: str) -> Dataset:
        prompts, (response,) = wanted["prompt"], wanted["response"]
        if len(prompts) > 1:
            join = partial(_joined, prompts=prompts, response=response)
            return _made(table, join, ("prompt", "text"))
        return _renamed(table, {prompts[0]: "prompt", response: "text"})

    @override
    def prompt_encoder(self, tokenizer: PreTrainedTokenizerBase) -> EncodePrompts:
        return lambda batch: encode(tokenizer, [prompt or "" for prompt in batch["prompt"]])


@dataclass(frozen=True)
class Chats(Documents):
    """Chats: each message of an assistant is a document, given the messages before it.

    The columns are `text`, the message; `messages`, those before it as JSON, which the tokenizer's chat template
    writes; and `chat`, the whole chat as JSON, so that a chat is held out as a whole.
    """

    identity = "chat"

    @override
    @classmethod
    def _take(cls, table: Dataset, wanted: Mapping[str, tuple[str, ...]], key: str) -> Dataset:
        (column,) = wanted["messages"]
        rows = _made(table, partial(_turns, column=column, key=key), ("text", "messages", "chat"))
        if len(table) and not len(rows):
            chats = (messages_of(chat) for chat in table[:100][column] if chat is not None)
            roles = sorted({message["role"] for chat in chats for message in chat})
            raise DataError(
                f"{key}.messages: no chat in {column!r} has a message of an assistant to learn, after another message; "
                f"its roles are {', '.join(roles) or 'none'}"
            )
        return rows

    @override
    def prompt_encoder(self, tokenizer: PreTrainedTokenizerBase) -> EncodePrompts:
        return lambda batch: [encode_chat(tokenizer, json.loads(before or "[]")) for before in batch["messages"]]


def type_of(source: Source) -> type[Documents]:
    """The type of documents that a source's columns mean."""
    if source.messages is not None:
        return Chats
    return Plain if source.prompt is None else Pairs


def kept_back(texts: list[str], share: float, wanted: bool) -> list[bool]:
    """Whether each document is on the wanted side, which follows from its own text, or chat, alone.

    Args:
        texts: The documents' texts, or chats.
        share: How much is held out.
        wanted: Which side: True for what is held out.

    Returns:
        One answer a text.
    """
    quantiles = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return [(int.from_bytes(q, "little") / 2**64 < share) == wanted for q in quantiles]


def _renamed(table: Dataset, names: Mapping[str, str]) -> Dataset:
    """A table with other names for its columns."""
    return table.rename_columns({column: name for column, name in names.items() if column != name})


def _made(table: Dataset, make: Callable[..., Mapping[str, list[Any]]], columns: Sequence[str]) -> Dataset:
    """Rows of text made of those of a table. Without features, a column would keep the type of its namesake there."""
    features = Features(dict.fromkeys(columns, Value("large_string")))
    return table.map(make, batched=True, with_indices=True, remove_columns=table.column_names, features=features)


def _joined(
    batch: dict[str, list[Any]], rows: list[int], prompts: Sequence[str], response: str
) -> dict[str, list[str | None]]:
    """Prompts made of several columns, and the responses."""
    parts = zip(*(batch[column] for column in prompts), strict=True)
    joined = ["".join(f"{part}\n\n" for part in row if part) for row in parts]
    return {"prompt": list(joined), "text": batch[response]}


def _turns(batch: dict[str, list[Any]], rows: list[int], column: str, key: str) -> dict[str, list[str]]:
    """Every message of an assistant, what came before it, and the whole chat, by which it is held out or not."""
    found: dict[str, list[str]] = {"text": [], "messages": [], "chat": []}
    for row, chat in zip(rows, batch[column], strict=True):
        try:
            messages = messages_of(chat) if chat is not None else []
        except DataError as error:
            raise DataError(f"{key}.messages: row {row + 1}: {column!r} {error}") from error
        said = [{"role": message["role"], "content": message["content"]} for message in messages]
        for i, message in enumerate(messages):
            if message["role"] == "assistant" and i and "weight" not in message:
                found["text"].append(message["content"])  # a call of a tool has none, and is not learned
                found["messages"].append(json.dumps(said[:i]))
                found["chat"].append(json.dumps(said))
    return found


def _any_text(texts: list[str | None]) -> list[bool]:
    return [bool(text) for text in texts]


def _cut(texts: list[str], share: float, tail: bool) -> dict[str, list[str]]:
    """The head or the tail of each text, cut at a share of its characters."""
    cuts = [int(len(text) * (1.0 - share)) for text in texts]
    return {"text": [text[cut:] if tail else text[:cut] for text, cut in zip(texts, cuts, strict=True)]}
