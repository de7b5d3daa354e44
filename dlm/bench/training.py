"""The speed of the real training step."""

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlm.bench.machine import Machine, measure_machine, peak_memory, peak_tensor_bytes
from dlm.bench.network import hidden_parameters, tensor_bytes, training_flops
from dlm.bench.stopwatch import Stopwatch
from dlm.config import Config
from dlm.diffusion.network import NetworkInput, Reduced, Reducer
from dlm.model.precision import DTYPES
from dlm.train.metrics import Silent
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer


@dataclass(frozen=True)
class TrainingSpeed:
    """The cost of a training step.

    Attributes:
        machine: The limits of the machine, in the precision of the run.
        parameters: Parameters of the network.
        hidden_parameters: Its parameters outside of embeddings, vocabulary projection and time embedding.
        vocabulary: Number of ids.
        every_row: Whether the vocabulary was projected at every position.
        batch_size: Sequences a step.
        length: Tokens a sequence.
        attention: The implementation of attention.
        optimizer: The optimizer's name in the configuration.
        steps: Number of timed steps.
        loss: The loss of the last step, to compare two implementations.
        seconds: The median time of a step.
        fastest: The shortest time, in seconds.
        slowest: The longest time.
        tokens: Tokens of a step on average, without padding.
        tokens_per_second: Tokens over the median time.
        flops_per_token: See `training_flops`.
        flops_per_second: Operations over the median time.
        share_of_peak: The same as a share of the machine's peak.
        data_share: The mean time of making and corrupting a batch, as a share of the median step. Batches are made
            while the step before is computed.
        peak_bytes: The peak memory: on CUDA of all tensors, else of the whole program.
        model_bytes: Bytes of weights, gradients, the optimizer's state, and the averaged weights if there are any.
        beyond_model_bytes: The peak memory of a step beyond those, in bytes of tensors: activations and logits.
    """

    machine: Machine
    parameters: int
    hidden_parameters: int
    vocabulary: int
    every_row: bool
    batch_size: int
    length: int
    attention: str
    optimizer: str
    steps: int
    loss: float
    seconds: float
    fastest: float
    slowest: float
    tokens: float
    tokens_per_second: float
    flops_per_token: int
    flops_per_second: float
    share_of_peak: float
    data_share: float
    peak_bytes: int
    model_bytes: int
    beyond_model_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def bench_training(config: Config, *, steps: int = 20, warmup: int = 5, every_row: bool = False) -> TrainingSpeed:
    """Times the steps of a run, which leaves nothing on disk.

    Args:
        config: The run.
        steps: Number of timed steps; at least 1.
        warmup: Number of steps before them, which are not timed; at least 1, which creates the optimizer's state.
        every_row: Whether the vocabulary is projected at every position, for comparison.

    Returns:
        The medians.

    Raises:
        DlmError: The run cannot start.
    """
    config = replace(
        config, train=replace(config.train, steps=max(config.train.steps, warmup + steps + 1), trackers=())
    )
    with tempfile.TemporaryDirectory(prefix="dlm-bench-") as folder:
        run = RunFolder.create(Path(folder) / "run", config)
        trainer = Trainer(run, Silent())
        run.unlock()
    if every_row:
        predict_every_row(trainer)
    for step in range(1, warmup + 1):
        trainer.step(step)
    watch = Stopwatch(trainer.device)
    timed, before = range(warmup + 1, warmup + steps + 1), trainer.progress.tokens
    for step in timed:
        with watch:
            metrics = trainer.step(step)
    tokens = (trainer.progress.tokens - before) / steps
    peak = peak_memory(trainer.device)  # before the profiler and the measurement of the machine allocate memory
    held = peak_tensor_bytes(lambda: trainer.step(timed.stop), trainer.device)
    backbone, seconds = trainer.backbone, watch.median()
    flops = training_flops(backbone.model)
    speed = flops * config.train.batch_size * config.data.length / seconds
    machine = measure_machine(trainer.device, DTYPES[trainer.precision])
    gradients = tensor_bytes(p for p in backbone.parameters() if p.requires_grad)
    return TrainingSpeed(
        machine=machine,
        parameters=sum(p.numel() for p in backbone.parameters()),
        hidden_parameters=hidden_parameters(backbone.model),
        vocabulary=backbone.vocabulary,
        every_row=every_row,
        batch_size=config.train.batch_size,
        length=config.data.length,
        attention=str(backbone.model.config._attn_implementation).removeprefix("dlm_"),
        optimizer=config.optim.name,
        steps=steps,
        loss=metrics.loss,
        seconds=seconds,
        fastest=min(watch.seconds),
        slowest=max(watch.seconds),
        tokens=tokens,
        tokens_per_second=tokens / seconds,
        flops_per_token=flops,
        flops_per_second=speed,
        share_of_peak=speed / machine.peak,
        data_share=_data_seconds(trainer, timed) / seconds,
        peak_bytes=peak,
        model_bytes=_kept_bytes(trainer) + gradients,
        beyond_model_bytes=held - gradients,
    )


def predict_every_row(trainer: Trainer) -> None:
    """Makes a trainer project every position at once, and take the wanted rows of the result."""
    network = trainer.computed

    def every_row(inputs: NetworkInput, reducer: Reducer | None = None) -> Tensor | Reduced:
        every_N = torch.arange(inputs.wanted_BL.numel(), device=inputs.ids_BL.device)
        whole = inputs.with_index(every_N, wanted_BL=torch.ones_like(inputs.wanted_BL))
        logits_NV = network(whole).index_select(0, inputs.index_N)
        return reducer(logits_NV, slice(None)) if reducer else logits_NV

    trainer.predict_with(every_row)  # type: ignore[arg-type]  # a closure cannot say that a reducer decides the type


def _data_seconds(trainer: Trainer, steps: range) -> float:
    """The mean time of making a step's batch; for a stream over a block of batches, which are read together."""
    trainer.upcoming.close()
    rows = trainer.config.train.batch_size
    count = max(len(steps), -(-trainer.batches.ahead // rows))
    watch = Stopwatch(torch.device("cpu"))
    with watch:
        for step in range(steps.stop, steps.stop + count):
            trainer.prepare(trainer.batches.batch(step, range(rows)), step, range(rows))
    return watch.median() / count


def _kept_bytes(trainer: Trainer) -> int:
    """The bytes of weights, averages and optimizer states."""
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    averaged = trainer.ema.weights.values() if trainer.ema else ()
    kept = tensor_bytes(trainer.backbone.parameters()) + tensor_bytes(averaged)
    return kept + sum(tensor_bytes(state.values()) for state in states)
