"""Files of tensors (safetensors): their names, how they are written, and how they are read without unpickling."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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

LONGEST_HEADER = 100_000_000
"""The most bytes of a header that the format allows."""

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
        with _damage_of(file), file.open("rb") as stream:
            header, places = _header(stream)
            found.update(header)
            for begin, end in sorted(places):
                for at in _spread(begin, end):
                    stream.seek(8 + len(header) + at)
                    found.update(stream.read(min(BLOCK, end - at)))
    return found.hexdigest() if files else None


def check_whole(file: Path) -> None:
    """Refuses a file of tensors that is damaged, as far as its header and its size tell; no tensor is read.

    Args:
        file: The file.

    Raises:
        CheckpointError: It is not there, was never fetched, has no header, or is shorter or longer than that says.
    """
    with _damage_of(file), file.open("rb") as stream:
        check_fetched(file)
        header, places = _header(stream)
        told, size = 8 + len(header) + max((end for _, end in places), default=0), file.stat().st_size
        if told != size:
            raise ValueError(f"by its header it has {told:,} bytes, and there are {size:,}")


def _header(stream: BinaryIO) -> tuple[bytes, list[tuple[int, int]]]:
    """The header of a file of tensors, and where each tensor begins and ends behind it."""
    size = int.from_bytes(stream.read(8), "little")
    header = stream.read(min(size, LONGEST_HEADER))
    tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
    return header, [(int(begin), int(end)) for begin, end in (entry["data_offsets"] for entry in tensors)]


@contextmanager
def _damage_of(file: Path) -> Iterator[None]:
    """Says of a file that cannot be read as tensors that it is damaged."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{file} is damaged: {one_line(error, 200)}") from error


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
