"""Caches of keys and values: one whose rows grow on their own, and one whose tokens keep their places."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from dlm.diffusion.devices import copied
from dlm.diffusion.network import Network, NetworkInput
from dlm.diffusion.reuse import Reuse, ReusingNetwork
from dlm.errors import ConfigError
from dlm.model.adapt import is_decoder
from dlm.model.backbone import Backbone


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
        row_R = torch.tensor(rows, dtype=torch.long)
        on = {device: copied(row_R, device) for device in {store.device for store in (*self._keys, *self._values)}}
        for stores in (self._keys, self._values):
            stores[:] = [store.index_select(0, on[store.device]) for store in stores]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The length of the longest row, M."""
        return max(self.lengths, default=0)

    def crop(self, max_length: int) -> None:
        """Leaves all rows as they are: what a call adds is dropped unless it is kept."""

    def _slots(self, count: int, device: torch.device) -> Tensor:
        """The slots of a call's tokens, behind those that rows keep, shape (B, 1, N, 1); the same in each layer."""
        if self._places is None or self._places.shape[2] != count:
            place_BN = torch.tensor(self.lengths)[:, None] + torch.arange(count)
            self._places = copied(place_BN[:, None, :, None], device)
        return self._places

    def _room(self, like: Tensor, least: int = 0) -> Tensor:
        """Space for so many tokens more, in a tensor's kind."""
        rows, groups, _, width = like.shape
        return like.new_zeros(rows, groups, max(self._capacity, least), width)


class CanvasCache(Cache):
    """Keys and values at the places of their tokens; see `dlm.diffusion.reuse.PlacedCache`.

    A call replaces those of the tokens that it computes, and is given all slots of its rows, the last of which no token
    may see.
    """

    def __init__(self, rows: int) -> None:
        """Makes an empty cache.

        Args:
            rows: The rows of the canvas, B.
        """
        super().__init__(layers=[])
        self._rows = rows
        self._slots = 0
        self._stores: list[tuple[Tensor, Tensor]] = []
        self._rows_R: Tensor | None = None
        self._place_RN: Tensor | None = None

    def place(self, rows_R: Tensor, slots_RN: Tensor, slots: int) -> None:
        """Says where the tokens of the next call stand; see `PlacedCache`."""
        self._rows_R = None if len(rows_R) == self._rows else rows_R
        self._place_RN, self._slots = slots_RN, slots

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Puts the keys and values of a call where its tokens stand.

        Args:
            key_states: Shape (R, G, N, D).
            value_states: The same.
            layer_idx: Which layer's.

        Returns:
            Keys and values of all slots of these rows.
        """
        assert self._place_RN is not None
        device = key_states.device
        self._place_RN = self._place_RN.to(device)
        place_RGND = self._place_RN[:, None, :, None].expand_as(key_states)
        if layer_idx == len(self._stores):
            room = self._rows, key_states.shape[1], self._slots, key_states.shape[3]
            self._stores.append((key_states.new_zeros(room), value_states.new_zeros(room)))
        found = []
        for store, new in zip(self._stores[layer_idx], (key_states, value_states), strict=True):
            if self._rows_R is None:
                found.append(store.scatter_(2, place_RGND, new))
            else:
                rows_R = self._rows_R.to(device)
                found.append(store[rows_R].scatter_(2, place_RGND, new))
                store[rows_R] = found[-1]
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """None are before the ids of a call: they stand among them."""
        return 0

    def crop(self, max_length: int) -> None:
        """Leaves all as it is: what a call computes is kept."""


@torch.no_grad()
def check_reuse(network: Network, backbone: Backbone, length: int) -> None:
    """Checks that a network's keys and values can be used again, on a text that does not change.

    Args:
        network: Gives logits of ids on the CPU.
        backbone: What it runs.
        length: Of the canvas, in tokens.

    Raises:
        ConfigError: The model is an encoder; or with all keys and values given it predicts something else, as layers do
            that see a part of the row.
    """
    kind = backbone.model.config.model_type
    if not is_decoder(backbone.model):
        raise ConfigError(f"--cache: model.architecture {kind} is an encoder, which keeps no keys and values")
    usable = [i for i in range(backbone.vocabulary) if i != backbone.pad_id][:3]
    ids_BL = torch.tensor([usable * (length // 3 + 1)])[:, :length]
    every_BL, middle_BL = torch.ones_like(ids_BL, dtype=torch.bool), torch.zeros_like(ids_BL, dtype=torch.bool)
    middle_BL[:, length // 2] = True
    reusing = ReusingNetwork(network, CanvasCache(1), Reuse("dual", 2), 1, -1)
    plain_NV = network(NetworkInput(ids_BL, every_BL, torch.zeros(1)))
    whole_NV = reusing(NetworkInput(ids_BL, every_BL, torch.zeros(1)))
    again_NV = reusing(NetworkInput(ids_BL, middle_BL, torch.zeros(1)))
    apart = max(
        float((one - other).float().norm() / one.float().norm().clamp(min=1e-9))
        for one, other in ((plain_NV, whole_NV), (plain_NV[length // 2], again_NV[0]))
    )
    if not apart <= (1e-3 if plain_NV.dtype == torch.float32 else 5e-2):
        raise ConfigError(
            f"--cache: model.architecture {kind} predicts something else from keys and values that are given to it "
            "(its layers may see a part of the row alone): leave --cache out"
        )
