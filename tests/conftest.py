"""What every test shares: no network, one thread, a cache that vanishes, and a tiny model that learned nothing."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before everything else

import datasets
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from dlm.config import Bytes, Config
from dlm.diffusion.draws import generator
from dlm.errors import DlmError
from dlm.lm import DiffusionLM
from dlm.model.backbone import build_model
from dlm.model.checkpoint import Sidecar
from dlm.model.time_embedding import build_time_embedding
from dlm.model.tokenizer import build_tokenizer, special_ids
from dlm.settings import parse_config

TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
"""A qwen3 that takes a millisecond."""

MakeLM = Callable[..., DiffusionLM]
"""(tokenizer, context, keys of the configuration=..) -> a random model.

Its weights are wide, so that its predictions are far from uniform; so are those of its time embedding, if it has one.
"""


Refused = Callable[..., AbstractContextManager[None]]
"""(kind of error, words...) -> a context in which that error is raised, in one line that holds the words."""


@pytest.fixture(scope="session")
def refused() -> Refused:
    @contextmanager
    def check(kind: type[DlmError], *words: str) -> Iterator[None]:
        with pytest.raises(kind) as caught:
            yield
        message = str(caught.value)
        assert type(caught.value) is kind and "\n" not in message and len(message) < 600
        assert [word for word in words if word not in message] == [], message

    return check


@pytest.fixture(scope="session", autouse=True)
def quiet_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One thread, and a cache of `datasets` in a temporary folder; gives that folder."""
    threads, cache = torch.get_num_threads(), datasets.config.HF_DATASETS_CACHE
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets-cache")
    yield datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = cache
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    return parse_config({"data": {"train": {"format": "text", "path": "none.txt"}, "length": 32}})


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer(Bytes(), lambda: ())


@pytest.fixture(scope="session")
def make_lm(tiny_config: Config) -> MakeLM:
    def make(tokenizer: PreTrainedTokenizerBase, length: int, **keys: Any) -> DiffusionLM:
        ids = special_ids(tokenizer)
        model = build_model(
            "qwen3",
            {**TINY, "initializer_range": 0.3},
            vocabulary=len(tokenizer),
            length=length,
            special_ids={"pad_token_id": ids.pad, "eos_token_id": ids.end},
            attention="eager",
            seed=0,
        )
        config = parse_config({"data": {"train": {"format": "text", "path": "none.txt"}, "length": length}, **keys})
        time_embedding = None
        if config.formulation.timed:
            time_embedding = build_time_embedding(model, 0)
            torch.nn.init.normal_(time_embedding.down.weight, std=0.3, generator=generator("clock"))
        return DiffusionLM(
            model.eval(), tokenizer, sidecar=Sidecar.of_run(config, ids.mask, 0), time_embedding=time_embedding
        )

    return make


@pytest.fixture(scope="session")
def tiny_lm(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    """A byte model with a context of 32."""
    return make_lm(byte_tokenizer, 32)
