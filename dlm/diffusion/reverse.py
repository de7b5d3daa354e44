"""The reverse chain of any process, on a grid of times.

`generate.py` goes by what is still masked, this goes by the clock: it serves noise that masks cannot tell the
level of, and denoisers that take the time.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import uniforms
from dlm.diffusion.generate import State
from dlm.diffusion.process import Process
from dlm.diffusion.unmask import TokenChoice


@torch.inference_mode()
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
    """Draws the editable positions of a canvas from the reverse chain, clamping every other position at every step.

    From t = k/T to s = (k-1)/T each token draws x0 from p(x0 | xt) and then xs from q(xs | xt, x0), which is
    ancestral sampling (D3PM, 2107.03006, eq. 4); the last step keeps x0. A token of absorbing noise stays once it
    is revealed, one of uniform noise may change at each step.

    Args:
        denoiser: Predicts the clean tokens; is told the time.
        process: The forward process.
        canvas_BL: Ids; what stands at editable positions does not matter.
        editable_BL: Boolean, the positions to write.
        steps: T, the network calls.
        token: Which x0 each position draws.
        generators: One stream a row; a row's text depends on its own stream and canvas alone.

    Yields:
        The noise at t = 1, and the state after every step that changed something, and after the last.

    Raises:
        ValueError: `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    x_BL = process.prior(generators, editable_BL).to(canvas_BL.device).where(editable_BL, canvas_BL)
    calls, calls_B = 0, torch.zeros(len(x_BL), dtype=torch.long)
    yield State(x_BL.clone(), editable_BL, torch.zeros_like(editable_BL), calls, calls_B.clone())
    for k in range(steps, 0, -1):
        select_BL = process.informative(x_BL) & editable_BL
        rows_B = select_BL.any(1)
        if not rows_B.any():
            break
        s_B, t_B = (torch.full((len(x_BL),), i / steps, dtype=torch.float64, device=x_BL.device) for i in (k - 1, k))
        log_p_NV = denoiser(x_BL, t_B, select_BL)
        u_N = torch.cat(uniforms(generators, select_BL.sum(1).tolist()))
        x0_BL = x_BL.masked_scatter(select_BL, token.draw(log_p_NV, u_N))
        xs_BL = x0_BL if k == 1 else process.undo(x_BL, x0_BL, s_B, t_B, generators, select_BL)
        changed_BL = xs_BL != x_BL
        x_BL = xs_BL
        calls += 1
        calls_B += rows_B.cpu()
        if changed_BL.any() or k == 1:
            yield State(x_BL.clone(), editable_BL, changed_BL, calls, calls_B.clone())
