"""Time conditioning: what tells a network the time, added to the input embeddings of any backbone."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dlm.model.locate import file_of
from dlm.model.tensors import TIME_WEIGHTS, read_tensors, write_tensors

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
        self.up = nn.Linear(FEATURES, width)
        self.down = nn.Linear(width, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, t_B: Tensor) -> Tensor:
        """Vectors of shape (B, D) for times in [0, 1]."""
        angle_BF = t_B[:, None].float() * self.frequencies
        features_BF = torch.cat([angle_BF.sin(), angle_BF.cos()], dim=-1)
        vector_BD: Tensor = self.down(nn.functional.silu(self.up(features_BF)))
        return vector_BD


def build_time_embedding(model: PreTrainedModel, seed: int) -> TimeEmbedding:
    """A fresh module that fits a model's input embeddings; its weights follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embeddings: Any = model.get_input_embeddings()
        return TimeEmbedding(embeddings.weight.shape[1])


def present_name(name: str) -> str:
    """The present name of one of its tensors; earlier checkpoints have `clock.rise` and `clock.fall`."""
    present = {"rise": "up", "fall": "down"}
    return re.sub(
        r"^(clock\.)?(rise|fall)\.",
        lambda found: ("time_embedding." if found[1] else "") + f"{present[found[2]]}.",
        name,
    )


def write_time_embedding(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Puts the module's weights beside a model, and marks the model's config.json so that only `dlm` loads it."""
    write_tensors(weights, folder / TIME_WEIGHTS)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config[UNDERLYING], config["model_type"] = config["model_type"], TIMED
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_time_embedding(path: str, model: PreTrainedModel) -> TimeEmbedding:
    """Reads the module of a time-conditioned model.

    Args:
        path: The model's folder, or its name on the Hub.
        model: The model.

    Returns:
        The module, in evaluation mode.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    time_embedding = build_time_embedding(model, 0)

    def load(tensors: Mapping[str, Tensor]) -> None:
        time_embedding.load_state_dict({present_name(name): value for name, value in tensors.items()})

    file = file_of(path, TIME_WEIGHTS) or Path(path) / TIME_WEIGHTS
    problem = f"this model takes the time, and its {TIME_WEIGHTS} cannot be read"
    read_tensors(file, load, problem=problem, limit=200)
    return time_embedding.eval()
