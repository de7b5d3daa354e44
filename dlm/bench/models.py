"""The models that are compared: diffusion models of `dlm`, and autoregressive models of transformers."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dlm.config import Pretrained
from dlm.diffusion.sample import State
from dlm.errors import CheckpointError, one_line
from dlm.evaluate.samples import CausalJudge, Judge, ReadingJudge
from dlm.lm import DiffusionLM, Sampler
from dlm.model.checkpoint import read_sidecar
from dlm.model.loading import load_weights, usable_positions
from dlm.model.locate import is_adapter, resolve
from dlm.model.precision import DTYPES, Precision, working_precisions
from dlm.model.public import find, read_config
from dlm.model.text import decode
from dlm.model.tokenizer import before_id, build_tokenizer, check_rows, new_ids, special_ids, vocabulary_of
from dlm.model.weights import Dtype, Held, Quantization


@dataclass(frozen=True)
class Texts:
    """Texts that were written, and what they cost.

    Attributes:
        ids: The ids of each text, up to its end and without that.
        calls: All network calls, each for the texts written side by side.
        text_calls: Network calls that each text took part in, of all texts together.
    """

    ids: tuple[tuple[int, ...], ...]
    calls: int
    text_calls: int


def write_texts(
    lm: DiffusionLM, *, num: int, length: int | None, sampler: Sampler | None, batch_size: int, seed: int = 0
) -> Texts:
    """Writes texts from nothing by `lm.generate`, and counts its calls.

    Args:
        lm: The model.
        num: How many texts.
        length: Tokens a text.
        sampler: The sampler.
        batch_size: Texts written side by side.
        seed: The texts follow from it.

    Returns:
        The texts.
    """
    batches: list[int] = []

    def count(state: State) -> None:
        if state.calls == 0:  # the first state of a batch
            batches.append(0)
        batches[-1] = state.calls

    texts = lm.generate(num=num, length=length, sampler=sampler, batch_size=batch_size, seed=seed, watch=count)
    return Texts(tuple(text.ids for text in texts), sum(batches), sum(text.calls for text in texts))


class CausalLM:
    """An autoregressive model that transformers writes with, with its cache of keys and values.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        context: The longest text, in tokens; None for any length.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stops: tuple[int, ...] = (),
        precision: Precision = "fp32",
    ) -> None:
        """Puts a model and its tokenizer together.

        Args:
            model: A causal-LM model of transformers, in evaluation mode.
            tokenizer: Its tokenizer, with an end of text that the model has a row for.
            stops: The ids that end a text; none for texts that fill their length and may hold several documents.
            precision: What it computes in.
        """
        self.model, self.tokenizer, self.context = model, tokenizer, usable_positions(model)
        self._stops, self._precision = stops, precision
        unknown = special_ids(tokenizer).unknown
        besides = [] if unknown is None or unknown in stops else [unknown]
        forbidden = {*vocabulary_of(tokenizer, int(model.config.vocab_size), besides).forbidden} - {*stops}
        self._forbidden = sorted(id_ for id_ in forbidden if id_ < model.config.vocab_size)
        # A model's own settings, such as a penalty for repetition, would make another distribution of the texts.
        model.generation_config = GenerationConfig()

    @torch.inference_mode()
    def write(self, *, num: int, length: int, temperature: float, batch_size: int, seed: int = 0) -> Texts:
        """Writes texts from nothing by `generate` of transformers, and decodes them, as `DiffusionLM.generate` does.

        Args:
            num: How many texts.
            length: Tokens a text.
            temperature: Divides the log-probabilities; 0 takes the likeliest token.
            batch_size: Texts written side by side.
            seed: The texts follow from it, and from the batches.

        Returns:
            The texts.
        """
        ids: list[tuple[int, ...]] = []
        text_calls, drawn = 0, {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        how = GenerationConfig(
            **(drawn if temperature else {"do_sample": False}),
            max_new_tokens=length,
            use_cache=True,
            eos_token_id=[*self._stops] or None,
            pad_token_id=special_ids(self.tokenizer).end,
            suppress_tokens=self._forbidden or None,
        )
        generate: Any = self.model.generate  # whose types transformers does not declare
        with self._counting() as calls, self._seeded(seed):
            for start in range(0, num, batch_size):
                first_B1 = torch.full((min(batch_size, num - start), 1), before_id(self.tokenizer))
                first_B1 = first_B1.to(self.model.device)
                written = generate(first_B1, attention_mask=torch.ones_like(first_B1), generation_config=how)
                for row in written[:, 1:].tolist():
                    stop = next((at for at, id_ in enumerate(row) if id_ in self._stops), None)
                    ids.append(tuple(row[:stop]))
                    text_calls += len(row) if stop is None else stop + 1
        for each in ids:
            decode(self.tokenizer, each)
        return Texts(tuple(ids), len(calls), text_calls)

    @contextmanager
    def _counting(self) -> Iterator[list[None]]:
        """A list that grows by one with every call of the network."""
        calls: list[None] = []
        handle = self.model.register_forward_pre_hook(lambda *_: calls.append(None))
        try:
            yield calls
        finally:
            handle.remove()

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """Global random numbers, which transformers draws from, that follow from a seed; and the precision."""
        device = self.model.device
        narrow = self._precision != "fp32" and self.model.dtype == torch.float32
        computing = torch.autocast(device.type, DTYPES[self._precision]) if narrow else nullcontext()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), computing:
            torch.manual_seed(seed)
            yield


@dataclass(frozen=True)
class Model:
    """A model that is compared, or judges.

    Attributes:
        name: What it was asked for by.
        lm: What reads it as `dlm` does; None for an autoregressive model that `dlm` did not write.
        plain: What reads it as transformers does; None where that would read it as another.
    """

    name: str
    lm: DiffusionLM | None
    plain: CausalLM | None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self._loaded.tokenizer

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._loaded.model.device

    @property
    def _loaded(self) -> DiffusionLM | CausalLM:
        found = self.lm or self.plain
        assert found is not None
        return found

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a document."""
        return self.lm.end_ids if self.lm else (special_ids(self.tokenizer).end,)

    @property
    def room(self) -> int | None:
        """The longest text that it writes, in tokens; None for any length."""
        if self.lm:
            return self.lm.layout.room(None)
        return self.plain.context if self.plain else None

    @property
    def autoregressive(self) -> bool:
        """Whether it reads from left to right and no other way."""
        return self.lm is None or (self.causal and not self.lm.formulation.readings.any_order)

    @property
    def causal(self) -> bool:
        """Whether it has a causal reading."""
        return self.lm is None or self.lm.formulation.readings.causal

    def judge(self, seed: int = 0) -> Judge:
        """It as a judge of texts.

        Args:
            seed: The masks of a bound follow from it.

        Returns:
            The judge: exact where the model has a causal reading, else by its bound.
        """
        if self.lm:
            return ReadingJudge(self.lm, seed=seed)
        assert self.plain is not None
        return CausalJudge(self.plain.model, self.plain.tokenizer)


def place_of(name: str) -> str:
    """Where a model is, the same for every name of it: a run folder, its checkpoint, or a link to that.

    Args:
        name: A run folder, a checkpoint folder or a Hub name.

    Returns:
        The real path of its folder, or the Hub name.

    Raises:
        CheckpointError: There is no such model.
    """
    path = Path(resolve(name))
    return str(path.resolve()) if path.exists() else name


def open_model(
    name: str,
    *,
    device: str | None = None,
    dtype: Dtype = "auto",
    load: Quantization | None = None,
    plain: Literal["always", "if autoregressive", "never"] = "never",
) -> Model:
    """Loads a model to be compared, or to judge.

    Args:
        name: A run folder, a checkpoint folder or a Hub name: of a diffusion model, or of an autoregressive model.
        device: Where to put it; a GPU where there is one by default.
        dtype: What the weights are held in and the network computes in.
        load: Quantise the weights to 4 or 8 bits.
        plain: When transformers too reads a model of `dlm` with a causal reading, from the same folder.

    Returns:
        The model.

    Raises:
        CheckpointError: There is no such model, it is damaged, or no text can begin in it.
        ConfigError: The weights cannot be quantised here.
    """
    held = Held(dtype, load, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    path = resolve(name)
    if _is_plain(path):
        held.check()
        return Model(name, None, _load_plain(path, held))
    lm = DiffusionLM.from_pretrained(name, device=held.device, dtype=dtype, load=load)
    found = Model(name, lm, None)
    if not found.causal or plain == "never" or (plain == "if autoregressive" and not found.autoregressive):
        return found
    if is_adapter(path) or lm.formulation.timed:
        return found
    stops = lm.end_ids if lm.documents_apart else ()
    return Model(name, lm, _load_plain(path, held, stops))


def _is_plain(path: str) -> bool:
    """Whether a model is an autoregressive one that `dlm` did not write and that has no mask."""
    if is_adapter(path) or read_sidecar(path) is not None or find(path) is not None:
        return False
    tree = read_config(path)
    kind = str(tree.get("model_type"))
    if kind not in CONFIG_MAPPING:
        return False
    config = CONFIG_MAPPING[kind]
    if config in MODEL_FOR_MASKED_LM_MAPPING or config not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    if tree.get("is_causal") is False:
        return False
    tokenizer = build_tokenizer(Pretrained(path), lambda: (), adds_mask=True)
    return special_ids(tokenizer).mask in new_ids(tokenizer, path)


def _load_plain(path: str, held: Held, stops: tuple[int, ...] = ()) -> CausalLM:
    """An autoregressive model as plain transformers reads it."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # json, the Hub and transformers raise different types
        raise CheckpointError(f"cannot load a model from {path}: {one_line(error)}") from error
    tokenizer = build_tokenizer(Pretrained(path), lambda: (), adds_mask=True)
    size = int(config.vocab_size)
    check_rows(tokenizer, size)
    if before_id(tokenizer) >= size or special_ids(tokenizer).end >= size:
        raise CheckpointError(
            f"{path} has no begin or end of text that its model was trained with, so that no text can begin in it: "
            "name the tokens in its tokenizer_config.json, or take another model"
        )
    model = load_weights(AutoModelForCausalLM, path, config=config, **held.arguments(config), trust_remote_code=False)
    precision, _ = working_precisions("fp32" if held.dtype == "fp32" else "auto", model.dtype, held.device)
    return CausalLM(model, tokenizer, stops=stops, precision=precision)
