"""The statistics of sampled texts, where they are known, and judges whose nats are worked out by hand."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from dlm.config import Bpe, Characters
from dlm.evaluate.samples import (
    CausalJudge,
    Judge,
    ReadingJudge,
    distinct_share,
    judge_texts,
    ratio_with_error,
    repeated_share,
    same_tokens,
)
from dlm.lm import DiffusionLM
from dlm.model.text import encode
from dlm.model.tokenizer import before_id, build_tokenizer, special_ids
from tests.support.fixtures import MakeLM

TEXTS = ["for i in x:", "0", "ab ab ab ab"]


@pytest.fixture
def causal_lm(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    return make_lm(byte_tokenizer, 16, readings={"name": "joint"})


def plain(lm: DiffusionLM, folder: Path) -> CausalJudge:
    """The same weights as transformers reads them."""
    lm.save_pretrained(folder)
    return CausalJudge(AutoModelForCausalLM.from_pretrained(folder).eval(), lm.tokenizer)


# Repetition


def test_a_text_that_repeats_itself_is_nearly_all_repeated() -> None:
    assert repeated_share([[7] * 100]) == 96 / 97  # of 97 runs of four, the first alone is new
    assert repeated_share([[1, 2, 3, 4, 5] * 20]) == (97 - 5) / 97


def test_a_text_without_a_repetition_has_none() -> None:
    assert repeated_share([list(range(50)), list(range(50))]) == 0.0  # of another text's words no text repeats itself
    assert repeated_share([[1, 2, 3, 1, 2, 3]], 3) == 1 / 4


def test_texts_that_repeat_each_other_are_not_distinct() -> None:
    assert distinct_share([list(range(50))] * 5) == 1 / 5
    assert distinct_share([list(range(50)), list(range(50, 90))]) == 1.0
    assert distinct_share([[7] * 100]) == 1 / 97


def test_texts_too_short_say_nothing() -> None:
    for share in (repeated_share, distinct_share):
        assert math.isnan(share([[1, 2, 3], []])) and math.isnan(share([]))


# Ratios


def test_equal_counts_give_the_standard_error_of_the_mean() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    ratio, error = ratio_with_error([2 * value for value in values], [2.0] * 5)
    assert ratio == pytest.approx(statistics.fmean(values))
    assert error == pytest.approx(statistics.stdev(values) / math.sqrt(5))


def test_unequal_counts_by_hand() -> None:
    """The ratio is 6/4, the residuals are 1 - 1.5 and 5 - 4.5, and the error is sqrt(2 (0.25 + 0.25)) / 4."""
    assert ratio_with_error([1.0, 5.0], [1.0, 3.0]) == pytest.approx((1.5, 0.25))


def test_the_error_is_the_spread_of_the_ratio_itself() -> None:
    stream = torch.Generator().manual_seed(1)
    found = []
    for _ in range(400):
        counts = torch.randint(1, 20, (60,), generator=stream).double()
        sums = counts * 2.0 + counts.sqrt() * torch.randn(60, generator=stream).double()
        found.append(ratio_with_error(sums.tolist(), counts.tolist()))
    spread = statistics.stdev(ratio for ratio, _ in found)
    assert statistics.fmean(error for _, error in found) == pytest.approx(spread, rel=0.15)


def test_one_text_has_no_error_and_no_text_no_ratio() -> None:
    ratio, error = ratio_with_error([3.0], [2.0])
    assert ratio == 1.5 and math.isnan(error)
    assert all(map(math.isnan, ratio_with_error([], []))) and all(map(math.isnan, ratio_with_error([0.0], [0.0])))
    ratio, error = ratio_with_error([math.inf, 1.0], [1.0, 1.0])
    assert ratio == math.inf and math.isnan(error)


# Judges


def test_a_causal_judge_gives_the_cross_entropy_of_next_tokens(causal_lm: DiffusionLM, tmp_path: Path) -> None:
    judge = plain(causal_lm, tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    rows = encode(causal_lm.tokenizer, TEXTS)
    for row, nats in zip(rows, judge.nats(rows), strict=True):
        ids_L = torch.tensor([before_id(causal_lm.tokenizer), *row])
        with torch.no_grad():
            log_p_LV = model(ids_L[None]).logits[0].double().log_softmax(-1)
        assert nats == pytest.approx(-sum(float(log_p_LV[at, id_]) for at, id_ in enumerate(row)), rel=1e-5)


def test_the_causal_reading_gives_the_same_up_to_what_it_never_predicts(causal_lm: DiffusionLM, tmp_path: Path) -> None:
    judge = ReadingJudge(causal_lm)
    assert judge.exact and judge.reading == "causal"
    plain(causal_lm, tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    rows = encode(causal_lm.tokenizer, TEXTS)
    for row, nats in zip(rows, judge.nats(rows), strict=True):
        with torch.no_grad():
            logits_LV = model(torch.tensor([[before_id(causal_lm.tokenizer), *row]])).logits[0].double()
        logits_LV[:, list(causal_lm.process.vocabulary.forbidden)] = -torch.inf
        log_p_LV = logits_LV.log_softmax(-1)
        assert nats == pytest.approx(-sum(float(log_p_LV[at, id_]) for at, id_ in enumerate(row)), rel=1e-5)


def test_constant_logits_cost_the_logarithm_of_the_vocabulary(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = encode(byte_tokenizer, TEXTS)
    for readings in ("masked", "autoregressive", "joint"):
        lm = make_lm(byte_tokenizer, 16, readings={"name": readings})
        torch.nn.init.zeros_(lm.model.get_output_embeddings().weight)
        judge = ReadingJudge(lm)
        assert judge.exact == (readings != "masked")
        allowed = len(byte_tokenizer) - len(lm.process.vocabulary.forbidden)
        assert judge.nats(rows) == pytest.approx([len(row) * math.log(allowed) for row in rows], rel=1e-5)
        if readings != "masked":
            every = [len(row) * math.log(len(byte_tokenizer)) for row in rows]
            assert plain(lm, tmp_path / readings).nats(rows) == pytest.approx(every, rel=1e-5)


def test_texts_judged_side_by_side_are_judged_alone(
    causal_lm: DiffusionLM, make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = encode(byte_tokenizer, TEXTS)
    judges: list[Judge] = [plain(causal_lm, tmp_path / "plain"), ReadingJudge(causal_lm)]
    for judge in judges:
        alone = [nats for row in rows for nats in judge.nats([row])]
        assert judge.nats(rows) == pytest.approx(alone, rel=1e-5)
        assert judge.nats([]) == []
    masked = make_lm(byte_tokenizer, 16)
    together, by_two = (ReadingJudge(masked, batch_size=size).nats(rows) for size in (8, 2))
    assert together == pytest.approx(by_two, rel=1e-5)


# Texts for a judge


class Counting:
    """A judge that takes one nat of each token, and notes what it was asked."""

    exact, reading = True, "causal"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int | None = None) -> None:
        self.tokenizer, self.context, self.asked = tokenizer, context, list[list[int]]()
        self.end_id = special_ids(tokenizer).end

    def nats(self, rows: object) -> list[float]:
        assert isinstance(rows, list)
        self.asked = rows
        return [float(len(row)) for row in rows]

    def features(self, rows: object) -> torch.Tensor:
        raise AssertionError("judge_texts asks for no states")


@pytest.fixture(scope="module")
def characters() -> PreTrainedTokenizerBase:
    return build_tokenizer(Characters(), lambda: ["abcä "])


def test_ids_are_judged_as_they_were_written(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    judge, rows = Counting(byte_tokenizer), encode(byte_tokenizer, ["abc", "ä"])
    judged = judge_texts(judge, rows, byte_tokenizer, ())
    assert judge.asked == rows and not judged.encoded_anew
    assert judged.tokens == (3, 2) and judged.bytes == (3, 2) and judged.per_token[0] == 1.0


def test_another_tokenizer_encodes_anew(
    byte_tokenizer: PreTrainedTokenizerBase, characters: PreTrainedTokenizerBase
) -> None:
    judge = Counting(characters)
    judged = judge_texts(judge, encode(byte_tokenizer, ["abc", "ää"]), byte_tokenizer, ())
    assert judged.encoded_anew and judge.asked == encode(characters, ["abc", "ää"])
    assert judged.tokens == (3, 2) and judged.bytes == (3, 4)
    assert judged.per_byte[0] == pytest.approx(5 / 7) and judged.unknown == 0


def test_characters_that_a_judge_does_not_know_are_counted(
    byte_tokenizer: PreTrainedTokenizerBase, characters: PreTrainedTokenizerBase
) -> None:
    assert judge_texts(Counting(characters), encode(byte_tokenizer, ["axc", "zz"]), byte_tokenizer, ()).unknown == 3


def test_documents_end_in_the_judges_own_way(
    byte_tokenizer: PreTrainedTokenizerBase, characters: PreTrainedTokenizerBase
) -> None:
    end = special_ids(byte_tokenizer).end
    (first, second), judge = encode(byte_tokenizer, ["ab", "c"]), Counting(characters)
    judged = judge_texts(judge, [[*first, end, *second, end]], byte_tokenizer, (end,))
    (one, other), mark = encode(characters, ["ab", "c"]), special_ids(characters).end
    assert judge.asked == [[*one, mark, *other, mark]]
    assert judged.bytes == (3,) and judged.tokens == (5,)  # an end is a token, and no byte
    same = Counting(byte_tokenizer)
    judge_texts(same, [[end, *first]], byte_tokenizer, (end,))
    assert same.asked == [[end, *first]]


def test_a_text_longer_than_the_context_is_judged_in_pieces(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    judge = Counting(byte_tokenizer, context=4)
    judged = judge_texts(judge, encode(byte_tokenizer, ["abcdefghi", "abcd"]), byte_tokenizer, ())
    assert [len(row) for row in judge.asked] == [4, 4, 1, 4] and judged.nats == (9.0, 4.0) and judged.cut == 1


def test_an_empty_text_has_no_nats(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    judged = judge_texts(Counting(byte_tokenizer), [[], encode(byte_tokenizer, ["ab"])[0]], byte_tokenizer, ())
    assert judged.nats == (0.0, 2.0) and judged.tokens == (0, 2)
    assert math.isnan(judge_texts(Counting(byte_tokenizer), [[]], byte_tokenizer, ()).per_token[0])


def test_which_tokenizers_are_the_same(
    byte_tokenizer: PreTrainedTokenizerBase, characters: PreTrainedTokenizerBase
) -> None:
    def trained(text: str) -> Callable[[], list[str]]:
        return lambda: [text * 9]

    first, again = (build_tokenizer(Bpe(size=300), trained("abcabc ")) for _ in range(2))
    other = build_tokenizer(Bpe(size=300), trained("xyzxyz "))
    assert same_tokens(first, again) and not same_tokens(first, other)
    assert not same_tokens(byte_tokenizer, characters) and same_tokens(characters, characters)
    again.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    assert same_tokens(first, again)  # no text holds it


# States


@pytest.mark.parametrize("readings", ["masked", "joint"])
def test_the_state_of_a_row_does_not_depend_on_the_rows_beside_it(
    readings: str, make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    judge, rows = ReadingJudge(make_lm(byte_tokenizer, 16, readings={"name": readings})), encode(byte_tokenizer, TEXTS)
    together = judge.features(rows)
    assert together.shape[0] == len(rows) and len({tuple(row.tolist()) for row in together}) == len(rows)
    for row, state in zip(rows, together, strict=True):
        torch.testing.assert_close(judge.features([row])[0], state)


def test_a_causal_state_is_that_of_plain_transformers(causal_lm: DiffusionLM, tmp_path: Path) -> None:
    """Of the last token, which sees all before it: of rows that begin with the text itself."""
    judge = ReadingJudge(causal_lm)
    judge_of_plain = plain(causal_lm, tmp_path / "model")
    (row,) = encode(causal_lm.tokenizer, ["for i in x:"])
    first = before_id(causal_lm.tokenizer)
    torch.testing.assert_close(judge.features([[first, *row]]), judge_of_plain.features([row]), rtol=1e-4, atol=1e-4)


def test_a_bidirectional_state_is_the_mean_of_those_of_plain_transformers(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Of clean text and without dropout, whatever state the model was left in."""
    lm = make_lm(byte_tokenizer, 16)
    rows = encode(byte_tokenizer, TEXTS)
    judge = ReadingJudge(lm)
    lm.model.train()
    found = judge.features(rows)
    assert not lm.model.training
    lm.model.train()
    judge.nats(rows)
    assert not lm.model.training
    for row, state in zip(rows, found, strict=True):
        mask = torch.ones(1, 1, len(row), len(row), dtype=torch.bool)
        with torch.inference_mode():
            plain = lm.model.base_model(input_ids=torch.tensor([row]), attention_mask=mask).last_hidden_state
        torch.testing.assert_close(state, plain[0].mean(0), rtol=1e-4, atol=1e-5)
