"""The data of a run: its tokenizer, its training batches and its validation sequences."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

from transformers import PreTrainedTokenizerBase

from dlm.config import Config, Data, Tokenizer
from dlm.data.batches import Sequences, TrainingBatches
from dlm.data.choosing import misread
from dlm.data.corpus import corpus
from dlm.data.losses import altered_in, losses_of, odd_roles, unknown_in
from dlm.data.middle import FillInTheMiddle
from dlm.data.reading import Splits, read_splits
from dlm.data.streaming import open_stream
from dlm.data.streaming_batches import StreamingBatches
from dlm.errors import ConfigError, DataError
from dlm.model.public import Family
from dlm.model.sentinels import Sentinels, add_sentinels
from dlm.model.spans import LengthPrior
from dlm.model.text import ChatTemplate, encode
from dlm.model.tokenizer import Affixes, affixes_of, build_tokenizer, special_ids
from dlm.plain import counted

MANY = 10
"""From so many documents on, whole ones can be held out."""


@dataclass(frozen=True)
class RunData:
    """What a run reads.

    Attributes:
        tokenizer: Its tokenizer; a resumed run loads it from its checkpoint, where it cannot have changed.
        batches: What it trains on.
        validation: What it validates on.
        tokens: Tokens of the training text; None of a stream.
        checksum: A checksum of the training text; None of a stream.
        earlier_checksum: The one that earlier versions recorded; None of a stream.
        affixes: The special tokens around every text.
        learned: Tokens of the training text that are learned: without prompts, and without what no row holds; None of a
            stream.
        losses: What is left out and cut, and what may be misread, a line each.
        lengths: How long spans of the training text are; of a stream, of the text to validate on.
        sentinels: Those of fill-in-the-middle, where texts are rearranged for it.
    """

    tokenizer: PreTrainedTokenizerBase
    batches: TrainingBatches | StreamingBatches
    validation: Sequences
    tokens: int | None = None
    checksum: int | None = None
    affixes: Affixes = field(default_factory=Affixes)
    learned: int | None = None
    losses: tuple[str, ...] = ()
    earlier_checksum: int | None = None
    lengths: LengthPrior | None = None
    sentinels: Sentinels | None = None


def read_run_data(
    config: Config,
    spec: Tokenizer,
    process: int = 0,
    processes: int = 1,
    affixes: Affixes | None = None,
    family: Family | None = None,
) -> RunData:
    """Reads, or opens, what a run trains on, and reads what it validates on.

    Args:
        config: The run's configuration.
        spec: Which tokenizer to make or load; that of a checkpoint where a run is resumed.
        process: Which process this is; it has a share of a stream to itself.
        processes: How many there are.
        affixes: The special tokens that the run's model has around every text; None for those of the tokenizer.
        family: The family of published models that the run's model is one of.

    Returns:
        All of it.

    Raises:
        DlmError: A source or the tokenizer cannot be used.
    """
    data = config.data
    if data.streaming:
        return _streamed(config, spec, process, processes, affixes)
    splits = read_splits(data)
    tokenizer = build_tokenizer(spec, splits.train.texts)
    middle = _middle(config, tokenizer)
    around = affixes_of(tokenizer) if affixes is None else affixes
    template = ChatTemplate.of(tokenizer, family, shift=config.model.shift)
    training, validation = (
        corpus(tokenizer, documents, data.length, data.packing, around, template)
        for documents in (splits.train, splits.validation)
    )
    _check_apart(config, tokenizer, validation)
    tail_id = special_ids(tokenizer).end if data.train.supervised and data.tail else None
    rearrange = middle.rearranged if middle else None
    batches = TrainingBatches(training, config.train.batch_size, config.seed, tail_id, rearrange)
    if not len(validation):
        raise DataError(
            f"no prompt of the {counted(len(splits.validation), 'validation document')} is shorter than data.length "
            f"{data.length}, so that there is nothing to validate on: raise it"
        )
    lost = _lost(splits, training, validation, tokenizer)
    tokens = training.tokens
    return RunData(
        tokenizer,
        batches,
        validation,
        len(tokens),
        tokens.checksum,
        around,
        training.learned_tokens,
        tuple(chain(_misread(data), _endless(data, len(splits.train)), lost)),
        tokens.earlier_checksum,
        LengthPrior.of_texts(splits.train.texts(), tokenizer),
        middle.sentinels if middle else None,
    )


def _streamed(config: Config, spec: Tokenizer, process: int, processes: int, affixes: Affixes | None) -> RunData:
    """What a run reads that streams its training text; as for `read_run_data`."""
    data = config.data
    opened = open_stream(data)
    tokenizer = build_tokenizer(spec, opened.beginning)
    middle = _middle(config, tokenizer)
    ids, around = special_ids(tokenizer), affixes_of(tokenizer) if affixes is None else affixes
    validation = corpus(tokenizer, opened.validation, data.length, data.packing, around)
    stream = StreamingBatches(
        opened,
        partial(encode, copy.deepcopy(tokenizer)),  # called in a thread, and a tokenizer is not thread-safe
        ids.end,
        ids.pad,
        length=data.length,
        packing=data.packing,
        buffer=data.buffer,
        seed=config.seed,
        process=process,
        processes=processes,
        affixes=around,
        rearrange=middle.rearranged if middle else None,
    )
    _check_apart(config, tokenizer, validation)
    losses = (
        *_misread(data),
        *losses_of("validation", opened.validation, validation),
        *unknown_in("validation", validation, tokenizer),
    )
    if data.packing == "pad":
        losses = (
            f"training documents longer than data.length {data.length} are cut; pack them, or raise it",
            *losses,
        )
    counted = LengthPrior.of_texts(opened.validation.texts(), tokenizer)  # no more of the stream is read for it
    found = RunData(tokenizer, stream, validation, affixes=around, losses=losses, lengths=counted)
    return replace(found, sentinels=middle.sentinels if middle else None)


def _middle(config: Config, tokenizer: PreTrainedTokenizerBase) -> FillInTheMiddle | None:
    """How texts are rearranged, with sentinels added to the tokenizer; None where none are."""
    if not config.data.fim:
        return None
    ids = special_ids(tokenizer)
    return FillInTheMiddle(config.data.fim, add_sentinels(tokenizer, config.data.fim_order), ids.end, ids.pad)


def _lost(
    splits: Splits, training: Sequences, validation: Sequences, tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    """What of the texts is in no row, and what the tokenizer does not keep, a line each."""
    yield from losses_of("training", splits.train, training)
    yield from losses_of("validation", splits.validation, validation)
    yield from odd_roles("training", splits.train, tokenizer)
    yield from altered_in("training", splits.train.texts(), tokenizer)
    yield from unknown_in("training", training, tokenizer)
    yield from unknown_in("validation", validation, tokenizer)


def _misread(data: Data) -> Iterator[str]:
    """See `misread`; of the training text, and of the validation text where it is another."""
    yield from misread(data.train, "data.train")
    if data.validation is not None:
        yield from misread(data.validation, "data.validation")


def _endless(data: Data, documents: int) -> Iterator[str]:
    """A line where the end of each of many documents is held out, so that no ending is trained on."""
    if data.validation is None and data.held_out.by == "tail" and documents >= MANY:
        yield (
            f"data.held_out.by tail keeps back the last {data.held_out.share:.0%} of each of {documents:,} documents, "
            "so that no document's end is learned; set it to documents to hold out whole ones"
        )


def _check_apart(config: Config, tokenizer: PreTrainedTokenizerBase, rows: Sequences) -> None:
    """Refuses rows with special tokens around them that documents which do not see each other would need too."""
    if config.data.attend == "document" and len(rows.affixes):
        around = tokenizer.convert_ids_to_tokens([*rows.affixes.prefix, *rows.affixes.suffix])
        raise ConfigError(
            f"data.attend: this tokenizer puts {' and '.join(around)} around a row, and not around each document in "
            "it: set it to row; data.packing pad, which gives each document its own row, keeps them apart too"
        )
