"""The number of drafts that is fastest is measured, and what is written does not depend on the measurement."""

import time

import pytest
from transformers import PreTrainedTokenizerBase

from dlm.diffusion.unmask import TokenChoice
from dlm.diffusion.verify import Verified
from dlm.errors import ConfigError
from dlm.lm import DiffusionLM, Sampler
from dlm.lm.calibration import drafts_per_second
from tests.support.fixtures import MakeLM, Refused


@pytest.fixture(scope="module")
def joint(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    return make_lm(byte_tokenizer, 32, readings={"name": "joint", "sizes": [2, 4]})


def test_the_speed_of_each_number_of_drafts_is_its_tokens_over_its_seconds(
    joint: DiffusionLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that a text of k drafts moves by 1 + |k - 2| seconds."""
    now, real = [0.0], Sampler.rule
    told: list[tuple[int, TokenChoice]] = []

    def rule(sampler: Sampler, *args: object, **options: object) -> object:
        found = real(sampler, *args, **options)  # type: ignore[arg-type]
        assert isinstance(found, Verified)
        told.append((found.drafts, found.token))
        now[0] += 1.0 + abs(found.drafts - 2)
        return found

    monkeypatch.setattr(Sampler, "rule", rule)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    speeds = drafts_per_second(joint, Sampler(token=TokenChoice(top_k=3)), "ab", batch_size=2, length=6)
    assert speeds == {drafts: pytest.approx(12 / (1 + abs(drafts - 2))) for drafts in range(5)}
    assert {token for _, token in told} == {TokenChoice(top_k=3)}


def test_a_model_that_drafts_nothing_is_refused(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, refused: Refused
) -> None:
    for readings, why in (({"name": "autoregressive"}, "masks draft"), ({"name": "masked"}, "predict next tokens")):
        lm = make_lm(byte_tokenizer, 16, readings=readings)
        with refused(ConfigError, "--drafts", why):
            drafts_per_second(lm, Sampler())
