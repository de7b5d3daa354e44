"""The network: a HuggingFace model made bidirectional, its vocabulary projected only where asked."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import set_stance
from transformers import PreTrainedModel

from dlm.diffusion.network import NetworkInput, Reduced, Reducer
from dlm.diffusion.streams import Pattern, TwoStreams
from dlm.errors import CheckpointError, ConfigError
from dlm.model.chunks import reduce_in_chunks
from dlm.model.patterns import check_patterns, use_patterns
from dlm.model.time_embedding import TimeEmbedding

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


class Backbone(nn.Module):
    """A HuggingFace model as a network for diffusion; see `dlm.diffusion.network`.

    Attributes:
        model: The HuggingFace model, unchanged; its `save_pretrained` is the checkpoint.
        time_embedding: Embeds the time; None for a network that takes no time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pad_id: int | None = None,
        time_embedding: TimeEmbedding | None = None,
        *,
        patterns: bool = False,
    ) -> None:
        """Finds the model's head and checks that the model is supported.

        Args:
            model: A masked-LM model, or a causal-LM model whose config says `is_causal: false`.
            pad_id: The id that attention ignores; None where no batch is padded.
            time_embedding: Embeds the time; None for a network that takes no time.
            patterns: Whether calls may say by a pattern what each token sees.

        Raises:
            ConfigError: The architecture's head is not known; or its logits are not the output of the head's
                modules alone, so that single rows would differ from the model's own logits; or attention is causal, or
                does not follow a pattern.
        """
        super().__init__()
        self.model = model
        self.pad_id = pad_id
        self.time_embedding = time_embedding
        self._compiled = False
        self._head = next((names for names in HEADS if all(hasattr(model, name) for name in names)), ())
        self._check()
        if patterns:
            use_patterns(model)
            check_patterns(lambda inputs: self._rows(inputs, None), model, pad_id)

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
        read: dict[str, Any] = {"input_ids": inputs.ids_BL, "attention_mask": self._mask(inputs), **self._extra()}
        if time_embedding is not None:
            embedded_BLD = self.model.get_input_embeddings()(read.pop("input_ids"))
            read["inputs_embeds"] = embedded_BLD + time_embedding(inputs.time_B)[:, None].to(embedded_BLD.dtype)
        if inputs.positions is not None:
            read["position_ids"] = inputs.positions.expand(len(inputs.ids_BL), -1)
        if (pattern := self._pattern(inputs)) is not None:
            # The pattern is all of it; a mask of four dimensions keeps transformers from making one.
            read |= {"pattern": pattern, "attention_mask": torch.zeros(1, 1, 1, 1, device=inputs.ids_BL.device)}
        if inputs.cache is not None:
            read |= {"past_key_values": inputs.cache, "use_cache": True}
        # Outside of training shapes vary, and each would be compiled anew.
        with set_stance("force_eager") if self._compiled and not self.training else nullcontext():
            hidden_BLD = self.model.base_model(**read).last_hidden_state
        if inputs.cache is not None:
            inputs.cache.crop(-inputs.ids_BL.shape[1])  # the model has added the keys and values of these ids
        rows_ND: Tensor = hidden_BLD.flatten(0, 1).index_select(0, inputs.index_N)
        return rows_ND

    def compile_layers(self) -> None:
        """Compiles the layers, for training only: there shapes are constant.

        Layers of one kind share what is compiled. The attention mask is made outside of them: where it is traced, some
        versions of transformers (5.17 is one) make one even if every token is seen, which rules out flash attention.
        """
        kinds = set(self._no_split_modules)
        layers = [module for module in self.model.modules() if type(module).__name__ in kinds]
        for module in layers or [self.model.base_model]:
            module.compile()
        self._compiled = True

    def _padding(self, inputs: NetworkInput) -> Tensor | None:
        """Where there is padding; None for nowhere, the common case, and the fastest."""
        if self.pad_id is None or inputs.padded is False:
            return None
        padding_BL = inputs.ids_BL == self.pad_id
        return padding_BL if inputs.padded or padding_BL.any() else None

    def _pattern(self, inputs: NetworkInput) -> Pattern | None:
        """The pattern of a call that has one. The end of a row is hidden from causal tokens by itself."""
        pattern = inputs.attention
        if isinstance(pattern, TwoStreams) and (padding_BN := self._padding(inputs)) is not None:
            return pattern.without(padding_BN[:, pattern.length :])
        return None if isinstance(pattern, Tensor) else pattern

    def _mask(self, inputs: NetworkInput) -> Tensor | None:
        """The attention mask: None for all tokens, the ones that are no padding, or what is added to each logit."""
        xt_BL, seen_BM = inputs.ids_BL, None
        if inputs.attention is not None and not isinstance(inputs.attention, Tensor):
            return None
        if (padding_BL := self._padding(inputs)) is not None:
            seen_BM = ~padding_BL
            if inputs.cache is not None:  # cached tokens are not padding
                seen_BM = torch.nn.functional.pad(seen_BM, (inputs.cache.get_seq_length(), 0), value=True)
        if inputs.attention is None:
            return None if seen_BM is None else seen_BM.long()
        open_BLM = inputs.attention if seen_BM is None else inputs.attention & seen_BM[:, None]
        open_BLM = open_BLM.expand(len(xt_BL), -1, -1)
        dtype = self.model.dtype
        zero = torch.zeros(open_BLM.shape, dtype=dtype, device=xt_BL.device)
        return zero.masked_fill(~open_BLM, torch.finfo(dtype).min)[:, None]

    @torch.no_grad()
    def check_masks(self, length: int, otherwise: str) -> None:
        """Checks that what each token sees can be set by a mask of each row, for rows of one length.

        Args:
            length: L.
            otherwise: What to set where it cannot, such as `data.attend to row`.

        Raises:
            ConfigError: The network sees less with a mask that is open everywhere, as layers of local attention do,
                which would lose their window; or it sees what a mask hides.
        """
        training = self.model.training
        self.model.eval()
        a, b, c = (i for i in range(4) if i != self.pad_id) if self.pad_id in range(4) else range(3)
        half = length // 2
        x_BL = torch.tensor([[a, b] * length])[:, :length].to(self.model.device).repeat(2, 1)
        x_BL[1, half:] = c
        part_L = torch.arange(length, device=x_BL.device) < half
        every_BL, open_LL = torch.ones_like(x_BL, dtype=torch.bool), torch.ones_like(part_L).expand(length, length)
        plain = NetworkInput(x_BL, every_BL, torch.zeros(2, device=x_BL.device))
        whole_ND, open_ND, apart_ND = (
            self._rows(replace(plain, attention=attention), None)
            for attention in (None, open_LL, part_L[:, None] == part_L)
        )
        self.model.train(training)
        kind = self.model.config.model_type
        if not torch.allclose(whole_ND, open_ND, rtol=1e-2, atol=1e-3):
            raise ConfigError(
                f"model.architecture {kind} has layers that see a part of the row, which a mask would open: "
                f"set {otherwise}, or make every layer see all"
            )
        one_LD, other_LD = apart_ND.view(2, length, -1)
        if not torch.allclose(one_LD[:half], other_LD[:half], rtol=1e-3, atol=1e-4):
            raise ConfigError(f"model.architecture {kind} sees what a mask hides: set {otherwise}")

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
    def device(self) -> torch.device:
        """Where the network is."""
        table = self.model.get_input_embeddings()  # transformers' own way looks at every module
        return next(table.parameters()).device

    @property
    def vocabulary(self) -> int:
        """The number of ids that the network has a logit for."""
        return int(self.model.config.vocab_size)

    def _extra(self) -> dict[str, Any]:
        """Turns off the cache of keys and values that decoders return by default."""
        return {"use_cache": False} if hasattr(self.model.config, "use_cache") else {}

    @torch.no_grad()
    def _check(self) -> None:
        """Checks on two tokens that rows equal the model's own logits, and that the first token sees the last."""
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
        if whole_BLV.isnan().any():
            raise CheckpointError(
                f"this {kind} network computes no numbers (NaN): its weights are damaged, or too large for their type"
            )
        if not torch.allclose(whole_BLV.flatten(0, 1), rows_NV, rtol=1e-2, atol=1e-3, equal_nan=True):
            raise ConfigError(
                f"model.architecture {kind}: its logits are not its head's alone, which dlm does not support"
            )
        if torch.equal(whole_BLV[0, 0], whole_BLV[1, 0]):
            raise ConfigError(
                f"model.architecture {kind} stays causal: it cannot see what stands to the right of a mask"
            )
