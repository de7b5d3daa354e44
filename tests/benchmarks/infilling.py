"""How well models fill holes: what they give to the tokens that stood there, on the same spans of one text.

A span is cut out of a window as long as the context. The figure is the bound of -log p(span | both sides), in bits a
character, and the difference from the first model, span by span, with a 95% bootstrap interval.
Run: python -m tests.benchmarks.infilling MODEL MODEL --text FILE
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from dlm.diffusion.draws import generator
from dlm.evaluate.bootstrap import Ratio
from dlm.lm import DiffusionLM
from dlm.lm.scoring import score_rows
from dlm.model.text import encode

BIT = math.log(2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="runs or checkpoints with one tokenizer")
    parser.add_argument("--text", type=Path, required=True, help="the file that spans are cut from")
    parser.add_argument("--last", type=float, default=0.1, help="the share at its end that no model was trained on")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 16], help="tokens a span")
    parser.add_argument("--spans", type=int, default=1000, help="spans of each length")
    parser.add_argument("--draws", type=int, default=8, help="masked copies of each span besides the full mask; even")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    models = {name: DiffusionLM.from_pretrained(name) for name in options.models}
    first, *others = models.values()
    if any(one.tokenizer.get_vocab() != first.tokenizer.get_vocab() for one in others):
        raise SystemExit("the models have different tokenizers, so that spans of tokens are not the same text")
    text = options.text.read_text(encoding="utf-8")
    ids = torch.tensor(encode(first.tokenizer, [text[int(len(text) * (1.0 - options.last)) :]])[0])
    context = min(one.context for one in models.values())
    for length in options.lengths:
        x0_BL, editable_BL = spans(ids, context, length, options.spans, options.seed)
        characters_B = torch.tensor(
            [len(first.tokenizer.decode(x0_L[kept_L])) for x0_L, kept_L in zip(x0_BL, editable_BL, strict=True)]
        )
        print(
            f"{options.spans} spans of {length} tokens in windows of {context}, {options.draws} draws and the full mask"
        )
        base_B: Tensor | None = None
        for name, lm in models.items():
            nats_B = scored(lm, x0_BL, editable_BL, options.draws, options.seed)
            found = Ratio.of(nats_B / BIT, characters_B, options.seed)
            line = f"{name:<32} {found.value:.4f} bits/character {interval(found)}"
            if base_B is None:
                base_B = nats_B
            else:
                apart = Ratio.of((nats_B - base_B) / BIT, characters_B, options.seed)
                line += f"   less the first {apart.value:+.4f} {interval(apart)}"
            print(line, flush=True)


def spans(ids: Tensor, context: int, length: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Windows on a text, and a span in each that starts at any place.

    Args:
        ids: The text.
        context: Tokens a window.
        length: Tokens a span.
        count: How many.
        seed: Decides which.

    Returns:
        Ids, and where the spans are, both of shape (count, context).
    """
    stream = generator(seed, "spans", length)
    window_B1 = torch.randint(len(ids) - context + 1, (count, 1), generator=stream)
    start_B1 = torch.randint(context - length + 1, (count, 1), generator=stream)
    place_L = torch.arange(context)
    return ids[window_B1 + place_L], (place_L >= start_B1) & (place_L < start_B1 + length)


def scored(lm: DiffusionLM, x0_BL: Tensor, editable_BL: Tensor, draws: int, seed: int) -> Tensor:
    """The bound of each span in nats, float64; every model sees the same masks."""
    lm.model.eval()
    estimator = lm.estimator("any-order", draws)
    nats: list[float] = []
    for rows in torch.arange(len(x0_BL)).split(32):
        streams = [generator(seed, "infilling", row) for row in rows.tolist()]
        part = x0_BL[rows].to(lm.arithmetic_device), editable_BL[rows].to(lm.arithmetic_device)
        scores = score_rows(lm.denoisers.scoring, lm.process, estimator, *part, streams)
        nats += [-score.log_likelihood for score in scores]
    return torch.tensor(nats, dtype=torch.float64)


def interval(ratio: Ratio) -> str:
    """The interval of a ratio, for a person."""
    return "" if ratio.interval is None else f"({ratio.interval[0]:+.4f} to {ratio.interval[1]:+.4f})"


if __name__ == "__main__":
    main()
