"""The training loop. Its state is (config, step): all its random numbers follow from those two."""

import math
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from accelerate.utils import gather_object

from dlm.config import Config
from dlm.data.batches import Batch
from dlm.data.prefetch import Prefetched
from dlm.data.run_data import read_run_data
from dlm.diffusion.denoiser import Denoiser
from dlm.diffusion.devices import copied
from dlm.diffusion.draws import generator
from dlm.diffusion.network import Network
from dlm.diffusion.readings import Joint, Masked
from dlm.errors import InterruptedRunError, TrainingError
from dlm.evaluate.likelihood import evaluate_likelihood
from dlm.lm import DiffusionLM
from dlm.model.attention import attention_annealing_mask, with_attention
from dlm.model.backbone import Backbone
from dlm.model.checkpoint import Sidecar
from dlm.model.precision import in_precision
from dlm.model.tokenizer import first_id, memory_lead, special_ids, vocabulary_of
from dlm.paths import quoted
from dlm.train.ema import Ema
from dlm.train.metrics import MetricsFile, MetricsLog, Reporter, RunFacts, Silent, StepMetrics, Unwritten, Validation
from dlm.train.noising import Noising, Prepared
from dlm.train.optim import build_optimizers, clip_gradients, learning_rate_factor, set_learning_rate
from dlm.train.run import Progress, RunFolder
from dlm.train.scaling import LossScale, rescaled, scaled
from dlm.train.setup import (
    check_agreement,
    first_of_machine_first,
    fit_out,
    join,
    micro_batches,
    run_precision,
    where,
)
from dlm.train.sharding import full_tensor, reshard
from dlm.train.start import base_checksum, origin_of, other_choices, run_model, run_time_embedding, tokenizer_of
from dlm.train.state import TrainingState
from dlm.train.stopping import on_any_process, stop_signals
from dlm.train.trackers import start_trackers


class Trainer:
    """One run, from its folder to its last checkpoint."""

    def __init__(self, run: RunFolder, reporter: Reporter) -> None:
        """Reads the data, builds the network, and restores the last checkpoint where there is one.

        Args:
            run: A run folder, new or reopened.
            reporter: Is told of the run's progress.

        Raises:
            DlmError: The data, the tokenizer, the sizes or the last checkpoint cannot be used, or another process
                writes the run folder.
        """
        self.run, self.config = run, run.config
        self.accelerator = join(self.config, run.path)
        self.reporter = reporter if self.accelerator.is_main_process else Silent()
        if self.accelerator.is_main_process:
            run.lock(self.reporter.note)
        try:
            self._set_up()
        except BaseException:
            run.unlock()
            raise

    def _set_up(self) -> None:
        """Everything that a run has before its first step; under the lock of its folder."""
        run, reporter = self.run, self.reporter
        self.device = self.accelerator.device
        self.precision = run_precision(self.config)
        with first_of_machine_first(self.accelerator):
            at = run.resume(writes=self.accelerator.is_main_process)
            checkpoint = at[0] if at else None
            spec, origin = tokenizer_of(self.config, checkpoint), origin_of(self.config, checkpoint)
            team = self.accelerator.process_index, self.accelerator.num_processes
            before = (origin.affixes, origin.family) if origin else (None, None)
            data = read_run_data(self.config, spec, *team, *before)
        self.tokenizer, self.batches, self.validation = data.tokenizer, data.batches, data.validation
        self.affixes, self.learned, self.losses = data.affixes, data.learned, data.losses
        self.progress = at[1] if at else Progress(0, 0, data.tokens, data.checksum)
        check_agreement(run.path, self.progress, data)
        validated = self.validation.tokens.checksum
        self.progress = replace(self.progress, train_checksum=data.checksum, validation_checksum=validated)
        ids, family = special_ids(self.tokenizer), origin.family if origin else None

        formulation = self.config.formulation
        model, adapter = run_model(self.config, self.tokenizer, self.accelerator, checkpoint, origin, reporter.note)
        time_embedding = run_time_embedding(self.config, model, origin)
        for change in run.changes if at or origin is None else other_choices(self.config, origin):
            reporter.note(change)
        patterns = not isinstance(formulation.readings, Masked)
        self.backbone = Backbone(model, ids.pad, time_embedding, patterns=patterns)
        fit_out(self.backbone, self.config)
        optimizers = build_optimizers(self.backbone, self.config.optim)
        self.network, *self.optimizers = self.accelerator.prepare(self.backbone, *optimizers)
        ends = family.end_ids(self.tokenizer) if family else []
        self.process = formulation.process(vocabulary_of(self.tokenizer, self.backbone.vocabulary, allowed=ends))
        self._first_id = first_id(self.tokenizer, family, shift=formulation.shift)
        known = Sidecar.of_run(self.config, ids.mask, 0, self.affixes, family)
        checksum = base_checksum(self.config, origin)
        self._sidecar = replace(known, base_checksum=checksum, lengths=data.lengths, sentinels=data.sentinels)
        # Set here, because Accelerate sets it only where weights are not sharded.
        network = in_precision(self.network, self.precision)
        self.micros = micro_batches(self.config, self.accelerator)
        self.loss_scale = (self.progress.loss_scale or LossScale()) if self.precision == "fp16" else None
        self._factor = torch.ones((), device=self.device)
        self.predict_with(scaled(network, self._factor) if self.loss_scale else network)
        self.objective = formulation.objective(
            self.config.objective.loss, self.config.objective.levels, memory_lead(self.tokenizer, self.affixes, family)
        )
        self._pad_id = ids.pad
        self.ema = Ema(self.backbone, self.config.train.ema) if self.config.train.ema else None
        self._state = TrainingState(self.backbone, self.optimizers, self.ema, adapter)
        if at:
            self._state.restore(at[0])
            self.batches.restore(self.progress.places or [])
        self.upcoming = Prefetched(self.batches, self.micros, self.config.train.steps, self._ahead)

    def predict_with(self, network: Network) -> None:
        """Sets the network that every step runs, made into a denoiser once."""
        self.computed, self.denoiser = network, self._denoiser(network)

    def _denoiser(self, network: Network) -> Denoiser:
        """The network in training as a denoiser."""
        forbidden = self.process.vocabulary.forbidden
        return self.config.formulation.denoiser(network, self.process, forbidden, self._first_id)

    def train(self) -> None:
        """Takes the remaining steps, and validates and saves between them.

        Raises:
            InterruptedRunError: Ctrl-C, or the system, asked to stop; the run was saved first.
            TrainingError: The run diverged: a loss, a gradient or a weight is not finite.
            CheckpointError: A checkpoint could not be written.
        """
        try:
            self._train()
        finally:
            self.run.unlock()

    def _train(self) -> None:
        train = self.config.train
        metrics: MetricsLog = Unwritten()
        if self.accelerator.is_main_process:
            self.run.begin()
            metrics = MetricsFile(self.run.path / "metrics.jsonl", self.progress.step)
        self.reporter.begin(_facts(self))
        start_trackers(self.accelerator, self.run.path, self.config, self.progress.step)
        try:
            with stop_signals(alone=self.accelerator.num_processes == 1) as received:
                for step in range(self.progress.step + 1, train.steps + 1):
                    line = self.step(step)
                    metrics.step(line)
                    self.reporter.step(line)
                    self.accelerator.log(line.tracked(), step=step)
                    stopped = on_any_process(bool(received), self.accelerator)
                    last = step == train.steps
                    validates = last or step % train.validate_every == 0
                    if validates or stopped or (train.save_every and step % train.save_every == 0):
                        weights = full_tensor(torch.nn.utils.get_total_norm(list(self.backbone.parameters())))
                        _check_finite(self.run, "norm of the weights", weights.item(), step)
                        if validates:
                            self._validate(step, metrics)
                        self._save()
                    if stopped and not last:
                        raise InterruptedRunError(
                            f"stopped after step {step}, which is saved; go on by: "
                            f"dlm train --resume --run-dir {quoted(self.run.path)}"
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
        denoiser = self.denoiser_at(step)
        sums = torch.zeros(6, dtype=torch.float64, device=self.device)
        if self.loss_scale:
            self._factor.fill_(self.loss_scale.of_sum(max(map(len, self.micros)) * self.config.data.length))
        for micro, positions in enumerate(self.micros):
            last = micro == len(self.micros) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                # Dropout depends on the sequences of a micro-batch, not on the process that computes it.
                torch.manual_seed(generator(self.config.seed, "dropout", step, positions[0]).initial_seed())
                made = self.upcoming.batch(step, micro)
                corrupted, seen = made if isinstance(made, Prepared) else self.prepare(*made)
                terms = self.objective.loss(denoiser, self.process, corrupted.to(self.device))
                terms.loss.backward()  # not Accelerate's, which divides by a number from its environment
            added = [terms.loss.detach() / self._factor, terms.count, terms.nelbo, terms.tokens]
            next_token = terms.tokens.new_zeros(()) if terms.next_token is None else terms.next_token
            sums += torch.stack([x.to(sums) for x in (*added, copied(seen, self.device), next_token)])
        sums = self.accelerator.reduce(sums, "sum")
        count = sums[1].clamp(min=1.0)  # a small batch at low noise may have no token to predict

        parameters = [p for p in self.backbone.parameters() if p.grad is not None]
        # Each process has the gradient of its own sum, averaged over processes: this makes it that of the global mean.
        torch._foreach_mul_(
            [p.grad for p in parameters if p.grad is not None], (world / (count * self._factor)).float()
        )
        norm = clip_gradients(parameters, self.config.optim.clip)
        factor = learning_rate_factor(step, config.steps, self.config.optim)
        set_learning_rate(self.optimizers, factor)
        self.loss_scale, skipped = rescaled(self.loss_scale, norm, step, self.run.last)
        for optimizer in self.optimizers:
            if not skipped:
                optimizer.step()
            optimizer.zero_grad()
        if self.ema and not skipped:
            self.ema.update(self.backbone, step)
        # Read together at the end, because reading waits for the GPU.
        *values, gradient_norm = torch.cat([sums, norm.to(sums).view(1)]).tolist()
        loss = values[0] / max(values[1], 1.0)
        nelbo = values[2] / values[3] if _is_comparable(self.config) else None
        for what, value in (
            ("loss", loss),
            ("bound", nelbo or 0.0),
            ("gradient norm", 0.0 if skipped else gradient_norm),
        ):
            _check_finite(self.run, what, value, step)
        tokens = int(values[4])
        self.progress = replace(
            self.progress, step=step, tokens=self.progress.tokens + tokens, loss_scale=self.loss_scale
        )
        speed = tokens / (time.perf_counter() - began)
        return StepMetrics(
            step,
            loss,
            nelbo,
            factor,
            None if skipped else gradient_norm,
            self.progress.tokens,
            speed,
            next_token=values[5] / max(values[3], 1.0) if isinstance(self.config.readings, Joint) else None,
        )

    def denoiser_at(self, step: int) -> Denoiser:
        """The denoiser of a step; while attention is annealed, a mask between causal and full is in its input."""
        model = self.config.model
        if step > model.annealing:
            return self.denoiser
        length, share = self.config.data.length + model.shift, (step - 1) / model.annealing
        open_LL = attention_annealing_mask(length, share, generator(self.config.seed, "attention", step))
        return self._denoiser(with_attention(self.computed, copied(open_LL, self.device)))

    def _ahead(self, batch: Batch, step: int, positions: range) -> Prepared | tuple[Batch, int, range]:
        """What is made ahead in a thread: all that a GPU would wait for; on a CPU two threads would share its cores."""
        return (batch, step, positions) if self.device.type == "cpu" else self.prepare(batch, step, positions)

    def prepare(self, batch: Batch, step: int, positions: range) -> Prepared:
        """The noisy half of a micro-batch's loss."""
        return Noising(self.config, self.process, self.objective, self._pad_id)(batch, step, positions)

    def _validate(self, step: int, metrics: MetricsLog) -> None:
        """Measures the validation text in every reading, and samples a short text."""
        config = self.config.train
        rows = torch.randperm(len(self.validation), generator=generator(self.config.seed, "validation"))
        self.network.eval()
        with self.ema.applied(self.backbone) if self.ema else nullcontext():
            lm = self.lm()
            measured = partial(
                evaluate_likelihood,
                lm,
                self.validation,
                rows=rows[: config.validate_sequences].tolist(),
                draws=config.validate_draws,
                batch_size=config.micro_batch_size or config.batch_size,
                seed=self.config.seed,
            )
            validation = Validation({name: measured(reading=name) for name in self.config.readings.all})
            text = _sampled(self, lm, step)  # on all processes: a sharded network needs them all
            reshard(self.network)
        metrics.validation(step, validation, text)
        self.accelerator.log(validation.tracked(), step=step)
        nats = validation.judged.nats_per_token
        best = self.progress.best is None or nats < self.progress.best or math.isnan(self.progress.best)
        if best:
            self.progress = replace(self.progress, best=nats, best_step=step)
        self.reporter.validation(step, validation, best)
        if text:
            self.reporter.sample(step, text)

    def lm(self) -> DiffusionLM:
        """The present model as a `DiffusionLM`, to score and to sample."""
        return DiffusionLM(
            self.backbone.model,
            self.tokenizer,
            sidecar=self.sidecar,
            precision=self.precision,
            backbone=self.backbone,
        )

    @property
    def sidecar(self) -> Sidecar:
        """What `dlm.yaml` says beside the present model."""
        return replace(self._sidecar, step=self.progress.step)

    def _save(self) -> None:
        if self.config.data.streaming:  # each process has its own position in its share of the stream
            self.progress = replace(self.progress, places=gather_object([self.upcoming.state]))
        main = self.accelerator.is_main_process
        snapshot = self._state.snapshot(keep=main)
        if main:
            fill = partial(snapshot.write, tokenizer=self.tokenizer, sidecar=self.sidecar)
            folder = self.run.save(self.progress, fill)
            self.reporter.saved(self.progress.step, folder)
        self.accelerator.wait_for_everyone()


def _facts(trainer: Trainer) -> RunFacts:
    return RunFacts(
        folder=trainer.run.path,
        parameters=sum(p.numel() for p in trainer.backbone.parameters()),
        train_tokens=trainer.learned,
        validation_tokens=trainer.validation.learned_tokens,
        vocabulary=len(trainer.tokenizer),
        device=where(trainer.accelerator),
        precision=trainer.precision,
        attention=str(trainer.backbone.model.config._attn_implementation).removeprefix("dlm_"),
        steps=trainer.config.train.steps,
        first=trainer.progress.step + 1,
        losses=trainer.losses,
    )


def _check_finite(run: RunFolder, what: str, value: float, step: int) -> None:
    """Stops a run that has diverged, before its state is saved."""
    if not math.isfinite(value):
        raise TrainingError(
            f"the {what} is not finite at step {step} ({value}); the last good checkpoint is "
            f"{run.last() or 'none yet'}; a lower optim.lr or a smaller optim.clip may help"
        )


def _is_comparable(config: Config) -> bool:
    """Whether a step's bound is comparable with that of the validation text: not with clean context or a tail."""
    data = config.data
    if isinstance(config.readings, Joint):  # its steps have blocks of many sizes, each with a bound of its own
        return False
    if data.fim:  # nor with rearranged texts
        return False
    return config.objective.levels.complete and not data.context and not (data.train.supervised and data.tail)


def _sampled(trainer: Trainer, lm: DiffusionLM, step: int) -> str:
    """A short text, if one is asked for; samples of a supervised run would need a prompt."""
    data, wanted = trainer.config.data, trainer.config.train.sample_length
    if not wanted or data.train.supervised:
        return ""
    return lm.generate(length=min(wanted, data.length - len(trainer.affixes)), seed=step)[0].text
