"""Model, tokenizer and run configuration on disk: written whole or not at all, read without unpickling."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlm import hub
from dlm.config import Config
from dlm.diffusion.formulation import Formulation
from dlm.diffusion.readings import Masked
from dlm.errors import CheckpointError, ConfigError, WriteError, one_line, unwritten
from dlm.model.causal import causal_on_disk
from dlm.model.locate import SIDECAR, file_of
from dlm.model.lora import write_adapter
from dlm.model.public import Family, by_name, read_config
from dlm.model.sentinels import Sentinels
from dlm.model.spans import LengthPrior
from dlm.model.time_embedding import TIMED, TimeEmbedding, write_time_embedding
from dlm.model.tokenizer import Affixes
from dlm.settings import dump_config, dump_formulation, parse_config, parse_formulation

if TYPE_CHECKING:
    from peft import PeftModel

FORMAT = 5
"""The latest version of `dlm.yaml`; a reader refuses a later one. Version 4 has special tokens around every text, or a
family of published models; version 5 has readings with a memory."""

UNFLUSHED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES}
"""What `fsync` answers where it does not work at all, rather than fails."""


@dataclass(frozen=True)
class Sidecar:
    """What `dlm.yaml` says beside a plain HuggingFace folder.

    Attributes:
        formulation: The choices that the model was trained with.
        context: The longest sequence, in tokens.
        mask_id: The id of the mask.
        step: The step of its run at which the checkpoint was taken, where a run made it.
        config: The run's resolved configuration.
        affixes: The special tokens that stand around every text.
        family: The family of published models that it is one of.
        base_checksum: For adapters: the `weights_checksum` of the model that they belong to, where one is known.
        lengths: How long spans of its training text are, where its run counted them.
        sentinels: Those of a model that fills in the middle.
    """

    formulation: Formulation
    context: int
    mask_id: int
    step: int | None = None
    config: Config | None = None
    affixes: Affixes = field(default_factory=Affixes)
    family: Family | None = None
    base_checksum: str | None = None
    lengths: LengthPrior | None = None
    sentinels: Sentinels | None = None

    @classmethod
    def of_run(
        cls, config: Config, mask_id: int, step: int, affixes: Affixes | None = None, family: Family | None = None
    ) -> "Sidecar":
        """What a run says beside a checkpoint of its own."""
        return cls(config.formulation, config.data.length, mask_id, step, config, affixes or Affixes(), family)

    @property
    def _format(self) -> int:
        """The first version whose readers use the model as what it is."""
        if not isinstance(self.formulation.readings, Masked):
            return FORMAT
        return 4 if self.affixes or self.family else 3

    def dump(self) -> str:
        """The file's text."""
        tree: dict[str, Any] = {
            "format": self._format,
            "formulation": dump_formulation(self.formulation),
            "context": self.context,
            "mask_id": self.mask_id,
        }
        if self.affixes:
            tree["affixes"] = {"prefix": [*self.affixes.prefix], "suffix": [*self.affixes.suffix]}
        if self.family is not None:
            tree["family"] = self.family.name
        if self.base_checksum is not None:
            tree["base_checksum"] = self.base_checksum
        if self.lengths is not None:
            tree["lengths"] = {"inside": dict(self.lengths.inside), "lines": dict(self.lengths.lines)}
        if self.sentinels is not None:
            tree["fim"] = asdict(self.sentinels)
        if self.formulation.timed:
            tree["needs"] = "dlm: this network takes the time, which plain transformers would leave out"
        if self.config is not None:
            tree |= {"step": self.step, "config": dump_config(self.config)}
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> "Sidecar":
        """Reads the file's content; formats 1 and 2 have the formulation and the context in the configuration alone.

        Args:
            tree: The content.

        Returns:
            What it says.

        Raises:
            ConfigError: A key or a value in it is not valid.
            KeyError: A key is missing.
        """
        if tree["format"] < 3:
            return cls.of_run(parse_config(tree["config"]), tree["mask_id"], tree["step"])
        formulation, context, mask_id = parse_formulation(tree["formulation"]), tree["context"], tree["mask_id"]
        config = parse_config(tree["config"]) if "config" in tree else None
        named = tree.get("affixes", {"prefix": (), "suffix": ()})
        affixes = Affixes(*(tuple(map(int, named[side])) for side in ("prefix", "suffix")))
        family = by_name(tree["family"]) if "family" in tree else None
        base = tree.get("base_checksum")
        counted = tree.get("lengths")
        lengths = LengthPrior(*(_counts(counted[side]) for side in ("inside", "lines"))) if counted else None
        fim = tree.get("fim")
        sentinels = Sentinels(int(fim["prefix"]), int(fim["suffix"]), int(fim["middle"]), fim["order"]) if fim else None
        own = tree.get("step"), config, affixes, family, base, lengths, sentinels
        return cls(formulation, int(context), int(mask_id), *own)


def _counts(tree: Mapping[Any, Any]) -> dict[int, int]:
    return {int(length): int(count) for length, count in tree.items()}


def read_sidecar(path: str) -> Sidecar | None:
    """Reads `dlm.yaml` from a checkpoint folder or the Hub.

    Args:
        path: A folder, or a Hub name.

    Returns:
        Its content, or None for a model that `dlm` did not write.

    Raises:
        CheckpointError: The file is damaged or of a later format, or the Hub cannot be reached; or it is missing
            beside a model that `dlm` wrote.
    """
    file = file_of(path, SIDECAR)
    if file is None:
        _check_whole(path)
        return None
    try:
        tree: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        version = tree["format"]
        if version > FORMAT:
            raise CheckpointError(f"{file} has format {version}, this dlm reads up to {FORMAT}: install a newer dlm")
        return Sidecar.parse(tree)
    except (yaml.YAMLError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged: {type(error).__name__} {one_line(error, 100)}") from error
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error


def write_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sidecar: Sidecar,
    time_embedding: TimeEmbedding | None = None,
    adapter: "PeftModel | None" = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a plain HuggingFace folder, and `dlm.yaml` beside it.

    Args:
        folder: An existing folder.
        model: The model; its config says that it is bidirectional, unless it is read causally too.
        tokenizer: Its tokenizer.
        sidecar: What goes into `dlm.yaml`.
        time_embedding: What tells the model the time; with one, the folder is no plain HuggingFace folder any more.
        adapter: The adapters of the model; with them, they alone are written, in the format of `peft`.
        weights: Every tensor of it by the name it has in a `Backbone`; by default what both of them hold.
    """
    of_model = None if weights is None else _part(weights, "model.")
    if adapter is not None:
        write_adapter(folder, adapter, of_model)
    else:
        with causal_on_disk(model, tokenizer, sidecar.family) if sidecar.formulation.readings.causal else nullcontext():
            model.save_pretrained(folder, state_dict=of_model)
    if time_embedding is not None:
        write_time_embedding(
            folder, time_embedding.state_dict() if weights is None else _part(weights, "time_embedding.")
        )
    write_tokenizer(folder, tokenizer)
    (folder / SIDECAR).write_text(sidecar.dump(), encoding="utf-8")


def upload_model(name: str, write: Callable[[Path], object], *, private: bool) -> str:
    """Uploads a model to the Hub.

    Args:
        name: The repository, as in `owner/name`.
        write: Writes the model into a folder.
        private: Whether a repository made now is private.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: No repository can have such a name.
        WriteError: The Hub does not answer, or refuses.
    """
    if not hub.is_name(name):
        raise ConfigError(f"name a repository as owner/name, got {name!r}")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        try:
            return hub.upload(name, folder, private=private)
        except Exception as error:  # its network libraries raise different types
            raise WriteError(
                f"the Hub does not take {name}: {one_line(error)} (is the network there, and are you logged in by "
                "hf auth login, with a token that may write?)"
            ) from error


def write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes a tokenizer that transformers 4 and 5 load, without the publisher's code.

    Args:
        folder: An existing folder.
        tokenizer: A fast tokenizer.
    """
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    tree: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for key in ("auto_map", "backend", "is_local", "local_files_only"):  # remote code, and how it was loaded
        tree.pop(key, None)
    if tree.get("tokenizer_class") in (None, "TokenizersBackend"):
        tree["tokenizer_class"] = "PreTrainedTokenizerFast"  # what transformers 4 calls it, and 5 as well
    if isinstance(tree.get("extra_special_tokens"), list):
        tree["additional_special_tokens"] = tree.pop("extra_special_tokens")  # likewise
    file.write_text(json.dumps(tree, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder that appears under its name only when everything in it is safely on the disk.

    It is written beside its final name, flushed to the disk and renamed, so that no reader ever sees half
    of one; what an earlier, interrupted attempt left is cleared away.

    Args:
        target: The final path, where nothing may stand yet.

    Yields:
        The folder to write into.

    Raises:
        CheckpointError: Something stands there already.
        ConfigError: The name is one where no folder can be.
        WriteError: The disk is full or cannot be written.
    """
    check_absent(target)
    draft = target.with_name(f".{target.name}.draft")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        with suppress(OSError):  # where there are no modes
            _share(draft)
        for path in [*draft.rglob("*"), draft]:
            flush(path)
        draft.rename(target)
        flush(target.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        told = f"cannot save {target}, where nothing was changed"
        raise unwritten(told, error) if isinstance(error, OSError) else WriteError(f"{told}: {error}") from error


def _share(folder: Path) -> None:
    """Gives the files of a folder the mode that new files have here: safetensors makes its own for one user alone."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(folder.stat().st_mode & 0o666)


def check_absent(target: Path) -> None:
    """Refuses a name that is taken.

    Args:
        target: Where something is to be written.

    Raises:
        CheckpointError: Something stands there.
    """
    if target.exists():
        raise CheckpointError(f"{target} exists already and is not overwritten: choose another folder, or remove it")


def point(link: Path, target: Path) -> None:
    """Makes `link` lead to its neighbour `target`, in one step.

    It is a relative symbolic link. Where the system or the disk has none, it is a file with the name of the target in
    it, as version control and archives make of a link there; `dlm.model.locate.follow` reads both.

    Args:
        link: The link. A link that is there is replaced, and so is a folder, the copy that is left of a link by tools
            that copy what it leads to.
        target: A folder beside it.
    """
    draft = link.with_name(f".{link.name}.draft")
    draft.unlink(missing_ok=True)
    try:
        draft.symlink_to(target.name, target_is_directory=True)
    except (OSError, NotImplementedError):
        draft.write_text(f"{target.name}\n", encoding="utf-8")
        flush(draft)
    try:
        draft.replace(link)
    except OSError:  # a folder cannot be replaced, nor on Windows a link to one
        if link.is_symlink():
            link.unlink()
        elif link.is_dir():
            shutil.rmtree(link)
        draft.replace(link)
    flush(link.parent)


def _check_whole(path: str) -> None:
    """Refuses a model without its `dlm.yaml`, where it cannot be used as it was trained without that file."""
    tree = read_config(path)
    unasked = not Path(path).exists() and not hub.is_known_absent(path, SIDECAR)
    if tree.get("model_type") == TIMED or (unasked and tree.get("is_causal") is False):
        raise CheckpointError(
            f"{path} was written by dlm and its {SIDECAR} is missing, which says how it was trained: "
            f"{'connect to the network once' if unasked else 'copy it there'}"
        )


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one module, by the names they have in it."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def flush(path: Path) -> None:
    """Waits until the disk has a file, or the entries of a folder where the system opens folders.

    Args:
        path: The file or folder.
    """
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)  # Windows flushes only what it may write
    except OSError:
        if folder:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNFLUSHED:
            raise
    finally:
        os.close(descriptor)
