"""The speed of the real training step."""

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlm.bench.machine import Machine, held_by, measure_machine, most_held
from dlm.bench.network import hidden_parameters, tensor_bytes
from dlm.bench.stopwatch import Stopwatch
from dlm.config import Config
from dlm.errors import ConfigError
from dlm.processes import processes
from dlm.train.metrics import Silent
from dlm.train.run import RunFolder
from dlm.train.trainer import Trainer


@dataclass(frozen=True)
class TrainingSpeed:
    """What a training step costs.

    Attributes:
        machine: Its limits, in the precision that is trained in.
        parameters: Of the network.
        hidden_parameters: Those of them that are no embedding, no vocabulary projection and no clock.
        vocabulary: Number of ids.
        every_row: Whether the vocabulary was projected at every position.
        batch_size: Sequences a step.
        length: Tokens a sequence.
        attention: How it is computed.
        optimizer: Its name in the configuration.
        steps: How many were timed.
        loss: Of the last of them: what tells two ways of computing it apart.
        seconds: The median of a step.
        fastest: The fastest step, in seconds.
        slowest: The slowest.
        tokens_per_second: Over the median step.
        flops_per_second: 6 a hidden parameter and token, over the median step (2001.08361, section 2.1):
            neither attention's own products nor the vocabulary's are counted.
        share_of_peak: Of the machine's matrix products.
        data_share: The share of the median step that goes to making its batch.
        peak_bytes: The most that was held at a time: on CUDA all tensors, else the whole program.
        model_bytes: The model's own: weights, gradients, the optimizer's state, and the averaged weights if any.
        beyond_model_bytes: The most bytes of tensors that a step holds at a time beyond those: activations and logits.
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
    tokens_per_second: float
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
    """Times steps of a run, which is thrown away.

    Args:
        config: The run.
        steps: How many are timed; at least 1.
        warmup: How many come first, untimed; at least 1, which makes the optimizer's state.
        every_row: Whether the vocabulary is projected at every position, to compare with.

    Returns:
        The medians.

    Raises:
        DlmError: The run cannot be begun, or several processes were started.
    """
    if processes().num_processes > 1:
        raise ConfigError("bench measures one process: start it without torchrun and without accelerate launch")
    config = replace(
        config, train=replace(config.train, steps=max(config.train.steps, warmup + steps + 1), trackers=())
    )
    with tempfile.TemporaryDirectory(prefix="dlm-bench-") as folder:
        trainer = Trainer(RunFolder.create(Path(folder) / "run", config), Silent())
    if every_row:
        predict_every_row(trainer)
    for step in range(1, warmup + 1):
        trainer.step(step)
    watch = Stopwatch(trainer.device)
    timed = range(warmup + 1, warmup + steps + 1)
    for step in timed:
        with watch:
            metrics = trainer.step(step)
    held = held_by(lambda: trainer.step(timed.stop), trainer.device)
    peak = most_held(trainer.device)  # before the machine is measured, whose matrices would be the most
    backbone, seconds = trainer.backbone, watch.median()
    tokens = config.train.batch_size * config.data.length
    hidden = hidden_parameters(backbone.model)
    speed = 6.0 * hidden * tokens / seconds
    machine = measure_machine(trainer.device, torch.bfloat16 if trainer.precision == "bf16" else torch.float32)
    gradients = tensor_bytes(p for p in backbone.parameters() if p.requires_grad)
    return TrainingSpeed(
        machine=machine,
        parameters=sum(p.numel() for p in backbone.parameters()),
        hidden_parameters=hidden,
        vocabulary=backbone.vocabulary,
        every_row=every_row,
        batch_size=config.train.batch_size,
        length=config.data.length,
        attention=str(backbone.model.config._attn_implementation),
        optimizer=config.optim.name,
        steps=steps,
        loss=metrics.loss,
        seconds=seconds,
        fastest=min(watch.seconds),
        slowest=max(watch.seconds),
        tokens_per_second=tokens / seconds,
        flops_per_second=speed,
        share_of_peak=speed / machine.peak,
        data_share=_data_seconds(trainer, timed) / seconds,
        peak_bytes=peak,
        model_bytes=_kept_bytes(trainer) + gradients,
        beyond_model_bytes=held - gradients,
    )


def predict_every_row(trainer: Trainer) -> None:
    """Makes a trainer project and normalise every position, and only then take those that are wanted."""
    denoiser = trainer.denoiser

    def every_row(xt_BL: Tensor, t_B: Tensor, select_BL: Tensor) -> Tensor:
        return denoiser(xt_BL, t_B, torch.ones_like(select_BL))[select_BL.flatten()]

    trainer.denoiser = every_row


def _data_seconds(trainer: Trainer, steps: range) -> float:
    """The median time of making a step's batch, though it is made while the step before is computed."""
    trainer.upcoming.close()
    watch = Stopwatch(torch.device("cpu"))
    for step in steps:
        with watch:
            trainer.batches.batch(step, range(trainer.config.train.batch_size))
    return watch.median()


def _kept_bytes(trainer: Trainer) -> int:
    """What the model keeps between two steps."""
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    averaged = trainer.ema.weights.values() if trainer.ema else ()
    kept = tensor_bytes(trainer.backbone.parameters()) + tensor_bytes(averaged)
    return kept + sum(tensor_bytes(state.values()) for state in states)
