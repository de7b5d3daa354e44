"""What a report shows of a run: what it wrote while it was trained, and what its best model makes of its own text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch

from dlm.config import Config
from dlm.data.batches import Sequences
from dlm.diffusion.draws import generator
from dlm.errors import ConfigError, DlmError
from dlm.evaluate.bootstrap import Ratio
from dlm.evaluate.likelihood import Measured, measure
from dlm.evaluate.profile import LevelTerm, PositionTerm, TokenTerm, by_level, by_position, by_token
from dlm.film.frames import Film, Recorder
from dlm.lm import DiffusionLM
from dlm.model.locate import CHECKPOINTS
from dlm.model.weights import Dtype, Quantization
from dlm.settings import load_config
from dlm.train.history import METRICS, History
from dlm.train.listing import CONFIG, RunState, is_run, state_of
from dlm.train.own_text import own_documents, sequences_of

ROWS = 128
"""The most sequences of the validation text that a model is measured on."""

POSITION_DRAWS = 8
"""The most noisy copies for the bound by position, which shows its error, and by which no run is judged."""

TEXT = 256
"""Tokens, in whole sequences, of the text whose tokens are looked at one by one."""

FILM = 96
"""The most tokens of the film."""


class Held(TypedDict):
    """Where and how the weights are held; see `DiffusionLM.from_pretrained`."""

    device: str | None
    dtype: Dtype
    load: Quantization | None


@dataclass(frozen=True)
class Settings:
    """How models are measured.

    Attributes:
        max_documents: The first so many documents of a run's validation text; None for all.
        draws: Noisy copies of each sequence.
        batch_size: Sequences a forward.
        seed: The noise, the film and the bootstrap follow from it.
    """

    max_documents: int | None = 64
    draws: int = 16
    batch_size: int = 32
    seed: int = 0


@dataclass(frozen=True)
class ModelPart:
    """What the best model of a run makes of the run's validation text.

    Attributes:
        step: The step of its checkpoint.
        parameters: Its parameters.
        sequences: The text.
        measured: The bound in the reading that the run is judged by.
        levels: The bound's integrand by noise level; none of a model that is not read in any order.
        positions: The bound by position in the row.
        tokens: What each token at the beginning of the text adds.
        film: The model writes a text; None of a run on prompts and responses.
    """

    step: int
    parameters: int
    sequences: Sequences
    measured: Measured
    levels: tuple[LevelTerm, ...]
    positions: tuple[PositionTerm, ...]
    tokens: tuple[TokenTerm, ...]
    film: Film | None


@dataclass(frozen=True)
class RunPart:
    """A run of a report.

    Attributes:
        name: What it is called there, unlike any other.
        path: Its folder.
        config: Its configuration.
        history: What it wrote while it was trained.
        state: Where it stands.
        model: What its best model makes of its text; None where that was not asked for, or cannot be known.
        why: Why not; empty where it was not asked for.
    """

    name: str
    path: Path
    config: Config
    history: History
    state: RunState
    model: ModelPart | None = None
    why: str = ""


@dataclass(frozen=True)
class Paired:
    """The difference between the bounds of two runs on the same text.

    Attributes:
        name: The one, and how it is read.
        other: The other, which is subtracted, and how it is read.
        difference: In nats a token, with the interval of the same bootstrap for both; None where they have no text in
            common.
        resampled: What is resampled: documents, or sequences.
        why: Why there is no difference.
    """

    name: str
    other: str
    difference: Ratio | None
    resampled: str = ""
    why: str = ""


def read_runs(paths: Sequence[Path]) -> list[RunPart]:
    """What runs wrote while they were trained.

    Args:
        paths: Run folders.

    Returns:
        A part each, with a name that no other has.

    Raises:
        ConfigError: A folder is no run, is given twice, has a configuration that cannot be read, or is that of a run
            without a first step.
        DataError: What the run wrote is damaged.
    """
    places = [path.resolve() for path in paths]
    parts = []
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"RUN: {path} is given twice")
        if not is_run(path) or not (path / CONFIG).is_file():
            what = "there is no such folder" if not path.exists() else "it is no run folder"
            raise ConfigError(f"RUN: {path}: {what}; name the folder that dlm train wrote, as dlm runs lists them")
        try:
            config = load_config(path / CONFIG)
        except DlmError as error:
            raise ConfigError(f"RUN: {path} cannot be shown: {error}") from error
        history = History.read(path)
        if not history.steps:
            lost = (path / CHECKPOINTS).is_dir() and any((path / CHECKPOINTS).iterdir())
            why = f"has checkpoints and no steps in {METRICS}" if lost else "has taken no step yet"
            raise ConfigError(f"RUN: {path} {why}, so that there is nothing to show")
        name = place.name if [other.name for other in places].count(place.name) == 1 else str(path)
        parts.append(RunPart(name, path, config, history, state_of(path)))
    return parts


def with_models(parts: Sequence[RunPart], held: Held, settings: Settings, tell: Callable[[str], None]) -> list[RunPart]:
    """Adds what the best model of each run makes of the run's validation text.

    Args:
        parts: The runs.
        held: Where and how weights are held.
        settings: How models are measured.
        tell: Is told which run comes next.

    Returns:
        The runs; one whose model or text cannot be used says why.
    """
    found = []
    for part in parts:
        tell(f"measuring {part.name}")
        try:
            found.append(replace(part, model=_model_part(part, held, settings)))
        except DlmError as error:
            found.append(replace(part, why=str(error)))
    return found


def _model_part(part: RunPart, held: Held, settings: Settings) -> ModelPart:
    """What the best model of a run makes of the run's text."""
    lm = DiffusionLM.from_pretrained(part.path, **held)
    documents = own_documents(lm, str(part.path))
    if settings.max_documents is not None:
        documents = documents.first(settings.max_documents)
    sequences = sequences_of(lm, documents)
    order = torch.randperm(len(sequences), generator=generator(settings.seed, "report"))
    rows = order[:ROWS].sort().values.tolist()
    reading = lm.formulation.readings.all[0]
    how: dict[str, Any] = {"reading": reading, "batch_size": settings.batch_size, "seed": settings.seed}
    measured = measure(lm, sequences, rows=rows, draws=settings.draws, time=None, **how)
    first = range(min(len(sequences), -(-TEXT // sequences.length)))
    draws = min(settings.draws, POSITION_DRAWS)
    return ModelPart(
        step=lm.sidecar.step or 0,
        parameters=sum(p.numel() for p in lm.model.parameters()),
        sequences=sequences,
        measured=measured,
        levels=by_level(lm, sequences, rows, batch_size=settings.batch_size, seed=settings.seed),
        positions=by_position(lm, sequences, rows, draws=draws, **how),
        tokens=by_token(lm, sequences, first, reading=reading, seed=settings.seed),
        film=None if part.config.data.train.supervised else _film(lm, part.name, settings.seed),
    )


def _film(lm: DiffusionLM, name: str, seed: int) -> Film:
    """The model writes a text from nothing, by its default sampler."""
    recorder = Recorder(lm.tokenizer)
    lm.generate(length=min(FILM, lm.layout.room(None) or FILM), seed=seed, watch=recorder.take)
    return recorder.film(f"{name} writes a text")


def paired(parts: Sequence[RunPart], seed: int) -> list[Paired]:
    """Each run but the first, compared with the first on the same text, token by token.

    Args:
        parts: Runs with their models.
        seed: Decides the bootstrap, which is the same for both.

    Returns:
        A difference each, or why there is none; nothing for one run, or where the first has no model.
    """
    first, *others = parts
    if first.model is None:
        return []
    found = []
    for other in others:
        if other.model is None:
            continue
        one, two = other.model, first.model
        names = (f"{other.name}, {one.measured.report.reading}", f"{first.name}, {two.measured.report.reading}")
        if not _same_text(one.sequences, two.sequences):
            why = "their texts, tokenizers or contexts differ, so that no token of one is one of the other"
            found.append(Paired(*names, None, why=why))
            continue
        (nats_U, tokens_U), (others_U, _) = one.measured.scores.units, two.measured.scores.units
        difference = Ratio.of(nats_U - others_U, tokens_U, seed)
        found.append(Paired(*names, difference, one.measured.report.resampled))
    return found


def _same_text(one: Sequences, other: Sequences) -> bool:
    """Whether two corpora have the same tokens in the same rows."""
    layout = [(each.length, each.packing, len(each.affixes), each.tokens.checksum) for each in (one, other)]
    return layout[0] == layout[1]
