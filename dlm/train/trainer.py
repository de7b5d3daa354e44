"""The training loop. Its state is (config, step): everything random in it follows from those two."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dlm.config import Config, Pretrained
from dlm.data.batches import Sequences, Tokens, TrainingBatches
from dlm.data.sources import read_splits
from dlm.diffusion.denoiser import Subs
from dlm.diffusion.draws import generator, stratified_draws
from dlm.diffusion.objective import LossTerms, MaskedObjective
from dlm.diffusion.process import Absorbing
from dlm.diffusion.schedule import Linear
from dlm.diffusion.unmask import Confidence, FixedSteps
from dlm.errors import ConfigError, DataError, Interrupted, TrainingError
from dlm.evaluate.likelihood import LikelihoodReport, evaluate_likelihood
from dlm.model.backbone import Backbone, attention_implementation, build_model
from dlm.model.checkpoint import Sidecar, write_model
from dlm.model.tokenizer import build_tokenizer, checked_ids, encode, fingerprint, never_emitted
from dlm.pipeline import DiffusionLM, Sampler
from dlm.train.ema import Ema, copy_weights
from dlm.train.metrics import MetricsFile, Reporter, RunFacts, StepMetrics
from dlm.train.optim import (
    build_optimizers,
    clip_gradients,
    optimizer_tensors,
    rate_factor,
    restore_optimizers,
    set_rate,
)
from dlm.train.run import TRAINER, Progress, RunFolder, load_tensors, save_tensors


class Trainer:
    """One run, from its folder to its last checkpoint."""

    def __init__(self, run: RunFolder, reporter: Reporter) -> None:
        """Reads the data, builds the network, and goes to where the run stands.

        Args:
            run: A run folder, new or reopened.
            reporter: Whoever watches.

        Raises:
            DlmError: The data, the tokenizer, the sizes or the last checkpoint cannot be used.
        """
        self.run, self.config, self.reporter = run, run.config, reporter
        train = self.config.train
        precision = _precision(train.precision)
        self.accelerator = Accelerator(
            mixed_precision="bf16" if precision == "bf16" else "no",
            log_with=list(train.trackers) or None,
            project_dir=run.path,
        )
        at = run.resume()
        splits = read_splits(self.config.data)
        self.tokenizer = _tokenizer(self.config, splits.train, at[0] if at else None)
        ids = checked_ids(self.tokenizer)
        training, self.validation = (
            self._cut(split, drop_last=split is splits.train) for split in (splits.train, splits.validation)
        )
        self.batches = TrainingBatches(training, train.batch_size, self.config.seed)

        attention = attention_implementation(
            self.config.model.attention, self.accelerator.device, self.config.data.length
        )
        model = build_model(
            self.config.model.architecture,
            self.config.model.sizes,
            vocabulary=len(self.tokenizer),
            length=self.config.data.length,
            special_ids={"pad_token_id": ids.pad, "eos_token_id": ids.end, "mask_token_id": ids.mask},
            attention=attention,
            seed=self.config.seed,
        )
        self.backbone = Backbone(model, ids.pad)
        self.process = Absorbing(Linear(), ids.mask)
        self.objective = MaskedObjective(self.config.objective)
        self.progress = at[1] if at else Progress(0, 0, training.tokens)
        if self.progress.train_tokens != training.tokens:
            raise DataError(
                f"the training text has {training.tokens} tokens now and had {self.progress.train_tokens} when the run "
                f"{run.path} was begun: put the old text back, or begin another run"
            )
