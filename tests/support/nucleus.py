"""Top-p by its definition: the whole vocabulary sorted."""

from torch import Tensor


def nucleus_by_sorting(weights_NV: Tensor, p: float) -> Tensor:
    """The weights, with 0 for each token before which the heavier ones and the equal ones of lower ids reach p."""
    ordered = weights_NV.sort(dim=-1, descending=True, stable=True)
    p_NV = ordered.values / ordered.values.sum(-1, keepdim=True)
    beyond_NV = p_NV.cumsum(-1) - p_NV >= p
    return weights_NV.masked_fill(beyond_NV.gather(-1, ordered.indices.argsort(-1)), 0.0)
