"""Sampling from the causal reading of a network, several tokens a call: its masks draft, and its next tokens verify."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.devices import copied
from dlm.diffusion.draws import inverse_cdf_, uniforms
from dlm.diffusion.network import RaggedCache, behind_cache
from dlm.diffusion.sample import State
from dlm.diffusion.unmask import TokenChoice

MOST_DRAFTS = 32


@dataclass(frozen=True)
class Verified:
    """How drafts are made and verified (speculative sampling: 2211.17192, 2302.01318).

    A call feeds the newest token c and its drafts d_1 .. d_k as clean text, and behind each of them a group of masks
    that sees what stands before it. With p the next-token predictions and q what the drafts were drawn from, d_j is
    accepted with the probability min(1, p(d_j)/q(d_j)), from left to right. At the first rejection the next token is
    drawn from (p - q)+, and after k acceptances from p. So tokens have exactly the distribution of the causal reading,
    whatever q is. The group behind the last accepted draft gives the next drafts; its first mask stands in the place
    of the next token.

    Attributes:
        drafts: k, the drafts of a call; 0 is plain autoregressive sampling.
        token: The temperature and the cuts, of p and q alike.
        accept: 1 is exact. Below it a draft is accepted with the probability min(1, p/(accept q)): more tokens a call,
            of a distribution between p and q.
    """

    drafts: int = 0
    token: TokenChoice = field(default_factory=TokenChoice)
    accept: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.drafts <= MOST_DRAFTS:
            raise ValueError(
                f"drafts must be from 0 to {MOST_DRAFTS}, got {self.drafts}: a call of K reads (K + 1)(K + 2) tokens"
            )
        if not 0.0 < self.accept <= 1.0:
            raise ValueError(f"accept must be above 0 and at most 1, got {self.accept}")

    @property
    def width(self) -> int:
        """The ids of a call: the newest token, the drafts, and a group of masks behind each of them."""
        return (self.drafts + 1) * (self.drafts + 2) if self.drafts else 1


@torch.inference_mode()
def sample_verified(
    how: Verified,
    denoiser: Denoiser,
    cache: RaggedCache,
    canvas_BL: Tensor,
    editable_BL: Tensor,
    mask_id: int,
    before_id: int,
    *,
    generators: Sequence[torch.Generator],
    stop_ids: Sequence[int] = (),
    first_BV: Tensor | None = None,
) -> Iterator[State]:
    """Writes what is editable at the end of each row, behind what is given.

    Args:
        how: How drafts are made and verified.
        denoiser: Predicts next tokens at clean ids, and tokens in place at masks.
        cache: An empty cache with as many rows.
        canvas_BL: Ids; what stands at editable positions does not matter.
        editable_BL: Boolean, the positions to write: of each row one span, with nothing to be read behind it.
        mask_id: The id of the mask.
        before_id: The id that stands before every text.
        generators: One stream a row; a row's text depends on its own stream and prompt alone.
        stop_ids: Once one of these is written, a row is done, and the rest of it is filled with the first of them.
        first_BV: Boolean, what each row may begin with; None for anything.

    Yields:
        The masks before the first call, the state after every call, and the last state.
    """
    x_BL = canvas_BL.masked_fill(editable_BL, mask_id)
    calls, calls_B = 0, torch.zeros(len(x_BL), dtype=torch.long)
    yield State(x_BL, editable_BL, torch.zeros_like(editable_BL), calls, calls_B)
    rows = [_Row.of(x_L, editable_L, before_id) for x_L, editable_L in zip(x_BL.tolist(), editable_BL, strict=True)]
    active, drafting = [b for b, row in enumerate(rows) if row.left], _Drafting(how, denoiser, cache, mask_id)
    cache.select(active)
    drafting.first_BV = None if first_BV is None else first_BV[active]
    while active:
        found = drafting.step([rows[b].unread for b in active], [generators[b] for b in active])
        calls += 1
        calls_B = calls_B.index_add(0, torch.tensor(active), torch.ones(len(active), dtype=torch.long))
        taken = [
            (b, place, id_) for b, ids in zip(active, found, strict=True) for place, id_ in rows[b].take(ids, stop_ids)
        ]
        row_N, place_N, id_N = torch.tensor(taken, device=x_BL.device).T
        before_BL, x_BL = x_BL, x_BL.index_put((row_N, place_N), id_N)
        yield State(x_BL, editable_BL, x_BL != before_BL, calls, calls_B)
        kept = [i for i, b in enumerate(active) if rows[b].left]
        if len(kept) < len(active):
            active = [active[i] for i in kept]
            drafting.select(kept)
    if stop_ids and (rest_BL := (x_BL == mask_id) & editable_BL).any():
        yield State(x_BL.masked_fill(rest_BL, stop_ids[0]), editable_BL, rest_BL, calls, calls_B)


@dataclass
class _Row:
    """A row that is being written.

    Attributes:
        end: How many tokens it has, those that are given among them.
        left: How many tokens are to be written still.
        unread: The clean ids that the network has not read: what is given, and later the newest token alone.
    """

    end: int
    left: int
    unread: list[int]

    @classmethod
    def of(cls, ids: Sequence[int], editable_L: Tensor, before_id: int) -> "_Row":
        """A row before its first call."""
        count = int(editable_L.sum())
        start = int(editable_L.int().argmax()) if count else len(ids)
        return cls(start, count, [before_id, *ids[:start]])

    def take(self, ids: Sequence[int], stop_ids: Sequence[int]) -> list[tuple[int, int]]:
        """Where each token is written of those that a call found: as many as there is room for, up to a stop."""
        count = min(len(ids), self.left)
        stop = next((i for i, id_ in enumerate(ids[:count]) if id_ in stop_ids), None)
        if stop is not None:
            count = stop + 1
        taken = list(enumerate(ids[:count], self.end))
        self.end += count
        self.left = 0 if stop is not None else self.left - count
        self.unread = [ids[-1]]
        return taken


class _Drafting:
    """The calls of the network, one after another, with the drafts that each leaves for the next."""

    def __init__(self, how: Verified, denoiser: Denoiser, cache: RaggedCache, mask_id: int) -> None:
        self.how, self.denoiser, self.cache, self.mask_id = how, denoiser, cache, mask_id
        self.drafts: list[list[int]] = []
        self.drafts_BK: Tensor | None = None
        self.q_BKV: Tensor | None = None
        self.first_BV: Tensor | None = None

    def select(self, rows: Sequence[int]) -> None:
        """Drops the rows that are finished."""
        self.cache.select(rows)
        self.drafts = [self.drafts[row] for row in rows]
        if self.drafts_BK is not None and self.q_BKV is not None:
            row_R = copied(torch.tensor(rows, dtype=torch.long), self.drafts_BK.device)
            self.drafts_BK, self.q_BKV = (x.index_select(0, row_R) for x in (self.drafts_BK, self.q_BKV))

    def step(self, unread: Sequence[Sequence[int]], generators: Sequence[torch.Generator]) -> list[list[int]]:
        """One call: the accepted drafts of each row and one token more; the next drafts are kept."""
        k = self.how.drafts
        drawn_BU = torch.stack(uniforms(generators, [2 * k + 1] * len(generators)))
        first = self.drafts_BK is None
        drafts = self.drafts or [[]] * len(unread)
        clean = [[*ids, *drafted] for ids, drafted in zip(unread, drafts, strict=True)]
        counts = [len(ids) for ids in clean]
        ends = torch.tensor(counts)[:, None] if first else torch.arange(1, k + 2).expand(len(clean), -1)
        p_BGV, q_BGKV = self._predict(clean, ends)
        u_BU = copied(drawn_BU, p_BGV.device)
        if first or not k:
            accepted_B = torch.zeros(len(clean), dtype=torch.long, device=p_BGV.device)
            weights_BV = p_BGV[:, 0]
        else:
            accepted_B, weights_BV = self._verified(p_BGV, u_BU[:, :k])
        token_B = inverse_cdf_(weights_BV.clone(), u_BU[:, k])
        told = [accepted_B[:, None], token_B[:, None]]
        if k:
            self.q_BKV = q_BGKV[torch.arange(len(clean), device=p_BGV.device), accepted_B]
            self.drafts_BK = inverse_cdf_(self.q_BKV.flatten(0, 1).clone(), u_BU[:, k + 1 :].flatten()).view(-1, k)
            told.append(self.drafts_BK)
        numbers = torch.cat(told, 1).tolist()  # a GPU is waited for once
        self.drafts = [drafts for _, _, *drafts in numbers]
        self.cache.keep(counts if first else [accepted + 1 for accepted, *_ in numbers])
        return [
            [token] if first else [*ids[1 : 1 + accepted], token]
            for ids, (accepted, token, *_) in zip(clean, numbers, strict=True)
        ]

    def _verified(self, p_BGV: Tensor, u_BK: Tensor) -> tuple[Tensor, Tensor]:
        """How many drafts of each row are accepted, and the weights of the token behind them."""
        assert self.drafts_BK is not None and self.q_BKV is not None
        k, rows = self.how.drafts, torch.arange(len(p_BGV), device=p_BGV.device)
        index_BK1 = self.drafts_BK[..., None]
        p_BK, q_BK = (x.gather(2, index_BK1)[..., 0] for x in (p_BGV[:, :k], self.q_BKV))
        accepted_B = (u_BK * self.how.accept * q_BK < p_BK).long().cumprod(1).sum(1)
        p_BV = p_BGV[rows, accepted_B]
        rest_BV = (p_BV - self.q_BKV[rows, accepted_B.clamp(max=k - 1)]).clamp(min=0.0)
        drawn_anew_B = (accepted_B == k) | (rest_BV.sum(1) == 0.0)
        return accepted_B, torch.where(drawn_anew_B[:, None], p_BV, rest_BV)

    def _predict(self, clean: Sequence[Sequence[int]], ends_BG: Tensor) -> tuple[Tensor, Tensor]:
        """Next-token probabilities behind each of G beginnings of the clean ids, and drafts of k masks behind each.

        Args:
            clean: The ids that are read, in each row.
            ends_BG: How many of them each beginning has.

        Returns:
            p, shape (B, G, V), and q, shape (B, G, k, V), both float64.
        """
        k, (rows, groups), width = self.how.drafts, ends_BG.shape, max(map(len, clean))
        # Those of prompts are large, and seldom needed again.
        laid_out = _layout if width <= k + 1 else _layout.__wrapped__
        layout = laid_out(tuple(map(tuple, ends_BG.tolist())), width, k)
        masks = layout.seen_BNN.shape[1] - width
        ids_BN = torch.tensor([[*ids, *[self.mask_id] * (width - len(ids) + masks)] for ids in clean])
        position_BN = layout.position_BN + torch.tensor(self.cache.lengths)[:, None]
        inputs = behind_cache(self.cache, ids_BN, layout.wanted_BN, layout.seen_BNN, position_BN)
        log_p_BWV = self.denoiser(inputs).unflatten(0, (rows, -1))
        if self.first_BV is not None:  # of the first call alone, whose first prediction is the first token's
            first_BV, self.first_BV = copied(self.first_BV, log_p_BWV.device), None
            log_p_BWV[:, 0] = log_p_BWV[:, 0].masked_fill(~first_BV, -torch.inf).log_softmax(-1)
        weights_BWV = self.how.token.probabilities(log_p_BWV.flatten(0, 1)).view_as(log_p_BWV)
        return weights_BWV[:, :groups], weights_BWV[:, groups:].unflatten(1, (groups, k))


class _Layout(NamedTuple):
    """The ids of a call: N clean ones and groups of masks behind some of them.

    Attributes:
        position_BN: Where they stand, behind what each row keeps.
        seen_BNN: Which of them each sees.
        wanted_BN: Those whose predictions are wanted: the ends of beginnings, and all masks but the first of a group.
    """

    position_BN: Tensor
    seen_BNN: Tensor
    wanted_BN: Tensor


@lru_cache(maxsize=64)
def _layout(ends: tuple[tuple[int, ...], ...], width: int, drafts: int) -> _Layout:
    """The layout of a call; most calls have one that an earlier one had.

    Args:
        ends: How many clean ids each beginning of each row has.
        width: N.
        drafts: k; behind each beginning are k + 1 masks, or none if k is 0.

    Returns:
        The layout; not to be changed.
    """
    ends_BG, size = torch.tensor(ends), drafts + 1 if drafts else 0
    rows, groups = ends_BG.shape
    place_N, place_M = torch.arange(width), torch.arange(groups * size)
    group_M, in_group_M = place_M // max(size, 1), place_M % max(size, 1)
    end_BM = ends_BG[:, group_M]
    seen_BNN = torch.zeros(rows, width + len(place_M), width + len(place_M), dtype=torch.bool)
    seen_BNN[:, :width, :width] = place_N[:, None] >= place_N
    seen_BNN[:, width:, :width] = place_N < end_BM[..., None]
    seen_BNN[:, width:, width:] = group_M[:, None] == group_M
    wanted_BN = torch.zeros(rows, width, dtype=torch.bool).scatter(1, ends_BG - 1, True)
    return _Layout(
        torch.cat([place_N.expand(rows, -1), end_BM + in_group_M], 1),
        seen_BNN,
        torch.cat([wanted_BN, (in_group_M > 0).expand(rows, -1)], 1),
    )
