"""The speed of the real sampler."""

from dataclasses import asdict, dataclass
from typing import Any

from dlm.bench.machine import Machine, measure_machine, peak_memory, peak_tensor_bytes
from dlm.bench.models import Texts, write_texts
from dlm.bench.network import hidden_parameters, tensor_bytes
from dlm.bench.stopwatch import Stopwatch
from dlm.lm import DiffusionLM, Sampler
from dlm.model.precision import DTYPES


@dataclass(frozen=True)
class SamplingSpeed:
    """The cost of sampling some texts in one batch.

    Attributes:
        machine: The limits of the machine, in the precision of the model.
        parameters: Parameters of the network.
        hidden_parameters: Its parameters outside of embeddings, vocabulary projection and time embedding.
        vocabulary: Number of ids.
        num: Texts in the batch.
        length: Tokens a text.
        attention: The implementation of attention.
        repeats: Number of timed runs.
        seconds: The median time of a run.
        fastest: The shortest time, in seconds.
        slowest: The longest time.
        tokens_per_second: Sampled tokens over the median time.
        calls: Network calls of a run, each for all texts that change in it.
        tokens_per_call: Tokens of one text that a call adds, on average.
        seconds_per_call: The median time over the number of calls; it includes the sampler's own work.
        flops_per_second: 2 for each hidden parameter and position that the network reads (2001.08361, section 2.1):
            every position of each text, at each call in which the text takes part.
        share_of_peak: The same as a share of the machine's peak.
        peak_bytes: The peak memory: on CUDA of all tensors, else of the whole program.
        model_bytes: Bytes of the weights.
        beyond_model_bytes: The peak memory of sampling beyond the weights, in bytes of tensors.
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
    """Times `lm.generate`, which samples the same texts in every run.

    Args:
        lm: The model.
        num: Number of texts, all in one batch.
        length: Tokens a text; the context by default.
        sampler: The sampler.
        repeats: Number of timed runs; at least 1.
        warmup: Number of runs before them, which are not timed; at least 1, which counts the calls.

    Returns:
        The medians.

    Raises:
        DlmError: The length does not fit the context, or the sampler does not fit the model.
    """
    length = lm.context if length is None else length

    def write() -> Texts:
        return write_texts(lm, num=num, length=length, sampler=sampler, batch_size=num)

    for _ in range(warmup):
        texts = write()
    calls, text_calls = texts.calls, texts.text_calls
    watch = Stopwatch(lm.device)
    for _ in range(repeats):
        with watch:
            write()
    peak = peak_memory(lm.device)  # before the profiler and the measurement of the machine allocate memory
    seconds, held = watch.median(), peak_tensor_bytes(write, lm.device)
    hidden = hidden_parameters(lm.model)
    speed = 2.0 * hidden * text_calls * length / seconds
    machine = measure_machine(lm.device, DTYPES[lm.precision])
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
