"""The sampling loop. It alone knows of blocks, stopping and counting; a rule (`rules.py`) decides what a step does."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.rules import Rule, StepInput


@dataclass(frozen=True)
class State:
    """The canvas after a step that changed it.

    Attributes:
        x_BL: Ids; noise among them until the last state.
        editable_BL: The positions that are being written, the same in every state.
        changed_BL: The positions that changed since the state before.
        calls: Network calls so far.
        calls_B: Network calls so far in which each row took part.
    """

    x_BL: Tensor
    editable_BL: Tensor
    changed_BL: Tensor
    calls: int
    calls_B: Tensor


@torch.inference_mode()
def sample(
    rule: Rule,
    denoiser: Denoiser,
    canvas_BL: Tensor,
    editable_BL: Tensor,
    *,
    generators: Sequence[torch.Generator],
    block_length: int | None = None,
    stop_ids: Sequence[int] = (),
) -> Iterator[State]:
    """Writes the editable positions of a canvas and leaves every other position as it is.

    Prompting and infilling are one thing: positions that are not editable.

    Args:
        rule: What a step does.
        denoiser: Predicts the clean tokens.
        canvas_BL: Ids; what stands at editable positions does not matter.
        editable_BL: Boolean, the positions to write.
        generators: One stream a row; a row's text depends on its own stream and canvas alone.
        block_length: Write blocks of this many positions from left to right, each with all of the rule's steps
            (semi-autoregressive, as in LLaDA, 2502.09992). One block by default.
        stop_ids: Once one of these ids is written and everything editable before it is, the row is done, and its
            remaining positions are filled with the first of these ids. Where a rule may change a written token, this
            holds from the end of each block on: its tokens are final then.

    Yields:
        The noise before the first step, the state after every step that changed something, and the last state.
    """
    x_BL = rule.begin(canvas_BL, editable_BL, generators)
    calls, calls_B, unchanged_BL = 0, torch.zeros(len(x_BL), dtype=torch.long), torch.zeros_like(editable_BL)
    yield (last := State(x_BL, editable_BL, unchanged_BL, calls, calls_B))

    final_BL = editable_BL if rule.tokens_are_final else torch.zeros_like(editable_BL)
    open_BL = editable_BL  # what no step has been taken of
    for block_BL in _blocks(editable_BL, block_length):
        initial_count_B: Tensor | None = None
        drawn_BL: Tensor | None = None
        for index in range(1, rule.steps + 1) if rule.steps else itertools.count(1):
            active_BL = rule.active(x_BL, block_BL) & ~_stopped(x_BL, final_BL, stop_ids)
            if initial_count_B is None:
                initial_count_B, open_BL = active_BL.sum(1), open_BL & ~active_BL
            if not active_BL.any():
                break
            changes = rule.step(StepInput(index, x_BL, active_BL, initial_count_B, drawn_BL), denoiser, generators)
            if changes is None:
                continue
            x_BL, drawn_BL = changes.x_BL, changes.drawn_BL
            calls, calls_B = calls + int(changes.called_B.any()), calls_B + changes.called_B
            if changes.changed_BL.any():
                yield (last := State(x_BL, editable_BL, changes.changed_BL, calls, calls_B))
        final_BL = final_BL | block_BL

    rest_BL = rule.active(x_BL, editable_BL if rule.tokens_are_final else open_BL)
    if stop_ids and rest_BL.any():
        yield State(x_BL.masked_fill(rest_BL, stop_ids[0]), editable_BL, rest_BL, calls, calls_B)
    elif calls > last.calls:
        yield State(x_BL, editable_BL, unchanged_BL, calls, calls_B)


def _blocks(editable_BL: Tensor, block_length: int | None) -> Iterator[Tensor]:
    """The editable positions, `block_length` of each row at a time from the left."""
    if block_length is None:
        yield editable_BL
        return
    block_BL = (editable_BL.cumsum(1) - 1) // block_length
    for block in range(int(block_BL.max()) + 1):
        yield editable_BL & (block_BL == block)


def _stopped(x_BL: Tensor, final_BL: Tensor, stop_ids: Sequence[int]) -> Tensor:
    """The positions at or after a stop that was written and stays."""
    if not stop_ids:
        return torch.zeros_like(final_BL)
    ends_BL = torch.isin(x_BL, torch.tensor(stop_ids, device=x_BL.device))
    return (ends_BL & final_BL).cumsum(1) > 0
