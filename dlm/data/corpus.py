"""From documents and a tokenizer to sequences."""

from functools import partial
from typing import Literal

from transformers import PreTrainedTokenizerBase

from dlm.data.batches import Sequences
from dlm.data.documents import Documents
from dlm.data.tokens import Tokens
from dlm.errors import ConfigError
from dlm.model.text import ChatTemplate, encode
from dlm.model.tokenizer import Affixes, fingerprint, id_count, special_ids


def corpus(
    tokenizer: PreTrainedTokenizerBase,
    documents: Documents,
    length: int,
    packing: Literal["pack", "pad"],
    affixes: Affixes | None = None,
    template: ChatTemplate | None = None,
) -> Sequences:
    """Tokenises documents, or finds them tokenised in the cache, and cuts them into sequences.

    Args:
        tokenizer: Its end-of-text token goes after every document.
        documents: Such as `dlm.data.reading.read` gives.
        length: Tokens a sequence.
        packing: As `data.packing` in the configuration.
        affixes: The special tokens around every row; a chat has those alone that its template writes.
        template: How the model uses the tokenizer's chat template; by default as it is.

    Returns:
        The sequences.

    Raises:
        ConfigError: The special tokens leave no room for text.
    """
    ids, template = special_ids(tokenizer), template or ChatTemplate()
    documents = documents.writable(tokenizer, template)
    prompts = documents.prompt_encoder(tokenizer, template)
    written = "" if prompts is None or template == ChatTemplate() else repr(template)
    continues = prompts is not None and documents.continues(tokenizer, template)
    tokens = Tokens.of(
        documents.rows,
        partial(encode, tokenizer),
        ids.end,
        id_count(tokenizer),
        fingerprint(tokenizer) + written + (" continued" if continues else ""),
        prompts,
        partial(encode, tokenizer, continues=continues),
    )
    around = affixes if affixes and documents.has_affixes else Affixes()
    if len(around) >= length:
        raise ConfigError(
            f"data.length: {length} tokens have no room beside the {len(around)} special tokens of this tokenizer: "
            "raise it"
        )
    return Sequences(tokens, length, packing, ids.pad, around, documents.skipped)
