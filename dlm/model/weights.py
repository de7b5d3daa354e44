"""What the weights of a model are held in once it is loaded: a type of number, or quantised."""

import importlib
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig

from dlm.errors import ConfigError
from dlm.model.precision import DTYPES, Precision, fastest_precision

Dtype = Precision | Literal["auto"]
"""A type of weights; `auto` is the one that they are stored in."""

Quantization = Literal["4bit", "8bit"]
"""Quantised weights: NF4 (QLoRA, 2305.14314, section 3), or 8 bits (LLM.int8(), 2208.07339)."""


@dataclass(frozen=True)
class Held:
    """How weights are held.

    Attributes:
        dtype: Their type; with quantised weights that of all others and of the arithmetic, where `auto` is the fastest
            of the device.
        load: Quantise the linear layers when they are loaded; None to leave them as they are.
        device: Where they are.
    """

    dtype: Dtype = "fp32"
    load: Quantization | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def check(self) -> None:
        """Refuses a quantisation that cannot be had here, before anything is loaded.

        Raises:
            ConfigError: `bitsandbytes` is not installed, or does not know the device.
        """
        if self.load is None:
            return
        try:
            bitsandbytes = importlib.import_module("bitsandbytes")
        except ImportError as error:
            raise ConfigError(
                f"load {self.load} needs the package bitsandbytes: pip install 'dlm[quantized]', "
                "or pip install bitsandbytes; or hold the weights in bf16 without it"
            ) from error
        known = sorted(getattr(bitsandbytes, "supported_torch_devices", {"cuda"}))  # earlier ones knew no other
        if self.device.type not in known:
            raise ConfigError(
                f"load {self.load}: this bitsandbytes computes on {', '.join(known)} and not on {self.device.type}: "
                "choose another device, or hold the weights in fp16 or bf16"
            )

    def arguments(self, config: PreTrainedConfig) -> dict[str, Any]:
        """What `from_pretrained` of transformers is to be told.

        Each tensor goes to its device when it is read. So the CPU's memory never holds a model that belongs elsewhere.

        Args:
            config: The stored configuration.

        Returns:
            Keyword arguments.
        """
        asked: dict[str, Any] = {"dtype": self._type(config)}
        if self.load is not None or self.device.type != "cpu":
            asked["device_map"] = {"": str(self.device)}
        if self.load == "4bit":
            asked["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=asked["dtype"]
            )
        elif self.load == "8bit":
            asked["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        return asked

    def _type(self, config: PreTrainedConfig) -> torch.dtype | Literal["auto"]:
        if self.dtype != "auto":
            return DTYPES[self.dtype]
        if self.load is not None:
            return DTYPES[fastest_precision(self.device)]
        stored = getattr(config, "dtype", None)  # None: transformers looks at the weights themselves
        return "auto" if stored is None or stored in DTYPES.values() else torch.float32
