"""A decoder's layers as one list of operations, for calls of few tokens behind a cache.

In such a call the modules of a model take longer than its arithmetic: each layer has a dozen, and each looks at its
hooks, its options and its shapes anew. Here they are traced once, and what they did to tensors is run by itself: the
same operations in the same order, so the same bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Self

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import PreTrainedModel

from dlm.diffusion.network import NetworkInput
from dlm.model.cache import RowCache
from dlm.model.patterns import ATTEND, DEFERRED, Attend, heads_of, together

ENOUGH = 200
"""The calls after which tracing pays: a layer takes as long to trace as its modules lose in about so many."""


@dataclass(frozen=True)
class ShortCall:
    """A call of a few tokens behind a cache.

    Attributes:
        ids_BN: The ids.
        position_BN: Where they stand in their text.
        cache: What stands before them.
        mask: What is added to the logits of attention; None for nothing.
    """

    ids_BN: Tensor
    position_BN: Tensor
    cache: RowCache
    mask: Tensor | None

    @classmethod
    def of(cls, inputs: NetworkInput, mask: Tensor | None) -> Self:
        """A call of a network that `Unrolled` takes."""
        assert isinstance(inputs.cache, RowCache) and inputs.positions is not None
        return cls(inputs.ids_BL, inputs.positions.expand(len(inputs.ids_BL), -1), inputs.cache, mask)


Operations = Callable[[Tensor, Tensor, ShortCall], Tensor]
"""(ids_BN, position_BN, the call) -> the last hidden states, shape (B, N, D)."""


class Unrolled:
    """The layers of a model, from ids to last hidden states: its modules at first, and then what they did.

    The weights are the model's own. A model that cannot be traced, or whose operations alone give other bits, is run
    by its modules.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Takes a model whose attention knows patterns; see `dlm.model.patterns.use_patterns`."""
        self._model = model
        self._calls, self._kind = 0, self._present_kind()
        self._operations: Operations | None = None

    @staticmethod
    def takes(inputs: NetworkInput) -> bool:
        """Whether a call can be run so: behind a cache whose rows grow on their own, in the type of the weights."""
        behind = isinstance(inputs.cache, RowCache) and inputs.positions is not None and inputs.padded is False
        return behind and not torch.is_grad_enabled() and not torch.is_autocast_enabled(inputs.ids_BL.device.type)

    def __call__(self, call: ShortCall, by_modules: Callable[[], Tensor]) -> Tensor:
        """Runs the layers.

        Args:
            call: The call.
            by_modules: The same by the modules.

        Returns:
            The last hidden states, shape (B, N, D).
        """
        if self._kind != (kind := self._present_kind()):
            self._calls, self._kind, self._operations = 0, kind, None
        self._calls += 1
        if self._operations is not None:
            return self._operations(call.ids_BN, call.position_BN, call)
        found = by_modules()
        if self._calls == ENOUGH:
            operations = traced(self._model)
            if operations and torch.equal(found, operations(call.ids_BN, call.position_BN, call)):
                self._operations = operations
        return found

    def _present_kind(self) -> tuple[torch.dtype, torch.device]:
        """What is fixed when operations are traced: where the weights are, and their type."""
        weight = next(self._model.get_input_embeddings().parameters())
        return weight.dtype, weight.device


def traced(model: PreTrainedModel) -> Operations | None:
    """The operations of a model's layers on tensors, for any number of rows and ids.

    Args:
        model: In evaluation mode.

    Returns:
        The operations; None for a model that cannot be traced.
    """
    device = next(model.get_input_embeddings().parameters()).device

    def layers(ids_BN: Tensor, position_BN: Tensor) -> Tensor:
        found: Tensor = model.base_model(
            input_ids=ids_BN,
            position_ids=position_BN,
            attention_mask=torch.zeros(1, 1, 1, 1, device=device),
            pattern=DEFERRED,
            use_cache=False,
        ).last_hidden_state
        return found

    ids_BN, position_BN = torch.zeros(2, 2, 3, dtype=torch.long, device=device)
    try:
        with torch.inference_mode(False), torch.no_grad():
            trace = make_fx(layers, tracing_mode="symbolic", _allow_non_fake_inputs=True, pre_dispatch=True)
            return _function(_simplified(trace(ids_BN, position_BN)))
    except Exception:  # tracing fails in as many ways as there are models
        return None


def _simplified(graph_module: GraphModule) -> GraphModule:
    """The graph with its attention behind the call's cache, and without what does nothing."""
    graph = graph_module.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    with graph.inserting_after(last):
        call = graph.placeholder("call")
    for node in list(graph.nodes):
        if node.target is torch._C._set_grad_enabled:
            graph.erase_node(node)
        elif node.target is ATTEND:
            node.target, node.args = _attend, (call, *node.args)
        elif node.target in (torch.ops.aten.to.dtype, torch.ops.aten.to.device) and _same(node):
            node.replace_all_uses_with(node.args[0])
    graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module


def _function(graph_module: GraphModule) -> Operations:
    """A graph as a function. A module looks long for each of its weights: here they are plain attributes."""
    names = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    weights = SimpleNamespace(**{name: getattr(graph_module, name) for name in names})
    return partial(type(graph_module).forward, weights)


def _same(node: torch.fx.Node) -> bool:
    """Whether a conversion gives what it is given."""
    (before, *_), after = node.args, node.meta["val"]
    if not isinstance(before, torch.fx.Node) or "val" not in before.meta:
        return False
    given = before.meta["val"]
    return bool(given.dtype == after.dtype and given.device == after.device)


def _attend(
    call: ShortCall, query_BHND: Tensor, key_BGND: Tensor, value_BGND: Tensor, layer: int, scaling: float, eager: bool
) -> Tensor:
    """The attention of a layer to a call's cache and its own ids, shape (B, N, H, D)."""
    key_BGMD, value_BGMD = call.cache.update(key_BGND, value_BGND, layer)
    keys, values = (heads_of(x, query_BHND.shape[1]) for x in (key_BGMD, value_BGMD))
    return together(Attend(scaling, 0.0, eager)(query_BHND, keys, values, call.mask))
