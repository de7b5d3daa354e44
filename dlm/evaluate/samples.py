"""Statistics of sampled texts: how varied they are, and how likely a judge finds them."""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import Likelihood
from dlm.diffusion.network import NetworkInput
from dlm.diffusion.streams import Causal
from dlm.lm import DiffusionLM
from dlm.lm.canvas import Canvas, stack
from dlm.model.loading import usable_positions
from dlm.model.text import decode, encode
from dlm.model.tokenizer import before_id, special_ids
from dlm.plain import counted

LOGITS = 2**26
"""The most logits that a plain causal judge computes at once: 256 MiB in float32."""

NGRAM = 4
"""Tokens of the runs that are looked for again, as is usual for samples."""

Rows = Sequence[Sequence[int]]


def unigram_entropy(ids: Iterable[int]) -> float:
    """Entropy, in nats, of how often each token occurs: low for a text that repeats itself.

    Args:
        ids: All tokens of one text or of several.

    Returns:
        The entropy in nats; 0 for no tokens.
    """
    counts = Counter(ids)
    total = counts.total()
    return math.fsum(-n / total * math.log(n / total) for n in counts.values()) + 0.0


def repeated_share(texts: Rows, n: int = NGRAM) -> float:
    """The share of n-grams that came before in their own text: near 1 for a text that repeats itself.

    Args:
        texts: The ids of each text.
        n: Tokens of an n-gram.

    Returns:
        The share, from 0 to 1; nan where no text has n tokens.
    """
    again, ngrams_of = repetitions(texts, n)
    return sum(again) / sum(ngrams_of) if sum(ngrams_of) else math.nan


def repetitions(texts: Rows, n: int = NGRAM) -> tuple[list[int], list[int]]:
    """Of each text how many n-grams came before in it, and how many it has; see `repeated_share`."""
    found = [list(ngrams(ids, n)) for ids in texts]
    return [len(each) - len(set(each)) for each in found], [len(each) for each in found]


def distinct_share(texts: Rows, n: int = NGRAM) -> float:
    """Different n-grams of all texts together over all n-grams: low where texts repeat each other (1510.03055).

    Args:
        texts: The ids of each text.
        n: Tokens of an n-gram.

    Returns:
        The share, above 0 and at most 1; nan where no text has n tokens.
    """
    found = [ngram for ids in texts for ngram in ngrams(ids, n)]
    return len(set(found)) / len(found) if found else math.nan


def ngrams(ids: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    """All runs of n tokens of a text, from the first to the last."""
    return (tuple(ids[start : start + n]) for start in range(len(ids) - n + 1))


def words(texts: Sequence[str]) -> list[list[int]]:
    """Words and signs as tokens, where there is no tokenizer: runs of letters and digits, and each sign by itself.

    Args:
        texts: The texts.

    Returns:
        A row of ids a text, the same ids for the same words in all texts.
    """
    numbers: dict[str, int] = {}
    return [[numbers.setdefault(word, len(numbers)) for word in re.findall(r"\w+|[^\w\s]", text)] for text in texts]


def ratio_with_error(sums: Sequence[float], counts: Sequence[float]) -> tuple[float, float]:
    """A ratio of totals, and its standard error where each pair of a sum and a count is drawn on its own.

    The error is that of the ratio estimator, sqrt(n/(n-1) sum_i (s_i - r c_i)^2) / sum_i c_i. Where all counts are the
    same it is the standard error of the mean of s_i / c_i.

    Args:
        sums: s_i, such as the nats of each text.
        counts: c_i, such as its tokens.

    Returns:
        r = sum s / sum c and its error; nan for both where the counts add up to 0, and for the error of one pair alone.
    """
    total, number = math.fsum(counts), len(counts)
    if total == 0.0:
        return math.nan, math.nan
    ratio = math.fsum(sums) / total
    if number < 2 or not math.isfinite(ratio):
        return ratio, math.nan
    residuals = math.fsum((s - ratio * c) ** 2 for s, c in zip(sums, counts, strict=True))
    return ratio, math.sqrt(number / (number - 1) * residuals) / total


class Judge(Protocol):
    """What says how likely a text is.

    Attributes:
        exact: Whether its nats are exactly -log p, or an upper bound of it.
        reading: How it reads a text: `causal`, or a reading of a diffusion model.
        tokenizer: Its tokenizer.
    """

    exact: bool
    reading: str
    tokenizer: PreTrainedTokenizerBase

    @property
    def context(self) -> int | None:
        """The longest row that it scores; None for any length."""
        ...

    @property
    def end_id(self) -> int:
        """The id that stands between two documents."""
        ...

    def nats(self, rows: Rows) -> list[float]:
        """-log p of each row, or a bound of it, in nats.

        Args:
            rows: Ids of the judge's tokenizer, at least one a row and no more than the context.

        Returns:
            Nats a row.
        """
        ...

    def features(self, rows: Rows) -> Tensor:
        """A hidden state of the last layer a row, such as MAUVE compares.

        Args:
            rows: As for `nats`.

        Returns:
            That of the last token where every token sees those before it alone, else the mean of all; shape (N, D).
        """
        ...


class ReadingJudge:
    """A model of `dlm` as a judge, by its first reading: causal and exact where it has that, else by its bound."""

    def __init__(self, lm: DiffusionLM, *, draws: int = 16, batch_size: int = 16, seed: int = 0) -> None:
        """Takes the model's first reading.

        Args:
            lm: The model.
            draws: Masked copies of each text that a bound is estimated from.
            batch_size: Rows scored side by side.
            seed: The masks of a bound follow from it, and are the same for texts of the same number.
        """
        self._lm, self._batch_size, self._seed = lm, batch_size, seed
        self.reading = lm.formulation.readings.all[0]
        self._likelihood: Likelihood = lm.estimator(self.reading, draws)
        self.exact = self._likelihood.method(lm.process) == "exact"
        self.tokenizer = lm.tokenizer

    @property
    def context(self) -> int | None:
        """The context of the model, less special tokens around a row; see `Judge`."""
        return self._lm.layout.room(None)

    @property
    def end_id(self) -> int:
        """The end of text; see `Judge`."""
        return self._lm.end_ids[0]

    @torch.inference_mode()
    def nats(self, rows: Rows) -> list[float]:
        """The nats of rows, between the special tokens that the model expects; see `Judge`."""
        lm, found = self._lm, list[float]()
        lm.model.eval()
        for start in range(0, len(rows), self._batch_size):
            numbers = range(start, min(start + self._batch_size, len(rows)))
            canvases = [Canvas.after([], rows[number], lm.sidecar.affixes) for number in numbers]
            x0_BL, scored_BL = (x.to(lm.arithmetic_device) for x in stack(canvases, special_ids(lm.tokenizer).pad))
            streams = [generator(self._seed, "judge", number) for number in numbers]
            nats_RBL = self._likelihood(lm.denoisers.scoring, lm.process, x0_BL, streams, scored_BL)
            found += nats_RBL.mean(0).sum(1).tolist()
        return found

    @torch.inference_mode()
    def features(self, rows: Rows) -> Tensor:
        """States of clean rows, at the time 0; see `Judge`."""
        lm, causal = self._lm, self.reading == "causal"
        lm.model.eval()
        found: list[Tensor] = []
        for row in rows:
            canvas = Canvas.after([], row, lm.sidecar.affixes)
            x0_BL, wanted_BL = stack([canvas], special_ids(lm.tokenizer).pad)
            inputs = NetworkInput(x0_BL, wanted_BL, torch.zeros(1), attention=Causal() if causal else None)
            state_ND = lm.hidden(inputs)
            found.append(state_ND[-1] if causal else state_ND.mean(0))
        return torch.stack(found)


class CausalJudge:
    """An autoregressive model of transformers as a judge; a row stands behind a begin of text, or the end of one."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Puts a model and its tokenizer together.

        Args:
            model: A causal-LM model, in evaluation mode.
            tokenizer: Its tokenizer, with an end of text that the model has a row for.
        """
        self._model = model
        self.exact, self.reading = True, "causal"
        self.tokenizer = tokenizer

    @property
    def context(self) -> int | None:
        """The positions of the model; see `Judge`."""
        return usable_positions(self._model)

    @property
    def end_id(self) -> int:
        """The end of text; see `Judge`."""
        return special_ids(self.tokenizer).end

    @torch.inference_mode()
    def nats(self, rows: Rows) -> list[float]:
        """The cross-entropy of next tokens; see `Judge`."""
        found: list[float] = []
        longest = max(map(len, rows), default=1)
        size = max(LOGITS // (longest * int(self._model.config.vocab_size)), 1)
        for start in range(0, len(rows), size):
            found += self._batch(rows[start : start + size])
        return found

    @torch.inference_mode()
    def features(self, rows: Rows) -> Tensor:
        """The state of the last token; see `Judge`."""
        first, found = before_id(self.tokenizer), list[Tensor]()
        for row in rows:
            ids_BL = torch.tensor([[first, *row][-(self.context or len(row) + 1) :]], device=self._model.device)
            found.append(self._model.base_model(input_ids=ids_BL, use_cache=False).last_hidden_state[0, -1])
        return torch.stack(found)

    def _batch(self, rows: Rows) -> list[float]:
        """The nats of rows that are read side by side; what fills up the shorter ones is behind them and not seen."""
        first, width = before_id(self.tokenizer), max(map(len, rows))
        ids_BL = torch.tensor([[first, *row, *[first] * (width - len(row))] for row in rows], device=self._model.device)
        length_B = torch.tensor([len(row) for row in rows], device=self._model.device)
        logits_BLV: Tensor = self._model(input_ids=ids_BL[:, :-1], use_cache=False).logits
        nats_BL = torch.nn.functional.cross_entropy(logits_BLV.float().mT, ids_BL[:, 1:], reduction="none").double()
        return (
            nats_BL.masked_fill(torch.arange(width, device=length_B.device) >= length_B[:, None], 0.0).sum(1).tolist()
        )


@dataclass(frozen=True)
class Judged:
    """What a judge makes of some texts.

    Attributes:
        nats: -log p of each text, or a bound of it.
        tokens: Tokens of the judge in each text.
        bytes: UTF-8 bytes of each text, without ends of text.
        encoded_anew: Whether the tokens are not those that were written, as the judge's tokenizer is another.
        unknown: Tokens that stand for characters that the judge does not know; its nats are then not of this very text.
        cut: Texts longer than the judge's context, which are judged in pieces that do not see each other.
    """

    nats: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]
    encoded_anew: bool
    unknown: int
    cut: int

    @cached_property
    def per_token(self) -> tuple[float, float]:
        """Nats a token of the judge, and their standard error by text."""
        return ratio_with_error(self.nats, self.tokens)

    @cached_property
    def per_byte(self) -> tuple[float, float]:
        """Nats a byte, and their standard error by text."""
        return ratio_with_error(self.nats, self.bytes)


def judge_texts(
    judge: Judge, texts: Rows, tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int], *, anew: bool | None = None
) -> Judged:
    """Asks a judge how likely texts are.

    Args:
        judge: The judge.
        texts: The ids of each text.
        tokenizer: The tokenizer of these ids.
        end_ids: The ids among them that end a document; the judge sees its own end of text in their place.
        anew: Whether texts are decoded and encoded anew by the judge's tokenizer; by default where that is another.

    Returns:
        The nats of each text, and what they are counted over. A text of no tokens has no nats.
    """
    anew = not same_tokens(tokenizer, judge.tokenizer) if anew is None else anew
    documents = [_documents(ids, end_ids) for ids in texts]
    written = [[decode(tokenizer, each) for each in text] for text in documents]
    if anew:
        documents = [encode(judge.tokenizer, each) for each in written]
    rows = [_joined(text, judge.end_id) for text in documents]
    context = judge.context or max(1, *map(len, rows))
    pieces = [(text, row[at : at + context]) for text, row in enumerate(rows) for at in range(0, len(row), context)]
    nats = [0.0] * len(rows)
    for (text, _), value in zip(pieces, judge.nats([piece for _, piece in pieces]), strict=True):
        nats[text] += value
    unknown = judge.tokenizer.unk_token_id
    return Judged(
        nats=tuple(nats),
        tokens=tuple(map(len, rows)),
        bytes=tuple(sum(len(each.encode("utf-8", "replace")) for each in text) for text in written),
        encoded_anew=anew,
        unknown=0 if unknown in (None, judge.end_id) else sum(row.count(unknown) for row in rows),
        cut=sum(len(row) > context for row in rows),
    )


def judging_notes(unknown: int, cut: int) -> Iterator[str]:
    """What is to be known of nats that a judge gives.

    Args:
        unknown: See `Judged`.
        cut: See `Judged`.

    Yields:
        A line each; none where the judge read every text as it is.
    """
    if unknown:
        yield (
            f"{counted(unknown, 'token', 'stand')} for characters that the judge does not know: its nats are not of "
            "these very texts"
        )
    if cut:
        yield (
            f"{counted(cut, 'text', 'are')} longer than the judge's context, and read in pieces that do not see each "
            "other"
        )


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers make the same ids of every text, whatever special tokens they have besides.

    Args:
        one: A fast tokenizer.
        other: Another.

    Returns:
        Whether they do.
    """
    return one is other or _steps(one) == _steps(other)


def _steps(tokenizer: PreTrainedTokenizerBase) -> list[object]:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    added = sorted((token["id"], token["content"]) for token in state["added_tokens"] if not token["special"])
    return [*(state[step] for step in ("normalizer", "pre_tokenizer", "model", "decoder")), added]


def _documents(ids: Sequence[int], end_ids: Collection[int]) -> list[list[int]]:
    """The documents of a text, one more than it has ends."""
    found: list[list[int]] = [[]]
    for is_end, run in groupby(ids, key=lambda id_: id_ in end_ids):
        if is_end:
            found += [[] for _ in run]
        else:
            found[-1] += run
    return found


def _joined(documents: Rows, end_id: int) -> list[int]:
    """Documents as one row, with the end of text between them."""
    return [id_ for number, each in enumerate(documents) for id_ in ([end_id, *each] if number else each)]
