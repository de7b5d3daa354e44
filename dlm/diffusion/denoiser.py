"""Denoisers: what predicts the clean tokens of a noisy text."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dlm.diffusion.process import Process

Network = Callable[..., Any]
"""(xt_BL, t_B, select_BL) -> logits_NV: any network, its vocabulary projected on the selected rows alone.

One that is called in chunks takes a reader of logits as a fourth argument and gives what `read` gives.
"""

Reader = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""(log_p0_CV, which of the N rows they are) -> (a sum to minimise, and a value a row that has no gradient)."""


class Denoiser(Protocol):
    """A distribution over clean tokens at each selected position: p(x0 | xt), given all of xt."""

    def __call__(self, xt_BL: Tensor, t_B: Tensor, select_BL: Tensor) -> Tensor:
        """Predicts the clean token at the selected positions.

        Args:
            xt_BL: Noisy ids.
            t_B: The time of each sequence in [0, 1]; a time-free denoiser ignores it.
            select_BL: Boolean, the N positions wanted, counted row by row.

        Returns:
            Log-probabilities log_p0_NV, float32 or wider, each row normalised.
        """
        ...


@runtime_checkable
class Chunked(Protocol):
    """A denoiser that may predict a few rows at a time, so that no tensor of N x V exists."""

    def read(self, xt_BL: Tensor, t_B: Tensor, select_BL: Tensor, reader: Reader) -> tuple[Tensor, Tensor]:
        """See `read`."""
        ...


def read(denoiser: Denoiser, xt_BL: Tensor, t_B: Tensor, select_BL: Tensor, reader: Reader) -> tuple[Tensor, Tensor]:
    """Reduces predictions to a sum and a value a row, in chunks where the denoiser can.

    Args:
        denoiser: Predicts the clean tokens.
        xt_BL: Noisy ids.
        t_B: The time of each sequence.
        select_BL: Boolean, the N positions wanted.
        reader: What becomes of the log-probabilities; the rows must not depend on each other.

    Returns:
        The sum, differentiable, and the values, shape (N,).
    """
    if isinstance(denoiser, Chunked):
        return denoiser.read(xt_BL, t_B, select_BL, reader)
    return reader(denoiser(xt_BL, t_B, select_BL), slice(None))


class Shifted:
    """A network that predicts the next token, as causal decoders were trained to, made to predict in place.

    The prediction for a position is read one position earlier (2410.17891, section 3.3); one token stands before the
    text, so that its first position has a prediction too.
    """

    def __init__(self, network: Network, first_id: int) -> None:
        """Wraps a network.

        Args:
            network: Gives logits of the token after each selected position.
            first_id: What stands before every text.
        """
        self.network = network
        self.first_id = first_id

    def __call__(self, xt_BL: Tensor, t_B: Tensor, select_BL: Tensor, *reader: Any) -> Any:
        """Logits of the selected positions, or what a reader makes of them; see `Network`."""
        first_B1 = torch.full_like(xt_BL[:, :1], self.first_id)
        none_B1 = torch.zeros_like(select_BL[:, :1])
        return self.network(torch.cat([first_B1, xt_BL], 1), t_B, torch.cat([select_BL, none_B1], 1), *reader)


class Subs:
    """A network whose softmax over the symbols is p(x0 | xt) itself.

    For absorbing noise this is the SUBS parameterization (MDLM, 2406.07524, section 3.2.3): the mask is never
    predicted, its logit is minus infinity, and visible tokens are carried over, which here means that only masked
    positions are ever selected. For other noise it is the mixture form, D3PM's x0-parameterization (2107.03006,
    section 3.3). Ids that no text can hold, such as padding, are refused like the mask, so the bound is over
    the K symbols that text is made of.
    """

    def __init__(self, network: Network, never: Sequence[int], *, chunked: bool = False) -> None:
        """Wraps a network.

        Args:
            network: Gives logits at the selected positions.
            never: The ids that are never predicted, the mask among them.
            chunked: Whether the network takes a reader as a fourth argument.
        """
        self.network = network
        self._chunked = chunked
        self._never = torch.tensor(sorted(never), dtype=torch.long)

    def __call__(self, xt_BL: Tensor, t_B: Tensor, select_BL: Tensor) -> Tensor:
        """Log-probabilities log_p0_NV in float32 or wider; see `Denoiser`."""
        return self._reading(xt_BL, t_B, select_BL)(self.network(xt_BL, t_B, select_BL), slice(None))

    def read(self, xt_BL: Tensor, t_B: Tensor, select_BL: Tensor, reader: Reader) -> tuple[Tensor, Tensor]:
        """Reduces the predictions chunk by chunk; see `read`."""
        if not self._chunked:
            return reader(self(xt_BL, t_B, select_BL), slice(None))

        log_p0 = self._reading(xt_BL, t_B, select_BL)

        def read_logits(logits_CV: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            return reader(log_p0(logits_CV, rows), rows)

        total, values_N = self.network(xt_BL, t_B, select_BL, read_logits)
        return total, values_N

    def _reading(self, xt_BL: Tensor, t_B: Tensor, select_BL: Tensor) -> Callable[[Tensor, slice], Tensor]:
        """What turns the logits of some of the selected rows into log-probabilities."""
        return lambda logits_CV, rows: self._symbols(logits_CV).log_softmax(-1)

    def _symbols(self, logits_NV: Tensor) -> Tensor:
        """The logits, minus infinity where no text has the id."""
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        if self._never.device != logits_NV.device:
            with torch.inference_mode(False):  # whoever comes first, a loss may come next
                self._never = self._never.to(logits_NV.device)
        return logits_NV.index_fill(-1, self._never, -torch.inf)


class PlugIn(Subs):
    """A network whose softmax is the leave-one-out p(x0_i | xt without i), as UDLM and Duo plug it in.

    The token seen at i says on its own how likely each x0_i is, q(xt_i | x0_i); multiplied in, it makes the
    prediction p(x0_i | xt) that every denoiser gives. The mixture form of the reverse chain with that
    prediction is the plug-in form with the network's own (2605.22765; UDLM 2412.10193, Duo 2506.10892).
    """

    def __init__(self, network: Network, never: Sequence[int], process: Process, *, chunked: bool = False) -> None:
        """Wraps a network.

        Args:
            network: Gives logits at the selected positions.
            never: The ids that are never predicted, the mask among them.
            process: Its noise says what a seen token tells.
            chunked: Whether the network takes a reader as a fourth argument.
        """
        super().__init__(network, never, chunked=chunked)
        self.process = process

    def _reading(self, xt_BL: Tensor, t_B: Tensor, select_BL: Tensor) -> Callable[[Tensor, slice], Tensor]:
        z_N, t_N = xt_BL[select_BL], t_B[select_BL.nonzero()[:, 0].to(t_B.device)].to(xt_BL.device)
        return lambda logits_CV, rows: with_own_token(self._symbols(logits_CV), z_N[rows], self.process, t_N[rows])


def with_own_token(log_p_NV: Tensor, z_N: Tensor, process: Process, t_N: Tensor) -> Tensor:
    """p(x0_i | xt) from the leave-one-out p(x0_i | xt without i): times q(z | x0), and normalised.

    Args:
        log_p_NV: Leave-one-out log-probabilities, or logits.
        z_N: The token seen at each position.
        process: The forward process.
        t_N: The time of each position.

    Returns:
        Log-probabilities, shape (N, V).
    """
    return _add_at(log_p_NV, z_N, own_evidence(process, z_N, t_N))


def leave_one_out(log_p0_NV: Tensor, z_N: Tensor, process: Process, t_N: Tensor) -> Tensor:
    """p(x0_i | xt without i) from p(x0_i | xt): divided by q(z | x0), and normalised; undoes `with_own_token`."""
    if process.absorbing:
        return log_p0_NV  # a mask looks the same whatever is under it
    return _add_at(log_p0_NV, z_N, -own_evidence(process, z_N, t_N))


def own_evidence(process: Process, z_N: Tensor, t_N: Tensor) -> Tensor:
    """What seeing z says for x0 = z: log q(z | x0 = z) - log q(z | any other x0), in nats; 0 where z is the mask."""
    shares = process.shares(t_N)
    noise_N = process.noise_of(shares, z_N)
    return torch.where(z_N == process.mask_id, 0.0, torch.log1p(shares.clean / noise_N))


def _add_at(log_p_NV: Tensor, z_N: Tensor, nats_N: Tensor) -> Tensor:
    """Adds to the entry of z in each row, and normalises."""
    return log_p_NV.scatter_add(-1, z_N[:, None], nats_N[:, None].to(log_p_NV)).log_softmax(-1)
