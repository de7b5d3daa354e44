"""Denoisers: what predicts the clean tokens of a noisy text."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dlm.diffusion.devices import copied
from dlm.diffusion.network import Network, NetworkInput, Reduced, Reducer
from dlm.diffusion.process import Process
from dlm.diffusion.unmask import TokenChoice


class Denoiser(ABC):
    """A distribution over clean tokens at each wanted position: p(x0 | xt), given all of xt."""

    @abstractmethod
    def __call__(self, inputs: NetworkInput) -> Tensor:
        """Predicts the clean token at the wanted positions.

        Args:
            inputs: The noisy text, its time, and which positions are wanted.

        Returns:
            Log-probabilities log_p0_NV, float32 or wider, each row normalised.
        """

    def reduce(self, inputs: NetworkInput, reducer: Reducer) -> Reduced:
        """Reduces the predictions to a total and a value a row; in chunks where the denoiser can.

        Args:
            inputs: The noisy text, its time, and which positions are wanted.
            reducer: Takes log-probabilities log_p0_CV.

        Returns:
            The sum of its totals, and its values, shape (N,).
        """
        return reducer(self(inputs), slice(None))

    def draw_tokens(self, token: TokenChoice, inputs: NetworkInput, log_p_NV: Tensor, u_N: Tensor) -> Tensor:
        """Draws tokens for positions that are revealed in one step: each on its own, if nothing is known of them all.

        Args:
            token: How they are drawn.
            inputs: The call that they were predicted in, with no other positions wanted than these.
            log_p_NV: What was predicted for them.
            u_N: A float64 number in [0, 1) for each.

        Returns:
            Ids, shape (N,).
        """
        return token.draw(log_p_NV, u_N)


class FunctionDenoiser(Denoiser):
    """A denoiser given by a function, such as an exact one."""

    def __init__(self, function: Callable[[NetworkInput], Tensor]) -> None:
        """Wraps a function that gives log_p0_NV; see `Denoiser`."""
        self.function = function

    def __call__(self, inputs: NetworkInput) -> Tensor:
        """What the function gives."""
        return self.function(inputs)


class AttendingDenoiser(Denoiser):
    """A denoiser in which the tokens of each row see what a mask of that row says."""

    def __init__(self, denoiser: Denoiser, attention_BLL: Tensor) -> None:
        """Wraps a denoiser.

        Args:
            denoiser: What predicts.
            attention_BLL: Boolean, what each query (the second dimension) sees in each row of the canvas; no text
                sees padding, and padding sees padding.
        """
        self.denoiser, self.attention_BLL = denoiser, attention_BLL

    def __call__(self, inputs: NetworkInput) -> Tensor:
        """Predicts the clean tokens; see `Denoiser`."""
        return self.denoiser(self._masked(inputs))

    def reduce(self, inputs: NetworkInput, reducer: Reducer) -> Reduced:
        """Reduces the predictions; see `Denoiser`."""
        return self.denoiser.reduce(self._masked(inputs), reducer)

    def _masked(self, inputs: NetworkInput) -> NetworkInput:
        attention = self.attention_BLL if inputs.rows_B is None else self.attention_BLL[inputs.rows_B]
        return replace(inputs, attention=attention, padded=False)


class PlacedDenoiser(Denoiser):
    """A denoiser that computes on a device, for inputs made on the CPU; its predictions stay on the device."""

    def __init__(self, denoiser: Denoiser, device: Callable[[], torch.device]) -> None:
        """Wraps a denoiser.

        Args:
            denoiser: What predicts.
            device: Says where its network is.
        """
        self.denoiser = denoiser
        self.device = device

    def __call__(self, inputs: NetworkInput) -> Tensor:
        """Log-probabilities log_p0_NV, on the device; see `Denoiser`."""
        return self.denoiser(inputs.to(self.device()))

    def reduce(self, inputs: NetworkInput, reducer: Reducer) -> Reduced:
        """Reduces the predictions on the device; see `Denoiser`."""
        return self.denoiser.reduce(inputs.to(self.device()), reducer)


class NotingDenoiser(Denoiser):
    """A denoiser that notes which token it finds the likeliest at each position that was wanted of it.

    Attributes:
        likeliest_BL: The ids; -1 where no prediction was wanted.
    """

    def __init__(self, denoiser: Denoiser, x0_BL: Tensor, unwritten: Sequence[int] = ()) -> None:
        """Wraps a denoiser.

        Args:
            denoiser: What predicts.
            x0_BL: The rows of the canvas.
            unwritten: Ids that no sampler writes, so that none of them is noted.
        """
        self.denoiser, self.likeliest_BL = denoiser, torch.full_like(x0_BL, -1)
        self._unwritten = torch.tensor(unwritten, dtype=torch.long)

    def __call__(self, inputs: NetworkInput) -> Tensor:
        """Predicts the clean tokens; see `Denoiser`."""
        log_p0_NV = self.denoiser(inputs)
        self._note(inputs, log_p0_NV, slice(None))
        return log_p0_NV

    def reduce(self, inputs: NetworkInput, reducer: Reducer) -> Reduced:
        """Reduces the predictions; see `Denoiser`."""

        def noting(log_p0_CV: Tensor, rows: slice) -> Reduced:
            self._note(inputs, log_p0_CV, rows)
            return reducer(log_p0_CV, rows)

        return self.denoiser.reduce(inputs, noting)

    def _note(self, inputs: NetworkInput, log_p0_CV: Tensor, rows: slice) -> None:
        row_N, place_N = inputs.wanted_BL.nonzero(as_tuple=True)
        row_N = row_N if inputs.rows_B is None else inputs.rows_B[row_N]
        allowed_CV = log_p0_CV.index_fill(-1, self._unwritten.to(log_p0_CV.device), -torch.inf)
        self.likeliest_BL[row_N[rows], place_N[rows]] = allowed_CV.argmax(-1).to(self.likeliest_BL.device)


class X0Denoiser(Denoiser):
    """A network whose softmax over the symbols is p(x0 | xt) itself.

    For absorbing noise this is the SUBS parameterization (MDLM, 2406.07524, section 3.2.3): the mask is never
    predicted, its logit is minus infinity, and visible tokens are kept, because predictions
    are wanted at masks alone. For other noise it is the mixture form, D3PM's x0-parameterization (2107.03006,
    section 3.3). Ids that no text can hold, such as padding, are forbidden like the mask, so the bound is over
    the K symbols that text is made of.
    """

    def __init__(self, network: Network, forbidden: Sequence[int]) -> None:
        """Wraps a network.

        Args:
            network: Gives logits at the wanted positions.
            forbidden: The ids that are never predicted, the mask among them.
        """
        self.network = network
        self._forbidden = torch.tensor(sorted(forbidden), dtype=torch.long)

    def __call__(self, inputs: NetworkInput) -> Tensor:
        """Log-probabilities log_p0_NV in float32 or wider; see `Denoiser`."""
        return self._log_p0(inputs)(self.network(inputs), slice(None))

    def reduce(self, inputs: NetworkInput, reducer: Reducer) -> Reduced:
        """Reduces the predictions chunk by chunk; see `Denoiser`."""
        log_p0 = self._log_p0(inputs)

        def reduce_logits(logits_CV: Tensor, rows: slice) -> Reduced:
            return reducer(log_p0(logits_CV, rows), rows)

        return self.network(inputs, reduce_logits)

    def _log_p0(self, inputs: NetworkInput) -> Callable[[Tensor, slice], Tensor]:
        """The function from the logits of some of the wanted rows to log-probabilities."""
        return lambda logits_CV, rows: self._allowed(logits_CV).log_softmax(-1)

    def _allowed(self, logits_NV: Tensor) -> Tensor:
        """The logits in float32 or wider, minus infinity at forbidden ids."""
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        if self._forbidden.device != logits_NV.device:
            with torch.inference_mode(False):  # a tensor made in inference mode could not be used in a later loss
                self._forbidden = copied(self._forbidden, logits_NV.device)
        return logits_NV.index_fill(-1, self._forbidden, -torch.inf)


class LeaveOneOutDenoiser(X0Denoiser):
    """A network whose softmax is the leave-one-out p(x0_i | xt without i), as UDLM and Duo plug it in.

    The likelihood of the token seen at i, q(xt_i | x0_i), times that prediction is p(x0_i | xt), which every
    denoiser gives. The mixture form of the reverse chain with p(x0_i | xt) is the plug-in form with the
    network's own prediction (2605.22765; UDLM 2412.10193, Duo 2506.10892).
    """

    def __init__(self, network: Network, forbidden: Sequence[int], process: Process) -> None:
        """Wraps a network.

        Args:
            network: Gives logits at the wanted positions.
            forbidden: The ids that are never predicted, the mask among them.
            process: Its noise decides what a seen token says of the clean one.
        """
        super().__init__(network, forbidden)
        self.process = process

    def _log_p0(self, inputs: NetworkInput) -> Callable[[Tensor, slice], Tensor]:
        z_N, t_N = inputs.ids_BL.flatten()[inputs.index_N], inputs.of_wanted(inputs.time_B)
        return lambda logits_CV, rows: with_own_token(self._allowed(logits_CV), z_N[rows], self.process, t_N[rows])


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
    return _add_at(log_p_NV, z_N, own_token_log_odds(process, z_N, t_N))


def leave_one_out(log_p0_NV: Tensor, z_N: Tensor, process: Process, t_N: Tensor) -> Tensor:
    """p(x0_i | xt without i) from p(x0_i | xt): divided by q(z | x0), and normalised; undoes `with_own_token`."""
    if process.absorbing:
        return log_p0_NV  # a mask looks the same whatever is under it
    return _add_at(log_p0_NV, z_N, -own_token_log_odds(process, z_N, t_N))


def own_token_log_odds(process: Process, z_N: Tensor, t_N: Tensor) -> Tensor:
    """What seeing z says for x0 = z: log q(z | x0 = z) - log q(z | any other x0), in nats; 0 where z is the mask."""
    shares = process.shares(t_N)
    noise_N = process.noise_of(shares, z_N)
    return torch.where(z_N == process.mask_id, 0.0, torch.log1p(shares.clean / noise_N))


def _add_at(log_p_NV: Tensor, z_N: Tensor, nats_N: Tensor) -> Tensor:
    """Adds to the entry of z in each row, and normalises."""
    return log_p_NV.scatter_add(-1, z_N[:, None], nats_N[:, None].to(log_p_NV)).log_softmax(-1)
