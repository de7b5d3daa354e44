"""Answers scored side by side: each as it is alone, and choices under common masks."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from dlm.config import Characters
from dlm.diffusion.denoiser import FunctionDenoiser, NotingDenoiser
from dlm.diffusion.draws import Aligned, generator, random_scores
from dlm.diffusion.network import NetworkInput, Reduced, Reducer
from dlm.diffusion.unmask import LeftToRight, TokenChoice
from dlm.errors import ConfigError, DataError
from dlm.lm import Answers, DiffusionLM, Sampler, Score
from dlm.lm.canvas import Canvas, stack
from dlm.lm.scores import REPLICATES, Comparison, compared
from dlm.lm.scoring import score_rows
from dlm.model.text import encode
from dlm.model.tokenizer import build_tokenizer, special_ids
from tests.support import pretrained
from tests.support.fixtures import MakeLM, Refused

JOINT = {"name": "joint", "sizes": [2, 4]}
ASKED = {
    0: Answers("given ", ["x", "a long answer", "yz"]),
    3: Answers(None, ["alone"]),
    4: Answers("given ", ["x"]),
    7: Answers("p", ["two words", "two birds", "two"]),
}


@pytest.fixture(scope="module")
def joint(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    return make_lm(byte_tokenizer, 32, readings=JOINT)


@pytest.fixture(scope="module")
def speller(tmp_path_factory: pytest.TempPathFactory) -> DiffusionLM:
    """An encoder that has learned to spell."""
    folder = pretrained.save("encoder", tmp_path_factory.mktemp("pretrained") / "encoder")
    return DiffusionLM.from_pretrained(folder, device="cpu", dtype="fp32")


def close(one: list[list[Score]], other: list[list[Score]]) -> None:
    """Equal to the rounding of other batches."""
    assert [[(s.tokens, s.greedy) for s in group] for group in one] == [
        [(s.tokens, s.greedy) for s in group] for group in other
    ]
    values = [[x for group in found for s in group for x in (*s.estimates, s.monte_carlo_se)] for found in (one, other)]
    assert values[0] == pytest.approx(values[1], rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("reading", ["any-order", "causal", "blocks:4", "left-to-right"])
def test_a_score_does_not_depend_on_the_batch(joint: DiffusionLM, reading: str) -> None:
    how: dict[str, Any] = {"reading": reading, "draws": 4, "greedy": reading != "blocks:4"}
    together = [*joint.score_each(ASKED, batch_size=16, **how)]
    assert [len(group) for group in together] == [3, 1, 1, 3]
    for size in (1, 3):
        close([*joint.score_each(ASKED, batch_size=size, **how)], together)
    for number, answers in ASKED.items():
        close([next(joint.score_each({number: answers}, **how))], [together[[*ASKED].index(number)]])
    if reading in ("causal", "left-to-right"):
        assert all(s.monte_carlo_se == 0.0 and len(s.estimates) == 1 for group in together for s in group)


def test_each_number_has_noise_of_its_own(tiny_lm: DiffusionLM) -> None:
    found = [each for (each,) in tiny_lm.score_each({n: Answers("a", ["and b"]) for n in range(3)}, draws=4)]
    assert len({each.log_likelihood for each in found}) == 3
    assert found[0].log_likelihood == pytest.approx(tiny_lm.score("a", "and b", draws=4).log_likelihood, rel=1e-5)


def test_what_is_left_out_changes_nothing_to_the_last_bit(joint: DiffusionLM) -> None:
    for size, reading in itertools.product((1, 2, 5), ("any-order", "causal")):
        every = [*joint.score_each(ASKED, batch_size=size, draws=4, reading=reading)]
        for begin in range(len(ASKED) + 1):
            rest = [*joint.score_each(ASKED, batch_size=size, draws=4, reading=reading, begin=begin)]
            assert rest == every[begin:]


def test_scores_are_the_bound_of_the_text_with_the_same_noise(tiny_lm: DiffusionLM) -> None:
    texts = ["some text", "other", "and a longer one"]
    rows = stack([tiny_lm.layout.answered(None, text) for text in texts], special_ids(tiny_lm.tokenizer).pad)
    lm = tiny_lm

    def scored(replicates: int, *key: int | str) -> list[float]:
        streams = [generator(0, *key[:1], *((number,) if number or key[0] == "nelbo" else ())) for number in range(3)]
        found = score_rows(lm.denoisers.scoring, lm.process, lm.estimator(None, 16, replicates), *rows, streams)
        return [-each.log_likelihood for each in found]

    found = lm.score_each({number: Answers(None, [text]) for number, text in enumerate(texts)})
    assert scored(REPLICATES, "score") == pytest.approx([-one.log_likelihood for (one,) in found], rel=1e-6)
    assert scored(2, "nelbo") == pytest.approx(lm.nelbo(texts), rel=1e-6)


@pytest.mark.parametrize("reading", ["causal", "left-to-right"])
def test_exact_scores_of_texts_are_their_exact_bounds(joint: DiffusionLM, reading: str) -> None:
    texts = ["some text", "other", ""]
    found = joint.score_each({n: Answers(None, [text]) for n, text in enumerate(texts)}, reading=reading)
    assert joint.nelbo(texts, reading=reading) == pytest.approx([-one.log_likelihood for (one,) in found], rel=1e-6)


def test_the_causal_reading_is_what_plain_transformers_computes(joint: DiffusionLM, tmp_path: Path) -> None:
    joint.save_pretrained(tmp_path / "model")
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model").float().eval()
    forbidden = list(joint.process.vocabulary.forbidden)
    for prompt, response in (("given ", "an answer"), ("", "x"), ("p", "")):
        given, ids = (encode(joint.tokenizer, [text])[0] for text in (prompt, response))
        ids = [*ids, special_ids(joint.tokenizer).end]
        assert joint.layout.before_id is not None
        row = torch.tensor([[joint.layout.before_id, *given, *ids]])
        with torch.inference_mode():
            logits_LV = plain(input_ids=row).logits[0, :-1].index_fill(-1, torch.tensor(forbidden), -math.inf)
        log_p_L = logits_LV.log_softmax(-1).gather(-1, row[0, 1:, None])[-len(ids) :, 0]
        found = joint.score(prompt, response)
        assert found.log_likelihood == pytest.approx(float(log_p_L.sum()), rel=1e-5) and found.tokens == len(ids)


def test_left_to_right_is_the_chain_rule(tiny_lm: DiffusionLM) -> None:
    """The chain rule: log p(x, end | prompt) = log p(x | prompt, two masks) + log p(end | prompt, x, one mask)."""
    ids = [*encode(tiny_lm.tokenizer, ["given x"])[0], special_ids(tiny_lm.tokenizer).end]
    total = 0.0
    for masks in (2, 1):
        row = torch.tensor([[*ids[: len(ids) - masks], *[tiny_lm.process.mask_id] * masks]])
        with torch.inference_mode():
            logits = tiny_lm.model(input_ids=row).logits[0, len(ids) - masks]
        logits = logits.index_fill(0, torch.tensor(list(tiny_lm.process.vocabulary.forbidden)), -math.inf)
        total += float(logits.log_softmax(0)[ids[len(ids) - masks]])
    found = tiny_lm.score("given ", "x", reading=LeftToRight().name)
    assert found.log_likelihood == pytest.approx(total, rel=1e-5)


# Common masks


def rows_of(*texts: str) -> list[Canvas]:
    return [Canvas([1, 2, *map(ord, text)], [i > 1 for i in range(len(text) + 2)], []) for text in texts]


def test_what_texts_have_in_common_gets_the_same_numbers() -> None:
    for texts in (["the king!", "the queen!"], ["a", "bb", "ccc"], ["same", "same"], ["aa", "aaa", "a"], ["ab", ""]):
        found = compared(rows_of(*texts), ("key",))
        width = max(map(len, texts))
        numbers = torch.rand(2 * width, generator=generator("key"), dtype=torch.float64).split(width)
        for row, text in zip(found, texts, strict=True):
            stream, scored_BL = row.stream(), torch.tensor([row.canvas.editable])
            assert len(set(row.places)) == len(text) and row.width == width
            assert set(row.places) <= set(range(width))
            for expected in numbers:  # rows of all lengths go on in step
                scores_L = random_scores([stream], scored_BL)[0]
                assert torch.equal(scores_L[2:], expected[torch.tensor(row.places, dtype=torch.long)])
                assert (scores_L[:2] == -1).all()
    king, queen = compared(rows_of("the king!", "the queen!"), ("key",))
    (short, _) = compared(rows_of("yes.", "yes, yes."), ("key",))
    assert short.places == [0, 1, 2, 8]  # what begins alike comes first, and is not aligned with the end
    assert king.places[:4] == queen.places[:4] == [0, 1, 2, 3] and king.places[-1] == queen.places[-1] == 9


def test_a_stream_alone_is_the_generator() -> None:
    one, other = Aligned.of(("a", 1), range(5), 5), generator("a", 1)
    where = torch.ones(1, 5, dtype=torch.bool)
    for _ in range(3):
        assert torch.equal(random_scores([one], where), random_scores([other], where))


def test_choices_of_one_length_are_scored_as_each_alone(tiny_lm: DiffusionLM) -> None:
    texts = ["abc", "xyz", "abd"]
    (found,) = tiny_lm.score_each({0: Answers("p", texts)}, draws=4)
    for one, text in zip(found, texts, strict=True):
        assert one.log_likelihood == pytest.approx(tiny_lm.score("p", text, draws=4).log_likelihood, rel=1e-5)
    assert found[0].less(found[0]) == (0.0, 0.0)


WORDS = ("the cat sat on a mat", "the dog sat on a mat", "the cat sat on the mat", "the cat ran on a mat")


@pytest.mark.long
def test_differences_have_half_the_error_of_independent_draws_and_say_so_honestly(speller: DiffusionLM) -> None:
    runs = [*speller.score_each({n: Answers("the ", WORDS) for n in range(120)}, draws=8, batch_size=120)]
    long = next(speller.score_each({0: Answers("the ", WORDS)}, draws=1024))
    nats = torch.tensor([[one.log_likelihood for one in run] for run in runs]).double()
    for other in range(1, len(WORDS)):
        found, claimed = torch.tensor([run[0].less(run[other]) for run in runs]).double().unbind(1)
        independent = (nats[:, 0].var() + nats[:, other].var()).sqrt()
        assert found.std() < independent / 2
        assert 0.75 < claimed.square().mean().sqrt() / found.std() < 1.33
        truth, error = long[0].less(long[other])
        assert abs(found.mean() - truth) < 4 * math.hypot(float(found.std()) / 120**0.5, max(error, 0.02))
        # Of four pairs: Student's t with three degrees of freedom, of which 0.61 lies within one standard error.
        assert 0.5 < ((found - truth).abs() < claimed).double().mean() < 0.75


def test_the_likeliest_is_found_by_nats_and_by_byte() -> None:
    scores = [Score(-8.0, 1.0, 3, (-7.0, -9.0)), Score(-6.0, 1.0, 2, (-5.5, -6.5)), Score(-6.0, 1.0, 2, (-6.0, -6.0))]
    found = Comparison.of(scores, ["abcd", "ab", "\u00e4\u00e4"])  # nats a byte: 2, 3, 1.5; a character: 2, 3, 3
    assert (found.best, found.best_per_byte) == (1, 2)
    assert found.differences == [(-2.0, 0.5), (0.0, 0.0), (0.0, 0.5)]
    exact = [Score(-1.0, 0.0, 1, (-1.0,)), Score(-3.0, 0.0, 1, (-3.0,))]
    assert exact[0].less(exact[1]) == (2.0, 0.0)
    unknown = Score(-1.0, math.nan, 1, (-1.0,))
    assert math.isnan(unknown.less(unknown)[1])
    nothing = Comparison.of([scores[0], Score(math.nan, math.nan, 1, (math.nan, math.nan))], ["a", "b"])
    assert nothing.best is nothing.best_per_byte is None and all(math.isnan(x) for x, _ in nothing.differences)


# Greedy


@pytest.fixture(scope="module", params=["masked", "autoregressive", "joint"])
def letters(request: pytest.FixtureRequest, make_lm: MakeLM) -> DiffusionLM:
    """A model of two letters and a blank, so that every response of a few can be tried."""
    tokenizer = build_tokenizer(Characters(), lambda: ["ab "])
    return make_lm(tokenizer, 16, readings=JOINT if request.param == "joint" else {"name": request.param})


def test_greedy_is_what_generate_writes_at_temperature_0(letters: DiffusionLM) -> None:
    end, most = special_ids(letters.tokenizer).end, 3
    every = ["".join(text) for size in range(most + 1) for text in itertools.product("ab ", repeat=size)]
    asked = {0: Answers("a", every), 1: Answers("b a", every), 2: Answers("bb", every), 3: Answers("ab ab", every)}
    found = 0
    for reading in {*letters.formulation.readings.all} & {"causal", "any-order"}:
        scores = letters.score_each(asked, reading=reading, greedy=True, draws=4)
        greedy = [[each.greedy for each in group] for group in scores]
        how = Sampler(
            order=None if reading == "causal" else LeftToRight(),
            token=TokenChoice(temperature=0.0),
            verify=reading == "causal",
        )
        for answers, flags in zip(asked.values(), greedy, strict=True):
            for length in range(1, most + 2):
                written = list(letters.generate(answers.prompt, length=length, sampler=how)[0].ids)
                ids = [[*encode(letters.tokenizer, [text])[0], end] for text in every]
                said = [flag for each, flag in zip(ids, flags, strict=True) if len(each) == length]
                assert said == [each == [*written, end] for each in ids if len(each) == length]
                found += sum(map(bool, said))
    assert found


class InPairs(FunctionDenoiser):
    """Hands its predictions over two rows at a time, as a network with a large vocabulary does."""

    def reduce(self, inputs: NetworkInput, reducer: Reducer) -> Reduced:
        log_p_NV = self(inputs)
        parts = [reducer(log_p_NV[i : i + 2], slice(i, i + 2)) for i in range(0, len(log_p_NV), 2)]
        return Reduced(sum((part.total for part in parts), torch.zeros(())), torch.cat([p.values_N for p in parts]))


def test_what_is_likeliest_is_noted_where_it_was_wanted_of_what_is_written() -> None:
    log_p_NV = torch.randn(5, 6, generator=generator("noting")).log_softmax(-1)
    wanted_BL = torch.tensor([[False, True, True], [True, True, True]])
    for unwritten in ((), (int(log_p_NV[2].argmax()),)):
        noting = NotingDenoiser(InPairs(lambda inputs: log_p_NV), torch.zeros(4, 3, dtype=torch.long), unwritten)
        allowed_NV = log_p_NV.index_fill(1, torch.tensor(unwritten, dtype=torch.long), -math.inf)
        expected_BL = torch.full((4, 3), -1)
        expected_BL[torch.tensor([1, 3])] = torch.full((2, 3), -1).masked_scatter(wanted_BL, allowed_NV.argmax(-1))
        inputs = NetworkInput(torch.zeros(2, 3).long(), wanted_BL, torch.zeros(2), rows_B=torch.tensor([1, 3]))
        noting.reduce(inputs, lambda log_p_CV, rows: Reduced(log_p_CV.sum(), log_p_CV[:, 0]))
        assert torch.equal(noting.likeliest_BL, expected_BL)
        noting.likeliest_BL.fill_(-1)
        assert torch.equal(noting(inputs), log_p_NV) and torch.equal(noting.likeliest_BL, expected_BL)


def test_greedy_is_refused_where_no_token_is_decoded_alone(
    joint: DiffusionLM, make_lm: MakeLM, refused: Refused
) -> None:
    with refused(ConfigError, "blocks:4", "leave --greedy out"):
        joint.score_each({0: Answers("a", ["b"])}, reading="blocks:4", greedy=True)
    uniform = make_lm(joint.tokenizer, 32, noise="uniform")
    with refused(ConfigError, "uniform", "leave --greedy out"):
        uniform.score_each({0: Answers("a", ["b"])}, greedy=True)
    assert next(uniform.score_each({0: Answers("a", ["b", "cd"])}, draws=4))[0].greedy is None


def test_all_are_checked_before_the_first_is_scored(tiny_lm: DiffusionLM, refused: Refused) -> None:
    with refused(DataError, "33 tokens", "room for 31"):
        tiny_lm.score_each({0: Answers("a", ["b"]), 1: Answers("a", ["b", "c" * 32])})
