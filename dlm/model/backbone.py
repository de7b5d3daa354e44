"""The network: a HuggingFace model made bidirectional, its vocabulary projected only where asked."""

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from dlm.diffusion.network import NetworkInput, Reduced, Reducer
from dlm.errors import CheckpointError, ConfigError
from dlm.model.chunks import reduce_in_chunks
from dlm.model.time_embedding import TIMED, UNDERLYING, TimeEmbedding

HEADS = (
    ("cls",),  # BERT
    ("predictions",),  # ALBERT
    ("generator_predictions", "generator_lm_head"),  # ELECTRA
    ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),  # DistilBERT
    ("head", "decoder"),  # ModernBERT
    ("lm_head",),  # RoBERTa, EuroBERT and every decoder
    ("embed_out",),  # GPT-NeoX before transformers 5
)
"""Where an architecture keeps its head: attributes of the model, applied in turn to the last hidden state."""

HUB_NAME = r"[\w-][\w.-]*(/[\w.-]+)?"
"""What a model on the Hub may be called."""

PAD_OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "roberta-prelayernorm",
    "data2vec-text",
}
"""Architectures that number positions from the padding id on, and so need that many more position embeddings."""


class Backbone(nn.Module):
    """A HuggingFace model as a network for diffusion; see `dlm.diffusion.network`.

    Attributes:
        model: The HuggingFace model, unchanged; its `save_pretrained` is the checkpoint.
        time_embedding: What tells it the time; None for a network that takes no time.
    """

    def __init__(
        self, model: PreTrainedModel, pad_id: int | None = None, time_embedding: TimeEmbedding | None = None
    ) -> None:
        """Finds the model's head and checks that the network can serve.

        Args:
            model: A masked-LM model, or a causal-LM model whose config says `is_causal: false`.
            pad_id: The id that attention does not see; None where no batch is padded.
            time_embedding: What tells it the time.

        Raises:
            ConfigError: The architecture's head is not where any known one is, or it does more to the
                logits than its modules do, so that the rows alone would differ from the whole; or a token
                does not see what stands to its right.
        """
        super().__init__()
        self.model = model
        self.pad_id = pad_id
        self.time_embedding = time_embedding
        self._compiled: Callable[..., Any] | None = None
        self._head = next((names for names in HEADS if all(hasattr(model, name) for name in names)), ())
        self._check()

    def forward(self, inputs: NetworkInput, reducer: Reducer | None = None) -> Tensor | Reduced:
        """Logits of the wanted positions, or what a reducer makes of them.

        Args:
            inputs: The noisy text; its time counts only with a time embedding.
            reducer: Takes the logits a chunk at a time, so that they never exist all at once; see `reduce_in_chunks`.

        Returns:
            Logits, shape (N, V); with a reducer the sum of its totals, and its values, shape (N,).
        """
        rows_ND = self._rows(inputs, self.time_embedding)
        if reducer is None:
            return self._project(rows_ND)
        learned = {id(p): p for name in self._head for p in getattr(self.model, name).parameters()}
        return reduce_in_chunks(self._project, rows_ND, reducer, self.vocabulary, list(learned.values()))

    def _rows(self, inputs: NetworkInput, time_embedding: TimeEmbedding | None) -> Tensor:
        """The last hidden states of the wanted positions, shape (N, D)."""
        read: dict[str, Any] = {"input_ids": inputs.ids_BL, "attention_mask": self._attend(inputs), **self._extra()}
        if time_embedding is not None:
            embedded_BLD = self.model.get_input_embeddings()(read.pop("input_ids"))
            read["inputs_embeds"] = embedded_BLD + time_embedding(inputs.time_B)[:, None]
        if inputs.cache is not None:
            read |= {"past_key_values": inputs.cache, "use_cache": True}
        body = self._compiled if self._compiled and self.training else self.model.base_model
        hidden_BLD = body(**read).last_hidden_state
        if inputs.cache is not None:
            inputs.cache.crop(-inputs.ids_BL.shape[1])  # the model has added the keys and values of these ids
        rows_ND: Tensor = hidden_BLD[inputs.wanted_BL]
        return rows_ND

    def compile_body(self) -> None:
        """Compiles everything below the head, for training alone: there shapes stay as they are."""
        self._compiled = torch.compile(self.model.base_model.forward)

    def _attend(self, inputs: NetworkInput) -> Tensor | None:
        """What is seen: None for everything, the tokens that are no padding, or what is added to each pair's logit."""
        xt_BL, seen_BM = inputs.ids_BL, None  # the common case, and the fastest: nothing is padded
        if self.pad_id is not None and (padding_BL := xt_BL == self.pad_id).any():
            seen_BM = ~padding_BL
            if inputs.cache is not None:  # cached tokens are no padding
                seen_BM = torch.nn.functional.pad(seen_BM, (inputs.cache.get_seq_length(), 0), value=True)
        if inputs.attention is None:
            return None if seen_BM is None else seen_BM.long()
        open_BLM = inputs.attention if seen_BM is None else inputs.attention & seen_BM[:, None]
        open_BLM = open_BLM.expand(len(xt_BL), -1, -1)
        closed = torch.finfo(self.model.dtype).min
        return torch.zeros(open_BLM.shape, device=xt_BL.device).masked_fill(~open_BLM, closed)[:, None]

    def _project(self, rows_ND: Tensor) -> Tensor:
        """Rows to logits, by the model's head."""
        for name in self._head:
            rows_ND = getattr(self.model, name)(rows_ND)
        return rows_ND

    @property
    def _no_split_modules(self) -> list[str]:
        """The classes of layers, as transformers calls them, that are sharded one by one."""
        # Not what holds the embeddings: they may be tied to the head, and the time is added outside of it.
        table = self.model.get_input_embeddings()
        present = {type(module).__name__ for module in self.model.modules() if table not in set(module.modules())}
        return sorted(present & set(self.model._no_split_modules or ()))

    @property
    def vocabulary(self) -> int:
        """The number of ids that the network has a logit for."""
        return int(self.model.config.vocab_size)

    def _extra(self) -> dict[str, Any]:
        """Decoders keep keys and values for a next token unless told not to."""
        return {"use_cache": False} if hasattr(self.model.config, "use_cache") else {}

    @torch.no_grad()
    def _check(self) -> None:
        """Two forwards of two tokens: are rows the rows of the whole, and does the first token see the last?"""
        kind = self.model.config.model_type
        if not self._head:
            raise ConfigError(
                f"model.architecture {kind}: its head is not one that dlm knows; see dlm/model/backbone.py"
            )
        if getattr(self.model.config, "final_logit_softcapping", None):
            raise ConfigError(f"model.architecture {kind}: set model.sizes.final_logit_softcapping to null")
        training = self.model.training
        self.model.eval()
        a, b, c = (i for i in range(4) if i != self.pad_id) if self.pad_id in range(4) else range(3)
        x_BL = torch.tensor([[a, b], [a, c]], device=self.model.device)
        every_BL = torch.ones_like(x_BL, dtype=torch.bool)
        whole_BLV = self.model(input_ids=x_BL, attention_mask=every_BL.long(), **self._extra()).logits
        rows_NV = self._project(self._rows(NetworkInput(x_BL, every_BL, torch.zeros(2, device=x_BL.device)), None))
        self.model.train(training)
        if not torch.allclose(whole_BLV.flatten(0, 1), rows_NV, rtol=1e-2, atol=1e-3, equal_nan=True):
            raise ConfigError(
                f"model.architecture {kind}: its logits are not its head's alone, which dlm does not support"
            )
        if torch.equal(whole_BLV[0, 0], whole_BLV[1, 0]):
            raise ConfigError(
                f"model.architecture {kind} stays causal: it cannot see what stands to the right of a mask"
            )


def build_model(
    architecture: str,
    sizes: Mapping[str, Any],
    *,
    vocabulary: int,
    length: int,
    special_ids: Mapping[str, int],
    attention: str,
    seed: int,
) -> PreTrainedModel:
    """Makes a HuggingFace model with fresh weights.

    Args:
        architecture: A `model_type` with a masked-LM or a causal-LM head.
        sizes: Keys of its configuration.
        vocabulary: Number of ids.
        length: Longest sequence, for `max_position_embeddings` where `sizes` does not give it.
        special_ids: `pad_token_id`, `eos_token_id` and so on.
        attention: As in `attention_implementation`.
        seed: The weights follow from it.

    Returns:
        The model, bidirectional.

    Raises:
        ConfigError: There is no such architecture, key or combination of sizes.
    """
    config = _model_config(architecture, sizes, vocabulary, length, special_ids)
    factory = _auto_class(config)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = factory.from_config(config, attn_implementation=attention, trust_remote_code=False)
    except Exception as error:  # each architecture fails in its own way
        raise ConfigError(f"model: {architecture} cannot be built with these sizes: {_first_line(error)}") from error
    return cast(PreTrainedModel, model)


def check_name(path: str) -> None:
    """Refuses what is neither a path to something, nor a name that a model on the Hub could have.

    Args:
        path: What was given.

    Raises:
        CheckpointError: It is neither.
    """
    if not Path(path).exists() and not re.fullmatch(HUB_NAME, path):
        raise CheckpointError(f"no model at {path}: there is no such folder, and it is no Hub name")


def load_model(path: str, attention: str, sizes: Mapping[str, Any] | None = None) -> PreTrainedModel:
    """Loads a HuggingFace model from a folder or the Hub and makes it bidirectional.

    Args:
        path: A folder with config.json and safetensors weights, or a Hub name.
        attention: As in `attention_implementation`.
        sizes: Keys of its configuration that are to be other than stored, such as dropout.

    Returns:
        The model in evaluation mode, float32.

    Raises:
        CheckpointError: There is no such model, it is damaged, or it has no head for masks.
        ConfigError: `sizes` has a key that the model does not have.
    """
    check_name(path)
    try:
        config = _stored_config(path)
        factory = _auto_class(config)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # json, the Hub and transformers each raise their own
        raise CheckpointError(f"cannot load a model from {path}: {_first_line(error)}") from error
    if sizes:
        _check_keys(config.model_type, config, sizes)
        config.update(dict(sizes))
    try:
        model, info = factory.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors=True,  # other formats are pickles
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:  # safetensors, json, the Hub and transformers each raise their own
        raise CheckpointError(f"cannot load a model from {path}: {_first_line(error)}") from error
    if missing := sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"]):
        raise CheckpointError(
            f"the weights in {path} are not whole: {missing[0]} and {len(missing) - 1} others are missing"
        )
    return cast(PreTrainedModel, model.eval())


def attention_implementation(
    attention: str, device: torch.device, length: int, *, bf16: bool = False, learns: bool = False
) -> str:
    """Chooses how attention is computed.

    On two cores of a CPU (2,048 tokens a step, 6 heads of 64) a training step with SDPA was measured to take 1.12,
    1.09, 1.02 and 0.66 times that with eager attention at 64, 256, 512 and 1024 tokens in bf16, and 0.99, 1.01, 0.93
    and 0.79 times in fp32; the forward alone takes 0.93 to 1.15 times up to 256 tokens, and 0.64 to 0.77 at 512. On
    GPUs SDPA is fastest.

    Args:
        attention: `auto`, or the name of an implementation, which is returned as it is.
        device: Where the model runs.
        length: Tokens a sequence.
        bf16: Whether it computes in bfloat16.
        learns: Whether there is a backward pass.

    Returns:
        The name that transformers knows it by.
    """
    if attention != "auto":
        return attention
    return "eager" if device.type == "cpu" and length <= (512 if bf16 and learns else 256) else "sdpa"


def _model_config(
    architecture: str, sizes: Mapping[str, Any], vocabulary: int, length: int, special_ids: Mapping[str, int]
) -> PreTrainedConfig:
    """The architecture's configuration, after a look at every key."""
    try:
        blank = AutoConfig.for_model(architecture)
    except ValueError:
        known = sorted({c.model_type for c in (*MODEL_FOR_MASKED_LM_MAPPING, *MODEL_FOR_CAUSAL_LM_MAPPING)})
        near = difflib.get_close_matches(architecture, known, n=3)
        raise ConfigError(
            f"model.architecture: transformers has no {architecture!r}; "
            + (f"near it: {', '.join(near)}" if near else "for example qwen3, llama, modernbert, bert")
        ) from None
    names = _check_keys(architecture, blank, sizes)
    offset = special_ids["pad_token_id"] + 1 if architecture in PAD_OFFSET_POSITIONS else 0
    unset = {name: None for name in names if name.endswith("_token_id")}  # defaults point into another vocabulary
    given = {"max_position_embeddings": length + offset, **unset, **special_ids, **sizes, "vocab_size": vocabulary}
    try:
        config = AutoConfig.for_model(architecture, **{k: v for k, v in given.items() if k in names})
    except Exception as error:  # each architecture checks its own sizes in its own way
        raise ConfigError(f"model.sizes: {architecture} refuses these sizes: {_first_line(error)}") from error
    return config


def _check_keys(architecture: str, config: PreTrainedConfig, sizes: Mapping[str, Any]) -> list[str]:
    """The keys that an architecture's configuration has, once all of `sizes` are among them."""
    names = sorted(set(config.to_dict()) | set(config.attribute_map))
    for key in sizes:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            raise ConfigError(
                f"unknown configuration key model.sizes.{key}: "
                + (f"did you mean {near[0]}?" if near else f"{architecture} has no such key")
            )
    return names


def _stored_config(path: str) -> PreTrainedConfig:
    """A checkpoint's configuration; that of a time-conditioned one is under its architecture's own name again."""
    tree, _ = PreTrainedConfig.get_config_dict(path)
    if tree.get("model_type") != TIMED:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    architecture = tree.pop(UNDERLYING)
    config: PreTrainedConfig = CONFIG_MAPPING[architecture].from_dict({**tree, "model_type": architecture})
    return config


def _auto_class(config: PreTrainedConfig) -> Any:
    """Encoders as they are; decoders with `is_causal: false`, which transformers >= 5.2 honours and stores."""
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        return AutoModelForMaskedLM
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        config.is_causal = False
        return AutoModelForCausalLM
    raise ConfigError(f"the architecture {config.model_type} has neither a masked-LM nor a causal-LM head")


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
