"""Time conditioning: what tells a network the time, added to the input embeddings of any backbone."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dlm.model.locate import file_of
from dlm.model.tensors import read_tensors, write_tensors

WEIGHTS = "time.safetensors"
FEATURES = 128
"""Sines and cosines of the time, half of each; their periods go from 2 pi/1000 to 20 pi of the unit of time."""

TIMED = "dlm-time-conditioned"
"""The `model_type` of a time-conditioned checkpoint: transformers alone, which would leave the time out, refuses it."""

UNDERLYING = "dlm_model_type"
"""The key of the architecture's own `model_type` in such a checkpoint."""


class TimeEmbedding(nn.Module):
    """A vector for each time: Fourier features (2006.11239, section 4) through a network of one hidden layer.

    It begins as zero, so that a fresh network begins as one that takes no time.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        """Makes the module.

        Args:
            width: D, the width of the backbone's input embeddings.
        """
        super().__init__()
        half = FEATURES // 2
        frequencies = 1000.0 * torch.exp(-math.log(10_000.0) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.rise = nn.Linear(FEATURES, width)
        self.fall = nn.Linear(width, width)
        nn.init.zeros_(self.fall.weight)
        nn.init.zeros_(self.fall.bias)

    def forward(self, t_B: Tensor) -> Tensor:
        """Vectors of shape (B, D) for times in [0, 1]."""
        angle_BF = t_B[:, None].float() * self.frequencies
        features_BF = torch.cat([angle_BF.sin(), angle_BF.cos()], dim=-1)
        vector_BD: Tensor = self.fall(nn.functional.silu(self.rise(features_BF)))
        return vector_BD


def build_clock(model: PreTrainedModel, seed: int) -> TimeEmbedding:
    """A fresh module that fits a model's input embeddings; its weights follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embeddings: Any = model.get_input_embeddings()
        return TimeEmbedding(embeddings.weight.shape[1])


def write_clock(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Puts the module's weights beside a model, and marks the model's config.json so that only `dlm` loads it."""
    write_tensors(weights, folder / WEIGHTS)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config[UNDERLYING], config["model_type"] = config["model_type"], TIMED
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_clock(path: str, model: PreTrainedModel) -> TimeEmbedding:
    """Reads the module of a time-conditioned model.

    Args:
        path: The model's folder, or its name on the Hub.
        model: The model.

    Returns:
        The module, in evaluation mode.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    clock = build_clock(model, 0)
    file = file_of(path, WEIGHTS) or Path(path) / WEIGHTS
    complaint = f"this model takes the time, and its {WEIGHTS} cannot be read"
    read_tensors(file, clock.load_state_dict, complaint=complaint)
    return clock.eval()
