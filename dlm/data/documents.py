"""The types of documents: plain texts, prompts with responses, and chats."""

import difflib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Self

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from dlm.config import HeldOut, Source
from dlm.data.formats import FORMATS
from dlm.data.tokens import EncodePrompts, Skipped
from dlm.errors import DataError
from dlm.model.text import encode, encode_chat


@dataclass(frozen=True)
class Documents(ABC):
    """Documents of one type.

    Attributes:
        rows: A memory-mapped dataset, one document a row. The column `text` is learned and scored in every type.
        skipped: What was left out of them because it cannot be written.
        columns: For each key of `Source` that names a column: what the column is called in `rows`.
        identity: The column by which a document is held out or not: equal values are on the same side.
        has_affixes: Whether the tokenizer's special tokens stand around them, such as [CLS] and [SEP].
    """

    rows: Dataset
    skipped: Skipped = field(default_factory=Skipped, kw_only=True)
    columns: ClassVar[Mapping[str, str]]
    identity: ClassVar[str] = "text"
    has_affixes: ClassVar[bool] = True

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
        names = {column_of(source, option): name for option, name in cls.columns.items()}
        for option in cls.columns:
            column = column_of(source, option)
            check_column(table.column_names, source, option, key)
            kind = table.features[column]
            if getattr(kind, "dtype", None) not in ("string", "large_string"):
                said = getattr(kind, "dtype", "values of several kinds, or parts")
                raise DataError(f"{key}.{option}: {column!r} of {source.path} holds {said}, not text")
        table = table.select_columns(list(names))
        return cls(table.rename_columns({column: name for column, name in names.items() if column != name}))

    @abstractmethod
    def prompt_encoder(self, tokenizer: PreTrainedTokenizerBase) -> EncodePrompts | None:
        """How what stands before each response is encoded.

        Args:
            tokenizer: The model's.

        Returns:
            A function of columns of `rows`; None where documents have no prompts. The ids that it gives are seen,
            and neither learned nor scored.
        """

    def writable(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The documents that a tokenizer can write, where those that it cannot write may be left out.

        Args:
            tokenizer: The model's.

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

    def first(self, count: int) -> Self:
        """The first so many documents, or all if there are fewer."""
        return replace(self, rows=self.rows.select(range(min(count, len(self)))))

    def without_empty(self) -> Self:
        """The documents that have a text."""
        return replace(self, rows=self.rows.filter(_any_text, batched=True, input_columns="text"))

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
        return train, replace(validation, skipped=Skipped())  # what was left out is counted once


@dataclass(frozen=True)
class Plain(Documents):
    """Texts, each learned and scored as a whole; the only column is `text`."""

    columns: ClassVar[Mapping[str, str]] = {"field": "text"}

    @override
    def prompt_encoder(self, tokenizer: PreTrainedTokenizerBase) -> None:
        return None


@dataclass(frozen=True)
class Pairs(Documents):
    """Prompts and responses: the column `text` is the response, which follows the column `prompt` as it is."""

    columns: ClassVar[Mapping[str, str]] = {"response": "text", "prompt": "prompt"}

    @override
    def prompt_encoder(self, tokenizer: PreTrainedTokenizerBase) -> EncodePrompts:
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
    columns: ClassVar[Mapping[str, str]] = {"messages": "messages"}
    identity = "chat"
    has_affixes = False  # the template writes all that stands before a message

    @override
    @classmethod
    def of(cls, table: Dataset, source: Source, key: str) -> Self:
        check_column(table.column_names, source, "messages", key)
        column = column_of(source, "messages")
        chats = table.select_columns(column)
        turns = partial(_turns, column=column, key=key, skips=source.skip_invalid)
        found = chats.map(turns, batched=True, with_indices=True, remove_columns=chats.column_names)
        kept = cls(found, source=source.path or source.format, key=key, may_skip=source.skip_invalid)
        if not len(found):
            return kept
        if not source.skip_invalid:
            return replace(kept, rows=found.remove_columns("wrong"))
        bad = found.filter(_any_text, batched=True, input_columns="wrong")
        good = found.filter(_no_text, batched=True, input_columns="wrong").remove_columns("wrong")
        return replace(kept, rows=good, skipped=kept._skipping(bad["row"], bad["wrong"]))

    @override
    def prompt_encoder(self, tokenizer: PreTrainedTokenizerBase) -> EncodePrompts:
        def written(before: str, row: int) -> list[int]:
            try:
                return encode_chat(tokenizer, json.loads(before or "[]"))
            except DataError as error:
                if not tokenizer.chat_template:
                    raise  # it is the tokenizer that is wrong, not the row
                raise DataError(
                    f"{self._named(row)}: {error}; correct it, or leave such rows out by {self.key}.skip_invalid=true"
                ) from error

        return lambda batch: [written(*each) for each in zip(batch["messages"], batch["row"], strict=True)]

    @override
    def writable(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Asks the chat template about every chat, if some may be left out; see `Documents`."""
        if not self.may_skip or not tokenizer.chat_template:
            return self
        wrong: dict[int, str] = {}
        for batch in self.rows.iter(batch_size=256):
            for before, row in zip(batch["messages"], batch["row"], strict=True):
                try:
                    if row not in wrong:
                        encode_chat(tokenizer, json.loads(before or "[]"))
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


def column_of(source: Source, option: str) -> str:
    """The column that a key of a source names; a text has no columns to choose from and is always in `text`."""
    if option == "field" and not FORMATS[source.format].tabular:
        return "text"
    column: str = getattr(source, option)
    return column


def check_column(columns: Sequence[str], source: Source, option: str, key: str) -> None:
    """Refuses a column that is not there.

    Args:
        columns: Those that are.
        source: Names the column.
        option: By which of its keys.
        key: The source's place in the configuration, for messages.

    Raises:
        DataError: The column is not there; the message names the nearest one.
    """
    column = column_of(source, option)
    if column not in columns:
        near = difflib.get_close_matches(column, columns, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise DataError(
            f"{key}.{option}: {source.path or source.format} has no field {column!r}; {hint}it has {', '.join(columns)}"
        )


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


def _turns(batch: dict[str, list[Any]], indices: list[int], column: str, key: str, skips: bool) -> dict[str, list[Any]]:
    """Every message of an assistant, what came before it, the whole chat, and the chat's row in the source.

    Where rows may be skipped, a chat that cannot be read is one document that says in `wrong` what is wrong.
    """
    found: dict[str, list[Any]] = {"text": [], "messages": [], "chat": [], "row": [], "wrong": []}

    def add(text: str, before: str, chat: str, row: int, wrong: str = "") -> None:
        for name, value in zip(found, (text, before, chat, row, wrong), strict=True):
            found[name].append(value)

    for row, chat in zip(indices, batch[column], strict=True):
        try:
            said = [{"role": message["role"], "content": message["content"] or ""} for message in chat]
        except (TypeError, KeyError):
            said = [{"role": None}]
        if not all(isinstance(part, str) for message in said for part in message.values()):
            wrong = f"{column!r} must hold lists of {{role, content}}, both of them text, got {chat!r:.80}"
            if not skips:
                raise DataError(f"{key}.messages: row {row + 1}: {wrong}")
            add("", "", "", row, wrong)
            continue
        for i, message in enumerate(said):
            if message["role"] == "assistant" and i:
                # A call of a tool has no text, and is not learned.
                add(message["content"], json.dumps(said[:i]), json.dumps(said), row)
    return found


def _any_text(texts: list[str | None]) -> list[bool]:
    return [bool(text) for text in texts]


def _no_text(texts: list[str | None]) -> list[bool]:
    return [not text for text in texts]


def _cut(texts: list[str], share: float, tail: bool) -> dict[str, list[str]]:
    """The head or the tail of each text, cut at a share of its characters."""
    cuts = [int(len(text) * (1.0 - share)) for text in texts]
    return {"text": [text[cut:] if tail else text[:cut] for text, cut in zip(texts, cuts, strict=True)]}
