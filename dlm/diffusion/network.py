"""The seam to the network: what it is told, and what it gives back.

Wrappers (a shift, guidance, a cache) are networks or denoisers around another. A call's rows, attention and cache are
in its input; a prompt, or the blocks of a text, the wrapper keeps itself, by the rows of the canvas.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, Self, overload

import torch
from torch import Tensor, nn

from dlm.diffusion.devices import copied, has_float64
from dlm.diffusion.streams import Open, Pattern


class Cache(Protocol):
    """Keys and values of clean tokens that stand before the ids, such as transformers' `DynamicCache`."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of tokens that are cached, M."""
        ...

    def crop(self, max_length: int) -> None:
        """Keeps the first `max_length` tokens; if negative, drops that many from the end."""
        ...


class RaggedCache(Cache, Protocol):
    """A cache whose rows grow on their own.

    Attributes:
        lengths: The tokens that each row keeps.
    """

    @property
    def lengths(self) -> list[int]:
        """The tokens that each row keeps."""
        ...

    def keep(self, counts: Sequence[int]) -> None:
        """Keeps the first `counts[b]` tokens of the last call."""
        ...

    def select(self, rows: Sequence[int]) -> None:
        """Keeps some rows alone, in the order given."""
        ...


@dataclass(frozen=True)
class NetworkInput:
    """One call of a network.

    Samplers and training objectives make it on the CPU, where their random numbers are, and move it, so that they need
    not wait for a GPU to tell where the wanted positions are.

    Attributes:
        ids_BL: Noisy ids.
        wanted_BL: Boolean, the N positions whose predictions are wanted, counted row by row.
        time_B: The time of each row in [0, 1]; a network without time conditioning ignores it.
        rows_B: Which rows of the canvas these are, where a sampler passes some of them; None for all of them.
        attention: What each query sees: boolean, shape (L, M + L) or (B, L, M + L), or a pattern; None for every token.
        positions: Where the ids stand in their text, shape (L,) or (B, L); None for one behind the other, from M on.
        cache: The M tokens that stand before the ids; None for none. A call leaves it as it was; its owner fills it.
        padded: Whether some ids are padding; None where that is not known.
    """

    ids_BL: Tensor
    wanted_BL: Tensor
    time_B: Tensor
    rows_B: Tensor | None = None
    attention: Tensor | Pattern | None = None
    positions: Tensor | None = None
    cache: Cache | None = None
    padded: bool | None = None

    @cached_property
    def index_N(self) -> Tensor:
        """The wanted positions, as indices into all B x L."""
        return self.wanted_BL.flatten().nonzero()[:, 0]

    def of_wanted(self, per_row_B: Tensor) -> Tensor:
        """One value a row as one value a wanted position, shape (N,), where the ids are."""
        return per_row_B.to(self.ids_BL.device)[self.index_N // self.wanted_BL.shape[1]]

    def to(self, device: torch.device) -> Self:
        """The same on a device, its times in float32 if it has no float64.

        `index_N` is found before it is moved; the cache stays where its owner put it.
        """
        if self.ids_BL.device == device:
            return self
        attention = self.attention
        if attention is not None:
            attention = copied(attention, device) if isinstance(attention, Tensor) else attention.to(device)
        time_B = self.time_B if has_float64(device) else self.time_B.float()
        return self.with_index(
            copied(self.index_N, device),
            ids_BL=copied(self.ids_BL, device),
            wanted_BL=copied(self.wanted_BL, device),
            time_B=copied(time_B, device),
            rows_B=None if self.rows_B is None else copied(self.rows_B, device),
            attention=attention,
            positions=None if self.positions is None else copied(self.positions, device),
        )

    def with_index(self, index_N: Tensor, **changes: Any) -> Self:
        """The same with some fields changed and `index_N` known: to find it, a GPU would have to be waited for."""
        changed = replace(self, **changes)
        vars(changed)["index_N"] = index_N
        return changed


def behind_cache(
    cache: RaggedCache, ids_BN: Tensor, wanted_BN: Tensor, seen_BNN: Tensor, position_BN: Tensor
) -> NetworkInput:
    """A call whose ids stand behind what each row of a cache keeps.

    Args:
        cache: The cache, all of which they see.
        ids_BN: The ids.
        wanted_BN: Those whose predictions are wanted.
        seen_BNN: Which of the ids each of them sees.
        position_BN: Where they stand in their text.

    Returns:
        The call, on the CPU.
    """
    return NetworkInput(
        ids_BN,
        wanted_BN,
        torch.zeros(len(ids_BN), dtype=torch.double),
        attention=_seen_behind(seen_BNN, torch.tensor(cache.lengths)),
        positions=position_BN,
        cache=cache,
        padded=False,
    )


def _seen_behind(seen_BNN: Tensor, start_B: Tensor) -> Tensor | Open:
    """What is seen in the slots of a cache: all that each row keeps, and of the ids behind that what they see.

    Args:
        seen_BNN: Which of the ids each of them sees.
        start_B: How many tokens each row keeps.

    Returns:
        Boolean, shape (B, N, M + N), M being the longest row's; or that everything is seen, which takes no mask.
    """
    count, longest = seen_BNN.shape[1], int(start_B.max())
    if bool((start_B == longest).all()):
        if count == 1:
            return Open()
        return nn.functional.pad(seen_BNN, (longest, 0), value=True)
    slot_BS = torch.arange(longest + count) - start_B[:, None]
    inside_BS = (slot_BS >= 0) & (slot_BS < count)
    index_BNS = slot_BS.clamp(0, count - 1)[:, None].expand(-1, count, -1)
    return (seen_BNN.gather(2, index_BNS) & inside_BS[:, None]) | (slot_BS < 0)[:, None]


class Reduced(NamedTuple):
    """What a reducer makes of N rows of predictions.

    Attributes:
        total: A scalar to minimise, differentiable.
        values_N: A value for each row, which has no gradient.
    """

    total: Tensor
    values_N: Tensor


Reducer = Callable[[Tensor, slice], Reduced]
"""(predictions_CV, which of the N rows they are) -> what these rows add to the total, and a value for each, shape (C,).

A network hands over logits, a denoiser log-probabilities.

Rows must not depend on each other, so that a network may hand over a few at a time and never hold N x V numbers.
"""


class Network(Protocol):
    """A network that projects on the vocabulary the wanted positions alone."""

    @overload
    def __call__(self, inputs: NetworkInput, reducer: None = None) -> Tensor: ...

    @overload
    def __call__(self, inputs: NetworkInput, reducer: Reducer) -> Reduced: ...

    def __call__(self, inputs: NetworkInput, reducer: Reducer | None = None) -> Tensor | Reduced:
        """Computes logits of the wanted positions.

        Args:
            inputs: What to read, and which positions are wanted.
            reducer: Takes the logits a chunk at a time; without one they are returned.

        Returns:
            Logits, shape (N, V); with a reducer the sum of its totals, and its values.
        """
        ...


class FunctionNetwork:
    """A network given by a function, such as one whose answers are known."""

    def __init__(self, function: Callable[[NetworkInput], Tensor]) -> None:
        """Wraps a function that gives logits_NV."""
        self.function = function

    @overload
    def __call__(self, inputs: NetworkInput, reducer: None = None) -> Tensor: ...

    @overload
    def __call__(self, inputs: NetworkInput, reducer: Reducer) -> Reduced: ...

    def __call__(self, inputs: NetworkInput, reducer: Reducer | None = None) -> Tensor | Reduced:
        """The function's logits, or what the reducer makes of them; see `Network`."""
        logits_NV = self.function(inputs)
        return logits_NV if reducer is None else reducer(logits_NV, slice(None))


class LedNetwork:
    """A network that reads one token before every text, such as a begin of text."""

    def __init__(self, network: Network, first_id: int) -> None:
        """Wraps a network.

        Args:
            network: Gives logits.
            first_id: The id that stands before every text.
        """
        self.network = network
        self.first_id = first_id

    @overload
    def __call__(self, inputs: NetworkInput, reducer: None = None) -> Tensor: ...

    @overload
    def __call__(self, inputs: NetworkInput, reducer: Reducer) -> Reduced: ...

    def __call__(self, inputs: NetworkInput, reducer: Reducer | None = None) -> Tensor | Reduced:
        """Logits of the wanted positions, or what the reducer makes of them; see `Network`."""
        led = _led(inputs, self.first_id)
        return self.network(led) if reducer is None else self.network(led, reducer)


class ShiftedNetwork:
    """A network that predicts the next token, as causal decoders were trained to, made to predict in place.

    The prediction for a position is read one position earlier (2410.17891, section 3.3). The first position is read
    from a token that stands before the text, or from itself where nothing does, as Dream does (2508.15487).
    """

    def __init__(self, network: Network, first_id: int | None) -> None:
        """Wraps a network.

        Args:
            network: Gives logits of the token after each wanted position.
            first_id: The id that stands before every text; None for nothing.
        """
        self.network = network
        self.first_id = first_id

    @overload
    def __call__(self, inputs: NetworkInput, reducer: None = None) -> Tensor: ...

    @overload
    def __call__(self, inputs: NetworkInput, reducer: Reducer) -> Reduced: ...

    def __call__(self, inputs: NetworkInput, reducer: Reducer | None = None) -> Tensor | Reduced:
        """Logits of the wanted positions, or what the reducer makes of them; see `Network`."""
        if self.first_id is None:
            return self._without_first(inputs, reducer)
        led = _led(inputs, self.first_id)
        # The first is not wanted, so none wraps around.
        shifted = led.with_index(led.index_N - 1, wanted_BL=led.wanted_BL.roll(-1, 1))
        return self.network(shifted) if reducer is None else self.network(shifted, reducer)

    def _without_first(self, inputs: NetworkInput, reducer: Reducer | None) -> Tensor | Reduced:
        """The same where row 0 predicts the first position and the second: it is computed once and used twice."""
        wanted_BL = inputs.wanted_BL
        if inputs.cache is not None:
            raise ValueError(
                "a shifted network reads one row earlier, which a cache hides: wrap the cache inside of it"
            )
        next_BL = torch.cat([wanted_BL[:, 1:], torch.zeros_like(wanted_BL[:, :1])], 1)
        read_BL = next_BL.clone()
        read_BL[:, 0] |= wanted_BL[:, 0]
        uses_BL = next_BL.long()
        uses_BL[:, 0] += wanted_BL[:, 0].long()
        uses_U = uses_BL[read_BL]
        shifted = replace(inputs, wanted_BL=read_BL)
        if reducer is None:
            return self.network(shifted).repeat_interleave(uses_U, 0)
        stops = [0, *uses_U.cumsum(0).tolist()]

        def reduce_used(logits_CV: Tensor, rows: slice) -> Reduced:
            start, stop, _ = rows.indices(len(uses_U))
            used_CV = logits_CV.repeat_interleave(uses_U[start:stop], 0)
            return reducer(used_CV, slice(stops[start], stops[stop]))

        return self.network(shifted, reduce_used)


def _led(inputs: NetworkInput, first_id: int) -> NetworkInput:
    """The same call with one token before the text, whose prediction is not wanted."""
    if inputs.attention is not None or inputs.cache is not None:
        raise ValueError("a token is prepended here: wrap attention and cache around the network inside of it")
    first_B1 = torch.full_like(inputs.ids_BL[:, :1], first_id)
    unwanted_B1 = torch.zeros_like(inputs.wanted_BL[:, :1])
    return inputs.with_index(
        inputs.index_N + inputs.index_N // inputs.ids_BL.shape[1] + 1,  # each row is one longer
        ids_BL=torch.cat([first_B1, inputs.ids_BL], 1),
        wanted_BL=torch.cat([unwanted_B1, inputs.wanted_BL], 1),
    )


class PlacedNetwork:
    """A network on a device that may have no float64, such as Apple's MPS.

    There the logits come back to the CPU. All that needs float64 (draws, shares of noise, sums of nats) stays on the
    CPU with them, where the same logits give the same texts and bounds as those of any other device.
    """

    def __init__(self, network: Network, device: Callable[[], torch.device]) -> None:
        """Wraps a network.

        Args:
            network: Gives logits.
            device: Says where it is.
        """
        self.network = network
        self.device = device

    @overload
    def __call__(self, inputs: NetworkInput, reducer: None = None) -> Tensor: ...

    @overload
    def __call__(self, inputs: NetworkInput, reducer: Reducer) -> Reduced: ...

    def __call__(self, inputs: NetworkInput, reducer: Reducer | None = None) -> Tensor | Reduced:
        """Logits of the wanted positions, or what the reducer makes of them; see `Network`."""
        device = self.device()
        if has_float64(device):
            return self.network(inputs) if reducer is None else self.network(inputs, reducer)
        there = inputs.to(device)
        if reducer is None:
            return self.network(there).cpu()
        return self.network(there, lambda logits_CV, rows: reducer(logits_CV.cpu(), rows))
