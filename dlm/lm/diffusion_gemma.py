"""DiffusionGemma, which writes by the generation of transformers: uniform noise on one canvas after another."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from dlm.config import Pretrained
from dlm.diffusion.draws import generator
from dlm.diffusion.sample import State
from dlm.diffusion.unmask import EntropyBound, FixedSteps
from dlm.errors import CheckpointError, ConfigError, DataError
from dlm.lm.layout import Prompt, prompt_ids
from dlm.lm.sampler import Sampler, Watch
from dlm.lm.samples import Sample
from dlm.model.loading import load_weights
from dlm.model.locate import resolve
from dlm.model.public import DIFFUSION_GEMMA, read_config
from dlm.model.tokenizer import build_tokenizer, special_ids
from dlm.model.weights import Dtype, Held, Quantization


class DiffusionGemma:
    """DiffusionGemma with its tokenizer. It writes texts, and nothing else.

    Attributes:
        model: The HuggingFace model.
        tokenizer: Its tokenizer; the mask stands only in films, for canvases that are not begun.
        canvas_length: Tokens a canvas.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Puts a model and its tokenizer together.

        Args:
            model: A `DiffusionGemmaForBlockDiffusion`.
            tokenizer: Its tokenizer.
        """
        self.model: Any = model.eval()
        self.tokenizer = tokenizer
        self.canvas_length = int(self.model.config.canvas_length)

    @staticmethod
    def is_at(model: str | Path) -> bool:
        """Whether a folder or a Hub name is a DiffusionGemma.

        Args:
            model: A run folder, a checkpoint folder or a Hub name.

        Returns:
            Whether it is.

        Raises:
            CheckpointError: There is no such model.
        """
        return read_config(resolve(model)).get("model_type") == DIFFUSION_GEMMA

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: Dtype = "auto",
        load: Quantization | None = None,
    ) -> Self:
        """Loads a model.

        Args:
            model: A checkpoint folder, or a Hub name.
            device: Where to put it; a GPU where there is one by default.
            dtype: What its weights are held in, and what it computes in; `auto` is what they are stored in.
            load: Quantise the weights to 4 or 8 bits, by `bitsandbytes`.

        Returns:
            The model, ready to use.

        Raises:
            CheckpointError: There is no such model, it is damaged, or this transformers does not have it.
            ConfigError: The weights cannot be quantised here.
        """
        try:
            from transformers import DiffusionGemmaForBlockDiffusion
        except ImportError as error:
            raise CheckpointError(
                f"{model} is DiffusionGemma, which the installed transformers does not have: install a newer one"
            ) from error
        path = resolve(model)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        held = Held(dtype, load, where)
        held.check()
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        network = load_weights(DiffusionGemmaForBlockDiffusion, path, **held.arguments(config))
        return cls(network, build_tokenizer(Pretrained(path), lambda: ()))

    def generate(
        self,
        prompt: Prompt = None,
        *,
        num: int = 1,
        length: int | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        watch: Watch | None = None,
    ) -> list[Sample]:
        """Writes texts, one at a time, each a canvas at a time.

        Args:
            prompt: What the text begins with, or a chat.
            num: How many texts.
            length: Tokens to write at most, a multiple of `canvas_length`; by default what the checkpoint says, or one
                canvas.
            sampler: A number of steps (`FixedSteps`), the most that a canvas takes, or an `EntropyBound`; what is not
                given is as the checkpoint says.
            seed: Text number i depends on the seed and i alone.
            batch_size: Not for this model, whose random numbers are those of a whole batch.
            watch: Called with every draft; canvases that are not begun are masks.

        Returns:
            `num` texts. The calls of each are its denoising steps.

        Raises:
            DataError: The prompt and the length do not fit the model.
            ConfigError: The length or the sampler is one that the generation of transformers would ignore.
        """
        return [
            *self.stream(prompt, num=num, length=length, sampler=sampler, seed=seed, batch_size=batch_size, watch=watch)
        ]

    def stream(
        self,
        prompt: Prompt = None,
        *,
        num: int = 1,
        length: int | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        watch: Watch | None = None,
    ) -> Iterator[Sample]:
        """The texts of `generate`, of which this has the arguments and errors, each as soon as it is finished."""
        check_sampler(sampler or Sampler(), batch_size)
        tokens, ends = self._length(length), self._end_ids()
        options = {
            **self._options(sampler or Sampler()),
            "max_new_tokens": tokens,
            "eos_token_id": sorted(ends),
            "pad_token_id": special_ids(self.tokenizer).end,  # what fills a canvas after an end
        }
        given = self._given(prompt, tokens)
        for number in range(num):
            drafts = _Drafts(len(given), tokens, self.tokenizer, watch if number == 0 else None)
            x_1L = torch.tensor([given], device=self.model.device)
            with _seeded(generator(seed, "sample", number).initial_seed(), self.model.device):
                self.model.generate(x_1L, streamer=drafts, **options)
            yield Sample.of(prompt, given, drafts.written, ends, drafts.calls, self.tokenizer)

    def _length(self, length: int | None) -> int:
        """The number of tokens to write, in whole canvases."""
        if length is None:
            asked = int(self.model.generation_config.max_new_tokens or self.canvas_length)
            return math.ceil(asked / self.canvas_length) * self.canvas_length
        if length < 1 or length % self.canvas_length:
            raise ConfigError(
                f"--length: DiffusionGemma writes whole canvases of {self.canvas_length} tokens, got {length}; "
                f"give a multiple, such as {max(1, round(length / self.canvas_length)) * self.canvas_length}"
            )
        return length

    def _given(self, prompt: Prompt, length: int) -> list[int]:
        """The ids of a prompt, after a begin of text."""
        given = prompt_ids(self.tokenizer, prompt)
        first_id = self.tokenizer.bos_token_id
        if first_id is not None and given[:1] != [first_id]:
            given = [first_id, *given]
        if not given:
            raise DataError("this model has no begin of text, so it needs a prompt: give one")
        room = int(self.model.config.text_config.max_position_embeddings) - len(given)
        if length > room:
            raise DataError(
                f"the prompt takes {len(given)} tokens and the text {length}, and this model has positions for "
                f"{room + len(given)}: shorten them"
            )
        return given

    def _options(self, sampler: Sampler) -> dict[str, Any]:
        """What `generate` of transformers is told."""
        options: dict[str, Any] = {} if self.model.device.type != "cpu" else {"disable_compile": True}
        if isinstance(sampler.budget, FixedSteps):
            options["max_denoising_steps"] = sampler.budget.steps
        elif isinstance(sampler.budget, EntropyBound):
            from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

            options["sampler_config"] = EntropyBoundSamplerConfig(entropy_bound=float(sampler.budget.entropy_bound))
        return options

    def _end_ids(self) -> set[int]:
        """The ids that end a text."""
        named = self.model.generation_config.eos_token_id
        listed = named if isinstance(named, Sequence) else [named]
        return {special_ids(self.tokenizer).end, *(id_ for id_ in listed if id_ is not None)}


def check_sampler(sampler: Sampler, batch_size: int | None) -> None:
    """Refuses what the generation of transformers would ignore, before anything is loaded.

    Args:
        sampler: How to write.
        batch_size: Texts side by side; None where that was left open.

    Raises:
        ConfigError: There is something of that kind.
    """
    ignored = {
        "--order": sampler.order,
        "--temperature, --top-k and --top-p": sampler.token,
        "--block-length": sampler.block_length,
        "--cache": sampler.reuse,
        "--remask": sampler.remask,
        "--guidance": sampler.guidance,
    }
    for flag, asked in ignored.items():
        if asked is not None:
            raise ConfigError(f"{flag}: DiffusionGemma writes by a sampler of its own, which has no use for it")
    if batch_size is not None:
        raise ConfigError("--batch-size: DiffusionGemma writes one text at a time here; leave it out")
    match sampler.budget:
        case None | FixedSteps(grid="linear"):
            return
        case EntropyBound(entropy_bound=bound) if bound > 0.0:
            return
    raise ConfigError(
        "DiffusionGemma writes by a sampler of its own: give --steps N, the most that a canvas takes, "
        "or --entropy-bound G above 0"
    )


@dataclass
class _Drafts:
    """What transformers calls with the prompt, every draft and every finished canvas; a text at a time.

    Attributes:
        given: Tokens of the prompt.
        length: Tokens of all canvases.
        tokenizer: Its mask stands where nothing is written yet.
        watch: Called with every state.
        calls: Denoising steps so far.
        written: The finished canvases.
    """

    given: int
    length: int
    tokenizer: PreTrainedTokenizerBase
    watch: Watch | None
    calls: int = 0
    written: list[int] = field(default_factory=list)
    _last: list[int] | None = None
    _prompt: list[int] | None = None

    def put(self, value: Tensor) -> None:
        """Takes the prompt, and later each finished canvas."""
        ids = value.flatten().tolist()
        if self._prompt is None:
            self._prompt = ids
            self._show([])
            return
        self.written += ids
        self._show([])

    def put_draft(self, value: Tensor) -> None:
        """Takes the text of a canvas after a step."""
        self.calls += 1
        self._show(value.flatten().tolist())

    def end(self) -> None:
        """Shows the canvases that were not needed as ends of text, which fill any text after its end."""
        self._show([special_ids(self.tokenizer).end] * (self.length - len(self.written)))

    def _show(self, draft: list[int]) -> None:
        if self.watch is None:
            return
        assert self._prompt is not None
        rest = self.length - len(self.written) - len(draft)
        row = [*self._prompt, *self.written, *draft, *[special_ids(self.tokenizer).mask] * rest]
        before, self._last = self._last, row
        if row == before:
            return
        x_BL = torch.tensor([row])
        editable_BL = torch.arange(len(row))[None] >= self.given
        changed_BL = torch.zeros_like(editable_BL) if before is None else x_BL != torch.tensor([before])
        self.watch(State(x_BL, editable_BL, changed_BL, self.calls, torch.tensor([self.calls])))


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws of the global generators follow from a seed inside, and go on as before after it."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
