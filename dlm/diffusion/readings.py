"""What a network is trained to be read as. A new choice is one class here, and its name in `AnyReadings`.

A network with a causal memory has several readings: what stands before a block of noise is clean, and is read as an
ordinary autoregressive model would (kin: BD3-LM, 2503.09573; TiDAR, 2511.08923).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol


class Readings(Protocol):
    """Which readings a network has.

    Attributes:
        name: What the configuration calls it.
        causal: Whether it predicts the next token of a text, as plain autoregressive models do.
        any_order: Whether it predicts all masks of a text from all that is not masked.
        remembers: Whether it predicts the masks of a block behind a clean text that it does not read again.
    """

    causal: ClassVar[bool]
    any_order: ClassVar[bool]
    remembers: ClassVar[bool]

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        ...

    @property
    def blocks(self) -> tuple[int, ...]:
        """The sizes of blocks that it is trained on, besides the whole text."""
        ...

    @property
    def all(self) -> tuple[str, ...]:
        """Every reading by name, as in `causal`, `any-order` and `blocks:16`; the first is what a run is judged by."""
        ...


@dataclass(frozen=True)
class Masked:
    """Plain diffusion: every token sees every other."""

    name: Literal["masked"] = "masked"
    causal: ClassVar[bool] = False
    any_order: ClassVar[bool] = True
    remembers: ClassVar[bool] = False
    blocks: ClassVar[tuple[int, ...]] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """The only one."""
        return ("any-order",)


@dataclass(frozen=True)
class Autoregressive:
    """The next token from those before it: the baseline that diffusion is compared with."""

    name: Literal["autoregressive"] = "autoregressive"
    causal: ClassVar[bool] = True
    any_order: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    blocks: ClassVar[tuple[int, ...]] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """The only one."""
        return ("causal",)


@dataclass(frozen=True)
class Blocks:
    """Diffusion in blocks of one size, each given the clean text before it (BD3-LM, 2503.09573).

    Attributes:
        size: Tokens a block.
        memory: Whether a clean token sees those before it (`causal`), or all of its block too (`block-causal`).
    """

    size: int = 16
    memory: Literal["causal", "block-causal"] = "causal"
    name: Literal["blocks"] = "blocks"
    causal: ClassVar[bool] = False
    any_order: ClassVar[bool] = False
    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_size(self.size)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The only size."""
        return (self.size,)

    @property
    def all(self) -> tuple[str, ...]:
        """The only one."""
        return (f"blocks:{self.size}",)


@dataclass(frozen=True)
class Joint:
    """Next tokens and blocks of many sizes together, up to the whole text: one network with every reading.

    Attributes:
        sizes: The sizes of blocks, one of which is drawn for each step; the whole text always is one more.
        next_token: The weight of the next tokens' cross-entropy; that of a masked token's is 1.
    """

    sizes: tuple[int, ...] = (4, 8, 16)
    next_token: float = 1.6
    name: Literal["joint"] = "joint"
    causal: ClassVar[bool] = True
    any_order: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for size in self.sizes:
            _check_size(size)
        if len({*self.sizes}) < len(self.sizes):
            raise ValueError(f"sizes: each is drawn as often as any other, so name each once, got {[*self.sizes]}")
        if not 0.0 < self.next_token < float("inf"):
            raise ValueError(f"next_token must be above zero and finite, got {self.next_token}; without it take blocks")

    @property
    def blocks(self) -> tuple[int, ...]:
        """The sizes that are named."""
        return self.sizes

    @property
    def all(self) -> tuple[str, ...]:
        """All three kinds."""
        return "causal", "any-order", *(f"blocks:{size}" for size in self.sizes)


AnyReadings = Masked | Autoregressive | Blocks | Joint


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"a block has at least one token, got {size}")
