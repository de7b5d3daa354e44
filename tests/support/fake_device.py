"""A device on a machine that has none: its tensors are kept by the CPU. It refuses float64, as MPS does, or takes it.

As on a real device, an operation takes tensors of one device alone (but for scalars), and nothing moves unasked.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

NAME = "mps"
FAKE = torch.device(NAME, 0)


class FakeTensor(Tensor):
    """A tensor that says it is on the fake device, and whose numbers are in `kept`."""

    kept: Tensor
    takes_float64 = False

    @staticmethod
    def __new__(cls, kept: Tensor) -> "FakeTensor":
        if kept.dtype == torch.float64 and not cls.takes_float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        # To torch's own code it is on the device `meta`, which every build has.
        made: FakeTensor = Tensor._make_wrapper_subclass(
            cls,
            kept.size(),
            strides=kept.stride(),
            dtype=kept.dtype,
            device=torch.device("meta"),
            requires_grad=kept.requires_grad,
        )
        made.kept = kept
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own is a static stand-in
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return FAKE

    def tolist(self) -> Any:
        return self.kept.tolist()

    def __repr__(self) -> str:  # type: ignore[override]  # torch's takes the contents as well
        return f"FakeTensor({self.kept!r})"


class FakeDevice(TorchDispatchMode):
    """Makes new tensors where they were asked for; counts what ran on the fake device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = _run(func, args, kwargs or {})
        self.operations += any(isinstance(value, FakeTensor) for value in tree_flatten(found)[0])
        return found


class Moves(TorchFunctionMode):
    """Moves to the fake device, and makes tensors of lists there, before torch looks for the real one."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        asked = [*args[1:], *(kwargs or {}).values()]
        places = [a for a in asked if isinstance(a, torch.device) or (isinstance(a, str) and a.startswith(NAME))]
        if func not in (Tensor.to, torch.tensor) or not places or torch.device(places[0]).type != NAME:
            return func(*args, **(kwargs or {}))
        if func is torch.tensor:
            return torch.ops.aten._to_copy.default(func(*args, **{**(kwargs or {}), "device": None}), device=FAKE)
        types_asked = [a for a in asked if isinstance(a, torch.dtype)]
        dtype = types_asked[0] if types_asked else args[0].dtype
        if isinstance(args[0], FakeTensor) and args[0].dtype == dtype:
            return args[0]
        return torch.ops.aten._to_copy.default(args[0], dtype=dtype, device=FAKE)


@contextmanager
def fake_device(*, float64: bool = False) -> Iterator[FakeDevice]:
    """Within it, tensors of the device `mps` can be made; with float64 or, as on the real one, without."""
    FakeTensor.takes_float64 = float64
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # else a module keeps parameters of its own kind
    try:
        with Moves(), FakeDevice() as device:
            yield device
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs an operation on the CPU; its results are on the device where they belong."""
    given = tree_flatten((args, kwargs))[0]
    tensors = [value for value in given if isinstance(value, Tensor)]
    there = any(isinstance(value, FakeTensor) for value in tensors)
    asked = kwargs.get("device")
    if asked is not None:
        there = torch.device(asked).type in ((NAME, "meta") if there else (NAME,))
        kwargs = {**kwargs, "device": torch.device("cpu") if there else asked}
    elif there and func is not torch.ops.aten.copy_.default:
        if func is torch.ops.aten.index.Tensor:  # places may come from the CPU, on real devices too
            tensors = tensors[:1]
        strangers = [value for value in tensors if not isinstance(value, FakeTensor) and value.ndim]
        if strangers:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found cpu and {NAME}: {func}")
    inner_args, inner_kwargs = tree_map_only(FakeTensor, lambda value: value.kept, (args, kwargs))
    if func is torch.ops.aten._to_copy.default:  # a copy even where the CPU would have to do nothing
        inner_kwargs.pop("non_blocking", None)
    found = func(*inner_args, **inner_kwargs)
    if not there:
        return found
    wrap: Callable[[Tensor], FakeTensor] = FakeTensor
    wrapped = tree_map_only(Tensor, lambda value: wrap(value), found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)
