"""A run is trained further, and its text may have moved: what changes is said, and what was learned is not undone."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from typing_extensions import override

from dlm.config import Config, Optim, Source
from dlm.errors import ConfigError, DataError
from dlm.settings import load_config
from dlm.train.metrics import Silent
from dlm.train.optim import learning_rate_factor
from tests.support.commands import dlm, refusal
from tests.support.reporters import Steps
from tests.support.tiny_runs import altered, back_to, cut_after, describe, lines, losses, resume, train, weights


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    @override
    def note(self, text: str) -> None:
        self.told.append(text)


def constant(folder: Path, steps: int) -> Config:
    return altered(describe(folder, steps=steps), "optim", decay="constant")


def without_validations(run: Path) -> list[dict[str, object]]:
    return [line for line in lines(run) if "loss" in line]


def test_more_steps_at_a_constant_rate_are_those_of_a_longer_run(tmp_path: Path) -> None:
    run = train(tmp_path / "run", constant(tmp_path, 6))
    _, err = dlm("train", "--resume", "--run-dir", run, "--set", "train.steps=8")
    assert "train.steps was 6 and is 8 from here on\n" in err and "going on after step 6" in err
    longer = train(tmp_path / "longer", constant(tmp_path, 8))
    assert weights(run) == weights(longer) and without_validations(run) == without_validations(longer)
    assert load_config(run / "config.yaml").train.steps == 8


def test_steps_may_change_before_the_decay_has_begun(tmp_path: Path) -> None:
    """The third step is the first at the peak, after a warm-up of two."""
    config = describe(tmp_path)
    run = cut_after(tmp_path / "run", config, 3)
    resume(run, altered(config, "train", steps=10))
    longer = train(tmp_path / "longer", describe(tmp_path, steps=10))
    assert weights(run, 10) == weights(longer, 10) and losses(run) == losses(longer)


def test_a_decay_that_has_begun_is_not_stretched(tmp_path: Path) -> None:
    run = train(tmp_path / "run", describe(tmp_path))
    before = weights(run), (run / "config.yaml").read_bytes()
    err = refusal("train", "--resume", "--run-dir", run, "--set", "train.steps=12")
    assert err.count("\n") == 1 and "train.steps was 8 and is now 12" in err and "--set optim.restart=8" in err
    assert (weights(run), (run / "config.yaml").read_bytes()) == before


def test_a_new_schedule_from_here_on(tmp_path: Path) -> None:
    run = train(tmp_path / "run", describe(tmp_path))
    first, notes = losses(run), Notes()
    config = load_config(run / "config.yaml", ["train.steps=14", "optim.restart=8", "optim.lr=0.001"])
    resume(run, config, notes)
    assert {line.partition(" was ")[0] for line in notes.told} == {"train.steps", "optim.restart", "optim.lr"}
    rates = [line["lr"] for line in lines(run) if "loss" in line]
    assert rates == pytest.approx([1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4])
    assert {step: losses(run)[step] for step in first} == first
    whole = weights(run, 14)
    back_to(run, 10)
    steps = Steps()
    resume(run, reporter=steps)
    assert [line.step for line in steps.taken] == [11, 12, 13, 14] and weights(run, 14) == whole


def test_a_constant_run_ends_with_a_decay(tmp_path: Path) -> None:
    """Warm up, stay, decay."""
    run = train(tmp_path / "run", constant(tmp_path, 4))
    more = ["train.steps=8", "optim.restart=4", "optim.decay=linear", "optim.warmup=0"]
    resume(run, load_config(run / "config.yaml", more))
    assert [line["lr"] for line in lines(run) if "loss" in line] == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_the_restart_is_where_the_run_stands(tmp_path: Path) -> None:
    config = describe(tmp_path)
    with pytest.raises(ConfigError, match=r"optim\.restart 3: it is for a run that goes on"):
        train(tmp_path / "run", altered(config, "optim", restart=3))
    run = train(tmp_path / "run", config)
    for restart in (7, 9):
        with pytest.raises(ConfigError, match=rf"optim\.restart {restart}: .* stands at step 8; set it to that"):
            resume(run, altered(altered(config, "optim", restart=restart), "train", steps=12))
    resume(run, altered(altered(config, "optim", restart=8), "train", steps=10))
    back_to(run, 6)
    with pytest.raises(ConfigError, match=r"optim\.restart 8: .* stands at step 6") as caught:
        resume(run)
    assert "leave it" not in str(caught.value)  # as it is, it was just refused
    resume(run, altered(altered(config, "optim", restart=6), "train", steps=10))


def test_steps_that_were_taken_are_not_taken_back(tmp_path: Path) -> None:
    run = train(tmp_path / "run", constant(tmp_path, 4))
    with pytest.raises(ConfigError, match=r"train\.steps 3: .* has taken 4 steps already"):
        resume(run, constant(tmp_path, 3))


def test_a_finished_run_says_how_to_go_on(tmp_path: Path) -> None:
    run = train(tmp_path / "run", describe(tmp_path, steps=2))
    _, err = dlm("train", "--resume", "--run-dir", run)
    assert "all 2 steps are done already; to train on, add --set train.steps=N" in err
    assert "and --set optim.restart=2 where the learning rate has decayed" in err


def test_the_schedule_after_a_restart_is_that_of_a_shorter_run() -> None:
    decays: list[Literal["linear", "cosine", "constant"]] = ["linear", "cosine", "constant"]
    for decay in decays:
        short, late = (Optim(warmup=2, decay=decay, restart=restart) for restart in (0, 100))
        for step in range(1, 9):
            assert learning_rate_factor(100 + step, 108, late) == learning_rate_factor(step, 8, short)


def moved(config: Config, path: Path) -> Config:
    return altered(config, "data", train=replace(config.data.train, path=str(path)))


def test_a_text_that_moved_is_the_same_text(tmp_path: Path) -> None:
    config = describe(tmp_path)
    undisturbed = train(tmp_path / "whole", config)
    run = cut_after(tmp_path / "run", config, 5)
    here, there = tmp_path / "text.txt", tmp_path / "elsewhere" / "book.txt"
    there.parent.mkdir()
    here.rename(there)
    _, err = dlm("train", "--resume", "--run-dir", run, "--set", f"data.train.path={there}")
    assert f"data.train.path was '{here}' and is '{there}' from here on" in err
    assert weights(run) == weights(undisturbed) and losses(run) == losses(undisturbed)


def test_another_text_in_another_place_is_refused(tmp_path: Path) -> None:
    config = describe(tmp_path)
    run = cut_after(tmp_path / "run", config, 5)
    other = tmp_path / "other.txt"
    other.write_text((tmp_path / "text.txt").read_text().replace("a", "b", 1))
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(DataError, match="the training text has changed"):
        resume(run, moved(config, other))
    assert (run / "config.yaml").read_bytes() == before


def test_another_validation_text_is_refused_and_a_moved_one_is_not(tmp_path: Path) -> None:
    config = describe(tmp_path)
    for name, text in (("a.txt", "some words\n" * 20), ("b.txt", "some words\n" * 20), ("c.txt", "other words\n" * 20)):
        (tmp_path / name).write_text(text)
    held = {name: altered(config, "data", validation=Source("text", str(tmp_path / f"{name}.txt"))) for name in "abc"}
    run = cut_after(tmp_path / "run", held["a"], 5)
    with pytest.raises(DataError, match=r"the validation text, or what .* has changed since"):
        resume(run, held["c"])
    resume(run, held["b"])
    assert losses(run) == losses(train(tmp_path / "whole", held["a"]))


def test_a_stream_cannot_be_known_again(tmp_path: Path) -> None:
    config = describe(tmp_path)
    validation = Source("text", str(tmp_path / "text.txt"))
    source = replace(config.data.train, documents="line")
    config = altered(config, "data", train=source, streaming=True, buffer=5, validation=validation)
    run = cut_after(tmp_path / "run", config, 2)
    with pytest.raises(ConfigError, match=r"data\.train\.path was .* and is now"):
        resume(run, moved(config, tmp_path / "other.txt"))
