"""Holes of unknown length: how likely each length is, before anything is written into them.

The masks of a hole are summed over by never being revealed, so the text behind n masks has the probability
p(behind | before, n), and Bayes' rule makes p(n | before, behind) of it and of a prior. The probability is found by the
chain rule, token by token away from the hole. It has no noise, so that lengths differ by what the model says alone.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.devices import copied
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.process import Process
from dlm.diffusion.rules import time_of_share
from dlm.lm.canvas import Canvas, stack
from dlm.lm.evidence import Inquiry
from dlm.lm.layout import Layout
from dlm.lm.rows import in_batches
from dlm.lm.search import ALIKE, Lengths, LengthSearch, nearest
from dlm.model.spans import LengthPrior
from dlm.template import Template, holes_of

KEPT = 1024
"""The lengths of the holes before one that are gone on with, the likeliest; more with a higher effort."""


Behind = Mapping[int, Sequence[Lengths]]
"""For each length of a hole, the lengths of the holes before it that leave it its room."""


@dataclass(frozen=True)
class Weigher:
    """Weighs the lengths of holes by one model.

    Attributes:
        layout: How texts become rows.
        denoiser: Predicts what may stand behind a hole.
        process: The forward process, of absorbing noise.
        pad_id: What fills up the shorter rows.
        batch_size: Rows read side by side.
    """

    layout: Layout
    denoiser: Denoiser
    process: Process
    pad_id: int
    batch_size: int

    def posterior(self, template: Template, search: LengthSearch) -> Mapping[Lengths, float]:
        """The posterior of the lengths of all holes of a text.

        Holes are taken from left to right, each weighed behind the likeliest lengths of those before it. Where `effort`
        is enough for all lengths of all holes, the posterior is that of enumeration. Else the text behind a hole is
        taken to say nothing of the lengths of the holes before it, which is nearly so of holes that lie apart.

        Args:
            template: Texts and holes.
            search: The prior and the effort.

        Returns:
            The log-probability of each, the likeliest first.

        Raises:
            DataError: The shortest holes, and what stands between them, do not fit the context.
        """
        self.layout.holes(template)
        prior = search.prior or self.layout.sidecar.lengths or LengthPrior()
        spare = self.layout.spare(template)
        beam: dict[Lengths, float] = {(): 0.0}
        for number, (place, part) in enumerate(holes_of(template).items()):
            beginnings = _likeliest(beam, max(KEPT, search.effort))
            fitting = [n for n in part.lengths if n - part.tokens <= spare]
            log_p = dict(zip(fitting, prior.log_p(fitting, whole_lines=_stands_alone(template, place)), strict=True))
            room = spare + _shortest(template[: place + 1])
            # Where all that are considered are too long behind the holes before, the shortest still fits.
            considered = _considered([*log_p.items()], search.effort)
            before = _behind(beginnings, considered, room) or _behind(beginnings, fitting[:1], room)
            evidence = self._behind_each(template, number, before, search.effort)
            longer = {(*each, n): beginnings[each] + log_p[n] for n in before for each in before[n]}
            beam = {lengths: nats + evidence[lengths] for lengths, nats in longer.items()}
            if max(beam.values()) == -math.inf:  # the model rules out what stands behind, whatever the length
                beam = longer
        total = torch.tensor([*beam.values()], dtype=torch.float64).logsumexp(0).item()
        return {each: nats - total for each, nats in _likeliest(beam, len(beam)).items()}

    def _behind_each(self, template: Template, number: int, before: Behind, effort: int) -> Mapping[Lengths, float]:
        """Log p(the text behind a hole | what stands before it), for each of its lengths behind others.

        Each length is asked of behind the likeliest beginnings, as often as `effort` allows; behind others it has what
        was found behind the nearest of these.

        Args:
            template: Texts and holes.
            number: Which hole it is.
            before: For each of its lengths, those of the holes before it, the likeliest first.
            effort: How many are asked of; no fewer than it has lengths.

        Returns:
            Nats, of the lengths of all holes so far.
        """
        each_of = effort // len(before)
        asked = [(*each, n) for n in before for each in before[n][:each_of]]
        found = self._evidence(template, number, asked) if len(asked) > 1 else [0.0]
        known = dict(zip(asked, found, strict=True))
        return {
            (*each, n): known[*near, n]
            for n, beginnings in before.items()
            for each, near in zip(beginnings, nearest(beginnings, beginnings[:each_of]), strict=True)
        }

    def _evidence(self, template: Template, number: int, every: Sequence[Lengths]) -> list[float]:
        """Log p(the text behind a hole | what stands before it, the holes being unknown), for each of some lengths."""
        asked = Inquiry(self.layout, template, number).questions(every)
        found = [0.0] * len(asked)
        parts = [(i, at) for i, each in enumerate(asked) for at in range(len(each.asked))]
        for batch in in_batches(parts, self.batch_size):
            log_p = self._log_p([asked[i].canvas(at) for i, at in batch], [asked[i].wanted(at) for i, at in batch])
            for (i, _), nats in zip(batch, log_p, strict=True):
                found[i] += nats
        return found

    def _log_p(self, canvases: Sequence[Canvas], wanted: Sequence[int | Tensor]) -> list[float]:
        """The log-probability of one token of each row: of an id, or of all that may stand there."""
        x_BL, wanted_BL = stack(canvases, self.pad_id)
        shares = [canvas.ids.count(self.process.mask_id) / len(canvas.ids) for canvas in canvases]
        share_B = torch.tensor(shares, dtype=torch.float64)
        time_B = time_of_share(self.process, share_B)
        with torch.inference_mode():
            log_p_NV = self.denoiser(NetworkInput(x_BL, wanted_BL, time_B))
        id_N1 = torch.tensor([each if isinstance(each, int) else 0 for each in wanted], device=log_p_NV.device)[:, None]
        found: list[float] = log_p_NV.gather(1, id_N1)[:, 0].tolist()
        for row, each in enumerate(wanted):
            if isinstance(each, Tensor):
                found[row] = log_p_NV[row, copied(each, log_p_NV.device)].logsumexp(0).item()
        return found


def _shortest(parts: Template) -> int:
    """The fewest tokens that the holes may have together."""
    return sum(hole.tokens for hole in holes_of(parts).values())


def _likeliest(log_p: Mapping[Lengths, float], most: int) -> dict[Lengths, float]:
    """So many lengths at most, the likeliest first."""
    return dict(sorted(log_p.items(), key=lambda item: -item[1])[:most])


def _behind(beginnings: Iterable[Lengths], lengths: Iterable[int], room: int) -> Behind:
    """For each length of a hole, what may stand before it in so much room; without those that never have it."""
    fits = {length: [each for each in beginnings if sum(each) + length <= room] for length in lengths}
    return {length: each for length, each in fits.items() if each}


def _considered(lengths: Sequence[tuple[int, float]], effort: int) -> Sequence[int]:
    """Which of a hole's lengths, of which the log-probabilities are known, are weighed.

    All, or the likeliest by themselves; where these are all alike, some at even steps.
    """
    ordered = lengths
    if len(lengths) > effort:
        by_log_p = sorted(lengths, key=lambda each: -each[1])
        alike = by_log_p[0][1] - by_log_p[-1][1] <= ALIKE
        even = [lengths[(2 * i + 1) * len(lengths) // (2 * effort)] for i in range(effort)]
        ordered = even if alike else by_log_p[:effort]
    return [length for length, _ in ordered]


def _stands_alone(template: Template, place: int) -> bool:
    """Whether a hole stands on lines of its own."""
    before, behind = template[:place][-1:], template[place + 1 :][:1]
    begins = all(isinstance(part, str) and part.endswith("\n") for part in before)
    return begins and all(isinstance(part, str) and part.startswith("\n") for part in behind)
