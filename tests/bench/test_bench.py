"""What the benchmarks count is counted right; what they time is nobody's to test."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from dlm.bench.machine import peak_tensor_bytes
from dlm.bench.network import hidden_parameters, tensor_bytes, training_flops
from dlm.bench.sampling import bench_sampling
from dlm.bench.training import bench_training, predict_every_row
from dlm.config import HeldOut
from dlm.diffusion.draws import generator
from dlm.diffusion.unmask import FixedSteps
from dlm.lm import DiffusionLM, Sampler
from dlm.settings import dump_config, parse_config
from tests.support.commands import dlm, refusal
from tests.support.tiny_models import SIZES, VOCABULARY, build
from tests.support.tiny_runs import altered, describe, resized, start, write

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its limits are measured on small matrices and copies."""
    monkeypatch.setattr("dlm.bench.machine.SIDES", (64,))
    monkeypatch.setattr("dlm.bench.machine.COPIED", 2**16)
    monkeypatch.setattr("dlm.bench.machine.median_seconds", lambda work, seconds: (work(), 0.5)[1])


# What is counted


def test_hidden_parameters_counted_by_hand() -> None:
    """Llama: four projections of 32 x 32, three of 32 x 48 and two norms a layer, and one norm at the end."""
    assert hidden_parameters(build("llama")) == 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32


def test_what_is_frozen_takes_no_gradient_of_its_own() -> None:
    model = build("llama")
    assert training_flops(model) == 6 * hidden_parameters(model)
    layer: Any = model.base_model.layers[0]
    layer.requires_grad_(False)
    frozen = 4 * 32 * 32 + 3 * 32 * 48 + 2 * 32
    assert training_flops(model) == 6 * hidden_parameters(model) - 2 * frozen


@pytest.mark.parametrize("architecture", list(SIZES))
def test_the_vocabulary_costs_no_hidden_parameter(architecture: str) -> None:
    """A model of twice the vocabulary has as many of them, be the head tied, transformed or biased."""
    small = build(architecture)
    before = hidden_parameters(small)
    small.resize_token_embeddings(2 * VOCABULARY)
    assert hidden_parameters(small) == before > 0


def test_what_work_holds_at_a_time() -> None:
    def work() -> torch.Tensor:
        first = torch.ones(2**20)
        second = first + 1  # both are held: 8 MiB
        del first
        third = second + 1
        del second
        return third[:1].clone()

    assert peak_tensor_bytes(work, CPU) == pytest.approx(2**23, rel=0.01)
    assert tensor_bytes([torch.ones(3), 7, torch.ones(2, dtype=torch.float64)]) == 12 + 16


def test_a_step_is_counted_as_it_is(tmp_path: Path) -> None:
    config = describe(tmp_path, batch_size=6, micro_batch_size=2)
    speed = bench_training(config, steps=2, warmup=1)
    assert speed.tokens_per_second * speed.seconds == pytest.approx(6 * 16)
    assert speed.flops_per_second * speed.seconds == pytest.approx(6 * speed.hidden_parameters * 6 * 16)
    assert (
        speed.machine.peak in {2 * side**3 / 0.5 for side in (64, 8192)} and speed.machine.bandwidth == 2 * 2**16 / 0.5
    )
    assert speed.share_of_peak == pytest.approx(speed.flops_per_second / speed.machine.peak)
    assert speed.fastest <= speed.seconds <= speed.slowest
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt"}  # the run is thrown away


def test_padding_is_computed_with_and_is_no_token(tmp_path: Path) -> None:
    config = altered(describe(tmp_path, text="abc", batch_size=2), "data", packing="pad", held_out=HeldOut("tail", 0.4))
    speed = bench_training(config, steps=2, warmup=1)
    assert speed.tokens == 2 * 2  # a letter and the end of text, twice
    assert speed.flops_per_second * speed.seconds == pytest.approx(6 * speed.hidden_parameters * 2 * 16)


def test_a_streams_batches_cost_what_their_blocks_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step in five waits for a block, and the mean counts it."""
    config = describe(tmp_path, text="some words\n" * 200, batch_size=2)
    found = {"filled": 0}

    def slowly(*key: int | str) -> torch.Generator:
        found["filled"] += 1
        time.sleep(0.05)
        return generator(*key)

    monkeypatch.setattr("dlm.data.streaming_batches.generator", slowly)  # the order of a block is drawn from it
    tree = dump_config(config)
    tree["data"] |= {"streaming": True, "buffer": 10, "validation": tree["data"]["train"]}
    tree["data"]["train"] |= {"documents": "line"}
    speed = bench_training(parse_config(tree), steps=1, warmup=1)
    assert found["filled"] >= 2 and speed.data_share * speed.seconds > 0.05 / 5 * 0.9


def test_predicting_everywhere_learns_the_same_and_holds_more(tmp_path: Path) -> None:
    config = resized(describe(tmp_path), attention_dropout=0.0)
    found = []
    for every_row in (False, True):
        trainer = start(tmp_path / str(every_row), config)
        if every_row:
            predict_every_row(trainer)
        found.append([trainer.step(step).loss for step in (1, 2, 3)])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    rows, everywhere = (
        bench_training(config, steps=1, warmup=1, every_row=x).beyond_model_bytes for x in (False, True)
    )
    assert 0 < rows < everywhere


def test_the_sampler_is_counted_as_it_is(tiny_lm: DiffusionLM) -> None:
    speed = bench_sampling(tiny_lm, num=3, length=12, sampler=Sampler(budget=FixedSteps(4)), repeats=2)
    assert (speed.num, speed.length, speed.calls) == (3, 12, 4) and speed.tokens_per_call == 3.0
    assert speed.tokens_per_second * speed.seconds == pytest.approx(3 * 12)
    assert speed.seconds_per_call * speed.calls == pytest.approx(speed.seconds)
    assert speed.flops_per_second * speed.seconds == pytest.approx(2 * speed.hidden_parameters * 4 * 3 * 12)


def test_the_peak_is_not_of_what_measures(
    tiny_lm: DiffusionLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {"bytes": 7}

    def measured(work: Any, seconds: float) -> float:
        held["bytes"] = 700
        return 0.5

    def weighed(work: Any, device: torch.device) -> int:
        held["bytes"] = 700  # the profiler keeps notes
        return peak_tensor_bytes(work, device)

    monkeypatch.setattr("dlm.bench.machine.median_seconds", measured)
    for part in ("training", "sampling"):
        monkeypatch.setattr(f"dlm.bench.{part}.peak_tensor_bytes", weighed)
        monkeypatch.setattr(f"dlm.bench.{part}.peak_memory", lambda device: held["bytes"])
    assert bench_training(describe(tmp_path), steps=1, warmup=1).peak_bytes == 7 and held["bytes"] == 700
    held["bytes"] = 7
    assert bench_sampling(tiny_lm, num=1, length=2, repeats=1).peak_bytes == 7 and held["bytes"] == 700


# The commands


def test_bench_train_prints_a_table_or_json(tmp_path: Path) -> None:
    config = str(write(describe(tmp_path), tmp_path / "run.yaml"))
    table, _ = dlm("bench", "train", config, "--steps", "2", "--warmup", "1", "--set", "optim.name=adamw")
    names = [line.split("  ")[0] for line in table.splitlines()]
    assert names == ["machine", "its limits", "model", "step", "time", "tokens", "compute", "data", "memory"]
    assert "adamw" in table and "median of 2 steps" in table
    found = json.loads(dlm("bench", "train", config, "--steps", "1", "--warmup", "1", "--every-row", "--json")[0])
    assert found["every_row"] and found["optimizer"] == "muon" and found["machine"]["device"] in ("cpu", "cuda")


def test_bench_sample_prints_a_table_or_json(tiny_lm: DiffusionLM, tmp_path: Path) -> None:
    tiny_lm.save_pretrained(tmp_path / "model")
    words = ("bench", "sample", tmp_path / "model", "--num", "2", "--steps", "4", "--repeats", "1")
    assert "2 x 32 tokens, 4 network calls, 8.00 tokens a call and text" in dlm(*words)[0]
    assert json.loads(dlm(*words, "--json")[0])["calls"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "nowhere.yaml"), "nowhere.yaml"),
        (("train", "--set", "optim.lrr=1"), "optim.lrr"),
        (("sample", "nowhere/at/all"), "no model at"),
        (("sample", "x", "--precision", "fp8"), "fp8"),
        (("sample", "x", "--steps", "3", "--threshold", "0.5"), "different budgets"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], said: str) -> None:
    assert said in " ".join(refusal("bench", *words).split())


def test_a_head_may_be_tied_or_not() -> None:
    model: PreTrainedModel = build("llama", {**SIZES["llama"], "tie_word_embeddings": True})
    assert hidden_parameters(model) == hidden_parameters(build("llama"))
