"""How much common random masks take from the error of a difference between two answers, beside independent ones.

An answer is a line of a text, given the line before it. It is compared with the same line in which one word is another
word of the text, of the same length or of another, and with another line. The figure is the standard deviation over
seeds of the difference of the two bounds: under common masks, and of the same draws taken as independent ones.
Run: python -m tests.benchmarks.choices MODEL --text FILE
"""

import argparse
import random
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from dlm.lm import Answers, DiffusionLM

KINDS = ("a word of the same length", "a word of another length", "another line")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run or a checkpoint")
    parser.add_argument("--text", type=Path, required=True, help="the file that lines are taken from")
    parser.add_argument("--last", type=float, default=0.1, help="the share at its end that no model was trained on")
    parser.add_argument("--lines", type=int, default=20, help="pairs of each kind")
    parser.add_argument(
        "--draws", type=int, default=16, help="masked copies of each answer besides the full mask; even"
    )
    parser.add_argument("--seeds", type=int, default=50, help="repetitions")
    parser.add_argument("--reading", default="any-order")
    options = parser.parse_args()

    lm = DiffusionLM.from_pretrained(options.model, dtype="fp32")
    text = options.text.read_text(encoding="utf-8")
    found = [*pairs(text[int(len(text) * (1.0 - options.last)) :].splitlines(), lm, options.lines)]
    if not found:
        raise SystemExit(f"no two lines in a row fit the context of {lm.context} tokens")
    for kind, every in zip(KINDS, zip(*found, strict=True), strict=True):
        ratios, claims = [], []
        for answers in every:
            asked = dict.fromkeys(range(options.seeds), answers)
            runs = [*lm.score_each(asked, draws=options.draws, batch_size=64, reading=options.reading)]
            nats = torch.tensor([[one.log_likelihood for one in run] for run in runs]).double()
            apart, claimed = torch.tensor([run[0].less(run[1]) for run in runs]).double().unbind(1)
            independent = nats.var(0).sum().sqrt()
            ratios.append(float(apart.std() / independent))
            claims.append(float((claimed.square().mean() / apart.var()).sqrt()))
        ratio, claim = (
            torch.tensor(values).quantile(torch.tensor([0.5, 0.0, 1.0])).tolist() for values in (ratios, claims)
        )
        print(
            f"{kind:<28} common masks / independent {ratio[0]:.2f} (from {ratio[1]:.2f} to {ratio[2]:.2f}), "
            f"error claimed / found {claim[0]:.2f}",
            flush=True,
        )


def pairs(lines: list[str], lm: DiffusionLM, count: int) -> Iterator[tuple[Answers, Answers, Answers]]:
    """Lines with their alternatives, one of each kind, that fit the context with the line before them."""
    pick = random.Random(0)
    words = sorted({word for line in lines for word in line.split() if word.isalpha() and word.islower()})
    usable = [i for i in range(1, len(lines)) if lines[i - 1] and sum(w in words for w in lines[i].split()) > 1]
    for i in pick.sample(usable, len(usable)):
        own = pick.choice([word for word in lines[i].split() if word in words])
        same = pick.choice([word for word in words if len(word) == len(own) and word != own] or words)
        other = pick.choice([word for word in words if len(word) != len(own)])
        choices = [re.sub(rf"\b{own}\b", word, lines[i], count=1) for word in (same, other)] + [
            lines[pick.choice(usable)]
        ]
        if max(map(len, (lines[i], *choices))) + len(lines[i - 1]) + 2 <= lm.context and len(same) == len(own):
            one, two, three = (Answers(f"{lines[i - 1]}\n", [lines[i], choice]) for choice in choices)
            yield one, two, three
            count -= 1
        if not count:
            return


if __name__ == "__main__":
    main()
