"""Rows rearranged for fill-in-the-middle: prefix, suffix, middle."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from dlm.data.batches import Batch
from dlm.model.sentinels import BESIDE, Sentinels


@dataclass(frozen=True)
class FillInTheMiddle:
    """How the texts of a row are rearranged, at the level of the context (2207.14255, sections 3 and 4.4).

    A row is cut out of the corpus first and rearranged then, so that its length never cuts a middle. Each text in it
    is rearranged by itself, with probability `rate`; see `Sentinels`. Its two cuts are drawn uniformly from all pairs
    of places between its tokens, the same place twice among them. A rearranged text has up to four tokens more, and
    the row drops as many at its own end.

    A text that the row cuts off has no end in it. It is rearranged up to a place that is drawn uniformly, and goes on
    behind that as it was: else each of its middles would end where the row does, and nothing else would tell the end.

    Attributes:
        rate: The share of texts that are rearranged, from 0 to 1.
        sentinels: The sentinels' ids.
        end_id: The end of text, which ends a text and a middle.
        pad_id: The padding.
    """

    rate: float
    sentinels: Sentinels
    end_id: int
    pad_id: int

    def rearranged(self, batch: Batch, streams: Sequence[torch.Generator]) -> Batch:
        """Rearranges rows.

        Args:
            batch: Rows, padded on the right, without special tokens around them.
            streams: One stream of random numbers a row; what becomes of a row depends on its own alone.

        Returns:
            Rows of the same length. Sentinels are given, and not learned.
        """
        x0_BL = torch.full_like(batch.x0_BL, self.pad_id)
        document_BL = torch.full_like(batch.document_BL, -1)
        for row, stream in enumerate(streams):
            used = int((batch.document_BL[row] >= 0).sum())
            ids, documents = batch.x0_BL[row, :used].tolist(), batch.document_BL[row, :used].tolist()
            made = self._row(_texts(ids, documents), x0_BL.shape[1], stream)
            x0_BL[row, : len(made)] = torch.tensor([id_ for id_, _ in made])
            document_BL[row, : len(made)] = torch.tensor([document for _, document in made])
        given_BL = torch.isin(x0_BL, torch.tensor(self.sentinels.all))
        return Batch(x0_BL, (document_BL >= 0) & ~given_BL, document_BL)

    def _row(self, texts: Iterator[tuple[list[int], int]], room: int, stream: torch.Generator) -> list[tuple[int, int]]:
        """The ids of a row with their documents, from its texts with theirs."""
        made: list[tuple[int, int]] = []
        for ids, document in texts:
            # Every text draws as often, so that what is drawn for one does not depend on the others.
            u, share, *cuts = torch.rand(4, generator=stream, dtype=torch.float64).tolist()
            left = room - len(made)
            if u < self.rate and left > BESIDE and len(ids) > 1:
                whole = ids[-1] == self.end_id and len(ids) - 1 + BESIDE <= left
                own = ids[:-1] if ids[-1] == self.end_id else ids
                size = len(own) if whole else 1 + int(share * min(len(own), left - BESIDE))
                ids = [*self.rearrange(own[:size], *cuts), *ids[size + whole :]]
            made += [(id_, document) for id_ in ids[:left]]
        return made

    def rearrange(self, ids: Sequence[int], one: float, other: float) -> list[int]:
        """Rearranges one text.

        Args:
            ids: Its ids, without its end.
            one: Where a cut is, in [0, 1), and
            other: where the other one is.

        Returns:
            As many ids and `BESIDE` more.
        """
        first, second = _cuts(len(ids), one, other)
        return [*self.sentinels.before_middle(ids[:first], ids[second:]), *ids[first:second], self.end_id]

    def restore(self, ids: Sequence[int]) -> list[int]:
        """Undoes `rearrange`.

        Args:
            ids: What it made of a text.

        Returns:
            The text.
        """
        suffix, middle = (ids.index(id_) for id_ in (self.sentinels.suffix, self.sentinels.middle))
        return [*ids[1:suffix], *ids[middle + 1 : -1], *ids[suffix + 1 : middle]]  # of `spm` the first part is empty


def _texts(ids: Sequence[int], documents: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """The texts of a row, each with its document."""
    start = 0
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or documents[stop] != documents[start]:
            yield list(ids[start:stop]), documents[start]
            start = stop


def _cuts(length: int, one: float, other: float) -> tuple[int, int]:
    """Two places between the tokens of a text, in order; each pair is as likely as any other.

    The pairs of `length + 1` places, a place with itself among them, are those of different ones of `length + 2`.
    """
    places = length + 2
    first = min(int(one * places), places - 1)
    second = min(int(other * (places - 1)), places - 2)
    second += second >= first
    low, high = sorted((first, second))
    return low, high - 1
