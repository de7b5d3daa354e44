"""Holes of unknown length: how likely each length is, before anything is written into them.

The masks of a hole are summed over by never being revealed, so the text behind n masks has the probability
p(behind | before, n), and Bayes' rule makes p(n | before, behind) of it and of a prior. The probability is found by the
chain rule, token by token away from the hole. It has no noise, so that lengths differ by what the model says alone.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.process import Process
from dlm.diffusion.rules import time_of_share
from dlm.lm.canvas import Canvas, encoded_parts, stack
from dlm.lm.layout import Layout
from dlm.lm.rows import in_batches
from dlm.lm.search import Lengths, LengthSearch
from dlm.model.spans import LengthPrior
from dlm.template import Hole, Template

ASKED, BEFORE = 8, 64
"""The tokens behind a hole that are asked how long it is, and the most before it that are read for that.

Twice as many of each cost four times as much, and were not seen to make the true length of words likelier, in
source text and in prose.
"""

KEPT, WEIGHED = 4, 8
"""Beginnings of several holes' lengths that are kept after each hole, and that are weighed at the next, each for one of
`effort`."""

REACH = 16
"""The tokens before and behind the holes that there should be room for, however long they are."""

ALIKE = 1e-9
"""The most nats that the log-probabilities of lengths differ by that are alike."""


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

        Holes are taken from left to right. Of several, the likeliest beginnings are kept, and the likeliest of what
        goes on from these are weighed (`KEPT` and `WEIGHED` times `effort`); where that is all there are, the posterior
        is that of enumeration.

        Args:
            template: Texts and holes.
            search: The prior and the effort.

        Returns:
            The log-probability of each that was kept, the likeliest first.

        Raises:
            DataError: The shortest holes, and what stands between them, do not fit the context.
        """
        self.layout.holes(template)
        parts = encoded_parts(template, self.layout.tokenizer, self.process.mask_id)
        prior = search.prior or self.layout.sidecar.lengths or LengthPrior()
        spare = self._spare(template, parts)
        beam: dict[Lengths, float] = {(): 0.0}
        for place, part in enumerate(template):
            if not isinstance(part, Hole):
                continue
            fitting = [n for n in part.lengths if n - part.tokens <= spare]
            log_p = prior.log_p(fitting, whole_lines=_stands_alone(template, place))
            considered = _considered([*zip(fitting, log_p, strict=True)], search.effort)
            longer = {
                (*before, length): nats + own
                for before, nats in beam.items()
                for length, own in considered
                if sum(before) + length - _shortest(template[: place + 1]) <= spare
            }
            longer = _likeliest(longer, WEIGHED * search.effort)
            if len(longer) > 1:
                evidence = self._evidence(template, parts, place, [*longer])
                if max(evidence) > -math.inf:  # else the model rules out what stands behind, whatever the length
                    longer = {each: nats + found for (each, nats), found in zip(longer.items(), evidence, strict=True)}
            beam = _likeliest(longer, KEPT * search.effort)
        total = torch.tensor([*beam.values()], dtype=torch.float64).logsumexp(0).item()
        return {each: nats - total for each, nats in beam.items()}

    def _spare(self, template: Template, parts: Sequence[Sequence[int]]) -> int:
        """How many tokens the holes of a text may have beyond their fewest.

        With so many there still is text before and behind them to read: `REACH` tokens of each, or as much as half of
        the room that the shortest leave.
        """
        holes = [place for place, part in enumerate(template) if isinstance(part, Hole)]
        inside = sum(map(len, parts[holes[0] : holes[-1] + 1]))
        read = min(REACH, sum(map(len, parts[: holes[0]]))) + min(REACH, sum(map(len, parts[holes[-1] + 1 :])))
        spare = self._room - inside
        return max(spare - read, spare // 2)

    @property
    def _room(self) -> int:
        return self.layout.sidecar.context - len(self.layout.sidecar.affixes)

    def _evidence(
        self, template: Template, parts: Sequence[Sequence[int]], place: int, every: Sequence[Lengths]
    ) -> list[float]:
        """Log p(the text behind a hole | what stands before it, the holes being unknown), for each of some lengths."""
        behind = parts[place + 1] if place + 1 < len(parts) and isinstance(template[place + 1], str) else []
        mask_id, first = self.process.mask_id, next(i for i, part in enumerate(template) if isinstance(part, Hole))
        middles: list[list[int]] = []
        for lengths in every:
            following = iter(lengths)
            pieces = (
                [mask_id] * next(following) if isinstance(template[i], Hole) else parts[i]
                for i in range(first, place + 1)
            )
            middles.append([id_ for piece in pieces for id_ in piece])
        room = self._room - max(map(len, middles))
        reach = max(0, min(ASKED, len(behind), room))
        before = [id_ for part in parts[:first] for id_ in part][-min(BEFORE, room - reach) :] if room > reach else []
        given = [*self.layout.sidecar.affixes.prefix, *before]
        rows = [[*given, *middle] for middle in middles]
        found = [0.0] * len(rows)
        for batch in in_batches([(row, i) for row in range(len(rows)) for i in range(reach)], self.batch_size):
            canvases = []
            for row, i in batch:
                ids = [*rows[row], *behind[:i], *[mask_id] * (reach - i)]
                canvases.append(Canvas(ids, [at == len(rows[row]) + i for at in range(len(ids))], []))
            for (row, _), nats in zip(batch, self._log_p(canvases, [behind[i] for _, i in batch]), strict=True):
                found[row] += nats
        return found

    def _log_p(self, canvases: Sequence[Canvas], targets: Sequence[int]) -> list[float]:
        """The log-probability of one token of each row."""
        x_BL, wanted_BL = stack(canvases, self.pad_id)
        shares = [canvas.ids.count(self.process.mask_id) / len(canvas.ids) for canvas in canvases]
        share_B = torch.tensor(shares, dtype=torch.float64)
        time_B = time_of_share(self.process, share_B)
        with torch.inference_mode():
            log_p_NV = self.denoiser(NetworkInput(x_BL, wanted_BL, time_B))
        found: list[float] = log_p_NV.gather(1, torch.tensor(targets, device=log_p_NV.device)[:, None])[:, 0].tolist()
        return found


def _shortest(parts: Template) -> int:
    """The fewest tokens that the holes may have together."""
    return sum(part.tokens for part in parts if isinstance(part, Hole))


def _likeliest(log_p: Mapping[Lengths, float], most: int) -> dict[Lengths, float]:
    """So many lengths at most, the likeliest first."""
    return dict(sorted(log_p.items(), key=lambda item: -item[1])[:most])


def _considered(lengths: Sequence[tuple[int, float]], effort: int) -> Sequence[tuple[int, float]]:
    """Which of a hole's lengths and their log-probabilities are weighed.

    All, or the likeliest by themselves; where these are all alike, some at even steps.
    """
    if len(lengths) <= effort:
        return lengths
    by_log_p = sorted(lengths, key=lambda each: -each[1])
    if by_log_p[0][1] - by_log_p[-1][1] > ALIKE:
        return by_log_p[:effort]
    return [lengths[(2 * i + 1) * len(lengths) // (2 * effort)] for i in range(effort)]


def _stands_alone(template: Template, place: int) -> bool:
    """Whether a hole stands on lines of its own."""
    before, behind = template[:place][-1:], template[place + 1 :][:1]
    begins = all(isinstance(part, str) and part.endswith("\n") for part in before)
    return begins and all(isinstance(part, str) and part.startswith("\n") for part in behind)


def exact(template: Template, lengths: Iterable[int]) -> Template:
    """A template whose holes have these lengths."""
    following = iter(lengths)
    return tuple(
        replace(part, tokens=next(following), most=None, among=None) if isinstance(part, Hole) else part
        for part in template
    )


def is_open(template: Template) -> bool:
    """Whether a hole of a template may have several lengths."""
    return any(isinstance(part, Hole) and part.most is not None for part in template)
