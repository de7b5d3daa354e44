"""The types of documents: plain texts, prompts with responses, and chats."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
from datasets import Dataset, Features, Value
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from dlm.config import HeldOut, Source
from dlm.data.chats import ROLES, messages_of
from dlm.data.derived import filtered, mapped
from dlm.data.detokenize import DETOKENIZERS, Rule, detokenized
from dlm.data.formats import FORMATS, check_columns
from dlm.data.keys import is_named_by_command, option_of
from dlm.data.tokens import EncodePrompts, Skipped
from dlm.errors import ConfigError, DataError
from dlm.model.text import ChatTemplate, chat_continues, encode, encode_chat


@dataclass(frozen=True)
class Documents(ABC):
    """Documents of one type.

    Attributes:
        rows: A memory-mapped dataset, one document a row. The column `text` is learned and scored in every type.
        empty: How many rows were left out because they have no text that could be learned.
        skipped: What was left out of them because it cannot be written.
        calls: How many messages call tools; a call is no text, and is not learned.
        roles: The roles of messages that are not the usual ones; they are given to the chat template as they are.
        identity: The columns by which a document is held out or not: equal values are on the same side.
        has_affixes: Whether the tokenizer's special tokens stand around them, such as [CLS] and [SEP].
        lacking: What the rows that are left out as empty have none of.
    """

    rows: Dataset
    empty: int = field(default=0, kw_only=True)
    skipped: Skipped = field(default_factory=Skipped, kw_only=True)
    calls: int = field(default=0, kw_only=True)
    roles: tuple[str, ...] = field(default=(), kw_only=True)
    identity: ClassVar[tuple[str, ...]] = ("text",)
    has_affixes: ClassVar[bool] = True
    lacking: ClassVar[str] = "a response"

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
                    raise DataError(f"{option_of(key, option)}: {column!r} of {source.path} holds {kind}, not text")
        names = [column for columns in wanted.values() for column in columns]
        return cls._take(table.select_columns(names), wanted, source, key)

    @classmethod
    @abstractmethod
    def _take(cls, table: Dataset, wanted: Mapping[str, tuple[str, ...]], source: Source, key: str) -> Self:
        """The documents in the wanted columns, which are there, and hold text unless they hold chats."""

    @abstractmethod
    def prompt_encoder(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> EncodePrompts | None:
        """How what stands before each response is encoded.

        Args:
            tokenizer: The model's.
            template: How the model uses the tokenizer's chat template.

        Returns:
            A function of columns of `rows`; None where documents have no prompts. The ids that it gives are seen,
            and neither learned nor scored.
        """

    def continues(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> bool:
        """Whether a text goes on with its prompt, so that it has no blank of a beginning, as SentencePiece puts there.

        Args:
            tokenizer: The model's.
            template: How the model uses the tokenizer's chat template.

        Returns:
            See `encode`. A text whose prompt is empty begins a text in any case.
        """
        return True

    def writable(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> Self:
        """The documents that a tokenizer can write, where those that it cannot write may be left out.

        Args:
            tokenizer: The model's.
            template: How the model uses the tokenizer's chat template.

        Returns:
            These documents without the others, which are counted in `skipped`.

        Raises:
            DataError: None is left.
        """
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def texts(self) -> Iterator[str]:
        """What is learned of each document."""
        for batch in self.rows.iter(batch_size=256):
            yield from batch["text"]

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each text."""
        return np.array([len(text.encode()) for text in self.texts()], dtype=np.int64)

    def words(self) -> NDArray[np.int64]:
        r"""Words of each text as lm-evaluation-harness counts them: the parts that `\s+` splits it into."""
        return np.array([len(re.split(r"\s+", text)) for text in self.texts()], dtype=np.int64)

    def first(self, count: int) -> Self:
        """The first so many documents, or all if there are fewer."""
        return replace(self, rows=self.rows.select(range(min(count, len(self)))))

    def detokenized(self, name: str) -> Self:
        """The documents as people write them, where their corpus was published in tokens.

        Args:
            name: One of `DETOKENIZERS`.

        Returns:
            The documents.

        Raises:
            ConfigError: They have prompts, which would stay in tokens.
        """
        if "prompt" in self.rows.column_names or "messages" in self.rows.column_names:
            raise ConfigError("--detokenize is of plain texts, and these have prompts: leave it out")
        undo = partial(_detokenized, rules=tuple(DETOKENIZERS[name].rules))
        return replace(self, rows=mapped(self.rows, undo, input_columns="text"))

    def without_empty(self) -> Self:
        """The documents that have a text; the others are counted."""
        rows = _with_text(self.rows)
        return replace(self, rows=rows, empty=self.empty + len(self.rows) - len(rows))

    def split(self, held_out: HeldOut) -> tuple[Self, Self]:
        """Keeps a share back.

        Args:
            held_out: Which share.

        Returns:
            What is left to train on and what is kept back, either of which may be empty. What was left out is counted
            in the first alone.
        """
        share = held_out.share
        if held_out.by == "tail":
            parts = [
                mapped(self.rows, partial(_cut, share=share, tail=tail), input_columns="text") for tail in (False, True)
            ]
        else:
            parts = [
                filtered(self.rows, partial(kept_back, share=share, wanted=back), self.identity)
                for back in (False, True)
            ]
        train, validation = (replace(self, rows=_with_text(part)) for part in parts)  # of a short text, a part is empty
        return train, replace(validation, empty=0, skipped=Skipped(), calls=0, roles=())


@dataclass(frozen=True)
class Plain(Documents):
    """Texts, each learned and scored as a whole; the only column is `text`."""

    lacking = "text"

    @override
    @classmethod
    def _take(cls, table: Dataset, wanted: Mapping[str, tuple[str, ...]], source: Source, key: str) -> Self:
        return cls(_renamed(table, {wanted["field"][0]: "text"}))

    @override
    def prompt_encoder(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
        return None


@dataclass(frozen=True)
class Pairs(Documents):
    """Prompts and responses: the column `text` is the response, which follows the column `prompt` as it is.

    Of several columns of prompts, those that are not empty are joined, with an empty line after each.
    """

    identity = ("prompt", "text")  # by the response alone, all pairs of one answer would be on the same side

    @override
    @classmethod
    def _take(cls, table: Dataset, wanted: Mapping[str, tuple[str, ...]], source: Source, key: str) -> Self:
        prompts, (response,) = wanted["prompt"], wanted["response"]
        if len(prompts) > 1:
            join = partial(_joined, prompts=prompts, response=response)
            return cls(_made(table, join, ("prompt", "text")))
        return cls(_renamed(table, {prompts[0]: "prompt", response: "text"}))

    @override
    def prompt_encoder(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> EncodePrompts:
        return lambda batch: encode(tokenizer, [prompt or "" for prompt in batch["prompt"]])


@dataclass(frozen=True)
class Chats(Documents):
    """Chats: each message of an assistant is a document, given the messages before it.

    The columns are `text`, the message; `messages`, those before it as JSON, which the tokenizer's chat template
    writes; `chat`, the whole chat as JSON, so that a chat is held out as a whole; and `row`, its row in the source.

    Attributes:
        source: What the chats come from, for messages.
        key: The source's place in the configuration, for messages.
        may_skip: Whether chats that cannot be written are left out.
    """

    source: str = "the chats"
    key: str = "data.train"
    may_skip: bool = False
    identity = ("chat",)
    has_affixes = False  # the template writes all that stands before a message

    @override
    @classmethod
    def _take(cls, table: Dataset, wanted: Mapping[str, tuple[str, ...]], source: Source, key: str) -> Self:
        (column,) = wanted["messages"]
        found = table
        if len(table):
            turns = partial(_learned_turns, column=column, key=key, skips=source.skip_invalid)
            found = _made(table, turns, ("text", "messages", "chat", "wrong", "roles"), ("row", "calls"))
        kept = cls(found, source=source.path or source.format, key=key, may_skip=source.skip_invalid)
        if not len(table):
            return kept
        bad = filtered(found, _any_text, ["wrong"])
        calls = sum(found["calls"])
        roles = {role for some in found.unique("roles") if some for role in json.loads(some)}
        learned = _with_text(found).remove_columns(["wrong", "calls", "roles"])
        if not len(learned) and not len(bad):
            chats = (messages_of(chat) for chat in table[:100][column] if chat is not None)
            said = sorted({message["role"] for chat in chats for message in chat})
            raise DataError(
                f"{option_of(key, 'messages')}: no chat in {column!r} has a message of an assistant to learn, "
                f"after another message; its roles are {', '.join(said) or 'none'}"
                f"{', and a call of a tool has no text to learn' if calls else ''}"
            )
        empty = len(found) - len(learned) - len(bad)
        skipped = kept._skipping(bad["row"], bad["wrong"])
        return replace(kept, rows=learned, empty=empty, skipped=skipped, calls=calls, roles=tuple(sorted(roles)))

    @override
    def prompt_encoder(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> EncodePrompts:
        def written(before: str, row: int) -> list[int]:
            try:
                return encode_chat(tokenizer, json.loads(before or "[]"), template)
            except DataError as error:
                if not tokenizer.chat_template:
                    raise  # it is the tokenizer that is wrong, not the row
                skipping = f", or leave such rows out by {self.key}.skip_invalid=true"
                remedy = f"correct it{'' if is_named_by_command(self.key) else skipping}"
                raise DataError(f"{self._named(row)}: {error}; {remedy}") from error

        return lambda batch: [written(*each) for each in zip(batch["messages"], batch["row"], strict=True)]

    @override
    def continues(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> bool:
        """As the chat template says; see `chat_continues`."""
        return chat_continues(tokenizer, template)

    @override
    def writable(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> Self:
        """Asks the chat template about every chat, if some may be left out; see `Documents`."""
        if not self.may_skip or not tokenizer.chat_template:
            return self
        wrong: dict[int, str] = {}
        for batch in self.rows.iter(batch_size=256):
            for before, row in zip(batch["messages"], batch["row"], strict=True):
                try:
                    if row not in wrong:
                        encode_chat(tokenizer, json.loads(before or "[]"), template)
                except DataError as error:
                    wrong[row] = str(error)
        if not wrong:
            return self
        found, before = self._skipping([*wrong], [*wrong.values()]), self.skipped
        kept = [i for i, row in enumerate(self.rows["row"]) if row not in wrong]
        if not kept:
            raise DataError(f"{self.key}: no chat is left, as all {found.rows} are not valid; {found.first}")
        skipped = Skipped(before.rows + found.rows, before.first or found.first)
        return replace(self, rows=self.rows.select(kept), skipped=skipped)

    def _skipping(self, rows: Sequence[int], wrong: Sequence[str]) -> Skipped:
        return Skipped(len(rows), f"{self._named(rows[0])}: {wrong[0]}" if len(rows) else "")

    def _named(self, row: int) -> str:
        return f"row {row + 1} of {self.source}"


def type_of(source: Source) -> type[Documents]:
    """The type of documents that a source's columns mean."""
    if source.messages is not None:
        return Chats
    return Plain if source.prompt is None else Pairs


def _detokenized(texts: Sequence[str], rules: Sequence[Rule]) -> dict[str, list[str]]:
    return {"text": [detokenized(text, rules) for text in texts]}


def kept_back(*columns: Sequence[str | None], share: float, wanted: bool) -> list[bool]:
    """Whether each document is on the wanted side, which follows from its own text alone.

    Args:
        *columns: What the documents are known by, such as their texts, or their prompts and their responses.
        share: How much is held out.
        wanted: Which side: True for what is held out.

    Returns:
        One answer a document.
    """
    known = zip(*([part or "" for part in column] for column in columns), strict=True)
    keys = (parts[0] if len(parts) == 1 else json.dumps(parts) for parts in known)
    quantiles = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return [(int.from_bytes(q, "little") / 2**64 < share) == wanted for q in quantiles]


def _renamed(table: Dataset, names: Mapping[str, str]) -> Dataset:
    """A table with other names for its columns."""
    return table.rename_columns({column: name for column, name in names.items() if column != name})


def _made(
    table: Dataset, make: Callable[..., Mapping[str, list[Any]]], texts: Sequence[str], numbers: Sequence[str] = ()
) -> Dataset:
    """Rows made of those of a table. Without features, a column would keep the type of its namesake there."""
    features = Features(dict.fromkeys(texts, Value("large_string")) | dict.fromkeys(numbers, Value("int64")))
    return mapped(table, make, with_indices=True, remove_columns=table.column_names, features=features)


def _joined(
    batch: dict[str, list[Any]], rows: list[int], prompts: Sequence[str], response: str
) -> dict[str, list[str | None]]:
    """Prompts made of several columns, and the responses."""
    parts = zip(*(batch[column] for column in prompts), strict=True)
    joined = ["".join(f"{part}\n\n" for part in row if part) for row in parts]
    return {"prompt": list(joined), "text": batch[response]}


def _learned_turns(
    batch: dict[str, list[Any]], rows: list[int], column: str, key: str, skips: bool
) -> dict[str, list[Any]]:
    """Every message of an assistant, what came before it, the whole chat, its row in the source and its calls of tools.

    With the first of a chat come the roles in it that are not the usual ones, as JSON.

    Where rows may be skipped, a chat that cannot be read is one document that says in `wrong` what is wrong. A row
    without a message to learn is one document without a text.
    """
    names = ("text", "messages", "chat", "row", "wrong", "calls", "roles")
    found: dict[str, list[Any]] = {name: [] for name in names}

    def add(text: str, before: str, chat: str, row: int, wrong: str = "", calls: int = 0, roles: str = "") -> None:
        for name, value in zip(names, (text, before, chat, row, wrong, calls, roles), strict=True):
            found[name].append(value)

    for row, chat in zip(rows, batch[column], strict=True):
        try:
            messages = messages_of(chat) if chat is not None else []
        except DataError as error:
            if not skips:
                raise DataError(f"{option_of(key, 'messages')}: row {row + 1}: {column!r} {error}") from error
            add("", "", "", row, f"{column!r} {error}")
            continue
        said = [{key: part for key, part in message.items() if key != "weight"} for message in messages]
        calls = sum("tool_calls" in message for message in messages)
        other = {message["role"] for message in messages} - ROLES
        roles = json.dumps(sorted(other)) if other else ""
        learned = [
            i
            for i, message in enumerate(messages)  # a call of a tool has no text, and is not learned
            if message["role"] == "assistant" and i and message["content"] and "weight" not in message
        ]
        for place, i in enumerate(learned):  # what is told of a chat is told once
            told = (0, "") if place else (calls, roles)
            add(said[i]["content"], json.dumps(said[:i]), json.dumps(said), row, "", *told)
        if not learned:
            add("", "", "", row, calls=calls, roles=roles)
    return found


def _any_text(texts: list[str | None]) -> list[bool]:
    return [bool(text) for text in texts]


def _with_text(rows: Dataset) -> Dataset:
    """The rows whose column `text` is neither empty nor null."""
    return filtered(rows, _any_text, ["text"])


def _cut(texts: list[str], share: float, tail: bool) -> dict[str, list[str]]:
    """The head or the tail of each text, cut at a share of its characters."""
    cuts = [int(len(text) * (1.0 - share)) for text in texts]
    return {"text": [text[cut:] if tail else text[:cut] for text, cut in zip(texts, cuts, strict=True)]}
