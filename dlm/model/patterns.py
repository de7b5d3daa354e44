"""Attention by a pattern: nothing is computed that is always shut; see `dlm.diffusion.streams`."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from dlm.diffusion.streams import Causal, Open, Pattern, TwoStreams

EAGER, SDPA = "dlm_eager", "dlm_sdpa"
"""The implementations of attention that know patterns, by the names that transformers knows them by."""


def use_patterns(model: PreTrainedModel) -> None:
    """Makes a model's attention follow the pattern of a call that has one; all other calls stay as they are.

    Args:
        model: Changed in place. Whether it hands the pattern to its layers is for its owner to check.
    """
    name = model.config._attn_implementation
    model.set_attn_implementation({"eager": EAGER, "sdpa": SDPA}.get(name, name))


def patterned_attention(
    module: nn.Module,
    query_BHND: Tensor,
    key_BGMD: Tensor,
    value_BGMD: Tensor,
    mask: Tensor | None,
    *,
    eager: bool,
    scaling: float | None = None,
    dropout: float = 0.0,
    pattern: Pattern | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer, as transformers calls it.

    Args:
        module: The layer's attention.
        query_BHND: Queries, H heads.
        key_BGMD: Keys, G heads that divide H.
        value_BGMD: Values.
        mask: What is added to each logit, or None; not used with a pattern.
        eager: Whether logits are computed as they are written, which is faster for short rows on a CPU.
        scaling: What logits are multiplied by.
        dropout: The share of weights that is dropped.
        pattern: What each query sees.
        **options: What else transformers hands over.

    Returns:
        What each token reads, shape (B, N, H, D), and None for the weights.
    """
    if pattern is None and not eager:
        return sdpa_attention_forward(
            module, query_BHND, key_BGMD, value_BGMD, mask, scaling=scaling, dropout=dropout, **options
        )
    groups = query_BHND.shape[1] // key_BGMD.shape[1]
    if groups > 1:
        key_BGMD, value_BGMD = (x.repeat_interleave(groups, 1) for x in (key_BGMD, value_BGMD))
    attend = _Attend(query_BHND.shape[-1] ** -0.5 if scaling is None else scaling, dropout, eager)
    if pattern is None:
        out_BHND = attend(query_BHND, key_BGMD, value_BGMD, mask)
    elif isinstance(pattern, TwoStreams):
        out_BHND = _two_streams(attend, query_BHND, key_BGMD, value_BGMD, pattern)
    elif isinstance(pattern, Open):
        out_BHND = attend(query_BHND, key_BGMD, value_BGMD, None)
    else:
        out_BHND = attend.causal(query_BHND, key_BGMD, value_BGMD)
    return out_BHND.transpose(1, 2).contiguous(), None


def _two_streams(attend: "_Attend", query: Tensor, key: Tensor, value: Tensor, pattern: TwoStreams) -> Tensor:
    """Clean queries against clean keys; noisy ones against their own block, and the clean keys that they see."""
    (q_clean, q_noisy), (k_clean, k_noisy), (v_clean, v_noisy) = (x.chunk(2, 2) for x in (query, key, value))
    if pattern.causal:
        clean = attend.causal(q_clean, k_clean, v_clean)
    else:
        clean = attend(q_clean, k_clean, v_clean, pattern.clean_BLL[:, None])
    if pattern.whole:
        return torch.cat([clean, attend(q_noisy, k_noisy, v_noisy, None)], 2)
    seen_BLN = torch.cat([pattern.memory_BLL, pattern.own_BLL], 2)
    return torch.cat([clean, attend(q_noisy, key, value, seen_BLN[:, None])], 2)


class _Attend:
    """Softmax attention with one scale and one dropout."""

    def __init__(self, scaling: float, dropout: float, eager: bool) -> None:
        self.scaling, self.dropout, self.eager = scaling, dropout, eager

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """What each query reads; a mask is boolean, or is added to the logits."""
        if not self.eager:
            return nn.functional.scaled_dot_product_attention(q, k, v, mask, self.dropout, scale=self.scaling)
        logits = q @ k.transpose(2, 3) * self.scaling
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        weights = logits.softmax(-1, dtype=torch.float32).to(q.dtype)
        return nn.functional.dropout(weights, self.dropout, self.dropout > 0.0) @ v

    def causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What each query reads of its own key and those before it."""
        if not self.eager:
            return nn.functional.scaled_dot_product_attention(
                q, k, v, None, self.dropout, is_causal=True, scale=self.scaling
            )
        return self(q, k, v, Causal().dense(q.shape[2]).to(q.device))


def _eager(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
    return patterned_attention(module, query, key, value, mask, eager=True, **options)


def _sdpa(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
    return patterned_attention(module, query, key, value, mask, eager=False, **options)


AttentionInterface.register(EAGER, _eager)
AttentionInterface.register(SDPA, _sdpa)
AttentionMaskInterface.register(EAGER, eager_mask)
AttentionMaskInterface.register(SDPA, sdpa_mask)
