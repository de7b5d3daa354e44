"""A cache of keys and values whose rows grow on their own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache


class RowCache(Cache):
    """Keys and values of clean tokens, each row with a number of its own; see `dlm.diffusion.network.Cache`.

    A call writes the keys and values of its ids behind those of each row, and `keep` says how many of them stay. So
    what a row drops costs nothing, and nothing is copied. Where rows differ, what is behind the shorter ones is left
    over from other calls: the mask of a call must hide it.

    Attributes:
        lengths: The tokens that each row keeps.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        """Makes an empty cache.

        Args:
            rows: How many rows.
            capacity: The most tokens of a row, those of a call among them; more room is made where it is needed.
        """
        super().__init__(layers=[])
        self.lengths = [0] * rows
        self._capacity = capacity
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._places: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Writes the keys and values of a call behind those that each row keeps.

        Args:
            key_states: Shape (B, G, N, D).
            value_states: The same.
            layer_idx: Which layer's.

        Returns:
            Keys and values of M + N slots, M being the length of the longest row.
        """
        if layer_idx == len(self._keys):
            self._keys.append(self._room(key_states))
            self._values.append(self._room(value_states))
        longest = max(self.lengths)
        stop = longest + key_states.shape[2]
        found = []
        for stores, new in ((self._keys, key_states), (self._values, value_states)):
            if stop > stores[layer_idx].shape[2]:
                stores[layer_idx] = torch.cat([stores[layer_idx], self._room(new, stop)], 2)
            store = stores[layer_idx]
            if min(self.lengths) == longest:
                store[:, :, longest:stop] = new
            else:
                store.scatter_(2, self._slots(new.shape[2], new.device).expand_as(new), new)
            found.append(store[:, :, :stop])
        return found[0], found[1]

    def keep(self, counts: Sequence[int]) -> None:
        """Keeps the first tokens of the last call.

        Args:
            counts: How many of each row.
        """
        self._places = None
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        """Keeps some rows alone, in the order given."""
        self._places = None
        self.lengths = [self.lengths[row] for row in rows]
        for stores in (self._keys, self._values):
            stores[:] = [store[[*rows]] for store in stores]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The length of the longest row, M."""
        return max(self.lengths, default=0)

    def crop(self, max_length: int) -> None:
        """Leaves all rows as they are: what a call adds is dropped unless it is kept."""

    def _slots(self, count: int, device: torch.device) -> Tensor:
        """The slots of a call's tokens, behind those that rows keep, shape (B, 1, N, 1); the same in each layer."""
        if self._places is None or self._places.shape[2] != count:
            place_BN = torch.tensor(self.lengths)[:, None] + torch.arange(count)
            self._places = place_BN[:, None, :, None].to(device)
        return self._places

    def _room(self, like: Tensor, least: int = 0) -> Tensor:
        """Space for so many tokens more, in a tensor's kind."""
        rows, groups, _, width = like.shape
        return like.new_zeros(rows, groups, max(self._capacity, least), width)
