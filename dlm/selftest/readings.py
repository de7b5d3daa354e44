"""Checks of readings with a memory: blocks given the clean text before them, and two streams in one forward."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser, FunctionDenoiser
from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import Estimator
from dlm.diffusion.memory import causal_input, two_stream_input
from dlm.diffusion.memory_likelihood import BlocksEstimator, CausalEstimator
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.noise import Absorbing
from dlm.diffusion.streams import TwoStreams, block_numbers
from dlm.selftest.check import SIGMAS, Check
from dlm.selftest.joints import random_joint, small_process

BEFORE = 0
"""The id that stands before every text; any one will do for what knows the distribution."""


def blocks() -> Iterator[Check]:
    """With the exact denoiser, blocks of every size bound exactly, and the causal reading is the chain rule."""
    joint, process = random_joint(4, 3), small_process(Absorbing(), 3)
    shown, x0_ML = _shown(joint.mask_denoiser(), 3), joint.texts()
    log_p_M = joint.table.flatten().log()

    def streams(rows: int) -> list[torch.Generator]:
        return [generator("blocks", row) for row in range(rows)]

    for claim, estimator in (("the causal reading", CausalEstimator(BEFORE)), ("of 1", BlocksEstimator(1, BEFORE, 2))):
        nats_M = estimator(shown, process, x0_ML, streams(len(x0_ML))).mean(0).sum(1)
        what = claim if claim.startswith("the") else f"blocks {claim}"
        yield Check(f"{what}: -log p(x) whatever is drawn, largest error", 0.0, _worst(nats_M, -log_p_M), 1e-10)
    whole = BlocksEstimator(None, BEFORE, 4)(shown, process, x0_ML, streams(len(x0_ML)))
    plain = Estimator(4)(joint.mask_denoiser(), process, x0_ML, streams(len(x0_ML)))
    yield Check("a block of the whole text: the exact-count bound, draw by draw", 0.0, _worst(whole, plain), 1e-10)
    rows, row = 400, 17
    for size in (2, 3):
        nats_B = (
            BlocksEstimator(size, BEFORE, 4)(shown, process, x0_ML[row].expand(rows, -1), streams(rows)).mean(0).sum(1)
        )
        error = SIGMAS * float(nats_B.std()) / math.sqrt(rows)
        yield Check(
            f"blocks of {size}: -log p(x) in the mean", -float(log_p_M[row]), float(nats_B.mean()), error + 1e-10
        )


def two_streams() -> Iterator[Check]:
    """One forward of two streams gives the logits of separate forwards."""
    length, symbols = 6, 5
    network = _Attends(symbols + 1)
    x0_BL = torch.randint(symbols, (2, length), generator=generator("clean"))
    masked_BL = torch.rand(2, length, generator=generator("masked")) < 0.6
    xt_BL, every_BL = x0_BL.masked_fill(masked_BL, symbols), torch.ones_like(masked_BL)
    alone_BLV = network(causal_input(x0_BL, every_BL, BEFORE))
    for size, offset in ((1, 0), (2, 1), (4, 0), (length, 0)):
        block_1L = block_numbers(length, size, offset)
        inputs = two_stream_input(x0_BL, xt_BL, every_BL, every_BL, BEFORE, TwoStreams(block_1L))
        clean_BLV, noisy_BLV = network(inputs).chunk(2, 1)
        what = f"blocks of {size} from {offset}" if offset else f"blocks of {size}"
        yield Check(f"{what}: clean logits are a causal forward's", 0.0, _worst(clean_BLV, alone_BLV), 1e-10)
        worst = 0.0
        for block in block_1L.unique().tolist():
            own_L = block_1L[0] == block
            start = int(own_L.int().argmax())
            # Behind the token that stands before the text, unless the block begins the text and sees no memory.
            before_BM = inputs.ids_BL[:, : start + 1 if start else 0]
            ids_BM = torch.cat([before_BM, xt_BL[:, own_L]], 1)
            place_M = torch.arange(before_BM.shape[1])
            place_M = torch.cat([place_M, own_L.nonzero()[:, 0] + 1])
            seen_MM = torch.ones(len(place_M), len(place_M), dtype=torch.bool)
            seen_MM[: before_BM.shape[1]] = seen_MM[: before_BM.shape[1]].tril()
            found_BMV = network.logits(ids_BM, place_M, seen_MM[None])[:, before_BM.shape[1] :]
            worst = max(worst, _worst(noisy_BLV[:, own_L], found_BMV))
        yield Check(f"{what}: noisy logits are a block's behind its clean prefix", 0.0, worst, 1e-10)


class _Attends:
    """A network of two layers of attention that knows how far apart tokens are, with random weights."""

    def __init__(self, vocabulary: int, width: int = 8) -> None:
        random = generator("attends")

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float64)

        self.table_VD, self.far_R = drawn(vocabulary, width), drawn(64)
        self.layers = [tuple(drawn(width, width) / width**0.5 for _ in range(3)) for _ in range(2)]

    def __call__(self, inputs: NetworkInput) -> Tensor:
        """The logits of every position."""
        pattern = inputs.attention
        assert pattern is not None and not isinstance(pattern, Tensor)
        width = inputs.ids_BL.shape[1]
        place_N = torch.arange(width) if inputs.positions is None else inputs.positions
        return self.logits(inputs.ids_BL, place_N, pattern.dense(width))

    def logits(self, ids_BN: Tensor, place_N: Tensor, seen_BNN: Tensor) -> Tensor:
        """The same of ids at some places, each of which sees some of them."""
        x_BND = self.table_VD[ids_BN]
        far_NN = self.far_R[place_N[:, None] - place_N + len(self.far_R) // 2]
        for q, k, v in self.layers:
            scores_BNN = (x_BND @ q) @ (x_BND @ k).transpose(1, 2) + far_NN
            x_BND = x_BND + scores_BNN.masked_fill(~seen_BNN, -torch.inf).softmax(-1) @ (x_BND @ v)
        return x_BND @ self.table_VD.T


def _shown(denoiser: Denoiser, mask_id: int) -> Denoiser:
    """A denoiser of plain rows, shown for each prediction what its pattern shows, and masks for all else."""

    def predict(inputs: NetworkInput) -> Tensor:
        pattern = inputs.attention
        assert pattern is not None and not isinstance(pattern, Tensor)
        ids_BN = inputs.ids_BL
        place_L = torch.arange(ids_BN.shape[1] // (1 if inputs.positions is None else 2))
        # A clean token is one position later than in the text, and the first stands before it.
        holds_N = torch.cat([place_L - 1, place_L])[: ids_BN.shape[1]]
        seen_BNN = (pattern.dense(len(holds_N)) & (holds_N >= 0)).expand(len(ids_BN), -1, -1)
        row_M, token_M = inputs.wanted_BL.nonzero().unbind(1)
        xt_ML = torch.full((len(row_M), len(place_L)), mask_id)
        for number in range(len(row_M)):
            seen_N = seen_BNN[row_M[number], token_M[number]] & (ids_BN[row_M[number]] != mask_id)
            xt_ML[number, holds_N[seen_N]] = ids_BN[row_M[number], seen_N]
        wanted_ML = torch.nn.functional.one_hot(token_M % len(place_L), len(place_L)).bool()
        return denoiser(NetworkInput(xt_ML, wanted_ML, torch.full((len(row_M),), 0.5, dtype=torch.float64)))

    return FunctionDenoiser(predict)


def _worst(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())
