"""Published diffusion models: how each is recognised, and what must be known to use it as it was made.

Most are an architecture of transformers under another name, with remote code that opens its attention. No remote code
runs: a row of `FAMILIES` says which native architecture has the same mathematics, and what the publisher's own code
does besides.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from dlm.diffusion.formulation import Formulation
from dlm.diffusion.readings import Blocks
from dlm.diffusion.unmask import Confidence, Entropy, Order, Random, TokenChoice
from dlm.errors import CheckpointError
from dlm.model.locate import SIDECAR, file_of


@dataclass(frozen=True)
class Family:
    """Checkpoints of one make. One row of the table below.

    A checkpoint belongs to a family if its `model_type` is one of `types`, and it names one of `architectures` or has
    a name that `named` is found in: its Hub name, or that of its folder.

    Attributes:
        name: What `dlm.yaml` and messages call it.
        types: The `model_type` of its configuration, and that of the native architecture with the same mathematics.
        architectures: The names in its configuration's `architectures`.
        named: A pattern found in its name, where the configuration alone is that of another model.
        sizes: Keys of its configuration by other names, and the native names, whose own values they replace.
        requires: Keys of its configuration whose value the native architecture presumes; a missing key is that value.
        keys: Patterns in the names of its tensors, and what replaces them; each with one group at most.
        tokenizer: The class of its tokenizer; None where transformers finds it itself.
        mask_id: The id of the mask, where neither the tokenizer nor the configuration names one.
        first: The role of the token that stands before every text, such as `bos`; None for nothing.
        shift: Whether the prediction for a position is read one position earlier.
        ends: Tokens that end a text, besides the end of text.
        chat: What its chat template is told.
        context: The longest text that it was trained for, in tokens.
        length: Tokens that `generate` writes by default.
        order: The order of its own sampler.
        token: The token choice of its own sampler.
        block_length: The blocks of its own sampler; None for one block.
        blocks: Tokens a block, of a family that is causal from block to block: a number, or a key of its configuration.
        aligned: Whether these blocks begin with the text; else they begin behind the prompt.
    """

    name: str
    types: Mapping[str, str]
    architectures: tuple[str, ...] = ()
    named: str | None = None
    sizes: Mapping[str, str] = field(default_factory=dict)
    requires: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    tokenizer: str | None = None
    mask_id: int | None = None
    first: str | None = None
    shift: bool = False
    ends: tuple[str, ...] = ()
    chat: Mapping[str, Any] = field(default_factory=dict)
    context: int = 2048
    length: int = 128
    order: Order = field(default_factory=Confidence)
    token: TokenChoice = field(default_factory=TokenChoice)
    block_length: int | None = None
    blocks: int | str | None = None
    aligned: bool = True

    def formulation(self, path: str) -> Formulation:
        """The mathematics that a checkpoint was trained with: masks, as many as a uniform time says.

        Args:
            path: Its folder or Hub name.

        Returns:
            The formulation.

        Raises:
            CheckpointError: Its configuration does not say how long its blocks are.
        """
        if self.blocks is None:
            return Formulation(shift=self.shift)
        size = read_config(path).get(self.blocks) if isinstance(self.blocks, str) else self.blocks
        if not isinstance(size, int) or size < 1:
            raise CheckpointError(
                f"{path}: config.json does not say by {self.blocks} how long its blocks are, got {size}"
            )
        return Formulation(readings=Blocks(size, "block-causal"))

    def matches(self, path: str, tree: Mapping[str, Any]) -> bool:
        """Whether a checkpoint is of this family.

        Args:
            path: Its folder or Hub name.
            tree: Its configuration.

        Returns:
            Whether it is.
        """
        if tree.get("model_type") not in self.types:
            return False
        if not set(self.architectures).isdisjoint(_architectures(tree)):
            return True
        return self.named is not None and re.search(self.named, name_of(path), re.IGNORECASE) is not None

    def config(self, tree: Mapping[str, Any]) -> PreTrainedConfig:
        """The configuration of the native architecture.

        Args:
            tree: The checkpoint's own configuration.

        Returns:
            The native one.

        Raises:
            CheckpointError: The checkpoint is a variant that the native architecture does not have.
        """
        for key, value in self.requires.items():
            if (found := tree.get(key, value)) != value:
                raise CheckpointError(
                    f"this {self.name} has {key} {found!r}, and the native architecture has {value!r}: "
                    "no native architecture computes this variant"
                )
        native = self.types[tree["model_type"]]
        blank = CONFIG_MAPPING[native]()
        known = {*blank.to_dict(), *blank.attribute_map, "rope_theta", "rope_scaling"} - {"architectures", "model_type"}
        same = {key: value for key, value in tree.items() if key in known}
        renamed = {ours: tree[theirs] for theirs, ours in self.sizes.items() if tree.get(theirs) is not None}
        config: PreTrainedConfig = CONFIG_MAPPING[native].from_dict({**same, **renamed})
        return config

    def load_tokenizer(self, path: str, tree: Mapping[str, Any]) -> PreTrainedTokenizerBase:
        """Loads its tokenizer, and names the mask and the padding where the publisher's files do not.

        Args:
            path: The folder or Hub name.
            tree: The checkpoint's configuration.

        Returns:
            The tokenizer; no token that may stand in a text is its padding.

        Raises:
            CheckpointError: The mask is no token of the tokenizer.
        """
        if self.tokenizer:
            kind: Any = getattr(transformers, self.tokenizer)
            tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(path)
        else:
            tokenizer = AutoTokenizer.from_pretrained(path, config=self.config(tree), trust_remote_code=False)
        mask_id = tree.get("mask_token_id", self.mask_id)
        if tokenizer.mask_token_id is None and mask_id is not None:
            mask = tokenizer.convert_ids_to_tokens(mask_id) if mask_id < len(tokenizer) else None
            if mask is None:
                raise CheckpointError(
                    f"{path}: the mask of {self.name} is {mask_id}, which its tokenizer does not have"
                )
            tokenizer.mask_token = mask
        if tokenizer.pad_token in (*self.ends, tokenizer.eos_token):
            tokenizer.pad_token = None  # attention would ignore it, and the model reads it as text
        return tokenizer

    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The ids of `ends` that a tokenizer has."""
        known = tokenizer.get_vocab()
        return [known[token] for token in self.ends if token in known and known[token] != tokenizer.eos_token_id]

    def first_id(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """The id that stands before every text, or None for nothing."""
        found: int | None = getattr(tokenizer, f"{self.first}_token_id") if self.first else None
        return found


_LLADA_BLOCK = r"^model\.transformer\.blocks\.(\d+)\."
_LLADA_LAYER = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_GREEDY = TokenChoice(temperature=0.0)

# https://github.com/ZHZisZZ/dllm, decoders turned into masked diffusion models.
_A2D = Family(
    name="A2D",
    types={"a2d-qwen2": "qwen2", "a2d-qwen3": "qwen3", "a2d-llama": "llama"},
    architectures=("A2DQwen2LMHeadModel", "A2DQwen3LMHeadModel", "A2DLlamaLMHeadModel"),
    ends=("<|im_end|>", "<|eot_id|>", "<|endoftext|>"),
    chat={"enable_thinking": False},
    context=1024,
    token=_GREEDY,
    block_length=32,
)

FAMILIES = (
    # 2502.09992. Its code writes blocks from left to right, by confidence.
    Family(
        name="LLaDA",
        types={"llada": "llama"},
        architectures=("LLaDAModelLM", "LLaDAModel"),
        sizes={
            "d_model": "hidden_size",
            "n_heads": "num_attention_heads",
            "n_kv_heads": "num_key_value_heads",
            "n_layers": "num_hidden_layers",
            "mlp_hidden_size": "intermediate_size",
            "max_sequence_length": "max_position_embeddings",
            "weight_tying": "tie_word_embeddings",
            "embedding_size": "vocab_size",
        },
        requires={
            "block_type": "llama",
            "block_group_size": 1,
            "activation_type": "silu",
            "rope": True,
            "alibi": False,
            "layer_norm_type": "rms",
            "layer_norm_with_affine": True,
            "attention_layer_norm": False,
            "input_emb_norm": False,
            "scale_logits": False,
            "include_bias": False,
            "include_qkv_bias": False,
            "bias_for_layer_norm": False,
        },
        keys={
            r"^model\.transformer\.wte\.": "model.embed_tokens.",
            r"^model\.transformer\.ln_f\.": "model.norm.",
            r"^model\.transformer\.ff_out\.": "lm_head.",
            **{rf"{_LLADA_BLOCK}{theirs}\.": rf"model.layers.\1.{ours}." for theirs, ours in _LLADA_LAYER.items()},
        },
        tokenizer="PreTrainedTokenizerFast",
        mask_id=126336,
        first="bos",
        ends=("<|eot_id|>",),
        context=4096,
        token=_GREEDY,
        block_length=32,
    ),
    # 2508.15487; also Dream-Coder and DiffuCoder. The tokenizer is Qwen2's, under a class of its own.
    Family(
        name="Dream",
        types={"Dream": "qwen2"},
        architectures=("DreamModel",),
        tokenizer="Qwen2Tokenizer",
        mask_id=151666,
        shift=True,
        ends=("<|im_end|>",),
        order=Entropy(),
        token=TokenChoice(temperature=0.2, top_p=0.95),
    ),
    # The same as block diffusion (BD3-LM, 2503.09573). Its code fills up the first block of a prompt on the left. Only
    # its name tells it from the next.
    replace(_A2D, name="A2D-BD3LM", architectures=(), named=r"bd3-?lm", block_length=None, blocks=32, aligned=False),
    _A2D,
    # 2510.06303; also TraDo. Qwen3 with a mask behind its vocabulary.
    Family(
        name="SDAR",
        types={"sdar": "qwen3"},
        architectures=("SDARForCausalLM",),
        tokenizer="Qwen2Tokenizer",
        mask_id=151669,
        ends=("<|im_end|>",),
        context=4096,
        blocks="block_size",
    ),
    # https://github.com/pengzhangzhi/Open-dLLM; its configuration is Qwen2's with remote code.
    Family(
        name="Open-dCoder",
        types={"qwen2": "qwen2"},
        named=r"open-?d(coder|llm)",
        tokenizer="Qwen2Tokenizer",
        mask_id=151665,
        shift=True,
        ends=("<|im_end|>",),
        token=TokenChoice(temperature=0.8, top_p=0.95),
    ),
    # 2410.17891. Its mask is a token of GPT-2's own vocabulary.
    Family(
        name="DiffuGPT",
        types={"gpt2": "gpt2"},
        architectures=("DiscreteDiffusionModel",),
        named="diffugpt",
        keys={r"^denoise_model\.": "transformer.", r"^embed_tokens\.": "transformer.wte."},
        mask_id=10541,
        first="eos",
        shift=True,
        context=1023,
        order=Random(),
        token=TokenChoice(temperature=0.95, top_p=0.9),
    ),
    # 2410.17891. Its mask is a word of Llama's own vocabulary.
    Family(
        name="DiffuLLaMA",
        types={"llama": "llama"},
        architectures=("DiscreteDiffusionModel",),
        named="diffullama",
        keys={r"^denoise_model\.": "model.", r"^embed_tokens\.": "model.embed_tokens."},
        mask_id=811,
        first="bos",
        shift=True,
        context=2047,
        order=Random(),
        token=TokenChoice(temperature=0.9, top_p=0.9),
    ),
)
"""Every family that loads."""


DIFFUSION_GEMMA = "diffusion_gemma"
"""The `model_type` of DiffusionGemma, which writes by the generation of transformers; see `dlm.lm.diffusion_gemma`."""


@dataclass(frozen=True)
class Refused:
    """Checkpoints that do not load, and why.

    Attributes:
        name: What they are called.
        pattern: Found in a name of `architectures` or in the `model_type`; in its own name where there is neither.
        reason: What is missing.
    """

    name: str
    pattern: str
    reason: str

    def matches(self, path: str, tree: Mapping[str, Any]) -> bool:
        """Whether a checkpoint is one of these; see `Family.matches`."""
        names = [*_architectures(tree), str(tree.get("model_type", ""))]
        if tree and not any(names):
            names = [name_of(path).rpartition("/")[2]]
        return any(re.search(self.pattern, name, re.IGNORECASE) for name in names)


_EXPERTS = "its mixture of experts has no native architecture in transformers"

REFUSED = (
    Refused("LLaDA2", r"^LLaDA2", _EXPERTS),
    Refused("LLaDA-MoE", r"^LLaDA-?MoE", _EXPERTS),
    Refused("LLaDA-V", r"^LlavaLLaDA", "it reads images, for which transformers has no native architecture"),
    Refused("MMaDA", r"^MMada", "it reads images, for which transformers has no native architecture"),
    Refused("SDAR with experts", r"^SDAR_?MoE", _EXPERTS),
    Refused(
        "Fast-dLLM v2", r"^Fast_dLLM", "its blocks are predicted one position earlier, which is not done behind a cache"
    ),
    Refused("BD3-LM", r"^bd3-?lm", "its network, a DiT that takes the time, is no native architecture of transformers"),
    Refused("RND1", r"^RND1", _EXPERTS),
    Refused("MDLM", r"^MDLM$", "its network, a DiT that takes the time, is no native architecture of transformers"),
    Refused("SEDD", r"^SEDD", "its network, a DiT that predicts ratios, is no native architecture of transformers"),
)
"""Known diffusion models without a native twin."""


def find(path: str) -> Family | None:
    """Finds the family of a checkpoint.

    Args:
        path: A folder, or a Hub name.

    Returns:
        The family; None for any other model, and for what `dlm` wrote.

    Raises:
        CheckpointError: The checkpoint is a diffusion model that cannot be loaded, or needs code of its own; or its
            configuration cannot be read.
    """
    tree = read_config(path)
    if tree.get("model_type") == DIFFUSION_GEMMA:
        raise CheckpointError(
            f"{path} is DiffusionGemma, which writes by the generation of transformers and has no loss: "
            "dlm sample alone uses it"
        )
    return family_of(path, tree)


def family_of(path: str, tree: Mapping[str, Any]) -> Family | None:
    """Finds the family that a configuration belongs to; see `find`."""
    if (Path(path) / SIDECAR).exists():
        return None
    for refused in REFUSED:
        if refused.matches(path, tree):
            raise CheckpointError(f"{path} is {refused.name}, which cannot be loaded: {refused.reason}")
    for family in FAMILIES:
        if family.matches(path, tree):
            return family
    if "auto_map" in tree and tree.get("model_type") not in CONFIG_MAPPING:
        kind = (_architectures(tree) or [tree.get("model_type", "model")])[0]
        raise CheckpointError(
            f"{path} is a {kind} that needs code of its own, which is never run; diffusion models that load without "
            f"it: {', '.join(family.name for family in FAMILIES)}"
        )
    return None


def by_name(name: str) -> Family:
    """The family that `dlm.yaml` names.

    Args:
        name: Its name.

    Returns:
        The family.

    Raises:
        ValueError: There is none of that name.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ValueError(f"family: there is none called {name!r}; known: {', '.join(each.name for each in FAMILIES)}")


def name_of(path: str) -> str:
    """The name of a checkpoint: its Hub name, also where it lies in the Hub's cache, or the name of its folder."""
    if not Path(path).exists():
        return path
    parts = Path(path).resolve().parts
    cached = [part for part in parts if part.startswith("models--")]
    return cached[-1].removeprefix("models--").replace("--", "/") if cached else parts[-1]


def read_config(path: str) -> dict[str, Any]:
    """Reads `config.json` as plain values.

    Args:
        path: A folder, or a Hub name.

    Returns:
        Its content; empty where there is no such file, as beside adapters.

    Raises:
        CheckpointError: The file is damaged, or cannot be had from the Hub.
    """
    file = file_of(path, "config.json")
    if file is None:
        return {}
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{file} is damaged: it holds no configuration")
    return tree


def _architectures(tree: Mapping[str, Any]) -> list[str]:
    """The names of classes in a configuration."""
    names = tree.get("architectures") or []
    return [str(name) for name in names] if isinstance(names, list) else [str(names)]
