"""A run's own text, read again from where it is now, if it is what the run read."""

from dataclasses import replace
from pathlib import Path

from dlm.data.batches import Sequences
from dlm.data.corpus import corpus
from dlm.data.documents import Documents
from dlm.data.reading import quiet, read_splits
from dlm.data.streaming import open_stream
from dlm.data.windows import Strided, Wrapped
from dlm.errors import ConfigError, DataError
from dlm.lm import DiffusionLM
from dlm.model.locate import CHECKPOINTS, resolve
from dlm.settings import load_config
from dlm.train.run import PROGRESS, TRAINER, Progress


def sequences_of(lm: DiffusionLM, documents: Documents) -> Sequences:
    """Documents as the rows that a model was trained on.

    Args:
        lm: The model.
        documents: The documents.

    Returns:
        Rows of its context, packed as its run packs them.
    """
    packing = lm.config.data.packing if lm.config else "pack"
    return corpus(lm.tokenizer, documents, lm.context, packing, lm.sidecar.affixes, lm.layout.chat_template)


def arranged(
    lm: DiffusionLM,
    documents: Documents,
    *,
    detokenize: str | None = None,
    wrap: bool = False,
    stride: int | None = None,
) -> tuple[Documents, Sequences]:
    """Documents in rows as papers score them.

    Args:
        lm: The model.
        documents: The documents, as they were published.
        detokenize: The corpus whose tokens are undone first, one of `DETOKENIZERS`; bytes stay those that were
            published.
        wrap: Whether documents are joined and cut into full rows alone.
        stride: Tokens that each further window of a document scores; None for rows as the model's run packs them.

    Returns:
        The documents as they are scored, and their rows.

    Raises:
        ConfigError: Documents that are detokenised or joined have prompts, or the stride does not fit the context.
        DataError: There is less text than one full row.
    """
    with quiet():
        written = documents if detokenize is None else documents.detokenized(detokenize)
    sequences = sequences_of(lm, written)
    if detokenize is not None:
        sequences = replace(sequences, tokens=replace(sequences.tokens, sizes=documents.sizes()))
    if wrap:
        sequences = Wrapped.of(sequences)
    if stride is not None:
        sequences = Strided.of(sequences, stride)
    return written, sequences


def own_documents(lm: DiffusionLM, model: str, split: str | None = None) -> Documents:
    """The documents of a run.

    Args:
        lm: Its model.
        model: What that was loaded from.
        split: `train` or `validation`, the default; a run that streams its text has the latter alone.

    Returns:
        The documents.

    Raises:
        ConfigError: The model is of no run, or a run has no such split.
        DataError: The text is gone, or is no longer what the run read, so that trained text may be in it.
    """
    if lm.config is None:
        raise ConfigError("this model has no validation text of its own")
    own = lm.config.data
    folder = Path(resolve(model)).resolve().parent
    if folder.name == CHECKPOINTS and (folder.parent / "config.yaml").is_file():
        own = load_config(folder.parent / "config.yaml").data  # its text may have moved since the checkpoint
    if own.streaming and split not in (None, "validation"):
        raise ConfigError("--split of a run that streams its text is validation")
    if split not in (None, "train", "validation"):
        raise ConfigError(f"--split of a run is train or validation, got {split!r}")
    if own.streaming:
        documents = open_stream(own).validation
    else:
        splits = read_splits(own)
        documents = splits.train if split == "train" else splits.validation
    _check_same(model, sequences_of(lm, documents), split)
    return documents


def _check_same(model: str, sequences: Sequences, split: str | None) -> None:
    """Refuses a run's own text where it is no longer what the run read."""
    checkpoint = Path(resolve(model))
    if not (checkpoint / TRAINER / PROGRESS).is_file():
        return
    progress, tokens = Progress.read(checkpoint), sequences.tokens
    known = progress.train_checksum if split == "train" else progress.validation_checksum
    if known not in (None, tokens.checksum, tokens.earlier_checksum):
        raise DataError(
            f"the {split or 'validation'} text of {model}, or what this version makes of it, "
            "has changed since the run read it: put the old text back"
        )
