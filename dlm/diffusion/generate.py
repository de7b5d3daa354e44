"""The loop that unmasks. It alone knows of blocks, steps and stopping; the choices are in `unmask.py`."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import largest, uniforms
from dlm.diffusion.unmask import Budget, Order, Predictions, Step, TokenChoice


@dataclass(frozen=True)
class State:
    """The canvas after a step that changed it.

    Attributes:
        x_BL: Ids, masks among them until the last state.
        editable_BL: The positions that are being written, the same in every state.
        changed_BL: The positions that this step changed.
        calls: Network calls so far.
        calls_B: Network calls so far in which each row took part.
    """

    x_BL: Tensor
    editable_BL: Tensor
    changed_BL: Tensor
    calls: int
    calls_B: Tensor


@torch.inference_mode()
def generate(
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
) -> Iterator[State]:
    """Writes the editable positions of a canvas and leaves every other position as it is.

    Prompting and infilling are one thing: positions that are not editable. The network sees only the rows
    that are about to change, and the vocabulary is projected only on positions that may be revealed.

    Args:
        denoiser: Predicts the clean tokens; in the place of the time it is told the share of masks in the row.
        canvas_BL: Ids; what stands at editable positions does not matter.
        editable_BL: Boolean, the positions to write.
        mask_id: The id of the mask.
        order: Which positions first.
        budget: How many a step.
        token: Which token each gets.
        generators: One stream a row; a row's text depends on its own stream and canvas alone.
        block_length: Write blocks of this many positions from left to right, each with the whole budget
            (semi-autoregressive, as in LLaDA, 2502.09992). One block by default.
        stop_id: Once this id is written and everything editable before it is, the row is done, and its
            remaining positions are filled with this id.

    Yields:
        The state before the first step, and the state after every step that changed something. The last
        one holds no mask at an editable position.
    """
    x_BL = canvas_BL.masked_fill(editable_BL, mask_id)
    calls, calls_B = 0, torch.zeros(len(x_BL), dtype=torch.long)
    yield State(x_BL.clone(), editable_BL, torch.zeros_like(editable_BL), calls, calls_B.clone())

    for window_BL in _windows(editable_BL, block_length):
        start_B = _open(x_BL, window_BL, editable_BL, mask_id, stop_id).sum(1)
        for index in itertools.count(1):
            open_BL = _open(x_BL, window_BL, editable_BL, mask_id, stop_id)
            rows = open_BL.any(1).nonzero()[:, 0]
            if not rows.numel():
                break
            count_R = None
            if not budget.informed:
                streams = [generators[b] for b in rows.tolist()]
                count_R = budget.count(Step(index, open_BL[rows].sum(1), start_B[rows]), streams)
                rows, count_R = rows[count_R > 0], count_R[count_R > 0]
                if not rows.numel():
                    continue  # this step of the grid reveals nothing, and so costs nothing

            # From here on R stands for the rows that change in this step.
            streams = [generators[b] for b in rows.tolist()]
            x_RL, open_RL = x_BL[rows], open_BL[rows]
            t_R = (x_RL == mask_id).double().mean(1)
            predictions = None
            if order.informed or budget.informed:
                predictions = Predictions(denoiser(x_RL, t_R, open_RL), open_RL)
            scores_RL = order.score(open_RL, predictions, streams)
            if count_R is None:
                count_R = budget.count(Step(index, open_RL.sum(1), start_B[rows], scores_RL, predictions), streams)
            chosen_RL = largest(scores_RL, count_R)
            log_p_NV = predictions.at(chosen_RL) if predictions else denoiser(x_RL, t_R, chosen_RL)
            u_N = torch.cat(uniforms(streams, count_R.tolist()))

            x_BL[rows] = x_RL.masked_scatter(chosen_RL, token.draw(log_p_NV, u_N))
            changed_BL = torch.zeros_like(editable_BL)
            changed_BL[rows] = chosen_RL
            calls += 1
            calls_B[rows.cpu()] += 1
            yield State(x_BL.clone(), editable_BL, changed_BL, calls, calls_B.clone())

    if stop_id is not None and (rest_BL := (x_BL == mask_id) & editable_BL).any():
        yield State(x_BL.masked_fill(rest_BL, stop_id), editable_BL, rest_BL, calls, calls_B.clone())


def _windows(editable_BL: Tensor, block_length: int | None) -> Iterator[Tensor]:
    """The editable positions, `block_length` of each row at a time from the left."""
    if block_length is None:
        yield editable_BL
        return
    block_BL = (editable_BL.cumsum(1) - 1) // block_length
    for block in range(int(block_BL.max()) + 1):
        yield editable_BL & (block_BL == block)


def _open(x_BL: Tensor, window_BL: Tensor, editable_BL: Tensor, mask_id: int, stop_id: int | None) -> Tensor:
    """The masks of this window that are still to be revealed: none that stand after a stop already written."""
    open_BL = (x_BL == mask_id) & window_BL
    if stop_id is None:
        return open_BL
    stopped_BL = ((x_BL == stop_id) & editable_BL).cumsum(1) > 0
    return open_BL & ~stopped_BL
