"""A model with a causal reading as the plain causal model that transformers reads from its folder."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlm.model.public import Family
from dlm.model.tokenizer import all_special_ids, special_ids, vocabulary_of


@contextmanager
def causal_on_disk(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: Family | None = None
) -> Iterator[None]:
    """Has a model saved as plain transformers is to read it: from left to right, from a begin to an end.

    The ids that no text holds, such as the mask, are suppressed where `generate` writes: training leaves their logits
    out, and so they may be anything.

    Args:
        model: Saved inside; its attention is open again after that.
        tokenizer: Its tokenizer.
        family: The family of published models that it is one of.

    Yields:
        Nothing.
    """
    ids, config, generation = special_ids(tokenizer), model.config, model.generation_config
    begin = ids.end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    special = all_special_ids(tokenizer)
    for each in (config, generation):
        if each is not None:
            each.bos_token_id, each.pad_token_id = begin, ids.pad
            each.eos_token_id = _ends(ids.end, each.eos_token_id, special)
    if generation is not None:
        allowed = family.end_ids(tokenizer) if family else []
        generation.suppress_tokens = list(vocabulary_of(tokenizer, int(config.vocab_size), allowed=allowed).forbidden)
    opened = vars(config).pop("is_causal", None)
    try:
        yield
    finally:
        if opened is not None:
            config.is_causal = opened


def _ends(end: int, known: int | Sequence[int] | None, special: Collection[int]) -> int | list[int]:
    """The ids that end a text: the tokenizer's, and those of the model's own that are special, such as one of chats."""
    others = [known] if isinstance(known, int) else known or ()
    ends = [end, *(id_ for id_ in others if id_ != end and id_ in special)]
    return ends if len(ends) > 1 else end
