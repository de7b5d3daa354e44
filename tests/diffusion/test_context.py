"""What stays clean in training: an end of a sequence or both, in the share of sequences that was asked for."""

import torch

from dlm.diffusion.context import editable_part
from dlm.diffusion.draws import generator

ROWS, LENGTH = 4000, 10


def parts(share: float) -> torch.Tensor:
    editable_BL = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    editable_BL[:, LENGTH - 2 :] = False  # padding
    kept_BL = editable_part(editable_BL, share, [generator("context", row) for row in range(ROWS)])
    assert not (kept_BL & ~editable_BL).any()
    return kept_BL[:, : LENGTH - 2]


def test_without_a_share_everything_may_be_corrupted() -> None:
    assert parts(0.0).all()


def test_what_may_be_corrupted_is_one_stretch_and_never_empty() -> None:
    inside_BL = parts(1.0).long()
    assert (inside_BL.sum(1) >= 1).all()
    edges_B = torch.nn.functional.pad(inside_BL, (1, 1)).diff(dim=1).abs().sum(1)
    assert (edges_B == 2).all()


def test_the_shares_of_prefixes_and_suffixes_are_as_drawn() -> None:
    """With n = 8 a lone cut leaves an end clean with 7/8; two cuts miss one end with 1 - (7/8)^2."""
    n = LENGTH - 2
    inside_BL = parts(0.5)
    prefix, suffix = ~inside_BL[:, 0], ~inside_BL[:, -1]
    at_one_end = (n - 1) / n
    both_cuts = at_one_end**2
    expected = 0.5 * (at_one_end + both_cuts) / 3
    tolerance = 4 * (expected * (1 - expected) / ROWS) ** 0.5
    assert abs(prefix.double().mean().item() - expected) < tolerance
    assert abs(suffix.double().mean().item() - expected) < tolerance
