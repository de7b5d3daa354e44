"""Where a run starts from: a pretrained model with all that it was used with, or the run's own last checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlm.config import Config, Pretrained, Tokenizer
from dlm.diffusion.formulation import Formulation
from dlm.diffusion.readings import Masked
from dlm.errors import ConfigError
from dlm.model.adapt import check_length, init_new_token_rows, is_decoder
from dlm.model.attention import attention_implementation
from dlm.model.checkpoint import read_sidecar
from dlm.model.loading import build_model, load_model
from dlm.model.locate import CHECKPOINTS, check_there, follow, is_adapter, resolve
from dlm.model.lora import add_adapter, check_base, restore_adapter
from dlm.model.public import Family, find
from dlm.model.time_embedding import TimeEmbedding, build_time_embedding, load_time_embedding
from dlm.model.tokenizer import Affixes, first_id, id_count, new_ids, special_ids, text_ids_from
from dlm.paths import expand, quoted
from dlm.settings import dump_formulation, flatten

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Origin:
    """What a run's network was before.

    Attributes:
        path: The folder or Hub name of the model that the run starts from, or the checkpoint that it goes on from.
        formulation: What it was trained with; None for a model that was not trained by diffusion.
        affixes: The special tokens that it has had around every text; None where that is not written down.
        family: The family of published models that it is one of.
        base_checksum: Of adapters: the checksum of the model that they belong to, where one is known.
    """

    path: str
    formulation: Formulation | None = None
    affixes: Affixes | None = None
    family: Family | None = None
    base_checksum: str | None = None


def origin_of(config: Config, checkpoint: Path | None) -> Origin | None:
    """Finds what a run's network was before.

    Args:
        config: The run's configuration.
        checkpoint: Where a resumed run goes on from.

    Returns:
        It; None for random weights.

    Raises:
        DlmError: The pretrained model is not there.
    """
    if checkpoint is None and config.model.path is None:
        return None
    path = str(checkpoint) if checkpoint else starting_point(str(config.model.path))
    if sidecar := read_sidecar(path):
        return Origin(path, sidecar.formulation, sidecar.affixes, sidecar.family, sidecar.base_checksum)
    if family := find(path):
        return Origin(path, family.formulation(path), Affixes(), family)
    return Origin(path)


def tokenizer_of(config: Config, checkpoint: Path | None) -> Tokenizer:
    """Which tokenizer a run makes or loads; a resumed run loads that of its checkpoint, where it cannot have changed.

    Args:
        config: The run's configuration.
        checkpoint: Where a resumed run goes on from.

    Returns:
        The tokenizer's configuration.

    Raises:
        DlmError: The pretrained model whose tokenizer is wanted is not there.
    """
    if checkpoint is not None:
        return Pretrained(str(checkpoint))
    if isinstance(config.tokenizer, Pretrained):
        return replace(config.tokenizer, path=starting_point(config.tokenizer.path))
    return config.tokenizer


def starting_point(path: str) -> str:
    """The pretrained model at a path.

    Args:
        path: A folder or a Hub name; a run folder stands for its best checkpoint.

    Returns:
        A folder or a Hub name.

    Raises:
        ConfigError: The folder holds adapters only.
        CheckpointError: There is no such folder, and the Hub does not answer; or the model cannot be loaded.
    """
    if path.startswith("~"):
        path = str(expand(path))
    here, found = Path(path), path
    if (here / CHECKPOINTS).is_dir():
        found = resolve(path)
    elif here.is_file():
        found = str(follow(here))
    check_there(found)
    if is_adapter(found):
        raise ConfigError(f"{path} holds adapters of another model: `dlm merge {quoted(path)} FOLDER` makes it a model")
    find(found)  # refuses a model that no one can train, before the text is read
    return found


def run_model(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    checkpoint: Path | None,
    origin: Origin | None,
    note: Callable[[str], None],
) -> "tuple[PreTrainedModel, PeftModel | None]":
    """The network at the start of a run, and its adapters where only they are trained.

    A resumed run loads the pretrained model again only where it trains adapters.

    Args:
        config: The run's configuration.
        tokenizer: Its tokenizer.
        accelerator: The accelerator of the run.
        checkpoint: The checkpoint that a resumed run continues from.
        origin: As `origin_of` found it.
        note: Is told of what the model does not know.

    Returns:
        The network, its adapters included, and the adapters by themselves.

    Raises:
        DlmError: There is no such model, or it does not support what the configuration asks for.
    """
    ids, family = special_ids(tokenizer), origin.family if origin else None
    room = config.data.length + (first_id(tokenizer, family, shift=config.model.shift) is not None)
    length = room + (not isinstance(config.readings, Masked))
    bf16, lora = accelerator.mixed_precision == "bf16", config.model.lora
    attention = attention_implementation(config.model.attention, accelerator.device, length, bf16=bf16, learns=True)
    if config.model.path is None:
        special = {"pad_token_id": ids.pad, "eos_token_id": ids.end, "mask_token_id": ids.mask}
        model = build_model(
            config.model.architecture,
            config.model.sizes,
            vocabulary=id_count(tokenizer),
            length=length,
            special_ids=special,
            attention=attention,
            seed=config.seed,
        )
        return model, None
    if lora and config.formulation.timed:
        raise ConfigError("model.lora: adapters go with a network that takes no time; train every weight")
    fresh: list[int] = []
    source = starting_point(config.model.path) if checkpoint is None or lora else str(checkpoint)
    if checkpoint is None and origin is not None:
        check_goes_on(config, origin)
    model = load_model(source, attention, config.model.sizes)
    if checkpoint is None or lora:
        named = isinstance(config.tokenizer, Pretrained) and config.tokenizer.mask_token is not None
        trained = {ids.mask} if named and ids.mask < model.config.vocab_size else set()  # a mask the model knew
        fresh = [id_ for id_ in new_ids(tokenizer, source) if id_ not in trained]
        if untrained := text_ids_from(tokenizer, rows := int(model.config.vocab_size)):
            note(
                f"{source} has {rows} rows and its tokenizer {len(tokenizer)} ids: the rows of {untrained} tokens of "
                "text are new, and begin as the mean of the others; is it the model's own tokenizer?"
            )
        init_new_token_rows(model, fresh, id_count(tokenizer))
    # Positions of readings with a memory are relative, so one more is no vector.
    check_length(model, room, shift=config.model.shift)
    if config.model.annealing and not is_decoder(model):
        raise ConfigError(
            f"model.annealing: {config.model.path} is an encoder, which sees the whole text already: "
            "set model.annealing to 0 and model.shift to false"
        )
    if lora is None:
        return model, None
    adapter = add_adapter(model, lora, source, fresh, config.seed)
    if checkpoint is not None:
        restore_adapter(checkpoint, adapter)
    return model, adapter


def base_checksum(config: Config, origin: Origin | None) -> str | None:
    """The checksum of the model that a run's adapters belong to.

    Args:
        config: The run's configuration.
        origin: Where it starts or goes on from.

    Returns:
        The checksum; None of a run without adapters, and of a model on the Hub.

    Raises:
        CheckpointError: A resumed run was begun with other weights.
    """
    if config.model.lora is None or config.model.path is None or origin is None:
        return None
    return check_base(origin.path, starting_point(config.model.path), origin.base_checksum)


def run_time_embedding(config: Config, model: PreTrainedModel, origin: Origin | None) -> TimeEmbedding | None:
    """What tells a run's network the time: that of the model that it starts from, or a new one.

    Args:
        config: The run's configuration.
        model: The network.
        origin: What it was before.

    Returns:
        The module; None for a network that takes no time.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    if not config.formulation.timed:
        return None
    if origin is not None and origin.formulation is not None and origin.formulation.timed:
        return load_time_embedding(origin.path, model)
    return build_time_embedding(model, config.seed)


def check_goes_on(config: Config, origin: Origin) -> None:
    """Refuses to read a diffusion model's predictions in other places than it was trained to make them in.

    Args:
        config: The run's configuration.
        origin: What it starts from.

    Raises:
        ConfigError: `model.shift` is not that of the model, or `model.annealing` would close its attention first, or
            `readings` needs predictions in place.
    """
    known = origin.formulation
    if known is None:
        return
    family_leads = origin.family is not None and origin.family.first is not None
    if not isinstance(config.readings, Masked) and (known.shift or family_leads):
        why = "are read one position earlier" if known.shift else "need a token before every text"
        raise ConfigError(
            f"readings: {origin.path} is a diffusion model whose predictions {why}, which does not go with a memory; "
            f"set it to masked, got {config.readings.name}"
        )
    if origin.family is not None and origin.family.blocks and config.readings.causal:
        # A run may have gone on from one of the family with masks alone.
        own = [f"{{name: blocks, size: {size}, memory: block-causal}}" for size in known.readings.blocks]
        raise ConfigError(
            f"readings: {origin.path} is a block diffusion model that predicts no next tokens; set it to "
            f"{' or '.join([*own, 'masked'])}, got {config.readings.name}"
        )
    if known.shift != config.model.shift:
        where = "one position earlier" if known.shift else "in place"
        raise ConfigError(
            f"model.shift: {origin.path} is a diffusion model whose predictions are read {where}; "
            f"set it to {str(known.shift).lower()}, got {str(config.model.shift).lower()}"
        )
    if config.model.annealing:
        raise ConfigError(
            f"model.annealing: {origin.path} is a diffusion model and sees the whole text already; set it to 0, "
            f"got {config.model.annealing}"
        )


def other_choices(config: Config, origin: Origin) -> list[str]:
    """What a run trains otherwise than the model was trained that it starts from.

    Args:
        config: The run's configuration.
        origin: What it starts from.

    Returns:
        A line for each choice, to tell the user; none for a model that was not trained by diffusion.
    """
    if origin.formulation is None:
        return []
    old, new = (flatten(dump_formulation(each)) for each in (origin.formulation, config.formulation))
    lines = [
        f"{origin.path} was trained with {key} {_said(old.get(key))}, and this run has {_said(new.get(key))}"
        for key in {**old, **new}
        if key != "timed" and old.get(key) != new.get(key)
    ]
    if origin.formulation.timed and not config.formulation.timed:
        lines.append(
            f"{origin.path} takes the time, and this run's network does not: what it learned of the time is left out; "
            "model.time_conditioning true keeps it"
        )
    if config.formulation.timed and not origin.formulation.timed:
        lines.append(f"{origin.path} takes no time, and this run's network does: its time embedding begins as zero")
    return lines


def _said(value: object) -> str:
    return "none" if value is None else str(value)
