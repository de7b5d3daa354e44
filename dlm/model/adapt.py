"""Pretrained models as starting points: rows for new tokens, enough positions, and attention that opens slowly."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel

from dlm.diffusion.network import Network, NetworkInput, Reduced, Reducer
from dlm.errors import ConfigError
from dlm.model.backbone import PAD_OFFSET_POSITIONS


@torch.no_grad()
def make_room(model: PreTrainedModel, new_ids: Sequence[int], size: int) -> None:
    """Gives a pretrained model its new tokens, each with the mean of the rows that were trained.

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


def check_length(model: PreTrainedModel, length: int) -> None:
    """Refuses a text longer than the model has positions for.

    Args:
        model: A pretrained model.
        length: Tokens that it is to see.

    Raises:
        ConfigError: It has fewer positions.
    """
    config = model.config
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return
    room = positions - (config.pad_token_id + 1 if config.model_type in PAD_OFFSET_POSITIONS else 0)
    if length > room:
        raise ConfigError(
            f"data.length: this {config.model_type} has positions for {room} tokens and is asked to see {length}: "
            "choose a smaller data.length (model.shift takes one position more)"
        )


def is_decoder(model: PreTrainedModel) -> bool:
    """Whether the model was made to predict the next token, and so was trained to see the past alone."""
    return type(model.config) not in MODEL_FOR_MASKED_LM_MAPPING


def attention_annealing_mask(length: int, share: float, stream: torch.Generator) -> Tensor:
    """A mask between causal and full attention: each pair of a query and a later key is open with one probability.

    From causal models to diffusion by such masks: 2410.17891, section 3.3.

    Args:
        length: L.
        share: The probability; 0 is causal, 1 is full.
        stream: Where the draws come from.

    Returns:
        Boolean, shape (L, L): what each query (the first dimension) sees.
    """
    past_LL = torch.ones(length, length, dtype=torch.bool).tril()
    return past_LL | (torch.rand(length, length, generator=stream) < share)


def with_attention(network: Network, attention: Tensor) -> Network:
    """A network in which each query sees what a mask says; see `NetworkInput`."""

    def call(inputs: NetworkInput, reducer: Reducer | None = None) -> Tensor | Reduced:
        masked = replace(inputs, attention=attention)
        return network(masked) if reducer is None else network(masked, reducer)

    return call  # type: ignore[return-value]  # a closure cannot say that a reducer decides what is returned


def _rows(table: nn.Module | None) -> list[Tensor]:
    """The parameters with a row a token: a table's weight, and its bias if it has one."""
    if table is None:
        return []
    return [p for p in (getattr(table, "weight", None), getattr(table, "bias", None)) if isinstance(p, Tensor)]
