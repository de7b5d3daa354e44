"""Tokenizers with a mask: trained here or loaded, their special tokens, and the ids that no text holds."""

import difflib
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dlm import hub
from dlm.config import Bpe, Bytes, Characters, Pretrained
from dlm.diffusion.process import Vocabulary
from dlm.distributed import process_state
from dlm.errors import CheckpointError, ConfigError, DataError, one_line
from dlm.model.locate import check_fetched
from dlm.model.public import Family, family_of, read_config

END, PAD, MASK, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|mask|>", "<|unknown|>"

LONGEST_WORD = 1024
"""Characters of the longest word that byte-pair merges are learned from; a merge takes time with a word's square."""


ENCODING = 2
"""The version of how `dlm.model.text` makes ids of a text: texts in a cache are tokenised anew when it changes."""

_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))

_RARE = "\U0010fffd"
"""A character of private use, in no vocabulary."""

_LONG_RUN = re.compile(rf"\S{{{LONGEST_WORD},}}|\s{{{LONGEST_WORD},}}")


@dataclass(frozen=True)
class SpecialIds:
    """The ids of the special tokens, all different.

    Attributes:
        mask: The mask.
        pad: The padding.
        end: The end of a text.
        unknown: Stands for characters that the tokenizer does not know; None if it knows all.
    """

    mask: int
    pad: int
    end: int
    unknown: int | None


@dataclass(frozen=True)
class Affixes:
    """The special tokens that stand around every text, such as [CLS] and [SEP]; they are given, and never scored.

    Attributes:
        prefix: The ids before a text, such as a begin of text.
        suffix: The ids after it.
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prefix) + len(self.suffix)

    def around(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """What stands before and after these ids; an end of text that is scored, and so in them, is not put twice."""
        doubled = bool(ids) and bool(self.suffix) and ids[-1] == self.suffix[0]
        return [*self.prefix], [*self.suffix[doubled:]]


def affixes_of(tokenizer: PreTrainedTokenizerBase) -> Affixes:
    """The special tokens that a tokenizer itself puts around a text; none for most decoders."""
    for probe in ("a", "1", "."):
        found = tokenizer.backend_tokenizer.encode(probe, add_special_tokens=True)
        if 0 in (special := found.special_tokens_mask):
            first, behind = special.index(0), len(special) - special[::-1].index(0)
            return Affixes(tuple(found.ids[:first]), tuple(found.ids[behind:]))
    return Affixes()


def build_tokenizer(
    spec: Bytes | Characters | Bpe | Pretrained, texts: Callable[[], Iterable[str]], *, adds_mask: bool = True
) -> PreTrainedTokenizerBase:
    """Makes, trains or loads a tokenizer.

    Args:
        spec: Which one.
        texts: Gives the training documents, for the tokenizers that are trained on them.
        adds_mask: Whether a pretrained tokenizer without a mask gets one, which its model was not trained with.

    Returns:
        A HuggingFace tokenizer with mask, padding and end-of-text tokens.

    Raises:
        DataError: The training documents are empty.
        CheckpointError: A pretrained tokenizer cannot be loaded, has no such mask, or has none and may get none.
    """
    match spec:
        case Pretrained():
            tokenizer = _load(spec.path)
            if spec.mask_token is not None:
                _name_mask(tokenizer, spec.mask_token, spec.path)
            elif tokenizer.mask_token_id is None and not adds_mask:
                # A network may have more rows than the tokenizer has tokens: an added mask would be an untrained one.
                raise CheckpointError(
                    f"{spec.path} has no mask token of its own: it was not trained to fill masks; train it by "
                    "configs/adapt-decoder.yaml first, or name the mask that it has by --mask-token"
                )
            return _complete(tokenizer)
        case Bytes():
            alphabet = {character: byte for byte, character in enumerate(byte_alphabet())}
            backend = _byte_level(models.BPE(vocab=alphabet, merges=[]))
            specials = [END, PAD, MASK]
        case Bpe():
            backend = _byte_level(models.BPE())
            specials = [END, PAD, MASK]
            backend.train_from_iterator(
                (part for text in texts() for part in _in_short_words(text)),
                trainers.BpeTrainer(
                    vocab_size=spec.size - len(specials),
                    initial_alphabet=byte_alphabet(),
                    show_progress=sys.stderr.isatty() and process_state().is_main_process,
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
    """The ids that `build_tokenizer` added to a pretrained tokenizer, which its model was not trained with.

    Args:
        tokenizer: What `build_tokenizer` made.
        path: The folder or Hub name of the pretrained tokenizer.

    Returns:
        The added ids, such as a decoder's mask; none for most encoders.

    Raises:
        ConfigError: It was made from another tokenizer, which has other tokens under the same ids.
    """
    before, now = _load(path).get_vocab(), tokenizer.get_vocab()
    for token, id_ in before.items():
        if now.get(token) != id_:
            raise ConfigError(
                f"tokenizer.path: it is not the tokenizer of {path}, where {token!r} is {id_} and here "
                f"{now.get(token)}; give both keys the same folder or Hub name"
            )
    return sorted(id_ for token, id_ in now.items() if token not in before)


def special_token(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """The id of a special token without a role; it is added where the tokenizer has none of that name.

    Args:
        tokenizer: Changed in place.
        name: Such as `<|fim_prefix|>`; where that is text in the vocabulary, a variant of it.

    Returns:
        The id.
    """
    vocabulary, special = tokenizer.get_vocab(), all_special_ids(tokenizer)
    while name in vocabulary and vocabulary[name] not in special:
        name = _variant(name)
    if name not in vocabulary:
        tokenizer.add_tokens([_special(name)], special_tokens=True)
    return tokenizer.get_vocab()[name]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> SpecialIds:
    """The ids of the mask, the padding and the end of text.

    Args:
        tokenizer: Any HuggingFace tokenizer.

    Returns:
        The ids, all different.

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


def first_id(tokenizer: PreTrainedTokenizerBase, family: Family | None, *, shift: bool) -> int | None:
    """The id that a network reads before every row.

    Args:
        tokenizer: The model's.
        family: The family of published models that it is one of.
        shift: Whether its predictions are read one position earlier.

    Returns:
        The family's own; else for a shift the end of the text before; None for nothing.
    """
    if family is not None:
        return family.first_id(tokenizer)
    return special_ids(tokenizer).end if shift else None


def before_id(tokenizer: PreTrainedTokenizerBase, affixes: Affixes | None = None) -> int:
    """The id before every row that is read from left to right.

    Args:
        tokenizer: The model's.
        affixes: The special tokens that stand around every text, which are in the row.

    Returns:
        A begin of text; the end of the text before where there is none, or where the row has one already.
    """
    begin = tokenizer.bos_token_id
    known = begin is not None and not (affixes and begin in affixes.prefix)
    return int(begin if known else special_ids(tokenizer).end)


def memory_lead(tokenizer: PreTrainedTokenizerBase, affixes: Affixes | None, family: Family | None) -> int | None:
    """The id before every text that is memory; None for nothing.

    Args:
        tokenizer: The model's.
        affixes: The special tokens that stand around every text.
        family: The family of published models that the model is one of.

    Returns:
        That of `before_id`; nothing for a family whose memory is the text alone.
    """
    return None if family is not None and family.blocks else before_id(tokenizer, affixes)


def all_special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids of every special token, also of those without a role, such as Llama's reserved ones.

    A token that stands for a byte is text, even where the tokenizer registers it as special; unless it has a role.
    """
    added = tokenizer.added_tokens_decoder.items()
    special = set(tokenizer.all_special_ids) | {id_ for id_, token in added if token.special}
    return special - byte_ids(tokenizer)


def byte_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids of the tokens from `<0x00>` to `<0xFF>` that spell rare characters, where a tokenizer does that.

    Args:
        tokenizer: The tokenizer.

    Returns:
        Their ids, without those that have a role, such as a mask's; none for a tokenizer without such a fallback.
    """
    backend = tokenizer.backend_tokenizer
    found = {token: id_ for token in _BYTES if (id_ := backend.token_to_id(token)) is not None}
    if not found or not isinstance(backend.model, models.BPE | models.Unigram):
        return set()
    if not all(is_byte(part.value) for part in backend.model.tokenize(_RARE)):
        return set()  # only a BPE says whether it falls back to them
    return set(found.values()) - {getattr(tokenizer, f"{name}_id") for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES}


def is_byte(token: str) -> bool:
    """Whether a token is one of `<0x00>` to `<0xFF>`."""
    return token in _BYTES


def forbidden_ids(tokenizer: PreTrainedTokenizerBase, size: int) -> list[int]:
    """The ids that are in no text, and that a network must not predict.

    Args:
        tokenizer: The tokenizer.
        size: The number of ids the network has a logit for.

    Returns:
        The mask, the padding, ids that the tokenizer does not have, and every other special token except the end of
        text and the unknown character, which are in texts.
    """
    # Not all ids from len(tokenizer) on: a pretrained vocabulary may have gaps, and tokens beyond its length.
    forbidden = all_special_ids(tokenizer) | (set(range(size)) - set(tokenizer.get_vocab().values()))
    return sorted(forbidden - {tokenizer.eos_token_id, tokenizer.unk_token_id})


def text_ids_from(tokenizer: PreTrainedTokenizerBase, size: int) -> int:
    """How many ids that a text may hold are `size` or more, for which a model of `size` rows has none.

    Args:
        tokenizer: The tokenizer.
        size: The number of ids the network has a row for.

    Returns:
        Their number, without special tokens, which no text holds.
    """
    special = all_special_ids(tokenizer)
    return sum(id_ >= size and id_ not in special for id_ in tokenizer.get_vocab().values())


def check_rows(tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Refuses a tokenizer whose texts hold ids that the network has no row for.

    Args:
        tokenizer: The tokenizer.
        size: The number of ids the network has a row for.

    Raises:
        CheckpointError: It has such ids.
    """
    if count := text_ids_from(tokenizer, size):
        raise CheckpointError(
            f"this model has {size} rows and its tokenizer {len(tokenizer)} ids, {count} of them without a row: "
            "the tokenizer is not the model's own"
        )


def id_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest id and one; more than there are tokens where the vocabulary has a gap."""
    return max(tokenizer.get_vocab().values()) + 1


def vocabulary_of(
    tokenizer: PreTrainedTokenizerBase, size: int, besides: Sequence[int] = (), allowed: Sequence[int] = ()
) -> Vocabulary:
    """A tokenizer's ids as the states of a diffusion process.

    Args:
        tokenizer: The tokenizer.
        size: The number of ids the network has a logit for.
        besides: Ids to forbid in addition to `forbidden_ids`.
        allowed: Ids that are allowed though they are in `forbidden_ids`.

    Returns:
        The number of states, the mask and the forbidden ids.
    """
    forbidden = [id_ for id_ in forbidden_ids(tokenizer, size) if id_ not in allowed]
    return Vocabulary(size, special_ids(tokenizer).mask, (*forbidden, *besides))


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that decides the ids of a text."""
    # It also keeps the truncation and padding of the last call, which do not matter here.
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    decides = [ENCODING, backend, tokenizer.special_tokens_map, tokenizer.chat_template]
    content = json.dumps(decides, sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _byte_level(model: models.Model) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _in_short_words(text: str) -> Iterator[str]:
    """A text in parts: cut only where more than `LONGEST_WORD` characters follow each other without a border.

    The tokenizer itself still sees such a word as a whole.
    """
    start = 0
    for run in _LONG_RUN.finditer(text):
        for cut in range(run.start() + LONGEST_WORD, run.end(), LONGEST_WORD):
            yield text[start:cut]
            start = cut
    yield text[start:]


def byte_alphabet() -> list[str]:
    """The character that stands for each byte: itself if it is printable, else the next free one from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _load(path: str) -> PreTrainedTokenizerBase:
    tree = read_config(path) if Path(path).exists() or hub.is_name(path) else {}
    family = family_of(path, tree)
    try:
        if family is not None:
            return family.load_tokenizer(path, tree)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except CheckpointError:
        raise
    except Exception as error:  # the Hub, json, tokenizers and transformers raise different types
        check_fetched(path, "*.json", "*.model")
        _check_file(Path(path) / "tokenizer.json")
        raise CheckpointError(f"cannot load a tokenizer from {path}: {one_line(error)}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"the tokenizer in {path} has no fast version, which dlm needs")
    if not set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
        # If the files are missing, transformers makes an empty tokenizer from the model's type.
        raise CheckpointError(f"{path} holds no tokenizer, or one without a vocabulary: copy its files there")
    return tokenizer


def _check_file(file: Path) -> None:
    """Refuses a file of a tokenizer that holds none, if there is such a file."""
    if not file.is_file():
        return
    try:
        Backend.from_file(str(file))
    except Exception as error:  # tokenizers has no type of its own
        raise CheckpointError(
            f"{file} holds no tokenizer, or is damaged: {one_line(error)}; copy it again from where it came from"
        ) from error


def _name_mask(tokenizer: PreTrainedTokenizerBase, named: str | int, path: str) -> None:
    """Registers a token as the mask: one by its text or its id, or one more at the end of the vocabulary by its id."""
    vocabulary = tokenizer.get_vocab()
    by_id = {id_: token for token, id_ in vocabulary.items()}
    text = by_id.get(named) if isinstance(named, int) else named
    if isinstance(named, int) and named == len(tokenizer) == max(by_id) + 1:
        text = _free_name(tokenizer, MASK)  # some models have one row more than their tokenizer: their mask
    elif text not in vocabulary:
        near = difflib.get_close_matches(str(named), [*tokenizer.added_tokens_encoder], n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise CheckpointError(
            f"the tokenizer of {path} has no token {named!r} that could be its mask: it has {len(vocabulary)} tokens"
            f"{hint or ', whose names are in its tokenizer.json'}"
        )
    if text in vocabulary and vocabulary[text] in (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
    ):
        raise CheckpointError(
            f"{text!r} is another special token of {path} already and cannot be its mask: name another token"
        )
    tokenizer.add_special_tokens({"mask_token": _special(str(text))})


def _complete(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Adds the special tokens that are missing, under names that the vocabulary does not have."""
    if tokenizer.eos_token_id is None:
        # An encoder ends a text with its separator, which is already special.
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
    """`name`, or a variant of it that the vocabulary does not have."""
    vocabulary = tokenizer.get_vocab()
    while name in vocabulary:
        name = _variant(name)
    return name


def _variant(name: str) -> str:
    return name.replace("|>", "_|>")


def _special(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)
