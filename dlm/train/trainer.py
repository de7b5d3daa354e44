"""The training loop. Its state is (config, step): everything random in it follows from those two."""

import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dlm.config import Config, Pretrained
from dlm.data.batches import TrainingBatches
from dlm.data.sources import read_splits
from dlm.data.streaming import StreamingBatches, open_stream
from dlm.diffusion.context import editable_part
from dlm.diffusion.draws import generator, stratified_draws
from dlm.diffusion.objective import LossTerms
from dlm.errors import CheckpointError, ConfigError, DataError, InterruptedRunError, TrainingError
from dlm.evaluate.likelihood import corpus, evaluate_likelihood
from dlm.model.adapt import check_length, is_decoder, make_room, visible
from dlm.model.backbone import Backbone, attention_implementation, build_model, load_model
from dlm.model.checkpoint import Sidecar, write_model
from dlm.model.clock import build_clock, load_clock
from dlm.model.lora import add_adapter, restore_adapter
from dlm.model.tokenizer import build_tokenizer, encode, never_emitted, new_ids, special_ids
from dlm.pipeline import DiffusionLM
from dlm.processes import without_accelerator
from dlm.recipe import Recipe
from dlm.train.ema import Ema, copy_weights, trainable
from dlm.train.metrics import MetricsFile, MetricsLog, Reporter, RunFacts, Silent, StepMetrics, Unwritten
from dlm.train.optim import (
    build_optimizers,
    clip_gradients,
    optimizer_tensors,
    rate_factor,
    restore_optimizers,
    set_rate,
)
from dlm.train.run import TRAINER, Progress, RunFolder, load_tensors, save_tensors

STREAM = "stream.json"
"""Where each process stands in the stream it trains on."""


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
        self.accelerator = _accelerator(self.config, run.path)
        self.reporter = reporter if self.accelerator.is_main_process else Silent()
        self.device = self.accelerator.device
        self.precision: Literal["bf16", "fp32"] = "bf16" if self.accelerator.mixed_precision == "bf16" else "fp32"
        with self.accelerator.local_main_process_first():  # it fills the caches, and the others find them filled
            at = run.resume(writes=self.accelerator.is_main_process)
            self._read(at)
        ids = special_ids(self.tokenizer)

        recipe = Recipe.of(self.config)
        model = _model(self.config, self.tokenizer, self.device, at[0] if at else None)
        self.adapter = None
        if (path := self.config.model.path) and (lora := self.config.model.lora):
            if recipe.timed:
                raise ConfigError("model.lora: adapters go with a network that takes no time; train every weight")
            self.adapter = add_adapter(model, lora, path, new_ids(self.tokenizer, path), self.config.seed)
        clock = build_clock(model, self.config.seed) if recipe.timed else None
        self.backbone = Backbone(model, ids.pad, clock)
        if self.config.train.gradient_checkpointing:
            _checkpoint_gradients(model)
        if self.config.train.compile:
            self.backbone.compile_body()
        self.optimizers = build_optimizers(self.backbone, self.config.optim)
        self.network, *self.optimizers = self.accelerator.prepare(self.backbone, *self.optimizers)
        never = never_emitted(self.tokenizer, self.backbone.vocabulary)
        self.process = recipe.process(self.backbone.vocabulary, ids.mask, never)
        self.denoiser = recipe.denoiser(self.network, never, self.process, ids.end)
        self.objective = recipe.objective(self.config.objective)
        self.ema = Ema(self.backbone, self.config.train.ema) if self.config.train.ema else None
        if at:
            self._restore(at[0])

    def _read(self, at: tuple[Path, Progress] | None) -> None:
        """The tokenizer, and the sequences to train and to validate on; where the run stands."""
        data, seed = self.config.data, self.config.seed
        self.batches: TrainingBatches | StreamingBatches
        self.stream: StreamingBatches | None = None
        found: tuple[int | None, int | None] = None, None
        if data.streaming:
            opened = open_stream(data)
            self.tokenizer = _tokenizer(self.config, opened.beginning, at[0] if at else None)
            ids = special_ids(self.tokenizer)
            self.batches = self.stream = StreamingBatches(
                opened,
                partial(encode, self.tokenizer),
                ids.end,
                ids.pad,
                length=data.length,
                packing=data.packing,
                buffer=data.buffer,
                seed=seed,
                process=self.accelerator.process_index,
                processes=self.accelerator.num_processes,
            )
            validation = opened.validation
        else:
            splits = read_splits(data)
            validation = splits.validation
            beginning = (text for batch in splits.train.iter(batch_size=256) for text in batch["text"])
            self.tokenizer = _tokenizer(self.config, lambda: beginning, at[0] if at else None)
            training = corpus(self.tokenizer, splits.train, data.length, data.packing)
            tail_id = special_ids(self.tokenizer).end if data.train.supervised and data.tail else None
            self.batches = TrainingBatches(training, self.config.train.batch_size, seed, tail_id)
            found = len(training.tokens), training.tokens.checksum
        self.validation = corpus(self.tokenizer, validation, data.length, data.packing)
        self.progress = at[1] if at else Progress(0, 0, *found)
        if found != (self.progress.train_tokens, self.progress.train_checksum):
            raise DataError(
                f"the training text has changed since {self.run.path} was begun: it has {found[0]} tokens now and had "
                f"{self.progress.train_tokens}; put the old text back, or begin another run"
            )

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
                        weights = torch.nn.utils.get_total_norm(list(self.backbone.parameters()))
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
            metrics.close()
            if train.trackers:
                self.accelerator.end_training()

    def step(self, step: int) -> StepMetrics:
        """One optimizer step on one global batch."""
        began = time.perf_counter()
        config, world, rank = self.config.train, self.accelerator.num_processes, self.accelerator.process_index
        mine = range(rank * config.batch_size // world, (rank + 1) * config.batch_size // world)
        size = config.micro_batch_size or len(mine)
        micros = [mine[i : i + size] for i in range(0, len(mine), size)]
        self.network.train()
        self._open_eyes(step)
        sums = torch.zeros(5, dtype=torch.float64, device=self.device)
        for index, positions in enumerate(micros):
            last = index == len(micros) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                # By place in the global batch: the same for one process that takes these sequences in turn.
                torch.manual_seed(generator(self.config.seed, "dropout", step, positions[0]).initial_seed())
                terms, seen = self._terms(step, positions)
                self.accelerator.backward(terms.loss)
            sums += torch.stack([terms.loss.detach(), terms.count, terms.nelbo, terms.tokens, seen]).to(sums)
        sums = self.accelerator.reduce(sums, "sum")
        count = max(sums[1].item(), 1.0)  # a small batch at early times may hold nothing to predict
        loss = sums[0].item() / count
        self._check_finite("loss", loss, step)
        # With clean context, or a tail, it would be the bound of something else than validation's.
        data = self.config.data
        complete = self.config.objective.complete and not data.context and not (data.train.supervised and data.tail)
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

    def _open_eyes(self, step: int) -> None:
        """Between causal and full attention; see `visible`."""
        model = self.config.model
        self.backbone.visible_LL = None
        if step <= model.annealing:
            length = self.config.data.length + model.shift
            open_LL = visible(length, (step - 1) / model.annealing, generator(self.config.seed, "attention", step))
            self.backbone.visible_LL = open_LL.to(self.device)

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

    def _terms(self, step: int, positions: range) -> tuple[LossTerms, torch.Tensor]:
        """The loss of part of the global batch, and the number of tokens in it."""
        batch = self.batches.batch(step, positions)
        draws = stratified_draws((self.config.seed, "train", step), positions, self.config.train.batch_size)
        where_BL = batch.where_BL
        if share := self.config.data.context:
            streams = [generator(self.config.seed, "context", step, position) for position in positions]
            where_BL = editable_part(where_BL, share, streams)
        x0_BL, where_BL = batch.x0_BL.to(self.device), where_BL.to(self.device)
        seen = (batch.document_BL >= 0).sum().to(self.device)
        return self.objective(self.denoiser, self.process, x0_BL, draws, where_BL), seen

    def _validate(self, step: int, metrics: MetricsLog) -> None:
        """Bounds the validation text's likelihood, and writes a short text."""
        config = self.config.train
        rows = torch.randperm(len(self.validation), generator=generator(self.config.seed, "validation"))
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
            if config.sample_length and self.accelerator.is_main_process:
                length = min(config.sample_length, self.config.data.length)
                text = lm.generate(length=length, seed=step)[0].text
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
            clock=self.backbone.clock,
        )

    def _sidecar(self) -> Sidecar:
        return Sidecar(self.config, self.process.mask_id, self.progress.step)

    def _save(self) -> None:
        if self.stream is not None:  # each process has a place of its own in its share
            self._places = gather_object([self.stream.state()])
        if self.accelerator.is_main_process:
            folder = self.run.save(self.progress, self._fill)
            self.reporter.saved(self.progress.step, folder)
        self.accelerator.wait_for_everyone()

    def _fill(self, folder: Path) -> None:
        """The averaged weights as the model; its own weights and the optimizers in `trainer/`."""
        with self.ema.applied(self.backbone) if self.ema else nullcontext():
            write_model(folder, self.backbone.model, self.tokenizer, self._sidecar(), self.backbone.clock, self.adapter)
        if self.ema:
            save_tensors(dict(trainable(self.backbone)), folder / TRAINER / "weights.safetensors")
        save_tensors(optimizer_tensors(self.optimizers), folder / TRAINER / "optimizer.safetensors")
        if self.stream is not None:
            (folder / TRAINER / STREAM).write_text(json.dumps(self._places) + "\n", encoding="utf-8")

    def _restore(self, folder: Path) -> None:
        """Puts back what `_fill` wrote."""
        device = "cpu" if self.device.type == "cpu" else str(self.device)  # safetensors knows no cpu:0
        if self.adapter is not None:
            restore_adapter(folder, self.adapter)
            stored = self.backbone
        else:
            # Through transformers, which alone knows under which of their names it stored tied weights.
            model = load_model(str(folder), self.backbone.model.config._attn_implementation)
            clock = load_clock(str(folder), model) if self.backbone.clock else None
            stored = Backbone(model, self.backbone.pad_id, clock)
        learned = trainable(self.backbone)
        found = ((name, weight) for name, weight in stored.named_parameters() if name in learned)
        weights = {name: weight.detach().clone().to(self.device) for name, weight in found}
        if self.ema:
            self.ema.weights = weights
            weights = load_tensors(folder / TRAINER / "weights.safetensors", device)
        copy_weights(weights, self.backbone)
        restore_optimizers(self.optimizers, load_tensors(folder / TRAINER / "optimizer.safetensors", device))
        if self.stream is not None:
            try:
                places = json.loads((folder / TRAINER / STREAM).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"{folder} is damaged, remove it to go on from the one before: {error}"
                ) from error
            self.stream.restore(places[min(self.accelerator.process_index, len(places) - 1)])

    def _facts(self) -> RunFacts:
        return RunFacts(
            folder=self.run.path,
            parameters=sum(p.numel() for p in self.backbone.parameters()),
            train_tokens=self.progress.train_tokens,
            validation_tokens=len(self.validation.tokens),
            vocabulary=len(self.tokenizer),
            device=_where(self.device, self.accelerator.num_processes),
            precision=self.precision,
            attention=str(self.backbone.model.config._attn_implementation),
            steps=self.config.train.steps,
            first=self.progress.step + 1,
        )


def _where(device: torch.device, processes: int) -> str:
    """Such as `cpu`, or `4 x cuda`."""
    return device.type if processes == 1 else f"{processes} x {device.type}"


def bf16_is_native() -> bool:
    """Whether this machine computes in bfloat16, rather than emulating it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.mps.is_available():
        return True
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _accelerator(config: Config, folder: Path) -> Accelerator:
    bf16 = config.train.precision == "bf16" or (config.train.precision == "auto" and bf16_is_native())
    ready = {str(tracker.value) for tracker in get_available_trackers()}
    for name in config.train.trackers:
        if name not in ready:
            raise ConfigError(
                f"train.trackers: {name!r} is not one that Accelerate knows, or its package is not installed; "
                f"ready here: {', '.join(sorted(ready)) or 'none'}"
            )
    accelerator = Accelerator(
        cpu=without_accelerator(),
        mixed_precision="bf16" if bf16 else "no",
        log_with=list(config.train.trackers) or None,
        project_dir=folder,
    )
    if config.train.batch_size < accelerator.num_processes:
        raise ConfigError(
            f"train.batch_size {config.train.batch_size} is less than one sequence for each of the "
            f"{accelerator.num_processes} processes: raise it, or start fewer processes"
        )
    return accelerator


def _tokenizer(config: Config, texts: Callable[[], Iterable[str]], checkpoint: Path | None) -> PreTrainedTokenizerBase:
    """The run's tokenizer; a resumed run takes it from its checkpoint, where it cannot have changed."""
    return build_tokenizer(config.tokenizer if checkpoint is None else Pretrained(str(checkpoint)), texts)


def _model(config: Config, tokenizer: PreTrainedTokenizerBase, device: torch.device, checkpoint: Path | None) -> Any:
    """The network to begin with; but for adapters, a resumed run does not look for the pretrained model again."""
    ids, length = special_ids(tokenizer), config.data.length + config.model.shift
    attention = attention_implementation(config.model.attention, device, length)
    if config.model.path is None:
        return build_model(
            config.model.architecture,
            config.model.sizes,
            vocabulary=len(tokenizer),
            length=length,
            special_ids={"pad_token_id": ids.pad, "eos_token_id": ids.end, "mask_token_id": ids.mask},
            attention=attention,
            seed=config.seed,
        )
    source = config.model.path if checkpoint is None or config.model.lora else str(checkpoint)
    model = load_model(source, attention, config.model.sizes)
    if source == config.model.path:
        make_room(model, new_ids(tokenizer, config.model.path), max(tokenizer.get_vocab().values()) + 1)
    check_length(model, length)
    if config.model.annealing and not is_decoder(model):
        raise ConfigError(f"model.annealing: {config.model.path} is an encoder, which sees the whole text already")
    return model


def _checkpoint_gradients(model: PreTrainedModel) -> None:
    if not model.supports_gradient_checkpointing:
        raise ConfigError(f"train.gradient_checkpointing: {model.config.model_type} does not know how")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


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
