"""Attention by a pattern: nothing is computed that is always shut; see `dlm.diffusion.streams`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from dlm.diffusion.network import NetworkInput
from dlm.diffusion.streams import Causal, Open, Pattern, TwoStreams, block_numbers
from dlm.errors import ConfigError
from dlm.model.adapt import is_decoder

EAGER, SDPA = "dlm_eager", "dlm_sdpa"
"""The implementations of attention that know patterns, by the names that transformers knows them by."""


def use_patterns(model: PreTrainedModel) -> None:
    """Makes a model's attention follow the pattern of a call that has one; all other calls stay as they are.

    Args:
        model: Changed in place. Whether it hands the pattern to its layers is for its owner to check.
    """
    name = model.config._attn_implementation
    model.set_attn_implementation({"eager": EAGER, "sdpa": SDPA}.get(name, name))


@torch.no_grad()
def check_patterns(rows: Callable[[NetworkInput], Tensor], model: PreTrainedModel, pad_id: int | None) -> None:
    """Checks that what each token sees, and where it stands, can be set, on two streams of four tokens.

    Args:
        rows: Gives the last hidden states of the wanted positions, shape (N, D).
        model: What it runs.
        pad_id: The id that no text holds.

    Raises:
        ConfigError: The model is an encoder; it does not hand patterns to its attention, or not all of its layers
            follow them; or its positions are not relative, so that the readings would be of different texts.
    """
    kind = model.config.model_type
    if not is_decoder(model):
        raise ConfigError(
            f"model.architecture {kind} is an encoder, which is not read from left to right: take a decoder, such as "
            "qwen3, or set readings to masked"
        )
    if _depends_on_length(model):
        raise ConfigError(
            f"model.architecture {kind} turns positions by more or less where a row beside them is longer (longrope or "
            "dynamic), so that a text would depend on its batch: set readings to masked"
        )
    training = model.training
    model.eval()
    usable = [i for i in range(model.config.vocab_size) if i != pad_id][:3]
    ids_BN = torch.tensor([usable * 3], device=model.device)[:, :8]
    positions_N = torch.tensor([0, 1, 2, 3, 1, 2, 3, 4], device=model.device)
    pattern = TwoStreams(block_numbers(4, 2)).to(model.device)
    plain = NetworkInput(ids_BN, torch.ones_like(ids_BN, dtype=torch.bool), torch.zeros(1), positions=positions_N)
    changed = replace(plain, ids_BL=ids_BN.index_fill(1, positions_N[3:4], usable[1]))
    inputs = (
        replace(plain, attention=pattern),
        replace(plain, attention=pattern.dense(8)),
        replace(changed, attention=pattern),
        replace(plain, attention=pattern, positions=positions_N + 1),
    )
    by_pattern_ND, by_mask_ND, hidden_ND, later_ND = map(rows, inputs)
    model.train(training)
    if not _agree(by_pattern_ND, by_mask_ND):
        raise ConfigError(f"model.architecture {kind}: its attention cannot be told what a clean text's copy sees")
    if not torch.equal(by_pattern_ND[:3], hidden_ND[:3]):
        raise ConfigError(f"model.architecture {kind} sees what a pattern hides")
    if not _agree(by_pattern_ND, later_ND):
        raise ConfigError(
            f"model.architecture {kind} has a learned vector for each position, and its readings begin at different "
            "ones: take an architecture with relative positions, such as qwen3, or set readings to masked"
        )


def _depends_on_length(model: PreTrainedModel) -> bool:
    """Whether the rotary embedding of a position depends on the longest row of a call."""
    found = getattr(model.config, "rope_parameters", None) or {}
    kinds = [found, *(value for value in found.values() if isinstance(value, dict))]  # some have one a kind of layer
    return any(kind.get("rope_type") in ("longrope", "dynamic") for kind in kinds)


def _agree(one_ND: Tensor, other_ND: Tensor) -> bool:
    """Whether two results differ by rounding alone, which is coarse in 16 bits."""
    share = 1e-3 if one_ND.dtype == torch.float32 else 5e-2
    return bool((one_ND - other_ND).float().norm() <= share * other_ND.float().norm())


def patterned_attention(
    module: nn.Module,
    query_BHND: Tensor,
    key_BGMD: Tensor,
    value_BGMD: Tensor,
    attention_mask: Tensor | None,
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
        attention_mask: What is added to each logit, or None; not used with a pattern.
        eager: Whether logits are computed as they are written, which is faster for short rows on a CPU.
        scaling: What logits are multiplied by.
        dropout: The share of weights that is dropped.
        pattern: What each query sees.
        **options: What else transformers hands over.

    Returns:
        What each token reads, shape (B, N, H, D), and None for the weights.

    Raises:
        ConfigError: The layer asks for more than softmax attention.
    """
    if more := next((name for name in ("softcap", "s_aux") if options.get(name) is not None), None):
        kind = getattr(module.config, "model_type", type(module).__name__)
        raise ConfigError(f"model.architecture {kind} has attention with {more}: set readings to masked")
    if pattern is None and not eager:
        return sdpa_attention_forward(
            module, query_BHND, key_BGMD, value_BGMD, attention_mask, scaling=scaling, dropout=dropout, **options
        )
    groups = query_BHND.shape[1] // key_BGMD.shape[1]
    if groups > 1:
        key_BGMD, value_BGMD = (x.repeat_interleave(groups, 1) for x in (key_BGMD, value_BGMD))
    attend = _Attend(query_BHND.shape[-1] ** -0.5 if scaling is None else scaling, dropout, eager)
    if pattern is None:
        out_BHND = attend(query_BHND, key_BGMD, value_BGMD, attention_mask)
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
    return torch.cat([clean, attend(q_noisy, key, value, pattern.noisy_BLN[:, None])], 2)


class _Attend:
    """Softmax attention with one scale and one dropout."""

    def __init__(self, scaling: float, dropout: float, eager: bool) -> None:
        self.scaling, self.dropout, self.eager = scaling, dropout, eager

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """What each query reads; a mask is boolean, or is added to the logits."""
        if not self.eager:
            return nn.functional.scaled_dot_product_attention(q, k, v, mask, self.dropout, scale=self.scaling)
        logits = (q @ k.transpose(2, 3)).mul_(self.scaling)
        if mask is not None:
            # Not in place: in bf16, what hides a token would round to -inf, and a row that sees nothing would be nan.
            logits = logits.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        # Softmax sums in float32 in any case. Its weights are kept in float32 only where a gradient needs them.
        weights = logits.softmax(-1, dtype=torch.float32 if logits.requires_grad else None).to(q.dtype)
        if self.dropout > 0.0:
            weights = nn.functional.dropout(weights, self.dropout)
        return weights @ v

    def causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What each query reads of its own key and those before it."""
        if not self.eager:
            return nn.functional.scaled_dot_product_attention(
                q, k, v, None, self.dropout, is_causal=True, scale=self.scaling
            )
        return self(q, k, v, Causal().dense(q.shape[2]).to(q.device))


AttentionInterface.register(EAGER, partial(patterned_attention, eager=True))
AttentionInterface.register(SDPA, partial(patterned_attention, eager=False))
AttentionMaskInterface.register(EAGER, eager_mask)
AttentionMaskInterface.register(SDPA, sdpa_mask)
