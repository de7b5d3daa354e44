"""Text diffusion language models: train, sample, infill and score them.

`from dlm import DiffusionLM` is the whole library; importing `dlm` itself loads nothing heavy.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm.lm import DiffusionLM

__all__ = ["DiffusionLM", "__version__"]


def __getattr__(name: str) -> Any:  # PEP 562: torch loads on first use, not on import
    if name == "DiffusionLM":
        from dlm.lm import DiffusionLM

        return DiffusionLM
    if name == "__version__":
        return version("dlm")
    raise AttributeError(f"module 'dlm' has no attribute {name!r}")
