"""Files of tensors (safetensors): their names, how they are written, and how they are read without unpickling."""

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
