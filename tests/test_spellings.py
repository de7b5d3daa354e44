"""Configurations in older spellings mean what they meant."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dlm.config import Config, ObjectiveConfig
from dlm.diffusion.levels import Bell, Clip, Even
from dlm.diffusion.noise import Absorbing, Hybrid, Uniform
from dlm.diffusion.weighting import CrossEntropy, Elbo, HybridCrossEntropy
from dlm.errors import ConfigError
from dlm.model.checkpoint import Sidecar, read_sidecar
from dlm.model.locate import SIDECAR
from dlm.settings import dump_config, load_config, parse_config
from dlm.spellings import OBJECTIVES, SETTINGS, translate_override, translate_tree
from tests.support.fixtures import Refused

LEAST = {"data": {"train": {"format": "text", "path": "book.txt"}}}
PRESENT = {"noise": {"name": "hybrid", "share": 0.3}, "objective": {"loss": "ce", "levels": {"name": "bell"}}}
"""Choices in the present spelling."""

OLD_OBJECTIVES: list[tuple[Any, ObjectiveConfig]] = [
    ("elbo", ObjectiveConfig(Elbo(), Even())),
    ({"name": "elbo"}, ObjectiveConfig(Elbo(), Even())),
    ({"name": "ce"}, ObjectiveConfig(CrossEntropy(), Even())),
    ({"name": "hybrid-ce", "coefficient": 0.5}, ObjectiveConfig(HybridCrossEntropy(0.5), Even())),
    ({"name": "bell"}, ObjectiveConfig(CrossEntropy(), Bell())),
    ({"name": "bell", "concentration": 3}, ObjectiveConfig(CrossEntropy(), Bell(3))),
    ("clip", ObjectiveConfig(CrossEntropy(), Clip())),
    ({"name": "clip", "low": 0.1, "high": 0.7}, ObjectiveConfig(CrossEntropy(), Clip(0.1, 0.7))),
]


def load(folder: Path, tree: dict[str, Any], *overrides: str) -> Config:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**LEAST, **tree}), encoding="utf-8")
    return load_config(path, overrides)


@pytest.mark.parametrize(("old", "objective"), OLD_OBJECTIVES, ids=repr)
def test_an_older_objective_is_a_loss_and_levels(old: Any, objective: ObjectiveConfig, tmp_path: Path) -> None:
    assert parse_config({**LEAST, "objective": old}).objective == objective
    assert load(tmp_path, {"objective": old}).objective == objective
    for tree in ({}, PRESENT, {"objective": {"name": "hybrid-ce", "coefficient": 0.2}}):
        assert load(tmp_path, tree, f"objective={yaml.safe_dump(old, default_flow_style=True)}").objective == objective


def test_older_settings_of_an_objective_reach_the_choice_that_has_them_now(tmp_path: Path) -> None:
    bell, clip = {"objective": {"loss": "ce", "levels": "bell"}}, {"objective": "clip"}
    assert load(tmp_path, bell, "objective.concentration=4").objective.levels == Bell(4)
    assert load(tmp_path, clip, "objective.low=0.1", "objective.high=0.5").objective.levels == Clip(0.1, 0.5)
    assert load(tmp_path, {}, "objective=clip", "objective.low=0.4").objective.levels == Clip(low=0.4)
    hybrid = load(tmp_path, {}, "objective=hybrid-ce", "objective.coefficient=0.5").objective
    assert hybrid == ObjectiveConfig(HybridCrossEntropy(0.5), Even())


def test_the_older_name_of_an_objective_keeps_its_settings(tmp_path: Path) -> None:
    assert load(tmp_path, {"objective": "elbo"}, "objective.name=bell").objective.levels == Bell()
    later = load(tmp_path, {"objective": "elbo"}, "objective.concentration=3", "objective.name=bell")
    assert later.objective == ObjectiveConfig(CrossEntropy(), Bell(3))


def test_process_is_noise(tmp_path: Path) -> None:
    assert parse_config({**LEAST, "process": {"name": "uniform"}}).noise == Uniform()
    assert load(tmp_path, {"process": {"name": "hybrid", "share": 0.3}}).noise == Hybrid(0.3)
    assert load(tmp_path, PRESENT, "process=uniform").noise == Uniform()
    assert load(tmp_path, PRESENT, "process.share=0.2").noise == Hybrid(0.2)
    assert load(tmp_path, PRESENT, "process.name=absorbing", "process={name: absorbing}").noise == Absorbing()


def test_older_and_present_spellings_go_together(tmp_path: Path) -> None:
    config = load(tmp_path, {"objective": "elbo"}, "objective.levels=bell", "objective.concentration=4")
    assert config.objective == ObjectiveConfig(Elbo(), Bell(4))
    config = load(tmp_path, {"process": "hybrid"}, "noise.share=0.2")
    assert config.noise == Hybrid(0.2)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("process=gaussian", ["noise.name:", "unknown choice 'gaussian'", "absorbing, uniform, hybrid"]),
        ("process.shar=0.2", ["unknown configuration key noise.shar", "did you mean share?"]),
        ("process.share=1", ["noise: share must be above 0 and below 1, got 1.0"]),
        ("objective=mse", ["objective.loss.name:", "unknown choice 'mse'", "elbo, ce, hybrid-ce"]),
        ("objective.name=mse", ["objective.loss.name:", "unknown choice 'mse'", "elbo, ce, hybrid-ce"]),
        ("objective.name=[bell]", ["objective.loss.name:", "unknown choice", "elbo, ce, hybrid-ce"]),
        ("objective={name: [bell]}", ["objective.loss.name:", "unknown choice", "elbo, ce, hybrid-ce"]),
        ("objective={name: bell, consentration: 3}", ["objective.levels.consentration", "did you mean concentration?"]),
        ("objective={name: clip, low: 0.9, high: 0.1}", ["objective.levels: 0 <= low < high <= 1", "0.9 and 0.1"]),
        ("objective={name: hybrid-ce, coefficient: 0}", ["objective.loss: coefficient must be above 0, got 0.0"]),
        ("objective.coefficient=1", ["unknown configuration key objective.loss.coefficient"]),
    ],
)
def test_a_mistake_in_an_older_spelling_is_one_line_that_names_the_present_key(
    override: str, words: list[str], tmp_path: Path, refused: Refused
) -> None:
    with refused(ConfigError, *words):
        load(tmp_path, PRESENT, override)


def test_both_spellings_of_one_key_are_refused(refused: Refused) -> None:
    with refused(ConfigError, "unknown configuration key process"):
        parse_config({**LEAST, "process": {"name": "uniform"}, "noise": {"name": "hybrid"}})


def test_a_checkpoint_in_an_older_spelling_is_read(tmp_path: Path) -> None:
    config = parse_config({**LEAST, "noise": "uniform", "objective": {"loss": "ce", "levels": {"name": "bell"}}})
    tree = yaml.safe_load(Sidecar.of_run(config, 3, 7).dump())
    del tree["config"]["noise"]
    tree["config"] |= {"process": {"name": "uniform"}, "objective": {"name": "bell", "concentration": 2}}
    (tmp_path / SIDECAR).write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert read_sidecar(str(tmp_path)) == Sidecar.of_run(config, 3, 7)


def test_what_is_written_is_in_the_present_spelling() -> None:
    written = dump_config(parse_config({**LEAST, "process": "uniform", "objective": "bell"}))
    assert translate_tree(written) == written and "process" not in written
    assert written["objective"] == {"loss": {"name": "ce"}, "levels": {"name": "bell", "concentration": 2}}


def test_the_present_spelling_stays_as_it_is() -> None:
    tree = {**LEAST, **PRESENT}
    assert translate_tree(tree) == tree
    for key in ("noise", "noise.share", "objective", "objective.loss", "objective.levels.low", "objective.loss.name"):
        assert translate_override(key, "x") == [(key, "x")]


def test_every_older_objective_and_setting_has_a_place_now() -> None:
    assert set(OBJECTIVES) == {"elbo", "ce", "bell", "clip", "hybrid-ce"}
    assert set(SETTINGS) == {"coefficient", "concentration", "low", "high"}
