"""The readings of one model on the same text: what each gives, and how they differ."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dlm.data.batches import Sequences
from dlm.data.corpus import corpus
from dlm.data.reading import read_splits
from dlm.diffusion.readings import AnyReadings, Autoregressive, Joint
from dlm.errors import ConfigError
from dlm.evaluate.likelihood import evaluate_likelihood
from dlm.evaluate.readings import evaluate_readings
from dlm.lm import DiffusionLM
from tests.support.commands import answer, dlm, refusal
from tests.support.tiny_runs import altered, describe, train

Run = Callable[[AnyReadings], Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of some readings; each is trained once."""
    made: dict[str, Path] = {}

    def of(readings: AnyReadings) -> Path:
        if readings.name not in made:
            folder = tmp_path_factory.mktemp(readings.name)
            text = "\n".join("ab" * (3 + i % 5) + "c" * (i % 3) for i in range(400))
            (folder / "text.txt").write_text(text, encoding="utf-8")
            config = altered(replace(describe(folder), readings=readings), "train", sample_length=0)
            source = replace(config.data.train, documents="line")
            held_out = replace(config.data.held_out, by="documents")
            made[readings.name] = train(folder / "run", altered(config, "data", train=source, held_out=held_out))
        return made[readings.name]

    return of


JOINT, AUTOREGRESSIVE = Joint((2, 4)), Autoregressive()


def loaded(path: Path) -> tuple[DiffusionLM, Sequences]:
    lm = DiffusionLM.from_pretrained(path, device="cpu")
    assert lm.config is not None
    return lm, corpus(lm.tokenizer, read_splits(lm.config.data).validation, lm.context, "pack")


def test_every_reading_is_that_of_it_alone_and_they_differ_text_by_text(run: Run) -> None:
    lm, sequences = loaded(run(JOINT))
    found = evaluate_readings(lm, sequences, draws=4)
    assert list(found.reports) == [*JOINT.all] == ["causal", "any-order", "blocks:2", "blocks:4"]
    for name, report in found.reports.items():
        assert report == evaluate_likelihood(lm, sequences, draws=4, reading=name)
        assert report.estimator == ("exact" if name == "causal" else "counts")
        assert (report.monte_carlo_se < 1e-9) == (name in ("causal", "blocks:2"))  # of two, both halves are seen
    assert found.first.resampled == "documents"
    assert [(each.reading, each.other) for each in found.differences] == [
        (name, "causal") for name in ("any-order", "blocks:2", "blocks:4")
    ]
    for each in found.differences:
        one, other = found.reports[each.reading], found.reports["causal"]
        assert each.nats_per_token == pytest.approx(one.nats_per_token - other.nats_per_token)
        assert each.nats_per_token_ci95 is not None
        low, high = each.nats_per_token_ci95
        assert low < each.nats_per_token < high
        errors = [se or 0.0 for report in (one, other) for se in (report.monte_carlo_se, report.sampling_se)]
        apart = sum(se**2 for se in errors) ** 0.5
        assert (high - low) / 4 < apart  # paired


def test_a_reading_does_not_differ_from_itself_whatever_the_masks(run: Run) -> None:
    lm, sequences = loaded(run(JOINT))
    whole = evaluate_readings(lm, sequences, ["any-order", "blocks:16"], draws=4, rows=range(3))
    (difference,) = whole.differences
    assert difference.resampled == "sequences"
    assert difference.nats_per_token == pytest.approx(0.0, abs=1e-5)
    ones = evaluate_readings(lm, sequences, ["blocks:1", "blocks:1"], draws=4, rows=range(3))
    assert not ones.differences and ones.first.estimator == "exact" and ones.first.monte_carlo_se < 1e-9


def test_a_score_of_a_causal_reading_is_exact(run: Run) -> None:
    lm, _ = loaded(run(AUTOREGRESSIVE))
    whole, part = lm.score(None, "abab"), lm.score("ab", "ab")
    assert whole.monte_carlo_se == part.monte_carlo_se == 0.0
    first = -lm.score(None, "ab").log_likelihood - lm.nelbo("ab", draws=2)[0]
    assert first == pytest.approx(0.0, abs=1e-6)
    assert lm.score(None, "abab", seed=1) == whole == lm.score(None, "abab", reading="causal", draws=2)
    # log p(abab, end) = log p(ab) + log p(ab, end | ab), and p(ab, end) = p(ab) p(end | ab).
    of_prefix = lm.score(None, "ab").log_likelihood - lm.score("ab", "").log_likelihood
    assert whole.log_likelihood == pytest.approx(of_prefix + part.log_likelihood, abs=1e-5)
    with pytest.raises(ConfigError, match="this model has no reading 'any-order'; it has causal"):
        lm.score(None, "ab", reading="any-order")


def test_a_joint_model_scores_in_the_reading_that_is_asked_for(run: Run) -> None:
    lm, _ = loaded(run(JOINT))
    exact = lm.nelbo(["abab", "c"])
    assert exact == lm.nelbo(["abab", "c"], reading="causal", seed=5)
    assert lm.nelbo("abab", reading="blocks:1", draws=2)[0] != exact[0]
    bound, whole = (lm.nelbo("abab", reading=name, draws=8)[0] for name in ("any-order", "blocks:16"))
    assert bound == pytest.approx(whole, rel=1e-5)


def test_the_command_measures_every_reading_in_one_table(run: Run) -> None:
    found = answer("eval", run(JOINT), "--draws", 4)
    assert [*found["readings"]] == [*JOINT.all] and found["reading"] == "causal" and found["chain_rule"] is None
    assert [each["reading"] for each in found["differences"]] == ["any-order", "blocks:2", "blocks:4"]
    assert found["nats_per_token"] == found["readings"]["causal"]["nats_per_token"]
    out, _ = dlm("eval", run(JOINT), "--draws", 4)
    rows = {line.split()[0]: line for line in out.splitlines()[1:5]}
    for name, report in found["readings"].items():
        assert f"{report['nats_per_token']:.4f}" in rows[name] and f"{report['bits_per_byte']:.4f}" in rows[name]
        assert ("=" if name == "causal" else "≤") in rows[name]
    assert "against causal" in out and "paired by documents" in out
    for each in found["differences"]:
        assert f"{each['nats_per_token']:+.4f}" in out


def test_the_command_measures_the_readings_that_are_asked_for(run: Run) -> None:
    both = answer("eval", run(JOINT), "--draws", 4, "--reading", "blocks:2", "--reading", "causal")
    assert [*both["readings"]] == ["blocks:2", "causal"] and both["differences"][0]["other"] == "blocks:2"
    one = answer("eval", run(JOINT), "--draws", 4, "--reading", "any-order", "--time", 8)
    assert "readings" not in one and one["reading"] == "any-order" and one["steps"] == 8
    rule = answer("eval", run(JOINT), "--draws", 4, "--reading", "any-order", "--chain-rule")
    assert rule["chain_rule"]["sequences"] > 0


def test_an_exact_value_is_called_one(run: Run) -> None:
    out, _ = dlm("eval", run(AUTOREGRESSIVE))
    assert out.startswith("exact value") and "bound" not in out and "Monte-Carlo" not in out and "noise" not in out
    assert "reading          causal" in out and "estimator        exact, seed 0" in out


@pytest.mark.parametrize(
    ("readings", "words", "why"),
    [
        (JOINT, ["--reading", "blocks:0"], "no reading 'blocks:0'; it has causal, any-order, blocks:2, blocks:4"),
        (JOINT, ["--time", "8"], "the reading causal has no chain of steps"),
        (AUTOREGRESSIVE, ["--reading", "any-order"], "no reading 'any-order'; it has causal"),
        (AUTOREGRESSIVE, ["--chain-rule"], "this model has causal alone: leave --chain-rule out"),
    ],
)
def test_a_reading_that_a_model_has_not_is_refused(readings: AnyReadings, words: list[str], why: str, run: Run) -> None:
    assert why in refusal("eval", run(readings), "--draws", 4, *words)


def test_what_an_autoregressive_model_cannot_do_is_refused(run: Run) -> None:
    told = refusal("infill", run(AUTOREGRESSIVE), "ab[MASK:2]ab")
    assert "does not see what stands behind a hole" in told and "readings joint or masked" in told
    assert "has no noise" in refusal("corrupt", "abab", run(AUTOREGRESSIVE))
