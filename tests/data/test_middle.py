"""Rows rearranged for fill-in-the-middle: nothing is lost but the row's end, and every pair of cuts is as likely."""

from collections import Counter
from itertools import product

import pytest
import torch
from torch import Tensor

from dlm.data.batches import Batch
from dlm.data.middle import FillInTheMiddle, _cuts
from dlm.diffusion.draws import generator
from dlm.model.sentinels import BESIDE, Sentinels

END, PAD, FIRST_SENTINEL = 90, 91, 92
ORDERS = ("psm", "spm")


def fim(rate: float = 1.0, order: str = "psm") -> FillInTheMiddle:
    return FillInTheMiddle(rate, Sentinels(92, 93, 94, order), END, PAD)  # type: ignore[arg-type]


def batch(*rows: str | list[int], width: int = 24) -> Batch:
    """Rows of letters, each behind its row's padding; `.` ends a document."""
    x0_BL = torch.full((len(rows), width), PAD)
    document_BL = torch.full_like(x0_BL, -1)
    for place, row in enumerate(rows):
        ids = [END if letter == "." else ord(letter) - 97 for letter in row] if isinstance(row, str) else row
        ends = torch.tensor([id_ == END for id_ in ids]).long()
        x0_BL[place, : len(ids)] = torch.tensor(ids)
        document_BL[place, : len(ids)] = ends.cumsum(0) - ends
    return Batch(x0_BL, document_BL >= 0, document_BL)


def streams(count: int, key: str = "rows") -> list[torch.Generator]:
    return [generator(key, number) for number in range(count)]


def texts_of(ids: Tensor, made: FillInTheMiddle) -> list[int]:
    """A row with every rearranged text in it put back, and without its padding."""
    row = [id_ for id_ in ids.tolist() if id_ != PAD]
    found: list[int] = []
    while row:
        stop = row.index(END) + 1 if END in row else len(row)
        part, row = row[:stop], row[stop:]
        found += [*made.restore(part), END] if part[0] == made.sentinels.prefix else part
    return found


@pytest.mark.parametrize("order", ORDERS)
def test_rearranging_is_undone(order: str) -> None:
    made = fim(order=order)
    for length, one, other in product((1, 2, 9), (0.0, 0.3, 0.99), (0.0, 0.5, 0.99)):
        ids = list(range(length))
        found = made.rearrange(ids, one, other)
        assert len(found) == length + BESIDE and found[-1] == END and found[0] == made.sentinels.prefix
        assert made.restore(found) == ids


def test_the_orders_are_those_of_the_paper() -> None:
    first, second = _cuts(5, 0.3, 0.7)
    p, s, m = [0, 1, 2, 3, 4][:first], [0, 1, 2, 3, 4][second:], [0, 1, 2, 3, 4][first:second]
    assert p and s and m
    assert fim(order="psm").rearrange(range(5), 0.3, 0.7) == [92, *p, 93, *s, 94, *m, END]
    assert fim(order="spm").rearrange(range(5), 0.3, 0.7) == [92, 93, *s, 94, *p, *m, END]


def test_every_pair_of_cuts_is_as_likely_as_any_other() -> None:
    """Exactly: each pair is met by an equal area of the unit square."""
    length = 4
    grid = [(i + 0.5) / ((length + 2) * (length + 1)) for i in range((length + 2) * (length + 1))]
    counts = Counter(_cuts(length, one, other) for one, other in product(grid, grid))
    assert set(counts) == {(a, b) for a in range(length + 1) for b in range(a, length + 1)}
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize("order", ORDERS)
def test_a_text_that_fits_with_its_end_is_rearranged_whole(order: str) -> None:
    made = fim(order=order)
    found = made.rearranged(batch("abcdef.", "gh.ijk."), streams(2))
    assert (found.x0_BL == made.sentinels.middle).sum(1).tolist() == [1, 2]
    assert texts_of(found.x0_BL[0], made) == texts_of(batch("abcdef.").x0_BL[0], made)
    assert texts_of(found.x0_BL[1], made) == texts_of(batch("gh.ijk.").x0_BL[0], made)
    assert found.document_BL[1].tolist() == [0] * 6 + [1] * 7 + [-1] * 11


@pytest.mark.parametrize("order", ORDERS)
def test_a_full_row_loses_no_more_than_four_tokens_at_its_end_and_keeps_its_length(order: str) -> None:
    made, letters = fim(order=order), "abcdefghijklmnopqrstuvwx"
    found = made.rearranged(batch(*[letters] * 200), streams(200))
    assert found.x0_BL.shape == (200, 24) and (found.x0_BL != PAD).all()
    lasts: Counter[int] = Counter()
    for row in found.x0_BL:
        ids = texts_of(row, made)
        lasts[row.tolist().index(END)] += 1
        kept = [id_ for id_ in ids if id_ != END]
        assert kept == list(range(20))  # the text goes on in order behind what was rearranged of it
    assert set(lasts) == set(range(BESIDE, 24))  # a middle may end anywhere, and not just where the row does


def test_sentinels_are_given_and_everything_else_is_learned() -> None:
    made = fim()
    found = made.rearranged(batch("abc.defgh.ijklm", "ab."), streams(2))
    sentinel_BL = torch.isin(found.x0_BL, torch.tensor(made.sentinels.all))
    assert sentinel_BL.any() and torch.equal(found.loss_mask_BL, (found.x0_BL != PAD) & ~sentinel_BL)


def test_a_rate_of_zero_changes_nothing_and_a_share_of_texts_is_the_rate() -> None:
    given = batch(*["abcdefgh."] * 1000)
    same = fim(0.0).rearranged(given, streams(1000))
    assert all(torch.equal(one, other) for one, other in zip(vars(same).values(), vars(given).values(), strict=True))
    share = (fim(0.3).rearranged(given, streams(1000)).x0_BL == 92).any(1).double().mean().item()
    assert share == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 1000) ** 0.5)


def test_a_row_depends_on_its_own_stream_alone() -> None:
    rows = ["abcdefgh.ijkl", "mnopqrs.", "tuvwx.abc"]
    together = fim(0.5).rearranged(batch(*rows), streams(3))
    for number, row in enumerate(rows):
        alone = fim(0.5).rearranged(batch(row), [generator("rows", number)])
        assert torch.equal(alone.x0_BL[0], together.x0_BL[number])
