"""How attention is computed, and how a decoder's causal attention is opened: at once, or step by step."""

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dlm.diffusion.network import Network, NetworkInput, Reduced, Reducer
from dlm.errors import ConfigError


def attention_implementation(
    attention: str, device: torch.device, length: int, *, bf16: bool = False, learns: bool = False
) -> str:
    """Chooses how attention is computed.

    On two cores of a CPU (2,048 tokens a step, 6 heads of 64) a training step with SDPA was measured to take 1.12,
    1.09, 1.02 and 0.66 times that with eager attention at 64, 256, 512 and 1024 tokens in bf16, and 0.99, 1.01, 0.93
    and 0.79 times in fp32; the forward alone takes 0.93 to 1.15 times up to 256 tokens, and 0.64 to 0.77 at 512. On
    GPUs SDPA is fastest.

    Args:
        attention: `auto`, or the name of an implementation, which is returned as it is.
        device: Where the model runs.
        length: Tokens a sequence.
        bf16: Whether it computes in bfloat16.
        learns: Whether there is a backward pass.

    Returns:
        The name that transformers knows it by.

    Raises:
        ConfigError: Transformers has no such implementation.
    """
    if attention not in (known := ("auto", "eager", *sorted(ALL_ATTENTION_FUNCTIONS.valid_keys()))):
        raise ConfigError(
            f"model.attention: transformers has no {attention!r}; valid: {', '.join(dict.fromkeys(known))}"
        )
    if attention != "auto":
        return attention
    return "eager" if device.type == "cpu" and length <= (512 if bf16 and learns else 256) else "sdpa"


def open_attention(config: PreTrainedConfig) -> None:
    """Makes a decoder's attention bidirectional; transformers >= 5.2 reads `is_causal` and stores it."""
    config.is_causal = False


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


def document_attention_mask(document_BL: Tensor) -> Tensor:
    """A mask by which each token sees its own document alone.

    Args:
        document_BL: Which document each token belongs to; -1 at padding, which sees padding.

    Returns:
        Boolean, shape (B, L, L): what each query (the second dimension) sees.
    """
    return document_BL[:, :, None] == document_BL[:, None, :]


def with_attention(network: Network, attention: Tensor) -> Network:
    """A network in which each query sees what a mask says, of what its input lets it see; see `NetworkInput`."""

    def call(inputs: NetworkInput, reducer: Reducer | None = None) -> Tensor | Reduced:
        seen = inputs.attention & attention if isinstance(inputs.attention, Tensor) else attention
        masked = replace(inputs, attention=seen)
        return network(masked) if reducer is None else network(masked, reducer)

    return call  # type: ignore[return-value]  # a closure cannot say that a reducer decides what is returned
