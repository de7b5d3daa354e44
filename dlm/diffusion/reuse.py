"""Keys and values of a bidirectional network that are used again, though the text around them has changed since.

This is approximate: in a text where every token sees every other, each change reaches all keys and values. Changes
are few and mostly near, so what was computed some calls ago is close (Fast-dLLM, 2505.22618; dKV-Cache, 2505.15781).
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args, overload

import torch
from torch import Tensor

from dlm.diffusion.network import Cache, Network, NetworkInput, Reduced, Reducer

Reach = Literal["dual", "prefix"]


@dataclass(frozen=True)
class Reuse:
    """What a call computes anew.

    Attributes:
        reach: `dual` computes the wanted tokens, and those that have changed since they were computed; `prefix` all
            from the first of these on.
        refresh: Every so many calls of a row all of it is computed; 1 is exact.
    """

    reach: Reach = "dual"
    refresh: int = 8

    def __post_init__(self) -> None:
        if self.reach not in get_args(Reach):
            raise ValueError(f"reach must be {' or '.join(get_args(Reach))}, got {self.reach!r}")
        if self.refresh < 1:
            raise ValueError(f"refresh must be at least 1, got {self.refresh}")


class PlacedCache(Cache, Protocol):
    """A cache in which each key and value has the slot of its token's place in the text."""

    def place(self, rows_R: Tensor, slots_RN: Tensor, slots: int) -> None:
        """Says where the tokens of the next call stand.

        Args:
            rows_R: The rows of the canvas that the call reads.
            slots_RN: The slot of each token.
            slots: How many there are; the last is for tokens that are seen by none.
        """
        ...


class ReusingNetwork:
    """A network that computes a part of each row, and uses keys and values of earlier calls for the others."""

    def __init__(self, network: Network, cache: PlacedCache, how: Reuse, rows: int, pad_id: int) -> None:
        """Wraps a network for one canvas.

        Args:
            network: Gives logits of ids on the CPU.
            cache: Empty, with as many rows.
            how: What a call computes.
            rows: B, the rows of the canvas.
            pad_id: What fills up the shorter rows.
        """
        self.network, self.cache, self.how, self.pad_id = network, cache, how, pad_id
        self.calls_B = torch.zeros(rows, dtype=torch.long)
        self.computed_BL: Tensor | None = None

    @overload
    def __call__(self, inputs: NetworkInput, reducer: None = None) -> Tensor: ...

    @overload
    def __call__(self, inputs: NetworkInput, reducer: Reducer) -> Reduced: ...

    def __call__(self, inputs: NetworkInput, reducer: Reducer | None = None) -> Tensor | Reduced:
        """Logits of the wanted positions, or what the reducer makes of them; see `Network`."""
        rows_R = torch.arange(len(inputs.ids_BL)) if inputs.rows_B is None else inputs.rows_B
        whole_R = self.calls_B[rows_R] % self.how.refresh == 0
        self.calls_B[rows_R] += 1
        found: list[tuple[Tensor, Tensor]] = []
        for part_R in (whole_R, ~whole_R):  # rows of one canvas are mostly in step with each other
            if part_R.any():
                part = replace(
                    inputs,
                    ids_BL=inputs.ids_BL[part_R],
                    wanted_BL=inputs.wanted_BL[part_R],
                    time_B=inputs.time_B[part_R],
                    rows_B=rows_R[part_R],
                )
                index_N = (inputs.wanted_BL & part_R[:, None])[inputs.wanted_BL].nonzero()[:, 0]
                found.append((index_N, self.network(self._call(part, whole=part_R is whole_R))))
        logits_NV = found[0][1]
        if len(found) > 1:
            order_N = torch.cat([index_N for index_N, _ in found]).argsort().to(logits_NV.device)
            logits_NV = torch.cat([logits for _, logits in found])[order_N]
        return logits_NV if reducer is None else reducer(logits_NV, slice(None))

    def _call(self, inputs: NetworkInput, *, whole: bool) -> NetworkInput:
        """The call that computes what must be computed of some rows, all of which are whole or none."""
        ids_RL, rows_R = inputs.ids_BL, inputs.rows_B
        assert rows_R is not None
        if self.computed_BL is None:
            self.computed_BL = ids_RL.new_full((len(self.calls_B), ids_RL.shape[1]), -1)
        real_RL = ids_RL != self.pad_id
        fresh_RL = real_RL if whole else inputs.wanted_BL | (ids_RL != self.computed_BL[rows_R]) & real_RL
        if self.how.reach == "prefix":
            fresh_RL = (fresh_RL.cumsum(1) > 0) & real_RL
        self.computed_BL[rows_R] = torch.where(fresh_RL, ids_RL, self.computed_BL[rows_R])
        count_R, length = fresh_RL.sum(1), ids_RL.shape[1]
        place_RN = fresh_RL.long().argsort(dim=1, descending=True, stable=True)[:, : int(count_R.max())]
        inside_RN = torch.arange(place_RN.shape[1]) < count_R[:, None]
        slots_RN = place_RN.where(inside_RN, length)
        self.cache.place(rows_R, slots_RN, length + 1)
        seen_RS = torch.cat([real_RL, torch.zeros_like(real_RL[:, :1])], 1)
        return NetworkInput(
            ids_RL.gather(1, place_RN),
            inputs.wanted_BL.gather(1, place_RN),
            inputs.time_B,
            attention=seen_RS[:, None].expand(-1, place_RN.shape[1], -1),
            positions=place_RN.where(inside_RN, 0),
            cache=self.cache,
            padded=False,
        )
