"""The quality of texts: their figures beside those of as much real text, and how they were found."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from dlm.data.lines import lines_of
from dlm.diffusion.draws import generator
from dlm.errors import ConfigError, DataError
from dlm.evaluate.bootstrap import Ratio
from dlm.evaluate.figures import Parser, Quality, Written, measure_quality
from dlm.evaluate.mauve import FEWEST, check_installed, mauve_score
from dlm.evaluate.memorised import LEAST, KnownText
from dlm.evaluate.samples import Judge, Rows, judge_texts, judging_notes, words
from dlm.lm import DiffusionLM
from dlm.model.text import decode, encode
from dlm.plain import counted

FEWEST_FOR_MAUVE = 1000
"""Texts from which on MAUVE is not cautioned about; its authors advise some thousands."""


@dataclass(frozen=True)
class Texts:
    """Texts that are measured.

    Attributes:
        texts: The texts, without ends of text.
        ids: Of texts that a model has just written, its own tokens, with their ends of text; None of other texts.
        tokenizer: The tokenizer of these.
        end_ids: The ids among them that end a text.
    """

    texts: Sequence[str]
    ids: Rows | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    end_ids: Sequence[int] = ()


@dataclass(frozen=True)
class QualityReport:
    """What is found of some texts.

    Attributes:
        texts: Their figures, MAUVE among them where it could be computed.
        reference: The figures of as much real text; None without any.
        judge_reading: How the judge reads a text; None without a judge.
        judge_exact: Whether its nats are exact, or upper bounds; None without a judge.
        token: What a token is: `judge`, one of the judge's tokenizer, or `word`, a word or a sign.
        least: The fewest characters of a substring that counts as memorised; None where none is looked for.
        seed: What masks, clusters and intervals follow from.
        notes: What is to be known of the figures, a line each.
    """

    texts: Quality
    reference: Quality | None
    judge_reading: str | None
    judge_exact: bool | None
    token: str
    least: int | None
    seed: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for strict JSON."""
        return {
            **self.texts.to_dict(),
            "reference": None if self.reference is None else self.reference.to_dict(),
            "judge_reading": self.judge_reading,
            "judge_exact": self.judge_exact,
            "token": self.token,
            "least": self.least,
            "seed": self.seed,
        }


def evaluate_quality(
    own: Texts,
    *,
    judge: Judge | None = None,
    reference: Sequence[str] = (),
    features: Judge | None = None,
    parser: Parser | None = None,
    known: KnownText | None = None,
    least: int = LEAST,
    seed: int = 0,
) -> QualityReport:
    """Measures texts, and as much real text beside them.

    Args:
        own: At least one text.
        judge: Says how likely they are.
        reference: Real documents, of which as many parts are taken as there are texts, and as long; none for none.
        features: The model whose hidden states MAUVE compares; by default the judge.
        parser: Says whether a text parses.
        known: What texts may have memorised.
        least: The fewest characters of a substring that counts as memorised.
        seed: Decides the parts, the clusters of MAUVE and the bootstrap.

    Returns:
        The report. Where there is no MAUVE, a note says why.
    """

    def measured(written: Written) -> Quality:
        return measure_quality(written, parser=parser, known=known, least=least, seed=seed)

    written = _read(own, judge)
    texts, notes = measured(written), [*_notes(written)]
    real: Written | None = None
    if reference:
        others = pieces_like(own.texts, reference, seed)
        real = _read(Texts(others), judge)
        notes += [f"of the reference: {note}" for note in _notes(real)]
        if len(others) < len(own.texts):
            notes.append(
                f"the reference has parts for {counted(len(others), 'text')}, and there are {len(own.texts)}: figures "
                "of all texts together, such as distinct n-grams, are not comparable"
            )
        mauve, why = _mauve(features or judge, own.texts, others, seed)
        if mauve:
            texts = replace(texts, figures={**texts.figures, "mauve": mauve})
        notes += [why] * bool(why)
    return QualityReport(
        texts,
        measured(real) if real else None,
        judge.reading if judge else None,
        judge.exact if judge else None,
        "judge" if judge else "word",
        least if known else None,
        seed,
        tuple(notes),
    )


def texts_of_model(lm: DiffusionLM, *, num: int, length: int | None, batch_size: int, seed: int) -> Texts:
    """Texts that a model writes by its default sampler.

    Args:
        lm: The model.
        num: How many.
        length: Tokens a text; None for what the context has room for.
        batch_size: Texts written side by side.
        seed: The texts follow from it.

    Returns:
        The texts, without ends of text, and with the tokens that were written.

    Raises:
        ConfigError: The length does not fit the context.
    """
    ids = [each.ids for each in lm.generate(num=num, length=length, batch_size=batch_size, seed=seed)]
    texts = [decode(lm.tokenizer, [id_ for id_ in row if id_ not in lm.end_ids]) for row in ids]
    return Texts(texts, ids, lm.tokenizer, lm.end_ids)


def samples_in(path: Path) -> list[str] | None:
    """What was written, of each sample of a file by `dlm sample`.

    Args:
        path: The file.

    Returns:
        The continuations, without their prompts; None of any other file.

    Raises:
        DataError: Its first line is, or begins as, one of `dlm sample`, and it or another is not.
    """
    found: list[str] = []
    try:
        lines = [line for line in lines_of(str(path)) if line.strip()]
    except (OSError, DataError):
        return None
    for number, line in enumerate(lines, start=1):
        try:
            samples = json.loads(line)["samples"]
            found += [sample["continuation"] for sample in samples]
            if not all(isinstance(text, str) for text in found[-len(samples) :]):
                raise TypeError("a continuation is no text")
        except (ValueError, KeyError, TypeError) as error:
            if number == 1 and not line.lstrip().startswith('{"samples"'):
                return None
            raise DataError(
                f"{path}: line {number} is no line of dlm sample: that is an object with samples, which have a text as "
                "their continuation"
            ) from error
    return found if lines else None


def pieces_like(texts: Sequence[str], documents: Sequence[str], seed: int) -> list[str]:
    """Parts of documents that are as many and as long as texts, to compare those with.

    Args:
        texts: The texts.
        documents: What is compared with.
        seed: Decides which parts are taken, where there are more of them than texts.

    Returns:
        Parts of the texts' median number of characters; a document that is shorter is one part, and what is left at the
        end of a longer one is none. No two of them overlap. They are fewer than the texts where there are no more.
    """
    size = max(int(np.median([*map(len, texts)])), 1)
    places = [
        (number, start)
        for number, document in enumerate(documents)
        for start in (range(0, len(document) - size + 1, size) if len(document) >= size else [0])
        if document
    ]
    order = torch.randperm(len(places), generator=generator(seed, "reference"))[: len(texts)].sort().values.tolist()
    return [documents[number][start : start + size] for number, start in (places[place] for place in order)]


def features_of(judge: Judge, rows: Rows) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """What MAUVE compares: a hidden state a text, of its first part where it is longer than the judge's context."""
    kept = [row[: judge.context] for row in rows if row]
    return judge.features(kept).float().cpu().numpy()


def _read(own: Texts, judge: Judge | None) -> Written:
    """Texts with their tokens: the judge's, or without one words and signs."""
    if judge is None:
        return Written(own.texts, words(own.texts))
    ids = encode(judge.tokenizer, own.texts)
    written, tokenizer = own.ids or ids, own.tokenizer or judge.tokenizer
    return Written(own.texts, ids, judge_texts(judge, written, tokenizer, own.end_ids))


def _mauve(judge: Judge | None, texts: Sequence[str], others: Sequence[str], seed: int) -> tuple[Ratio | None, str]:
    """MAUVE, or why there is none, or a caution about it."""
    if judge is None:
        return None, "no MAUVE: it compares states of a model, so name one by --features, or a --judge"
    try:
        check_installed()
    except ConfigError as error:
        return None, f"no MAUVE: {error}"
    one, other = (features_of(judge, encode(judge.tokenizer, [*each])) for each in (texts, others))
    if (fewest := min(len(one), len(other))) < FEWEST:
        return None, f"no MAUVE: it needs at least {FEWEST} texts on either side, got {fewest}"
    score = mauve_score(one, other, seed)
    if fewest >= FEWEST_FOR_MAUVE:
        return score, ""
    return score, (
        f"MAUVE of {fewest} texts says little, and is to be compared with that of as many texts alone; "
        f"{FEWEST_FOR_MAUVE:,} and more make it steadier"
    )


def _notes(written: Written) -> Iterator[str]:
    """What is to be known of the figures."""
    if len(written.texts) == 1:
        yield "one text alone has no interval: it says nothing of others"
    if written.judged:
        yield from judging_notes(written.judged.unknown, written.judged.cut)
