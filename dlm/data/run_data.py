"""The data of a run: its tokenizer, its training batches and its validation sequences."""

import copy
from dataclasses import dataclass, field
from functools import partial

from transformers import PreTrainedTokenizerBase

from dlm.config import Config, Tokenizer
from dlm.data.batches import Sequences, TrainingBatches
from dlm.data.corpus import corpus
from dlm.data.reading import read_splits
from dlm.data.streaming import open_stream
from dlm.data.streaming_batches import StreamingBatches
from dlm.data.tokens import Skipped
from dlm.model.text import encode
from dlm.model.tokenizer import Affixes, affixes_of, build_tokenizer, special_ids


@dataclass(frozen=True)
class RunData:
    """What a run reads.

    Attributes:
        tokenizer: Its tokenizer; a resumed run loads it from its checkpoint, where it cannot have changed.
        batches: What it trains on.
        validation: What it validates on.
        tokens: Tokens of the training text; None of a stream.
        checksum: A checksum of the training text; None of a stream.
        affixes: The special tokens around every text.
        skipped: Rows of the training and the validation text that were left out because they are not valid.
    """

    tokenizer: PreTrainedTokenizerBase
    batches: TrainingBatches | StreamingBatches
    validation: Sequences
    tokens: int | None = None
    checksum: int | None = None
    affixes: Affixes = field(default_factory=Affixes)
    skipped: tuple[Skipped, ...] = ()


def read_run_data(
    config: Config, spec: Tokenizer, process: int = 0, processes: int = 1, affixes: Affixes | None = None
) -> RunData:
    """Reads, or opens, what a run trains on, and reads what it validates on.

    Args:
        config: The run's configuration.
        spec: Which tokenizer to make or load; that of a checkpoint where a run is resumed.
        process: Which process this is; it has a share of a stream to itself.
        processes: How many there are.
        affixes: The special tokens that the run's model has around every text; None for those of the tokenizer.

    Returns:
        All of it.

    Raises:
        DlmError: A source or the tokenizer cannot be used.
    """
    data = config.data
    if data.streaming:
        opened = open_stream(data)
        tokenizer = build_tokenizer(spec, opened.beginning)
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
        )
        return RunData(tokenizer, stream, validation, affixes=around)
    splits = read_splits(data)
    tokenizer = build_tokenizer(spec, splits.train.texts)
    around = affixes_of(tokenizer) if affixes is None else affixes
    training, validation = (
        corpus(tokenizer, documents, data.length, data.packing, around)
        for documents in (splits.train, splits.validation)
    )
    tail_id = special_ids(tokenizer).end if data.train.supervised and data.tail else None
    batches = TrainingBatches(training, config.train.batch_size, config.seed, tail_id)
    return RunData(
        tokenizer,
        batches,
        validation,
        len(training.tokens),
        training.tokens.checksum,
        around,
        (training.skipped, validation.skipped),
    )
