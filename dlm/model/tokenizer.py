"""A tokenizer with a mask: text to ids and back, nothing of the text lost or taken for something else."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dlm.config import Bpe, Bytes, Characters, Pretrained
from dlm.diffusion.process import Vocabulary
from dlm.errors import CheckpointError, ConfigError, DataError

END, PAD, MASK, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|mask|>", "<|unknown|>"


@dataclass(frozen=True)
class SpecialIds:
    """The ids that stand for no text, all different.

    Attributes:
        mask: The mask.
        pad: The padding.
        end: The end of a text.
        unknown: What the tokenizer cannot spell; None where it can spell everything.
    """

    mask: int
    pad: int
    end: int
    unknown: int | None


def build_tokenizer(
    spec: Bytes | Characters | Bpe | Pretrained, texts: Callable[[], Iterable[str]]
) -> PreTrainedTokenizerBase:
    """Makes, trains or loads a tokenizer.

    Args:
        spec: Which one.
        texts: Gives the training documents, for the tokenizers that learn from them.

    Returns:
        A HuggingFace tokenizer with mask, padding and end-of-text tokens.

    Raises:
        DataError: The training documents hold nothing to learn from.
        CheckpointError: A pretrained tokenizer cannot be loaded.
    """
    match spec:
        case Pretrained():
            return _complete(_load(spec.path))
        case Bytes():
            alphabet = {character: byte for byte, character in enumerate(_byte_alphabet())}
            backend = _byte_level(models.BPE(vocab=alphabet, merges=[]))
            specials = [END, PAD, MASK]
        case Bpe():
            backend = _byte_level(models.BPE())
            specials = [END, PAD, MASK]
            backend.train_from_iterator(
                texts(),
                trainers.BpeTrainer(
                    vocab_size=spec.size - len(specials),
                    initial_alphabet=_byte_alphabet(),
                    show_progress=False,
                ),
            )
        case Characters():
            found = sorted(set().union(*texts()))
            if not found:
                raise DataError("there is no character to make a vocabulary of: the training documents are empty")
            vocabulary = {character: index for index, character in enumerate([*found, UNKNOWN])}
            backend = Backend(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
            backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
            backend.decoder = decoders.Fuse()
            specials = [END, PAD, MASK, UNKNOWN]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        mask_token=MASK,
        unk_token=UNKNOWN if UNKNOWN in specials else None,
        clean_up_tokenization_spaces=False,
        model_max_length=int(1e30),
    )


def new_ids(tokenizer: PreTrainedTokenizerBase, path: str) -> list[int]:
    """The ids that a pretrained tokenizer was given here, and that its model has not been trained with.

    Args:
        tokenizer: What `build_tokenizer` made.
        path: What of.

    Returns:
        Such as a decoder's mask; nothing for most encoders.

    Raises:
        ConfigError: It is made of another tokenizer, whose ids the model knows by other tokens.
    """
    before, now = _load(path).get_vocab(), tokenizer.get_vocab()
    for token, id_ in before.items():
        if now.get(token) != id_:
            raise ConfigError(
                f"tokenizer.path: it is not the tokenizer of {path}, where {token!r} is {id_} and here "
                f"{now.get(token)}; give both keys the same folder or Hub name"
            )
    return sorted(id_ for token, id_ in now.items() if token not in before)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> SpecialIds:
    """The ids of the mask, the padding and the end of text.

    Args:
        tokenizer: Any HuggingFace tokenizer.

    Returns:
        Three different ids.

    Raises:
        CheckpointError: One is missing, or two are the same.
    """
    found = {
        "mask": tokenizer.mask_token_id,
        "padding": tokenizer.pad_token_id,
        "end-of-text": tokenizer.eos_token_id,
    }
    if None in found.values() or len(set(found.values())) < 3:
        raise CheckpointError(f"the tokenizer needs different mask, padding and end-of-text tokens, it has {found}")
    unknown = None if tokenizer.unk_token_id == tokenizer.eos_token_id else tokenizer.unk_token_id
    return SpecialIds(found["mask"], found["padding"], found["end-of-text"], unknown)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Texts to ids, as text: nothing is added or cut, and `<|mask|>` written in a text is seven characters."""
    if not texts:
        return []
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        # The backend itself: the wrapper would warn of long texts, and cuts and pads as it was last told.
        backend.no_truncation()
        backend.no_padding()
        rows = [encoding.ids for encoding in backend.encode_batch(list(texts), add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before
    return _spelled_out(tokenizer, rows)


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """A chat as the tokenizer's own template writes it, up to where the assistant's next message begins.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: `{role, content}`, the last of them not the assistant's.

    Returns:
        Ids, the template's special tokens among them.

    Raises:
        DataError: There is no template, or it refuses these messages.
    """
    if not tokenizer.chat_template:
        raise DataError("this tokenizer has no chat template: give prompts and responses, or another tokenizer")
    try:
        ids: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:  # a template is a program, and says in its own way what it refuses
        raise DataError(f"the chat template refuses these messages: {' '.join(str(error).split())[:200]}") from error
    return list(ids)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Ids to text, special tokens by their names; the inverse of `encode` for bytes, characters and bpe."""
    text: str = tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
    return text


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; together they are the decoded text.

    A token that only begins a character adds nothing yet, and the one that completes it adds it whole;
    what is still incomplete at the end, or never becomes a character, adds U+FFFD.

    Args:
        tokenizer: The tokenizer.
        ids: Ids.

    Returns:
        One piece an id.
    """
    parts: list[str] = []
    start = done = 0  # the window that is decoded begins at `start`, the next one at `done`: never inside a character
    given = ""  # of the window's text, what has been given out
    for end in range(1, len(ids) + 1):
        now = decode(tokenizer, ids[start:end])
        # An incomplete character shows as one U+FFFD at the end; one that is meant comes with the next token.
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


def forbidden_ids(tokenizer: PreTrainedTokenizerBase, size: int) -> list[int]:
    """The ids that no text holds and a network must never predict.

    Args:
        tokenizer: The tokenizer.
        size: The number of ids the network has a logit for.

    Returns:
        The mask, the padding, every other special token but the end of text and the unknown character, which
        texts do hold, and ids beyond the tokenizer's.
    """
    # Not from len(tokenizer) on: the ids of a pretrained vocabulary may have gaps, and text beyond its length.
    forbidden = _special_ids(tokenizer) | (set(range(size)) - set(tokenizer.get_vocab().values()))
    return sorted(forbidden - {tokenizer.eos_token_id, tokenizer.unk_token_id})


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, size: int, besides: Sequence[int] = ()) -> Vocabulary:
    """A tokenizer's ids as the states of a diffusion process.

    Args:
        tokenizer: The tokenizer.
        size: The number of ids the network has a logit for.
        besides: Ids to forbid besides those that no text holds.

    Returns:
        The states, the mask and the forbidden ids among them.
    """
    return Vocabulary(size, special_ids(tokenizer).mask, (*forbidden_ids(tokenizer, size), *besides))


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that decides which ids a text becomes."""
    # How the last call truncated and padded is kept in there too, and decides nothing.
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    content = json.dumps([backend, tokenizer.special_tokens_map, tokenizer.chat_template], sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every special id, those among them that have no role, such as Llama's reserved ones."""
    added = tokenizer.added_tokens_decoder.items()
    return set(tokenizer.all_special_ids) | {id_ for id_, token in added if token.special}


def _spelled_out(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> list[list[int]]:
    """The rows with special ids spelled by their characters, but for the unknown character.

    A model of whole pieces (Unigram, words) holds `</s>` in its own vocabulary and finds it in a text.
    """
    special = _special_ids(tokenizer) - {tokenizer.unk_token_id}
    model = tokenizer.backend_tokenizer.model

    def spell(id_: int) -> list[int]:
        if id_ not in special:
            return [id_]
        return [token.id for character in tokenizer.convert_ids_to_tokens(id_) for token in model.tokenize(character)]

    return [row if special.isdisjoint(row) else [part for id_ in row for part in spell(id_)] for row in rows]


def _byte_level(model: models.Model) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte: itself if it is printable, else the next free one from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _load(path: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # the Hub, json, tokenizers and transformers each raise their own
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"cannot load a tokenizer from {path}: {reason}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"the tokenizer in {path} has no fast version, which dlm needs")
    if not set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
        # Where the files are missing, transformers makes an empty one from the model's type.
        raise CheckpointError(f"{path} holds no tokenizer, or one without a vocabulary: copy its files there")
    return tokenizer


def _complete(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Adds the special tokens that are missing, under names that stand for no text."""
    if tokenizer.eos_token_id is None:
        # An encoder ends a text by its separator, which is special already.
        tokenizer.eos_token = tokenizer.sep_token or _free_name(tokenizer, END)
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": _special(_free_name(tokenizer, MASK))})
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in (tokenizer.eos_token_id, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"pad_token": _special(_free_name(tokenizer, PAD))})
    # GPT-2 names its end of text as the unknown token too, which a byte-level vocabulary never needs.
    unknown = getattr(tokenizer.backend_tokenizer.model, "unk_token", None) and tokenizer.unk_token_id
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id == unknown:
        tokenizer.add_special_tokens({"eos_token": _special(_free_name(tokenizer, END))})
    return tokenizer


def _free_name(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """`name`, or the like of it that the vocabulary does not hold yet."""
    vocabulary = tokenizer.get_vocab()
    while name in vocabulary:
        name = name.replace("|>", "_|>")
    return name


def _special(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)
