"""Small corpora, of odd documents or of counted tokens, cut as an evaluation cuts them, and whether reports agree."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

import numpy as np
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from dlm.data.batches import Sequences
from dlm.data.corpus import corpus
from dlm.data.documents import Plain
from dlm.data.tokens import Tokens
from dlm.evaluate.report import LikelihoodReport

Packing = Literal["pack", "pad"]
DOCUMENTS = ["first", "", "the second \U0001f600", "x" * 50, "caf\u00e9", "last of the documents"]
LENGTH = 16
PAD = 999


def counted(sizes: list[int]) -> Tokens:
    """Documents of these many tokens, the end included; every id of the stream is another one."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Tokens(
        np.arange(offsets[-1], dtype=np.uint16),
        offsets,
        np.array(sizes, dtype=np.int64),
        np.zeros(len(sizes), dtype=np.int64),
    )


def cut(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], packing: Packing, length: int = LENGTH
) -> Sequences:
    """The documents as sequences of a length."""
    return corpus(tokenizer, Plain(Dataset.from_dict({"text": list(documents)})), length, packing)


def assert_close(one: LikelihoodReport, other: LikelihoodReport) -> None:
    """Fails where a count differs, or a measurement by more than rounding."""
    a, b = asdict(one), asdict(other)
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, float | tuple):
            assert b[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        else:
            assert b[name] == value, name
