"""Top-p keeps what sorting the whole vocabulary would keep."""

import math

import pytest
import torch
from torch import Tensor

from dlm.diffusion.draws import generator
from dlm.diffusion.nucleus import BINS, keep_nucleus_
from dlm.diffusion.unmask import TokenChoice
from tests.support.nucleus import nucleus_by_sorting

SIZES = (1, 2, 7, 257, BINS, BINS + 1, 20_000)
SHARES = (1e-9, 0.013, 0.5, 0.9, 0.987, 0.9999, 1 - 1e-8)


def weights(logits_NV: Tensor) -> Tensor:
    """Weights of which the largest of a row is 1, as they are drawn from."""
    return (logits_NV.double() - logits_NV.double().amax(-1, keepdim=True)).exp()


def normal(rows: int, vocabulary: int, spread: float) -> Tensor:
    return spread * torch.randn(rows, vocabulary, generator=generator("logits", vocabulary))


@pytest.mark.parametrize("p", SHARES)
@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("spread", [0.01, 0.3, 1.0, 4.0, 30.0, 1000.0])
def test_random_distributions_flat_to_peaked(spread: float, vocabulary: int, p: float) -> None:
    weights_NV = weights(normal(6, vocabulary, spread))
    assert torch.equal(keep_nucleus_(weights_NV.clone(), p), nucleus_by_sorting(weights_NV, p))


@pytest.mark.parametrize("p", SHARES)
def test_forbidden_ids_a_few_certain_tokens_and_a_long_tail(p: float) -> None:
    logits_NV = normal(8, 5 * BINS, 1.0)
    logits_NV[0, ::2] = -torch.inf
    logits_NV[1, 1:] = -torch.inf
    logits_NV[2, [3, 500, 4000]] = 20.0
    logits_NV[3, 77] = 200.0
    logits_NV[4] = -torch.arange(5.0 * BINS) / 50
    logits_NV[5] = -torch.arange(1.0, 5 * BINS + 1).log()
    weights_NV = weights(logits_NV)
    assert torch.equal(keep_nucleus_(weights_NV.clone(), p), nucleus_by_sorting(weights_NV, p))


@pytest.mark.parametrize("p", [0.0317, 0.5003, 0.90021])
@pytest.mark.parametrize("vocabulary", SIZES)
def test_of_equal_tokens_the_lowest_ids(vocabulary: int, p: float) -> None:
    flat_NV = torch.ones(2, vocabulary, dtype=torch.float64)
    kept = math.ceil(p * vocabulary)
    expected_V = (torch.arange(vocabulary) < kept).double()
    assert torch.equal(keep_nucleus_(flat_NV.clone(), p), expected_V.expand(2, -1))
    levels_NV = weights((3 * normal(4, vocabulary, 1.0)).round() / 3)  # a few values, shared by many
    assert torch.equal(keep_nucleus_(levels_NV.clone(), p), nucleus_by_sorting(levels_NV, p))


def test_the_token_that_reaches_p_is_kept_and_the_next_is_not() -> None:
    weights_NV = torch.zeros(1, 2 * BINS, dtype=torch.float64)
    weights_NV[0, [5, 900, 17]] = torch.tensor([1.0, 0.5, 0.5], dtype=torch.float64)
    for p, ids in ((0.499, [5]), (0.5, [5]), (0.501, [5, 17]), (0.75, [5, 17]), (0.751, [5, 17, 900])):
        assert keep_nucleus_(weights_NV.clone(), p).nonzero()[:, 1].tolist() == ids


def test_each_row_is_cut_by_itself_and_no_row_is_none() -> None:
    weights_NV = torch.cat([weights(normal(1, 3 * BINS, spread)) for spread in (0.1, 1.0, 5.0, 50.0)])
    alone = torch.cat([keep_nucleus_(row_V[None].clone(), 0.9) for row_V in weights_NV])
    assert torch.equal(keep_nucleus_(weights_NV.clone(), 0.9), alone)
    assert keep_nucleus_(weights_NV[:0].clone(), 0.9).shape == (0, 3 * BINS)


@pytest.mark.parametrize("top_k", [None, 40])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_draws_are_those_of_the_sorted_vocabulary(temperature: float, top_k: int | None) -> None:
    log_p_NV = normal(64, 3 * BINS, 2.0).log_softmax(-1)
    u_N = torch.rand(64, generator=generator("u"), dtype=torch.float64)
    logits_NV = log_p_NV.double()
    if top_k is not None:
        logits_NV = logits_NV.masked_fill(log_p_NV < log_p_NV.topk(top_k).values[:, -1:], -torch.inf)
    cdf_NV = nucleus_by_sorting(weights(logits_NV / temperature), 0.9).cumsum(-1)
    expected_N = torch.searchsorted(cdf_NV, u_N[:, None] * cdf_NV[:, -1:], right=True)[:, 0]
    assert torch.equal(TokenChoice(temperature, top_k, 0.9).draw(log_p_NV, u_N), expected_N)
