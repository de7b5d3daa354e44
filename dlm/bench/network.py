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
    return sum(p.numel() for p in _hidden(model))


def training_flops(model: PreTrainedModel) -> int:
    """Counts the floating-point operations of a training step, a token: 6 a hidden parameter, 4 a frozen one.

    Two are those of the forward, two of the gradient of what comes in, and two of the parameter's own, which a frozen
    one has none of; attention's own products and the vocabulary's are not counted (2001.08361, section 2.1).

    Args:
        model: A HuggingFace model with a head.

    Returns:
        FLOP a token.
    """
    return sum((6 if p.requires_grad else 4) * p.numel() for p in _hidden(model))


def _hidden(model: PreTrainedModel) -> list[nn.Parameter]:
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    head = model.get_output_embeddings()
    if head is not None:
        tables |= {id(p) for p in head.parameters()}
        owners = (module for module in model.modules() if any(child is head for child in module.children()))
        tables |= {id(p) for owner in owners for p in owner.parameters(recurse=False)}
    return [p for p in model.parameters() if id(p) not in tables]


def tensor_bytes(values: Iterable[Any]) -> int:
    """Bytes of those of the values that are tensors."""
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
