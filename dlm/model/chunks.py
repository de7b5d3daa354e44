"""The vocabulary projection in chunks of rows, each reduced and differentiated before the next is made.

Logits and their gradients are the largest tensors of a step: N x V, several times over. Here no more than `CHUNK` of
their elements exist at a time, and nothing is computed twice: a chunk's gradient is taken in the forward pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlm.diffusion.network import Reduced, Reducer

CHUNK = 2**22
"""Logits that exist at a time on a processor; with 32,768 ids, 128 rows. Larger chunks leave its caches."""

ACCELERATOR_CHUNK = 2**26
"""Logits that exist at a time on an accelerator, where each chunk reads and writes the head's gradient once more."""


def reduce_in_chunks(
    project: Callable[[Tensor], Tensor],
    rows_ND: Tensor,
    reducer: Reducer,
    vocabulary: int,
    parameters: Sequence[Tensor],
) -> Reduced:
    """Projects rows on the vocabulary, and reduces the logits a chunk at a time.

    Args:
        project: Rows to logits.
        rows_ND: Hidden states.
        reducer: What is made of the logits.
        vocabulary: V.
        parameters: The parameters of `project`.

    Returns:
        The total, differentiable by the rows and the parameters, and the values, shape (N,).
    """
    size = max((CHUNK if rows_ND.device.type == "cpu" else ACCELERATOR_CHUNK) // vocabulary, 1)
    chunks = [slice(start, start + size) for start in range(0, len(rows_ND), size)]
    if len(chunks) <= 1:
        return reducer(project(rows_ND), slice(None))
    if torch.is_grad_enabled():
        learned = [p for p in parameters if p.requires_grad]
        return Reduced(*_ReduceChunks.apply(project, reducer, chunks, rows_ND, *learned))
    parts = [reducer(project(rows_ND[chunk]), chunk) for chunk in chunks]
    return Reduced(torch.stack([part.total for part in parts]).sum(), torch.cat([part.values_N for part in parts]))


class _ReduceChunks(torch.autograd.Function):
    """The sum over all chunks, with its gradient ready."""

    @staticmethod
    def forward(
        ctx: Any,
        project: Callable[[Tensor], Tensor],
        reducer: Reducer,
        chunks: Sequence[slice],
        rows_ND: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        totals, values, row_gradients = [], [], []
        gradients: list[Tensor | None] = [None] * len(parameters)
        for chunk in chunks:
            with torch.enable_grad():
                rows_CD = rows_ND[chunk].detach().requires_grad_()
                total, values_C = reducer(project(rows_CD), chunk)
            row_gradient, *found = torch.autograd.grad(total, (rows_CD, *parameters), allow_unused=True)
            for i, gradient in enumerate(found):
                so_far = gradients[i]
                if gradient is not None:
                    gradients[i] = gradient if so_far is None else so_far.add_(gradient)
            totals.append(total.detach())
            values.append(values_C.detach())
            row_gradients.append(row_gradient)
        ctx.gradients = [torch.cat(row_gradients), *gradients]
        values_N = torch.cat(values)
        ctx.mark_non_differentiable(values_N)
        return torch.stack(totals).sum(), values_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # In place: a copy of the head's gradient would be the most memory of the whole step.
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, None, *(None if gradient is None else gradient.mul_(scale) for gradient in gradients)
