"""A score is a bound of log p(response | prompt), with an honest standard error."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dlm.errors import DataError
from dlm.lm import DiffusionLM
from dlm.model.precision import native_precision
from dlm.model.text import encode
from dlm.model.tokenizer import special_ids
from tests.support.fixtures import Refused
from tests.support.networks import ask


def cross_entropies(lm: DiffusionLM, ids: list[int], masked: list[int]) -> float:
    """-log p of the masked ids given the others, summed."""
    x0_BL = torch.tensor([ids])
    masked_BL = torch.zeros_like(x0_BL, dtype=torch.bool)
    masked_BL[0, masked] = True
    xt_BL = x0_BL.masked_fill(masked_BL, lm.process.mask_id)
    with torch.inference_mode():
        log_p0_NV = ask(lm.denoisers.scoring, xt_BL, masked_BL.double().mean(1), masked_BL)
    return -float(log_p0_NV.gather(-1, x0_BL[masked_BL][:, None]).sum())


@pytest.mark.parametrize("prompt", [None, "given "])
def test_two_tokens_are_scored_exactly(tiny_lm: DiffusionLM, prompt: str | None) -> None:
    """With two tokens every subset is drawn: -log p <= E over l of (2/l) E[S_l] / 2 = E[S_1] + S_2 / 2."""
    given = encode(tiny_lm.tokenizer, [prompt or ""])[0]
    ids = [*given, *encode(tiny_lm.tokenizer, ["x"])[0], special_ids(tiny_lm.tokenizer).end]
    first, second = len(given), len(given) + 1
    alone = (cross_entropies(tiny_lm, ids, [first]) + cross_entropies(tiny_lm, ids, [second])) / 2
    bound = alone + cross_entropies(tiny_lm, ids, [first, second]) / 2
    found = tiny_lm.score(prompt, "x")
    assert found.log_likelihood == pytest.approx(-bound, abs=1e-5) and found.tokens == 2
    assert found.monte_carlo_se == pytest.approx(0.0, abs=1e-5)


def test_a_score_without_a_prompt_is_the_bound_of_the_text(tiny_lm: DiffusionLM) -> None:
    assert tiny_lm.nelbo("x") == [pytest.approx(-tiny_lm.score(None, "x").log_likelihood, abs=1e-5)]


def test_the_standard_error_is_that_of_the_draws(tiny_lm: DiffusionLM) -> None:
    scores = [tiny_lm.score("one ", "and another", draws=4, seed=seed) for seed in range(200)]
    spread = torch.tensor([score.log_likelihood for score in scores]).std()
    claimed = torch.tensor([score.monte_carlo_se for score in scores]).square().mean().sqrt()
    assert 0.8 < float(claimed / spread) < 1.25  # of 200 the ratio of the two is known to about 6%


def test_two_draws_have_no_standard_error(tiny_lm: DiffusionLM) -> None:
    assert math.isnan(tiny_lm.score("a", "bc", draws=2).monte_carlo_se)


def test_a_chat_is_a_prompt(tiny_lm: DiffusionLM) -> None:
    tokenizer = tiny_lm.tokenizer
    before = tokenizer.chat_template
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}>{% endfor %}"
    try:
        assert tiny_lm.score([{"role": "user", "content": "one"}], "x") == tiny_lm.score("one>", "x")
    finally:
        tokenizer.chat_template = before


def test_a_response_that_does_not_fit_is_refused(tiny_lm: DiffusionLM, refused: Refused) -> None:
    assert tiny_lm.score("a" * 20, "b" * 11).tokens == 12
    with refused(DataError, "13 tokens", "room for 12"):
        tiny_lm.score("a" * 20, "b" * 12)
    with refused(DataError, "32 tokens", "shorten"):
        tiny_lm.score("a" * 32, "b")


@pytest.mark.parametrize("score", [lambda lm: lm.score("a", "bcd"), lambda lm: lm.nelbo("bcd")], ids=["score", "nelbo"])
def test_dropout_is_off_when_a_text_is_scored(tiny_lm: DiffusionLM, score: Callable[[DiffusionLM], object]) -> None:
    lm = DiffusionLM(copy.deepcopy(tiny_lm.model), tiny_lm.tokenizer, sidecar=tiny_lm.sidecar)
    for layer in lm.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    expected = score(lm)
    lm.model.train()
    assert score(lm) == expected


def test_texts_are_written_in_the_machines_precision_and_scored_in_float32(tiny_lm: DiffusionLM) -> None:
    one, other = (
        DiffusionLM(tiny_lm.model, tiny_lm.tokenizer, sidecar=tiny_lm.sidecar, precision=precision)
        for precision in ("auto", "fp32")
    )
    assert one.precision == native_precision(torch.device("cpu")) and other.precision == "fp32"
    assert one.nelbo("some text") == other.nelbo("some text") and one.score("a", "b") == other.score("a", "b")
    x_BL = torch.full((1, 8), one.process.mask_id)
    wanted_BL, t_B = torch.ones_like(x_BL, dtype=torch.bool), torch.ones(1)
    with torch.inference_mode():
        written, exact = (ask(lm.denoisers.sampling, x_BL, t_B, wanted_BL) for lm in (one, other))
    assert written.dtype == exact.dtype == torch.float32
    assert torch.equal(written, exact) == (one.precision == "fp32")
    torch.testing.assert_close(written.exp(), exact.exp(), atol=0.02, rtol=0.05)


def test_every_alternative_is_ranked_in_float32(tiny_lm: DiffusionLM) -> None:
    found = tiny_lm.infill("ab[MASK:1]cd", num=3)
    for each in found:
        ids = encode(tiny_lm.tokenizer, ["ab"])[0] + list(each.ids[0]) + encode(tiny_lm.tokenizer, ["cd"])[0]
        with torch.inference_mode():
            x_BL = torch.tensor([ids])
            wanted_BL = torch.zeros_like(x_BL, dtype=torch.bool)
            wanted_BL[0, 2] = True
            masked_BL = x_BL.masked_fill(wanted_BL, tiny_lm.process.mask_id)
            same = DiffusionLM(tiny_lm.model, tiny_lm.tokenizer, sidecar=tiny_lm.sidecar, precision="fp32")
            log_p = ask(same.denoisers.infilling, masked_BL, torch.ones(1), wanted_BL)[0, each.ids[0][0]]
        assert each.log_likelihood == pytest.approx(float(log_p), abs=1e-6)


def test_a_shorter_context_leaves_less_room(tiny_lm: DiffusionLM, refused: Refused) -> None:
    short = DiffusionLM(tiny_lm.model, tiny_lm.tokenizer, sidecar=replace(tiny_lm.sidecar, context=4, config=None))
    with refused(DataError, "room for 3"):
        short.score("a", "bcd")
