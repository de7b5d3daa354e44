"""How large a network is: what of it computes, and what its tensors take."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def hidden_parameters(model: PreTrainedModel) -> int:
    """Counts the parameters that are no embedding and no vocabulary projection.

    What a head does before its projection counts, as BERT's transform does; the projection's bias does not, under
    either of the names that BERT has for it. Each is counted once, also where layers share it, as ALBERT's do.

    Args:
        model: A HuggingFace model with a head, tied or not.

    Returns:
        N of the 6 N D floating-point operations that training on D tokens takes (2001.08361, section 2.1).
    """
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    head = model.get_output_embeddings()
    if head is not None:
        tables |= {id(p) for p in head.parameters()}
        owners = (module for module in model.modules() if any(child is head for child in module.children()))
        tables |= {id(p) for owner in owners for p in owner.parameters(recurse=False)}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)


def tensor_bytes(values: Iterable[Any]) -> int:
    """Bytes of those of the values that are tensors."""
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
