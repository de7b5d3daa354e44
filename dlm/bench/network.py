"""The size of a network: the parameters that compute, and the bytes of its tensors."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def hidden_parameters(model: PreTrainedModel) -> int:
    """Counts the parameters outside of embeddings and the vocabulary projection.

    Layers of the head before the projection are counted, such as BERT's transform. The projection's bias is not, under
    either of its names in BERT. A parameter that layers share, as in ALBERT, is counted once.

    Args:
        model: A HuggingFace model with a head, tied or not.

    Returns:
        N of the 6 N D floating-point operations that training on D tokens takes (2001.08361, section 2.1).
    """
    return sum(p.numel() for p in _hidden(model))


def training_flops(model: PreTrainedModel) -> int:
    """Counts the floating-point operations of a training step for each token: 6 a hidden parameter, 4 a frozen one.

    The forward takes two, the gradient of the input two, and the gradient of the parameter two, which a frozen one does
    not have. The products of attention and of the vocabulary are not counted (2001.08361, section 2.1).

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
    """The bytes of the tensors among some values."""
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
