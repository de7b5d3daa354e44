"""The speed of the real sampler."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from dlm.bench.machine import Machine, held_by, measure_machine, most_held
from dlm.bench.network import hidden_parameters, tensor_bytes
from dlm.bench.stopwatch import Stopwatch
from dlm.diffusion.sample import State
from dlm.lm import DiffusionLM, Sample, Sampler


@dataclass(frozen=True)
class SamplingSpeed:
    """What writing some texts side by side costs.

    Attributes:
        machine: Its limits, in the precision that is computed in.
        parameters: Of the network.
        hidden_parameters: Those of them that are no embedding, no vocabulary projection and no time embedding.
        vocabulary: Number of ids.
        num: Texts side by side.
        length: Tokens a text.
        attention: How it is computed.
        repeats: How often all of them were written.
        seconds: The median of writing all of them.
        fastest: The fastest, in seconds.
        slowest: The slowest.
        tokens_per_second: Written, over the median.
        calls: Of the network, each for all texts that change in it.
        tokens_per_call: Tokens of one text that a call writes, on average.
        seconds_per_call: The median over the calls, with all that the sampler does in between.
        flops_per_second: 2 a hidden parameter and position that the network reads (2001.08361, section 2.1), which
            is every position of each text at each call that it takes part in.
        share_of_peak: Of the machine's matrix products.
        peak_bytes: The most that was held at a time: on CUDA all tensors, else the whole program.
        model_bytes: The weights.
        beyond_model_bytes: The most bytes of tensors that writing holds at a time beyond them.
    """

    machine: Machine
    parameters: int
    hidden_parameters: int
    vocabulary: int
    num: int
    length: int
    attention: str
    repeats: int
    seconds: float
    fastest: float
    slowest: float
    tokens_per_second: float
    calls: int
    tokens_per_call: float
    seconds_per_call: float
    flops_per_second: float
    share_of_peak: float
    peak_bytes: int
    model_bytes: int
    beyond_model_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def bench_sampling(
    lm: DiffusionLM,
    *,
    num: int = 8,
    length: int | None = None,
    sampler: Sampler | None = None,
    repeats: int = 5,
    warmup: int = 1,
) -> SamplingSpeed:
    """Times `lm.generate`, which writes the same texts again and again.

    Args:
        lm: The model.
        num: Texts, all side by side.
        length: Tokens a text; the context by default.
        sampler: How.
        repeats: How often it is timed; at least 1.
        warmup: How often it is done first, untimed; at least 1, in which the calls are counted.

    Returns:
        The medians.

    Raises:
        DlmError: The length does not fit the context, or the sampler not the model.
    """
    length = lm.context if length is None else length

    def write(states: list[State] | None = None) -> list[Sample]:
        def keep(state: State) -> None:
            if states is not None:
                states[:] = [state]

        return lm.generate(num=num, length=length, sampler=sampler, batch_size=num, watch=keep)

    last: list[State] = []
    for _ in range(warmup):
        texts = write(last)
    calls, text_calls = last[0].calls, sum(text.calls for text in texts)
    last.clear()
    watch = Stopwatch(lm.device)
    for _ in range(repeats):
        with watch:
            write()
    peak = most_held(lm.device)  # before the profiler keeps its notes and the machine is measured
    seconds, held = watch.median(), held_by(write, lm.device)
    hidden = hidden_parameters(lm.model)
    speed = 2.0 * hidden * text_calls * length / seconds
    machine = measure_machine(lm.device, torch.bfloat16 if lm.precision == "bf16" else torch.float32)
    weights = [*lm.model.parameters(), *(lm.time_embedding.parameters() if lm.time_embedding else ())]
    return SamplingSpeed(
        machine=machine,
        parameters=sum(p.numel() for p in weights),
        hidden_parameters=hidden,
        vocabulary=lm.process.vocabulary.size,
        num=num,
        length=length,
        attention=str(lm.model.config._attn_implementation),
        repeats=repeats,
        seconds=seconds,
        fastest=min(watch.seconds),
        slowest=max(watch.seconds),
        tokens_per_second=num * length / seconds,
        calls=calls,
        tokens_per_call=num * length / text_calls,
        seconds_per_call=seconds / calls,
        flops_per_second=speed,
        share_of_peak=speed / machine.peak,
        peak_bytes=peak,
        model_bytes=tensor_bytes(weights),
        beyond_model_bytes=held,
    )
