"""Short ways to ask a denoiser or a network, and to run a sampler on one."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.noise import Absorbing
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.rules import ReverseChain, Unmasking
from dlm.diffusion.sample import State, sample
from dlm.diffusion.schedule import Linear, NoiseSchedule
from dlm.diffusion.streams import Open
from dlm.diffusion.unmask import Budget, Order, TokenChoice


def ask(network: Callable[[NetworkInput], Tensor], xt_BL: Tensor, t_B: Tensor | None, wanted_BL: Tensor) -> Tensor:
    """What a network or a denoiser says of the wanted positions; a network that takes no time is told 0."""
    return network(NetworkInput(xt_BL, wanted_BL, torch.zeros(len(xt_BL)) if t_B is None else t_B))


def unmask(
    denoiser: Denoiser,
    canvas_BL: Tensor,
    editable_BL: Tensor,
    *,
    mask_id: int,
    order: Order,
    budget: Budget,
    token: TokenChoice,
    generators: Sequence[torch.Generator],
    block_length: int | None = None,
    stop_id: int | None = None,
    schedule: NoiseSchedule | None = None,
) -> Iterator[State]:
    """Unmasks a canvas; the mask is the last id."""
    process = Process(Absorbing(), schedule or Linear(), Vocabulary(mask_id + 1, mask_id, (mask_id,)))
    rule = Unmasking(process, order, budget, token)
    return sample(
        rule,
        denoiser,
        canvas_BL,
        editable_BL,
        generators=generators,
        block_length=block_length,
        stop_ids=() if stop_id is None else (stop_id,),
    )


def reverse(
    denoiser: Denoiser,
    process: Process,
    canvas_BL: Tensor,
    editable_BL: Tensor,
    *,
    steps: int,
    token: TokenChoice,
    generators: Sequence[torch.Generator],
) -> Iterator[State]:
    """Runs the reverse chain on a canvas."""
    return sample(ReverseChain(process, steps, token), denoiser, canvas_BL, editable_BL, generators=generators)


def seen_behind_cache(inputs: NetworkInput) -> Tensor:
    """What each id of a call sees of a cache's slots and of the call, shape (B, N, M + N)."""
    if isinstance(inputs.attention, Tensor):
        return inputs.attention
    assert isinstance(inputs.attention, Open) and inputs.cache is not None
    rows, count = inputs.ids_BL.shape
    return torch.ones(rows, count, inputs.cache.get_seq_length() + count, dtype=torch.bool)
