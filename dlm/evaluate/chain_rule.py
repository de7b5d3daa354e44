"""The bound of a corpus beside exact likelihoods of samplers that reveal one token at a time."""

import torch

from dlm.config import Time
from dlm.data.batches import Sequences
from dlm.diffusion.draws import generator
from dlm.diffusion.likelihood import chain_rule_nll
from dlm.diffusion.unmask import Confidence, LeftToRight
from dlm.evaluate.likelihood import denoiser_of, estimator_of
from dlm.evaluate.report import ChainRuleReport
from dlm.lm import DiffusionLM


@torch.inference_mode()
def evaluate_chain_rule(
    lm: DiffusionLM,
    sequences: Sequences,
    *,
    count: int,
    batch_size: int,
    seed: int,
    draws: int = 16,
    time: Time | None = None,
) -> ChainRuleReport:
    """Compares the bound with exact likelihoods, which take as many network calls as a sequence has tokens.

    Args:
        lm: The model.
        sequences: The corpus.
        count: How many of its sequences, drawn at random.
        batch_size: Sequences a forward.
        seed: Decides the sequences, and the masks of the bound.
        draws: Noisy copies of each sequence for the bound; even, at least 4.
        time: The chain whose bound is estimated; by default the one that the model was trained for.

    Returns:
        The report.

    Raises:
        ConfigError: The model's process does not reveal one token at a time, its network takes the time, or it was not
            trained to be read in any order.
    """
    lm.estimator(LeftToRight().name)  # refuses a model of which there is none
    lm.model.eval()
    estimator = estimator_of(lm, draws, time, "any-order")
    rows = torch.randperm(len(sequences), generator=generator(seed, "chain rule"))[:count].tolist()
    totals = dict.fromkeys(("left", "confidence", "bound", "tokens"), 0.0)
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = sequences.batch(part)
        x0_BL, loss_mask_BL = (x_BL.to(lm.arithmetic_device) for x_BL in (batch.x0_BL, batch.loss_mask_BL))
        denoiser = denoiser_of(lm, sequences, batch)
        streams = [generator(seed, "evaluate", row) for row in part]
        totals["left"] += float(chain_rule_nll(denoiser, lm.process, x0_BL, LeftToRight(), loss_mask_BL).sum())
        totals["confidence"] += float(chain_rule_nll(denoiser, lm.process, x0_BL, Confidence(), loss_mask_BL).sum())
        bound_RBL = estimator(denoiser, lm.process, x0_BL, streams, loss_mask_BL)
        totals["bound"] += float(bound_RBL.mean(0).sum())
        totals["tokens"] += float(loss_mask_BL.sum())
    return ChainRuleReport(
        left_to_right_nats_per_token=totals["left"] / totals["tokens"],
        confidence_nats_per_token=totals["confidence"] / totals["tokens"],
        bound_nats_per_token=totals["bound"] / totals["tokens"],
        sequences=len(rows),
        tokens=int(totals["tokens"]),
    )
