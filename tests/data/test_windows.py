"""Rows of a text that is scored: each token once, after what its window still holds of its document."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dlm.data.batches import Sequences
from dlm.data.tokens import Tokens
from dlm.data.windows import Strided, Window, Wrapped, windows
from dlm.errors import ConfigError, DataError
from dlm.model.tokenizer import Affixes
from tests.support.corpora import PAD, counted
from tests.support.fixtures import Refused


def prompted(sizes: list[int], given: list[int]) -> Tokens:
    return replace(counted(sizes), given=np.array(given, dtype=np.int64))


@pytest.mark.parametrize("stride", [None, 1, 3, 7, 8])
@pytest.mark.parametrize("tokens", [0, 1, 7, 8, 9, 16, 30])
def test_each_token_is_scored_once_and_late_ones_have_their_context(tokens: int, stride: int | None) -> None:
    found = [*windows(tokens, 8, stride)]
    assert [i for window in found for i in range(window.scored, window.stop)] == list(range(tokens))
    for number, window in enumerate(found):
        assert 0 <= window.start <= window.scored < window.stop <= window.start + 8
        if number and stride is None:
            assert window.start == window.scored
        elif number:
            assert window.stop - window.start == 8 and window.scored - window.start >= 8 - (stride or 0)


def test_windows_by_hand() -> None:
    assert [*windows(10, 4, 2)] == [Window(0, 0, 4), Window(2, 4, 6), Window(4, 6, 8), Window(6, 8, 10)]
    assert [*windows(7, 4, 2)] == [Window(0, 0, 4), Window(2, 4, 6), Window(3, 6, 7)]
    assert [*windows(7, 4)] == [Window(0, 0, 4), Window(4, 4, 7)]


@pytest.mark.parametrize("stride", [1, 3, 4])
def test_windows_over_documents_see_no_other_document(stride: int) -> None:
    sizes = [5, 1, 3, 11, 2]
    tokens = counted(sizes)
    sequences = Strided.of(Sequences(tokens, 4, "pack", PAD), stride)
    batch = sequences.batch(range(len(sequences)))
    assert batch.x0_BL[batch.loss_mask_BL].tolist() == list(range(sum(sizes)))
    assert sequences.learned_tokens == sum(sizes)
    lost = sequences.dropped_tokens, sequences.cut_documents, len(sequences.dropped_whole)
    assert lost == (0, 0, 0) and sequences.arrangement == f"windows that move by {stride}"
    for row in range(len(sequences)):
        inside = batch.document_BL[row][batch.document_BL[row] >= 0].unique().tolist()
        held = batch.x0_BL[row][batch.document_BL[row] >= 0].tolist()
        assert len(inside) == 1 and held == list(range(held[0], held[-1] + 1))
        assert batch.x0_BL[row][len(held) :].tolist() == [PAD] * (4 - len(held))


def test_prompts_are_given_wherever_a_window_begins() -> None:
    """The first window of the second document holds a prompt alone, and scores nothing."""
    tokens = prompted([3, 9, 2], [1, 5, 0])
    sequences = Strided.of(Sequences(tokens, 4, "pad", PAD), 2)
    batch = sequences.batch(range(len(sequences)))
    assert batch.x0_BL[batch.loss_mask_BL].tolist() == [1, 2, 8, 9, 10, 11, 12, 13]
    assert [row.tolist() for row in batch.x0_BL] == [
        [0, 1, 2, PAD],
        [5, 6, 7, 8],
        [7, 8, 9, 10],
        [8, 9, 10, 11],
        [12, 13, PAD, PAD],
    ]


def test_special_tokens_stand_around_each_window() -> None:
    around = Affixes((70,), (71,))
    sequences = Strided.of(Sequences(counted([7]), 5, "pad", PAD, around), 2)
    batch = sequences.batch(range(len(sequences)))
    assert batch.x0_BL.tolist() == [[70, 0, 1, 2, 71], [70, 2, 3, 4, 71], [70, 4, 5, 6, 71]]
    assert [row.tolist() for row in batch.loss_mask_BL] == [
        [False, True, True, True, False],
        *[[False, False, True, True, False]] * 2,
    ]


@pytest.mark.parametrize(("stride", "named"), [(0, "got 0"), (4, "from 1 to 3 tokens"), (-1, "got -1")])
def test_a_stride_that_leaves_tokens_out_is_refused(stride: int, named: str, refused: Refused) -> None:
    with refused(ConfigError, "the stride must be", named):
        Strided.of(Sequences(counted([7]), 5, "pad", PAD, Affixes((70,), (71,))), stride)


@pytest.mark.parametrize("length", [1, 4, 5, 6, 7, 19, 21])
def test_wrapped_rows_are_full_and_the_rest_is_counted(length: int) -> None:
    sizes = [5, 1, 3, 10, 2]
    sequences = Wrapped.of(Sequences(counted(sizes), length, "pad", PAD))
    batch = sequences.batch(range(len(sequences)))
    kept = 21 // length * length
    assert batch.loss_mask_BL.all() and batch.x0_BL.flatten().tolist() == list(range(kept))
    assert (sequences.dropped_tokens, sequences.learned_tokens) == (21 - kept, kept)
    ends = np.cumsum(sizes)
    assert sequences.dropped_whole.tolist() == [i for i, end in enumerate(ends) if end - sizes[i] >= kept]
    assert sequences.cut_documents == (kept not in ends) and sequences.arrangement == "wrap"
    assert torch.equal(batch.document_BL.flatten(), torch.from_numpy(np.repeat(np.arange(5), sizes)[:kept]))


def test_what_cannot_be_wrapped_is_refused(refused: Refused) -> None:
    with refused(DataError, "--wrap: the text has 7 tokens, and a row 8"):
        Wrapped.of(Sequences(counted([5, 2]), 8, "pack", PAD))
    with refused(ConfigError, "--wrap joins plain texts, and these have prompts"):
        Wrapped.of(Sequences(prompted([5, 2], [1, 0]), 2, "pad", PAD))


def test_what_begins_behind_the_last_full_row_is_dropped_whole() -> None:
    """Documents at 0, 5, 6, 9 and 19, in one row of 19, which ends where the last begins, or in three of 6."""
    for length, cut in ((19, 0), (6, 1)):
        sequences = Wrapped.of(Sequences(counted([5, 1, 3, 10, 2]), length, "pad", PAD))
        assert (sequences.dropped_whole.tolist(), sequences.cut_documents) == ([4], cut)
