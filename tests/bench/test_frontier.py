"""What `dlm bench frontier` says of texts is true of them, every sampler has its turn, and the picture is legible."""

import json
import math
import re
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from dlm.bench import frontier, plot
from dlm.bench.frontier import Frontier, Point, bench_frontier, chosen, default_judge, open_models
from dlm.bench.kinds import KINDS, Family, kind, suitable, suits
from dlm.bench.models import CausalLM, Model, Texts, open_model
from dlm.bench.plot import to_svg
from dlm.bench.stopwatch import Stopwatch
from dlm.config import Characters
from dlm.diffusion.formulation import Formulation
from dlm.diffusion.noise import Uniform
from dlm.diffusion.readings import Autoregressive, Blocks, Joint, Masked
from dlm.diffusion.unmask import TokenChoice
from dlm.errors import CheckpointError, ConfigError
from dlm.evaluate.samples import distinct_share, repeated_share, unigram_entropy
from dlm.lm import DiffusionLM, Sampler
from dlm.model.tokenizer import build_tokenizer
from tests.support import public
from tests.support.fixtures import MakeLM, Refused
from tests.support.tiny_models import TINY

EXAMPLES = {
    "steps-N": "steps-8",
    "one": "one",
    "confidence": "confidence",
    "confidence-N": "confidence-4",
    "threshold-P": "threshold-0.3",
    "blocks-S": "blocks-4",
    "blocks-S-N": "blocks-4-2",
    "NAME+dual-R": "confidence-4+dual-2",
    "NAME+prefix-R": "one+prefix-8",
    "remask-NAME-N": "remask-loop-4",
    "remask-NAME-N@E": "remask-cap-4@0.1",
    "causal": "causal",
    "verified-K": "verified-2",
    "verified-K@A": "verified-2@0.5",
    "transformers": "transformers",
}


def opened(lm: DiffusionLM, folder: Path) -> Model:
    """A model as the command opens it, with transformers reading it too."""
    lm.save_pretrained(folder)
    return open_model(str(folder), device="cpu", dtype="fp32", plain="always")


@pytest.fixture(scope="module")
def models(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Model]:
    """A byte model of each readings, with a context of 16."""
    folder = tmp_path_factory.mktemp("models")
    return {
        name: opened(make_lm(byte_tokenizer, 16, readings={"name": name}), folder / name)
        for name in ("masked", "autoregressive", "joint", "blocks")
    }


@pytest.fixture(scope="module")
def gpt(byte_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a decoder that has no mask, and whose settings ask for greedy texts without repetitions."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("gpt")
    tokenizer = build_tokenizer(Characters(), lambda: ["abcdef "])
    tokenizer.mask_token = None
    size = len(tokenizer)
    keys: dict[str, Any] = {**TINY, "vocab_size": size, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen3Config(**keys, max_position_embeddings=24)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    model.generation_config.repetition_penalty = 9.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# Samplers by name


def test_every_sampler_has_its_name() -> None:
    assert list(EXAMPLES) == list(KINDS)
    found = [kind(name) for name in EXAMPLES.values()]
    assert [each.name for each in found] == list(EXAMPLES.values())
    assert {each.family for each in found} == set(get_args(Family)) == set(plot._SHAPES)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("stepz", "no sampler 'stepz'; valid: steps-N"),
        ("steps-", "no sampler"),
        ("steps-0", "steps must be at least 1"),
        ("confidence-0", "steps must be at least 1"),
        ("verified-0", "called causal"),
        ("verified-2@0", "accept must be above 0"),
        ("verified-2@1.5", "accept must be above 0 and at most 1"),
        ("remask-cup-4", "there is no remasker 'cup'; valid: cap, rescale"),
        ("remask-cap-4@2", "eta must be from 0 to 1"),
        ("remask-cap-0", "steps must be at least 1"),
        ("remask-cap", "no sampler"),
        ("threshold-2", "threshold must be from 0 to 1"),
        ("steps-٣", "no sampler"),
        ("", "no sampler ''"),
    ],
)
def test_names_of_no_sampler(name: str, said: str, refused: Refused) -> None:
    with refused(ConfigError, "--samplers", said):
        kind(name)


def test_accepting_all_that_is_exact_is_plain_verification() -> None:
    assert kind("verified-3@1.0") == kind("verified-3")


@pytest.mark.parametrize("readings", [Masked(), Autoregressive(), Joint(), Blocks()])
def test_what_is_compared_unasked_suits(readings: Any) -> None:
    formulation = Formulation(readings=readings)
    found = suitable(formulation)
    assert all(suits(each, formulation, plain=readings.causal) for each in found)
    assert found


def test_noise_that_is_seen_knows_steps_alone() -> None:
    formulation = Formulation(noise=Uniform(), parameterization="plug-in")
    assert {each.family for each in suitable(formulation)} == {"steps"}
    assert not suits(kind("one"), formulation, plain=False) and not suits(
        kind("threshold-0.9"), formulation, plain=False
    )


def test_a_sampler_suits_a_model_or_is_refused(models: dict[str, Model], refused: Refused) -> None:
    every = [kind(name) for name in EXAMPLES.values()]
    expected = {
        "masked": [*EXAMPLES.values()][:11],
        "autoregressive": ["causal", "transformers"],
        "joint": list(EXAMPLES.values()),
    }
    for name, names in expected.items():
        pairs = chosen([models[name], models["joint"]] if name != "joint" else [models[name]], every)
        assert [each.name for model, each in pairs if model is models[name]] == names
    assert [each.name for _, each in chosen([models["blocks"]], None)] == ["blocks-16", "blocks-16-8", "blocks-16-4"]
    with refused(ConfigError, "no sampler of --samplers", "blocks"):
        chosen([models["joint"], models["blocks"]], [kind("steps-8")])
    with refused(ConfigError, "no sampler of --samplers", "masked"):
        chosen([models["joint"], models["masked"]], [kind("causal")])
    with refused(ConfigError, "verified-2 suits none"):
        chosen([models["autoregressive"]], [kind("causal"), kind("verified-2")])


@pytest.mark.parametrize("name", EXAMPLES.values())
def test_every_sampler_writes(name: str, models: dict[str, Model]) -> None:
    (point,) = bench_frontier([models["joint"]], samplers=[kind(name)], num=2, batch_sizes=(2,), repeats=1).points
    assert point.tokens == 2 * 16 and 1 <= point.calls <= 16 + 3 and point.tokens_per_second > 0


# What is said of texts


def test_the_facts_are_those_of_the_samples(models: dict[str, Model]) -> None:
    """Calls, tokens and statistics, for texts of which some are written side by side."""
    joint = models["joint"]
    asked = [kind("verified-2"), kind("steps-4"), kind("causal")]
    found = bench_frontier([joint], samplers=asked, num=3, length=12, batch_sizes=(2,), repeats=1, seed=5)
    assert joint.lm is not None
    for point, each in zip(found.points, asked, strict=True):
        assert each.sampler is not None
        samples = joint.lm.generate(num=3, length=12, sampler=replace(each.sampler, token=TokenChoice()), seed=5)
        ids = [sample.ids for sample in samples]
        calls = [sample.calls for sample in samples]
        assert point.calls == max(calls[:2]) + calls[2] and point.calls_per_text == sum(calls) / 3
        assert point.tokens == sum(map(len, ids)) and point.tokens_per_call == point.tokens / sum(calls)
        assert point.tokens_per_second * point.seconds == pytest.approx(point.tokens)
        assert point.entropy == pytest.approx(statistics.fmean(map(unigram_entropy, ids)))
        assert point.repeated == repeated_share(ids) and point.distinct == distinct_share(ids)
        nats = joint.judge().nats(ids)
        assert point.nats_per_token == pytest.approx(sum(nats) / sum(map(len, ids)), rel=1e-5)
        assert point.judged_tokens == point.tokens
    assert found.points[2].tokens_per_call == 1.0 and found.points[1].calls_per_text == 4.0


def test_the_likeliest_text_of_transformers_is_that_of_the_causal_reading(models: dict[str, Model]) -> None:
    model = models["autoregressive"]
    assert model.lm is not None and model.plain is not None
    cold = Sampler(token=TokenChoice(0.0))
    own = model.lm.generate(num=2, length=16, sampler=cold)
    theirs = model.plain.write(num=2, length=16, temperature=0.0, batch_size=2)
    assert theirs.ids == tuple(sample.ids for sample in own)
    assert (theirs.calls, theirs.text_calls) == (16, 32)


def test_transformers_draws_from_the_same_distribution(models: dict[str, Model]) -> None:
    """First tokens, against the predictions themselves: a chi-squared statistic of as many degrees of freedom."""
    model = models["autoregressive"]
    assert model.plain is not None and model.lm is not None
    first = torch.tensor([[model.lm.layout.before_id]])
    with torch.no_grad():
        logits_V = model.plain.model(first).logits[0, -1].double() / 0.7
    logits_V[list(model.lm.process.vocabulary.forbidden)] = -torch.inf
    p_V = logits_V.softmax(-1)
    num = 4000
    texts = model.plain.write(num=num, length=1, temperature=0.7, batch_size=num, seed=3)
    count_V = torch.bincount(torch.tensor(texts.ids)[:, 0], minlength=len(p_V)).double()
    likely_V = p_V * num >= 5
    assert int(likely_V.sum()) >= 10 and count_V[p_V == 0].sum() == 0
    statistic = float(((count_V - num * p_V)[likely_V].square() / (num * p_V)[likely_V]).sum())
    assert statistic < int(likely_V.sum()) + 5 * math.sqrt(2 * int(likely_V.sum()))


def test_texts_follow_from_the_seed_and_leave_global_random_numbers_alone(models: dict[str, Model]) -> None:
    plain = models["autoregressive"].plain
    assert plain is not None
    before = torch.get_rng_state()
    one, again, other = (plain.write(num=2, length=8, temperature=1.0, batch_size=2, seed=s) for s in (1, 1, 2))
    assert one == again != other and torch.equal(before, torch.get_rng_state())


def test_a_stop_ends_a_text(models: dict[str, Model]) -> None:
    """The end counts as a call, and is no token."""
    plain = models["autoregressive"].plain
    assert plain is not None
    whole = plain.write(num=3, length=16, temperature=1.0, batch_size=3, seed=1)
    stop = whole.ids[0][5]
    stopped = CausalLM(plain.model, plain.tokenizer, stops=(stop,)).write(
        num=3, length=16, temperature=1.0, batch_size=3, seed=1
    )
    first = whole.ids[0].index(stop)
    assert stopped.ids[0] == whole.ids[0][:first] and all(stop not in ids for ids in stopped.ids)
    assert stopped.text_calls == sum(min(len(ids) + 1, 16) for ids in stopped.ids)


def test_a_stopped_text_takes_no_more_calls(models: dict[str, Model]) -> None:
    plain = models["autoregressive"].plain
    assert plain is not None
    (whole,) = plain.write(num=1, length=16, temperature=0.0, batch_size=1).ids
    stops = (whole[3],)
    stopped = CausalLM(plain.model, plain.tokenizer, stops=stops).write(num=1, length=16, temperature=0.0, batch_size=1)
    assert stopped.calls == stopped.text_calls == whole.index(whole[3]) + 1 < 16


def test_texts_that_end_early_are_counted_as_they_are(
    make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase, models: dict[str, Model]
) -> None:
    """A model that was trained on documents which do not see each other writes one at a time."""
    data = {"train": {"format": "text", "path": "none.txt"}, "length": 16, "attend": "document"}
    lm = make_lm(byte_tokenizer, 16, data=data)
    torch.nn.init.zeros_(lm.model.get_output_embeddings().weight)  # every token is as likely, and the end one of 257
    model = Model("model", lm, None)
    (point,) = bench_frontier(
        [model], models["joint"], samplers=[kind("steps-4")], num=64, batch_sizes=(64,), repeats=1
    ).points
    assert 64 * 8 < point.tokens == point.judged_tokens < 64 * 16
    assert point.tokens_per_second == pytest.approx(point.tokens / point.seconds)


# Turns, settings and judges


def test_passes_are_taken_in_turns(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, float, int]] = []
    write = frontier._Entry.write

    def noted(entry: Any, *asked: int) -> Any:
        order.append((entry.kind.name, entry.temperature, entry.batch_size))
        return write(entry, *asked)

    monkeypatch.setattr(frontier._Entry, "write", noted)
    told: list[tuple[int, int]] = []
    found = bench_frontier(
        [models["joint"]],
        samplers=[kind("causal"), kind("steps-2")],
        temperatures=(0.5, 1.0),
        batch_sizes=(1, 2),
        num=2,
        length=4,
        repeats=2,
        told=lambda done, total, what: told.append((done, total)),
    )
    points = [(p.sampler, p.temperature, p.batch_size) for p in found.points]
    assert len(set(points)) == 8 and order == points * 3  # once untimed, twice timed
    assert told == [(done, 24) for done in range(24)]


def test_the_median_of_the_timed_passes(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock says 1, 5 and 2 seconds."""
    seconds = iter([1.0, 5.0, 2.0])

    class Slow(Stopwatch):
        def __exit__(self, *_: object) -> None:
            self.seconds.append(next(seconds))

    monkeypatch.setattr(frontier, "Stopwatch", Slow)
    (point,) = bench_frontier(
        [models["joint"]], samplers=[kind("causal")], num=2, length=8, batch_sizes=(2,), repeats=3
    ).points
    assert (point.seconds, point.fastest, point.slowest, point.tokens_per_second) == (2.0, 1.0, 5.0, 8.0)


def test_a_lower_temperature_lowers_the_nats(models: dict[str, Model]) -> None:
    cold, warm = bench_frontier(
        [models["autoregressive"]],
        samplers=[kind("causal")],
        temperatures=(0.3, 1.0),
        num=4,
        repeats=1,
        batch_sizes=(4,),
    ).points
    assert cold.nats_per_token < warm.nats_per_token


def test_who_judges_unasked(models: dict[str, Model], refused: Refused) -> None:
    assert default_judge([models["masked"], models["joint"], models["autoregressive"]]) is models["autoregressive"]
    assert default_judge([models["masked"], models["joint"]]) is models["joint"]
    with refused(ConfigError, "none of these models reads from left to right", "--judge"):
        default_judge([models["masked"]])


def test_a_masked_model_judges_by_its_bound(models: dict[str, Model]) -> None:
    masked = models["masked"]
    found = bench_frontier([masked], masked, samplers=[kind("steps-4")], num=2, repeats=1, batch_sizes=(2,))
    assert not found.judge_exact and found.judge_reading == "any-order" and found.judge_is_compared
    assert masked.lm is not None
    ids = [sample.ids for sample in masked.lm.generate(num=2, sampler=Sampler(budget=kind("steps-4").sampler.budget))]  # type: ignore[union-attr]
    assert found.points[0].nats_per_token == pytest.approx(sum(masked.judge().nats(ids)) / 32, rel=1e-5)


def test_a_length_that_does_not_fit(models: dict[str, Model], refused: Refused) -> None:
    with refused(ConfigError, "--length", "16 tokens, got 17"):
        bench_frontier([models["joint"]], length=17)


# Autoregressive models that `dlm` did not write


def test_a_plain_decoder_is_compared_and_judges(gpt: Path, models: dict[str, Model]) -> None:
    model = open_model(str(gpt), device="cpu", dtype="fp32")
    assert model.lm is None and model.room == 24 and model.autoregressive
    found = bench_frontier(
        [models["joint"], model], samplers=[kind("causal"), kind("transformers")], num=2, repeats=1, batch_sizes=(2,)
    )
    assert [(Path(p.model).name, p.sampler) for p in found.points] == [
        ("joint", "causal"),
        ("joint", "transformers"),
        (gpt.name, "transformers"),
    ]
    assert found.judge == str(gpt) and found.length == 16 and found.encoded_anew
    assert all(math.isfinite(p.nats_per_byte) and p.tokens == 32 for p in found.points)
    assert found.points[0].unknown > 0  # bytes that are none of its letters


def test_settings_of_a_folder_do_not_change_the_distribution(gpt: Path) -> None:
    """Its penalty for repetitions is left out: the likeliest text is that of the logits."""
    model = open_model(str(gpt), device="cpu", dtype="fp32")
    assert model.plain is not None
    (ids,) = model.plain.write(num=1, length=12, temperature=0.0, batch_size=1).ids
    bare = AutoModelForCausalLM.from_pretrained(gpt).eval()
    row = [model.tokenizer.eos_token_id]
    for _ in range(12):
        with torch.no_grad():
            logits_V = bare(torch.tensor([row])).logits[0, -1]
        logits_V[model.plain._forbidden] = -torch.inf
        row.append(int(logits_V.argmax()))
    assert list(ids) == row[1:]


def test_a_decoder_without_an_end_of_text(gpt: Path, tmp_path: Path, refused: Refused) -> None:
    for file in gpt.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name in ("tokenizer_config.json", "tokenizer.json"):
        tree = json.loads((tmp_path / name).read_text())
        tree.pop("eos_token", None)
        (tmp_path / name).write_text(json.dumps(tree))
    special = tmp_path / "special_tokens_map.json"
    special.unlink(missing_ok=True)
    with refused(CheckpointError, "no begin or end of text"):
        open_model(str(tmp_path), device="cpu")


def test_models_of_the_hub_are_found_in_its_cache(
    gpt: Path, models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, without a network: a decoder that was only downloaded, and a model of `dlm`."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, made in {"owner/gpt": gpt, "owner/ar": Path(models["autoregressive"].name)}.items():
        public.into_cache(Path(shutil.copytree(made, tmp_path / "copy")), name, tmp_path / "hub")
    opened, judge = open_models(["owner/ar", "owner/gpt"], "owner/gpt", device="cpu", dtype="fp32")
    assert [model.lm is None for model in opened] == [False, True] and judge is opened[1]
    found = bench_frontier(opened, judge, num=1, length=4, repeats=1, batch_sizes=(1,))
    assert [(p.model, p.sampler) for p in found.points] == [
        ("owner/ar", "causal"),
        ("owner/ar", "transformers"),
        ("owner/gpt", "transformers"),
    ]


def test_weights_of_16_bits(models: dict[str, Model]) -> None:
    """Both readings of the folder are held in them."""
    folder = models["autoregressive"].name
    opened, judge = open_models([folder], device="cpu", dtype="bf16")
    assert opened[0].plain is not None and opened[0].lm is not None
    assert opened[0].plain.model.dtype == opened[0].lm.model.dtype == torch.bfloat16
    found = bench_frontier(opened, judge, num=2, length=8, repeats=1, batch_sizes=(2,))
    assert all(math.isfinite(p.nats_per_token) for p in found.points)


# The answer


def test_json_has_no_number_that_is_none(models: dict[str, Model]) -> None:
    """One text has no standard error, and a text of three tokens no 4-grams."""
    found = bench_frontier(
        [models["joint"]], samplers=[kind("causal")], num=1, length=3, repeats=1, batch_sizes=(1,)
    ).to_dict()
    json.dumps(found, allow_nan=False)
    (point,) = found["points"]
    assert [name for name, value in point.items() if value is None] == [
        "nats_per_token_se",
        "nats_per_byte_se",
        "entropy_se",
        "repeated",
        "distinct",
    ]


POINT = Point(
    "m", "causal", "causal", 1.0, 8, 64, 1.0, 1.0, 1.0, 100.0, 8, 8.0, 1.0, 2.0, 0.1, 1.5, 0.1, 64, 3.25, 0.1, 0.0, 1.0,
    False, 0, 0,
)  # fmt: skip


def picture(points: Sequence[Point], **settings: Any) -> ElementTree.Element:
    made: dict[str, Any] = {
        "judge": "judge", "judge_reading": "causal", "judge_exact": True, "judge_is_compared": False,
        "encoded_anew": False, "device": "cpu", "threads": 1, "num": 8, "length": 8, "repeats": 5, "seed": 0,
    }  # fmt: skip
    return ElementTree.fromstring(to_svg(Frontier(**{**made, **settings}, points=tuple(points))))


def marks(tree: ElementTree.Element) -> list[tuple[float, float]]:
    found = (
        re.fullmatch(r"translate\((.*),(.*)\)", m.get("transform", "")) for m in tree.iter() if m.get("class") == "mark"
    )
    return [(float(one[1]), float(one[2])) for one in found if one]


def labels(tree: ElementTree.Element) -> list[ElementTree.Element]:
    return [each for each in tree.iter() if each.tag.endswith("text") and each.get("textLength")]


def test_places_follow_the_figures() -> None:
    """Equal factors of speed are equal ways to the right, and more nats are higher."""
    points = [replace(POINT, tokens_per_second=s, nats_per_token=n) for s, n in ((10, 3.0), (100, 2.0), (1000, 1.0))]
    (a, b, c) = marks(picture(points))
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2) and a[0] < b[0]
    assert b[1] - a[1] == pytest.approx(c[1] - b[1], abs=0.2) and a[1] < b[1]
    same = [replace(p, nats_per_byte=1.0) for p in points]
    assert len({y for _, y in marks(picture(same, encoded_anew=True))}) == 1  # nats a byte, where tokenizers differ


def test_nats_never_stand_without_the_entropy() -> None:
    tree = picture([replace(POINT, entropy=1.234), replace(POINT, sampler="verified-2", entropy=2.5)])
    assert ["".join(each.itertext()) for each in labels(tree)] == ["causal H 1.23", "verified-2 H 2.50"]


def test_labels_do_not_overlap_in_a_crowd() -> None:
    stream = torch.Generator().manual_seed(0)
    speeds, nats = torch.rand(2, 30, generator=stream).tolist()
    points = [
        replace(
            POINT, model=f"m{n % 4}", sampler=f"verified-{n}@0.25", tokens_per_second=500 + 60 * s, nats_per_token=2 + a
        )
        for n, (s, a) in enumerate(zip(speeds, nats, strict=True))
    ]
    tree = picture(points)
    boxes = [(float(t.get("x", "")), float(t.get("y", "")), float(t.get("textLength", ""))) for t in labels(tree)]
    assert len(boxes) == 30
    for (x, y, width), (x2, y2, width2) in combinations(boxes, 2):
        assert abs(y - y2) >= 13.9 or x + width <= x2 + 0.2 or x2 + width2 <= x + 0.2
    for x, y, width in boxes:
        assert not any(x < at < x + width and y - 10 < height < y + 4 for at, height in marks(tree))


def test_a_panel_each_for_temperatures_and_batch_sizes() -> None:
    tree = picture([replace(POINT, temperature=t, batch_size=b) for t in (0.7, 1.0) for b in (1, 8)])
    text = " ".join(tree.itertext())
    assert all(f"temperature {t}, batch size {b}" in text for t in ("0.7", "1") for b in (1, 8))
    assert len(set(marks(tree))) == 1 and len(marks(tree)) == 4  # on the same scales


def test_texts_of_no_tokens_have_no_figures(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """All texts end at once: there is no speed, and nothing to judge; the picture and the JSON stand."""
    monkeypatch.setattr(frontier._Entry, "write", lambda *_: Texts(((), ()), 1, 2))
    found = bench_frontier([models["joint"]], samplers=[kind("causal")], num=2, batch_sizes=(2,), repeats=1)
    (point,) = found.to_dict()["points"]
    assert (point["tokens"], point["tokens_per_second"], point["nats_per_token"]) == (0, 0.0, None)
    json.dumps(point, allow_nan=False)
    assert labels(ElementTree.fromstring(to_svg(found))) == []


def test_what_cannot_be_drawn_is_counted() -> None:
    tree = picture([POINT, replace(POINT, nats_per_token=math.inf), replace(POINT, nats_per_token=math.nan)])
    assert len(labels(tree)) == 1 and "the nats are not finite: 2" in " ".join(tree.itertext())
    assert labels(picture([replace(POINT, nats_per_token=math.inf)])) == []


def test_names_are_text() -> None:
    tree = picture([replace(POINT, model='a<b>&"c"' + "x" * 300)], judge="<judge>")
    text = " ".join(tree.itertext())
    assert "<judge>" in text and "x" * 100 in text


def test_a_bound_is_said_to_be_one() -> None:
    assert "bound" in " ".join(picture([POINT], judge_exact=False).itertext())
    assert "bound" not in " ".join(picture([POINT]).itertext())
