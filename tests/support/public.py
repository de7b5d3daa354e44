"""Tiny checkpoints in the layouts of published diffusion models, and LLaDA's forward pass by its own names."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dlm.model.tokenizer import byte_alphabet

TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>{% endif %}"
)
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>")
LLADA_TOKENS = ("<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>")
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
LLADA: dict[str, Any] = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
    "d_model": 32,
    "n_heads": 2,
    "n_kv_heads": 2,
    "n_layers": 2,
    "mlp_hidden_size": 48,
    "mlp_ratio": 4,
    "block_type": "llama",
    "alibi": False,
    "rope": True,
    "rope_theta": 500000.0,
    "layer_norm_type": "rms",
    "rms_norm_eps": 1e-5,
    "weight_tying": False,
    "include_bias": False,
    "max_sequence_length": 64,
    "vocab_size": 264,
    "embedding_size": 264,
    "eos_token_id": 257,
    "pad_token_id": 257,
    "mask_token_id": 258,
}


def tokenizer(tokens: tuple[str, ...], **roles: str) -> PreTrainedTokenizerFast:
    """One token a byte, and special tokens from 256 on."""
    return _wrapped(Backend(models.BPE(vocab={c: i for i, c in enumerate(byte_alphabet())}, merges=[])), tokens, roles)


def _wrapped(backend: Backend, tokens: tuple[str, ...], roles: dict[str, str]) -> PreTrainedTokenizerFast:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE, **roles)


def llada(folder: Path, **changes: Any) -> Path:
    """LLaDA: tensors and sizes by names of its own, and a mask that its tokenizer does not name."""
    tokenizer(
        LLADA_TOKENS, bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    random = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random) * 0.3

    tensors = {"wte.weight": draw(264, 32), "ff_out.weight": draw(264, 32), "ln_f.weight": 1 + draw(32)}
    for i in range(2):
        layer = {name: draw(32, 32) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
        layer |= {"attn_norm": 1 + draw(32), "ff_norm": 1 + draw(32)}
        layer |= {"ff_proj": draw(48, 32), "up_proj": draw(48, 32), "ff_out": draw(32, 48)}
        tensors |= {f"blocks.{i}.{name}.weight": tensor for name, tensor in layer.items()}
    save_file({f"model.transformer.{k}": v for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**LLADA, **changes}))
    return folder


def llada_logits(w: Mapping[str, Tensor], x_BL: Tensor, heads: int) -> Tensor:
    """LLaDA's forward pass (2502.09992: Llama's, without a causal mask), from its own tensors."""
    w = {name.removeprefix("model.transformer."): tensor for name, tensor in w.items()}
    h = w["wte.weight"][x_BL]
    size, length = h.shape[-1] // heads, x_BL.shape[1]
    angle = torch.arange(length)[:, None] / 500000.0 ** (torch.arange(0, size, 2) / size)
    cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, size)).transpose(1, 2)

    def turn(x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat([-right, left], -1) * sin

    def norm(x: Tensor, name: str) -> Tensor:
        return rms_norm(x, x.shape[-1:], w[f"{name}.weight"], 1e-5)

    for i in range(sum(name.endswith("attn_norm.weight") for name in w)):
        at = f"blocks.{i}."
        q, k, v = (split(linear(norm(h, at + "attn_norm"), w[f"{at}{name}_proj.weight"])) for name in "qkv")
        weights = (turn(q) @ turn(k).mT / math.sqrt(size)).softmax(-1)
        h = h + linear((weights @ v).transpose(1, 2).flatten(2), w[at + "attn_out.weight"])
        y = norm(h, at + "ff_norm")
        h = h + linear(
            silu(linear(y, w[at + "ff_proj.weight"])) * linear(y, w[at + "up_proj.weight"]), w[at + "ff_out.weight"]
        )
    return linear(norm(h, "ln_f"), w["ff_out.weight"])


def dream(folder: Path, **changes: Any) -> Path:
    """Dream: Qwen2 by another name, with a tokenizer of its own class that only the slow files are there for."""
    torch.manual_seed(2)
    Qwen2ForCausalLM(Qwen2Config(vocab_size=272, tie_word_embeddings=False, **SIZES)).save_pretrained(folder)
    _rename(folder, "Dream", "DreamModel", mask_token_id=259, **changes)
    (folder / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(byte_alphabet())}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    added = {
        str(256 + i): {
            "content": token,
            "special": True,
            **dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False),
        }
        for i, token in enumerate(CHATML)
    }
    described = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": added,
        "chat_template": TEMPLATE,
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>"),
        "mask_token": "<|mask|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


def a2d(folder: Path, **changes: Any) -> Path:
    """A2D: Qwen3 by another name; the tokenizer knows its mask."""
    torch.manual_seed(3)
    Qwen3ForCausalLM(Qwen3Config(vocab_size=264, head_dim=16, **SIZES)).save_pretrained(folder)
    _rename(folder, "a2d-qwen3", "A2DQwen3LMHeadModel", **changes)
    roles = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "mask_token": "<|mask|>"}
    tokenizer(CHATML, **roles).save_pretrained(folder)
    return folder


def sdar(folder: Path, **changes: Any) -> Path:
    """SDAR: Qwen3 by another name; the configuration says the mask and how long blocks are."""
    torch.manual_seed(6)
    Qwen3ForCausalLM(Qwen3Config(vocab_size=264, head_dim=16, **SIZES)).save_pretrained(folder)
    _rename(folder, "sdar", "SDARForCausalLM", **{"block_size": 4, "mask_token_id": 259, **changes})
    tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>").save_pretrained(folder)
    return folder


def open_dcoder(folder: Path) -> Path:
    """Open-dCoder: a configuration that is Qwen2's, but for its name on the Hub."""
    torch.manual_seed(4)
    Qwen2ForCausalLM(Qwen2Config(vocab_size=264, **SIZES)).save_pretrained(folder)
    tokenizer(CHATML, eos_token="<|endoftext|>", pad_token="<|endoftext|>", mask_token="<|mask|>").save_pretrained(
        folder
    )
    return folder


def diffugpt(folder: Path) -> Path:
    """DiffuGPT: GPT-2 under a wrapper of its own, with no padding, and a mask that is a word of the vocabulary."""
    torch.manual_seed(5)
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=261, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    state = {k: v.clone() for k, v in plain.state_dict().items() if k != "lm_head.weight"}
    renamed = {
        k.replace("transformer.wte.", "embed_tokens.").replace("transformer.", "denoise_model."): v
        for k, v in state.items()
    }
    plain.config.architectures = ["DiscreteDiffusionModel"]
    plain.config.save_pretrained(folder)
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    vocabulary = {c: i for i, c in enumerate([*byte_alphabet(), "un", "ma", "mas", "mask"])}
    merges = [("u", "n"), ("m", "a"), ("ma", "s"), ("mas", "k")]
    roles = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "mask_token": "mask"}
    _wrapped(Backend(models.BPE(vocab=vocabulary, merges=merges)), ("<|endoftext|>",), roles).save_pretrained(folder)
    return folder


def into_cache(folder: Path, name: str, cache: Path) -> Path:
    """Moves a checkpoint to where the Hub's library would have downloaded it; gives the snapshot's folder."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    return folder.rename(repository / "snapshots" / ("a" * 40))


def _rename(folder: Path, model_type: str, architecture: str, **changes: Any) -> None:
    file = folder / "config.json"
    tree = json.loads(file.read_text()) | {"model_type": model_type, "architectures": [architecture], **changes}
    file.write_text(json.dumps(tree))


def diffusion_gemma(folder: Path) -> Path:
    """DiffusionGemma: canvases of 8 tokens, no images."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "global_head_dim": 16}
    experts = {"num_experts": 2, "top_k_experts": 1, "moe_intermediate_size": 16}
    roles = {"pad_token_id": 256, "eos_token_id": 257, "bos_token_id": 258}
    text = {"vocab_size": 264, "hidden_size": 32, "intermediate_size": 32, "max_position_embeddings": 128}
    vision = {
        "model_type": "gemma4_vision",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    torch.manual_seed(6)
    config = DiffusionGemmaConfig(
        text_config={**text, **layers, **heads, **experts, **roles, "initializer_range": 0.3},
        vision_config=vision,
        canvas_length=8,
        image_token_id=263,
        boi_token_id=262,
        eoi_token_id=261,
    )
    model = DiffusionGemmaForBlockDiffusion(config)
    model.generation_config.update(max_denoising_steps=4, max_new_tokens=16, eos_token_id=[257, 260])
    model.save_pretrained(folder)
    tokens = ("<pad>", "<eos>", "<bos>", "<mask>", "<turn|>")
    named = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "mask_token": "<mask>"}
    tokenizer(tokens, **named).save_pretrained(folder)
    return folder
