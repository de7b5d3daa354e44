"""The numbered truths: what the mathematics must give where the answer is known, checked on any machine.

`dlm/diffusion/README.md` states each truth by its number. Everything is seeded; what is drawn at random is compared
within `SIGMAS` standard errors.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from dlm.selftest import bounds, forward, readings, samplers, wrapped
from dlm.selftest.check import Check

TRUTHS: tuple[tuple[int, Callable[[], Iterator[Check]]], ...] = (
    (1, bounds.two_identical_symbols),
    (1, samplers.two_identical_symbols),
    (2, bounds.any_joint),
    (3, forward.matrices),
    (4, bounds.schedules),
    (5, samplers.any_order),
    (6, bounds.one_token),
    (7, bounds.constant_logits),
    (8, samplers.exact_denoiser),
    (9, readings.blocks),
    (10, readings.two_streams),
    (11, samplers.remasking),
    (12, wrapped.languages),
    (13, wrapped.guidance),
)
"""The number of each truth, and a function that checks it or a part of it."""


def truths() -> Iterator[Check]:
    """Checks every truth, in order; each claim begins with the number of its truth. The slowest takes seconds."""
    for number, checks in TRUTHS:
        for check in checks():
            yield replace(check, claim=f"({number}) {check.claim}")
