"""What every test shares: no network, one thread, a cache that vanishes, and a tiny model that learned nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
from dlm.model.checkpoint import Sidecar
from dlm.model.loading import build_model
from dlm.model.time_embedding import build_time_embedding
from dlm.model.tokenizer import build_tokenizer, special_ids
from dlm.settings import parse_config
from tests.support.fixtures import MakeLM, Refused
from tests.support.tiny_models import TINY


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with long tests come first: at the end no core then waits for another."""
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)


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
        sidecar = Sidecar.of_run(config, ids.mask, 0)
        # Not what suits the machine: the texts of a seed are the same on every one.
        return DiffusionLM(model.eval(), tokenizer, sidecar=sidecar, precision="fp32", time_embedding=time_embedding)

    return make


@pytest.fixture(scope="session")
def tiny_lm(make_lm: MakeLM, byte_tokenizer: PreTrainedTokenizerBase) -> DiffusionLM:
    """A byte model with a context of 32."""
    return make_lm(byte_tokenizer, 32)
