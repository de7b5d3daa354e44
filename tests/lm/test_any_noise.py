"""Models of uniform and hybrid noise, and ones that take the time, write, fill and score like any other."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dlm.config import Characters, Time
from dlm.diffusion import formulation
from dlm.diffusion.formulation import FEWEST_STEPS
from dlm.diffusion.likelihood import Estimator
from dlm.diffusion.network import FunctionNetwork, Network, NetworkInput
from dlm.diffusion.sample import State
from dlm.diffusion.unmask import (
    Ancestral,
    Budget,
    Confidence,
    EntropyBound,
    Factor,
    FixedSteps,
    LeftToRight,
    OneAtATime,
    Random,
    Threshold,
    TokenChoice,
)
from dlm.errors import ConfigError
from dlm.evaluate.chain_rule import evaluate_chain_rule
from dlm.evaluate.likelihood import evaluate_likelihood
from dlm.lm import DiffusionLM, Sampler
from dlm.model.tokenizer import build_tokenizer
from dlm.template import parse_template
from tests.support.corpora import DOCUMENTS, Packing, assert_close, cut
from tests.support.fixtures import MakeLM, Refused
from tests.support.networks import ask

KINDS: dict[str, dict[str, Any]] = {
    "uniform": {"noise": {"name": "uniform"}},
    "uniform-mixture": {"noise": {"name": "uniform"}, "parameterization": "mixture", "time": {"steps": 10}},
    "hybrid": {"noise": {"name": "hybrid", "share": 0.3}, "schedule": {"name": "cosine"}},
    "geometric": {"noise": {"name": "hybrid"}, "schedule": {"name": "geometric"}, "time": {"steps": 20}},
    "timeless": {"noise": {"name": "uniform"}, "model": {"time_conditioning": False}},
    "timed-masks": {"model": {"time_conditioning": True}, "schedule": {"name": "cosine"}},
}
MIXING = [kind for kind in KINDS if kind != "timed-masks"]
FEW = Sampler(budget=Ancestral(4))


@pytest.fixture(params=list(KINDS), scope="module")
def lm(request: pytest.FixtureRequest, make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    return make_lm(byte_tokenizer, 32, **KINDS[request.param])


@pytest.fixture(params=MIXING, scope="module")
def mixing(request: pytest.FixtureRequest, make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    """One whose seen tokens may be noise."""
    return make_lm(byte_tokenizer, 32, **KINDS[request.param])


@pytest.fixture(scope="module")
def timed_masks(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    return make_lm(byte_tokenizer, 32, **KINDS["timed-masks"])


def steps_of(lm: DiffusionLM, **asked: Any) -> int:
    """Network calls of one text."""
    (sample,) = lm.generate(**asked)
    return sample.calls


# Writing


def test_a_text_is_written(lm: DiffusionLM) -> None:
    for prompt in (None, "a prompt \U0001f600"):
        for sample in lm.generate(prompt, num=3, length=12, sampler=FEW):
            assert sample.text == (prompt or "") + sample.continuation and 0 < sample.calls <= 4
            assert len(sample.ids) <= 12
            assert not {lm.process.mask_id, lm.tokenizer.pad_token_id} & set(sample.ids)
            assert prompt is None or lm.tokenizer.eos_token_id not in sample.ids


def test_a_text_depends_on_the_seed_and_its_number_alone(lm: DiffusionLM) -> None:
    five = lm.generate("so", num=5, length=12, sampler=FEW)
    assert five == lm.generate("so", num=5, length=12, sampler=FEW, batch_size=2)
    assert five[:2] == lm.generate("so", num=2, length=12, sampler=FEW)
    assert five != lm.generate("so", num=5, length=12, sampler=FEW, seed=1)
    assert len({sample.ids for sample in five}) == 5


def test_the_prompt_and_what_stands_outside_the_holes_are_never_touched(lm: DiffusionLM) -> None:
    seen: list[State] = []
    lm.generate("prompt", num=2, length=8, sampler=FEW, watch=seen.append)
    assert all(bytes(row[:6]) == b"prompt" for state in seen for row in state.x_BL.tolist())
    text = "caf\u00e9 [MASK:4] and \U0001f600[MASK:3]!"
    for found in lm.infill(text, num=3, sampler=FEW, draws=4):
        assert found.text == f"caf\u00e9 {found.spans[0]} and \U0001f600{found.spans[1]}!"
        assert [len(ids) for ids in found.ids] == [4, 3] and all(max(ids) < 256 for ids in found.ids)
        assert found.log_likelihood < 0.0


def test_by_default_the_reverse_chain_takes_the_models_own_steps(mixing: DiffusionLM) -> None:
    assert steps_of(mixing, length=5) == (mixing.formulation.steps or FEWEST_STEPS)


def test_by_default_a_long_text_takes_a_step_a_token(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    lm = make_lm(byte_tokenizer, 100, **KINDS["uniform"])
    assert steps_of(lm, length=100) == 100 and steps_of(lm, length=20) == FEWEST_STEPS


def test_steps_are_the_steps_of_the_reverse_chain(mixing: DiffusionLM) -> None:
    for steps in (1, 7):
        assert steps_of(mixing, length=5, sampler=Sampler(budget=Ancestral(steps))) == steps
        assert steps_of(mixing, length=5, sampler=Sampler(budget=FixedSteps(steps))) == steps


def test_the_network_is_told_the_time_of_the_chain_in_a_reverse_chain(mixing: DiffusionLM) -> None:
    told: list[Tensor] = []
    inner: Network = mixing.denoisers.sampling.denoiser.network  # type: ignore[attr-defined]

    def spy(inputs: NetworkInput) -> Tensor:
        xt_BL, t_B, select_BL = inputs.ids_BL, inputs.time_B, inputs.wanted_BL
        told.append(t_B)
        return ask(inner, xt_BL, t_B, select_BL)

    mixing.denoisers.sampling.denoiser.network = FunctionNetwork(spy)  # type: ignore[attr-defined]
    try:
        mixing.generate(num=2, length=6, sampler=FEW)
    finally:
        mixing.denoisers.sampling.denoiser.network = inner  # type: ignore[attr-defined]
    assert [t_B.tolist() for t_B in told] == [[k / 4] * 2 for k in (4, 3, 2, 1)]


@pytest.mark.parametrize(
    "budget",
    [OneAtATime(), FixedSteps(4, "cosine"), Threshold(0.5), Factor(1.0), EntropyBound(1.0)],
    ids=lambda budget: budget.name,
)
def test_budgets_of_masks_are_refused_where_there_are_none_for_good(
    mixing: DiffusionLM, refused: Refused, budget: Budget
) -> None:
    with refused(ConfigError, mixing.process.noise.name, "--steps N"):
        mixing.generate(length=4, sampler=Sampler(budget=budget))
    with refused(ConfigError, mixing.process.noise.name, "--steps N"):
        mixing.infill("a[MASK:2]", sampler=Sampler(budget=budget))


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(order=Confidence()),
        Sampler(order=Random()),
        Sampler(block_length=2),
        Sampler(LeftToRight(), Ancestral(4)),
    ],
    ids=repr,
)
def test_orders_and_blocks_are_refused_where_no_token_is_settled(
    mixing: DiffusionLM, refused: Refused, sampler: Sampler
) -> None:
    for write in (
        lambda: mixing.generate(length=4, sampler=sampler),
        lambda: mixing.infill("a[MASK:2]", sampler=sampler),
    ):
        with refused(ConfigError, "reverse chain", "--order", "--block-length"):
            write()


@pytest.mark.parametrize(
    "sampler", [Sampler(Confidence(), Ancestral(4)), Sampler(None, Ancestral(4), block_length=2)], ids=repr
)
def test_with_a_time_embedding_a_reverse_chain_of_masks_has_no_order_and_no_blocks_either(
    timed_masks: DiffusionLM, refused: Refused, sampler: Sampler
) -> None:
    with refused(ConfigError, "reverse chain", "--order", "--block-length"):
        timed_masks.generate(length=4, sampler=sampler)


def test_token_choices_are_taken(mixing: DiffusionLM) -> None:
    greedy = Sampler(budget=Ancestral(1), token=TokenChoice(temperature=0.0))
    ids = mixing.generate(num=2, length=6, sampler=greedy, seed=3)
    assert ids == mixing.generate(num=2, length=6, sampler=greedy, seed=3)
    assert ids != mixing.generate(num=2, length=6, sampler=Sampler(budget=Ancestral(1)), seed=3)


def test_masks_with_a_time_embedding_are_unmasked_in_any_order(timed_masks: DiffusionLM) -> None:
    for sampler in (
        Sampler(),
        Sampler(LeftToRight(), FixedSteps(4)),
        Sampler(Confidence(), Threshold(0.5), block_length=3),
        FEW,
    ):
        (sample,) = timed_masks.generate(length=9, sampler=sampler)
        assert len(sample.ids) == 9 and 1 <= sample.calls <= 9
    told: list[Tensor] = []
    inner: Network = timed_masks.denoisers.sampling.denoiser.network  # type: ignore[attr-defined]

    def spy(inputs: NetworkInput) -> Tensor:
        xt_BL, t_B, select_BL = inputs.ids_BL, inputs.time_B, inputs.wanted_BL
        told.append(timed_masks.process.schedule.alpha(t_B) - (xt_BL != timed_masks.process.mask_id).double().mean(1))
        return ask(inner, xt_BL, t_B, select_BL)

    timed_masks.denoisers.sampling.denoiser.network = FunctionNetwork(spy)  # type: ignore[attr-defined]
    try:
        timed_masks.generate(length=9)
    finally:
        timed_masks.denoisers.sampling.denoiser.network = inner  # type: ignore[attr-defined]
    assert len(told) == 9  # and each time the share of clean tokens is what the schedule says for it
    torch.testing.assert_close(torch.cat(told), torch.zeros(9, dtype=torch.float64), atol=1e-6, rtol=0)


def test_no_hole_is_filled_with_an_unknown_character_or_an_end(make_lm: MakeLM) -> None:
    lm = make_lm(build_tokenizer(Characters(), lambda: ["ab"]), 12, **KINDS["hybrid"])
    found = lm.infill("a[MASK:4]b", num=20, sampler=FEW, draws=2)
    assert {character for one in found for character in one.spans[0]} == {"a", "b"}


@pytest.mark.parametrize("sampler", [Sampler(), FEW], ids=["own", "few"])
def test_a_text_does_not_depend_on_the_texts_beside_it(
    lm: DiffusionLM, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on their widths, and not on the steps that they need."""
    monkeypatch.setattr(formulation, "FEWEST_STEPS", 4)  # so that these short texts need different ones
    prompts = ["a", "one of another length", "b", None, "c"]
    together = [*lm.generate_each(dict(enumerate(prompts)), sampler=sampler, seed=3)]
    assert together[0] == lm.generate("a", sampler=sampler, seed=3)
    for place in (1, 3, 4):
        assert [together[place]] == [*lm.generate_each({place: prompts[place]}, sampler=sampler, seed=3)]
    templates = [parse_template(text) for text in ("a[MASK:9]b", "one of another [MASK:2]", "[MASK:14]")]
    filled = [*lm.infill_each(dict(enumerate(templates)), sampler=sampler, draws=2, seed=3)]
    for place, template in enumerate(templates):
        ((alone,),) = lm.infill_each({place: template}, sampler=sampler, draws=2, seed=3)
        assert (alone.spans, alone.calls) == (filled[place][0].spans, filled[place][0].calls)


# Scoring


def test_alternatives_are_ranked_by_their_own_bound(lm: DiffusionLM) -> None:
    found = lm.infill("a [MASK:4] b", num=6, sampler=FEW, draws=4)
    values = [one.log_likelihood for one in found]
    assert values == sorted(values, reverse=True) and len(set(values)) > 1
    again = lm.infill("a [MASK:4] b", num=6, sampler=FEW, draws=4, batch_size=2)
    assert [one.text for one in again] == [one.text for one in found]
    assert [one.log_likelihood for one in again] == pytest.approx(values, rel=1e-4)


def test_a_score_is_the_estimators_own(lm: DiffusionLM) -> None:
    assert lm.formulation.estimator(8) == Estimator(8, lm.formulation.steps, lm.formulation.timed)
    nats = lm.nelbo(["a text", "another, which is longer than one row of the context"], draws=8)
    assert all(n > 0 for n in nats) and nats[1] > nats[0]
    assert nats == pytest.approx(
        lm.nelbo(["a text", "another, which is longer than one row of the context"], draws=8, batch_size=1), rel=1e-3
    )


def test_a_report_is_the_pipelines_own_score(lm: DiffusionLM) -> None:
    documents = ["a document", "and another one"]
    report = evaluate_likelihood(lm, cut(lm.tokenizer, documents, "pad", 32), draws=64)
    nats = [sum(lm.nelbo(documents, draws=64, seed=seed)) / report.tokens for seed in range(4)]
    spread = float(torch.tensor(nats).std())
    mean = sum(nats) / len(nats)
    assert abs(mean - report.nats_per_token) < 6.0 * max(report.monte_carlo_se, spread)
    assert report.estimator == "times" and report.process == lm.process.noise.name
    assert (report.schedule, report.steps) == (lm.process.schedule.name, lm.formulation.steps)


def test_a_report_says_what_the_ends_cost(lm: DiffusionLM) -> None:
    report = evaluate_likelihood(lm, cut(lm.tokenizer, DOCUMENTS, "pack"), draws=4)
    ends = report.prior_nats_per_token + report.reconstruction_nats_per_token
    if lm.process.schedule.name == "geometric":
        assert report.prior_nats_per_token > 0 and report.reconstruction_nats_per_token > 0
        assert ends == pytest.approx(float((lm.process.prior_nats_S + lm.process.reconstruction_nats_S)[97]))
    else:
        assert ends == pytest.approx(0.0, abs=1e-12)
    assert report.nats_per_token > ends


def test_the_chain_of_a_report_can_be_chosen(lm: DiffusionLM, refused: Refused) -> None:
    sequences = cut(lm.tokenizer, DOCUMENTS, "pack")
    mixture = lm.formulation.parameterization == "mixture"
    if mixture:
        with refused(ConfigError, "no finite bound in continuous time", "a number of steps"):
            evaluate_likelihood(lm, sequences, draws=4, time=Time(None))
    for steps in (3,) if mixture else (None, 3):
        report = evaluate_likelihood(lm, sequences, draws=4, time=Time(steps))
        assert report.steps == steps and report.estimator == "times"
    own = evaluate_likelihood(lm, sequences, draws=4)
    assert own == evaluate_likelihood(lm, sequences, draws=4, time=Time(lm.formulation.steps))


@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_the_batch_size_changes_nothing(lm: DiffusionLM, packing: Packing) -> None:
    sequences = cut(lm.tokenizer, DOCUMENTS, packing)
    expected = evaluate_likelihood(lm, sequences, draws=4)
    assert_close(evaluate_likelihood(lm, sequences, draws=4, batch_size=2), expected)


def test_there_is_no_chain_rule_but_that_of_masks(lm: DiffusionLM, refused: Refused) -> None:
    with refused(ConfigError, lm.process.noise.name, "leave --chain-rule out"):
        evaluate_chain_rule(lm, cut(lm.tokenizer, DOCUMENTS, "pack"), count=1, batch_size=1, seed=0)
