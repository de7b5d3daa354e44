"""Text to ids and back: no text is lost, and none is taken for a special token."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any

from tokenizers import Encoding, Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerBase

from dlm.errors import DataError, one_line
from dlm.model.public import Family
from dlm.model.tokenizer import all_special_ids, byte_ids, first_id, is_byte

_EACH_CHARACTER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
"""The pre-tokenizer of a tokenizer of characters."""


@dataclass(frozen=True)
class ChatTemplate:
    """How a model uses the chat template of its tokenizer, in training as in sampling.

    Attributes:
        told: What the template is told besides the messages, such as `enable_thinking`.
        first_id: What the network reads before every row by itself; left out where the template writes it first.
    """

    told: Mapping[str, Any] = field(default_factory=dict)
    first_id: int | None = None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, family: Family | None, *, shift: bool) -> "ChatTemplate":
        """The use that suits a model; see `first_id`."""
        return cls(family.chat if family else {}, first_id(tokenizer, family, shift=shift))


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, continues: bool = False, marked: bool = False
) -> list[list[int]]:
    """Texts to ids, as text: nothing is added or cut, and `<|mask|>` written in a text is seven characters.

    Args:
        tokenizer: The tokenizer.
        texts: Texts.
        continues: Whether they are parts from within a text, which do not begin with the blank that some tokenizers put
            before a text.
        marked: Whether the names of special tokens in a text stand for these tokens, as in what a chat template writes.

    Returns:
        A row of ids a text.

    Raises:
        DataError: A text holds half of a character, as Python makes of bytes that are no UTF-8.
    """
    if not texts:
        return []
    if not marked and (alphabet := _alphabet(tokenizer)) is not None:
        return [_by_characters(alphabet, text) for text in texts]
    backend = tokenizer.backend_tokenizer
    before, steps = backend.encode_special_tokens, (backend.normalizer, backend.pre_tokenizer)
    backend.encode_special_tokens = not marked
    try:
        if continues:
            backend.normalizer, backend.pre_tokenizer = (_without_prefix(step) for step in steps)
        # The backend, because the wrapper warns of long texts, and keeps its last settings of truncation and padding.
        backend.no_truncation()
        backend.no_padding()
        # Offsets take a third of the time, and `_spelled_out` asks for them in such texts alone.
        batch = backend.encode_batch if any("<0x" in text for text in texts) else backend.encode_batch_fast
        encodings = batch(list(texts), add_special_tokens=False)
    except TypeError:
        for text in texts:
            _check_whole(text)
        raise
    finally:
        backend.encode_special_tokens = before
        if continues:
            backend.normalizer, backend.pre_tokenizer = steps
    return [encoding.ids for encoding in encodings] if marked else _spelled_out(tokenizer, texts, encodings)


def token_ends(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Where each token of a text ends, in characters of the text itself.

    Args:
        tokenizer: The tokenizer.
        text: The text.

    Returns:
        One place a token, none before that of the token before it. Blanks between two tokens belong to the later one.
    """
    backend = tokenizer.backend_tokenizer
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        backend.no_truncation()
        backend.no_padding()
        offsets = backend.encode(text, add_special_tokens=False).offsets
    finally:
        backend.encode_special_tokens = before
    return [*accumulate((stop for _, stop in offsets), max)]


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], template: ChatTemplate | None = None
) -> list[int]:
    """The ids of a chat in the tokenizer's own template, up to the beginning of the assistant's next message.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: `{role, content}`, with `tool_calls`, `tool_call_id` and `name` where there are any; the last one is
            not the assistant's.
        template: How the model uses the template; by default as it is.

    Returns:
        Ids, including the template's special tokens.

    Raises:
        DataError: The tokenizer has no template, or the template refuses these messages, or one holds half of a
            character.
    """
    template = template or ChatTemplate()
    if not all(isinstance(message, Mapping) for message in messages):
        raise DataError("a prompt is a text or a chat of {role, content}, and one alone; of several, name each")
    if not tokenizer.chat_template:
        raise DataError(
            "this tokenizer has no chat template: give a prompt of plain text in place of a chat, train on prompts and "
            "responses, or take another tokenizer"
        )
    for message in messages:
        _check_whole(message.get("content"))
    try:
        ids: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            **template.told,
        )
    except Exception as error:  # a template is a program that may raise any type
        raise DataError(f"the chat template refuses these messages: {one_line(error)}") from error
    return list(ids[1:] if ids[:1] == [template.first_id] else ids)


def chat_continues(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None = None) -> bool:
    """Whether an answer follows a chat without the blank that SentencePiece puts before a text.

    Args:
        tokenizer: A tokenizer.
        template: How the model uses its chat template.

    Returns:
        What the template shows in a chat that is answered; False where it shows neither.
    """
    told = (template or ChatTemplate()).told
    alone, within = (encode(tokenizer, ["x"], continues=continues)[0] for continues in (False, True))
    if alone == within or not tokenizer.chat_template:
        return False
    asked = [{"role": "user", "content": "x"}]
    try:
        before, whole = (
            tokenizer.apply_chat_template(
                chat, tokenize=True, return_dict=False, add_generation_prompt=chat is asked, **told
            )
            for chat in (asked, [*asked, {"role": "assistant", "content": "x"}])
        )
    except Exception:  # a template is a program that may raise any type
        return False
    answer = list(whole[len(before) :])
    return list(whole[: len(before)]) == list(before) and answer[: len(within)] == within


def _check_whole(text: object) -> None:
    """Refuses a text that holds half of a character; what is no text is for others to refuse."""
    try:
        str(text).encode("utf-8")
    except UnicodeEncodeError as error:
        half = str(text)[error.start]
        raise DataError(f"a text holds {half!r} at {error.start}, which is half of a character: mend it") from error


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Ids to text, special tokens by their names; the inverse of `encode` for bytes, characters and bpe.

    Bytes that are no character become U+FFFD; the characters beside them stay whole, whichever tokens stand for bytes.
    """
    backend = tokenizer.backend_tokenizer
    if backend.decoder is None or not _falls_back_to_bytes(backend):
        return str(backend.decode(list(ids), skip_special_tokens=False))
    # The fallback of `tokenizers` gives one U+FFFD a byte to a whole run of byte tokens in which any is incomplete.
    tokens = [token for id_ in ids if (token := backend.id_to_token(id_)) is not None]
    parts: list[str] = []
    for spells, run in groupby(tokens, key=is_byte):
        spelled = list(run)
        parts += bytes(int(token[3:5], 16) for token in spelled).decode("utf-8", "replace") if spells else spelled
    return str(backend.decoder.decode(parts))


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; together they are the decoded text.

    A token that only begins a character adds nothing; the token that completes the character adds it. Bytes that are
    incomplete at the end, or are no character, add U+FFFD.

    Args:
        tokenizer: The tokenizer.
        ids: Ids.

    Returns:
        One piece an id.
    """
    parts: list[str] = []
    start = done = 0  # the decoded window begins at `start`, the next at `done`; neither is inside a character
    given = ""  # the part of the window's text that is in `parts`
    for end in range(1, len(ids) + 1):
        now = decode(tokenizer, ids[start:end])
        # An incomplete character shows as one U+FFFD at the end; a real U+FFFD there is added with the next token.
        sure = now if end == len(ids) else now.removesuffix("\ufffd")
        parts.append(sure[len(given) :])
        given = sure
        cut = end
        if sure != now:  # a cut inside a character would decode to one U+FFFD more
            before = range(end - 1, max(done, end - 4), -1)
            cut = next((i for i in before if decode(tokenizer, ids[start:i]) + decode(tokenizer, ids[i:end]) == now), 0)
        if cut > done:
            start, done = done, cut
            window = decode(tokenizer, ids[start:end])
            given = window if sure == now else window.removesuffix("\ufffd")
    return parts


def drops_blanks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether blanks are in no token, so that the decoder puts one before every word, as with WordPiece."""
    decoder = tokenizer.backend_tokenizer.decoder
    return decoder is None or b'"WordPiece"' in decoder.__getstate__()


def _alphabet(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], int] | None:
    """The id of a character, where each is a token of its own whatever stands beside it; None where words count."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None or not isinstance(backend.model, WordLevel):
        return None
    split = None if backend.pre_tokenizer is None else json.loads(backend.pre_tokenizer.__getstate__())
    names = [token for token in backend.get_added_tokens_decoder().values() if not token.special]
    if split != _EACH_CHARACTER or names:
        return None
    known, unknown = backend.get_vocab(with_added_tokens=False), backend.token_to_id(backend.model.unk_token)
    if unknown is None:
        return None
    return lambda character: known.get(character, unknown)


def _by_characters(alphabet: Callable[[str], int], text: str) -> list[int]:
    """The ids of a text: those of the backend, in a fiftieth of its memory, which counts for a corpus in one text."""
    _check_whole(text)
    ids = {character: alphabet(character) for character in set(text)}
    return [ids[character] for character in text]


def _without_prefix(step: Any) -> Any:
    """A normalizer or a pre-tokenizer, or None, that puts no blank before a text."""
    state = None if step is None else _without_prefix_state(json.loads(step.__getstate__()))
    if state is None:
        return None  # the prefix was all that it did
    other = copy.deepcopy(step)
    other.__setstate__(json.dumps(state).encode())
    return other


def _without_prefix_state(state: dict[str, Any]) -> dict[str, Any] | None:
    match state:
        case {"type": "Prepend"}:
            return None
        case {"type": "Metaspace"}:
            return {**state, "prepend_scheme": "never"}
        case {"type": "ByteLevel"}:
            return {**state, "add_prefix_space": False}
        case {"type": "Sequence"}:
            parts = next(key for key in ("normalizers", "pretokenizers") if key in state)
            kept = [part for each in state[parts] if (part := _without_prefix_state(each)) is not None]
            return {**state, parts: kept}
    return state


def _falls_back_to_bytes(backend: Tokenizer) -> bool:
    """Whether tokens such as `<0xE4>` are decoded as bytes."""
    return b'"ByteFallback"' in backend.decoder.__getstate__()


def _spelled_out(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], encodings: Sequence[Encoding]
) -> list[list[int]]:
    """The rows of ids with special ids spelled by their characters, except for the unknown character.

    A model of whole pieces (Unigram, words) holds `</s>` in its own vocabulary and finds it in a text. So it does with
    `<0x41>`, which is six characters there, and the byte of a character elsewhere.
    """
    special, spelling = all_special_ids(tokenizer) - {tokenizer.unk_token_id}, byte_ids(tokenizer)
    backend = tokenizer.backend_tokenizer

    def spelled(text: str, encoding: Encoding) -> list[int]:
        ids: list[int] = encoding.ids
        written = [i for i, id_ in enumerate(ids) if id_ in special]
        if not spelling.isdisjoint(ids) and "<0x" in text:
            spans = zip(ids, encoding.tokens, encoding.offsets, strict=True)
            written += [
                i for i, (id_, token, (a, b)) in enumerate(spans) if id_ in spelling and text[a:b].strip() == token
            ]
        if not written:
            return ids
        out: list[list[int]] = [[id_] for id_ in ids]
        for i in written:
            out[i] = [part.id for sign in backend.id_to_token(ids[i]) for part in backend.model.tokenize(sign)]
        return [id_ for part in out for id_ in part]

    return [spelled(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]
