"""Configuration: what is read is what was written, and each mistake is one line that names its key."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dlm.config import Bpe, Bytes, Config, ObjectiveConfig, Optim, Pretrained, Separator, Source, Time
from dlm.diffusion.denoiser import LeaveOneOutDenoiser, X0Denoiser
from dlm.diffusion.formulation import Formulation
from dlm.diffusion.levels import Bell, Clip, Even
from dlm.diffusion.likelihood import Estimator
from dlm.diffusion.network import FunctionNetwork
from dlm.diffusion.noise import Absorbing, Hybrid, Uniform
from dlm.diffusion.objective import MaskedObjective, TimedObjective
from dlm.diffusion.process import Process, Vocabulary
from dlm.diffusion.schedule import Cosine, Geometric, Polynomial
from dlm.diffusion.weighting import CrossEntropy, Elbo, HybridCrossEntropy
from dlm.errors import ConfigError
from dlm.settings import dump_config, load_config, parse_config
from tests.support.fixtures import Refused

LEAST = {"data": {"train": {"format": "text", "path": "book.txt"}}}
CHANGED = {
    "data": {
        "train": {"format": "csv", "path": "a b.csv", "field": "body"},
        "validation": {"format": "hub", "path": "owner/name", "split": "test", "subset": "en"},
        "held_out": {"by": "tail", "share": 0.125},
        "length": 77,
        "packing": "pad",
    },
    "tokenizer": {"name": "bpe", "size": 300},
    "model": {"architecture": "bert", "sizes": {"hidden_size": 64, "rope": {"theta": 1e-9}}, "attention": "eager"}
    | {"time_conditioning": True},
    "noise": {"name": "hybrid", "share": 0.3},
    "schedule": {"name": "geometric", "sigma_min": 0.01, "sigma_max": 10.0},
    "time": {"steps": 50},
    "parameterization": "mixture",
    "objective": {"loss": {"name": "hybrid-ce", "coefficient": 0.5}, "levels": {"name": "bell", "concentration": 5}},
    "optim": {"name": "adamw", "lr": 3e-4, "betas": [0.8, 0.9], "clip": None, "decay": "cosine", "warmup": 0},
    "train": {"steps": 7, "micro_batch_size": 2, "ema": 0.1, "trackers": ["tensorboard", "wandb"]},
    "seed": -3,
}
"""Every kind of value, none of them a default."""


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return written(tmp_path, yaml.safe_dump(CHANGED))


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_the_file_does_not_say_is_the_default() -> None:
    config = parse_config(LEAST)
    assert config.data.train == Source("text", "book.txt")
    assert config == Config(data=config.data) and config.tokenizer == Bytes() and config.optim == Optim()


def test_every_value_of_the_file_arrives_with_its_type(book: Path) -> None:
    config = load_config(book)
    assert config.data.validation == Source("hub", "owner/name", split="test", subset="en")
    assert config.tokenizer == Bpe(size=300)
    assert config.objective == ObjectiveConfig(HybridCrossEntropy(0.5), Bell(5))
    assert config.optim == Optim("adamw", lr=3e-4, betas=(0.8, 0.9), clip=None, decay="cosine", warmup=0)
    assert config.train.trackers == ("tensorboard", "wandb")
    assert config.model.sizes == {"hidden_size": 64, "rope": {"theta": 1e-9}}
    assert (config.data.packing, config.data.length, config.seed) == ("pad", 77, -3)
    assert config.noise == Hybrid(0.3) and config.schedule == Geometric(0.01, 10.0) and config.time == Time(50)
    assert config.parameterization == "mixture" and config.model.time_conditioning is True


@pytest.mark.parametrize(
    "tree",
    [LEAST, CHANGED, {**LEAST, "tokenizer": {"name": "pretrained", "path": "gpt2"}}],
    ids=["least", "changed", "pretrained"],
)
def test_a_configuration_survives_being_written_and_read(tree: dict[str, Any], tmp_path: Path) -> None:
    config = parse_config(tree)
    assert parse_config(dump_config(config)) == config
    path = written(tmp_path, yaml.safe_dump(dump_config(config)))  # plain values only, or safe_dump refuses
    assert load_config(path) == config


def test_what_is_written_is_complete() -> None:
    plain = dump_config(parse_config(LEAST))
    assert set(plain) == {f.name for f in dataclasses.fields(Config)}
    assert set(plain["optim"]) == {f.name for f in dataclasses.fields(Optim)}
    assert plain["objective"] == {"loss": {"name": "ce"}, "levels": {"name": "clip", "low": 0.2, "high": 0.8}}


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_config(LEAST).seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "number"),
    [("3e-4", 3e-4), ("3E-4", 3e-4), ("1e3", 1e3), (".5e-2", 5e-3), ("3.e+0", 3.0), ("1.5e-3", 1.5e-3), ("0", 0.0)],
)
def test_a_number_with_an_exponent_is_a_number(text: str, number: float, book: Path) -> None:
    config = load_config(book, [f"optim.lr={text}", f"model.sizes.deep.x={text}"])
    assert config.optim.lr == number
    assert config.model.sizes["deep"]["x"] == number  # no type there to lean on: YAML itself must read it
    assert load_config(written(book.parent, f"{{data: {LEAST['data']}, optim: {{lr: {text}}}}}")).optim.lr == number


@pytest.mark.parametrize("text", ["e3", "1e", "3e-4x", "v1e3"])
def test_a_word_that_looks_like_an_exponent_stays_a_word(text: str, book: Path) -> None:
    assert load_config(book, [f"data.train.path={text}"]).data.train.path == text


def test_overrides_reach_any_depth_and_leave_the_rest_alone(book: Path) -> None:
    config = load_config(book, ["optim.lr=0.5", "data.train.path=other.csv", "model.sizes.rope.theta=2", "seed=4"])
    before = load_config(book)
    assert config.optim == dataclasses.replace(before.optim, lr=0.5)
    assert config.data == dataclasses.replace(
        before.data, train=dataclasses.replace(before.data.train, path="other.csv")
    )
    assert config.model.sizes == {"hidden_size": 64, "rope": {"theta": 2}}
    assert config.seed == 4 and config.train == before.train


def test_an_override_reaches_what_the_file_does_not_mention(tmp_path: Path) -> None:
    path = written(tmp_path, yaml.safe_dump(LEAST))
    config = load_config(path, ["optim.clip=null", "data.held_out.share=0.25", "train.trackers=[wandb]"])
    assert config.optim.clip is None and config.data.held_out.share == 0.25 and config.train.trackers == ("wandb",)


def test_of_two_overrides_the_later_wins(book: Path) -> None:
    assert load_config(book, ["seed=1", "seed=2"]).seed == 2


def test_an_override_may_hold_equals_signs_and_spaces(book: Path) -> None:
    assert load_config(book, ["data.train.path=a=b c.csv"]).data.train.path == "a=b c.csv"
    assert load_config(book, [" seed = 5 "]).seed == 5


def test_the_name_of_a_choice_swaps_it_and_drops_the_settings_of_the_old_one(book: Path) -> None:
    assert load_config(book, ["tokenizer=bytes"]).tokenizer == Bytes()
    assert load_config(book, ["objective.loss=elbo"]).objective == ObjectiveConfig(Elbo(), Bell(5))
    assert load_config(book, ["objective.levels=even"]).objective == ObjectiveConfig(HybridCrossEntropy(0.5), Even())
    assert load_config(book, ["tokenizer={name: pretrained, path: gpt2}"]).tokenizer == Pretrained("gpt2")
    assert load_config(book, ["objective.levels={name: bell, concentration: 3}"]).objective.levels == Bell(3)
    assert load_config(book, ["objective.levels.concentration=7"]).objective.levels == Bell(7)
    clipped = load_config(book, ["objective.loss=ce", "objective.levels=clip", "objective.levels.low=0.4"])
    assert clipped.objective == ObjectiveConfig(CrossEntropy(), Clip(low=0.4))
    assert load_config(book, ["noise=uniform"]).noise == Uniform()
    assert load_config(book, ["noise=hybrid"]).noise == Hybrid()
    assert load_config(book, ["noise.share=0.7"]).noise == Hybrid(0.7)
    assert load_config(book, ["noise=absorbing", "parameterization=auto"]).noise == Absorbing()
    assert load_config(book, ["schedule=cosine"]).schedule == Cosine()
    assert load_config(book, ["schedule=polynomial", "schedule.power=3"]).schedule == Polynomial(power=3.0)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        # an unknown key: its dotted path, the nearest name and the valid ones
        ("optim.learning_rate=1", ["unknown configuration key optim.learning_rate", "lr"]),
        ("optim.lrr=1", ["unknown configuration key optim.lrr", "did you mean lr?"]),
        ("dat.length=1", ["unknown configuration key dat:", "did you mean data?", "tokenizer"]),
        ("data.train.feild=x", ["unknown configuration key data.train.feild", "did you mean field?"]),
        ("data.validation.splitt=x", ["unknown configuration key data.validation.splitt", "did you mean split?"]),
        ("tokenizer.sise=300", ["unknown configuration key tokenizer.sise", "did you mean size?"]),
        ("objective.levels.consentration=3", ["key objective.levels.consentration", "did you mean concentration?"]),
        ("objective.loss.coeficient=3", ["key objective.loss.coeficient", "did you mean coefficient?"]),
        ("objective.lose=ce", ["unknown configuration key objective.lose", "did you mean loss?", "loss, levels"]),
        ("objective.weighting=ce", ["unknown configuration key objective.weighting", "valid here: loss, levels"]),
        ("train.zzz=3", ["unknown configuration key train.zzz", "valid here: steps, batch_size"]),
        # a bad value: its key, what it got, what it takes
        ("optim.lr=fast", ["optim.lr:", "number", "'fast'"]),
        ("optim.lr=-1", ["optim.lr:", "greater than or equal to 0", "-1"]),
        ("optim.lr=.inf", ["optim.lr:", "finite", "inf"]),
        ("optim.lr=.nan", ["optim.lr:", "nan"]),
        ("optim.clip=0", ["optim.clip:", "greater than 0"]),
        ("optim.momentum=1", ["optim.momentum:", "less than 1"]),
        ("optim.betas=[0.9, 1.5]", ["optim.betas.1:", "less than 1", "1.5"]),
        ("optim.betas=[0.9]", ["optim.betas.1"]),
        ("optim.warmup=-1", ["optim.warmup:"]),
        ("optim=5", ["optim:", "5"]),
        ("data.length=0", ["data.length:", "greater than 0"]),
        ("data.held_out.share=1", ["data.held_out.share:", "less than 1"]),
        ("data.train={format: text, path: 1}", ["data.train.path:", "string", "1"]),
        ("train.steps=true", ["train.steps:", "number", "True"]),
        ("optim.lr=false", ["optim.lr:", "number", "False"]),
        ("optim.betas=[0.9, false]", ["optim.betas.1:", "number", "False"]),
        ("model.lora={targets: []}", ["model.lora.targets", "at least 1"]),
        ("train.steps=2.5", ["train.steps:", "2.5"]),
        ("train.validate_draws=3", ["train.validate_draws:", "multiple of 2"]),
        ("train.trackers=wandb", ["train.trackers:", "'wandb'"]),
        ("tokenizer.size=259", ["tokenizer.size:", "260"]),
        ("seed=x", ["seed:", "integer", "'x'"]),
        # a bad choice: the choices
        ("optim.name=sgd", ["optim.name:", "'muon'", "'adamw'", "'sgd'"]),
        ("data.packing=fold", ["data.packing:", "'pack'", "'pad'"]),
        ("data.held_out.by=luck", ["data.held_out.by:", "'documents'", "'tail'"]),
        ("tokenizer=words", ["tokenizer.name:", "unknown choice 'words'", "bytes, characters, bpe, pretrained"]),
        ("objective.loss=mse", ["objective.loss.name:", "unknown choice 'mse'", "elbo, ce, hybrid-ce"]),
        ("objective.loss.name=mse", ["objective.loss.name:", "unknown choice 'mse'", "elbo, ce, hybrid-ce"]),
        ("objective.levels=low", ["objective.levels.name:", "unknown choice 'low'", "even, bell, clip"]),
        ("objective.levels={low: 0.3}", ["objective.levels:", "{name: ...}"]),
        ("objective.levels=3", ["objective.levels:", "3"]),
        ("objective=3", ["objective:", "3"]),
        ("objective.levels.concentration=true", ["objective.levels.concentration: expected a number, got True"]),
        ("tokenizer={size: 300}", ["tokenizer:", "{name: ...}"]),
        ("noise=gaussian", ["noise.name:", "unknown choice 'gaussian'", "absorbing, uniform, hybrid"]),
        ("schedule=steep", ["schedule.name:", "unknown choice 'steep'", "linear, cosine, polynomial, geometric"]),
        ("noise.shar=0.2", ["unknown configuration key noise.shar", "did you mean share?"]),
        ("noise.share=1", ["noise: share must be above 0 and below 1, got 1.0"]),
        ("schedule.sigma_min=30", ["schedule: 0 < sigma_min < sigma_max must hold, got 30.0 and 10.0"]),
        ("schedule={name: polynomial, power: 0}", ["schedule: power must be above 0, got 0.0"]),
        ("objective.levels={name: clip, low: 0.9, high: 0.1}", ["objective.levels: 0 <= low < high", "0.9 and 0.1"]),
        ("objective.levels.concentration=0", ["objective.levels: concentration must be from 1 to 16, got 0"]),
        ("objective.loss.coefficient=0", ["objective.loss: coefficient must be above 0, got 0.0"]),
        # a bound at some noise levels alone
        ("objective.levels=clip", ["objective: loss hybrid-ce", "levels clip", "set levels to even, or loss to ce"]),
        ("time.steps=0", ["time.steps:", "greater than 0"]),
        ("time=50", ["time:", "50"]),
        ("model.time_conditioning=maybe", ["model.time_conditioning", "'maybe'"]),
        # a parameterization of another kind of noise
        ("parameterization=subs", ["parameterization: 'subs' is not one of hybrid noise", "auto, mixture, plug-in"]),
        ("noise=absorbing", ["parameterization: 'mixture' is not one of absorbing noise; valid: auto, subs"]),
        ("parameterization=x0", ["parameterization:", "'x0'"]),
        ("time.steps=null", ["no finite bound in continuous time", "give time.steps, or take plug-in"]),
        # a missing key
        ("tokenizer=pretrained", ["configuration key tokenizer.path is missing"]),
        ("data={length: 3}", ["configuration key data.train is missing"]),
        ("data.train={path: x}", ["configuration key data.train.format is missing"]),
        # no override at all
        ("seed", ["--set takes key=value", "'seed'"]),
        ("=3", ["--set takes key=value", "'=3'"]),
        ("seed=[1", ["--set seed", "'[1'", "not valid YAML"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(override: str, words: list[str], book: Path, refused: Refused) -> None:
    with refused(ConfigError, *words):
        load_config(book, [override])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["run.yaml", "no configuration", "data"]),
        ("# nothing\n", ["run.yaml", "no configuration"]),
        ("- 1\n- 2\n", ["run.yaml", "no configuration", "[1, 2]"]),
        ("just words\n", ["run.yaml", "no configuration", "just words"]),
        ("data: [1\nseed: 2\n", ["run.yaml", "not valid YAML", "line 2"]),
        ("data: {a: 1}}\n", ["run.yaml", "not valid YAML"]),
        ("!!python/object/apply:os.getcwd []\n", ["run.yaml", "not valid YAML", "python/object"]),
        ("optim: {lr: 1}\n", ["configuration key data is missing"]),
        ("data:\n", ["data:", "None"]),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(
    text: str, words: list[str], tmp_path: Path, refused: Refused
) -> None:
    with refused(ConfigError, *words):
        load_config(written(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path, refused: Refused) -> None:
    with refused(ConfigError, "cannot read", "none.yaml", "No such file"):
        load_config(tmp_path / "none.yaml")
    with refused(ConfigError, "cannot read", str(tmp_path)):
        load_config(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with refused(ConfigError, "bytes.yaml", "not valid YAML"):
        load_config(tmp_path / "bytes.yaml")


@pytest.mark.parametrize(
    ("noise", "parameterization", "plug_in"),
    [
        ("absorbing", "auto", False),
        ("absorbing", "subs", False),
        ("uniform", "auto", True),
        ("uniform", "plug-in", True),
        ("uniform", "mixture", False),
        ("hybrid", "auto", True),
        ("hybrid", "mixture", False),
    ],
)
def test_auto_is_what_suits_the_noise(noise: str, parameterization: str, plug_in: bool) -> None:
    tree = {**LEAST, "noise": {"name": noise}, "parameterization": parameterization, "time": {"steps": 9}}
    formulation = parse_config(tree).formulation
    assert (formulation.parameterization == "plug-in") == plug_in and formulation.timed == (noise != "absorbing")
    for asked in (False, True):
        assert parse_config({**tree, "model": {"time_conditioning": asked}}).formulation.timed == asked


def test_a_formulation_is_the_mathematics_that_the_configuration_asks_for() -> None:
    plain = parse_config(LEAST).formulation
    assert plain == Formulation()
    assert plain.objective(Elbo(), Even(), 0) == MaskedObjective(Elbo(), Even()) and plain.estimator(8) == Estimator(8)
    mixture = parse_config(CHANGED).formulation
    assert mixture == Formulation(Hybrid(0.3), Geometric(0.01, 10.0), 50, "mixture", timed=True)
    assert mixture.objective(CrossEntropy(), Bell(5), 0) == TimedObjective(
        CrossEntropy(), Bell(5), 50
    ) and mixture.estimator(8) == Estimator(8, 50, True)
    chain = parse_config({**LEAST, "time": {"steps": 7}}).formulation
    assert chain.objective(Elbo(), Even(), 0) == MaskedObjective(Elbo(), Even(), 7) and chain.estimator(4) == Estimator(
        4, 7, False
    )
    timed = parse_config({**LEAST, "model": {"time_conditioning": True}}).formulation
    assert timed.objective(Elbo(), Even(), 0) == TimedObjective(Elbo(), Even()) and timed.estimator(4) == Estimator(
        4, None, True
    )
    process = mixture.process(Vocabulary(7, 2, (0, 2, 5)))
    assert process == Process(Hybrid(0.3), Geometric(0.01, 10.0), Vocabulary(7, 2, (0, 2, 5)))
    network = FunctionNetwork(lambda inputs: torch.zeros(1, 7))
    kinds = [
        type(each.denoiser(network, process, [2], 0))
        for each in (Formulation(Hybrid(0.3), parameterization="plug-in"), Formulation())
    ]
    assert kinds == [LeaveOneOutDenoiser, X0Denoiser]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.train.path=*.txt", "*.txt"),
        ("data.train.path=&a.txt", "&a.txt"),
        ("data.train.path=[1]*.txt", "[1]*.txt"),
        ("data.train.path={a}.txt", "{a}.txt"),
        ("data.train.path=a: b #1.txt", "a: b #1.txt"),
        ("data.train.path=2024", "2024"),
        ("data.train.path=yes", "yes"),
        ("data.train.path=%y.txt", "%y.txt"),
        ("data.train.path='a b.txt'", "a b.txt"),
        ('data.train.path="a\\tb"', "a\tb"),
        ("data.train.path=null", None),
        ("data.train.path=~", None),
        ("data.train.path=", None),
        ("data.train.field=007", "007"),
        ("data.train.split=1e3", "1e3"),
        ("data.train.documents.separator=<|endoftext|>", "<|endoftext|>"),
        ("data.train.documents.separator=*", "*"),
        ("data.train.documents={separator: '* * *'}", Separator("* * *")),
    ],
)
def test_text_is_taken_as_it_stands(book: Path, override: str, expected: object) -> None:
    found: object = load_config(book, [override]).data
    for name in override.partition("=")[0].split(".")[1:]:
        found = getattr(found, name)
    assert found == expected


def test_prompts_of_several_columns_are_written_and_read(book: Path) -> None:
    source = ["data.train.response=output", "data.packing=pad", "data.held_out.by=documents", "data.validation=null"]
    config = load_config(book, [*source, "data.train.prompt=[instruction, input]"])
    assert config.data.train.prompt == ("instruction", "input")
    assert parse_config(json.loads(json.dumps(dump_config(config)))) == config
    assert load_config(book, [*source, "data.train.prompt=*q"]).data.train.prompt == "*q"


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ("fil", ["'file', 'paragraph' or 'line', got 'fil'"]),
        (7, ["'file', 'paragraph' or 'line', got 7"]),
        ({"separater": "x"}, ["separator"]),
        ({"separator": 7}, ["data.train.documents.separator: ", "string, got 7"]),
    ],
)
def test_what_no_document_is(refused: Refused, documents: object, words: list[str]) -> None:
    with refused(ConfigError, "data.train.documents", *words):
        parse_config({"data": {"train": {**LEAST["data"]["train"], "documents": documents}}})


@pytest.mark.parametrize("path", ["*.txt", "*book"])
def test_a_glob_in_a_file_needs_quotes(tmp_path: Path, refused: Refused, path: str) -> None:
    with refused(ConfigError, "not valid YAML", "begins with * needs quotes"):
        load_config(written(tmp_path, f"data:\n  train: {{format: text, path: {path}}}\n"))


@pytest.mark.parametrize("separator", ["", "  ", "a\nb"])
def test_a_separator_is_one_line(refused: Refused, separator: str) -> None:
    source = {**LEAST["data"]["train"], "documents": {"separator": separator}}
    with refused(ConfigError, "data.train.documents", "one line"):
        parse_config({"data": {"train": source}})


def test_neither_the_tree_nor_the_overrides_are_touched() -> None:
    tree, kept = yaml.safe_load(yaml.safe_dump(CHANGED)), yaml.safe_load(yaml.safe_dump(CHANGED))
    parse_config(tree)
    assert tree == kept
