"""Files of tensors (safetensors): written, and read with one line for all that can be wrong with them."""

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlm.errors import CheckpointError, one_line


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors as safetensors."""
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def read_tensors(
    path: Path, load: Callable[[dict[str, Tensor]], object] | None = None, *, complaint: str | None = None
) -> dict[str, Tensor]:
    """Reads tensors from a safetensors file into the processor's memory.

    Args:
        path: The file.
        load: Loads them, such as a module's `load_state_dict`; tensors that do not fit it are damage too.
        complaint: What the error says before its reason; by default that a checkpoint of a run is damaged.

    Returns:
        The tensors by name.

    Raises:
        CheckpointError: The file is missing or damaged, or does not fit.
    """
    try:
        tensors = load_file(path)
        if load is not None:
            load(tensors)
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError) as error:
        complaint = complaint or f"{path} is damaged, remove its checkpoint to go on from the one before"
        raise CheckpointError(f"{complaint}: {one_line(error)}") from error
    return tensors
