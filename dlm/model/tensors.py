"""Files of tensors (safetensors): their names, how they are written, and how they are read without unpickling."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlm.errors import CheckpointError, one_line
from dlm.model.locate import check_fetched

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The weights of adapters, as `peft` calls the file."""

TIME_WEIGHTS = "time.safetensors"
"""The weights of a time embedding."""

RAW_WEIGHTS = "weights.safetensors"
"""The weights that are trained, in a checkpoint whose model has their average."""

OPTIMIZER_STATE = "optimizer.safetensors"
"""The state of the optimizers."""

BLOCKS, BLOCK = 16, 2**14
"""Of each tensor a checksum reads so many blocks, of so many bytes, spread evenly; of 256 KiB or less, all of it."""


def weights_checksum(path: str) -> str | None:
    """A checksum of a model's weights that reads little of a large one: names and shapes, and some of each tensor.

    Args:
        path: The model's folder.

    Returns:
        The checksum; None where there is no such folder, or no weights in it, as for a Hub name.

    Raises:
        CheckpointError: The weights are damaged.
    """
    files = sorted(Path(path).glob("model*.safetensors"))
    found = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            with file.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                header = stream.read(size)
                found.update(header)
                tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
                for begin, end in sorted(entry["data_offsets"] for entry in tensors):
                    for at in _spread(begin, end):
                        stream.seek(8 + size + at)
                        found.update(stream.read(min(BLOCK, end - at)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{file} is damaged: {one_line(error, 200)}") from error
    return found.hexdigest() if files else None


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors as safetensors."""
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def read_tensors(
    path: Path,
    load: Callable[[dict[str, Tensor]], object] | None = None,
    *,
    problem: str | None = None,
    limit: int | None = None,
) -> dict[str, Tensor]:
    """Reads tensors from a safetensors file into CPU memory.

    Args:
        path: The file.
        load: Loads the tensors into a module. If it refuses them, the file counts as damaged.
        problem: What the error message says before the reason; by default that a checkpoint of a run is damaged.
        limit: The most characters of the reason; None for all of them.

    Returns:
        The tensors by name.

    Raises:
        CheckpointError: The file is missing, damaged or never fetched, or its tensors do not fit.
    """
    try:
        tensors = load_file(path)
        if load is not None:
            load(tensors)
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError) as error:
        check_fetched(path)
        problem = problem or f"{path} is damaged, remove its checkpoint to go on from the one before"
        raise CheckpointError(f"{problem}: {one_line(error, limit)}") from error
    return tensors


def _spread(begin: int, end: int) -> list[int]:
    """Where blocks of a tensor begin, from its first bytes to its last; all of them if it is small."""
    if end - begin <= BLOCKS * BLOCK:
        return [*range(begin, end, BLOCK)]
    return [begin + (end - begin - BLOCK) * i // (BLOCKS - 1) for i in range(BLOCKS)]
