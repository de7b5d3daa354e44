"""Diffusion in blocks behind a cached memory: what is written is read once, and never again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.network import NetworkInput, RaggedCache, behind_cache
from dlm.diffusion.rules import Rule
from dlm.diffusion.sample import State, sample


@dataclass(frozen=True)
class Grid:
    """Where blocks lie.

    Attributes:
        size: Tokens a block, S.
        aligned: Whether they begin with the text, so that the first to be written may hold given tokens; else they
            begin behind what is given.
        causal: Whether a token of the memory sees those before it alone, or all of its block too.
    """

    size: int
    aligned: bool = False
    causal: bool = True


@torch.inference_mode()
def sample_remembering(
    rule: Rule,
    denoiser: Denoiser,
    cache: RaggedCache,
    canvas_BL: Tensor,
    editable_BL: Tensor,
    mask_id: int,
    before_id: int | None,
    grid: Grid,
    *,
    generators: Sequence[torch.Generator],
    stop_ids: Sequence[int] = (),
) -> Iterator[State]:
    """Writes what is editable at the end of each row, block by block from left to right.

    Each block is written with all of the rule's steps, seen together with the clean text before it (BD3-LM,
    2503.09573, algorithm 2). A block that begins the text sees no memory; see `TwoStreams`.

    Args:
        rule: What a step does.
        denoiser: Predicts the tokens of a block behind a cache.
        cache: An empty cache with as many rows.
        canvas_BL: Ids; what stands at editable positions does not matter.
        editable_BL: Boolean, the positions to write: of each row one span, with nothing to be read behind it.
        mask_id: The id of the mask.
        before_id: The id that stands before every text; None for nothing.
        grid: Where blocks lie.
        generators: One stream a row; a row's text depends on its own stream and prompt alone.
        stop_ids: Once one of these is written, a row is done, and the rest of it is filled with the first of them.

    Yields:
        The masks before the first step, the state after every step that changed something, and the last state.
    """
    x_BL = canvas_BL.masked_fill(editable_BL, mask_id)
    blocks = _Blocks(denoiser, cache, x_BL, editable_BL, before_id, grid)
    calls, calls_B, unchanged_BL = 0, torch.zeros(len(x_BL), dtype=torch.long), torch.zeros_like(editable_BL)
    yield (last := State(x_BL, editable_BL, unchanged_BL, calls, calls_B))
    fed_B = blocks.remember_given()
    calls, calls_B = calls + int(fed_B.any()), calls_B + fed_B
    room_BS = torch.full((len(x_BL), grid.size), mask_id)  # the last block of a row may reach beyond the canvas
    while blocks.open_B.any():
        place_BS, inside_BS = blocks.places()
        wide_BM = torch.cat([x_BL, room_BS], 1)
        written_BS = inside_BS & torch.cat([editable_BL, room_BS < 0], 1).gather(1, place_BS)
        behind = blocks.denoiser_at(inside_BS)
        block_BS = wide_BM.gather(1, place_BS)
        for state in sample(rule, behind, block_BS, written_BS, generators=generators, stop_ids=stop_ids):
            after_BL = wide_BM.scatter(1, place_BS, state.x_BL)[:, : x_BL.shape[1]]
            changed_BL = after_BL != last.x_BL
            if changed_BL.any():
                last = State(after_BL, editable_BL, changed_BL, calls + state.calls, calls_B + state.calls_B)
                yield last
        x_BL, calls, calls_B = last.x_BL, calls + state.calls, calls_B + state.calls_B
        fed_B = blocks.remember(x_BL, stop_ids)
        calls, calls_B = calls + int(fed_B.any()), calls_B + fed_B
    rest_BL = (x_BL == mask_id) & editable_BL
    if stop_ids and rest_BL.any():
        yield State(x_BL.masked_fill(rest_BL, stop_ids[0]), editable_BL, rest_BL, calls, calls_B)
    elif calls > last.calls:
        yield State(x_BL, editable_BL, unchanged_BL, calls, calls_B)


class _Blocks:
    """Where the block of each row is, which rows are open still, and the memory before them."""

    def __init__(
        self,
        denoiser: Denoiser,
        cache: RaggedCache,
        x_BL: Tensor,
        editable_BL: Tensor,
        before_id: int | None,
        grid: Grid,
    ) -> None:
        self.denoiser, self.cache = denoiser, cache
        self.before = [] if before_id is None else [before_id]
        self.size, self.causal = grid.size, grid.causal
        count_B = editable_BL.sum(1)
        start_B = torch.where(count_B > 0, editable_BL.int().argmax(1), 0)
        self.given = [ids[:start] for ids, start in zip(x_BL.tolist(), start_B.tolist(), strict=True)]
        self.stop_B = start_B + count_B
        self.start_B = start_B // grid.size * grid.size if grid.aligned else start_B
        self.first_B, self.open_B = self.start_B.clone(), count_B > 0

    def places(self) -> tuple[Tensor, Tensor]:
        """The places of each row's block, shape (B, S), and which of them lie in a text that is still written."""
        place_BS = self.start_B[:, None] + torch.arange(self.size)
        return place_BS, (place_BS < self.stop_B[:, None]) & self.open_B[:, None]

    def denoiser_at(self, inside_BS: Tensor) -> Denoiser:
        """Predicts the tokens of the blocks, each behind its row's memory."""
        seen_BSS = inside_BS[:, None] & inside_BS[:, :, None] | torch.eye(self.size, dtype=torch.bool)
        return _BehindCache(self.denoiser, self.cache, seen_BSS, self.start_B + len(self.before))

    def remember_given(self) -> Tensor:
        """Reads what is given before each row's first block; says which rows had some."""
        known_B = self.start_B.where(self.open_B, 0).tolist()
        given = zip(self.given, known_B, strict=True)
        return self._read([[*self.before, *ids[:known]] if known else [] for ids, known in given])

    def remember(self, x_BL: Tensor, stop_ids: Sequence[int]) -> Tensor:
        """Goes on to the next block, and reads the last one; says which rows did."""
        ends = set(stop_ids)
        read: list[list[int]] = []
        for row, ids in enumerate(x_BL.tolist()):
            start, stop = int(self.start_B[row]), min(int(self.start_B[row]) + self.size, int(self.stop_B[row]))
            fresh = ids[max(start, len(self.given[row])) : stop]
            if not self.open_B[row]:
                read.append([])
                continue
            self.open_B[row] = stop < int(self.stop_B[row]) and not ends.intersection(fresh)
            before = [] if start else self.before
            read.append([*before, *ids[start:stop]] if self.open_B[row] else [])
            self.start_B[row] = stop
        return self._read(read)

    def _read(self, clean: Sequence[Sequence[int]]) -> Tensor:
        """Feeds clean ids to the cache, behind what each row keeps."""
        fed_B = torch.tensor([len(ids) > 0 for ids in clean], dtype=torch.bool)
        if not fed_B.any():
            return fed_B
        width = max(map(len, clean))
        ids_BN = torch.zeros(len(clean), width, dtype=torch.long)
        for row, ids in enumerate(clean):
            ids_BN[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        start_B, place_N = torch.tensor(self.cache.lengths), torch.arange(width)
        seen_BNN = (place_N[:, None] >= place_N).expand(len(clean), -1, -1)
        if not self.causal:
            # Blocks are counted from the first that is written: a prompt's first may be shorter.
            text_BN = (start_B[:, None] + place_N - len(self.before)).clamp(min=0)
            block_BN = (text_BN - self.first_B[:, None]).div(self.size, rounding_mode="floor")
            inside_BN = place_N < torch.tensor([len(ids) for ids in clean])[:, None]
            seen_BNN = seen_BNN | (block_BN[:, :, None] == block_BN[:, None]) & inside_BN[:, None]
        unwanted_BN = torch.zeros_like(ids_BN, dtype=torch.bool)
        self.denoiser(behind_cache(self.cache, ids_BN, unwanted_BN, seen_BNN, start_B[:, None] + place_N))
        self.cache.keep([len(ids) for ids in clean])
        return fed_B


class _BehindCache(Denoiser):
    """A denoiser of blocks that stand behind what a cache keeps, from a place of their own in each row."""

    def __init__(self, denoiser: Denoiser, cache: RaggedCache, seen_BSS: Tensor, start_B: Tensor) -> None:
        self.denoiser, self.cache, self.seen_BSS, self.start_B = denoiser, cache, seen_BSS, start_B.clone()

    def __call__(self, inputs: NetworkInput) -> Tensor:
        """Predicts the clean tokens; rows that are not asked for are computed with them, as the cache has them."""
        rows, size = self.seen_BSS.shape[:2]
        rows_R = torch.arange(rows) if inputs.rows_B is None else inputs.rows_B
        ids_BS = inputs.ids_BL.new_zeros(rows, size).index_copy(0, rows_R, inputs.ids_BL)
        wanted_BS = torch.zeros_like(ids_BS, dtype=torch.bool).index_copy(0, rows_R, inputs.wanted_BL)
        position_BS = self.start_B[:, None] + torch.arange(size)
        return self.denoiser(behind_cache(self.cache, ids_BS, wanted_BS, self.seen_BSS, position_BS))
