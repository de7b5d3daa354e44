"""Pretrained models as starting points: embedding rows for new tokens, and enough positions for the text."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel

from dlm.errors import ConfigError
from dlm.model.loading import usable_positions


@torch.no_grad()
def init_new_token_rows(model: PreTrainedModel, new_ids: Sequence[int], size: int) -> None:
    """Gives a pretrained model rows for new tokens, each the mean of the rows that were trained.

    The new ids may lie inside a vocabulary that was rounded up, beyond it, or both.

    Args:
        model: Changed in place.
        new_ids: Ids that it was not trained with, such as a decoder's mask.
        size: The smallest vocabulary that holds every id of the tokenizer.
    """
    before = int(model.config.vocab_size)
    if size > before:
        model.resize_token_embeddings(size, mean_resizing=False)
    trained = sorted(set(range(before)) - set(new_ids))
    added = sorted(set(new_ids) | set(range(before, size)))
    if not added:
        return
    tables = {id(p): p for table in (model.get_input_embeddings(), model.get_output_embeddings()) for p in _rows(table)}
    for rows_V in tables.values():
        rows_V[added] = rows_V[trained].mean(0)


def check_length(model: PreTrainedModel, length: int, *, shift: bool) -> None:
    """Refuses a text longer than the model has positions for.

    Args:
        model: A pretrained model.
        length: Tokens a sequence.
        shift: Whether one of them is there because predictions are read one position earlier.

    Raises:
        ConfigError: It has fewer positions.
    """
    room = usable_positions(model)
    if room is not None and length > room:
        raise ConfigError(
            f"data.length: this {model.config.model_type} has positions for {room} tokens and is asked to see "
            f"{length}: choose a smaller data.length{' (model.shift takes one position more)' if shift else ''}"
        )


def is_decoder(model: PreTrainedModel) -> bool:
    """Whether the model was trained to predict the next token, and so with causal attention."""
    return type(model.config) not in MODEL_FOR_MASKED_LM_MAPPING


def _rows(table: nn.Module | None) -> list[Tensor]:
    """The parameters with one row for each token: a table's weight, and its bias if it has one."""
    if table is None:
        return []
    return [p for p in (getattr(table, "weight", None), getattr(table, "bias", None)) if isinstance(p, Tensor)]
