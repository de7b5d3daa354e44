"""Pretrained models that runs begin from; no test changes their folders."""

from pathlib import Path

import pytest

from tests.support import pretrained


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained.save("encoder", tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained.save("decoder", tmp_path_factory.mktemp("decoder"))
