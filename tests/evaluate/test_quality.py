"""The figures of texts, where they are worked out by hand, and what makes texts comparable with real text."""

import math
import random
from difflib import SequenceMatcher

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from dlm.evaluate import quality
from dlm.evaluate.bootstrap import Ratio
from dlm.evaluate.figures import Written, distinct, measure_quality, parses_python
from dlm.evaluate.mauve import Features, Histogram
from dlm.evaluate.quality import Texts, evaluate_quality, features_of, pieces_like
from dlm.evaluate.samples import Judged, ReadingJudge, distinct_share, words
from dlm.model.text import encode
from tests.support.fixtures import MakeLM


def figures(texts: list[str]) -> dict[str, float]:
    return {name: each.value for name, each in measure_quality(Written(texts, words(texts))).figures.items()}


# Known values


def test_the_entropy_of_known_texts() -> None:
    assert figures(["a b c d", "x y z w"])["entropy"] == pytest.approx(math.log(4.0))
    assert figures(["a a a a", "a b a b"])["entropy"] == pytest.approx(math.log(2.0) / 2)  # the mean of 0 and ln 2


def test_distinct_n_by_hand() -> None:
    found = figures(["a b a b a", "a b c"])
    # 1-grams: a b c of 8; 2-grams: ab ba bc of 6; 3-grams: aba bab abc of 4; 4-grams: abab baba of 2
    assert [found[f"distinct_{n}"] for n in (1, 2, 3, 4)] == [3 / 8, 3 / 6, 3 / 4, 1.0]
    assert found["repeated"] == 0.0 and figures(["a b c d a b c d"])["repeated"] == pytest.approx(1 / 5)
    assert found["tokens"] == 4.0 and found["characters"] == 7.0


def test_a_share_of_nothing_is_no_number() -> None:
    found = measure_quality(Written(["a"], words(["a"])))
    assert math.isnan(found.figures["distinct_4"].value) and found.to_dict()["distinct_4"]["value"] is None
    assert found.to_dict()["entropy"] == {"value": 0.0, "se": None, "ci95": None}  # one text has no interval


def test_what_a_judge_says_stands_beside_the_entropy() -> None:
    judged = Judged((4.0, 2.0), (4, 4), (8, 4), encoded_anew=False, unknown=0, cut=0)
    found = measure_quality(Written(["a b c d", "a b "], [[1, 2, 3, 4]] * 2, judged)).figures
    assert [*found][:4] == ["nats_per_token", "nats_per_character", "perplexity", "entropy"]
    assert found["nats_per_token"].value == 6 / 8 and found["nats_per_character"].value == 6 / 11
    assert found["perplexity"].value == pytest.approx(math.exp(0.75))
    assert found["perplexity"].interval == pytest.approx([math.exp(x) for x in found["nats_per_token"].interval or ()])


def test_words_and_signs_are_tokens_without_a_tokenizer() -> None:
    assert words(["the cat, the dog.", "cat."]) == [[0, 1, 2, 0, 3, 4], [1, 4]]


# Python


@pytest.mark.parametrize(
    ("text", "parses"),
    [
        ("", True),
        ("x = 1\n", True),
        ("def f(:\n", False),
        ("  x = 1\n", False),
        ("x = '\0'", False),
        ("'\\d' is 1", True),  # of which Python warns
        ("(" * 5000 + ")" * 5000, False),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_parses(text: str, parses: bool) -> None:
    assert parses_python(text) == parses


def test_the_share_that_parses() -> None:
    found = measure_quality(Written(["x", "x +", "y", "z"], [[0]] * 4), parser=parses_python).figures["parses"]
    assert found.value == 0.75 and found.interval is not None and found.interval[0] < 0.75 < found.interval[1]


# The jackknife


def test_the_jackknife_leaves_out_one_text_after_the_other() -> None:
    draw = random.Random(0)
    rows = [[draw.randrange(9) for _ in range(draw.randint(3, 9))] for _ in range(12)]
    found = distinct(rows, 2)
    left = np.array([distinct_share([*rows[:u], *rows[u + 1 :]], 2) for u in range(12)])
    assert found.value == distinct_share(rows, 2)
    assert found.se == pytest.approx(math.sqrt(11 / 12 * ((left - left.mean()) ** 2).sum()))


def test_the_interval_of_distinct_covers_what_other_texts_give() -> None:
    """The jackknife's error is too large rather than too small, on average (Efron and Stein, 1981)."""
    draw = np.random.default_rng(0)
    found = [distinct([draw.integers(30, size=20).tolist() for _ in range(40)], 2) for _ in range(60)]
    spread, told = np.std([each.value for each in found], ddof=1), np.mean([each.se or 0.0 for each in found])
    assert 0.9 < told / spread < 2.0
    middle = np.mean([each.value for each in found])
    intervals = [each.interval for each in found if each.interval]
    assert len(intervals) == 60 and np.mean([low <= middle <= high for low, high in intervals]) >= 0.95


# Parts of real text


def test_parts_are_as_many_and_as_long_as_the_texts_and_do_not_overlap() -> None:
    document = "".join(chr(0x4E00 + i) for i in range(1000))
    parts = pieces_like(["x" * 10] * 40, [document, "", "short"], 3)
    assert len(parts) == 40 and all(len(part) == 10 for part in parts if part != "short")
    assert len(set("".join(parts))) == len("".join(parts)) and all(
        part in document or part == "short" for part in parts
    )
    assert parts == pieces_like(["x" * 10] * 40, [document, "", "short"], 3)
    assert parts != pieces_like(["x" * 10] * 40, [document, "", "short"], 4)
    assert len(pieces_like(["x" * 10] * 400, [document], 0)) == 100  # there are no more


# Memorised text


def longest_by_brute_force(text: str, known: str) -> int:
    return max(
        size for size in range(len(text) + 1) for i in range(len(text) - size + 1) if text[i : i + size] in known
    )


def test_the_longest_common_substring_by_brute_force() -> None:
    pytest.importorskip("pydivsufsort", reason="the extra quality is not installed")
    from dlm.evaluate.memorised import KnownText

    draw = random.Random(1)
    for alphabet in ("ab", "aäß漢🙂"):
        documents = ["".join(draw.choices(alphabet, k=draw.randint(0, 60))) for _ in range(3)]
        known = KnownText(documents)
        for _ in range(40):
            text = "".join(draw.choices(alphabet, k=draw.randint(0, 12)))
            (found,) = known.find([text], 3)
            assert found.characters == len(text)
            assert found.longest == max(longest_by_brute_force(text, document) for document in documents)
            runs = [range(i, i + 3) for i in range(len(text) - 2) if any(text[i : i + 3] in each for each in documents)]
            assert found.covered == len({place for run in runs for place in run})


def test_a_text_is_found_alike_among_others() -> None:
    """No match leans on the texts beside it, though all are sorted together."""
    pytest.importorskip("pydivsufsort", reason="the extra quality is not installed")
    from dlm.evaluate.memorised import KnownText

    draw = random.Random(3)
    known = KnownText(["".join(draw.choices("ab", k=50)) for _ in range(3)])
    texts = ["".join(draw.choices("abc", k=draw.randint(0, 30))) for _ in range(40)]
    assert known.find(texts, 4) == [found for text in texts for found in known.find([text], 4)]


def test_half_of_a_character_is_no_match() -> None:
    pytest.importorskip("pydivsufsort", reason="the extra quality is not installed")
    from dlm.evaluate.memorised import KnownText, Memorised

    assert "é".encode()[:1] == "è".encode()[:1]
    assert KnownText(["caè"]).find(["caé"])[0].longest == 2 and KnownText(["è"]).find(["é"])[0].longest == 0
    assert KnownText([]).find(["a"])[0].longest == 0 and KnownText(["a"]).find([]) == []
    assert [each.longest for each in KnownText(["ab", "cd"]).find(["ab", "cd"])] == [2, 2]  # with their border: no more
    assert KnownText(["a", "b"]).find(["ab", "", "a"], 1) == [
        Memorised(2, 1, 2),
        Memorised(0, 0, 0),
        Memorised(1, 1, 1),
    ]


def test_a_long_text_agrees_with_difflib() -> None:
    pytest.importorskip("pydivsufsort", reason="the extra quality is not installed")
    from dlm.evaluate.memorised import KnownText

    draw = random.Random(2)
    known = "".join(draw.choices("abcde ", k=3000))
    text = "".join(draw.choices("abcde ", k=100)) + known[700:790] + "".join(draw.choices("abcde ", k=100))
    match = SequenceMatcher(None, text, known, autojunk=False).find_longest_match()
    found = measure_quality(Written([text, "zz"], [[0], [1]]), known=KnownText([known]), least=50)
    assert match.size >= 90 and found.longest_memorised == match.size
    assert found.figures["memorised_characters"].value == match.size / 2
    assert found.figures["memorised_share"].value == pytest.approx(match.size / (len(text) + 2))


# MAUVE


def score(one: Features, other: Features, seed: int = 0) -> Ratio:
    pytest.importorskip("mauve", reason="the extra quality is not installed")
    from dlm.evaluate.mauve import mauve_score

    return mauve_score(one, other, seed)


def states(shift: float, seed: int) -> Features:
    found = np.random.default_rng(seed).normal(size=(120, 8)).astype(np.float32)
    found[:, 0] += shift
    return found


def test_mauve_is_near_one_for_equal_texts_and_falls_with_their_distance(capfd: pytest.CaptureFixture[str]) -> None:
    one = states(0.0, 0)
    same, alike, apart, far = (score(one, other) for other in (one, states(0.0, 1), states(2.0, 1), states(20.0, 1)))
    assert same.value == pytest.approx(1.0, abs=1e-6)
    assert same.value > alike.value > apart.value > far.value and far.value < 0.05 and alike.value > 0.85
    assert apart.interval is not None and apart.interval[0] < apart.value < apart.interval[1] < 1.0
    assert score(one, states(2.0, 1)) == apart  # of a seed
    assert capfd.readouterr().err == ""  # what the clustering has to say of few texts is not for stderr


def test_the_area_is_that_of_the_package() -> None:
    pytest.importorskip("mauve", reason="the extra quality is not installed")
    from mauve import compute_mauve

    from dlm.evaluate.mauve import _area

    found = compute_mauve(p_features=states(0.0, 0), q_features=states(1.5, 1))
    assert _area(found.p_hist, found.q_hist) == pytest.approx(found.mauve)


def test_the_interval_of_mauve_is_of_what_as_many_texts_give() -> None:
    """Draws from two histograms are further apart than these; the plain percentiles would cover half as often."""
    pytest.importorskip("mauve", reason="the extra quality is not installed")
    from dlm.evaluate.mauve import _area, resampled

    random, count = np.random.default_rng(0), 500
    p_K, q_K = random.dirichlet([3.0] * 50), random.dirichlet([3.0] * 50)

    def drawn() -> tuple[Histogram, Histogram]:
        return random.multinomial(count, p_K) / count, random.multinomial(count, q_K) / count

    typical = np.mean([_area(*drawn()) for _ in range(100)])
    covered = 0
    for seed in range(25):
        pair = drawn()
        found = resampled(_area(*pair), *pair, (count, count), seed, resamples=40)
        assert found.interval is not None and found.interval[0] < found.value < found.interval[1] <= 1.0
        covered += bool(found.interval[0] <= typical <= found.interval[1])
    assert typical < _area(p_K, q_K) - 0.05 and covered >= 20
    equal = resampled(1.0, p_K, p_K, (count, count), 0, resamples=40)
    assert equal.interval is not None and equal.interval[1] == 1.0  # the most that MAUVE can be


def test_mauve_compares_with_as_many_parts_of_the_real_text(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states of the texts on the one side, and on the other those of the parts beside which their figures stand."""
    pytest.importorskip("mauve", reason="the extra quality is not installed")
    judge, other = (ReadingJudge(make_lm(byte_tokenizer, 16, readings={"name": n})) for n in ("joint", "masked"))
    texts, real = [f"text {i:02}" for i in range(25)], ["and what is real " * 30]
    asked: list[tuple[Features, Features, int]] = []

    def noted(one: Features, two: Features, seed: int) -> Ratio:
        asked.append((one, two, seed))
        return Ratio(0.5, 0.1, (0.4, 0.6))

    monkeypatch.setattr(quality, "mauve_score", noted)
    parts = pieces_like(texts, real, 7)
    for features in (None, other):
        report = evaluate_quality(Texts(texts), judge=judge, reference=real, features=features, seed=7)
        assert report.texts.figures["mauve"].value == 0.5 and report.reference is not None
        assert "mauve" not in report.reference.figures and report.reference.texts == len(parts) == 25
        one, two, seed = asked[-1]
        own, theirs = (features_of(features or judge, encode(byte_tokenizer, each)) for each in (texts, parts))
        assert seed == 7 and np.array_equal(one, own) and np.array_equal(two, theirs)


def test_a_reference_of_fewer_parts_than_texts_is_told() -> None:
    texts, real = ["one two three"] * 5, ["four five six", "seven eight"]
    told = "the reference has parts for 2 texts, and there are 5"
    assert any(note.startswith(told) for note in evaluate_quality(Texts(texts), reference=real).notes)
    assert not any("parts for" in note for note in evaluate_quality(Texts(texts[:2]), reference=real).notes)
