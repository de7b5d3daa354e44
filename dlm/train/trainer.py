"""The training loop. Its state is (config, step): everything random in it follows from those two."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from accelerate.utils import gather_object

from dlm.data.prefetch import Prefetched
from dlm.diffusion.context import editable_part
from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.draws import generator, stratified_draws
from dlm.diffusion.network import Network
from dlm.diffusion.objective import LossTerms
from dlm.errors import ConfigError, DataError, InterruptedRunError, TrainingError
from dlm.evaluate.likelihood import evaluate_likelihood
from dlm.lm import DiffusionLM
from dlm.model.adapt import attention_annealing_mask, with_attention
from dlm.model.backbone import Backbone
from dlm.model.checkpoint import Sidecar
from dlm.model.precision import Precision, in_precision
from dlm.model.time_embedding import build_time_embedding
from dlm.model.tokenizer import fingerprint, special_ids, vocabulary_of
from dlm.train.ema import Ema
from dlm.train.metrics import MetricsFile, MetricsLog, Reporter, RunFacts, Silent, StepMetrics, Unwritten
from dlm.train.optim import build_optimizers, clip_gradients, rate_factor, set_rate
from dlm.train.run import Progress, RunFolder
from dlm.train.setup import (
    Texts,
    checkpoint_gradients,
    first_of_machine_first,
    join,
    micro_batches,
    read_texts,
    run_model,
    where,
)
from dlm.train.sharding import let_go, whole
from dlm.train.state import Learned


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
        self.run, self.config = run, run.config
        self.accelerator = join(self.config, run.path)
        self.reporter = reporter if self.accelerator.is_main_process else Silent()
        self.device = self.accelerator.device
        self.precision: Precision = "bf16" if self.accelerator.mixed_precision == "bf16" else "fp32"
        with first_of_machine_first(self.accelerator):
            at = run.resume(writes=self.accelerator.is_main_process)
            texts = read_texts(self.config, self.accelerator, at[0] if at else None)
        self.tokenizer, self.batches, self.validation = texts.tokenizer, texts.batches, texts.validation
        self.progress = at[1] if at else Progress(0, 0, texts.tokens, texts.checksum)
        self._agree(texts)
        ids = special_ids(self.tokenizer)

        formulation = self.config.formulation
        model, adapter = run_model(self.config, self.tokenizer, self.accelerator, at[0] if at else None)
        time_embedding = build_time_embedding(model, self.config.seed) if formulation.timed else None
        self.backbone = Backbone(model, ids.pad, time_embedding)
        if self.config.train.gradient_checkpointing:
            checkpoint_gradients(model)
        if self.config.train.compile:
            self.backbone.compile_body()
        optimizers = build_optimizers(self.backbone, self.config.optim)
        self.network, *self.optimizers = self.accelerator.prepare(self.backbone, *optimizers)
        self.process = formulation.process(vocabulary_of(self.tokenizer, self.backbone.vocabulary))
        self._end_id = ids.end
        # Accelerate itself sees to the precision only where weights are not sharded.
        self.denoiser = self._denoiser(in_precision(self.network, self.device, self.precision))
        self.objective = formulation.objective(self.config.objective.loss, self.config.objective.levels)
        self.ema = Ema(self.backbone, self.config.train.ema) if self.config.train.ema else None
        self._learned = Learned(self.backbone, self.optimizers, self.ema, adapter)
        if at:
            self._learned.restore(at[0])
            self.batches.restore(self.progress.places or [])
        self.micros = micro_batches(self.config, self.accelerator)
        self.upcoming = Prefetched(self.batches, self.micros, self.config.train.steps)

    def _denoiser(self, network: Network) -> Denoiser:
        """The network in training as a denoiser."""
        forbidden = self.process.vocabulary.forbidden
        return self.config.formulation.denoiser(network, self.process, forbidden, self._end_id)

    def _agree(self, texts: Texts) -> None:
        """Refuses to go on where the text is another than before, or where machines see other files."""
        found, before = (texts.tokens, texts.checksum), (self.progress.train_tokens, self.progress.train_checksum)
        if found != before:
            raise DataError(
                f"the training text has changed since {self.run.path} was begun: it has {found[0]} tokens now and had "
                f"{before[0]}; put the old text back, or begin another run"
            )
        seen = gather_object([(self.progress.step, texts.checksum, fingerprint(self.tokenizer))])
        if len(steps := sorted({step for step, *_ in seen})) > 1:
            raise ConfigError(
                f"the processes of this run find {self.run.path} after different steps, {steps}: "
                "put it on a disk that all machines share"
            )
        if len(set(seen)) > 1:
            raise DataError("the processes of this run read different training texts: give every machine the same")

    def train(self) -> None:
        """Takes every step that is left, validating and saving on the way.

        Raises:
            InterruptedRunError: Ctrl-C, or the system, asked to stop; the run was saved first.
            TrainingError: The loss is not finite any more.
            CheckpointError: A checkpoint could not be written.
        """
        train = self.config.train
        metrics: MetricsLog = Unwritten()
        if self.accelerator.is_main_process:
            self.run.begin()
            metrics = MetricsFile(self.run.path / "metrics.jsonl", self.progress.step)
        self.reporter.begin(self._facts())
        if train.trackers:
            self.accelerator.init_trackers("dlm")
        try:
            with _stop_signals(alone=self.accelerator.num_processes == 1) as received:
                for step in range(self.progress.step + 1, train.steps + 1):
                    line = self.step(step)
                    metrics.step(line)
                    self.reporter.step(line)
                    self.accelerator.log(line.tracked(), step=step)
                    stopped = self._any(bool(received))
                    last = step == train.steps
                    validates = last or step % train.validate_every == 0
                    if validates or stopped or (train.save_every and step % train.save_every == 0):
                        weights = whole(torch.nn.utils.get_total_norm(list(self.backbone.parameters())))
                        self._check_finite("norm of the weights", weights.item(), step)
                        if validates:
                            self._validate(step, metrics)
                        self._save()
                    if stopped and not last:
                        raise InterruptedRunError(
                            f"stopped after step {step}, which is saved; go on by: "
                            f"dlm train --resume --run-dir {self.run.path}"
                        )
        finally:
            self.upcoming.close()
            metrics.close()
            if train.trackers:
                self.accelerator.end_training()

    def step(self, step: int) -> StepMetrics:
        """One optimizer step on one global batch."""
        began = time.perf_counter()
        config, world = self.config.train, self.accelerator.num_processes
        self.network.train()
        denoiser = self._annealed(step)
        sums = torch.zeros(5, dtype=torch.float64, device=self.device)
        for micro, positions in enumerate(self.micros):
            last = micro == len(self.micros) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                # The same for one process that takes these sequences in turn.
                torch.manual_seed(generator(self.config.seed, "dropout", step, positions[0]).initial_seed())
                terms, seen = self._terms(denoiser, step, micro)
                terms.loss.backward()  # not by Accelerate, which divides by a number of its own environment
            sums += torch.stack([terms.loss.detach(), terms.count, terms.nelbo, terms.tokens, seen]).to(sums)
        sums = self.accelerator.reduce(sums, "sum")
        count = max(sums[1].item(), 1.0)  # a small batch at early times may hold nothing to predict
        loss = sums[0].item() / count
        self._check_finite("loss", loss, step)
        # With clean context, or a tail, it would be the bound of something else than validation's.
        data = self.config.data
        complete = (
            self.config.objective.levels.complete and not data.context and not (data.train.supervised and data.tail)
        )
        nelbo = (sums[2] / sums[3]).item() if complete else None
        self._check_finite("bound", nelbo or 0.0, step)

        parameters = [p for p in self.backbone.parameters() if p.grad is not None]
        # Each process summed over its own part; the average over processes becomes one over the global count.
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], world / count)
        norm = clip_gradients(parameters, self.config.optim.clip)
        self._check_finite("gradient norm", norm.item(), step)
        factor = rate_factor(step, config.steps, self.config.optim)
        set_rate(self.optimizers, factor)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.backbone, step)
        tokens = int(sums[4].item())
        self.progress = replace(self.progress, step=step, tokens=self.progress.tokens + tokens)
        speed = tokens / (time.perf_counter() - began)
        return StepMetrics(step, loss, nelbo, factor, norm.item(), self.progress.tokens, speed)

    def _annealed(self, step: int) -> Denoiser:
        """The denoiser of this step, whose attention may still be between causal and full."""
        model = self.config.model
        if step > model.annealing:
            return self.denoiser
        length, share = self.config.data.length + model.shift, (step - 1) / model.annealing
        open_LL = attention_annealing_mask(length, share, generator(self.config.seed, "attention", step))
        network = in_precision(self.network, self.device, self.precision)
        return self._denoiser(with_attention(network, open_LL.to(self.device)))

    def _any(self, mine: bool) -> bool:
        """Whether it is so on any process: all of them must stop after the same step."""
        if self.accelerator.num_processes == 1:
            return mine
        flag = torch.tensor(float(mine), device=self.device)
        return bool(self.accelerator.reduce(flag, "sum").item())

    def _check_finite(self, what: str, value: float, step: int) -> None:
        """Stops a run that has diverged, before anything of it is saved."""
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} is not finite at step {step} ({value}); the last good checkpoint is "
                f"{self.run.last() or 'none yet'}; a lower optim.lr or a smaller optim.clip may help"
            )

    def _terms(self, denoiser: Denoiser, step: int, micro: int) -> tuple[LossTerms, torch.Tensor]:
        """The loss of part of the global batch, and the number of tokens in it."""
        batch, positions = self.upcoming.batch(step, micro), self.micros[micro]
        draws = stratified_draws((self.config.seed, "train", step), positions, self.config.train.batch_size)
        where_BL = batch.where_BL
        if share := self.config.data.context:
            streams = [generator(self.config.seed, "context", step, position) for position in positions]
            where_BL = editable_part(where_BL, share, streams)
        x0_BL, where_BL = batch.x0_BL.to(self.device), where_BL.to(self.device)
        seen = (batch.document_BL >= 0).sum().to(self.device)
        return self.objective(denoiser, self.process, x0_BL, draws, where_BL), seen

    def _validate(self, step: int, metrics: MetricsLog) -> None:
        """Bounds the validation text's likelihood, and writes a short text."""
        config = self.config.train
        rows = torch.randperm(len(self.validation), generator=generator(self.config.seed, "validation"))
        self.network.eval()
        with self.ema.applied(self.backbone) if self.ema else nullcontext():
            lm = self._pipeline()
            report = evaluate_likelihood(
                lm,
                self.validation,
                rows=rows[: config.validate_sequences].tolist(),
                draws=config.validate_draws,
                batch_size=config.micro_batch_size or config.batch_size,
                seed=self.config.seed,
            )
            text = ""
            # By all processes alike: a sharded network is run by all or none. A response is nothing without a prompt.
            if config.sample_length and not self.config.data.train.supervised:
                length = min(config.sample_length, self.config.data.length)
                text = lm.generate(length=length, seed=step)[0].text
            let_go(self.network)
        metrics.validation(step, report)
        self.accelerator.log({"validation_nelbo": report.nats_per_token}, step=step)
        best = self.progress.best is None or report.nats_per_token < self.progress.best
        if best:
            self.progress = replace(self.progress, best=report.nats_per_token, best_step=step)
        self.reporter.validation(step, report, best)
        if text:
            self.reporter.sample(step, text)

    def _pipeline(self) -> DiffusionLM:
        """The model as it is now, ready to score and to write."""
        return DiffusionLM(
            self.backbone.model,
            self.tokenizer,
            sidecar=self._sidecar(),
            precision=self.precision,
            backbone=self.backbone,
        )

    def _sidecar(self) -> Sidecar:
        return Sidecar.of_run(self.config, self.process.mask_id, self.progress.step)

    def _save(self) -> None:
        if self.config.data.streaming:  # each process has a place of its own in its share
            self.progress = replace(self.progress, places=gather_object([self.upcoming.state]))
        main = self.accelerator.is_main_process
        snapshot = self._learned.snapshot(keep=main)
        if main:
            fill = partial(snapshot.write, tokenizer=self.tokenizer, sidecar=self._sidecar())
            folder = self.run.save(self.progress, fill)
            self.reporter.saved(self.progress.step, folder)
        self.accelerator.wait_for_everyone()

    def _facts(self) -> RunFacts:
        return RunFacts(
            folder=self.run.path,
            parameters=sum(p.numel() for p in self.backbone.parameters()),
            train_tokens=self.progress.train_tokens,
            validation_tokens=len(self.validation.tokens),
            vocabulary=len(self.tokenizer),
            device=where(self.accelerator),
            precision=self.precision,
            attention=str(self.backbone.model.config._attn_implementation),
            steps=self.config.train.steps,
            first=self.progress.step + 1,
        )


@contextmanager
def _stop_signals(*, alone: bool) -> Iterator[list[int]]:
    """A list that fills when Ctrl-C or the system asks to stop; a second Ctrl-C stops at once, if `alone`.

    Where there are several processes, the terminal and the launcher both pass a Ctrl-C on.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received and alone:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
