"""Optimizers and the learning rate of a step."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer

from dlm.config import Optim
from dlm.train.sharding import full_tensor, shard_like

TOGETHER = 2**26
"""Entries of matrices that Muon updates at a time on a GPU, where a few copies of them exist meanwhile."""

PEAK = "peak_lr"
"""The key of an optimizer's parameter groups that keeps the learning rate at its peak."""


def build_optimizers(model: nn.Module, config: Optim) -> list[Optimizer]:
    """One optimizer, or two: Muon for the hidden matrices and AdamW for the rest.

    Embeddings and the vocabulary projection are matrices too, but they are tables of rows, and Muon's
    orthogonal updates suit maps (2502.16982); norms and biases have nothing to orthogonalise.

    Args:
        model: The network.
        config: Names, rates and decays.

    Returns:
        Optimizers that together hold every trainable parameter once.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tables |= {id(p) for m in model.modules() if hasattr(m, "get_output_embeddings") for p in _output(m)}
    tables |= {id(p) for name, p in named if "trainable_tokens" in name}  # rows of an embedding, as peft keeps them
    hidden = [p for _, p in named if p.ndim == 2 and id(p) not in tables]
    if config.name == "adamw":
        hidden = []
    ours = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in ours]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers: list[Optimizer] = []
    if groups:
        optimizers.append(AdamW(groups, lr=config.lr, betas=config.betas, fused=True))
    if hidden:
        optimizers.append(
            FullMatrixMuon(hidden, lr=config.muon_lr, weight_decay=config.weight_decay, momentum=config.momentum)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group[PEAK] = group["lr"]
    return optimizers


class FullMatrixMuon(Muon):
    """Muon whose update sees full matrices, also where they are sharded, and many of them at once on a GPU.

    Orthogonalisation needs the full matrix. By itself, torch would exchange partial products of a sharded one in
    bfloat16 eleven times. Here each matrix is gathered, one at a time. Every process takes torch's own step on it and
    keeps its shard. So on CPUs the step is bit for bit that of a matrix that is not sharded; on GPUs it is that step to
    the rounding of bfloat16.

    On a GPU, torch's own step takes the matrices one after another, and starting its small products takes far longer
    than computing them. Here matrices of one shape are multiplied together, `TOGETHER` of their entries at a time.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step; see `torch.optim.Muon`. Closures are not supported."""
        assert closure is None
        parameters = [p for group in self.param_groups for p in group["params"]]
        if all(p.is_cuda and not isinstance(p, DTensor) for p in parameters):
            for group in self.param_groups:
                self.step_together(group)
            return None
        if not any(isinstance(p, DTensor) for p in parameters):
            return super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step_full(p, {key: value for key, value in group.items() if key != "params"})
        return None

    @torch.no_grad()
    def step_together(self, group: dict[str, Any]) -> None:
        """Takes the step of `torch.optim.Muon` on a group of parameters, all matrices of one shape together."""
        shapes: dict[torch.Size, list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is not None:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
                shapes.setdefault(p.shape, []).append(p)
        for shape, alike in shapes.items():
            size = max(TOGETHER // shape.numel(), 1)
            for start in range(0, len(alike), size):
                self._step_alike(alike[start : start + size], group)

    def _step_alike(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """The step of some matrices of one shape."""
        gradients = [p.grad for p in matrices if p.grad is not None]
        averages = [self.state[p]["momentum_buffer"] for p in matrices]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, averages, group["momentum"]) if group["nesterov"] else averages
        update_PMN = torch.stack([update.bfloat16() for update in updates])
        update_PMN = orthogonalised(update_PMN, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = matrices[0].shape
        scale = math.sqrt(max(1.0, rows / columns))
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        # Contiguous, or tall matrices would be added one by one.
        torch._foreach_add_(
            matrices, list(update_PMN.to(matrices[0]).contiguous().unbind()), alpha=-group["lr"] * scale
        )

    def _step_full(self, p: Tensor, settings: dict[str, Any]) -> None:
        assert p.grad is not None
        matrix = nn.Parameter(full_tensor(p.detach()))
        matrix.grad = full_tensor(p.grad)
        optimizer = Muon([{"params": [matrix], **settings}])
        if state := self.state[p]:
            optimizer.state[matrix] = {key: full_tensor(value) for key, value in state.items()}
        optimizer.step()
        p.copy_(shard_like(matrix.detach(), p))
        self.state[p] = {key: shard_like(value, p) for key, value in optimizer.state[matrix].items()}


def orthogonalised(
    matrices_PMN: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float = 1e-7
) -> Tensor:
    """Moves the singular values of matrices towards 1, by Newton-Schulz iterations in bfloat16.

    With X of norm at most 1 each iteration is aX + b(XX')X + c(XX')(XX')X (Muon; 2502.16982, section 2.1).

    Args:
        matrices_PMN: P matrices of one shape.
        coefficients: a, b and c.
        steps: The number of iterations.
        eps: The least norm that a matrix is divided by.

    Returns:
        P matrices in bfloat16.
    """
    a, b, c = coefficients
    x_PMN = matrices_PMN.bfloat16()
    tall = x_PMN.shape[1] > x_PMN.shape[2]
    if tall:
        x_PMN = x_PMN.mT
    x_PMN = x_PMN / x_PMN.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram_PMM = x_PMN @ x_PMN.mT
        update_PMM = torch.baddbmm(gram_PMM, gram_PMM, gram_PMM, beta=b, alpha=c)
        x_PMN = torch.baddbmm(x_PMN, update_PMM, x_PMN, beta=a)
    return x_PMN.mT if tall else x_PMN


def learning_rate_factor(step: int, steps: int, config: Optim) -> float:
    """The learning rate of a step relative to its peak.

    Args:
        step: From 1 to `steps`; after the restart, where there is one.
        steps: Steps in the whole run.
        config: Warm-up, decay and restart.

    Returns:
        The factor. It rises linearly to 1 at the end of the warm-up and falls towards 0, which step `steps + 1` would
        reach.
    """
    step, steps = step - config.restart, steps - config.restart
    if step <= config.warmup:
        return step / config.warmup
    done = (step - config.warmup - 1) / max(steps - config.warmup, 1)
    match config.decay:
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        case "constant":
            return 1.0


def set_learning_rate(optimizers: Sequence[Optimizer], factor: float) -> None:
    """Sets every learning rate to `factor` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group[PEAK] * factor


def optimizer_tensors(optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Every tensor of the optimizers' states, by a unique name."""
    return {
        f"{i}.{index}.{key}": value
        for i, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimizers(optimizers: Sequence[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Loads what `optimizer_tensors` gave into optimizers built from the same model and configuration."""
    for i, optimizer in enumerate(optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            owner, index, key = name.split(".", 2)
            if int(owner) == i:
                like = parameters[int(index)]
                state.setdefault(int(index), {})[key] = shard_like(value, like if value.shape == like.shape else value)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def clip_gradients(parameters: Sequence[Tensor], limit: float | None) -> Tensor:
    """Scales the gradients down to a global norm of `limit`, and returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def _output(model: nn.Module) -> list[Tensor]:
    """The weight of a HuggingFace model's vocabulary projection, where it has one."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return [head.weight] if isinstance(head, nn.Linear) else []
